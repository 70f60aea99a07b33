//! What do the settings of a model folder say in the keys of GGUF? Once for all families.
//!
//! Keys of `config.json` are those of transformers' configurations. What a key says that GGUF has
//! no word for, and that is not as in all published models of its family, is refused.

use serde_json::{Value as Json, json};

use super::config::{Config, shown};
use super::rotary;
use super::shards::Shard;
use crate::error::Quoted;
use crate::metadata::{Array, Value};
use crate::nearest::nearest_name;

/// The kinds of model that folders are read of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// All that Llama is but for what is said here: most newer families.
    Plain(Plain),
    Llama,
    Mistral,
    Mixtral,
    /// Every layer is a mixture, and a part of each head turns.
    MiniMaxM2,
    Qwen2,
    Qwen3,
    Qwen3Moe,
    /// The same, with experts' matrices turned over in folders as they are published.
    Qwen3VlMoe {
        is_turned: bool,
    },
    SmolLm3,
    Gemma,
    Gemma2,
    Gemma3,
    /// Layers from this one on read the keys of earlier ones.
    Gemma4 {
        reading_from: u32,
    },
    Phi3,
    Bert,
    XlmRoberta,
    NomicBert,
    Glm4,
    /// With layers behind the last that guess, from this one on.
    Glm4Moe {
        layers: u32,
    },
    GptOss,
    /// Heads have rows for keys, that do not turn, and for values; V2 is the second.
    DeepSeek {
        is_second: bool,
        layers: u32,
        heads: u32,
        plain: u32,
        value: u32,
    },
    /// Dense and by experts. MLX keeps norms with their 1 added.
    Qwen35 {
        is_mlx: bool,
    },
    /// The same, with what makes queries, keys, values and gates in one matrix, by heads of keys:
    /// so many, with so many rows for keys and for values.
    Qwen3Next {
        is_mlx: bool,
        heads: u32,
        key: u32,
        values: u32,
    },
}

/// What tells a family from Llama in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plain {
    pub(super) post_attention: PostAttention,
    pub(super) windows: Windows,
}

/// What `post_attention_layernorm` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostAttention {
    /// The norm before the feed-forward, as in Llama.
    FeedForward,
    /// The same, and GGUF files call it `post_attention_norm`.
    FeedForwardByOtherName,
    /// Of what attention adds to the stream.
    Behind,
}

/// Which layers see the last positions only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    /// Those that `layer_types` names, where `sliding_window` is set.
    ByLayer,
}

const fn plain(post_attention: PostAttention, windows: Windows) -> Architecture {
    Architecture::Plain(Plain { post_attention, windows })
}

/// Before its sizes are read: no layer is behind the last.
const fn deepseek(is_second: bool) -> Architecture {
    Architecture::DeepSeek { is_second, layers: u32::MAX, heads: 0, plain: 0, value: 0 }
}

const QWEN3_NEXT: Architecture =
    Architecture::Qwen3Next { is_mlx: false, heads: 0, key: 0, values: 0 };

/// `model_type` of `config.json`, what it means, its name in GGUF.
const ARCHITECTURES: &[(&str, Architecture, &str)] = &[
    ("bert", Architecture::Bert, "bert"),
    ("deepseek_v2", deepseek(true), "deepseek2"),
    ("deepseek_v3", deepseek(false), "deepseek2"),
    ("ernie4_5", plain(PostAttention::FeedForward, Windows::None), "ernie4_5"),
    ("exaone4", plain(PostAttention::Behind, Windows::ByLayer), "exaone4"),
    ("gemma", Architecture::Gemma, "gemma"),
    ("gemma2", Architecture::Gemma2, "gemma2"),
    ("gemma3", Architecture::Gemma3, "gemma3"),
    ("gemma3_text", Architecture::Gemma3, "gemma3"),
    ("gemma4", Architecture::Gemma4 { reading_from: u32::MAX }, "gemma4"),
    ("gemma4_text", Architecture::Gemma4 { reading_from: u32::MAX }, "gemma4"),
    // The first has no norms behind its blocks.
    ("glm", Architecture::Glm4, "glm4"),
    ("glm4", Architecture::Glm4, "glm4"),
    ("glm4_moe", Architecture::Glm4Moe { layers: u32::MAX }, "glm4moe"),
    ("glm4_moe_lite", deepseek(false), "deepseek2"),
    ("gpt_oss", Architecture::GptOss, "gpt-oss"),
    ("kimi_k2", deepseek(false), "deepseek2"),
    ("llama", Architecture::Llama, "llama"),
    ("minimax_m2", Architecture::MiniMaxM2, "minimax-m2"),
    ("ministral", plain(PostAttention::FeedForward, Windows::ByLayer), "llama"),
    ("ministral3", Architecture::Mistral, "mistral3"),
    ("mistral", Architecture::Mistral, "llama"),
    ("mixtral", Architecture::Mixtral, "llama"),
    ("nomic_bert", Architecture::NomicBert, "nomic-bert"),
    ("olmo2", plain(PostAttention::Behind, Windows::None), "olmo2"),
    ("olmo3", plain(PostAttention::Behind, Windows::ByLayer), "olmo2"),
    ("phi3", Architecture::Phi3, "phi3"),
    ("qwen2", Architecture::Qwen2, "qwen2"),
    ("qwen3", Architecture::Qwen3, "qwen3"),
    ("qwen3_5", Architecture::Qwen35 { is_mlx: false }, "qwen35"),
    ("qwen3_5_moe", Architecture::Qwen35 { is_mlx: false }, "qwen35moe"),
    ("qwen3_5_moe_text", Architecture::Qwen35 { is_mlx: false }, "qwen35moe"),
    ("qwen3_5_text", Architecture::Qwen35 { is_mlx: false }, "qwen35"),
    ("qwen3_moe", Architecture::Qwen3Moe, "qwen3moe"),
    ("qwen3_next", QWEN3_NEXT, "qwen3next"),
    ("qwen3_vl", Architecture::Qwen3, "qwen3vl"),
    ("qwen3_vl_moe", Architecture::Qwen3VlMoe { is_turned: true }, "qwen3vlmoe"),
    ("qwen3_vl_moe_text", Architecture::Qwen3VlMoe { is_turned: true }, "qwen3vlmoe"),
    ("qwen3_vl_text", Architecture::Qwen3, "qwen3vl"),
    ("seed_oss", plain(PostAttention::FeedForwardByOtherName, Windows::None), "seed_oss"),
    ("smollm3", Architecture::SmolLm3, "smollm3"),
    ("xlm-roberta", Architecture::XlmRoberta, "bert"),
];

impl Architecture {
    /// `model_type`, what it means, its name in GGUF.
    ///
    /// # Errors
    /// With the known ones, when `model_type` is none of them.
    pub(super) fn of<'a>(config: &Config<'a>) -> Result<(&'a str, Self, &'static str), String> {
        let found = config.required("model_type", config.text("model_type")?)?;
        let known = ARCHITECTURES.iter().find(|(name, ..)| *name == found);
        known.map(|&(_, architecture, name)| (found, architecture, name)).ok_or_else(|| {
            let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, ..)| *name).collect();
            let nearest = nearest_name(found, names.iter().copied());
            let nearest = nearest.map(|name| format!(" (the nearest that is: {name})"));
            format!(
                "model_type is \"{}\", which is not supported{}: {} are",
                Quoted(found),
                nearest.unwrap_or_default(),
                names.join(", ")
            )
        })
    }

    /// Of a `model_type`.
    pub(super) fn known(model_type: &str) -> Option<Self> {
        let known = ARCHITECTURES.iter().find(|(name, ..)| *name == model_type);
        known.map(|(_, architecture, _)| *architecture)
    }

    /// The same, with the sizes that tell what tensors mean, and what their names and shapes tell
    /// of who saved them.
    pub(super) fn as_stored(self, config: &Config<'_>, shards: &[Shard]) -> Result<Self, String> {
        let integer = |key: &str| config.required(key, config.integer(key)?);
        let tensors = shards.iter().flat_map(|shard| &shard.tensors);
        let mut convolutions =
            tensors.filter(|tensor| tensor.name.ends_with("linear_attn.conv1d.weight"));
        // MLX has channels last.
        let is_mlx = convolutions.next().is_some_and(|tensor| tensor.shape.last() == Some(&1));
        Ok(match self {
            Architecture::Qwen35 { .. } => Architecture::Qwen35 { is_mlx },
            // Newer versions of transformers save what reads a token with its numbers in rows.
            Architecture::Qwen3VlMoe { .. } => {
                let width = u64::from(integer("hidden_size")?);
                let mut tensors = shards.iter().flat_map(|shard| &shard.tensors);
                let both = tensors.find(|tensor| tensor.name.ends_with("experts.gate_up_proj"));
                let is_turned = both.is_none_or(|both| both.shape.last() != Some(&width));
                Architecture::Qwen3VlMoe { is_turned }
            }
            Architecture::Qwen3Next { .. } => {
                let heads = integer("linear_num_key_heads")?;
                let values = integer("linear_num_value_heads")?;
                let values = values.saturating_mul(integer("linear_value_head_dim")?);
                let values = values.checked_div(heads).unwrap_or(0);
                let key = integer("linear_key_head_dim")?;
                Architecture::Qwen3Next { is_mlx, heads, key, values }
            }
            Architecture::Gemma4 { .. } => {
                let reading = config.integer("num_kv_shared_layers")?.unwrap_or(0);
                let reading_from = integer("num_hidden_layers")?.saturating_sub(reading);
                Architecture::Gemma4 { reading_from }
            }
            Architecture::Glm4Moe { .. } => {
                Architecture::Glm4Moe { layers: integer("num_hidden_layers")? }
            }
            Architecture::DeepSeek { is_second, .. } => Architecture::DeepSeek {
                is_second,
                layers: integer("num_hidden_layers")?,
                heads: integer("num_attention_heads")?,
                plain: integer("qk_nope_head_dim")?,
                value: integer("v_head_dim")?,
            },
            other => other,
        })
    }

    /// The same, in a folder that MLX-LM saved.
    pub(super) fn as_mlx_saves(self) -> Self {
        match self {
            Architecture::Qwen35 { .. } => Architecture::Qwen35 { is_mlx: true },
            Architecture::Qwen3Next { heads, key, values, .. } => {
                Architecture::Qwen3Next { is_mlx: true, heads, key, values }
            }
            other => other,
        }
    }

    /// The first layer that guesses at later tokens, in models that have such.
    pub(super) fn guessing_from(self) -> Option<u32> {
        match self {
            Architecture::Glm4Moe { layers } | Architecture::DeepSeek { layers, .. } => {
                Some(layers)
            }
            _ => None,
        }
    }

    pub(super) fn post_attention(self) -> PostAttention {
        match self {
            Architecture::Plain(plain) => plain.post_attention,
            Architecture::Gemma2 | Architecture::Gemma3 | Architecture::Gemma4 { .. } => {
                PostAttention::Behind
            }
            Architecture::GptOss
            | Architecture::Glm4Moe { .. }
            | Architecture::Qwen35 { .. }
            | Architecture::Qwen3Next { .. } => PostAttention::FeedForwardByOtherName,
            _ => PostAttention::FeedForward,
        }
    }

    /// Norms multiply by 1 more than is stored.
    pub(super) fn norms_lack_one(self) -> bool {
        match self {
            Architecture::Qwen35 { is_mlx } | Architecture::Qwen3Next { is_mlx, .. } => !is_mlx,
            other => other.is_gemma(),
        }
    }

    /// Gated delta nets in most layers.
    pub(super) fn has_nets(self) -> bool {
        matches!(self, Architecture::Qwen35 { .. } | Architecture::Qwen3Next { .. })
    }

    /// Every token sees the whole text.
    pub(super) fn is_encoder(self) -> bool {
        matches!(self, Architecture::Bert | Architecture::XlmRoberta | Architecture::NomicBert)
    }

    /// Not all of a head's pairs turn.
    pub(super) fn turns_in_part(self) -> bool {
        matches!(
            self,
            Architecture::Phi3
                | Architecture::Glm4
                | Architecture::Glm4Moe { .. }
                | Architecture::MiniMaxM2
                | Architecture::Qwen35 { .. }
                | Architecture::Qwen3Next { .. }
                | Architecture::Gemma4 { .. }
        )
    }

    fn is_gemma(self) -> bool {
        matches!(self, Architecture::Gemma | Architecture::Gemma2 | Architecture::Gemma3)
    }
}

/// Many times those of any model.
const LAYERS_MAX: u32 = 1 << 12;

/// The key that tells how rotary pairs lie in query and key rows: GGUF files of `llama` and
/// `smollm3` have them permuted, folders have them as the authors do.
const PAIRING: (&str, &str) = ("pelton.rotary_pairs", "half_split");
/// The key that tells which heads of values share keys: GGUF files have them in another order.
const VALUE_HEADS: (&str, &str) = ("pelton.value_heads", "grouped");

/// Metadata, and vectors that GGUF files have as tensors.
pub(super) struct Settings {
    pub(super) entries: Vec<(Box<str>, Value)>,
    /// F32, by name.
    pub(super) vectors: Vec<(&'static str, Vec<f32>)>,
}

/// Collects keys.
pub(super) struct Keys {
    pub(super) prefix: &'static str,
    pub(super) entries: Vec<(Box<str>, Value)>,
}

impl Keys {
    pub(super) fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.entries.push((format!("{}.{key}", self.prefix).into(), value.into()));
    }

    fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }
}

pub(super) fn read(
    config: &Config<'_>,
    architecture: Architecture,
    prefix: &'static str,
) -> Result<Settings, String> {
    let mut keys = Keys { prefix, entries: Vec::new() };
    keys.entries.push(("general.architecture".into(), prefix.into()));
    keys.entries.push((PAIRING.0.into(), PAIRING.1.into()));
    if architecture.is_encoder() {
        return super::bert::settings(config, architecture, keys);
    }
    let integer = |key: &str| config.required(key, config.integer(key)?);
    keys.put("context_length", integer("max_position_embeddings")?);
    keys.put("embedding_length", integer("hidden_size")?);
    keys.put("block_count", integer("num_hidden_layers")?);
    // Models whose layers are all by experts have nothing of that width.
    let is_by_experts = architecture.has_nets() && prefix != "qwen35";
    let inner = if is_by_experts { "moe_intermediate_size" } else { "intermediate_size" };
    feed_forwards(config, architecture, integer(inner)?, &mut keys)?;
    keys.put("attention.head_count", integer("num_attention_heads")?);
    if let Architecture::DeepSeek { .. } = architecture {
        latents(config, &mut keys)?;
    } else if let Architecture::Gemma4 { .. } = architecture {
        own_heads(config, &mut keys)?;
    } else {
        keys.put_some("attention.head_count_kv", config.integer("num_key_value_heads")?);
        // A head's values are as long as its keys; llama.cpp wants to be told.
        for key in ["attention.key_length", "attention.value_length"] {
            keys.put_some(key, config.integer("head_dim")?);
        }
    }
    if prefix.starts_with("qwen3vl") {
        keys.put("rope.dimension_sections", Array::U32(sections(config, [24, 20, 20, 0])?.into()));
    }
    let epsilon = config.required("rms_norm_eps", config.float("rms_norm_eps")?)?;
    keys.put("attention.layer_norm_rms_epsilon", epsilon);
    activation(config, architecture)?;
    windows(config, architecture, &mut keys)?;
    experts(config, architecture, &mut keys)?;
    if architecture.is_gemma() {
        gemma(config, &mut keys)?;
    }
    if architecture.has_nets() {
        nets(config, &mut keys)?;
    }
    if architecture == Architecture::SmolLm3 {
        layers_without_positions(config)?;
    }
    let vectors = rotary::read(config, architecture, &mut keys)?;
    Ok(Settings { entries: keys.entries, vectors })
}

/// One width for all, or one for each layer where those of Gemma 4 that read others' keys have
/// twice it.
fn feed_forwards(
    config: &Config<'_>,
    architecture: Architecture,
    inner: u32,
    keys: &mut Keys,
) -> Result<(), String> {
    let reading = config.integer("num_kv_shared_layers")?.unwrap_or(0);
    let is_gemma4 = matches!(architecture, Architecture::Gemma4 { .. });
    if !is_gemma4 || reading == 0 || config.flag("use_double_wide_mlp")? != Some(true) {
        keys.put("feed_forward_length", inner);
        return Ok(());
    }
    let layers = config.required("num_hidden_layers", config.integer("num_hidden_layers")?)?;
    // Before anything is made that is as large as it says.
    if layers > LAYERS_MAX {
        return Err(format!("num_hidden_layers is {layers}, at most {LAYERS_MAX} are supported"));
    }
    let own = layers.saturating_sub(reading);
    let width = |layer| if layer < own { inner } else { inner.saturating_mul(2) };
    keys.put("feed_forward_length", Array::U32((0..layers).map(width).collect()));
    Ok(())
}

fn activation(config: &Config<'_>, architecture: Architecture) -> Result<(), String> {
    if !architecture.is_gemma() && !matches!(architecture, Architecture::Gemma4 { .. }) {
        return config.refuse_unless("hidden_act", &json!("silu"));
    }
    // Old Gemma configurations say `gelu` in `hidden_act` and mean the approximation;
    // `hidden_activation` came to correct it, and where it is there, nothing reads the other.
    let is_old = !config.gives("hidden_activation") && config.text("hidden_act")? != Some("gelu");
    if is_old {
        config.refuse_unless("hidden_act", &json!("gelu_pytorch_tanh"))?;
    }
    config.refuse_unless("hidden_activation", &json!("gelu_pytorch_tanh"))
}

fn windows(config: &Config<'_>, architecture: Architecture, keys: &mut Keys) -> Result<(), String> {
    match architecture {
        Architecture::Plain(Plain { windows: Windows::ByLayer, .. })
            if config.get("sliding_window").is_none() => {}
        Architecture::Mistral | Architecture::Mixtral | Architecture::Phi3 => {
            keys.put_some("attention.sliding_window", config.integer("sliding_window")?);
        }
        Architecture::Plain(Plain { windows: Windows::ByLayer, .. })
        | Architecture::Gemma2
        | Architecture::Gemma3
        | Architecture::Gemma4 { .. }
        | Architecture::GptOss => {
            let window = config.required("sliding_window", config.integer("sliding_window")?)?;
            keys.put("attention.sliding_window", window);
            if let Some(kinds) = config.list("layer_types")? {
                let slides = |kind: &Json| kind.as_str() == Some("sliding_attention");
                let slides: Vec<bool> = kinds.iter().map(slides).collect();
                keys.put("attention.sliding_window_pattern", Array::Bool(slides.into()));
            } else if let Some(period) = config.integer("sliding_window_pattern")? {
                keys.put("attention.sliding_window_pattern", period);
            }
        }
        Architecture::Qwen2 | Architecture::Qwen3
            if config.flag("use_sliding_window")? == Some(true) =>
        {
            last_layers_slide(config, keys)?;
        }
        Architecture::Qwen2
        | Architecture::Qwen3
        | Architecture::Qwen3Moe
        | Architecture::Qwen3VlMoe { .. }
        | Architecture::Qwen35 { .. }
        | Architecture::Qwen3Next { .. }
        | Architecture::SmolLm3 => {
            config.refuse_unless("use_sliding_window", &json!(false))?;
        }
        Architecture::Plain(Plain { windows: Windows::None, .. })
        | Architecture::Llama
        | Architecture::Gemma
        | Architecture::Glm4
        | Architecture::Glm4Moe { .. }
        | Architecture::MiniMaxM2
        | Architecture::DeepSeek { .. }
        | Architecture::Bert
        | Architecture::XlmRoberta
        | Architecture::NomicBert => {}
    }
    Ok(())
}

/// The layers that `layer_types` names, or those from `max_window_layers` on.
fn last_layers_slide(config: &Config<'_>, keys: &mut Keys) -> Result<(), String> {
    let Some(window) = config.integer("sliding_window")? else { return Ok(()) };
    let slides: Vec<bool> = if let Some(kinds) = config.list("layer_types")? {
        kinds.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect()
    } else {
        let layers = config.required("num_hidden_layers", config.integer("num_hidden_layers")?)?;
        let full = config.integer("max_window_layers")?;
        let full = config.required("max_window_layers", full)?;
        // Before anything is made that is as large as it says.
        if layers > LAYERS_MAX {
            return Err(format!(
                "num_hidden_layers is {layers}, at most {LAYERS_MAX} are supported"
            ));
        }
        (0..layers).map(|layer| layer >= full).collect()
    };
    keys.put("attention.sliding_window", window);
    keys.put("attention.sliding_window_pattern", Array::Bool(slides.into()));
    Ok(())
}

fn experts(config: &Config<'_>, architecture: Architecture, keys: &mut Keys) -> Result<(), String> {
    let count = match architecture {
        Architecture::Glm4Moe { .. } | Architecture::DeepSeek { .. } => grouped(config, keys)?,
        Architecture::Mixtral => "num_local_experts",
        Architecture::MiniMaxM2 => {
            for (key, known) in [
                ("scoring_func", json!("sigmoid")),
                ("shared_intermediate_size", json!(0)),
                ("use_qk_norm", json!(true)),
                ("qk_norm_type", json!("per_layer")),
                ("use_routing_bias", json!(true)),
            ] {
                config.refuse_unless(key, &known)?;
            }
            if let Some(kinds) = config.list("attn_type_list")?
                && let Some(kind) = kinds.iter().find(|kind| kind.as_u64() != Some(1))
            {
                return Err(format!("attn_type_list has {}, only 1 is supported", shown(kind)));
            }
            let inner = config.integer("intermediate_size")?;
            keys.put_some("expert_feed_forward_length", inner);
            keys.put("expert_gating_func", 2u32);
            "num_local_experts"
        }
        Architecture::Qwen3Moe | Architecture::Qwen3VlMoe { .. } => {
            of_qwen3(config, architecture, keys)?
        }
        Architecture::Qwen35 { .. } | Architecture::Qwen3Next { .. } if keys.prefix != "qwen35" => {
            config.refuse_unless("mlp_only_layers", &json!([]))?;
            config.refuse_unless("decoder_sparse_step", &json!(1))?;
            config.refuse_unless("norm_topk_prob", &json!(true))?;
            for (theirs, ours) in [
                ("moe_intermediate_size", "expert_feed_forward_length"),
                ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
            ] {
                keys.put(ours, config.required(theirs, config.integer(theirs)?)?);
            }
            "num_experts"
        }
        Architecture::Gemma4 { .. } if config.flag("enable_moe_block")? == Some(true) => {
            let inner = config.integer("moe_intermediate_size")?;
            let inner = config.required("moe_intermediate_size", inner)?;
            keys.put("expert_feed_forward_length", inner);
            "num_experts"
        }
        Architecture::GptOss => {
            config.refuse_unless("swiglu_limit", &json!(7.0))?;
            config.refuse_unless("swiglu_alpha", &json!(1.702))?;
            let inner = config.integer("intermediate_size")?;
            keys.put_some("expert_feed_forward_length", inner);
            "num_local_experts"
        }
        _ => return Ok(()),
    };
    keys.put("expert_count", config.required(count, config.integer(count)?)?);
    let is_gemma = matches!(architecture, Architecture::Gemma4 { .. });
    let used = if is_gemma { "top_k_experts" } else { "num_experts_per_tok" };
    keys.put("expert_used_count", config.required(used, config.integer(used)?)?);
    Ok(())
}

/// Experts in all layers or in some; says where their count is.
fn of_qwen3(
    config: &Config<'_>,
    architecture: Architecture,
    keys: &mut Keys,
) -> Result<&'static str, String> {
    if let Architecture::Qwen3VlMoe { .. } = architecture {
        // Its authors' code does not ask.
        config.refuse_unless("norm_topk_prob", &json!(true))?;
    } else {
        keys.put_some("expert_weights_norm", config.flag("norm_topk_prob")?);
    }
    // Which layers are dense (`mlp_only_layers`, `decoder_sparse_step`), their tensors say.
    let inner = config.integer("moe_intermediate_size")?;
    let inner = config.required("moe_intermediate_size", inner)?;
    keys.put("expert_feed_forward_length", inner);
    // Newer configurations know both names.
    let is_newer = config.gives("num_local_experts") && !config.gives("num_experts");
    Ok(if is_newer { "num_local_experts" } else { "num_experts" })
}

/// Experts in groups behind some dense layers; says where their count is.
fn grouped(config: &Config<'_>, keys: &mut Keys) -> Result<&'static str, String> {
    config.refuse_unless("moe_layer_freq", &json!(1))?;
    let is_second = config.text("model_type")? == Some("deepseek_v2");
    if is_second {
        // Its authors' code and transformers' differ in what it would mean.
        config.refuse_unless("norm_topk_prob", &json!(false))?;
    }
    let scoring = if is_second { "softmax" } else { "sigmoid" };
    config.refuse_unless("scoring_func", &json!(scoring))?;
    // The best of all, or of the best groups.
    let is_greedy = config.text("topk_method")? == Some("greedy");
    if !is_greedy {
        let method = if is_second { "group_limited_greedy" } else { "noaux_tc" };
        config.refuse_unless("topk_method", &json!(method))?;
        keys.put_some("expert_group_count", config.integer("n_group")?);
        keys.put_some("expert_group_used_count", config.integer("topk_group")?);
    }
    if !is_second {
        keys.put("expert_gating_func", 2u32);
    }
    for (theirs, ours) in [
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("n_shared_experts", "expert_shared_count"),
    ] {
        keys.put_some(ours, config.integer(theirs)?);
    }
    keys.put_some("leading_dense_block_count", dense_layers(config)?);
    keys.put_some("expert_weights_scale", config.float("routed_scaling_factor")?);
    keys.put_some("expert_weights_norm", config.flag("norm_topk_prob")?);
    Ok("n_routed_experts")
}

/// How many layers before the others have no experts; newer configurations name each.
fn dense_layers(config: &Config<'_>) -> Result<Option<u32>, String> {
    let Some(kinds) = config.list("mlp_layer_types")? else {
        return config.integer("first_k_dense_replace");
    };
    let is_dense = |kind: &Json| kind.as_str() == Some("dense");
    let dense = kinds.iter().take_while(|kind| is_dense(kind)).count();
    match kinds[dense..].iter().find(|kind| kind.as_str() != Some("sparse")) {
        None => Ok(u32::try_from(dense).ok()),
        Some(kind) => {
            let known = "dense, then sparse";
            Err(format!("mlp_layer_types has {} behind others, supported: {known}", shown(kind)))
        }
    }
}

/// Latent attention, as GGUF files say it: one head of what turns and of the latent.
fn latents(config: &Config<'_>, keys: &mut Keys) -> Result<(), String> {
    let integer = |key: &str| config.required(key, config.integer(key)?);
    config.refuse_unless("attention_bias", &json!(false))?;
    config.refuse_unless("rope_interleave", &json!(true))?;
    let (latent, turning) = (integer("kv_lora_rank")?, integer("qk_rope_head_dim")?);
    keys.put("attention.head_count_kv", 1u32);
    keys.put("attention.key_length", latent.saturating_add(turning));
    keys.put("attention.value_length", latent);
    keys.put("attention.key_length_mla", integer("qk_nope_head_dim")?.saturating_add(turning));
    keys.put("attention.value_length_mla", integer("v_head_dim")?);
    keys.put("attention.kv_lora_rank", latent);
    keys.put_some("attention.q_lora_rank", config.integer("q_lora_rank")?);
    Ok(())
}

/// Heads of two sizes, layers that read the keys of others, and embeddings for each layer.
fn own_heads(config: &Config<'_>, keys: &mut Keys) -> Result<(), String> {
    config.refuse_unless("attention_bias", &json!(false))?;
    if let Some(kind) = config.text("use_bidirectional_attention")?.filter(|kind| *kind == "all") {
        return Err(format!("use_bidirectional_attention is \"{kind}\", which is not supported"));
    }
    let small = config.required("head_dim", config.integer("head_dim")?)?;
    let few = config.required("num_key_value_heads", config.integer("num_key_value_heads")?)?;
    let (mut large, mut many) = (None, None);
    // Newer configurations have an object for each layer that differs.
    if let Some(layers) = config.object("per_layer_config")?
        && let Some(first) = layers.first_object()
    {
        large = first.integer("head_dim")?;
        many = first.integer("num_key_value_heads")?;
    }
    let large = large.or(config.integer("global_head_dim")?).unwrap_or(512);
    let many = many.or(config.integer("num_global_key_value_heads")?);
    keys.put("attention.key_length", large);
    keys.put("attention.key_length_swa", small);
    // A head's values are as long as its keys; llama.cpp wants to be told.
    keys.put("attention.value_length", large);
    keys.put("attention.value_length_swa", small);
    keys.put("rope.dimension_count_swa", small);
    let slides = |kind: &Json| kind.as_str() == Some("sliding_attention");
    let of = |kind: &Json| if slides(kind) { few } else { many.unwrap_or(few) };
    match config.list("layer_types")? {
        Some(kinds) => {
            let counts: Vec<u32> = kinds.iter().map(of).collect();
            keys.put("attention.head_count_kv", Array::U32(counts.into()));
        }
        None => keys.put("attention.head_count_kv", few),
    }
    keys.put_some("attention.shared_kv_layers", config.integer("num_kv_shared_layers")?);
    let width = config.integer("hidden_size_per_layer_input")?;
    keys.put_some("embedding_length_per_layer_input", width);
    keys.put_some("final_logit_softcapping", config.float("final_logit_softcapping")?);
    Ok(())
}

/// Gated delta nets, and which layers they are.
fn nets(config: &Config<'_>, keys: &mut Keys) -> Result<(), String> {
    let integer = |key: &str| config.required(key, config.integer(key)?);
    config.refuse_unless("attention_bias", &json!(false))?;
    config.refuse_unless("attn_output_gate", &json!(true))?;
    keys.entries.push((VALUE_HEADS.0.into(), VALUE_HEADS.1.into()));
    let heads = integer("linear_num_value_heads")?;
    keys.put("ssm.conv_kernel", integer("linear_conv_kernel_dim")?);
    keys.put("ssm.state_size", integer("linear_key_head_dim")?);
    keys.put("ssm.group_count", integer("linear_num_key_heads")?);
    keys.put("ssm.time_step_rank", heads);
    keys.put("ssm.inner_size", integer("linear_value_head_dim")?.saturating_mul(heads));
    keys.put("rope.dimension_sections", Array::U32(sections(config, [11, 11, 10, 0])?.into()));
    if let Some(kinds) = config.list("layer_types")? {
        let mut recurs = Vec::with_capacity(kinds.len());
        for kind in kinds {
            recurs.push(match kind.as_str() {
                Some("linear_attention") => true,
                Some("full_attention") => false,
                _ => {
                    let known = "linear_attention, full_attention";
                    return Err(format!("layer_types has {}, supported: {known}", shown(kind)));
                }
            });
        }
        keys.put("attention.recurrent_layers", Array::Bool(recurs.into()));
    } else if let Some(period) = config.integer("full_attention_interval")? {
        keys.put("full_attention_interval", period);
    }
    Ok(())
}

/// How the rotary pairs are shared by time, height and width of images: nothing to texts, but
/// llama.cpp wants to be told.
fn sections(config: &Config<'_>, default: [u32; 4]) -> Result<[u32; 4], String> {
    let newer = config.object("rope_parameters")?;
    let told = if newer.is_some() { newer } else { config.object("rope_scaling")? };
    let told = told.as_ref().map(|told| told.list("mrope_section")).transpose()?.flatten();
    // transformers' default, where nothing is told.
    let mut sections = default;
    for (section, told) in sections.iter_mut().zip(told.into_iter().flatten()) {
        let count = told.as_u64().and_then(|count| u32::try_from(count).ok());
        *section = count.ok_or_else(|| format!("mrope_section has {}", shown(told)))?;
    }
    Ok(sections)
}

fn gemma(config: &Config<'_>, keys: &mut Keys) -> Result<(), String> {
    config.refuse_unless("use_bidirectional_attention", &json!(false))?;
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        // A cap of 0 is none, against what GGUF files of the second mean where they say nothing.
        let none = (keys.prefix == "gemma2").then_some(0.0);
        keys.put_some(key, config.float(key)?.or(none));
    }
    if let Some(width) = config.float("query_pre_attn_scalar")? {
        if width <= 0.0 {
            return Err(format!("query_pre_attn_scalar is {width}, it must be above 0"));
        }
        keys.put("attention.scale", width.sqrt().recip());
    }
    Ok(())
}

/// SmolLM3 is known to have no positions in every fourth layer.
fn layers_without_positions(config: &Config<'_>) -> Result<(), String> {
    let Some(rotates) = config.list("no_rope_layers")? else {
        return config.refuse_unless("no_rope_layer_interval", &json!(4));
    };
    // The list tells, against its name, which layers do have them.
    let expected = |index: usize| u64::from(index % 4 != 3);
    match rotates.iter().enumerate().find(|(index, kind)| kind.as_u64() != Some(expected(*index))) {
        None => Ok(()),
        Some((index, kind)) => Err(format!(
            "no_rope_layers has {} for layer {index}; only a 0 for every fourth is supported",
            shown(kind)
        )),
    }
}
