//! Qwen 3.5 and 3.6, dense and by experts, and Qwen3-Next: gated delta nets, and an attention with
//! gates in every fourth layer.
//!
//! Reference: transformers `modeling_qwen3_5.py`, `modeling_qwen3_5_moe.py`,
//! `modeling_qwen3_next.py`; llama.cpp's `conversion/qwen.py`, after which GGUF files hold norms
//! with their 1 added, `ssm_a` as minus its exponential, and heads of values in another order but
//! for Qwen3-Next. Positions of images, of which texts have none, are not read.

use ops::experts::Scoring;
use ops::gated_delta::{DeltaShape, HeadSharing};
use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{
    AttentionInputs, Beside, DecoderSpec, DeltaGates, DeltaSpec, ExpertsSpec, FeedForward,
    HeadNorms, Mixer, ModelError, Norms,
};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[
        ("qwen35", "Qwen 3.5 and 3.6, dense"),
        ("qwen35moe", "Qwen 3.5 and 3.6, by experts"),
        ("qwen3next", "Qwen3-Next"),
    ],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.norms = Norms::BeforeByOtherName;
    spec.attention.inputs = AttentionInputs::Gated;
    spec.attention.head_norms = HeadNorms::BeforeRotation;
    let is_next = settings.architecture() == "qwen3next";
    let nets = Mixer::Delta(net(&settings, is_next)?);
    let recurs = settings.layers_but_each(
        "attention.recurrent_layers",
        spec.layers.len(),
        ("full_attention_interval", 4),
    )?;
    for (layer, recurs) in spec.layers.iter_mut().zip(recurs) {
        if recurs {
            layer.mixer = nets;
        }
    }
    if settings.architecture() != "qwen35" {
        let inner = settings.integer("expert_feed_forward_length")?;
        let shared = settings.integer("expert_shared_feed_forward_length")?;
        let experts = FeedForward::Experts(ExpertsSpec {
            shared: Some(shared),
            beside: Beside::Share,
            ..settings.experts(Scoring::SoftmaxNormed, inner)?
        });
        spec.layers.iter_mut().for_each(|layer| layer.feed_forward = experts);
    }
    Ok(spec)
}

fn net(settings: &GgufSettings<'_>, is_next: bool) -> Result<DeltaSpec, ModelError> {
    let heads = settings.integer("ssm.time_step_rank")?;
    let inner = settings.integer("ssm.inner_size")?;
    if heads == 0 || !inner.is_multiple_of(heads) {
        let reason = format!("it must be a multiple of the {heads} heads of values");
        return Err(ModelError::setting("ssm.inner_size", inner, &reason));
    }
    Ok(DeltaSpec {
        shape: DeltaShape {
            heads,
            heads_key: settings.integer("ssm.group_count")?,
            key_dim: settings.integer("ssm.state_size")?,
            value_dim: inner / heads,
            sharing: if is_next { HeadSharing::Grouped } else { settings.head_sharing()? },
        },
        taps: settings.integer("ssm.conv_kernel")?,
        gates: if is_next { DeltaGates::Paired } else { DeltaGates::Apart },
    })
}
