//! Which values are meant where markup holds arguments as bare texts? The tool's schema says.

use serde_json::{Map, Value};

use crate::Tool;

/// A text as the value that the parameter's schema asks for; a text that is no such value stays
/// one, for the tool to judge.
pub(crate) fn typed(tool: Option<&Tool>, parameter: &str, text: &str) -> Value {
    let schema = tool.and_then(|tool| tool.parameter(parameter));
    if schema.is_some_and(asks_for_text) {
        return Value::from(text);
    }
    let trimmed = text.trim();
    // Python's words, which some models write.
    let json = match trimmed {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    serde_json::from_str(json).unwrap_or_else(|_| Value::from(text))
}

/// Whether a text is the only or the first kind of value.
fn asks_for_text(schema: &Value) -> bool {
    let is_text = |kind: &Value| kind == "string";
    match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is_text),
        Some(kind) => is_text(kind),
        None => schema
            .get("enum")
            .and_then(Value::as_array)
            .is_some_and(|values| values.iter().all(Value::is_string)),
    }
}

/// The text of an object of arguments.
pub(crate) fn object(arguments: Map<String, Value>) -> String {
    Value::Object(arguments).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_decide() {
        let properties = json!({"s": {"type": "string"}, "i": {"type": "integer"},
            "e": {"enum": ["1", "2"]}, "n": {"type": ["string", "null"]}, "o": {"type": "object"}});
        let parameters = json!({"type": "object", "properties": properties});
        let tool = Tool { name: "f".to_owned(), parameters };
        for (parameter, text, expected) in [
            ("s", "12", json!("12")),
            ("s", " a\n", json!(" a\n")),
            ("i", "12", json!(12)),
            ("i", "twelve", json!("twelve")),
            ("e", "1", json!("1")),
            ("n", "null", json!("null")),
            ("o", "{\"a\": [1]}", json!({"a": [1]})),
            ("unknown", "True", json!(true)),
            ("unknown", "text", json!("text")),
        ] {
            assert_eq!(typed(Some(&tool), parameter, text), expected, "{parameter} {text}");
        }
        assert_eq!(typed(None, "x", "1.5"), json!(1.5));
    }
}
