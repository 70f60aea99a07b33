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
use crate::spec::{DecoderSpec, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &["llama"], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    settings.refuse_tensor("blk.0.ffn_gate_inp.weight", "a mixture of experts")?;
    let mut spec = settings.plain_decoder(Pairing::Adjacent, Activation::Silu)?;
    // The first Mistral models; later ones see everything.
    let window = settings.window_or_full()?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}
