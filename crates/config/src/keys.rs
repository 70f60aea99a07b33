//! What is there to know about each key? All of it is read from the schema, so nothing is written
//! twice.

use serde_json::{Number, Value};

use crate::schema::json_schema;

/// One key of the configuration, or of an item of a list in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// As in `limits.waiting_max`.
    pub path: String,
    pub meaning: String,
    pub kind: Kind,
    /// `null` is allowed and means that the key is absent.
    pub nullable: bool,
    pub default: Value,
    pub least: Option<Number>,
    pub most: Option<Number>,
    /// A running server takes it up at SIGHUP.
    pub reload: bool,
    pub place: Option<Place>,
}

/// What a key's value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    Truth,
    Whole,
    Real,
    Text,
    TruthOrText,
    Choice(Vec<String>),
    WholeOr(Vec<String>),
    List(Box<Key>),
    /// Of an item of a list.
    Record(Vec<Key>),
}

/// What is to be at the path that a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    File,
    /// It is made when needed, in a folder that is there.
    Folder,
}

/// A section and the meaning of it, and then its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    /// Empty: the top level.
    pub name: String,
    pub meaning: String,
    pub keys: Vec<Key>,
}

/// Every key, in the order of the schema.
pub fn keys() -> Vec<Key> {
    sections().into_iter().flat_map(|section| section.keys).collect()
}

/// Every key with its section; those of the top level come first.
pub fn sections() -> Vec<Section> {
    let schema = json_schema();
    let mut top =
        Section { name: String::new(), meaning: text(&schema, "description"), keys: Vec::new() };
    let mut sections = Vec::new();
    for (name, below) in properties(&schema) {
        if below.get("properties").is_none() {
            top.keys.push(Key::read(name, below));
            continue;
        }
        let keys =
            properties(below).map(|(key, schema)| Key::read(&format!("{name}.{key}"), schema));
        let (name, meaning) = (name.clone(), text(below, "description"));
        sections.push(Section { name, meaning, keys: keys.collect() });
    }
    sections.insert(0, top);
    sections
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn text(schema: &Value, word: &str) -> String {
    schema.get(word).and_then(Value::as_str).unwrap_or_default().to_owned()
}

impl Key {
    fn read(path: &str, schema: &Value) -> Self {
        let number = |word: &str| schema.get(word).and_then(Value::as_number).cloned();
        let (kind, nullable) = Kind::read(path, schema);
        Self {
            path: path.to_owned(),
            meaning: text(schema, "description"),
            kind,
            nullable,
            default: schema.get("default").cloned().unwrap_or(Value::Null),
            least: number("minimum"),
            most: number("maximum"),
            reload: schema.get("x-reload") == Some(&Value::Bool(true)),
            place: match schema.get("x-path").and_then(Value::as_str) {
                Some("file") => Some(Place::File),
                Some("folder") => Some(Place::Folder),
                _ => None,
            },
        }
    }

    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit_once('.').map_or(&self.path, |(_, name)| name)
    }

    /// What one of the value is, by the last words of the name.
    pub fn unit(&self) -> Option<&'static str> {
        let mut words = self.name().split('_').rev();
        let word = words.find(|word| !matches!(*word, "max" | "min" | "size"))?;
        Some(match word {
            "bytes" => "bytes",
            "kb" => "KiB",
            "mb" => "MiB",
            "gb" => "GiB",
            "ms" => "milliseconds",
            "seconds" => "seconds",
            "minutes" => "minutes",
            "tokens" => "tokens",
            "percent" => "%",
            _ => return None,
        })
    }

    /// What the value must be, in words.
    pub fn allowed(&self) -> String {
        let mut text = match &self.kind {
            Kind::Truth => "`true` or `false`".to_owned(),
            Kind::Whole => format!("a whole number{}", self.range()),
            Kind::Real => format!("a number{}", self.range()),
            Kind::Text => "text".to_owned(),
            Kind::TruthOrText => "`true`, `false` or the path of a file".to_owned(),
            Kind::Choice(names) => either(names.iter().map(|name| format!("`{name}`"))),
            Kind::WholeOr(names) => {
                let names = names.iter().map(|name| format!("`{name}`"));
                either(names.chain(["a whole number".to_owned()]))
            }
            Kind::List(item) => format!("a list, each {}", item.allowed()),
            Kind::Record(keys) => {
                let names: Vec<String> = keys.iter().map(|key| format!("`{}`", key.path)).collect();
                format!("with keys of {}", names.join(", "))
            }
        };
        if self.nullable {
            text.push_str(", or null");
        }
        text
    }

    fn range(&self) -> String {
        match (&self.least, &self.most) {
            (Some(least), Some(most)) => format!(", {least} to {most}"),
            (Some(least), None) => format!(" from {least}"),
            (None, Some(most)) => format!(" up to {most}"),
            (None, None) => String::new(),
        }
    }

    /// The value as a variable or a flag writes it; `None` where it is no value of this key.
    ///
    /// Lists are separated by commas, or written in brackets as YAML.
    pub(crate) fn parse(&self, given: &str) -> Option<Value> {
        let trimmed = given.trim();
        if self.nullable && matches!(trimmed, "" | "null") {
            return Some(Value::Null);
        }
        match &self.kind {
            Kind::Truth => truth(trimmed).map(Value::Bool),
            Kind::Whole => {
                let number = trimmed.parse::<u64>().map(Value::from);
                number.or_else(|_| trimmed.parse::<i64>().map(Value::from)).ok()
            }
            Kind::Real => trimmed.parse::<f64>().ok().and_then(Number::from_f64).map(Value::Number),
            Kind::Text => Some(Value::String(given.to_owned())),
            Kind::TruthOrText => Some(match trimmed {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                _ => Value::String(given.to_owned()),
            }),
            Kind::Choice(names) => {
                let truth = truth(trimmed).filter(|truth| names.contains(&truth.to_string()));
                let known = || names.iter().find(|name| *name == trimmed).cloned();
                truth.map(Value::Bool).or_else(|| known().map(Value::String))
            }
            Kind::WholeOr(names) => {
                let known = || names.iter().find(|name| *name == trimmed).cloned();
                let number = trimmed.parse::<u64>().map(Value::from).ok();
                number.or_else(|| known().map(Value::String))
            }
            Kind::List(_) if trimmed.is_empty() => Some(Value::Array(Vec::new())),
            Kind::List(item) if !trimmed.starts_with('[') => {
                let items = trimmed.split(',').map(|text| item.parse(text.trim()));
                items.collect::<Option<Vec<_>>>().map(Value::Array)
            }
            Kind::List(_) | Kind::Record(_) => serde_saphyr::from_str(trimmed).ok(),
        }
    }

    /// # Errors
    /// The path of what is wrong (`models[1].idle_minutes`), and what it must be.
    pub(crate) fn check(&self, path: &str, value: &Value) -> Result<(), (String, String)> {
        if self.nullable && value.is_null() {
            return Ok(());
        }
        let is_right = match (&self.kind, value) {
            (Kind::Truth, value) => value.is_boolean(),
            (Kind::Whole, value) => (value.is_u64() || value.is_i64()) && self.is_in_range(value),
            (Kind::Real, value) => value.is_number() && self.is_in_range(value),
            (Kind::Text, value) => value.is_string(),
            (Kind::TruthOrText, value) => value.is_boolean() || value.is_string(),
            (Kind::Choice(names), Value::Bool(truth)) => names.contains(&truth.to_string()),
            (Kind::Choice(names), value) => value.as_str().is_some_and(|value| {
                // As text these are no choices.
                !["true", "false"].contains(&value) && names.iter().any(|name| name == value)
            }),
            (Kind::WholeOr(names), value) => {
                let is_known = |value: &str| names.iter().any(|name| name == value);
                value.is_u64() || value.as_str().is_some_and(is_known)
            }
            (Kind::List(item), Value::Array(values)) => {
                let mut values = values.iter().enumerate();
                return values
                    .try_for_each(|(index, value)| item.check(&format!("{path}[{index}]"), value));
            }
            (Kind::Record(keys), Value::Object(values)) => {
                for (name, value) in values {
                    let below = format!("{path}.{name}");
                    let Some(key) = keys.iter().find(|key| key.path == *name) else {
                        return Err((below, "is no key here".to_owned()));
                    };
                    key.check(&below, value)?;
                }
                true
            }
            (Kind::List(_) | Kind::Record(_), _) => false,
        };
        if is_right {
            return Ok(());
        }
        Err((path.to_owned(), format!("is {value}, it must be {}", self.allowed())))
    }

    fn is_in_range(&self, value: &Value) -> bool {
        let Some(number) = value.as_f64() else { return false };
        let bound = |bound: &Option<Number>| bound.as_ref().and_then(Number::as_f64);
        bound(&self.least).is_none_or(|least| number >= least)
            && bound(&self.most).is_none_or(|most| number <= most)
    }
}

impl Kind {
    /// The kind that a schema describes, and whether it allows null.
    fn read(path: &str, schema: &Value) -> (Self, bool) {
        let types: Vec<&str> = match schema.get("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let nullable = types.contains(&"null");
        if let Some(Value::Array(values)) = schema.get("enum") {
            let names = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            return (Self::Choice(names), nullable || values.contains(&Value::Null));
        }
        if let Some(Value::Array(list)) = schema.get("anyOf").or_else(|| schema.get("oneOf")) {
            return Self::read_alternatives(path, list);
        }
        let kind = match types.iter().find(|name| **name != "null").copied() {
            Some("boolean") => Self::Truth,
            Some("integer") => Self::Whole,
            Some("number") => Self::Real,
            Some("array") => {
                let items = schema.get("items").unwrap_or(&Value::Null);
                Self::List(Box::new(Key::read(path, items)))
            }
            Some("object") => {
                Self::Record(properties(schema).map(|(key, below)| Key::read(key, below)).collect())
            }
            _ => Self::Text,
        };
        (kind, nullable)
    }

    fn read_alternatives(path: &str, list: &[Value]) -> (Self, bool) {
        let is_null = |schema: &&Value| schema.get("type").and_then(Value::as_str) == Some("null");
        let nullable = list.iter().any(|schema| is_null(&schema));
        let others: Vec<&Value> = list.iter().filter(|schema| !is_null(schema)).collect();
        if let [only] = others[..] {
            let (kind, is_nullable) = Self::read(path, only);
            return (kind, nullable || is_nullable);
        }
        let mut names: Vec<String> = others.iter().flat_map(|schema| choices(schema)).collect();
        if !names.is_empty() {
            let has = |name: &str| {
                others.iter().any(|schema| schema.get("type").is_some_and(|kind| kind == name))
            };
            if has("integer") {
                return (Self::WholeOr(names), nullable);
            }
            if has("boolean") {
                names.extend(["true", "false"].map(str::to_owned));
            }
            return (Self::Choice(names), nullable);
        }
        (Self::TruthOrText, nullable)
    }
}

/// One of these, in words.
fn either(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// Variants of an enum: those with a comment have a schema each, the others share one.
fn choices(schema: &Value) -> Vec<String> {
    let one = schema.get("const").into_iter();
    let more = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    one.chain(more).filter_map(Value::as_str).map(str::to_owned).collect()
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn key(path: &str) -> Key {
        keys().into_iter().find(|key| key.path == path).unwrap()
    }

    #[test]
    fn every_key_has_a_meaning_and_a_default_within_its_range() {
        for key in keys() {
            assert!(key.meaning.ends_with('.'), "{} has no sentence as its meaning", key.path);
            let default = key.default.clone();
            assert!(key.check(&key.path, &default).is_ok(), "{}: {default}", key.path);
            assert!(!key.path.contains("__"), "{}: two underscores part a variable", key.path);
            let is_number = matches!(key.kind, Kind::Whole | Kind::Real);
            assert!(!is_number || key.least.is_some(), "{} has no range", key.path);
        }
    }

    #[test]
    fn the_last_word_of_a_name_is_its_unit() {
        for (path, unit) in [
            ("server.request_body_bytes_max", Some("bytes")),
            ("limits.kv_cache_mb", Some("MiB")),
            ("limits.step_tokens_max", Some("tokens")),
            ("limits.sequences_max", None),
            ("breaker.pause_seconds", Some("seconds")),
            ("server.host", None),
        ] {
            assert_eq!(key(path).unit(), unit, "{path}");
        }
    }

    #[test]
    fn texts_become_values_and_wrong_ones_do_not() {
        for (path, text, expected) in [
            ("server.port", " 80 ", Some(Value::from(80))),
            ("server.port", "http", None),
            ("threads", "null", Some(Value::Null)),
            ("prefix_cache", "off", Some(Value::Bool(false))),
            ("prefix_cache", "maybe", None),
            ("gpu_layers", "20", Some(Value::from(20))),
            ("gpu_layers", "all", Some(Value::from("all"))),
            ("gpu_layers", "most", None),
            ("gpu_layers", "-1", None),
            ("speculation", "always", Some(Value::from("always"))),
            ("speculation", "true", None),
            ("weights.direct_io", "auto", Some(Value::from("auto"))),
            ("weights.direct_io", "true", Some(Value::Bool(true))),
            ("weights.direct_io", "off", Some(Value::Bool(false))),
            ("weights.direct_io", "sometimes", None),
            ("model.repack_cache", "true", Some(Value::Bool(true))),
            ("model.repack_cache", "/kept", Some(Value::from("/kept"))),
            ("server.allowed_hosts", "a, b", Some(serde_json::json!(["a", "b"]))),
            ("server.allowed_hosts", "", Some(serde_json::json!([]))),
            ("models", "[{model: a}]", Some(serde_json::json!([{"model": "a"}]))),
        ] {
            assert_eq!(key(path).parse(text), expected, "{path}: {text}");
        }
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place_and_what_it_must_be() {
        let check = |path: &str, value: Value| key(path).check(path, &value).unwrap_err();
        let (path, problem) = check("limits.waiting_max", Value::from(0));
        assert_eq!(path, "limits.waiting_max");
        assert_eq!(problem, "is 0, it must be a whole number, 1 to 65536");
        let models = serde_json::json!([{"model": "a"}, {"model": "b", "idle_minutes": 0}]);
        assert_eq!(check("models", models).0, "models[1].idle_minutes");
        let (_, problem) = check("speculation", Value::from("sometimes"));
        assert!(problem.ends_with("it must be `off`, `auto` or `always`"), "{problem}");
        let (_, problem) = check("weights.direct_io", Value::from("true"));
        assert!(problem.ends_with("it must be `auto`, `true` or `false`"), "{problem}");
        for value in [Value::from("auto"), Value::Bool(true), Value::Bool(false)] {
            assert!(key("weights.direct_io").check("weights.direct_io", &value).is_ok());
        }
        assert!(key("kv_dtype").check("kv_dtype", &Value::Null).is_ok());
    }
}
