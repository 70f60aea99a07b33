//! What do the small files beside the weights say? Chat templates and what tokens they may name;
//! files within limits.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::TEXT_BYTES_MAX;
use crate::WeightsError;
use crate::metadata::{StringArray, Value};

const TEMPLATE: &str = "tokenizer.chat_template";
const TOOLS_TEMPLATE: &str = "tokenizer.chat_template.tool_use";
/// Names of tokens in templates, and their texts, by turns.
const TOKENS: &str = "pelton.template_tokens";

/// Reads a regular file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, WeightsError> {
    let io = |reason| WeightsError::Io { action: "read", path: path.to_owned(), reason };
    let wrong = |problem| WeightsError::Folder { path: path.to_owned(), problem };
    // Before opening: opening a named pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        return Err(wrong(format!("it is longer than {most} bytes, which no such file is")));
    }
    Ok(bytes)
}

/// Metadata of the files beside the settings.
pub(super) fn entries(folder: &Path) -> Result<Vec<(Box<str>, Value)>, WeightsError> {
    let mut entries: Vec<(Box<str>, Value)> = Vec::new();
    let config = object(&folder.join("tokenizer_config.json"))?;
    let Templates { default, tools } = templates(folder, config.get("chat_template"))?;
    for (key, template) in [(TEMPLATE, default), (TOOLS_TEMPLATE, tools)] {
        entries.extend(template.map(|template| (key.into(), template.into())));
    }
    let tokens = tokens(&config, &object(&folder.join("special_tokens_map.json"))?);
    if !tokens.is_empty() {
        entries.push((
            TOKENS.into(),
            tokens.iter().map(String::as_str).collect::<StringArray>().into(),
        ));
    }
    if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
        entries.push(("general.name".into(), name.into()));
    }
    Ok(entries)
}

/// What a file of settings says; nothing where there is none.
fn object(path: &Path) -> Result<Map<String, Json>, WeightsError> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let wrong = |problem| WeightsError::Folder { path: path.to_owned(), problem };
    match serde_json::from_slice(&read(path, TEXT_BYTES_MAX)?) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("it is no object".to_owned())),
        Err(error) => Err(wrong(format!("it is no JSON: {error}"))),
    }
}

/// The usual template, and the one for conversations with tools where there are several.
struct Templates {
    default: Option<String>,
    tools: Option<String>,
}

/// Those of files of their own, or of the tokenizer's settings; there the one named `default`, or
/// the first, where there are several.
fn templates(folder: &Path, told: Option<&Json>) -> Result<Templates, WeightsError> {
    let of_file = |path: &Path| {
        let wrong = |_| WeightsError::Folder {
            path: path.to_owned(),
            problem: "it is not UTF-8".to_owned(),
        };
        String::from_utf8(read(path, TEXT_BYTES_MAX)?).map(Some).map_err(wrong)
    };
    let (own, more) = (
        folder.join("chat_template.jinja"),
        folder.join("additional_chat_templates/tool_use.jinja"),
    );
    let more = if more.is_file() { of_file(&more)? } else { None };
    if own.is_file() {
        return Ok(Templates { default: of_file(&own)?, tools: more });
    }
    match told {
        None | Some(Json::Null) => Ok(Templates { default: None, tools: None }),
        Some(Json::String(template)) => {
            Ok(Templates { default: Some(template.clone()), tools: more })
        }
        Some(Json::Array(named)) => {
            let name = |one: &Json| one.get("name").and_then(Json::as_str).map(str::to_owned);
            let text = |one: &Json| one.get("template").and_then(Json::as_str).map(str::to_owned);
            let of = |wanted: &str| named.iter().find(|one| name(one).as_deref() == Some(wanted));
            let default = of("default").or_else(|| named.first()).and_then(text);
            Ok(Templates { default, tools: of("tool_use").and_then(text).or(more) })
        }
        Some(_) => Err(WeightsError::Folder {
            path: folder.join("tokenizer_config.json"),
            problem: "chat_template is neither a text nor a list".to_owned(),
        }),
    }
}

/// Names and texts, by turns, of the tokens that templates may name besides the first and the last
/// of a text, which the tokenizer knows. The map is of older folders.
fn tokens(config: &Map<String, Json>, map: &Map<String, Json>) -> Vec<String> {
    let named = |key: &str| config.get(key).and_then(Json::as_object).into_iter().flatten();
    let of_model = ["model_specific_special_tokens", "extra_special_tokens"].map(named);
    let mut tokens: Vec<String> = Vec::new();
    for (name, token) in config.iter().chain(of_model.into_iter().flatten()).chain(map) {
        let text = token.as_str().or_else(|| token.get("content")?.as_str());
        let is_known = matches!(&**name, "bos_token" | "eos_token")
            || tokens.iter().step_by(2).any(|known| known == name);
        if let (Some(text), true, false) = (text, name.ends_with("_token"), is_known) {
            tokens.extend([name.clone(), text.to_owned()]);
        }
    }
    tokens
}
