//! What would the folder of a GGUF file hold? Its tensors' names, the order of their rows, the
//! settings and the tokenizer, as the authors publish them: what MLX-LM reads.
//!
//! Families whose settings and tensors say the same in both forms; others are refused by name.
//!
//! Source: `convert_hf_to_gguf.py` of llama.cpp, read backwards.

use serde_json::{Map, Value as Json, json};
use tokenizer::{TokenType, Vocabulary, VocabularyKind, hugging_face_files};
use weights::{Array, FromValue, Metadata, Value, WeightFile};

use crate::QuantizeError;

/// `general.architecture`, `model_type`, the class. Of `llama`, see [`Keys::kind`].
const ARCHITECTURES: [(&str, &str, &str); 12] = [
    ("ernie4_5", "ernie4_5", "Ernie4_5ForCausalLM"),
    ("gemma", "gemma", "GemmaForCausalLM"),
    ("gemma2", "gemma2", "Gemma2ForCausalLM"),
    ("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
    ("glm4", "glm4", "Glm4ForCausalLM"),
    ("llama", "llama", "LlamaForCausalLM"),
    ("olmo2", "olmo2", "Olmo2ForCausalLM"),
    ("qwen2", "qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "qwen3", "Qwen3ForCausalLM"),
    ("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
    ("seed_oss", "seed_oss", "SeedOssForCausalLM"),
    ("smollm3", "smollm3", "SmolLM3ForCausalLM"),
];
/// Those whose rows of queries and keys are permuted.
const PERMUTED: [&str; 2] = ["llama", "smollm3"];

/// Divisors of Llama 3.1 and later, worked out from these.
const LLAMA3_FACTORS: [f32; 2] = [8.0, 32.0];
const LLAMA3_CONTEXT: f32 = 8192.0;
const ROPE_FREQS: &str = "rope_freqs.weight";

/// A GGUF file, as a folder.
pub(crate) struct GgufSource {
    pub(crate) settings: Map<String, Json>,
    model_type: &'static str,
    /// Files beside the weights.
    pub(crate) beside: Vec<(&'static str, Json)>,
    permuted_heads: Option<[usize; 2]>,
}

/// What a tensor is called there.
pub(crate) struct Renamed {
    pub(crate) name: String,
    /// Heads whose rows' adjacent pairs belong apart.
    pub(crate) permuted_heads: Option<usize>,
    /// A norm that folders hold without its 1.
    pub(crate) lacks_one: bool,
}

impl GgufSource {
    pub(crate) fn read(file: &WeightFile) -> Result<Self, QuantizeError> {
        let metadata = file.metadata();
        let found: &str = metadata.required("general.architecture")?;
        let keys = Keys { file, metadata, architecture: found };
        let (model_type, class) = keys.kind()?;
        let is_permuted = PERMUTED.contains(&found);
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
        let permuted_heads = is_permuted.then_some(counts);
        Ok(Self { settings, model_type, beside, permuted_heads })
    }

    /// `None` for what settings say.
    pub(crate) fn rename(&self, name: &str) -> Result<Option<Renamed>, QuantizeError> {
        if name == ROPE_FREQS {
            return Ok(None);
        }
        let found = weights::folder_name(self.model_type, name);
        let weights::FolderName { name: own, lacks_one } =
            found.ok_or_else(|| QuantizeError::Impossible {
                name: name.to_owned(),
                to: "a folder's tensor".to_owned(),
                problem: "has no name for it".to_owned(),
            })?;
        let is = |stem: &str| name.contains(&format!(".{stem}."));
        let permuted_heads = match self.permuted_heads {
            Some([heads, _]) if is("attn_q") => Some(heads),
            Some([_, heads]) if is("attn_k") => Some(heads),
            _ => None,
        };
        Ok(Some(Renamed { name: own, permuted_heads, lacks_one }))
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

    /// `model_type` and class. Files of `llama` are of Mistral's where there is a window, and of
    /// Mixtral's where there are experts.
    fn kind(&self) -> Result<(&'static str, &'static str), QuantizeError> {
        let known = ARCHITECTURES.iter().find(|(name, ..)| *name == self.architecture);
        let &(_, model_type, class) = known.ok_or_else(|| QuantizeError::Unknown {
            what: "architecture for a folder",
            found: self.architecture.to_owned(),
            known: ARCHITECTURES.map(|(name, ..)| name).join(", "),
        })?;
        let has = |key: &str| Ok::<_, QuantizeError>(self.get::<u32>(key)?.unwrap_or(0) > 0);
        let (has_experts, has_windows) = (has("expert_count")?, has("attention.sliding_window")?);
        match model_type {
            "llama" if has_experts && !has_windows => Ok(("mixtral", "MixtralForCausalLM")),
            "llama" if has_windows && !has_experts => Ok(("mistral", "MistralForCausalLM")),
            "gemma2" | "gemma3_text" if has_windows => Ok((model_type, class)),
            "qwen3_moe" if has_experts => Ok((model_type, class)),
            _ if has_experts || has_windows => {
                let what = if has_experts { "experts" } else { "windows" };
                Err(self.wrong(format!("it has {what}, which are not told in a folder")))
            }
            _ => Ok((model_type, class)),
        }
    }

    fn settings(&self, model_type: &str, class: &str) -> Result<Map<String, Json>, QuantizeError> {
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
            ("attention_bias", json!(self.has_attention_bias())),
            ("hidden_act", json!("silu")),
            ("torch_dtype", json!("float16")),
        ] {
            settings.insert(key.to_owned(), value);
        }
        if let Some(scaling) = self.scaling(base, head_dim, &mut settings)? {
            settings.insert("rope_scaling".to_owned(), scaling);
        }
        self.of_family(model_type, &mut settings)?;
        Ok(settings)
    }

    /// Two families have none behind their attention, and are said to have some all the same.
    fn has_attention_bias(&self) -> bool {
        let is_before = ["glm4", "seed_oss"].contains(&self.architecture);
        let place = if is_before { "attn_q" } else { "attn_output" };
        self.file.contains(&format!("blk.0.{place}.bias"))
    }

    /// What only some families have.
    fn of_family(
        &self,
        model_type: &str,
        settings: &mut Map<String, Json>,
    ) -> Result<(), QuantizeError> {
        let mut more: Vec<(&str, Json)> = Vec::new();
        let window = self.get::<u32>("attention.sliding_window")?;
        match model_type {
            "mistral" => more.push(("sliding_window", json!(window))),
            "mixtral" => {
                let inner = self.get::<u32>("expert_feed_forward_length")?;
                more.extend(inner.map(|inner| ("intermediate_size", json!(inner))));
                more.push(("num_local_experts", json!(self.needed("expert_count")?)));
                more.push(("num_experts_per_tok", json!(self.needed("expert_used_count")?)));
            }
            "qwen3_moe" => more.extend([
                ("num_experts", json!(self.needed("expert_count")?)),
                ("num_experts_per_tok", json!(self.needed("expert_used_count")?)),
                ("moe_intermediate_size", json!(self.needed("expert_feed_forward_length")?)),
                ("norm_topk_prob", json!(self.get("expert_weights_norm")?.unwrap_or(true))),
                ("decoder_sparse_step", json!(1)),
                ("mlp_only_layers", json!([])),
            ]),
            "ernie4_5" => more.push(("use_bias", json!(false))),
            "seed_oss" => {
                let behind = self.file.contains("blk.0.attn_output.bias");
                more.push(("attention_out_bias", json!(behind)));
            }
            "smollm3" => more.push(("no_rope_layer_interval", json!(4))),
            "gemma" | "gemma2" | "gemma3_text" => more.extend(self.of_gemma(model_type, window)?),
            _ => {}
        }
        settings.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Ok(())
    }

    fn of_gemma(
        &self,
        model_type: &str,
        window: Option<u32>,
    ) -> Result<Vec<(&'static str, Json)>, QuantizeError> {
        let mut more = vec![
            ("hidden_act", json!("gelu_pytorch_tanh")),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
        ];
        if model_type == "gemma" {
            return Ok(more);
        }
        let (width, heads) =
            (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        // The largest of both scale by the width that a head would have of the whole; files do not
        // say so.
        let largest = if model_type == "gemma2" { 46 } else { 62 };
        let by_width = self.needed("block_count")? == largest;
        let head = self.get("attention.key_length")?.unwrap_or(width / heads.max(1));
        let plain = if by_width { width / heads.max(1) } else { head };
        let scaled = self.get::<f32>("attention.scale")?.map(|scale| 1.0 / (scale * scale));
        let scalar = scaled.map_or(json!(plain), |scalar| json!(scalar.round()));
        more.push(("query_pre_attn_scalar", scalar));
        more.push(("sliding_window", json!(window)));
        let cap = |key: &str, default| {
            let found = self.get::<f32>(key)?.unwrap_or(default);
            Ok::<_, QuantizeError>(if found == 0.0 { Json::Null } else { number(found) })
        };
        if model_type == "gemma2" {
            more.push(("attn_logit_softcapping", cap("attn_logit_softcapping", 50.0)?));
            more.push(("final_logit_softcapping", cap("final_logit_softcapping", 30.0)?));
        } else {
            let local = self.get::<f32>("rope.freq_base_swa")?.unwrap_or(10_000.0);
            more.push(("final_logit_softcapping", cap("final_logit_softcapping", 0.0)?));
            more.push(("rope_local_base_freq", number(local)));
            more.push(("sliding_window_pattern", json!(6)));
        }
        Ok(more)
    }

    /// How positions are scaled: not at all, by one factor, or as in Llama 3.1, which files say by
    /// divisors.
    fn scaling(
        &self,
        base: f32,
        head_dim: u32,
        settings: &mut Map<String, Json>,
    ) -> Result<Option<Json>, QuantizeError> {
        let kind = self.get::<&str>("rope.scaling.type")?.unwrap_or("none");
        let turning = self.get::<u32>("rope.dimension_count")?.unwrap_or(head_dim);
        if self.architecture == "glm4" {
            let part = f64::from(turning) / f64::from(head_dim.max(1));
            settings.insert("partial_rotary_factor".to_owned(), json!(part));
        }
        let is_whole = turning == head_dim || self.architecture == "glm4";
        if kind == "linear" && is_whole && self.architecture == "gemma3" {
            let factor = self.get::<f32>("rope.scaling.factor")?.unwrap_or(1.0);
            return Ok(Some(json!({"rope_type": "linear", "factor": number(factor)})));
        }
        if kind != "none" || !is_whole {
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
        "llama" => VocabularyKind::SentencePieceBpe,
        _ => {
            let kinds = "neither byte-level BPE nor SentencePiece's, the kinds that are told in a \
                         folder";
            return Err(wrong(&format!("is {kinds}")));
        }
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
        scores: match metadata.get(&key("scores")) {
            Some(Value::Array(array)) => match &**array {
                Array::F32(scores) => scores.to_vec(),
                _ => return Err(wrong("has scores that are no f32")),
            },
            _ => Vec::new(),
        },
        merges: if kind == VocabularyKind::ByteLevelBpe { texts("merges")? } else { Vec::new() },
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        eot: id("eot_token_id")?,
        unknown: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: metadata.optional(&key("add_bos_token"))?,
        add_eos: metadata.optional(&key("add_eos_token"))?,
        add_space_prefix: metadata.optional(&key("add_space_prefix"))?,
    })
}
