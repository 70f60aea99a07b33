//! What does the configuration file say?

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::keys::{Key, Kind};
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
    let places = Places::read(text).map_err(|error| in_our_words(path, &error))?;
    // Read as what each key is: `name: 7` is a text, and `speculation: off` no truth.
    let config: Config = serde_saphyr::from_str(text).map_err(|error| {
        of_value(path, &error, &places, keys).unwrap_or_else(|| in_our_words(path, &error))
    })?;
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

/// The error of a value, with what its key may be; `None` where no value is wrong.
fn of_value(
    path: &Path,
    error: &serde_saphyr::Error,
    places: &Places,
    keys: &[Key],
) -> Option<ConfigError> {
    let error = error.without_snippet();
    if matches!(error, serde_saphyr::Error::SerdeUnknownField { .. }) {
        return None;
    }
    let location = error.location()?;
    let at = places.at(&location)?;
    let is_section = |key: &Key| key.path.strip_prefix(at).is_some_and(|key| key.starts_with('.'));
    let problem = match keys.iter().find(|key| key.path == at) {
        Some(key) => format!("must be {}", key.allowed()),
        None if keys.iter().any(is_section) => {
            "is a section: write its keys below it, each on a line of its own and indented".into()
        }
        None => format!("must be {}", item_of(at, keys)?.allowed()),
    };
    let (path, key) = (path.to_owned(), at.to_owned());
    Some(ConfigError::WrongValue { path, line: location.line(), key, problem })
}

/// What an item of a list may be, of the place `list[index]`.
fn item_of<'a>(at: &str, keys: &'a [Key]) -> Option<&'a Key> {
    let (list, index) = at.strip_suffix(']')?.rsplit_once('[')?;
    index.parse::<usize>().ok()?;
    match &keys.iter().find(|key| key.path == list)?.kind {
        Kind::List(item) => Some(item),
        _ => None,
    }
}

/// What a parser did not follow: where, what is wrong, and what to do about it.
pub(crate) fn in_our_words(path: &Path, error: &serde_saphyr::Error) -> ConfigError {
    use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter};
    let error = error.without_snippet();
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    let path = path.to_owned();
    let problem = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let (key, hint) = (field.clone(), hint(field, expected.iter().map(AsRef::as_ref)));
            return ConfigError::UnknownKey { path, line, column, key, hint };
        }
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("`{key}` stands here a second time: keep one of the two")
        }
        Error::MultipleDocuments { .. } => {
            "a second document begins above: write one, without `---`".to_owned()
        }
        Error::Budget { .. } => {
            "it has more keys and values than any configuration: make it smaller".to_owned()
        }
        Error::UnknownAnchor { .. } => {
            "there is no anchor of this name before it: write the value itself".to_owned()
        }
        Error::SerdeMissingField { field, .. } => format!("`{field}` is missing here: add it"),
        Error::ExternalMessage { msg, .. } => {
            format!("this is no YAML ({msg}): mend this line or one above it")
        }
        error => {
            let said = DefaultMessageFormatter.format_message(error);
            format!("{said}: mend this line or one above it")
        }
    };
    ConfigError::Unreadable { path, line, column, problem }
}

/// What the writer of an unknown key may have meant.
pub(crate) fn hint<'a>(key: &str, expected: impl Iterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest_name(key, expected.clone()) {
        return format!(", did you mean `{name}`?");
    }
    let names: Vec<String> = expected.map(|name| format!("`{name}`")).collect();
    format!(", the keys here are {}", names.join(", "))
}
