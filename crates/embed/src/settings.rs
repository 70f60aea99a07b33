//! Which keys does a JSON object set?

use serde_json::Value;

/// Keys of the configuration and their values in YAML, of which JSON is a part.
///
/// # Errors
/// When the text is no JSON object.
pub(crate) fn keys(text: &str) -> Result<Vec<(String, String)>, String> {
    let wrong = "the settings are no JSON object of keys and values";
    match serde_json::from_str(text).map_err(|error| format!("{wrong}: {error}"))? {
        Value::Object(keys) => {
            Ok(keys.into_iter().map(|(key, value)| (key, yaml(value))).collect())
        }
        _ => Err(wrong.to_owned()),
    }
}

/// A text stands for itself, as after `--set`.
fn yaml(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn values_are_written_as_after_set() {
        let keys = keys(r#"{"device": "cpu", "threads": 2, "sharing.enabled": false}"#).unwrap();
        let text: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut sorted = text.clone();
        sorted.sort();
        assert_eq!(sorted, ["device=cpu", "sharing.enabled=false", "threads=2"]);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "[]", "3", "{\"a\":"] {
            assert!(keys(text).unwrap_err().contains("JSON object"), "{text}");
        }
    }
}
