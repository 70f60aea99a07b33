//! Llama 2, 3 and 3.x, Mistral, SmolLM2 and others saved as `llama`: pre-norm, grouped attention,
//! gated SiLU.
//!
//! Papers: <https://arxiv.org/abs/2307.09288>, <https://arxiv.org/abs/2407.21783>. Reference:
//! transformers `modeling_llama.py`. GGUF files of this architecture store query and key rows
//! permuted, so that rotary pairs are adjacent.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, FeedForward, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &["llama"], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, "llama", load);
    settings.refuse_tensor("blk.0.ffn_gate_inp.weight", "a mixture of experts")?;
    let dims = settings.dims()?;
    Ok(DecoderSpec {
        dims,
        epsilon: settings.float("attention.layer_norm_rms_epsilon")?,
        rotary: settings.rotary(Pairing::Adjacent, &dims)?,
        feed_forward: FeedForward::Gated(Activation::Silu),
        embedding: settings.embedding(),
        attention_biases: settings.attention_biases(),
    })
}
