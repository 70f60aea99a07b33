//! What is written in a `tokenizer.json`? Types and sizes only; sense is made elsewhere.

use serde_json::Value;

use super::error::HuggingFaceError;
use crate::vocabulary::{MERGE_COUNT_MAX, TOKEN_COUNT_MAX};

#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) added_tokens: Vec<AddedToken>,
    pub(crate) normalizer: Value,
    pub(crate) pre_tokenizer: Value,
    pub(crate) post_processor: Value,
    pub(crate) decoder: Value,
    pub(crate) model: Value,
    /// Texts and ids, in the order of the file.
    pub(crate) vocab: Vec<(String, u32)>,
    /// By id, where each text has one.
    pub(crate) scores: Vec<f32>,
    /// In order of rank.
    pub(crate) merges: Vec<Merge>,
}

#[derive(Debug)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    pub(crate) special: bool,
    pub(crate) lstrip: bool,
    pub(crate) rstrip: bool,
    pub(crate) single_word: bool,
    pub(crate) normalized: bool,
}

/// Two tokens, written with a space between or as a list.
#[derive(Debug)]
pub(crate) enum Merge {
    Spaced(String),
    Pair(String, String),
}

fn damaged(what: String) -> HuggingFaceError {
    HuggingFaceError::Damaged { file: "tokenizer.json", what }
}

impl Document {
    pub(crate) fn read(mut value: Value) -> Result<Document, HuggingFaceError> {
        let mut model = value["model"].take();
        let (vocab, merges) = (model["vocab"].take(), model["merges"].take());
        let scores = read_scores(&vocab)?;
        let added_tokens = match value["added_tokens"].take() {
            Value::Null => Vec::new(),
            Value::Array(tokens) => tokens.iter().map(added).collect::<Result<_, _>>()?,
            _ => return Err(damaged("its added_tokens are no list".to_owned())),
        };
        Ok(Document {
            added_tokens,
            normalizer: value["normalizer"].take(),
            pre_tokenizer: value["pre_tokenizer"].take(),
            post_processor: value["post_processor"].take(),
            decoder: value["decoder"].take(),
            model,
            vocab: read_vocab(vocab)?,
            scores,
            merges: read_merges(merges)?,
        })
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.model[name].as_str()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.model[name] == true
    }
}

fn id_of(value: &Value, text: &str) -> Result<u32, HuggingFaceError> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| damaged(format!("the id of {text:.40?} is {value}")))
}

fn added(value: &Value) -> Result<AddedToken, HuggingFaceError> {
    let content = value["content"].as_str();
    let content = content.ok_or_else(|| damaged("an added token has no content".to_owned()))?;
    let flag = |name: &str| value[name] == true;
    Ok(AddedToken {
        id: id_of(&value["id"], content)?,
        content: content.to_owned(),
        special: flag("special"),
        lstrip: flag("lstrip"),
        rstrip: flag("rstrip"),
        single_word: flag("single_word"),
        normalized: flag("normalized"),
    })
}

fn read_vocab(value: Value) -> Result<Vec<(String, u32)>, HuggingFaceError> {
    match value {
        Value::Object(map) if map.len() <= TOKEN_COUNT_MAX => {
            let entry = |(text, id): (String, Value)| id_of(&id, &text).map(|id| (text, id));
            map.into_iter().map(entry).collect()
        }
        Value::Object(_) => Err(damaged(format!("it has over {TOKEN_COUNT_MAX} tokens"))),
        Value::Array(list) if list.len() <= TOKEN_COUNT_MAX => {
            let text = |entry: &Value| entry[0].as_str().map(str::to_owned);
            let texts = (0u32..).zip(&list).map(|(id, entry)| text(entry).map(|text| (text, id)));
            let texts: Option<Vec<_>> = texts.collect();
            texts.ok_or_else(|| damaged("its vocab is no list of texts and scores".to_owned()))
        }
        _ => Err(damaged("its model has no vocab of ids or scores".to_owned())),
    }
}

fn read_scores(vocab: &Value) -> Result<Vec<f32>, HuggingFaceError> {
    let Value::Array(list) = vocab else { return Ok(Vec::new()) };
    let score = |entry: &Value| entry[1].as_f64().map(|score| score as f32);
    let scores: Option<Vec<f32>> = list.iter().take(TOKEN_COUNT_MAX + 1).map(score).collect();
    scores.ok_or_else(|| damaged("its vocab is no list of texts and scores".to_owned()))
}

fn read_merges(value: Value) -> Result<Vec<Merge>, HuggingFaceError> {
    let merges = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(merges) if merges.len() <= MERGE_COUNT_MAX => merges,
        _ => return Err(damaged(format!("its merges are no list of {MERGE_COUNT_MAX} at most"))),
    };
    let merge = |(rank, merge): (usize, Value)| match merge {
        Value::String(text) => Ok(Merge::Spaced(text)),
        Value::Array(sides) => match &sides[..] {
            [Value::String(left), Value::String(right)] => {
                Ok(Merge::Pair(left.clone(), right.clone()))
            }
            _ => Err(damaged(format!("merge {rank} is not of two texts"))),
        },
        _ => Err(damaged(format!("merge {rank} is neither a text nor a list"))),
    };
    merges.into_iter().enumerate().map(merge).collect()
}
