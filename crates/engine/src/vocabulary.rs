//! How do the tokenizer's keys of a GGUF file become a [`tokenizer::Vocabulary`], and the files of
//! a folder a tokenizer?

use messages::SamplingParams;
use tokenizer::{
    GenerationDefaults, HuggingFaceFiles, TokenType, Tokenizer, Vocabulary, VocabularyKind,
};
use weights::{Array, Metadata, StringArray, Value, WeightFile};

use crate::EngineError;

const PREFIX: &str = "tokenizer.ggml";

/// Gemma 3's `tokenizer.json` has 33 MB; eight times that.
const TOKENIZER_JSON_BYTES_MAX: u64 = 256 << 20;
/// The small files beside it.
const SETTINGS_BYTES_MAX: u64 = 16 << 20;

/// Builds the tokenizer of a model: of its metadata, or of the files of its folder.
///
/// # Errors
/// [`EngineError`] naming the file or key that is missing or not believable.
pub(crate) fn tokenizer_of(model: &WeightFile) -> Result<Tokenizer, EngineError> {
    let Some(folder) = model.folder() else { return read_tokenizer(model.metadata()) };
    let small = |name: &str| model.beside(name, SETTINGS_BYTES_MAX);
    let tokenizer = model.beside("tokenizer.json", TOKENIZER_JSON_BYTES_MAX)?;
    let tokenizer = tokenizer.ok_or_else(|| {
        let folder = folder.display();
        EngineError::Vocabulary(format!("{folder} has no tokenizer.json; fetch it, too"))
    })?;
    let (config, map) = (small("tokenizer_config.json")?, small("special_tokens_map.json")?);
    let (generation, settings) = (small("generation_config.json")?, small("config.json")?);
    let files = HuggingFaceFiles {
        tokenizer: &tokenizer,
        tokenizer_config: config.as_deref(),
        special_tokens_map: map.as_deref(),
        generation_config: generation.as_deref(),
        config: settings.as_deref(),
        // `weights` has it among the metadata.
        chat_template: None,
    };
    let read = Tokenizer::from_hugging_face(&files);
    Ok(read.map_err(|error| EngineError::Vocabulary(error.to_string()))?.tokenizer)
}

/// How answers are sampled where a request does not say: as `generation_config.json` has it, or the
/// keys of a GGUF file.
///
/// # Errors
/// [`EngineError`] naming the value that no request could ask for.
pub(crate) fn sampling_defaults(model: &WeightFile) -> Result<SamplingParams, EngineError> {
    let text = model.beside("generation_config.json", SETTINGS_BYTES_MAX)?;
    let said = match text {
        Some(text) => GenerationDefaults::of_file(&text)
            .map_err(|error| EngineError::Vocabulary(error.to_string()))?,
        None => {
            let metadata = model.metadata();
            let float = |name: &str| {
                let value = metadata.optional::<f32>(&format!("general.sampling.{name}"))?;
                Ok::<_, EngineError>(value.map(f64::from))
            };
            GenerationDefaults {
                temperature: float("temp")?,
                top_k: metadata.optional::<u32>("general.sampling.top_k")?,
                repetition_penalty: float("penalty_repeat")?,
                top_p: float("top_p")?,
                min_p: float("min_p")?,
                do_sample: None,
            }
        }
    };
    let plain = SamplingParams::default();
    let or = |said: Option<f64>, plain: f32| said.map_or(plain, |said| said as f32);
    let params = SamplingParams {
        temperature: or(said.temperature, plain.temperature),
        top_p: or(said.top_p, plain.top_p),
        top_k: said.top_k.unwrap_or(plain.top_k),
        min_p: or(said.min_p, plain.min_p),
        repetition_penalty: or(said.repetition_penalty, plain.repetition_penalty),
        ..plain
    };
    let checked = params.validate(u32::MAX);
    checked.map_err(|refusal| {
        EngineError::Vocabulary(format!("generation_config.json: {}", refusal.message))
    })?;
    Ok(params)
}

/// About what the tokenizer of a model will take, in bytes.
pub(crate) fn tokenizer_bytes(model: &WeightFile) -> Result<usize, EngineError> {
    let Some(folder) = model.folder() else {
        return Ok(read_vocabulary(model.metadata())?.tokenizer_bytes());
    };
    // Texts and merges stand there in words, with quotes and numbers around them.
    let length = std::fs::metadata(folder.join("tokenizer.json")).map_or(0, |file| file.len());
    Ok(usize::try_from(length).unwrap_or(usize::MAX))
}

/// Builds the tokenizer that a model file carries.
///
/// # Errors
/// [`EngineError`] naming the key that is missing, of a wrong type, or not believable.
pub fn read_tokenizer(metadata: &Metadata) -> Result<Tokenizer, EngineError> {
    let tokenizer = Tokenizer::new(&read_vocabulary(metadata)?)?;
    let key = format!("{PREFIX}.precompiled_charsmap");
    let bytes: Vec<u8> = match array(metadata, &key)? {
        None => return Ok(tokenizer),
        Some(Array::U8(bytes)) => bytes.to_vec(),
        Some(Array::I8(bytes)) => bytes.iter().map(|byte| byte.cast_unsigned()).collect(),
        Some(other) => return Err(wrong(&key, &format!("{} values", other.len()), "bytes")),
    };
    Ok(tokenizer.with_charsmap(&bytes)?)
}

/// The tokenizer's keys of a model file, checked for their types only.
pub(crate) fn read_vocabulary(metadata: &Metadata) -> Result<Vocabulary<'_>, EngineError> {
    let key = |name: &str| format!("{PREFIX}.{name}");
    let kind = match metadata.required::<&str>(&key("model"))? {
        "gpt2" => VocabularyKind::ByteLevelBpe,
        "llama" => VocabularyKind::SentencePieceBpe,
        "bert" => VocabularyKind::WordPiece,
        "t5" => VocabularyKind::Unigram,
        "gemma4" => VocabularyKind::MetaspaceBpe,
        other => {
            let other: String = other.escape_debug().take(40).collect();
            return Err(EngineError::Vocabulary(format!(
                "{PREFIX}.model is `{other}`; supported: bert (WordPiece), gemma4 (BPE of \
                 characters), gpt2 (byte-level BPE), llama (SentencePiece BPE), t5 (Unigram)"
            )));
        }
    };
    let id = |name: &str| metadata.optional::<u32>(&key(name));
    let flag = |name: &str| metadata.optional::<bool>(&key(name));
    // BERT's words for what begins and ends a text, and a name that was never spelled right.
    let is_bert = matches!(kind, VocabularyKind::WordPiece | VocabularyKind::Unigram);
    let bos = id("bos_token_id")?.or(if is_bert { id("cls_token_id")? } else { None });
    let eos = id("eos_token_id")?.or(if is_bert { id("seperator_token_id")? } else { None });
    Ok(Vocabulary {
        kind,
        pre_tokenizer: metadata.optional(&key("pre"))?.unwrap_or(""),
        tokens: texts(metadata, &key("tokens"))?,
        token_types: token_types(metadata, &key("token_type"))?,
        scores: scores(metadata, &key("scores"))?,
        merges: texts(metadata, &key("merges"))?,
        bos,
        eos,
        eot: id("eot_token_id")?,
        unknown: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: flag("add_bos_token")?.or(is_bert.then_some(true)),
        add_eos: flag("add_eos_token")?.or(is_bert.then_some(true)),
        add_space_prefix: flag("add_space_prefix")?,
    })
}

fn array<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<&'a Array>, EngineError> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Array(array)) => Ok(Some(array)),
        Some(other) => Err(wrong(key, &other.to_string(), "an array")),
    }
}

fn texts<'a>(metadata: &'a Metadata, key: &str) -> Result<Vec<&'a str>, EngineError> {
    match array(metadata, key)? {
        None => Ok(Vec::new()),
        Some(Array::Strings(strings)) => all_utf8(strings, key),
        Some(other) => Err(wrong(key, &format!("{} values", other.len()), "an array of strings")),
    }
}

fn all_utf8<'a>(strings: &'a StringArray, key: &str) -> Result<Vec<&'a str>, EngineError> {
    (0..strings.len())
        .map(|index| {
            let found = format!("entry {index} that is not UTF-8");
            strings.get_str(index).ok_or_else(|| wrong(key, &found, "UTF-8 strings"))
        })
        .collect()
}

fn token_types(metadata: &Metadata, key: &str) -> Result<Vec<TokenType>, EngineError> {
    let numbers: Vec<i64> = match array(metadata, key)? {
        None => return Ok(Vec::new()),
        Some(Array::I32(values)) => values.iter().map(|&v| i64::from(v)).collect(),
        Some(Array::U32(values)) => values.iter().map(|&v| i64::from(v)).collect(),
        Some(Array::U8(values)) => values.iter().map(|&v| i64::from(v)).collect(),
        Some(Array::I8(values)) => values.iter().map(|&v| i64::from(v)).collect(),
        Some(other) => return Err(wrong(key, &format!("{} values", other.len()), "i32 values")),
    };
    let kind = |number: i64| {
        let found = format!("type {number}");
        TokenType::from_number(number).ok_or_else(|| wrong(key, &found, "types 1 to 6"))
    };
    numbers.into_iter().map(kind).collect()
}

fn scores(metadata: &Metadata, key: &str) -> Result<Vec<f32>, EngineError> {
    match array(metadata, key)? {
        None => Ok(Vec::new()),
        Some(Array::F32(values)) => Ok(values.to_vec()),
        Some(other) => Err(wrong(key, &format!("{} values", other.len()), "f32 values")),
    }
}

fn wrong(key: &str, found: &str, expected: &str) -> EngineError {
    EngineError::Vocabulary(format!("{key} holds {found}, expected {expected}"))
}
