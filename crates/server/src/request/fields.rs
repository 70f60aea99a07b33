//! Which fields does the object have, and are they of the right kind?
//!
//! The object is split into names and raw texts without building a tree, so that a body costs its
//! own size and no more; each field is then read as what it must be. `null` counts as absent.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::known_field::{Kind, KnownField};
use crate::reply::ApiError;

/// The fields of a body that have not been read yet.
pub(crate) struct Fields<'a> {
    given: Vec<(String, &'a RawValue)>,
    /// Every one that was asked for: what an unknown name is compared with.
    known: Vec<KnownField>,
    description: Option<Description>,
}

/// Of a request that is to be described and not answered: what its endpoint knows, once it has read
/// all of it. Put into a request by the server itself only.
#[derive(Clone, Default)]
pub(crate) struct Description(pub(crate) Arc<Mutex<Option<Vec<KnownField>>>>);

/// OpenAI and vLLM together know about 80.
const FIELDS_MAX: usize = 256;
/// Values that ask for nothing are short.
const NEUTRAL_BYTES_MAX: usize = 64;

impl<'a> Fields<'a> {
    /// # Errors
    /// 400 where the body is not one JSON object or names a field twice.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let given: Split<'a> = serde_json::from_slice(body).map_err(|error| {
            ApiError::invalid(None, format!("the body is not a JSON object of fields: {error}"))
        })?;
        Ok(Self { given: given.0, known: Vec::new(), description: None })
    }

    /// The same of a request that is only to be described, where it is one.
    pub(crate) fn described(self, description: Option<Description>) -> Self {
        Self { description, ..self }
    }

    /// The raw text of a field; `None` when it is absent or null.
    fn take(&mut self, name: &'static str, kind: Kind) -> Option<&'a str> {
        self.known.push(KnownField { name, kind });
        let index = self.given.iter().position(|(given, _)| given == name)?;
        let raw = self.given.swap_remove(index).1.get();
        (raw != "null").then_some(raw)
    }

    /// An object whose own fields are read as these are.
    pub(crate) fn raw(&mut self, name: &'static str) -> Option<&'a str> {
        self.take(name, Kind::Object)
    }

    /// A field's value, which is still to be read.
    pub(crate) fn peek(&self, name: &str) -> Result<Option<Value>, ApiError> {
        let Some((_, raw)) = self.given.iter().find(|(given, _)| given == name) else {
            return Ok(None);
        };
        let value: Value = serde_json::from_str(raw.get())
            .map_err(|error| ApiError::invalid(Some(name), format!("{name}: {error}")))?;
        Ok(Some(value).filter(|value| !value.is_null()))
    }

    /// How long a field's text is that has not been read yet.
    pub(crate) fn raw_bytes(&self, name: &str) -> Option<usize> {
        self.given.iter().find(|(given, _)| given == name).map(|(_, raw)| raw.get().len())
    }

    /// Any value of a shape that serde derives; errors name the place inside the field.
    pub(crate) fn typed<T: DeserializeOwned + JsonSchema>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.take(name, Kind::of::<T>()) else { return Ok(None) };
        let mut deserializer = serde_json::Deserializer::from_str(raw);
        serde_path_to_error::deserialize(&mut deserializer)
            .map(Some)
            .map_err(|error| wrong_shape(name, &error.path().to_string(), error.inner()))
    }

    pub(crate) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.take(name, Kind::Boolean) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(raw) => Err(wrong_kind(name, "true or false", raw)),
        }
    }

    pub(crate) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let Some(raw) = self.take(name, Kind::Text) else { return Ok(None) };
        let text = serde_json::from_str(raw);
        text.map(Some).map_err(|error: serde_json::Error| match kind_of(raw) {
            "a string" => broken_text(name, name, &error),
            _ => wrong_kind(name, "a string", raw),
        })
    }

    pub(crate) fn number(
        &mut self,
        name: &'static str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ApiError> {
        let kind = Kind::Number(range.clone());
        let Some(raw) = self.take(name, kind) else { return Ok(None) };
        let value = as_number(name, "a number", raw)?;
        if range.contains(&value) {
            return Ok(Some(value));
        }
        Err(out_of_range(name, raw, range.start(), range.end()))
    }

    /// A whole number; `3.0` counts as one, since some languages know no other.
    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let kind = Kind::Whole(range.clone());
        let Some(raw) = self.take(name, kind) else { return Ok(None) };
        let value = match raw.parse::<i64>() {
            Ok(value) => value,
            Err(_) => as_whole(name, raw, &range)?,
        };
        if range.contains(&value) {
            return Ok(Some(value));
        }
        Err(out_of_range(name, raw, range.start(), range.end()))
    }

    /// A field that is accepted only when it asks for nothing: absent, null or one of `neutral`.
    pub(crate) fn neutral(
        &mut self,
        name: &'static str,
        neutral: &'static [&'static str],
    ) -> Result<(), ApiError> {
        let Some(raw) = self.take(name, Kind::Only(neutral)) else { return Ok(()) };
        let same = |allowed: &&str| {
            let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
            raw == *allowed || (raw.len() <= NEUTRAL_BYTES_MAX && parse(raw) == parse(allowed))
        };
        if neutral.iter().any(same) {
            return Ok(());
        }
        let text = if neutral.is_empty() {
            format!("`{name}` is not supported: leave it out")
        } else {
            format!("`{name}` is supported only as {}: leave it out", neutral.join(" or "))
        };
        Err(ApiError::unsupported(name, &text))
    }

    /// A field that names the caller's own things and changes no answer, whatever it holds.
    pub(crate) fn label(&mut self, name: &'static str) {
        self.take(name, Kind::Anything);
    }

    /// # Errors
    /// 400 for a field that nobody asked for.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some((name, _)) = self.given.first() else { return describe(self) };
        let shown: String = name.chars().take(100).collect();
        let hint = match config::nearest_name(name, self.known.iter().map(|field| field.name)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "leave it out".to_owned(),
        };
        let text = format!("there is no field `{shown}`: {hint}");
        Err(ApiError::unknown_field(&shown, &text))
    }
}

/// The fields of an object inside a body that were not read.
pub(super) type Rest = BTreeMap<String, IgnoredAny>;

/// # Errors
/// 400 for a field of the object at `place` that is none of `labels`, which change no answer.
pub(super) fn only_labels(place: &str, rest: &Rest, labels: &[&str]) -> Result<(), ApiError> {
    let Some(name) = rest.keys().find(|name| !labels.contains(&name.as_str())) else {
        return Ok(());
    };
    let place = format!("{place}.{}", name.chars().take(40).collect::<String>());
    Err(ApiError::unknown_field(&place, &format!("there is no field {place}: leave it out")))
}

/// All that is known of a request that is to be described; it ends here.
fn describe(fields: Fields<'_>) -> Result<(), ApiError> {
    let Some(Description(told)) = fields.description else { return Ok(()) };
    *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(fields.known);
    Err(ApiError::internal())
}

fn as_number(name: &str, expected: &str, raw: &str) -> Result<f64, ApiError> {
    if kind_of(raw) != "a number" {
        return Err(wrong_kind(name, expected, raw));
    }
    // JSON knows 1e999; reading it as infinity puts it out of every range.
    Ok(raw.parse().unwrap_or(f64::INFINITY))
}

fn as_whole(name: &str, raw: &str, range: &RangeInclusive<i64>) -> Result<i64, ApiError> {
    let value = as_number(name, "a whole number", raw)?;
    if value.fract() != 0.0 && value.is_finite() {
        return Err(wrong_kind(name, "a whole number", raw));
    }
    // Beyond 2^53 a float does not say which whole number was meant.
    if value.abs() <= 9_007_199_254_740_992.0 {
        return Ok(value as i64);
    }
    Err(out_of_range(name, raw, range.start(), range.end()))
}

fn out_of_range(
    name: &str,
    raw: &str,
    low: &impl fmt::Display,
    high: &impl fmt::Display,
) -> ApiError {
    let text = format!("{name} is {}, it must be between {low} and {high}", shorten(raw));
    ApiError::invalid(Some(name), text)
}

fn wrong_kind(name: &str, expected: &str, raw: &str) -> ApiError {
    let given = if kind_of(raw) == "a number" { shorten(raw) } else { kind_of(raw).to_owned() };
    ApiError::invalid(Some(name), format!("{name} must be {expected}, it is {given}"))
}

/// JSON allows an escape such as `\ud83d` alone, which is half of a character.
fn broken_text(name: &str, place: &str, error: &serde_json::Error) -> ApiError {
    let text = format!(
        "{place} is not valid Unicode: the escape that ends at byte {} of {name} is half of a \
         surrogate pair, as \\ud83d is of \\ud83d\\ude00",
        error.column()
    );
    ApiError::invalid(Some(place), text)
}

fn shorten(raw: &str) -> String {
    raw.chars().take(40).collect()
}

fn kind_of(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// `path` is serde's place inside the field: `.` for the field itself, `[1].content` in it.
fn wrong_shape(name: &str, path: &str, error: &serde_json::Error) -> ApiError {
    let place = match path {
        "." => name.to_owned(),
        inner if inner.starts_with('[') => format!("{name}{inner}"),
        inner => format!("{name}.{inner}"),
    };
    let text = error.to_string();
    // serde's words for either half.
    if text.contains("hex escape") {
        return broken_text(name, &place, error);
    }
    // The line and column count from the field's own start: of no use to the caller.
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    ApiError::invalid(Some(&place), format!("{place}: {text}"))
}

struct Split<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Split<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SplitVisitor)
    }
}

struct SplitVisitor;

impl<'de> Visitor<'de> for SplitVisitor {
    type Value = Split<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Split<'de>, M::Error> {
        let mut given: Vec<(String, &RawValue)> = Vec::new();
        while let Some((name, raw)) = map.next_entry::<String, &RawValue>()? {
            if given.iter().any(|(before, _)| *before == name) {
                let shown: String = name.chars().take(100).collect();
                return Err(M::Error::custom(format!("the field `{shown}` is given twice")));
            }
            if given.len() == FIELDS_MAX {
                return Err(M::Error::custom(format!("more than {FIELDS_MAX} fields")));
            }
            given.push((name, raw));
        }
        Ok(Split(given))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn fields(body: &str) -> Fields<'_> {
        Fields::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn numbers_are_read_within_their_range() {
        for (raw, expected) in [("1", 1), ("1.0", 1), ("1e1", 10), ("-0", 0)] {
            let body = format!("{{\"n\": {raw}}}");
            assert_eq!(fields(&body).integer("n", 0..=10).unwrap(), Some(expected), "{raw}");
        }
        for raw in
            ["11", "-1", "1.5", "1e308", "1e999", "9223372036854775808", "\"1\"", "true", "[]"]
        {
            let body = format!("{{\"n\": {raw}}}");
            let error = fields(&body).integer("n", 0..=10).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some("n"), "{raw}");
            let error = fields(&body).number("n", 0.0..=1.0).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some("n"), "{raw}");
        }
        let body = "{\"n\": -9223372036854775808}";
        let read = fields(body).integer("n", i64::MIN..=i64::MAX).unwrap();
        assert_eq!(read, Some(i64::MIN));
    }

    #[test]
    fn half_a_character_is_said_to_be_one() {
        let error = fields(r#"{"prompt": "ab\ud83d"}"#).string("prompt").unwrap_err().body.message;
        assert!(error.contains("prompt is not valid Unicode"), "{error}");
        assert!(error.contains("half of a surrogate pair"), "{error}");
        for half in ["\\ud83d", "\\ud83d b", "\\ude00"] {
            let body = format!(r#"{{"prompt": ["a", "b{half}"]}}"#);
            let error = fields(&body).typed::<Vec<String>>("prompt").unwrap_err().body;
            assert_eq!(error.param.as_deref(), Some("prompt[1]"), "{half}");
            assert!(error.message.contains("half of a surrogate pair"), "{}", error.message);
        }
        let whole = fields(r#"{"prompt": "ab\ud83d\ude00"}"#).string("prompt").unwrap();
        assert_eq!(whole.as_deref(), Some("ab\u{1f600}"));
        let error = fields(r#"{"prompt": 1}"#).string("prompt").unwrap_err().body.message;
        assert_eq!(error, "prompt must be a string, it is 1");
    }

    #[test]
    fn null_is_absent() {
        let mut fields = fields("{\"a\": null, \"b\": null, \"c\": null, \"d\": null}");
        assert_eq!(fields.integer("a", 0..=1).unwrap(), None);
        assert_eq!(fields.string("b").unwrap(), None);
        assert_eq!(fields.typed::<Vec<u32>>("c").unwrap(), None);
        fields.neutral("d", &[]).unwrap();
        fields.finish().unwrap();
    }

    #[test]
    fn neutral_values_pass_in_any_spelling() {
        let body = "{\"a\": { \"type\" : \"text\" }, \"b\": [ ]}";
        let mut read = fields(body);
        read.neutral("a", &["{\"type\":\"text\"}"]).unwrap();
        read.neutral("b", &["[]"]).unwrap();
        let error = fields("{\"b\": [1]}").neutral("b", &["[]"]).unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some("b"));
    }

    #[test]
    fn unknown_fields_are_named_with_their_neighbour() {
        let mut read = fields("{\"temprature\": 1}");
        assert_eq!(read.number("temperature", 0.0..=2.0).unwrap(), None);
        let error = read.finish().unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some("temprature"));
        assert!(error.body.message.contains("`temperature`"), "{}", error.body.message);
    }

    #[test]
    fn places_inside_a_field_are_named() {
        let error = fields("{\"ids\": [1, \"x\"]}").typed::<Vec<u32>>("ids").unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some("ids[1]"));
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        let deep = "[".repeat(100_000);
        for body in
            ["", "1", "[]", "{", "{\"a\":1}x", "{\"a\":1,\"a\":2}", &deep, "{\"a\":\"\u{1}\"}"]
        {
            assert!(Fields::parse(body.as_bytes()).is_err(), "{body:.20}");
        }
        assert!(Fields::parse(b"{\"a\":\"\xff\"}").is_err());
        let many: Vec<String> = (0..300).map(|index| format!("\"f{index}\":1")).collect();
        assert!(Fields::parse(format!("{{{}}}", many.join(",")).as_bytes()).is_err());
    }
}
