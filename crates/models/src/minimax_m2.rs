//! MiniMax-M2: all heads of a token's queries and keys normed together, half of each head turns,
//! and every layer a mixture that is chosen by sigmoids and a bias.
//!
//! Reference: transformers `modeling_minimax_m2.py`. The norms are as in OLMo 2, the choice as in
//! GLM-4.5 by experts, without an expert for all tokens.

use ops::experts::Scoring;
use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ExpertsSpec, FeedForward, HeadNorms, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family =
    Family { architectures: &[("minimax-m2", "MiniMax-M2")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.attention.head_norms = HeadNorms::AcrossHeads;
    settings.refuse_unless("expert_gating_func", 2, "sigmoids, which is 2")?;
    let inner = settings.integer("expert_feed_forward_length")?;
    let experts = settings.experts(Scoring::SigmoidNormed, inner)?;
    let experts = FeedForward::Experts(ExpertsSpec { has_choice_bias: true, ..experts });
    spec.layers.iter_mut().for_each(|layer| layer.feed_forward = experts);
    Ok(spec)
}
