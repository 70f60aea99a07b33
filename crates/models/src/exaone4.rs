//! EXAONE 4: norms behind blocks alone and of each head; in the larger model three of four layers
//! see a window, and the fourth sees everything and knows no positions.
//!
//! Paper: <https://arxiv.org/abs/2507.11407>. Reference: transformers `modeling_exaone4.py`.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, HeadNorms, ModelError, Norms};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &[("exaone4", "EXAONE 4")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.norms = Norms::After;
    spec.attention.head_norms = HeadNorms::BeforeRotation;
    if settings.integer_or("attention.sliding_window", 0)? > 0 {
        let windowed = settings.alternate_windows(&mut spec.layers, 4)?;
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            layer.rotary = layer.rotary.take().filter(|_| windowed.contains(&index));
        }
    }
    Ok(spec)
}
