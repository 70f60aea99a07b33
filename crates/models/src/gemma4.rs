//! Gemma 4 (text), dense and by experts: layers that see a window, with heads of another size than
//! those that see all; norms of keys, queries and values; layers that read the keys of earlier
//! ones; embeddings for each layer; experts beside a feed-forward, each between norms of its own.
//!
//! Reference: transformers `modeling_gemma4.py`; llama.cpp's `conversion/gemma.py`. Heads of the
//! cache are as large and as many as those of any layer.

use ops::experts::Scoring;
use ops::gated_linear::Activation;
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use weights::WeightFile;

use crate::gemma::brain_float_root;
use crate::gguf_settings::GgufSettings;
use crate::spec::{
    Beside, DecoderSpec, ExpertsSpec, FeedForward, ModelError, Norms, OwnHeads, OwnKeys,
    PerLayerSpec,
};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family =
    Family { architectures: &[("gemma4", "Gemma 4, text")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::GeluTanh)?;
    spec.embedding_scale = brain_float_root(spec.dims.width);
    spec.norms = Norms::BeforeAndAfter;
    spec.attention.scale = 1.0;
    let cap = settings.float_or("final_logit_softcapping", 0.0)?;
    spec.logit_soft_cap = (cap != 0.0).then_some(cap);
    let width = settings.integer_or("embedding_length_per_layer_input", 0)?;
    let layers = spec.dims.layers;
    spec.per_layer = (width > 0).then_some(PerLayerSpec { width, layers });
    spec.scales_layers = settings.contains("blk.0.layer_output_scale.weight");
    heads(&settings, &mut spec)?;
    let width = spec.dims.width;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let inner = settings.rows(&format!("blk.{index}.ffn_gate.weight"))?;
        layer.inner = Some(inner);
        if settings.contains(&format!("blk.{index}.ffn_gate_inp.weight")) {
            layer.feed_forward = FeedForward::Experts(experts(&settings, width, inner)?);
        }
    }
    Ok(spec)
}

/// Experts beside a feed-forward of `inner`. What the router reads is divided by the root of the
/// width, which is what its scores would be divided by.
fn experts(settings: &GgufSettings<'_>, width: u32, inner: u32) -> Result<ExpertsSpec, ModelError> {
    let own = settings.integer("expert_feed_forward_length")?;
    let mut experts = settings.experts(Scoring::SoftmaxNormed, own)?;
    experts.routing.sharpness = (width as f32).sqrt().recip();
    Ok(ExpertsSpec {
        has_weight_scales: true,
        activation: Activation::GeluTanh,
        shared: Some(inner),
        beside: Beside::Apart,
        ..experts
    })
}

/// Windows, sizes of heads, and whose keys are read.
fn heads(settings: &GgufSettings<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    let base = settings.rotary_base("rope.freq_base_swa", 10_000.0)?;
    let small = settings.integer("attention.key_length_swa")?;
    let counts = settings.integers("attention.head_count_kv")?.unwrap_or_default();
    let count = spec.layers.len();
    let shared = settings.integer_or("attention.shared_kv_layers", 0)? as usize;
    let windowed = settings.alternate_windows(&mut spec.layers, 6)?;
    // The last of each kind that has keys of its own.
    let mut latest = [None; 2];
    let mut numbered = 0;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let slides = windowed.contains(&index);
        if slides {
            let local =
                |rotary| Rotary { base, dims: small, scaling: RotaryScaling::None, ..rotary };
            layer.rotary = layer.rotary.take().map(local);
        }
        let heads_kv = counts.get(index).or(counts.first()).copied();
        let keys = if index + shared >= count {
            OwnKeys::Of(latest[usize::from(slides)].ok_or_else(|| {
                let reason = "no layer before them has keys of their kind";
                ModelError::setting("attention.shared_kv_layers", shared, reason)
            })?)
        } else {
            latest[usize::from(slides)] = Some(numbered);
            numbered += 1;
            let has_values = settings.contains(&format!("blk.{index}.attn_v.weight"));
            if has_values { OwnKeys::Two } else { OwnKeys::One }
        };
        layer.own_heads = Some(OwnHeads {
            head_dim: if slides { small } else { spec.dims.head_dim },
            heads_kv: heads_kv.unwrap_or(spec.dims.heads_kv),
            keys,
        });
    }
    Ok(())
}
