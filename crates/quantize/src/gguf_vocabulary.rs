//! How is a folder's tokenizer told in the keys of a GGUF file? Tokens and merges of byte-level BPE
//! are the same words there; merges that were made of SentencePiece's scores become scores again.
//!
//! Source: `vocab.py` of gguf-py and `convert_hf_to_gguf.py` of llama.cpp.

use serde_json::{Map, Value as Json};
use tokenizer::{
    GgufScores, HuggingFaceFiles, TokenType, Tokenizer, gguf_pre_tokenizer, gguf_scores,
};
use weights::{Array, StringArray, Value, WeightFile};

use crate::QuantizeError;

/// Gemma 3's has 33 MB; eight times that.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
const SETTINGS_BYTES_MAX: u64 = 16 << 20;

/// Keys for a vocabulary of `rows` tokens: as many as the embedding has.
pub(crate) fn keys(
    file: &WeightFile,
    rows: usize,
) -> Result<Vec<(&'static str, Value)>, QuantizeError> {
    let path = file.path().join("tokenizer.json");
    let wrong = |problem: String| QuantizeError::Settings { path: path.clone(), problem };
    let text = file.beside("tokenizer.json", TOKENIZER_BYTES_MAX)?;
    let text = text.ok_or_else(|| wrong("it is missing".to_owned()))?;
    let read = read(file, &text, &wrong)?;
    let scored = gguf_scores(&text).map_err(|error| wrong(error.to_string()))?;
    let document: Json =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    let mut tokens = tokens(&document, rows).map_err(&wrong)?;
    let types: Vec<TokenType> =
        (0..rows as u32).map(|id| read.token_type(id).unwrap_or(TokenType::Unused)).collect();
    let mut keys = match scored {
        Some(scored) => scored_keys(scored, &mut tokens, &types),
        None => {
            let pre = gguf_pre_tokenizer(&text).map_err(|error| wrong(error.to_string()))?;
            let merges = merges(&document).map_err(&wrong)?;
            vec![
                ("tokenizer.ggml.model", Value::from("gpt2")),
                ("tokenizer.ggml.pre", Value::from(pre)),
                ("tokenizer.ggml.merges", strings(&merges)),
            ]
        }
    };
    let numbers: Vec<i32> = types.iter().map(|kind| i32::from(*kind as u8)).collect();
    keys.extend([
        ("tokenizer.ggml.token_type", Value::from(numbers)),
        ("tokenizer.ggml.tokens", strings(&tokens)),
        ("tokenizer.ggml.add_bos_token", Value::from(read.adds_bos())),
        ("tokenizer.ggml.add_eos_token", Value::from(read.adds_eos())),
    ]);
    let special = read.special_ids();
    let ids = [
        ("tokenizer.ggml.bos_token_id", special.bos),
        ("tokenizer.ggml.eos_token_id", special.eos),
        ("tokenizer.ggml.eot_token_id", special.eot),
        ("tokenizer.ggml.unknown_token_id", special.unknown),
        ("tokenizer.ggml.padding_token_id", special.pad),
    ];
    keys.extend(ids.into_iter().filter_map(|(key, id)| Some((key, Value::from(id?)))));
    Ok(keys)
}

/// Keys of SentencePiece's kind alone.
fn scored_keys(
    scored: GgufScores,
    tokens: &mut [String],
    types: &[TokenType],
) -> Vec<(&'static str, Value)> {
    let GgufScores { mut scores, add_space_prefix } = scored;
    scores.resize(tokens.len(), 0.0);
    // They are matched in the text as it came in, where a space is one.
    for (token, _) in
        tokens.iter_mut().zip(types).filter(|(_, kind)| **kind == TokenType::UserDefined)
    {
        *token = token.replace('\u{2581}', " ");
    }
    vec![
        ("tokenizer.ggml.model", Value::from("llama")),
        ("tokenizer.ggml.pre", Value::from("default")),
        ("tokenizer.ggml.scores", Value::Array(Box::new(Array::F32(scores.into())))),
        ("tokenizer.ggml.add_space_prefix", Value::from(add_space_prefix)),
    ]
}

fn read(
    file: &WeightFile,
    text: &[u8],
    wrong: &dyn Fn(String) -> QuantizeError,
) -> Result<Tokenizer, QuantizeError> {
    let small = |name: &str| file.beside(name, SETTINGS_BYTES_MAX);
    let (config, map) = (small("tokenizer_config.json")?, small("special_tokens_map.json")?);
    let (generation, settings) = (small("generation_config.json")?, small("config.json")?);
    let files = HuggingFaceFiles {
        tokenizer: text,
        tokenizer_config: config.as_deref(),
        special_tokens_map: map.as_deref(),
        generation_config: generation.as_deref(),
        config: settings.as_deref(),
        chat_template: None,
    };
    let read = Tokenizer::from_hugging_face(&files);
    Ok(read.map_err(|error| wrong(error.to_string()))?.tokenizer)
}

/// Every id's text, as it is spelled in the file; rows beyond the vocabulary are padding.
fn tokens(document: &Json, rows: usize) -> Result<Vec<String>, String> {
    let mut tokens: Vec<Option<String>> = vec![None; rows];
    let none = Map::new();
    let vocabulary = document["model"]["vocab"].as_object().unwrap_or(&none);
    let ordinary = vocabulary.iter().map(|(text, id)| (text.as_str(), id.as_u64()));
    let added = document["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let added = added.iter().map(|one| (one["content"].as_str().unwrap_or(""), one["id"].as_u64()));
    for (text, id) in ordinary.chain(added) {
        match id.and_then(|id| usize::try_from(id).ok()) {
            Some(id) if id < rows => tokens[id] = Some(text.to_owned()),
            _ => return Err(format!("token {text:?} is beyond the {rows} rows")),
        }
    }
    let padding = |(id, text): (usize, Option<String>)| text.unwrap_or(format!("[PAD{id}]"));
    Ok(tokens.into_iter().enumerate().map(padding).collect())
}

/// `left right` each: a text, or two in newer files.
fn merges(document: &Json) -> Result<Vec<String>, String> {
    let merges = document["model"]["merges"].as_array().ok_or("it has no merges")?;
    let one = |merge: &Json| match (merge.as_str(), merge.as_array().map(Vec::as_slice)) {
        (Some(text), _) => Ok(text.to_owned()),
        (None, Some([Json::String(left), Json::String(right)])) => Ok(format!("{left} {right}")),
        _ => Err("it has a merge that is not of two tokens".to_owned()),
    };
    merges.iter().map(one).collect()
}

fn strings(texts: &[String]) -> Value {
    Value::Array(Box::new(Array::Strings(StringArray::from_iter(texts))))
}
