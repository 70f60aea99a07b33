//! What may a configuration file say, as a JSON schema (draft 2020-12)?

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::Config;

/// The schema of `pelton.yaml`, with every key's meaning, range and default.
pub fn json_schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Config>();
    let mut schema = schema.to_value();
    tidy(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), json!("pelton.yaml"));
    }
    schema
}

/// A section's default repeats those of its keys, formats such as `uint16` are Rust's, and a
/// comment's lines are no lines of its text.
fn tidy(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.contains_key("properties") {
        object.remove("default");
        object.remove("title");
    }
    object.remove("format");
    if let Some(Value::String(text)) = object.get_mut("description") {
        *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    for_each_below(object, tidy);
}

fn for_each_below(object: &mut Map<String, Value>, mut change: impl FnMut(&mut Value)) {
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(&mut change);
    }
    if let Some(items) = object.get_mut("items") {
        change(items);
    }
    for alternatives in ["anyOf", "oneOf"] {
        if let Some(Value::Array(list)) = object.get_mut(alternatives) {
            list.iter_mut().for_each(&mut change);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_schema_knows_meanings_ranges_and_defaults() {
        let schema = json_schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["additionalProperties"], false);
        let port = &schema["properties"]["server"]["properties"]["port"];
        assert_eq!((&port["minimum"], &port["maximum"]), (&json!(0), &json!(65_535)));
        assert_eq!((&port["default"], &port["type"]), (&json!(8080), &json!("integer")));
        assert_eq!(port["description"], "0: any free port.");
        let threads = &schema["properties"]["threads"];
        assert_eq!((&threads["minimum"], &threads["maximum"]), (&json!(1), &json!(4096)));
        assert_eq!(schema["properties"]["speculation"]["enum"], json!(["off", "auto", "always"]));
    }

    /// The parts of the draft that the schema uses, each used as the draft defines it.
    #[test]
    fn the_schema_is_one() {
        fn check(place: &str, schema: &Value) {
            let object = schema.as_object().unwrap_or_else(|| panic!("{place} is no schema"));
            for (word, value) in object {
                let place = format!("{place}/{word}");
                match word.as_str() {
                    "$schema" | "title" | "description" | "x-path" => {
                        assert!(value.is_string(), "{place}");
                    }
                    "default" | "const" => {}
                    "x-reload" => assert!(value.is_boolean(), "{place}"),
                    "minimum" | "maximum" => assert!(value.is_number(), "{place}"),
                    "enum" => assert!(!value.as_array().unwrap().is_empty(), "{place}"),
                    "type" => {
                        let names = value.as_array().cloned().unwrap_or(vec![value.clone()]);
                        let known =
                            ["null", "boolean", "integer", "number", "string", "array", "object"];
                        assert!(names.iter().all(|name| known.contains(&name.as_str().unwrap())));
                    }
                    "required" => {
                        let names = value.as_array().unwrap();
                        let properties = object["properties"].as_object().unwrap();
                        let known = |name: &Value| properties.contains_key(name.as_str().unwrap());
                        assert!(names.iter().all(known), "{place}");
                    }
                    "properties" => {
                        let properties = value.as_object().unwrap();
                        properties
                            .iter()
                            .for_each(|(key, below)| check(&format!("{place}/{key}"), below));
                    }
                    "additionalProperties" => assert_eq!(value, false, "{place}"),
                    "items" => check(&place, value),
                    "anyOf" | "oneOf" => {
                        value.as_array().unwrap().iter().for_each(|below| check(&place, below));
                    }
                    other => {
                        panic!("{place}: `{other}` is no word that the schema is known to use")
                    }
                }
            }
        }
        check("#", &json_schema());
    }
}
