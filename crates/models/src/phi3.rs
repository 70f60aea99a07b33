//! Phi-3 and Phi-4: Llama with query, key and value in one tensor, gate and up in another;
//! LongRoPE, and in some a window for all layers.
//!
//! Papers: <https://arxiv.org/abs/2404.14219>, <https://arxiv.org/abs/2412.08905>. Reference:
//! transformers `modeling_phi3.py`.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{AttentionInputs, DecoderSpec, FeedForward, ModelError, Stored};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family =
    Family { architectures: &[("phi3", "Phi-3, Phi-3.5, Phi-4")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let activation = Activation::Silu;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, activation)?;
    spec.attention.inputs = AttentionInputs::Matrices(Stored::Together);
    let window = settings.window_or_full()?;
    for layer in &mut spec.layers {
        layer.window = window;
        layer.feed_forward = FeedForward::Gated { activation, stored: Stored::Together };
    }
    Ok(spec)
}
