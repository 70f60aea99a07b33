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
