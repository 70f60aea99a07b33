//! DeepSeek V2, V3 and R1, Kimi K2 and GLM-4.7-Flash: latent attention, experts behind the first
//! dense layers, beside some for every token.
//!
//! Papers: <https://arxiv.org/abs/2405.04434>, <https://arxiv.org/abs/2412.19437>. Reference:
//! transformers `modeling_deepseek_v2.py`, `modeling_deepseek_v3.py`, which turn adjacent pairs,
//! and `modeling_glm4_moe_lite.py`, which has the attention of the second.
//! Files hold the matrix behind the latent taken apart by heads, the keys' half turned around.

use ops::experts::Scoring;
use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{AttentionInputs, DecoderSpec, ExpertsSpec, FeedForward, LatentSpec, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[("deepseek2", "DeepSeek V2, V3 and R1, Kimi K2, GLM-4.7-Flash")],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?.reading_log_multiplier();
    let mut spec = settings.plain_decoder(Pairing::Adjacent, Activation::Silu)?;
    let turning = settings.integer("rope.dimension_count")?;
    let head = settings.integer("attention.key_length_mla")?;
    let rank = settings.integer_or("attention.q_lora_rank", 0)?;
    spec.attention.inputs = AttentionInputs::Latent(LatentSpec {
        query_rank: (rank > 0).then_some(rank),
        latent: settings.integer("attention.kv_lora_rank")?,
        turning,
        plain: head.saturating_sub(turning),
        value: settings.integer("attention.value_length_mla")?,
    });
    spec.attention.scale = settings.yarn_scale()? / (head as f32).sqrt();
    let inner = settings.integer("expert_feed_forward_length")?;
    // V2 says nothing of scores, and V3 says 2: sigmoids.
    let by_sigmoid = settings.integer_or("expert_gating_func", 1)? == 2;
    let scoring = match (by_sigmoid, settings.truth_or("expert_weights_norm", false)?) {
        (false, false) => Scoring::Softmax,
        (false, true) => Scoring::SoftmaxNormed,
        (true, false) => Scoring::Sigmoid,
        (true, true) => Scoring::SigmoidNormed,
    };
    let experts = settings.experts(scoring, inner)?;
    let dense = settings.integer_or("leading_dense_block_count", 0)? as usize;
    let has_choice_bias = settings.contains(&format!("blk.{dense}.exp_probs_b.bias"));
    let experts = FeedForward::Experts(ExpertsSpec { has_choice_bias, ..experts });
    spec.layers.iter_mut().skip(dense).for_each(|layer| layer.feed_forward = experts);
    Ok(spec)
}
