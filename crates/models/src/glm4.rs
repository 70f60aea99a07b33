//! GLM-4 (the 0414 models), dense: norms on both sides of each block, half of each head turns, gate
//! and up in one tensor.
//!
//! Paper: <https://arxiv.org/abs/2406.12793>. Reference: transformers `modeling_glm4.py`, which
//! turns adjacent pairs.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, FeedForward, ModelError, Norms, Stored};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &[("glm4", "GLM-4 0414")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let activation = Activation::Silu;
    let mut spec = settings.plain_decoder(Pairing::Adjacent, activation)?;
    // The first, GLM-4 9B, has none behind its blocks.
    if settings.contains("blk.0.post_attention_norm.weight") {
        spec.norms = Norms::BeforeAndAfter;
    }
    for layer in &mut spec.layers {
        layer.feed_forward = FeedForward::Gated { activation, stored: Stored::Together };
    }
    Ok(spec)
}
