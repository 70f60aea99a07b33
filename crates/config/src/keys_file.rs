//! Which API keys stand in a file of their own?
//!
//! Read by those who serve only: other commands work where they may not read it.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::file::{in_our_words, read_text};
use crate::sections::access::{AccessConfig, KeyConfig};
use crate::template::yaml;
use crate::{ConfigError, Loaded};

const KEYS: &str = "access.keys";

impl Loaded {
    /// The same with the keys of `access.keys_file`, where one is named.
    ///
    /// # Errors
    /// [`ConfigError`] when it cannot be read, is no list of keys, or repeats one.
    pub fn with_keys_file(mut self) -> Result<Self, ConfigError> {
        let Some(path) = self.config.access.keys_file.clone() else { return Ok(self) };
        let added = read(Path::new(&path))?;
        let wrong = |problem: String| ConfigError::Syntax { path: path.clone().into(), problem };
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.key.path == KEYS)
            && let Value::Array(items) = &mut setting.value
        {
            let values = serde_json::to_value(&added).map_err(|error| wrong(error.to_string()))?;
            let checked = setting.key.check(KEYS, &values);
            checked.map_err(|(at, problem)| wrong(format!("`{at}` {problem}")))?;
            items.extend(values.as_array().cloned().unwrap_or_default());
        }
        self.config.access.keys.extend(added);
        match self.config.access.problem() {
            Some(problem) => Err(wrong(problem)),
            None => Ok(self),
        }
    }
}

fn read(path: &Path) -> Result<Vec<KeyConfig>, ConfigError> {
    let text = read_text(path)?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Vec::new());
    }
    serde_saphyr::from_str(&text).map_err(|error| in_our_words(path, &error))
}

/// Adds a key to a keys file, which is made where there is none.
///
/// # Errors
/// [`ConfigError`] when the file cannot be read or written, or would be wrong with the key.
pub fn add_key(path: &Path, key: &KeyConfig) -> Result<(), ConfigError> {
    let mut keys = if path.exists() { read(path)? } else { Vec::new() };
    keys.push(key.clone());
    let access = AccessConfig { keys, ..AccessConfig::default() };
    if let Some(problem) = access.problem() {
        return Err(ConfigError::Syntax { path: path.to_owned(), problem });
    }
    let mut options = std::fs::OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(path).and_then(|mut file| {
        let ends_open = read_text(path).is_ok_and(|text| !text.is_empty() && !text.ends_with('\n'));
        let before = if ends_open { "\n" } else { "" };
        file.write_all(format!("{before}{}", key_entry(key)).as_bytes())
    });
    written.map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}

/// The key as an item of a YAML list, with what is not as by default.
pub fn key_entry(key: &KeyConfig) -> String {
    let mut text = String::new();
    let Ok(Value::Object(fields)) = serde_json::to_value(key) else { return text };
    for (index, (name, value)) in fields.iter().enumerate() {
        let is_default = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::String(text) => name == "priority" && text == "normal",
            Value::Bool(true) | Value::Number(_) | Value::Object(_) => false,
        };
        if is_default {
            continue;
        }
        let dash = if index == 0 { "- " } else { "  " };
        // Sixty-four digits may look like a number.
        let shown = if name == "sha256" { value.to_string() } else { yaml(value) };
        let _ = writeln!(text, "{dash}{name}: {shown}");
    }
    text
}
