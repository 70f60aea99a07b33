//! What do the keys of a GGUF file of Gemma 4 say in the settings of a folder? Heads of two sizes,
//! layers that read the keys of earlier ones, embeddings for each layer, experts beside others.
//!
//! Source: `conversion/gemma.py` of llama.cpp, read backwards; `gemma4_text.py` of MLX-LM.

use serde_json::{Value as Json, json};

use crate::QuantizeError;
use crate::folder_settings::{Entries, Keys, ROPE_FREQS, layer_types, number};

pub(crate) fn settings(
    keys: &Keys<'_>,
    layers: u32,
    window: Option<u32>,
) -> Result<Entries, QuantizeError> {
    let slides = keys.slides(layers, 6)?;
    let reading = keys.get::<u32>("attention.shared_kv_layers")?.unwrap_or(0);
    let own = layers.saturating_sub(reading) as usize;
    let Kept { few, many, all_have_values } = kept(keys, &slides[..own])?;
    let (plain, is_wide) = widths(keys, layers, own)?;
    let scale = "blk.0.layer_output_scale.weight";
    if !keys.file.contains(scale) {
        return Err(other(keys, &format!("it has no {scale}")));
    }
    let cap = keys.float("final_logit_softcapping", 0.0)?;
    let mut told: Entries = vec![
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("intermediate_size", json!(plain)),
        ("use_double_wide_mlp", json!(is_wide)),
        ("head_dim", json!(keys.needed("attention.key_length_swa")?)),
        ("global_head_dim", json!(keys.needed("attention.key_length")?)),
        ("num_key_value_heads", json!(few)),
        ("num_global_key_value_heads", json!(many)),
        ("attention_k_eq_v", json!(!all_have_values)),
        ("num_kv_shared_layers", json!(reading)),
        ("sliding_window", json!(window)),
        ("layer_types", layer_types(&slides, "sliding_attention")),
        ("final_logit_softcapping", if cap == 0.0 { Json::Null } else { number(cap) }),
    ];
    let width = keys.get::<u32>("embedding_length_per_layer_input")?.unwrap_or(0);
    told.push(("hidden_size_per_layer_input", json!(width)));
    if width > 0 {
        let rows = keys.file.shape("per_layer_token_embd.weight")?.rows;
        told.push(("vocab_size_per_layer_input", json!(rows)));
    }
    let has_experts = keys.get::<u32>("expert_count")?.unwrap_or(0) > 0;
    told.push(("enable_moe_block", json!(has_experts)));
    if has_experts {
        told.push(("num_experts", json!(keys.needed("expert_count")?)));
        told.push(("top_k_experts", json!(keys.needed("expert_used_count")?)));
        told.push(("moe_intermediate_size", json!(keys.needed("expert_feed_forward_length")?)));
    }
    Ok(told)
}

fn other(keys: &Keys<'_>, problem: &str) -> QuantizeError {
    keys.wrong(format!("{problem}, which MLX-LM has not"))
}

/// Heads of keys in layers with a window and in those that see everything, and whether the latter
/// have values.
struct Kept {
    few: Option<u32>,
    many: Option<u32>,
    all_have_values: bool,
}

/// Of the layers that keep keys of their own.
fn kept(keys: &Keys<'_>, slides: &[bool]) -> Result<Kept, QuantizeError> {
    let counts = keys.each("attention.head_count_kv")?;
    let heads_kv = |layer: usize| counts.get(layer).or(counts.first()).copied();
    let one_of = |sees_all: bool| {
        let alike = slides.iter().enumerate().filter(|(_, slides)| **slides != sees_all);
        let mut alike = alike.map(|(layer, _)| {
            let has_values = keys.file.contains(&format!("blk.{layer}.attn_v.weight"));
            (heads_kv(layer), has_values)
        });
        let first = alike.next();
        if alike.any(|other| Some(other) != first) {
            return Err(other(keys, "its layers of one kind have heads of several kinds"));
        }
        Ok(first)
    };
    let (few, has_values) = one_of(false)?.unwrap_or((heads_kv(0), true));
    let (many, all_have_values) = one_of(true)?.unwrap_or((few, true));
    if !has_values {
        return Err(other(keys, "its layers with a window have keys for values"));
    }
    if all_have_values && few != many {
        return Err(other(keys, "its layers of both kinds have values and other counts of heads"));
    }
    Ok(Kept { few, many, all_have_values })
}

/// Of feed-forwards, and whether those that read others' keys have twice it.
fn widths(keys: &Keys<'_>, layers: u32, own: usize) -> Result<(usize, bool), QuantizeError> {
    let inner = |layer: u32| Ok(keys.file.shape(&format!("blk.{layer}.ffn_gate.weight"))?.rows);
    let inners: Vec<usize> = (0..layers).map(inner).collect::<Result<_, QuantizeError>>()?;
    let plain = inners.first().copied().unwrap_or(0);
    let is_wide = inners.get(own).is_some_and(|inner| *inner == 2 * plain);
    let wanted = |layer: usize| if is_wide && layer >= own { 2 * plain } else { plain };
    if inners.iter().enumerate().any(|(layer, inner)| *inner != wanted(layer)) {
        return Err(other(keys, "its feed-forwards are of several widths"));
    }
    Ok((plain, is_wide))
}

/// Layers that see everything turn the first part of a head's pairs: those whose divisors are 1.
pub(crate) fn positions(
    keys: &Keys<'_>,
    base: f32,
    columns: u32,
) -> Result<Entries, QuantizeError> {
    let divisors =
        if keys.file.contains(ROPE_FREQS) { keys.vector(ROPE_FREQS)? } else { Vec::new() };
    let turning = divisors.iter().take_while(|divisor| **divisor == 1.0).count();
    // By so much, nothing turns.
    if divisors[turning..].iter().any(|divisor| *divisor < 1e20) {
        return Err(keys.wrong(format!("{ROPE_FREQS} is not of 1 and then of what turns nothing")));
    }
    let part = match divisors.len() {
        0 => 1.0,
        _ => 2.0 * turning as f64 / f64::from(columns.max(1)),
    };
    let local = keys.float("rope.freq_base_swa", 10_000.0)?;
    Ok(vec![(
        "rope_parameters",
        json!({
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": number(base),
                "partial_rotary_factor": part,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": number(local)},
        }),
    )])
}
