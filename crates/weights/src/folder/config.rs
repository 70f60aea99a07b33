//! What does `config.json` say under a key, if it says it in the right type?

use serde_json::{Map, Value as Json};

use crate::error::Quoted;

/// An object of `config.json`; errors name the key and what was expected.
#[derive(Clone, Copy)]
pub(super) struct Config<'a> {
    object: &'a Map<String, Json>,
    /// What holds where a key is not there at all.
    defaults: Option<&'a Map<String, Json>>,
    /// In front of keys in messages, with its full stop.
    inside: &'static str,
}

impl<'a> Config<'a> {
    pub(super) fn new(object: &'a Map<String, Json>) -> Self {
        Self { object, defaults: None, inside: "" }
    }

    pub(super) fn with_defaults(self, defaults: Option<&'a Map<String, Json>>) -> Self {
        Self { defaults, ..self }
    }

    /// `null` is as good as nothing, and hides a default.
    pub(super) fn get(&self, key: &str) -> Option<&'a Json> {
        let default = || self.defaults?.get(key);
        self.object.get(key).or_else(default).filter(|value| !value.is_null())
    }

    /// Whether the file itself says something under a key.
    pub(super) fn gives(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(|value| !value.is_null())
    }

    pub(super) fn integer(&self, key: &str) -> Result<Option<u32>, String> {
        let expected = "a whole number from 0 to 4294967295";
        self.read(key, expected, |value| value.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>, String> {
        let finite = |number: f32| number.is_finite().then_some(number);
        self.read(key, "a finite number", |value| finite(value.as_f64()? as f32))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.read(key, "a string", Json::as_str)
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.read(key, "true or false", Json::as_bool)
    }

    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Json]>, String> {
        self.read(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, String> {
        let number = |value: &Json| value.as_f64().map(|number| number as f32);
        self.read(key, "a list of numbers", |value| value.as_array()?.iter().map(number).collect())
    }

    pub(super) fn object(&self, key: &'static str) -> Result<Option<Config<'a>>, String> {
        let object = self.read(key, "an object", Json::as_object)?;
        Ok(object.map(|object| Config { object, defaults: None, inside: key }))
    }

    /// The first object in it, whatever its key.
    pub(super) fn first_object(&self) -> Option<Config<'a>> {
        let objects = self.object.values().filter_map(Json::as_object);
        objects.map(|object| Config { object, defaults: None, inside: self.inside }).next()
    }

    /// # Errors
    /// When the key is missing, too.
    pub(super) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, String> {
        value.ok_or_else(|| format!("{} is missing", self.named(key)))
    }

    /// Fails where a key is there and says something else than `known`.
    pub(super) fn refuse_unless(&self, key: &str, known: &Json) -> Result<(), String> {
        // 7 is 7.0.
        let same = |found: &Json| {
            found == known || (found.is_number() && found.as_f64() == known.as_f64())
        };
        match self.get(key) {
            Some(found) if !same(found) => {
                Err(format!("{} is {}, supported: {known}", self.named(key), shown(found)))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn named(&self, key: &str) -> String {
        let stop = if self.inside.is_empty() { "" } else { "." };
        format!("{}{stop}{}", self.inside, Quoted(key))
    }

    fn read<T>(
        &self,
        key: &str,
        expected: &str,
        take: impl FnOnce(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || format!("{} is {}, expected {expected}", self.named(key), shown(value));
        take(value).map(Some).ok_or_else(wrong)
    }
}

/// A value for a message.
pub(super) fn shown(value: &Json) -> String {
    match value {
        Json::Array(values) => format!("a list of {}", values.len()),
        Json::Object(_) => "an object".to_owned(),
        Json::String(text) => format!("\"{}\"", Quoted(text)),
        Json::Null | Json::Bool(_) | Json::Number(_) => value.to_string(),
    }
}
