//! What do folders of BERT, XLM-RoBERTa and Nomic's BERT say in the names and keys of GGUF?
//!
//! Source: transformers `modeling_bert.py` and `modeling_xlm_roberta.py` for names and keys, the
//! `gguf` package for what GGUF calls them.

use serde_json::json;

use super::config::Config;
use super::names::Meaning;
use super::settings::{Architecture, Keys, Settings};

/// Around the layers.
const OUTER: &[(&str, &str)] = &[
    ("embeddings.word_embeddings.weight", "token_embd.weight"),
    ("embeddings.position_embeddings.weight", "position_embd.weight"),
    ("embeddings.token_type_embeddings.weight", "token_types.weight"),
    ("embeddings.LayerNorm.weight", "token_embd_norm.weight"),
    ("embeddings.LayerNorm.bias", "token_embd_norm.bias"),
    ("emb_ln.weight", "token_embd_norm.weight"),
    ("emb_ln.bias", "token_embd_norm.bias"),
];

/// Inside a layer, without `.weight` and `.bias`.
const INNER: &[(&str, &str)] = &[
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
    // Nomic's.
    ("attn.Wqkv", "attn_qkv"),
    ("attn.out_proj", "attn_output"),
    ("norm1", "attn_output_norm"),
    ("mlp.fc11", "ffn_up"),
    ("mlp.fc12", "ffn_gate"),
    ("mlp.fc2", "ffn_down"),
    ("norm2", "layer_output_norm"),
];

/// Tables of numbers in order.
const UNUSED: &[&str] = &["embeddings.position_ids", "embeddings.token_type_ids"];

/// What classifiers of BERT and of RoBERTa are made of; vectors do not use them.
const HEADS: &[(&str, &str)] = &[
    ("pooler.dense.", "cls."),
    ("classifier.dense.", "cls."),
    ("classifier.out_proj.", "cls.output."),
    ("classifier.", "cls.output."),
];

pub(super) fn meaning(name: &str) -> Meaning {
    let inside = ["bert.", "roberta."].iter().find_map(|prefix| name.strip_prefix(prefix));
    let name = inside.unwrap_or(name);
    if UNUSED.iter().any(|prefix| name.starts_with(prefix)) {
        return Meaning::Unused;
    }
    for (theirs, known) in HEADS {
        if let Some(kind @ ("weight" | "bias")) = name.strip_prefix(theirs) {
            return Meaning::Whole(format!("{known}{kind}"));
        }
    }
    // Old files have another word for weight and bias of norms.
    let modern = name.replace("LayerNorm.gamma", "LayerNorm.weight");
    let name = modern.replace("LayerNorm.beta", "LayerNorm.bias");
    if let Some((_, known)) = OUTER.iter().find(|(theirs, _)| *theirs == name) {
        return Meaning::Whole((*known).to_owned());
    }
    let mut layers = ["encoder.layer.", "encoder.layers."].into_iter();
    let inner = layers.find_map(|prefix| name.strip_prefix(prefix)?.split_once('.'));
    let Some((layer, inner)) = inner else { return Meaning::Unknown };
    let Some((stem, kind)) = inner.rsplit_once('.') else { return Meaning::Unknown };
    let is_number = !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit());
    match INNER.iter().find(|(theirs, _)| *theirs == stem) {
        Some((_, known)) if is_number && matches!(kind, "weight" | "bias") => {
            Meaning::Whole(format!("blk.{layer}.{known}.{kind}"))
        }
        _ => Meaning::Unknown,
    }
}

pub(super) fn settings(
    config: &Config<'_>,
    architecture: Architecture,
    mut keys: Keys,
) -> Result<Settings, String> {
    if architecture == Architecture::NomicBert {
        return nomic(config, keys);
    }
    let integer = |key: &str| config.required(key, config.integer(key)?);
    config.refuse_unless("position_embedding_type", &json!("absolute"))?;
    config.refuse_unless("hidden_act", &json!("gelu"))?;
    config.refuse_unless("is_decoder", &json!(false))?;
    // RoBERTa counts positions from behind the row of padding.
    let from = match architecture {
        Architecture::XlmRoberta => integer("pad_token_id")?.saturating_add(1),
        _ => 0,
    };
    keys.entries.push(("pelton.positions_from".into(), from.into()));
    let positions = integer("max_position_embeddings")?;
    keys.put("context_length", positions.saturating_sub(from));
    keys.put("embedding_length", integer("hidden_size")?);
    keys.put("block_count", integer("num_hidden_layers")?);
    keys.put("feed_forward_length", integer("intermediate_size")?);
    keys.put("attention.head_count", integer("num_attention_heads")?);
    let epsilon = config.required("layer_norm_eps", config.float("layer_norm_eps")?)?;
    keys.put("attention.layer_norm_epsilon", epsilon);
    Ok(Settings { entries: keys.entries, vectors: Vec::new() })
}

/// Its own code has words of its own for the same.
fn nomic(config: &Config<'_>, mut keys: Keys) -> Result<Settings, String> {
    let integer = |key: &str| config.required(key, config.integer(key)?);
    for (key, known) in [
        ("activation_function", json!("swiglu")),
        ("causal", json!(false)),
        ("mlp_fc1_bias", json!(false)),
        ("mlp_fc2_bias", json!(false)),
        ("moe_every_n_layers", json!(0)),
        ("parallel_block", json!(false)),
        ("prenorm", json!(false)),
        ("qkv_proj_bias", json!(false)),
        ("rotary_emb_fraction", json!(1.0)),
        ("rotary_emb_interleaved", json!(false)),
        ("use_rms_norm", json!(false)),
    ] {
        config.refuse_unless(key, &known)?;
    }
    // Beyond what it was trained for, its code turns by other angles.
    let trained = config.integer("max_trained_positions")?;
    let positions = integer("n_positions")?;
    keys.put("context_length", trained.map_or(positions, |trained| trained.min(positions)));
    keys.put("embedding_length", integer("n_embd")?);
    keys.put("block_count", integer("n_layer")?);
    keys.put("feed_forward_length", integer("n_inner")?);
    keys.put("attention.head_count", integer("n_head")?);
    let epsilon = config.required("layer_norm_epsilon", config.float("layer_norm_epsilon")?)?;
    keys.put("attention.layer_norm_epsilon", epsilon);
    let base = config.required("rotary_emb_base", config.float("rotary_emb_base")?)?;
    keys.put("rope.freq_base", base);
    Ok(Settings { entries: keys.entries, vectors: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::{Meaning, meaning};

    #[test]
    fn names_are_those_of_gguf() {
        let whole = |name: &str| Meaning::Whole(name.to_owned());
        for (name, expected) in [
            ("embeddings.word_embeddings.weight", whole("token_embd.weight")),
            ("bert.embeddings.LayerNorm.gamma", whole("token_embd_norm.weight")),
            ("roberta.encoder.layer.11.output.dense.bias", whole("blk.11.ffn_down.bias")),
            (
                "encoder.layer.0.attention.output.LayerNorm.bias",
                whole("blk.0.attn_output_norm.bias"),
            ),
            ("encoder.layer.0.attention.self.query.weight", whole("blk.0.attn_q.weight")),
            ("encoder.layers.2.attn.Wqkv.weight", whole("blk.2.attn_qkv.weight")),
            ("emb_ln.bias", whole("token_embd_norm.bias")),
            ("pooler.dense.weight", whole("cls.weight")),
            ("classifier.out_proj.bias", whole("cls.output.bias")),
            ("classifier.weight", whole("cls.output.weight")),
            ("bert.embeddings.position_ids", Meaning::Unused),
            ("encoder.layer.x.output.dense.bias", Meaning::Unknown),
            ("cls.predictions.bias", Meaning::Unknown),
        ] {
            assert_eq!(meaning(name), expected, "{name}");
        }
    }
}
