//! How are rotary positions of `config.json` said in GGUF's keys and tensors?
//!
//! Source: transformers `modeling_rope_utils.py` for the keys; llama.cpp's converter for what
//! becomes of them, the divisors of `llama3` and `longrope` included.

use super::config::Config;
use super::settings::{Architecture, Keys};
use crate::metadata::Value;

/// Far beyond any model's.
const HEAD_DIM_MAX: u32 = 1 << 16;

pub(super) type Vectors = Vec<(&'static str, Vec<f32>)>;

/// Puts the keys; returns divisors that GGUF files have as tensors.
pub(super) fn read(
    config: &Config<'_>,
    architecture: Architecture,
    keys: &mut Keys,
) -> Result<Vectors, String> {
    // Newer configurations have all in one object, or in one for each kind of layer.
    let is_older = config.gives("rope_scaling") && !config.gives("rope_parameters");
    let together = if is_older { None } else { config.object("rope_parameters")? };
    let by_kind = together.map(|all| Ok::<_, String>((all.object("full_attention")?, all)));
    let (whole, local) = match by_kind.transpose()? {
        Some((Some(full), all)) => (Some(full), all.object("sliding_attention")?),
        Some((None, all)) => (Some(all), None),
        None => (None, None),
    };
    let base = match whole.and_then(|whole| whole.float("rope_theta").transpose()) {
        Some(base) => Some(base?),
        None => config.float("rope_theta")?,
    };
    if let Some(base) = base {
        keys.put("rope.freq_base", base);
    }
    let local_base = match local.and_then(|local| local.float("rope_theta").transpose()) {
        Some(base) => Some(base?),
        None => config.float("rope_local_base_freq")?,
    };
    if let Some(base) = local_base {
        keys.put("rope.freq_base_swa", base);
    }
    if let Some(local) = local {
        local.refuse_unless("rope_type", &serde_json::json!("default"))?;
    }
    let head = if let Architecture::DeepSeek { .. } = architecture {
        config.required("qk_rope_head_dim", config.integer("qk_rope_head_dim")?)?
    } else {
        head_dim(config)?
    };
    if !architecture.turns_in_part() {
        for said in [Some(*config), whole].into_iter().flatten() {
            said.refuse_unless("partial_rotary_factor", &serde_json::json!(1.0))?;
        }
    }
    let partial = match whole.and_then(|whole| whole.float("partial_rotary_factor").transpose()) {
        Some(factor) => Some(factor?),
        None => config.float("partial_rotary_factor")?,
    };
    if let Some(kind) = config.text("model_type")?
        && kind.starts_with("gemma4")
    {
        return proportional(whole, partial, keys);
    }
    // Published files of MiniMax-M2 say how many columns turn.
    let columns = match architecture {
        Architecture::MiniMaxM2 => config.integer("rotary_dim")?,
        _ => None,
    };
    let turning = columns.unwrap_or((head as f32 * partial.unwrap_or(1.0)) as u32);
    keys.put("rope.dimension_count", turning);
    let scaling = match whole {
        Some(whole) => Some(whole),
        None => config.object("rope_scaling")?,
    };
    let Some(scaling) = scaling else { return Ok(Vec::new()) };
    let frequencies = Frequencies { base: base.unwrap_or(10_000.0), turning };
    scaled(config, &scaling, frequencies, keys)
}

/// Gemma 4's layers that see all turn the first part of a head's pairs; files say so by divisors.
fn proportional(
    whole: Option<Config<'_>>,
    partial: Option<f32>,
    keys: &mut Keys,
) -> Result<Vectors, String> {
    if let Some(whole) = whole {
        whole.refuse_unless("rope_type", &serde_json::json!("proportional"))?;
    }
    let key = |key: &str| format!("{}.{key}", keys.prefix);
    let wanted = key("attention.key_length");
    let found = keys.entries.iter().find(|(name, _)| **name == *wanted);
    let Some(&Value::U32(head)) = found.map(|(_, value)| value) else {
        return Err("head_dim is missing".to_owned());
    };
    if head > HEAD_DIM_MAX {
        return Err(format!("global_head_dim is {head}, at most {HEAD_DIM_MAX} are supported"));
    }
    keys.put("rope.dimension_count", head);
    let turning = (head as f32 * partial.unwrap_or(0.25) / 2.0) as u32;
    let divisor = |pair| if pair < turning { 1.0 } else { 1e30 };
    Ok(vec![("rope_freqs.weight", (0..head / 2).map(divisor).collect())])
}

fn head_dim(config: &Config<'_>) -> Result<u32, String> {
    let given = config.integer("head_dim")?;
    let head = given.map_or_else(|| share_of_width(config), Ok)?;
    // Before anything is made that is as large as it says.
    if head > HEAD_DIM_MAX {
        return Err(format!("head_dim is {head}, at most {HEAD_DIM_MAX} are supported"));
    }
    Ok(head)
}

fn share_of_width(config: &Config<'_>) -> Result<u32, String> {
    let width = config.required("hidden_size", config.integer("hidden_size")?)?;
    let heads = config.required("num_attention_heads", config.integer("num_attention_heads")?)?;
    width.checked_div(heads).ok_or_else(|| "num_attention_heads is 0".to_owned())
}

#[derive(Clone, Copy)]
struct Frequencies {
    base: f32,
    turning: u32,
}

fn scaled(
    config: &Config<'_>,
    scaling: &Config<'_>,
    frequencies: Frequencies,
    keys: &mut Keys,
) -> Result<Vectors, String> {
    let newer = scaling.text("rope_type")?;
    let kind = newer.map_or_else(|| scaling.text("type"), |kind| Ok(Some(kind)))?;
    let factor = || scaling.required("factor", scaling.float("factor")?);
    let original = || match config.integer("original_max_position_embeddings")? {
        Some(context) => Ok::<_, String>(Some(context)),
        None => scaling.integer("original_max_position_embeddings"),
    };
    match kind.unwrap_or("default") {
        // The second differs beyond the context that a model was made for, which is none here.
        "default" | "dynamic" => {}
        "linear" => {
            keys.put("rope.scaling.type", "linear");
            keys.put("rope.scaling.factor", factor()?);
        }
        "yarn" => {
            keys.put("rope.scaling.type", "yarn");
            keys.put("rope.scaling.factor", factor()?);
            yarn(scaling, keys, original()?, config)?;
            // GPT-OSS is known not to round its ramp, and says so.
            let rounds = config.text("model_type")? != Some("gpt_oss");
            scaling.refuse_unless("truncate", &serde_json::json!(rounds))?;
        }
        "llama3" => {
            let original = config.required("original_max_position_embeddings", original()?)?;
            let divisors = llama3(scaling, frequencies, original as f32)?;
            return Ok(vec![("rope_freqs.weight", divisors)]);
        }
        "longrope" | "su" => {
            keys.put("rope.scaling.type", "longrope");
            let original = config.required("original_max_position_embeddings", original()?)?;
            keys.put("rope.scaling.original_context_length", original);
            keys.put("rope.scaling.attn_factor", long_rope_factor(config, scaling, original)?);
            let list = |key: &str| scaling.required(key, scaling.floats(key)?);
            return Ok(vec![
                ("rope_factors_long.weight", list("long_factor")?),
                ("rope_factors_short.weight", list("short_factor")?),
            ]);
        }
        other => {
            return Err(format!(
                "rotary positions are scaled by \"{}\"; supported: default, dynamic, linear, \
                 llama3, longrope, yarn",
                crate::error::Quoted(other)
            ));
        }
    }
    Ok(Vec::new())
}

/// By how much attention is sharpened: as given, or as transformers works it out.
fn long_rope_factor(
    config: &Config<'_>,
    scaling: &Config<'_>,
    original: u32,
) -> Result<f32, String> {
    if let Some(factor) = scaling.float("attention_factor")? {
        return Ok(factor);
    }
    let made_for = config.integer("max_position_embeddings")?;
    let made_for = config.required("max_position_embeddings", made_for)?;
    if made_for <= original || original < 2 {
        return Ok(1.0);
    }
    let stretched = made_for as f32 / original as f32;
    Ok((1.0 + stretched.ln() / (original as f32).ln()).sqrt())
}

fn yarn(
    scaling: &Config<'_>,
    keys: &mut Keys,
    original: Option<u32>,
    config: &Config<'_>,
) -> Result<(), String> {
    if let Some(context) = original {
        keys.put("rope.scaling.original_context_length", context);
    }
    for (theirs, ours) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        if let Some(beta) = scaling.float(theirs)? {
            keys.put(&format!("rope.scaling.{ours}"), beta);
        }
    }
    let model_type = config.text("model_type")?.unwrap_or_default();
    let factor = scaling.float("factor")?.unwrap_or(1.0).max(1.0);
    let grown = |by: f32| 0.1 * by * factor.ln() + 1.0;
    // What is turned grows by the first, and shrinks by the second.
    let some = |by: Option<f32>| by.filter(|by| *by != 0.0);
    let scored = some(scaling.float("mscale_all_dim")?);
    let worked_out = match (some(scaling.float("mscale")?), scored) {
        (Some(turned), Some(scored)) => grown(turned) / grown(scored),
        _ => grown(1.0),
    };
    let whole = scaling.float("attention_factor")?.unwrap_or(worked_out);
    let multiplier = match model_type {
        // Scores grow by the second.
        "deepseek_v2" | "deepseek_v3" | "glm4_moe_lite" | "kimi_k2" => scored.map(|by| 0.1 * by),
        // They do not, and files have it all the same.
        "ministral3" => scored,
        _ => None,
    };
    // GGUF's factor is what is left beside what grows by itself: nothing, where there is a
    // multiplier.
    let beside = if multiplier.is_some() { whole } else { whole / grown(1.0) };
    if beside != 1.0 {
        keys.put("rope.scaling.attn_factor", beside);
    }
    if let Some(multiplier) = multiplier {
        keys.put("rope.scaling.yarn_log_multiplier", multiplier);
    }
    if let Some(growth) = scaling.float("llama_4_scaling_beta")? {
        if model_type != "ministral3" {
            let key = scaling.named("llama_4_scaling_beta");
            return Err(format!("{key} is not supported in {model_type}"));
        }
        keys.put("attention.temperature_scale", growth);
    }
    Ok(())
}

/// What each frequency is divided by: short wavelengths by nothing, long ones by the factor,
/// those between by something between.
fn llama3(
    scaling: &Config<'_>,
    frequencies: Frequencies,
    original: f32,
) -> Result<Vec<f32>, String> {
    let positive = |key: &str| {
        let number = scaling.required(key, scaling.float(key)?)?;
        let wrong = || format!("{} is {number}, it must be above 0", scaling.named(key));
        (number > 0.0).then_some(number).ok_or_else(wrong)
    };
    let factor = positive("factor")?;
    let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
    if high <= low {
        return Err(format!("high_freq_factor is {high}, it must be above low_freq_factor, {low}"));
    }
    let divisor = |pair: u32| {
        let exponent = (2 * pair) as f32 / frequencies.turning as f32;
        let frequency = frequencies.base.powf(exponent).recip();
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            ((1.0 - smooth) / factor + smooth).recip()
        }
    };
    Ok((0..frequencies.turning / 2).map(divisor).collect())
}
