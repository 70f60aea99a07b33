//! What most formats share: a call is a JSON object with a name and arguments.

use serde_json::Value;
use serde_json::value::RawValue;

use crate::Call;

/// What stands at the beginning of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Json<'a> {
    /// It may still become a value.
    Open,
    /// A value, and where it ends.
    Whole(&'a str, usize),
    Broken,
}

/// Reads one JSON value at the beginning of a text, behind white space.
pub(crate) fn leading_value(text: &str) -> Json<'_> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    match values.next() {
        None => Json::Open,
        Some(Ok(value)) => {
            let end = values.byte_offset();
            // A number goes on as long as digits come.
            let is_closed = value.get().ends_with(['}', ']', '"']) || end < text.len();
            if is_closed { Json::Whole(value.get(), end) } else { Json::Open }
        }
        Some(Err(error)) if error.is_eof() || is_inside_number(text) => Json::Open,
        Some(Err(_)) => Json::Broken,
    }
}

/// Whether a text ends where only a digit is missing: the parser calls that an error, not an end.
fn is_inside_number(text: &str) -> bool {
    text.ends_with(['-', '+', '.', 'e', 'E']) && {
        let longer = format!("{text}0");
        let mut values = serde_json::Deserializer::from_str(&longer).into_iter::<&RawValue>();
        matches!(values.next(), Some(Err(error)) if error.is_eof())
    }
}

/// The calls of a JSON text: an object, or a list of them. `None`: it is something else.
pub(crate) fn calls_of(json: &str) -> Option<Vec<Call>> {
    if json.starts_with('[') {
        let list: Vec<&RawValue> = serde_json::from_str(json).ok()?;
        let calls: Option<Vec<Call>> = list.iter().map(|item| call_of(item.get())).collect();
        return calls.filter(|calls| !calls.is_empty());
    }
    call_of(json).map(|call| vec![call])
}

/// One call. Llama says `parameters` where others say `arguments`; some repeat OpenAI's own form,
/// with a `function` inside.
fn call_of(json: &str) -> Option<Call> {
    let object: std::collections::BTreeMap<String, &RawValue> = serde_json::from_str(json).ok()?;
    if let Some(inner) = object.get("function").filter(|inner| inner.get().starts_with('{')) {
        return call_of(inner.get());
    }
    let name = object.get("name").or_else(|| object.get("function"))?;
    let name: String = serde_json::from_str(name.get()).ok()?;
    let arguments = object.get("arguments").or_else(|| object.get("parameters"));
    let arguments = match arguments {
        None => "{}".to_owned(),
        Some(raw) => object_text(raw.get())?,
    };
    (!name.is_empty()).then_some(Call { name, arguments })
}

/// Arguments as an object: some models write it as a text, or `null` for none.
pub(crate) fn object_text(raw: &str) -> Option<String> {
    match raw.as_bytes().first()? {
        b'{' => Some(raw.to_owned()),
        b'n' => Some("{}".to_owned()),
        b'"' => {
            let inner: String = serde_json::from_str(raw).ok()?;
            match serde_json::from_str::<Value>(&inner) {
                Ok(Value::Object(_)) => Some(inner),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The name of a call whose arguments have begun, and where: for arguments that are told as they
/// come. Only what stands in the usual order is seen.
pub(crate) fn begun(text: &str) -> Option<(String, usize)> {
    let mut rest = text.trim_start().strip_prefix('[').unwrap_or(text);
    rest = rest.trim_start().strip_prefix('{')?;
    rest = member(rest, "name")?;
    let Json::Whole(name, end) = leading_value(rest) else { return None };
    let name: String = serde_json::from_str(name).ok()?;
    rest = rest[end..].trim_start().strip_prefix(',')?;
    rest = member(rest, "arguments").or_else(|| member(rest, "parameters"))?.trim_start();
    rest.starts_with('{').then(|| (name, text.len() - rest.len()))
}

/// What follows `"key":`.
fn member<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let rest = text.trim_start().strip_prefix('"')?.strip_prefix(key)?.strip_prefix('"')?;
    rest.trim_start().strip_prefix(':')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn values_end_where_they_end() {
        for (text, expected) in [
            ("", Json::Open),
            (" {\"a\": [1, \"}\"", Json::Open),
            ("{\"a\": \"}\\\"\"} x", Json::Whole("{\"a\": \"}\\\"\"}", 12)),
            ("{\"a\": -2.", Json::Open),
            ("{\"a\": 2.5e+", Json::Open),
            ("{\"a\": 2..", Json::Broken),
            ("{\"a\" 1}", Json::Broken),
            ("{a: 1}", Json::Broken),
            ("12", Json::Open),
        ] {
            assert_eq!(leading_value(text), expected, "{text}");
        }
        assert_eq!(leading_value(&"[".repeat(100_000)), Json::Open);
    }

    #[test]
    fn calls_have_a_name_and_an_object() {
        let one = |json: &str| calls_of(json).map(|calls| calls[0].arguments.clone());
        for (json, expected) in [
            (r#"{"name": "f", "arguments": {"a": 1.50}}"#, Some(r#"{"a": 1.50}"#)),
            (r#"{"parameters": {"b": 2}, "name": "f"}"#, Some(r#"{"b": 2}"#)),
            (r#"{"name": "f"}"#, Some("{}")),
            (r#"{"name": "f", "arguments": null}"#, Some("{}")),
            (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, Some("{\"a\": 1}")),
            (r#"{"type": "function", "function": {"name": "f"}}"#, Some("{}")),
            (r#"[{"name": "f", "arguments": {}}]"#, Some("{}")),
            (r#"{"name": "", "arguments": {}}"#, None),
            (r#"{"name": "f", "arguments": [1]}"#, None),
            (r#"{"name": "f", "arguments": "no object"}"#, None),
            (r#"{"nam": "f"}"#, None),
            ("[]", None),
            ("5", None),
        ] {
            assert_eq!(one(json).as_deref(), expected, "{json}");
        }
    }

    #[test]
    fn a_beginning_is_seen_when_its_arguments_begin() {
        let text = r#"{"name": "f", "arguments": {"a"#;
        let (name, at) = begun(text).unwrap();
        assert_eq!((name.as_str(), &text[at..]), ("f", "{\"a"));
        assert_eq!(begun(&text[..20]), None);
        assert_eq!(begun(r#"[{"name": "f", "parameters": {"#).unwrap().0, "f");
    }
}
