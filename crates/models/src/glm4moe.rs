//! GLM-4.5 and later by experts: half of each head turns, heads normed in the largest; the first
//! layers are dense, the others choose by sigmoids and a bias, beside an expert for all.
//!
//! Paper: <https://arxiv.org/abs/2508.06471>. Reference: transformers `modeling_glm4_moe.py`.
//! Layers that guess at later tokens (`nextn`) are in the files and not run.

use ops::experts::Scoring;
use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ExpertsSpec, FeedForward, HeadNorms, ModelError, Norms};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family =
    Family { architectures: &[("glm4moe", "GLM-4.5 and later, by experts")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.norms = Norms::BeforeByOtherName;
    if settings.contains("blk.0.attn_q_norm.weight") {
        spec.attention.head_norms = HeadNorms::BeforeRotation;
    }
    settings.refuse_unless("expert_gating_func", 2, "sigmoids, which is 2")?;
    let inner = settings.integer("expert_feed_forward_length")?;
    let normed = settings.truth_or("expert_weights_norm", true)?;
    let scoring = if normed { Scoring::SigmoidNormed } else { Scoring::Sigmoid };
    let experts = settings.experts(scoring, inner)?;
    let experts = FeedForward::Experts(ExpertsSpec { has_choice_bias: true, ..experts });
    let dense = settings.integer_or("leading_dense_block_count", 0)? as usize;
    spec.layers.iter_mut().skip(dense).for_each(|layer| layer.feed_forward = experts);
    Ok(spec)
}
