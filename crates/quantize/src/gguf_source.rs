//! What would the folder of a GGUF file hold? Its tensors' names, the order of their rows, the
//! settings and the tokenizer, as the authors publish them: what MLX-LM reads.
//!
//! Families whose settings and tensors say the same in both forms, with a tokenizer of byte-level
//! BPE; others are refused by name.
//!
//! Source: `convert_hf_to_gguf.py` of llama.cpp, read backwards.

use serde_json::{Map, Value as Json, json};
use tokenizer::{TokenType, Vocabulary, VocabularyKind, hugging_face_files};
use weights::{Array, FromValue, Metadata, Value, WeightFile};

use crate::QuantizeError;

/// `general.architecture`, `model_type`, the class, whether rows of queries and keys are permuted.
const ARCHITECTURES: [(&str, &str, &str, bool); 3] = [
    ("llama", "llama", "LlamaForCausalLM", true),
    ("qwen2", "qwen2", "Qwen2ForCausalLM", false),
    ("qwen3", "qwen3", "Qwen3ForCausalLM", false),
];

const OUTER: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Inside a layer, without `.weight` and `.bias`.
const INNER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Divisors of Llama 3.1 and later, worked out from these.
const LLAMA3_FACTORS: [f32; 2] = [8.0, 32.0];
const LLAMA3_CONTEXT: f32 = 8192.0;
const ROPE_FREQS: &str = "rope_freqs.weight";

/// A GGUF file, as a folder.
pub(crate) struct GgufSource {
    pub(crate) settings: Map<String, Json>,
    /// Files beside the weights.
    pub(crate) beside: Vec<(&'static str, Json)>,
    permuted_heads: Option<[usize; 2]>,
}

/// What a tensor is called there.
pub(crate) struct Renamed {
    pub(crate) name: String,
    /// Heads whose rows' adjacent pairs belong apart.
    pub(crate) permuted_heads: Option<usize>,
}

impl GgufSource {
    pub(crate) fn read(file: &WeightFile) -> Result<Self, QuantizeError> {
        let metadata = file.metadata();
        let found: &str = metadata.required("general.architecture")?;
        let known = ARCHITECTURES.iter().find(|(name, ..)| *name == found);
        let &(_, model_type, class, is_permuted) = known.ok_or_else(|| QuantizeError::Unknown {
            what: "architecture for a folder",
            found: found.to_owned(),
            known: ARCHITECTURES.map(|(name, ..)| name).join(", "),
        })?;
        let keys = Keys { file, metadata, architecture: found };
        let mut settings = keys.settings(model_type, class)?;
        let vocabulary = vocabulary(file)?;
        let template = metadata.optional::<&str>("tokenizer.chat_template")?;
        let files = hugging_face_files(&vocabulary, template);
        let [tokenizer, config] = files.map_err(|error| keys.wrong(error.to_string()))?;
        let ends: Vec<u32> = vocabulary.eos.into_iter().chain(vocabulary.eot).collect();
        settings.insert("eos_token_id".to_owned(), json!(ends));
        settings.insert("bos_token_id".to_owned(), json!(vocabulary.bos));
        let beside = vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config)];
        let heads = |key: &str| settings[key].as_u64().unwrap_or(1) as usize;
        let counts = ["num_attention_heads", "num_key_value_heads"].map(heads);
        Ok(Self { beside, permuted_heads: is_permuted.then_some(counts), settings })
    }

    /// `None` for what settings say.
    pub(crate) fn rename(&self, name: &str) -> Result<Option<Renamed>, QuantizeError> {
        if name == ROPE_FREQS {
            return Ok(None);
        }
        let plain = |name: &str| Renamed { name: name.to_owned(), permuted_heads: None };
        if let Some((_, known)) = OUTER.iter().find(|(own, _)| *own == name) {
            return Ok(Some(plain(known)));
        }
        let unknown = || QuantizeError::Impossible {
            name: name.to_owned(),
            to: "a folder's tensor".to_owned(),
            problem: "has no name for it".to_owned(),
        };
        let inner = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let (layer, inner) = inner.ok_or_else(unknown)?;
        let (stem, kind) = inner.rsplit_once('.').ok_or_else(unknown)?;
        let known =
            INNER.iter().find(|(own, _)| *own == stem && ["weight", "bias"].contains(&kind));
        let (_, known) = known.ok_or_else(unknown)?;
        let permuted_heads = match (self.permuted_heads, stem) {
            (Some([heads, _]), "attn_q") => Some(heads),
            (Some([_, heads]), "attn_k") => Some(heads),
            _ => None,
        };
        Ok(Some(Renamed { name: format!("model.layers.{layer}.{known}.{kind}"), permuted_heads }))
    }
}

/// Puts rows of adjacent pairs back: of each head the first halves of all pairs, then the others.
pub(crate) fn part_pairs(stored: &mut Vec<u8>, rows: usize, heads: usize) -> Option<()> {
    let row_bytes = stored.len().checked_div(rows)?;
    let head_rows = rows.checked_div(heads)?;
    if !rows.is_multiple_of(heads) || !head_rows.is_multiple_of(2) {
        return None;
    }
    let mut parted = Vec::with_capacity(stored.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_rows / 2 {
                let row = head * head_rows + 2 * pair + half;
                parted.extend_from_slice(&stored[row * row_bytes..][..row_bytes]);
            }
        }
    }
    *stored = parted;
    Some(())
}

struct Keys<'a> {
    file: &'a WeightFile,
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    fn wrong(&self, problem: String) -> QuantizeError {
        QuantizeError::Settings { path: self.file.path().to_owned(), problem }
    }

    fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, QuantizeError> {
        Ok(self.metadata.optional(&format!("{}.{key}", self.architecture))?)
    }

    fn needed(&self, key: &str) -> Result<u32, QuantizeError> {
        Ok(self.metadata.required(&format!("{}.{key}", self.architecture))?)
    }

    fn settings(&self, model_type: &str, class: &str) -> Result<Map<String, Json>, QuantizeError> {
        for (key, what) in [("expert_count", "experts"), ("attention.sliding_window", "windows")] {
            if self.get::<u32>(key)?.unwrap_or(0) > 0 {
                return Err(self.wrong(format!("it has {what}, which are not told in a folder")));
            }
        }
        let (width, heads) =
            (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        let head_dim = match self.get("attention.key_length")? {
            Some(dim) => dim,
            None => width.checked_div(heads).unwrap_or(0),
        };
        let epsilon = self.get::<f32>("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5);
        let base = self.get::<f32>("rope.freq_base")?.unwrap_or(10_000.0);
        let rows = self.file.shape("token_embd.weight")?.rows;
        let mut settings = Map::new();
        for (key, value) in [
            ("architectures", json!([class])),
            ("model_type", json!(model_type)),
            ("hidden_size", json!(width)),
            ("num_hidden_layers", json!(self.needed("block_count")?)),
            ("intermediate_size", json!(self.needed("feed_forward_length")?)),
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(self.get("attention.head_count_kv")?.unwrap_or(heads))),
            ("head_dim", json!(head_dim)),
            ("max_position_embeddings", json!(self.needed("context_length")?)),
            ("rms_norm_eps", number(epsilon)),
            ("rope_theta", number(base)),
            ("vocab_size", json!(rows)),
            ("tie_word_embeddings", json!(!self.file.contains("output.weight"))),
            ("attention_bias", json!(self.file.contains("blk.0.attn_output.bias"))),
            ("hidden_act", json!("silu")),
            ("torch_dtype", json!("float16")),
        ] {
            settings.insert(key.to_owned(), value);
        }
        if let Some(scaling) = self.scaling(base, head_dim)? {
            settings.insert("rope_scaling".to_owned(), scaling);
        }
        Ok(settings)
    }

    /// How positions are scaled: not at all, or as in Llama 3.1, which files say by divisors.
    fn scaling(&self, base: f32, head_dim: u32) -> Result<Option<Json>, QuantizeError> {
        let kind = self.get::<&str>("rope.scaling.type")?.unwrap_or("none");
        let turning = self.get::<u32>("rope.dimension_count")?.unwrap_or(head_dim);
        if kind != "none" || turning != head_dim {
            let problem = format!("positions of kind {kind}, {turning} columns of a head");
            return Err(self.wrong(format!("it has {problem}, which are not told in a folder")));
        }
        if !self.file.contains(ROPE_FREQS) {
            return Ok(None);
        }
        let stored = self.file.tensor(ROPE_FREQS)?;
        let mut divisors = vec![0.0; stored.cols];
        stored.format.decode_row(stored.row(0), &mut divisors);
        let is_near = |factor: &f32| {
            let expected = llama3_divisors(*factor, base, head_dim);
            let same = |(found, wanted): (&f32, f32)| (found - wanted).abs() <= 1e-4 * wanted;
            divisors.len() * 2 == head_dim as usize && divisors.iter().zip(expected).all(same)
        };
        let factor = LLAMA3_FACTORS.into_iter().find(is_near);
        let factor =
            factor.ok_or_else(|| self.wrong(format!("{ROPE_FREQS} is of no model known here")))?;
        Ok(Some(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": LLAMA3_CONTEXT as u32})))
    }
}

/// What Llama 3.1 divides frequencies by: those that turn less than once in the context it was
/// made for by all of the factor, those that turn more than four times by nothing.
fn llama3_divisors(factor: f32, base: f32, head_dim: u32) -> impl Iterator<Item = f32> {
    (0..head_dim / 2).map(move |pair| {
        let period = std::f32::consts::TAU * base.powf(2.0 * pair as f32 / head_dim as f32);
        let turns = LLAMA3_CONTEXT / period;
        let kept = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
        1.0 / (kept + (1.0 - kept) / factor)
    })
}

/// As short as it is written where it comes from.
fn number(value: f32) -> Json {
    value.to_string().parse::<f64>().map_or(Json::Null, |value| json!(value))
}

fn vocabulary(file: &WeightFile) -> Result<Vocabulary<'_>, QuantizeError> {
    let metadata = file.metadata();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let wrong = |problem: &str| QuantizeError::Settings {
        path: file.path().to_owned(),
        problem: format!("its tokenizer {problem}"),
    };
    let kind = match metadata.required::<&str>(&key("model"))? {
        "gpt2" => VocabularyKind::ByteLevelBpe,
        _ => return Err(wrong("is not byte-level BPE, the only kind that is told in a folder")),
    };
    let texts = |name: &str| -> Result<Vec<&str>, QuantizeError> {
        let strings: &weights::StringArray = metadata.required(&key(name))?;
        let each = (0..strings.len()).map(|index| strings.get_str(index));
        each.collect::<Option<_>>().ok_or_else(|| wrong("has texts that are not UTF-8"))
    };
    let types = match metadata.get(&key("token_type")) {
        None => Vec::new(),
        Some(Value::Array(array)) => match &**array {
            Array::I32(numbers) => {
                let one = |number: &i32| TokenType::from_number(i64::from(*number));
                let types = numbers.iter().map(one).collect::<Option<_>>();
                types.ok_or_else(|| wrong("has types of tokens that are not known"))?
            }
            _ => return Err(wrong("has types of tokens that are no i32")),
        },
        Some(_) => return Err(wrong("has types of tokens that are no list")),
    };
    let id = |name: &str| metadata.optional::<u32>(&key(name));
    Ok(Vocabulary {
        kind,
        pre_tokenizer: metadata.optional(&key("pre"))?.unwrap_or(""),
        tokens: texts("tokens")?,
        token_types: types,
        scores: Vec::new(),
        merges: texts("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        unknown: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: metadata.optional(&key("add_bos_token"))?,
        add_eos: metadata.optional(&key("add_eos_token"))?,
        add_space_prefix: None,
    })
}
