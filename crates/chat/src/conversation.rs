//! What is put before a model: messages, and what it may call.

use serde_json::{Map, Value};

use crate::Message;

/// A conversation as the model's template is to show it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// OpenAI's list of tools; templates print it.
    pub tools: Option<Value>,
    /// The caller's own variables, as `enable_thinking`.
    pub extra: Map<String, Value>,
    /// The answer keeps the control tokens that stand around thoughts and calls, for whoever reads
    /// them.
    pub shows_markup: bool,
    /// The answer goes on with the last message, in place of answering it.
    pub is_continued: bool,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl Conversation {
    /// Bytes of what people, models and tools said in it: about what a template will print.
    pub fn text_bytes(&self) -> usize {
        let said = self.messages.iter().map(|message| {
            let Message { content, reasoning_content, thinking, tool_calls, .. } = message;
            let texts = [content, reasoning_content, thinking].into_iter().flatten();
            texts.map(String::len).sum::<usize>() + tool_calls.as_ref().map_or(0, value_bytes)
        });
        said.sum::<usize>() + self.tools.as_ref().map_or(0, value_bytes)
    }

    /// What an answer could go on with: the assistant's text at the end, if it calls nothing.
    pub fn open_text(messages: &[Message]) -> Option<&str> {
        let last = messages.last().filter(|last| last.role == "assistant")?;
        last.content.as_deref().filter(|text| !text.is_empty() && last.tool_calls.is_none())
    }

    /// The same with the arguments of earlier calls as texts, for templates that join them so.
    #[must_use]
    pub fn with_arguments_as_texts(&self) -> Option<Self> {
        let mut changed = self.clone();
        let mut is_changed = false;
        for call in
            changed.messages.iter_mut().filter_map(|m| m.tool_calls.as_mut()).flat_map(calls)
        {
            let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
            if !arguments.is_string() {
                *arguments = Value::from(arguments.to_string());
                is_changed = true;
            }
        }
        is_changed.then_some(changed)
    }

    /// The same with what the system says between turns told in the user's, for templates that let
    /// it speak at the beginning only; `None` where it speaks nowhere else.
    ///
    /// The tags are those of Claude Code, in which models that were trained on its sessions know
    /// such words.
    #[must_use]
    pub fn with_system_in_turns(&self) -> Option<Self> {
        let is_late = |(index, message): (usize, &Message)| index > 0 && is_system(message);
        if !self.messages.iter().enumerate().any(is_late) {
            return None;
        }
        let mut messages: Vec<Message> = Vec::with_capacity(self.messages.len());
        // Whether the last is a user's turn that has words of the system, and may have more.
        let mut is_open = false;
        for message in &self.messages {
            let said = message.content.as_deref().unwrap_or_default();
            match messages.last_mut() {
                Some(first) if is_system(message) && is_system(first) => {
                    add_paragraph(first, said);
                }
                Some(last) if is_system(message) => {
                    let told = format!("<system-reminder>\n{said}\n</system-reminder>");
                    if last.role == "user" {
                        add_paragraph(last, &told);
                    } else {
                        messages.push(Message::new("user", &told));
                    }
                    is_open = true;
                }
                Some(last) if is_open && message.role == "user" => {
                    add_paragraph(last, said);
                    is_open = false;
                }
                _ => {
                    messages.push(message.clone());
                    is_open = false;
                }
            }
        }
        Some(Self { messages, ..self.clone() })
    }
}

fn is_system(message: &Message) -> bool {
    matches!(message.role.as_str(), "developer" | "system")
}

fn add_paragraph(message: &mut Message, text: &str) {
    let content = message.content.get_or_insert_default();
    if !content.is_empty() {
        content.push_str("\n\n");
    }
    content.push_str(text);
}

fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| name.len() + value_bytes(value)).sum()
        }
    }
}

fn calls(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(turns: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        let messages: Vec<Message> =
            turns.iter().map(|(role, text)| Message::new(role, text)).collect();
        let changed = Conversation::from(messages).with_system_in_turns()?;
        let pair = |message: Message| (message.role, message.content.unwrap_or_default());
        Some(changed.messages.into_iter().map(pair).collect())
    }

    #[test]
    fn a_late_system_speaks_in_the_users_turn() {
        assert_eq!(told(&[("system", "s"), ("user", "a")]), None);
        let turns = told(&[
            ("system", "s"),
            ("developer", "t"),
            ("user", "a"),
            ("system", "b"),
            ("assistant", "c"),
            ("system", "d"),
            ("user", "e"),
            ("tool", "f"),
            ("system", "g"),
        ]);
        let tagged = |text: &str| format!("<system-reminder>\n{text}\n</system-reminder>");
        let expected = [
            ("system", "s\n\nt".to_owned()),
            ("user", format!("a\n\n{}", tagged("b"))),
            ("assistant", "c".to_owned()),
            ("user", format!("{}\n\ne", tagged("d"))),
            ("tool", "f".to_owned()),
            ("user", tagged("g")),
        ];
        let expected = expected.map(|(role, text)| (role.to_owned(), text)).to_vec();
        assert_eq!(turns, Some(expected));
    }
}
