//! Llama 2, 3 and 3.x, Mistral, Mixtral, SmolLM2 and others saved as `llama`: pre-norm, grouped
//! attention, gated SiLU, in Mixtral by experts.
//!
//! Papers: <https://arxiv.org/abs/2307.09288>, <https://arxiv.org/abs/2407.21783>,
//! <https://arxiv.org/abs/2401.04088>. Reference: transformers `modeling_llama.py`,
//! `modeling_mixtral.py`. GGUF files of this architecture store query and key rows
//! permuted, so that rotary pairs are adjacent; folders of safetensors do not.

use ops::experts::Scoring;
use ops::gated_linear::Activation;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, FeedForward, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[("llama", "Llama 2 to 3.3, Mistral, Mixtral, SmolLM and SmolLM2, and others")],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(settings.permuted_pairing()?, Activation::Silu)?;
    // The first Mistral models; later ones see everything, or some of their layers do.
    let window = settings.window_or_full()?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    settings.listed_windows(&mut spec.layers)?;
    if settings.integer_or("expert_count", 0)? > 0 {
        let experts = settings.experts(Scoring::SoftmaxNormed, spec.dims.feed_forward)?;
        let mixture = FeedForward::Experts(experts);
        spec.layers.iter_mut().for_each(|layer| layer.feed_forward = mixture);
    }
    Ok(spec)
}
