//! What does the configuration file say?

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::keys::Key;
use crate::places::Places;
use crate::{Config, ConfigError, nearest_name};

/// A file with every key and a paragraph of comment on each has under 64 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file as it was read.
#[derive(Debug, Default)]
pub(crate) struct FileText {
    /// The keys that it sets, and to what.
    pub(crate) values: Vec<(String, Value)>,
    pub(crate) places: Places,
}

/// `pelton.yaml` in the user's configuration folder, whether it is there or not.
pub(crate) fn default_path(environment: &[(String, String)]) -> Option<PathBuf> {
    let set = |wanted: &str| {
        let found = environment.iter().find(|(name, value)| name == wanted && !value.is_empty());
        found.map(|(_, value)| PathBuf::from(value))
    };
    let folder = set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .or_else(|| set("APPDATA"))?;
    Some(folder.join("pelton").join("pelton.yaml"))
}

pub(crate) fn read(path: &Path, keys: &[Key]) -> Result<FileText, ConfigError> {
    parse(path, &read_text(path)?, keys)
}

pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let bytes = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if bytes as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    Ok(text)
}

pub(crate) fn parse(path: &Path, text: &str, keys: &[Key]) -> Result<FileText, ConfigError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(FileText::default());
    }
    let syntax = |error: &serde_saphyr::Error| ConfigError::Syntax {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let places = Places::read(text).map_err(|error| syntax(&error))?;
    // Read as what each key is: `name: 7` is a text, and `speculation: off` no truth.
    let config: Config = serde_saphyr::from_str(text)
        .map_err(|error| explain(path, &error, &places, keys).unwrap_or_else(|| syntax(&error)))?;
    let all = serde_json::to_value(&config).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    let mut values = Vec::new();
    for key in keys.iter().filter(|key| places.has(&key.path)) {
        let pointer = format!("/{}", key.path.replace('.', "/"));
        let value = all.pointer(&pointer).cloned().unwrap_or(Value::Null);
        key.check(&key.path, &value).map_err(|(at, problem)| {
            let line = places.line(&at).or(places.line(&key.path)).unwrap_or_default();
            ConfigError::WrongValue { path: path.to_owned(), line, key: at, problem }
        })?;
        values.push((key.path.clone(), value));
    }
    Ok(FileText { values, places })
}

/// The error in words of the configuration; `None` where the parser's own say it best.
fn explain(
    path: &Path,
    error: &serde_saphyr::Error,
    places: &Places,
    keys: &[Key],
) -> Option<ConfigError> {
    let error = error.without_snippet();
    if let serde_saphyr::Error::SerdeUnknownField { field, expected, location } = error {
        return Some(ConfigError::UnknownKey {
            path: path.to_owned(),
            line: location.line(),
            column: location.column(),
            key: field.clone(),
            hint: hint(field, expected.iter().map(AsRef::as_ref)),
        });
    }
    let location = error.location()?;
    let at = places.at(&location)?;
    let key = keys.iter().find(|key| key.path == at)?;
    Some(ConfigError::WrongValue {
        path: path.to_owned(),
        line: location.line(),
        key: key.path.clone(),
        problem: format!("must be {}", key.allowed()),
    })
}

/// What the writer of an unknown key may have meant.
pub(crate) fn hint<'a>(key: &str, expected: impl Iterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest_name(key, expected.clone()) {
        return format!(", did you mean `{name}`?");
    }
    let names: Vec<String> = expected.map(|name| format!("`{name}`")).collect();
    format!(", the keys here are {}", names.join(", "))
}
