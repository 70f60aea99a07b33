//! GPT-OSS: experts with biases and clamped gates, attention with sinks, a window in every other
//! layer, YaRN whose ramp is not rounded.
//!
//! Paper: <https://arxiv.org/abs/2508.10925>. Reference: transformers `modeling_gpt_oss.py`.

use ops::experts::Scoring;
use ops::gated_linear::Activation;
use ops::rotary::{Pairing, RotaryScaling};
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ExpertsSpec, FeedForward, ModelError, Norms, Sinks};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &[("gpt-oss", "GPT-OSS")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let activation = Activation::ClampedSilu;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, activation)?;
    spec.norms = Norms::BeforeByOtherName;
    spec.attention.sinks = Sinks::OnePerHead;
    settings.alternate_windows(&mut spec.layers, 2)?;
    let inner = settings.integer("expert_feed_forward_length")?;
    let experts = settings.experts(Scoring::SoftmaxOfChosen, inner)?;
    let experts = ExpertsSpec { has_biases: true, activation, ..experts };
    for layer in &mut spec.layers {
        layer.feed_forward = FeedForward::Experts(experts);
        if let Some(RotaryScaling::Yarn(yarn)) = layer.rotary.as_mut().map(|r| &mut r.scaling) {
            yarn.truncate = false;
        }
    }
    Ok(spec)
}
