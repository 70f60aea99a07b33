//! Which messages does a request in Anthropic's form hold?

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::Fields;
use super::context_edits::{forget_thoughts, read_context_edits};
use super::conversation::{MESSAGES_MAX, template_call};
use super::fields::{Rest, only_labels};
use super::text_or_list::TextOrList;
use crate::reply::ApiError;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    role: String,
    content: TextOrList<Block>,
}

#[derive(Deserialize, JsonSchema)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    /// Of a call, and of its result.
    id: Option<String>,
    name: Option<String>,
    input: Option<Value>,
    tool_use_id: Option<String>,
    content: Option<TextOrList<ResultBlock>>,
    is_error: Option<bool>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

/// What a tool gave back.
#[derive(Deserialize, JsonSchema)]
struct ResultBlock {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    /// Of a reference to a tool that was found.
    tool_name: Option<String>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

/// The conversation, and which tools its results refer to.
pub(crate) struct AnthropicMessages {
    pub(crate) messages: Vec<chat::Message>,
    pub(crate) tools_named: Vec<String>,
    /// The answer goes on with the last message.
    pub(crate) is_continued: bool,
}

/// Fields of blocks that change no answer here: what is cached is found by itself, and a signature
/// is Anthropic's own.
const LABELS: &[&str] = &["cache_control", "caller", "citations", "signature", "toolset_name"];

/// The conversation, the system's text first, without the thoughts that `context_management` leaves
/// out.
///
/// # Errors
/// 400 naming the place that is missing, wrong or not supported.
pub(crate) fn read_anthropic_messages(
    fields: &mut Fields<'_>,
) -> Result<AnthropicMessages, ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some("messages"), text));
    let (mut conversation, mut tools_named) = (Vec::new(), Vec::new());
    if let Some(system) = fields.typed::<TextOrList<Block>>("system")? {
        let system = read_message("system", "system", system, &mut tools_named)?;
        conversation.extend(system);
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
        // Instructions come between turns too.
        if !["assistant", "system", "user"].contains(&role.as_str()) {
            let shown: String = role.chars().take(40).collect();
            let text = format!("{place}.role is `{shown}`, it must be user, assistant or system");
            return Err(ApiError::invalid(Some(&format!("{place}.role")), text));
        }
        let place = format!("{place}.content");
        conversation.extend(read_message(&role, &place, content, &mut tools_named)?);
    }
    let is_continued = conversation.last().is_some_and(|last| last.role == "assistant");
    if is_continued && chat::Conversation::open_text(&conversation).is_none() {
        let text = "the last message is the assistant's and has no text to go on with: end with \
                    the results of its calls, or with a message of the user";
        return Err(ApiError::invalid(Some("messages"), text));
    }
    if let Some(turns) = read_context_edits(fields)? {
        forget_thoughts(&mut conversation, turns);
    }
    Ok(AnthropicMessages { messages: conversation, tools_named, is_continued })
}

/// The messages of one turn: what tools gave back, then what was said.
fn read_message(
    role: &str,
    place: &str,
    content: TextOrList<Block>,
    tools_named: &mut Vec<String>,
) -> Result<Vec<chat::Message>, ApiError> {
    let blocks = match content {
        TextOrList::Text(text) => return Ok(vec![chat::Message::new(role, &text)]),
        TextOrList::List(blocks) => blocks,
    };
    let mut turn = Turn::default();
    for (index, block) in blocks.into_iter().enumerate() {
        turn.add(role, &format!("{place}[{index}]"), block)?;
    }
    tools_named.append(&mut turn.tools_named);
    Ok(turn.messages(role))
}

#[derive(Default)]
struct Turn {
    texts: Vec<String>,
    thoughts: Vec<String>,
    calls: Vec<Value>,
    results: Vec<chat::Message>,
    tools_named: Vec<String>,
}

impl Turn {
    fn add(&mut self, role: &str, place: &str, block: Block) -> Result<(), ApiError> {
        let missing = |field: &str| {
            let text = format!("{place}.{field} is missing");
            ApiError::invalid(Some(&format!("{place}.{field}")), text)
        };
        let kind = block.kind.as_str();
        let is_assistant = role == "assistant";
        let is_known = matches!(kind, "text" | "thinking" | "tool_use" | "tool_result");
        if is_known {
            only_labels(place, &block.rest, LABELS)?;
        }
        match kind {
            "text" => self.texts.push(block.text.ok_or_else(|| missing("text"))?),
            "thinking" if is_assistant => {
                self.thoughts.push(block.thinking.ok_or_else(|| missing("thinking"))?);
            }
            // Nobody but Anthropic can read it.
            "redacted_thinking" if is_assistant => {}
            "tool_use" if is_assistant => {
                let name = block.name.ok_or_else(|| missing("name"))?;
                self.calls.push(template_call(block.id.as_deref(), &name, block.input));
            }
            "tool_result" if role == "user" => {
                let id = block.tool_use_id.ok_or_else(|| missing("tool_use_id"))?;
                let text = result_text(place, block.content, &mut self.tools_named)?;
                let text =
                    if block.is_error == Some(true) { format!("Error: {text}") } else { text };
                let message = chat::Message::new("tool", &text);
                self.results.push(chat::Message { tool_call_id: Some(id), ..message });
            }
            kind => {
                let shown: String = kind.chars().take(40).collect();
                let text = format!("{place}.type is `{shown}`, which is not supported here");
                return Err(ApiError::unsupported(&format!("{place}.type"), &text));
            }
        }
        Ok(())
    }

    fn messages(self, role: &str) -> Vec<chat::Message> {
        let Self { texts, thoughts, calls, results: mut messages, tools_named: _ } = self;
        if texts.is_empty() && !messages.is_empty() {
            return messages;
        }
        let content = (!texts.is_empty() || calls.is_empty()).then(|| texts.join("\n"));
        messages.push(chat::Message {
            role: role.to_owned(),
            content,
            reasoning_content: (!thoughts.is_empty()).then(|| thoughts.join("\n")),
            tool_calls: (!calls.is_empty()).then(|| Value::from(calls)),
            ..chat::Message::default()
        });
        messages
    }
}

fn result_text(
    place: &str,
    content: Option<TextOrList<ResultBlock>>,
    tools_named: &mut Vec<String>,
) -> Result<String, ApiError> {
    let blocks = match content {
        None => return Ok(String::new()),
        Some(TextOrList::Text(text)) => return Ok(text),
        Some(TextOrList::List(blocks)) => blocks,
    };
    let mut texts = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.into_iter().enumerate() {
        let known = || only_labels(&format!("{place}.content[{index}]"), &block.rest, LABELS);
        match (block.kind.as_str(), block.text, block.tool_name) {
            ("text", Some(text), _) => {
                known()?;
                texts.push(text);
            }
            ("tool_reference", _, Some(name)) => {
                known()?;
                texts.push(format!("The tool `{name}` can be called now."));
                tools_named.push(name);
            }
            (kind, ..) => {
                let place = format!("{place}.content[{index}].type");
                return Err(ApiError::no_text(&place, kind));
            }
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(body: &str) -> Result<Vec<chat::Message>, ApiError> {
        let read = read_anthropic_messages(&mut Fields::parse(body.as_bytes()).unwrap());
        read.map(|read| read.messages)
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
    fn calls_and_results_become_messages() {
        let body = r#"{"messages": [{"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f",
                "input": {"x": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": true,
                 "content": [{"type": "text", "text": "two"}]},
                {"type": "text", "text": "b"}]}]}"#;
        let messages = read(body).unwrap();
        assert_eq!(messages[1].content, None);
        let call = &messages[1].tool_calls.as_ref().unwrap()[0];
        assert_eq!((&call["id"], &call["function"]["arguments"]["x"]), (&"t1".into(), &1.into()));
        assert_eq!(messages[2].tool_call_id.as_deref(), Some("t1"));
        assert_eq!(messages[3].content.as_deref(), Some("Error: two"));
        assert_eq!(messages[4], chat::Message::new("user", "b"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (messages, param) in [
            ("null", "messages"),
            ("[]", "messages"),
            ("[{\"role\": \"user\"}]", "messages[0]"),
            ("[{\"role\": \"tool\", \"content\": \"x\"}]", "messages[0].role"),
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
            (
                "[{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\",\"tool_use_id\":\"t\",\
                 \"content\":[{\"type\":\"text\",\"text\":\"\",\"cache_control\":{},\"z\":1}]}]}]",
                "messages[0].content[0].content[0].z",
            ),
            (
                "[{\"role\": \"assistant\", \"content\": [{\"type\": \"tool_use\", \"id\": \"a\", \
                 \"name\": \"b\", \"input\": {}}]}]",
                "messages",
            ),
        ] {
            let error = read(&format!("{{\"messages\": {messages}}}")).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{messages}");
        }
    }
}
