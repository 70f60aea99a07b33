//! Which messages does a request in Anthropic's form hold?

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Fields;
use super::conversation::MESSAGES_MAX;
use super::text_or_list::TextOrList;
use crate::reply::ApiError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    role: String,
    content: TextOrList<Block>,
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, IgnoredAny>,
}

/// Fields of blocks that change no answer here: what is cached is found by itself, and a signature
/// is Anthropic's own.
const LABELS: &[&str] = &["cache_control", "citations", "signature"];

/// The conversation, the system's text first.
///
/// # Errors
/// 400 naming the place that is missing, wrong or not supported.
pub(crate) fn read_anthropic_messages(
    fields: &mut Fields<'_>,
) -> Result<Vec<chat::Message>, ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some("messages"), text));
    let mut conversation = Vec::new();
    if let Some(system) = fields.typed::<TextOrList<Block>>("system")? {
        conversation.push(read_message("system", "system", system)?);
    }
    let Some(messages) = fields.typed::<Vec<WireMessage>>("messages")? else {
        return refuse("messages is missing: send at least one".to_owned());
    };
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let count = messages.len();
        return refuse(format!("there are {count} messages, there must be 1 to {MESSAGES_MAX}"));
    }
    for (index, WireMessage { role, content }) in messages.into_iter().enumerate() {
        let place = format!("messages[{index}]");
        if role != "user" && role != "assistant" {
            let shown: String = role.chars().take(40).collect();
            let text = format!("{place}.role is `{shown}`, it must be user or assistant");
            return Err(ApiError::invalid(Some(&format!("{place}.role")), text));
        }
        conversation.push(read_message(&role, &format!("{place}.content"), content)?);
    }
    if conversation.last().is_some_and(|last| last.role == "assistant") {
        let text = "the last message is the assistant's: going on with it is not supported";
        return Err(ApiError::unsupported("messages", text));
    }
    Ok(conversation)
}

fn read_message(
    role: &str,
    place: &str,
    content: TextOrList<Block>,
) -> Result<chat::Message, ApiError> {
    let blocks = match content {
        TextOrList::Text(text) => return Ok(chat::Message::new(role, &text)),
        TextOrList::List(blocks) => blocks,
    };
    let (mut texts, mut thoughts) = (Vec::new(), Vec::new());
    for (index, block) in blocks.into_iter().enumerate() {
        let place = format!("{place}[{index}]");
        let unknown = block.rest.keys().find(|name| !LABELS.contains(&name.as_str()));
        let missing = |field: &str| {
            let text = format!("{place}.{field} is missing: it must be a string");
            ApiError::invalid(Some(&format!("{place}.{field}")), text)
        };
        match (block.kind.as_str(), unknown) {
            ("text" | "thinking", Some(name)) => {
                let place = format!("{place}.{}", name.chars().take(40).collect::<String>());
                let text = format!("there is no field {place}");
                return Err(ApiError::unknown_field(&place, &text));
            }
            ("text", None) => texts.push(block.text.ok_or_else(|| missing("text"))?),
            ("thinking", None) if role == "assistant" => {
                thoughts.push(block.thinking.ok_or_else(|| missing("thinking"))?);
            }
            // Nobody but Anthropic can read it.
            ("redacted_thinking", _) if role == "assistant" => {}
            (kind, _) => {
                let shown: String = kind.chars().take(40).collect();
                let text = format!("{place}.type is `{shown}`; only `text` blocks are supported");
                return Err(ApiError::unsupported(&format!("{place}.type"), &text));
            }
        }
    }
    let reasoning_content = (!thoughts.is_empty()).then(|| thoughts.join("\n"));
    Ok(chat::Message { reasoning_content, ..chat::Message::new(role, &texts.join("\n")) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(body: &str) -> Result<Vec<chat::Message>, ApiError> {
        read_anthropic_messages(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn blocks_become_texts() {
        let body = r#"{"system": [{"type": "text", "text": "s", "cache_control": {}}], "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "b"}]},
            {"role": "user", "content": [
                {"type": "text", "text": "c"}, {"type": "text", "text": "d"}]}]}"#;
        let messages = read(body).unwrap();
        assert_eq!(messages[0], chat::Message::new("system", "s"));
        assert_eq!(messages[2].reasoning_content.as_deref(), Some("hm"));
        assert_eq!(messages[2].content.as_deref(), Some("b"));
        assert_eq!(messages[3], chat::Message::new("user", "c\nd"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (messages, param) in [
            ("null", "messages"),
            ("[]", "messages"),
            ("[{\"role\": \"user\"}]", "messages[0]"),
            ("[{\"role\": \"system\", \"content\": \"x\"}]", "messages[0].role"),
            ("[{\"role\": \"user\", \"content\": 5}]", "messages[0].content"),
            ("[{\"role\": \"user\", \"content\": \"x\", \"y\": 1}]", "messages[0].y"),
            (
                "[{\"role\": \"user\", \"content\": [{\"type\": \"image\", \"source\": {}}]}]",
                "messages[0].content[0].type",
            ),
            (
                "[{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]",
                "messages[0].content[0].text",
            ),
            (
                "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"\",\"z\":1}]}]",
                "messages[0].content[0].z",
            ),
            ("[{\"role\": \"assistant\", \"content\": \"x\"}]", "messages"),
        ] {
            let error = read(&format!("{{\"messages\": {messages}}}")).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{messages}");
        }
    }
}
