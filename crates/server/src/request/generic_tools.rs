//! How does a model hear of tools whose template knows none? In Hermes' words, which small models
//! have seen most: the tools in the system's message, calls and results as texts.

use serde_json::{Value, json};

const BEFORE: &str = "# Tools\n\nYou may call one or more functions to assist with the user \
                      query.\n\nYou are provided with function signatures within <tools></tools> \
                      XML tags:\n<tools>";
const AFTER: &str = "\n</tools>\n\nFor each function call, return a json object with function name \
                     and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n\
                     {\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";

/// The conversation with its tools, calls and results as texts.
pub(super) fn explain(messages: Vec<chat::Message>, listed: &[Value]) -> Vec<chat::Message> {
    let mut told: Vec<chat::Message> = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        let message = as_text(message);
        match told.last_mut() {
            // Results that came together are one turn: most templates want turns to alternate.
            Some(last) if last.role == "user" && message.is_result => {
                let content = last.content.get_or_insert_default();
                content.push('\n');
                content.push_str(message.message.content.as_deref().unwrap_or_default());
            }
            _ => told.push(message.message),
        }
    }
    if listed.is_empty() {
        return told;
    }
    let mut text = BEFORE.to_owned();
    for tool in listed {
        text.push('\n');
        text.push_str(&tool.to_string());
    }
    text.push_str(AFTER);
    match told.first_mut().filter(|first| matches!(first.role.as_str(), "system" | "developer")) {
        Some(system) => {
            let before = system.content.take().unwrap_or_default();
            system.content = Some(format!("{before}\n\n{text}"));
        }
        None => told.insert(0, chat::Message::new("system", &text)),
    }
    told
}

struct Told {
    message: chat::Message,
    is_result: bool,
}

fn as_text(mut message: chat::Message) -> Told {
    if message.role == "tool" {
        let content = message.content.unwrap_or_default();
        let text = format!("<tool_response>\n{content}\n</tool_response>");
        return Told { message: chat::Message::new("user", &text), is_result: true };
    }
    let calls = message.tool_calls.take();
    let calls = calls.as_ref().and_then(Value::as_array).into_iter().flatten();
    let mut content = message.content.take().unwrap_or_default();
    for call in calls {
        let function = &call["function"];
        let call = json!({"name": function["name"], "arguments": function["arguments"]});
        if !content.is_empty() {
            content.push('\n');
        }
        content.push_str(&format!("<tool_call>\n{call}\n</tool_call>"));
    }
    message.content = Some(content);
    Told { message, is_result: false }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tools_calls_and_results_become_texts() {
        let calls = json!([{"id": "1", "type": "function",
            "function": {"name": "f", "arguments": {"a": 1}}}]);
        let called = chat::Message::new("assistant", "");
        let messages = vec![
            chat::Message::new("user", "Go"),
            chat::Message { tool_calls: Some(calls), content: None, ..called },
            chat::Message::new("tool", "one"),
            chat::Message::new("tool", "two"),
        ];
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let told = explain(messages, &[tool]);
        assert_eq!(told.len(), 4);
        assert!(told[0].content.as_ref().unwrap().contains("\n{\"type\":\"function\""));
        let call = "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":1}}\n</tool_call>";
        assert_eq!(told[2].content.as_deref(), Some(call));
        let result = |text: &str| format!("<tool_response>\n{text}\n</tool_response>");
        let results = format!("{}\n{}", result("one"), result("two"));
        assert_eq!(
            (told[3].role.as_str(), told[3].content.as_deref()),
            ("user", Some(results.as_str()))
        );
    }

    #[test]
    fn without_tools_nothing_is_added() {
        let messages = vec![chat::Message::new("system", "s"), chat::Message::new("user", "Go")];
        assert_eq!(explain(messages.clone(), &[]), messages);
    }
}
