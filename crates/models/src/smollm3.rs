//! SmolLM3: Llama whose every fourth layer knows no positions.
//!
//! Reference: transformers `modeling_smollm3.py`; NoPE layers: <https://arxiv.org/abs/2501.18795>.
//! GGUF files store query and key rows permuted, as those of Llama.

use ops::gated_linear::Activation;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &[("smollm3", "SmolLM3")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(settings.permuted_pairing()?, Activation::Silu)?;
    // Files do not say which layers; it is the same in all of this family.
    spec.layers.iter_mut().skip(3).step_by(4).for_each(|layer| layer.rotary = None);
    Ok(spec)
}
