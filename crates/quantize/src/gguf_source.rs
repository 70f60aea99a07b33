//! What would the folder of a GGUF file hold? Its tensors' names, the order of their rows, the
//! settings and the tokenizer, as the authors publish them: what MLX-LM reads.
//!
//! Families whose settings and tensors say the same in both forms; others are refused by name.
//!
//! Source: `convert_hf_to_gguf.py` of llama.cpp, read backwards.

use serde_json::{Map, Value as Json, json};
use tokenizer::{TokenType, Vocabulary, VocabularyKind, hugging_face_files};
use weights::{Array, Holds, TensorInfo, Value, WeightFile};

use crate::QuantizeError;
use crate::folder_settings::{Keys, ROPE_DIVISORS};
use crate::head_order::{HeadOrder, Order};
use crate::joined::Joined;

const POOLING: &str = "1_Pooling";
const POOLING_SETTINGS: &str = "1_Pooling/config.json";

/// A GGUF file, as a folder.
pub(crate) struct GgufSource {
    pub(crate) settings: Map<String, Json>,
    model_type: &'static str,
    /// Files beside the weights.
    pub(crate) beside: Vec<(&'static str, Json)>,
    /// Layers from this one on guess at later tokens; MLX-LM does not run them.
    layers: u64,
    /// Of keys, in gated delta nets; 0: there are none.
    heads_key: u32,
    heads: HeadOrder,
}

/// What a tensor is called there, and what a folder holds of it.
pub(crate) struct Renamed {
    pub(crate) name: String,
    /// Where rows or columns belong.
    pub(crate) order: Option<Order>,
    pub(crate) holds: Holds,
}

impl GgufSource {
    pub(crate) fn read(file: &WeightFile) -> Result<Self, QuantizeError> {
        let metadata = file.metadata();
        let found: &str = metadata.required("general.architecture")?;
        let keys = Keys { file, metadata, architecture: found };
        let (model_type, mut settings) = keys.settings()?;
        let vocabulary = vocabulary(file)?;
        let template = metadata.optional::<&str>("tokenizer.chat_template")?;
        let files = hugging_face_files(&vocabulary, template);
        let [tokenizer, config] = files.map_err(|error| keys.wrong(error.to_string()))?;
        let ends: Vec<u32> = vocabulary.eos.into_iter().chain(vocabulary.eot).collect();
        settings.insert("eos_token_id".to_owned(), json!(ends));
        settings.insert("bos_token_id".to_owned(), json!(vocabulary.bos));
        let mut beside = vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", config)];
        beside.extend(of_vectors(&keys)?);
        let layers = settings["num_hidden_layers"].as_u64().unwrap_or(0);
        let heads_key = metadata.optional(&format!("{found}.ssm.group_count"))?.unwrap_or(0);
        let heads = HeadOrder::of(file, found)?;
        Ok(Self { settings, model_type, beside, layers, heads_key, heads })
    }

    /// `None` for what settings say, and for what is not run.
    pub(crate) fn rename(&self, info: &TensorInfo) -> Result<Option<Renamed>, QuantizeError> {
        let name = info.name();
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let is_behind = layer.is_some_and(|layer: u64| layer >= self.layers);
        if ROPE_DIVISORS.contains(&name) || is_behind {
            return Ok(None);
        }
        let impossible = |problem: &str| QuantizeError::Impossible {
            name: name.to_owned(),
            to: "a folder's tensor".to_owned(),
            problem: problem.to_owned(),
        };
        let found = weights::folder_name(self.model_type, name);
        let found = found.ok_or_else(|| impossible("has no name for it"))?;
        let order = self.heads.of_tensor(name, info.dims()).map_err(impossible)?;
        let order = order.map(Order::inverted);
        Ok(Some(Renamed { name: found.name, order, holds: found.holds }))
    }

    /// What a folder has in one matrix.
    pub(crate) fn join(
        &self,
        name: &str,
        parts: [(&TensorInfo, Holds); 2],
    ) -> Result<Joined, QuantizeError> {
        Joined::of(parts, self.heads_key.into()).ok_or_else(|| QuantizeError::Impossible {
            name: parts[0].0.name().to_owned(),
            to: format!("a part of {name}"),
            problem: format!("needs another shape of it, or of {}", parts[1].0.name()),
        })
    }
}

/// What sentence-transformers keeps beside a model for vectors of texts.
fn of_vectors(keys: &Keys<'_>) -> Result<Vec<(&'static str, Json)>, QuantizeError> {
    let mode = match keys.get::<u32>("pooling_type")? {
        None | Some(0) => return Ok(Vec::new()),
        Some(1) => "mean",
        Some(3) => "lasttoken",
        Some(other) => {
            let problem = format!("it has pooling_type {other}, which is not told in a folder");
            return Err(keys.wrong(problem));
        }
    };
    let stage = |index: u32, path: &str, kind: &str| {
        let kind = format!("sentence_transformers.models.{kind}");
        json!({"idx": index, "name": index.to_string(), "path": path, "type": kind})
    };
    let width = keys.needed("embedding_length")?;
    let pooling = json!({"word_embedding_dimension": width, "pooling_mode": mode});
    let mut files = vec![
        ("modules.json", json!([stage(0, "", "Transformer"), stage(1, POOLING, "Pooling")])),
        (POOLING_SETTINGS, pooling),
    ];
    if let Some(prefix) = keys.metadata.optional::<&str>("pelton.text_prefix")? {
        let prompts = json!({"prompts": {"text": prefix}, "default_prompt_name": "text"});
        files.push(("config_sentence_transformers.json", prompts));
    }
    if let Some(most) = keys.metadata.optional::<u32>("pelton.text_tokens_max")? {
        files.push(("sentence_bert_config.json", json!({"max_seq_length": most})));
    }
    Ok(files)
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
