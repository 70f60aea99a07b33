//! Qwen 3 by experts: the attention of Qwen 3, a mixture in every layer. Qwen3-VL is the same for
//! texts.
//!
//! Paper: <https://arxiv.org/abs/2505.09388>. Reference: transformers `modeling_qwen3_moe.py`, with
//! `norm_topk_prob`, which all published models have and files do not say.

use ops::experts::Scoring;
use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, FeedForward, HeadNorms, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[
        ("qwen3moe", "Qwen 3, by experts"),
        ("qwen3vlmoe", "Qwen3-VL, by experts, text"),
    ],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.attention.head_norms = HeadNorms::BeforeRotation;
    let inner = settings.integer("expert_feed_forward_length")?;
    let normed = settings.truth_or("expert_weights_norm", true)?;
    let scoring = if normed { Scoring::SoftmaxNormed } else { Scoring::Softmax };
    let experts = FeedForward::Experts(settings.experts(scoring, inner)?);
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        // Some folders have dense layers among the others.
        if !settings.contains(&format!("blk.{index}.ffn_gate.weight")) {
            layer.feed_forward = experts;
        }
    }
    Ok(spec)
}
