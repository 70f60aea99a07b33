//! What holds when defaults, file, environment and flags are put on top of each other?

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::environment;
use crate::file::{self, FileText};
use crate::keys::{Key, keys};
use crate::{Config, ConfigError};

/// Everything that may say what a key is, weakest first.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `None`: the file that `PELTON_CONFIG` names, or `pelton.yaml` in the user's configuration
    /// folder if there is one.
    pub file: Option<PathBuf>,
    /// All variables of the process; an argument so that tests bring their own.
    pub environment: Vec<(String, String)>,
    /// Key and value of each flag.
    pub flags: Vec<(String, String)>,
}

/// A configuration, and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Every key, in the order of the schema.
    pub settings: Vec<Setting>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub key: Key,
    pub value: Value,
    pub origin: Origin,
}

/// Who said so last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// The line.
    File(u64),
    Variable(String),
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File(line) => write!(formatter, "file, line {line}"),
            Self::Variable(name) => write!(formatter, "environment, {name}"),
            Self::Flag => formatter.write_str("flag"),
        }
    }
}

impl Sources {
    /// With the variables of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        // A name or value that is no text can be none of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, environment, flags }
    }

    /// Reads, checks and puts together.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file, variable or flag, the place and what to write instead.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let path = self.path();
        let keys = keys();
        let file = path.as_deref().map(|path| file::read(path, &keys)).transpose()?;
        self.put_together(keys, file.unwrap_or_default(), path)
    }

    fn path(&self) -> Option<PathBuf> {
        let named = self.environment.iter().find(|(name, _)| name == "PELTON_CONFIG");
        let named = named.filter(|(_, value)| !value.is_empty()).map(|(_, path)| path.into());
        let there = || file::default_path(&self.environment).filter(|path| path.is_file());
        self.file.clone().or(named).or_else(there)
    }

    fn put_together(
        &self,
        keys: Vec<Key>,
        file: FileText,
        path: Option<PathBuf>,
    ) -> Result<Loaded, ConfigError> {
        let given = environment::given(&self.environment, &keys)?;
        let mut values: Vec<(Value, Origin)> =
            keys.iter().map(|key| (key.default.clone(), Origin::Default)).collect();
        let index = |path: &str| keys.iter().position(|key| key.path == path);
        for (key, value) in file.values {
            let line = file.places.line(&key).unwrap_or_default();
            if let Some(index) = index(&key) {
                values[index] = (value, Origin::File(line));
            }
        }
        for (key, variable, text) in given {
            let wrong = || ConfigError::Variable {
                variable: variable.to_owned(),
                value: text.to_owned(),
                expected: key.allowed(),
            };
            let value = key.parse(text).ok_or_else(wrong)?;
            key.check(&key.path, &value).map_err(|_| wrong())?;
            if let Some(index) = index(&key.path) {
                values[index] = (value, Origin::Variable(variable.to_owned()));
            }
        }
        for (position, (path, text)) in self.flags.iter().enumerate() {
            let index = index(path).ok_or_else(|| unknown_flag(path, &keys))?;
            values[index] = (self.flag(position, &keys[index], text)?, Origin::Flag);
        }
        let settings = keys.into_iter().zip(values);
        let settings: Vec<Setting> =
            settings.map(|(key, (value, origin))| Setting { key, value, origin }).collect();
        let config = config_of(&settings, path.as_deref())?;
        config.check_together()?;
        Ok(Loaded { config, settings, file: path })
    }

    fn flag(&self, position: usize, key: &Key, text: &str) -> Result<Value, ConfigError> {
        let mut before = self.flags[..position].iter();
        if let Some((_, one)) = before.find(|(path, one)| *path == key.path && one != text) {
            let (key, one, other) = (key.path.clone(), one.clone(), text.to_owned());
            return Err(ConfigError::TwoFlags { key, one, other });
        }
        let wrong = || ConfigError::Flag {
            key: key.path.clone(),
            value: text.to_owned(),
            expected: key.allowed(),
        };
        let value = key.parse(text).ok_or_else(wrong)?;
        key.check(&key.path, &value).map_err(|_| wrong())?;
        Ok(value)
    }
}

fn unknown_flag(path: &str, keys: &[Key]) -> ConfigError {
    let known: Vec<&str> = keys.iter().map(|key| key.path.as_str()).collect();
    let nearest = crate::nearest_name(path, known.iter().copied());
    // Somebody may have left out the section.
    let named = || keys.iter().find(|key| key.name() == path).map(|key| key.path.as_str());
    let hint = match nearest.or_else(named) {
        Some(name) => format!(", did you mean `{name}`?"),
        None => "; `pelton config check` lists the keys".to_owned(),
    };
    ConfigError::UnknownFlag { key: path.to_owned(), hint }
}

fn config_of(settings: &[Setting], path: Option<&Path>) -> Result<Config, ConfigError> {
    let mut root = serde_json::Map::new();
    for Setting { key, value, .. } in settings {
        match key.path.split_once('.') {
            None => {
                root.insert(key.path.clone(), value.clone());
            }
            Some((section, name)) => {
                let empty = || Value::Object(serde_json::Map::new());
                let section = root.entry(section.to_owned()).or_insert_with(empty);
                if let Value::Object(section) = section {
                    section.insert(name.to_owned(), value.clone());
                }
            }
        }
    }
    // Each value was held against its schema; what is left are the items of lists.
    serde_json::from_value(Value::Object(root)).map_err(|error| ConfigError::Syntax {
        path: path.map_or_else(|| PathBuf::from("the configuration"), Path::to_owned),
        problem: error.to_string(),
    })
}

impl Loaded {
    /// Takes from a configuration that was read later what a running server can take up, and says
    /// what it was.
    pub fn take_up(&mut self, next: &Self) -> Changes {
        let mut changes = Changes::default();
        let mut values = self.settings.clone();
        for (held, read) in values.iter_mut().zip(&next.settings) {
            if held.value == read.value {
                continue;
            }
            if read.key.reload {
                held.clone_from(read);
                changes.taken_up.push(read.key.path.clone());
            } else {
                changes.restart.push(read.key.path.clone());
            }
        }
        // Both were right, but what holds between keys may need those that did not change.
        let checked = config_of(&values, self.file.as_deref());
        match checked.and_then(|config| config.check_together().map(|()| config)) {
            Ok(config) => (self.config, self.settings) = (config, values),
            Err(_) => changes.restart.append(&mut changes.taken_up),
        }
        changes
    }
}

impl Loaded {
    /// Takes a key back to what it is in another configuration.
    pub fn keep(&mut self, path: &str, held: &Self) {
        for (own, held) in self.settings.iter_mut().zip(&held.settings) {
            if own.key.path == path {
                own.clone_from(held);
            }
        }
    }
}

/// Paths of keys that changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub taken_up: Vec<String>,
    /// They hold from the next start.
    pub restart: Vec<String>,
}
