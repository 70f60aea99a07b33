//! OLMo 2 and 3: norms behind blocks alone, and of all heads of a token's queries and keys; in
//! OLMo 3 three of four layers see a window.
//!
//! Paper: <https://arxiv.org/abs/2501.00656>. Reference: transformers `modeling_olmo2.py`,
//! `modeling_olmo3.py`, which scales positions in the layers without a window alone.

use ops::gated_linear::Activation;
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, HeadNorms, ModelError, Norms};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &[("olmo2", "OLMo 2 and 3")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.norms = Norms::After;
    spec.attention.head_norms = HeadNorms::AcrossHeads;
    if settings.integer_or("attention.sliding_window", 0)? > 0 {
        let base = settings.rotary_base("rope.freq_base", 10_000.0)?;
        let base = settings.rotary_base("rope.freq_base_swa", base)?;
        let plain = |rotary| Rotary { base, scaling: RotaryScaling::None, ..rotary };
        for index in settings.alternate_windows(&mut spec.layers, 4)? {
            let layer = &mut spec.layers[index];
            layer.rotary = layer.rotary.take().map(plain);
        }
    }
    Ok(spec)
}
