//! Is the model of a folder for vectors of texts? The files of sentence-transformers beside it say
//! so, in keys of GGUF.
//!
//! `modules.json` lists what a text passes: the model, then pooling, then perhaps a norm of the
//! vector, which changes its length alone and is left to whoever compares vectors.

use std::path::Path;

use serde_json::Value as Json;

use super::TEXT_BYTES_MAX;
use super::config::{Config, shown};
use super::texts::read;
use crate::WeightsError;
use crate::error::Quoted;
use crate::metadata::Value;

/// Numbers of `llama_pooling_type`, and the words of sentence-transformers, old and new.
const KINDS: &[(u32, &str, &str)] = &[
    (1, "pooling_mode_mean_tokens", "mean"),
    (2, "pooling_mode_cls_token", "cls"),
    (3, "pooling_mode_lasttoken", "lasttoken"),
];

/// What stands before each text.
const PREFIX: &str = "pelton.text_prefix";
/// How many tokens of a text are read, those around it included.
const TOKENS_MAX: &str = "pelton.text_tokens_max";

/// Of models whose classifier ranks texts.
pub(super) const RANK: u32 = 4;

/// Whether the model was saved with a classifier of whole texts.
pub(super) fn ranks(config: &Config<'_>) -> bool {
    let classes = config.list("architectures").ok().flatten().unwrap_or_default();
    let mut names = classes.iter().filter_map(Json::as_str);
    names.any(|name| name.ends_with("ForSequenceClassification"))
}

/// The kind of pooling; `None`: the folder has no such files.
pub(super) fn read_kind(folder: &Path) -> Result<Option<u32>, WeightsError> {
    let list = folder.join("modules.json");
    let stage = if list.is_file() {
        match pooling_stage(&list)? {
            Some(stage) => stage,
            None => return Ok(None),
        }
    } else {
        "1_Pooling".to_owned()
    };
    let path = folder.join(stage).join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let json = parse(&path)?;
    kind(&json).map(Some).map_err(|problem| WeightsError::Folder { path, problem })
}

/// How texts are read where nobody says otherwise: what stands before each, and how long one may
/// be.
pub(super) fn texts(folder: &Path) -> Result<Vec<(Box<str>, Value)>, WeightsError> {
    let list = folder.join("modules.json");
    if !list.is_file() {
        return Ok(Vec::new());
    }
    let beside = |name: &str| {
        let path = folder.join(name);
        if path.is_file() { parse(&path) } else { Ok(Json::Null) }
    };
    let mut entries: Vec<(Box<str>, Value)> = Vec::new();
    let settings = beside("config_sentence_transformers.json")?;
    let wrong = |problem: String| WeightsError::Folder {
        path: folder.join("config_sentence_transformers.json"),
        problem,
    };
    let prefix = prefix(&settings).map_err(wrong)?;
    if !prefix.is_empty() {
        let stage = pooling_stage(&list)?.unwrap_or_default();
        let pooling = beside(&format!("{stage}/config.json"))?;
        if pooling.get("include_prompt").and_then(Json::as_bool) == Some(false) {
            let why = "default_prompt_name beside pooling without it (include_prompt is false) is \
                       not supported";
            return Err(wrong(why.to_owned()));
        }
        entries.push((PREFIX.into(), prefix.into()));
    }
    // The second is often more than any text has, which is no limit.
    let own = beside("sentence_bert_config.json")?;
    let tokenizer = beside("tokenizer_config.json")?;
    let number = |json: &Json, key: &str| u32::try_from(json.get(key)?.as_u64()?).ok();
    let most = number(&own, "max_seq_length").or(number(&tokenizer, "model_max_length"));
    entries.extend(most.filter(|&most| most > 0).map(|most| (TOKENS_MAX.into(), most.into())));
    Ok(entries)
}

/// The prompt that `default_prompt_name` names.
fn prefix(settings: &Json) -> Result<&str, String> {
    match settings.get("default_prompt_name") {
        None | Some(Json::Null) => Ok(""),
        Some(name) => {
            let prompts = settings.get("prompts");
            let named = name.as_str().and_then(|name| prompts?.get(name)?.as_str());
            named.ok_or_else(|| format!("default_prompt_name is {}, no prompt is", shown(name)))
        }
    }
}

fn parse(path: &Path) -> Result<Json, WeightsError> {
    serde_json::from_slice(&read(path, TEXT_BYTES_MAX)?).map_err(|error| WeightsError::Folder {
        path: path.to_owned(),
        problem: format!("it is no JSON: {error}"),
    })
}

/// The folder with the settings of pooling.
fn pooling_stage(list: &Path) -> Result<Option<String>, WeightsError> {
    let wrong = |problem| WeightsError::Folder { path: list.to_owned(), problem };
    let mut found = None;
    for stage in parse(list)?.as_array().into_iter().flatten() {
        let text = |key: &str| stage.get(key).and_then(Json::as_str).unwrap_or("");
        match text("type").rsplit('.').next() {
            Some("Transformer" | "Normalize") => {}
            Some("Pooling") => found = Some(text("path").to_owned()),
            other => {
                let kind = Quoted(other.unwrap_or(""));
                return Err(wrong(format!("a text passes a stage {kind}, which is not supported")));
            }
        }
    }
    match found {
        Some(path) if path.is_empty() || path.contains(['/', '\\']) || path.starts_with('.') => {
            Err(wrong(format!("the path {} is no folder beside it", Quoted(&path))))
        }
        found => Ok(found),
    }
}

fn kind(json: &Json) -> Result<u32, String> {
    let named = match json.get("pooling_mode") {
        None | Some(Json::Null) => None,
        Some(name) => Some(name.as_str().ok_or("pooling_mode is no text")?),
    };
    let is_on = |&&(_, flag, name): &&(u32, &str, &str)| match named {
        Some(named) => named == name,
        None => json.get(flag).and_then(Json::as_bool) == Some(true),
    };
    let flags =
        json.as_object().into_iter().flatten().filter(|(key, value)| {
            key.starts_with("pooling_mode_") && value.as_bool() == Some(true)
        });
    let others = named.is_none() && flags.count() > 1;
    match KINDS.iter().find(is_on) {
        Some((kind, ..)) if !others => Ok(*kind),
        _ => Err("only one kind of pooling is supported: mean, cls or lasttoken".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_and_mixtures_refused() {
        for (text, expected) in [
            (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#, Some(1)),
            (r#"{"pooling_mode_lasttoken": true}"#, Some(3)),
            (r#"{"pooling_mode": "cls"}"#, Some(2)),
            (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}"#, None),
            (r#"{"pooling_mode_weightedmean_tokens": true}"#, None),
            (r#"{"pooling_mode": "max"}"#, None),
            (r#"{"pooling_mode": 1}"#, None),
            ("{}", None),
        ] {
            let json = serde_json::from_str(text).unwrap_or_default();
            assert_eq!(kind(&json).ok(), expected, "{text}");
        }
    }
}
