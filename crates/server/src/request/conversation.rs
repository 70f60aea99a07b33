//! Which messages does a chat request hold?

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::Fields;
use super::fields::{Rest, only_labels};
use super::text_or_list::TextOrList;
use crate::reply::ApiError;

/// A turn of 10 bytes each would fill the default context of today's models many times over.
pub(super) const MESSAGES_MAX: usize = 4096;
/// Roles that chat templates know.
const ROLES: &[&str] = &["assistant", "developer", "system", "tool", "user"];
/// The older name of `tool`.
const FUNCTION_ROLE: &str = "function";

/// A message as clients send it; the fields that OpenAI's own replies hold may come back as null.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    role: String,
    content: Option<TextOrList<Part>>,
    name: Option<String>,
    reasoning_content: Option<String>,
    /// The same by its newer name.
    reasoning: Option<String>,
    #[schemars(with = "Option<Vec<Value>>")]
    annotations: Option<Vec<IgnoredAny>>,
    #[schemars(with = "Option<Value>")]
    audio: Option<IgnoredAny>,
    /// The older form of one call.
    function_call: Option<WireFunction>,
    refusal: Option<String>,
    tool_call_id: Option<String>,
    tool_calls: Option<Vec<WireCall>>,
}

/// A call as earlier answers told of it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireCall {
    id: Option<String>,
    /// There is one that has a function.
    #[serde(rename = "type")]
    _kind: Option<String>,
    /// Of a stream's piece, where a client sends that back.
    #[serde(rename = "index")]
    _index: Option<u32>,
    function: Option<WireFunction>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireFunction {
    name: String,
    /// A JSON object, or the text of one.
    arguments: Option<Value>,
}

#[derive(Deserialize, JsonSchema)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

/// Fields of parts that say what to cache, which is found by itself here.
const PART_LABELS: &[&str] = &["cache_control", "prompt_cache_breakpoint"];

pub(crate) fn read_messages(fields: &mut Fields<'_>) -> Result<Vec<chat::Message>, ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some("messages"), text));
    let Some(messages) = fields.typed::<Vec<WireMessage>>("messages")? else {
        return refuse("messages is missing: send at least one".to_owned());
    };
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let count = messages.len();
        return refuse(format!("there are {count} messages, there must be 1 to {MESSAGES_MAX}"));
    }
    messages.into_iter().enumerate().map(|(index, message)| read_message(index, message)).collect()
}

fn read_message(index: usize, message: WireMessage) -> Result<chat::Message, ApiError> {
    let place = |field: &str| format!("messages[{index}].{field}");
    let message = modern(message);
    if !ROLES.contains(&message.role.as_str()) {
        let shown: String = message.role.chars().take(40).collect();
        let text =
            format!("{} is `{shown}`, it must be one of {}", place("role"), ROLES.join(", "));
        return Err(ApiError::invalid(Some(&place("role")), text));
    }
    for (field, is_set) in [
        ("annotations", message.annotations.is_some_and(|list| !list.is_empty())),
        ("audio", message.audio.is_some()),
    ] {
        if is_set {
            let text = format!("{} is not supported: leave it out", place(field));
            return Err(ApiError::unsupported(&place(field), &text));
        }
    }
    let calls = message.tool_calls.unwrap_or_default();
    if !calls.is_empty() && message.role != "assistant" {
        let text = format!("{} is for messages of the assistant", place("tool_calls"));
        return Err(ApiError::invalid(Some(&place("tool_calls")), text));
    }
    let tool_calls = read_calls(&place("tool_calls"), calls)?;
    // What OpenAI's models decline to say is said as well.
    let declined = message.refusal.filter(|_| message.role == "assistant");
    let content = match message.content {
        Some(TextOrList::Text(text)) => Some(text),
        Some(TextOrList::List(parts)) => Some(read_parts(&place("content"), parts)?),
        None if declined.is_some() => declined,
        None if tool_calls.is_some() => None,
        None => {
            let text = format!("{} is missing: it must be text", place("content"));
            return Err(ApiError::invalid(Some(&place("content")), text));
        }
    };
    Ok(chat::Message {
        role: message.role,
        content,
        name: message.name,
        reasoning_content: message.reasoning_content.or(message.reasoning),
        tool_calls,
        tool_call_id: message.tool_call_id,
        ..chat::Message::default()
    })
}

/// The same in the fields of today, where it is of OpenAI's older form: a call that its function's
/// result answers by being next.
fn modern(mut message: WireMessage) -> WireMessage {
    if message.role == FUNCTION_ROLE {
        message.role = "tool".to_owned();
    }
    if let Some(function) = message.function_call.take() {
        let call = WireCall { id: None, _kind: None, _index: None, function: Some(function) };
        message.tool_calls.get_or_insert_default().push(call);
    }
    message
}

/// Calls as templates print them, with their arguments as objects.
fn read_calls(place: &str, calls: Vec<WireCall>) -> Result<Option<Value>, ApiError> {
    if calls.is_empty() {
        return Ok(None);
    }
    let mut read = Vec::with_capacity(calls.len());
    for (index, WireCall { id, function, .. }) in calls.into_iter().enumerate() {
        let Some(WireFunction { name, arguments }) = function else {
            let place = format!("{place}[{index}].function");
            let text = format!("{place} is missing: it has a name and arguments");
            return Err(ApiError::invalid(Some(&place), text));
        };
        read.push(template_call(id.as_deref(), &name, arguments));
    }
    Ok(Some(Value::from(read)))
}

/// An earlier call for templates.
pub(super) fn template_call(id: Option<&str>, name: &str, arguments: Option<Value>) -> Value {
    let arguments = match arguments {
        // A text that is no object is what the model wrote.
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(object @ Value::Object(_)) => object,
            _ if text.trim().is_empty() => json!({}),
            _ => Value::String(text),
        },
        Some(other) => other,
        None => json!({}),
    };
    let function = json!({"name": name, "arguments": arguments});
    match id {
        Some(id) => json!({"id": id, "type": "function", "function": function}),
        None => json!({"type": "function", "function": function}),
    }
}

/// Text parts become lines of one text, as other servers do for templates that know only text.
fn read_parts(place: &str, parts: Vec<Part>) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let place = format!("{place}[{index}]");
        let said = match part.kind.as_str() {
            "text" => part.text,
            "refusal" => part.refusal,
            other => {
                let shown: String = other.chars().take(40).collect();
                let text = format!("{place}.type is `{shown}`; only `text` parts are supported");
                return Err(ApiError::unsupported(&format!("{place}.type"), &text));
            }
        };
        only_labels(&place, &part.rest, PART_LABELS)?;
        texts.push(said.ok_or_else(|| {
            let place = format!("{place}.{}", part.kind);
            ApiError::invalid(Some(&place), format!("{place} is missing: it must be a string"))
        })?);
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(messages: &str) -> Result<Vec<chat::Message>, ApiError> {
        let body = format!("{{\"messages\": {messages}}}");
        read_messages(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn texts_and_text_parts_are_read() {
        let parts =
            "[{\"type\": \"text\", \"text\": \"a\"}, {\"type\": \"text\", \"text\": \"b\"}]";
        let read = read(&format!(
            "[{{\"role\": \"system\", \"content\": \"s\", \"name\": \"n\"}},
              {{\"role\": \"assistant\", \"content\": \"x\",
                 \"refusal\": null, \"tool_calls\": []}},
              {{\"role\": \"user\", \"content\": {parts}}}]"
        ))
        .unwrap();
        assert_eq!(read[0].name.as_deref(), Some("n"));
        assert_eq!(read[1], chat::Message::new("assistant", "x"));
        assert_eq!(read[2], chat::Message::new("user", "a\nb"));
    }

    #[test]
    fn what_another_model_declined_is_what_it_said() {
        let part = r#"[{"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}]"#;
        let field = r#"[{"role": "assistant", "content": null, "refusal": "No."}]"#;
        for messages in [part, field] {
            assert_eq!(read(messages).unwrap(), [chat::Message::new("assistant", "No.")]);
        }
        let users = read(r#"[{"role": "user", "content": null, "refusal": "No."}]"#).unwrap_err();
        assert_eq!(users.body.param.as_deref(), Some("messages[0].content"));
    }

    #[test]
    fn calls_and_results_are_read() {
        let read = read(
            r#"[{"role": "assistant", "content": null, "tool_calls": [{"id": "c1",
                "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "one"}]"#,
        )
        .unwrap();
        assert_eq!(read[0].content, None);
        let call = &read[0].tool_calls.as_ref().unwrap()[0];
        assert_eq!(call["function"]["arguments"], json!({"a": 1}));
        assert_eq!((read[1].role.as_str(), read[1].tool_call_id.as_deref()), ("tool", Some("c1")));
        let odd = template_call(None, "f", Some(Value::from("not json")));
        assert_eq!(odd["function"]["arguments"], "not json");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("[{}]", vec!["{\"role\":\"user\",\"content\":\"\"}"; 4097].join(","));
        for (messages, param) in [
            ("null", "messages"),
            ("[]", "messages"),
            ("\"hello\"", "messages"),
            (long.as_str(), "messages"),
            ("[1]", "messages[0]"),
            ("[{\"content\": \"x\"}]", "messages[0]"),
            ("[{\"role\": \"user\"}]", "messages[0].content"),
            ("[{\"role\": \"user\", \"content\": null}]", "messages[0].content"),
            ("[{\"role\": \"user\", \"content\": 5}]", "messages[0].content"),
            ("[{\"role\": \"pirate\", \"content\": \"\"}]", "messages[0].role"),
            (
                "[{\"role\": \"user\", \"content\": \"\", \"tool_calls\": [{}]}]",
                "messages[0].tool_calls",
            ),
            ("[{\"role\": \"user\", \"content\": \"\", \"x\": 1}]", "messages[0].x"),
            (
                "[{\"role\": \"user\", \"content\": [{\"type\": \"image_url\", \
                 \"image_url\": {\"url\": \"data:\"}}]}]",
                "messages[0].content[0].type",
            ),
            (
                "[{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]",
                "messages[0].content[0].text",
            ),
            (
                "[{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{}]}]",
                "messages[0].tool_calls[0].function",
            ),
            (
                "[{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"\", \
                 \"cache_control\": {}, \"x\": 1}]}]",
                "messages[0].content[0].x",
            ),
            (
                "[{\"role\": \"assistant\", \"tool_calls\": [{\"index\": 0, \"x\": 1}]}]",
                "messages[0].tool_calls[0].x",
            ),
        ] {
            let error = read(messages).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{messages:.80}");
        }
    }
}
