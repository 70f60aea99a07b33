//! What do the small files beside the weights say? The chat template; files within limits.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value as Json;

use super::TEXT_BYTES_MAX;
use crate::WeightsError;
use crate::metadata::Value;

const TEMPLATE: &str = "tokenizer.chat_template";

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
    let mut entries = Vec::new();
    if let Some(template) = template(folder)? {
        entries.push((TEMPLATE.into(), template.into()));
    }
    if let Some(name) = folder.file_name().and_then(|name| name.to_str()) {
        entries.push(("general.name".into(), name.into()));
    }
    Ok(entries)
}

/// Of a file of its own, or of the tokenizer's settings; there the first, or the one named
/// `default`, where there are several.
fn template(folder: &Path) -> Result<Option<String>, WeightsError> {
    let own = folder.join("chat_template.jinja");
    if own.is_file() {
        let wrong =
            |_| WeightsError::Folder { path: own.clone(), problem: "it is not UTF-8".to_owned() };
        return String::from_utf8(read(&own, TEXT_BYTES_MAX)?).map(Some).map_err(wrong);
    }
    let path = folder.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let wrong = |problem| WeightsError::Folder { path: path.clone(), problem };
    let json: Json = serde_json::from_slice(&read(&path, TEXT_BYTES_MAX)?)
        .map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    let text = |json: &Json| json.as_str().map(str::to_owned);
    Ok(match json.get("chat_template") {
        None | Some(Json::Null) => None,
        Some(Json::String(template)) => Some(template.clone()),
        Some(Json::Array(named)) => {
            let is_default =
                |one: &&Json| one.get("name").and_then(Json::as_str) == Some("default");
            let one = named.iter().find(is_default).or_else(|| named.first());
            one.and_then(|one| one.get("template")).and_then(text)
        }
        Some(_) => return Err(wrong("chat_template is neither a text nor a list".to_owned())),
    })
}
