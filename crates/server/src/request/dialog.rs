//! What does a conversation ask of its answer beyond plain text: tools to call, thoughts to have?
//!
//! Each API has fields of its own for it, which become one [`Dialog`]; from it and the model's
//! format come what the template sees, what holds the answer, and how the answer is read.

use answer_format::{AnswerFormat, CallFormat, CallGrammar, Held, ReaderSetup, ToolChoice};
use engine::ModelCard;
use messages::{Constraint, SamplingParams, Thoughts};
use serde_json::{Map, Value};

use super::tool_fields::ToolFields;
use super::{GenerationFields, generic_tools};
use crate::reply::ApiError;

/// Templates know one of these for whether to think.
const THINKING_NAMES: [&str; 2] = ["enable_thinking", "thinking"];

/// Tools and thoughts of a request.
#[derive(Debug, Default)]
pub(crate) struct Dialog {
    pub(crate) tools: ToolFields,
    /// Variables for the template.
    pub(crate) extra: Map<String, Value>,
    /// Tokens that the model may think for; `None`: as many as it takes, unless it is asked not to.
    pub(crate) thinking_tokens_max: Option<u32>,
}

impl Dialog {
    /// Asks the model to think, or not to.
    pub(crate) fn think(&mut self, is_on: bool) {
        for name in THINKING_NAMES {
            self.extra.entry(name).or_insert(Value::Bool(is_on));
        }
    }

    /// How hard to think; `none` is not at all.
    pub(crate) fn effort(&mut self, effort: &str) {
        if effort == "none" {
            return self.think(false);
        }
        self.extra.entry("reasoning_effort").or_insert(Value::from(effort));
    }

    /// A request not to think is a budget of none: a template that opens the thoughts all the same
    /// is followed by their end.
    fn budget(&self) -> Option<u32> {
        let says = |word: bool| {
            THINKING_NAMES.iter().any(|name| self.extra.get(*name) == Some(&Value::Bool(word)))
        };
        let is_off = says(false) && !says(true);
        if is_off { Some(0) } else { self.thinking_tokens_max }
    }

    /// What the template is given.
    pub(crate) fn conversation(
        &self,
        mut messages: Vec<chat::Message>,
        card: &ModelCard,
    ) -> chat::Conversation {
        let format = card.answer_format;
        let template = card.origin.template.as_deref().unwrap_or_default();
        if !template.contains("developer") {
            // Some such templates would leave out what it says.
            let developers = messages.iter_mut().filter(|message| message.role == "developer");
            developers.for_each(|message| message.role = "system".to_owned());
        }
        let listed = if self.tools.may_call() { self.tools.listed.as_slice() } else { &[] };
        let mut tools = (!listed.is_empty()).then(|| Value::from(listed.to_vec()));
        if !format.template_knows_tools {
            messages = generic_tools::explain(messages, listed);
            tools = None;
        }
        if matches!(format.calls, CallFormat::Mistral | CallFormat::MistralNamed) {
            shorten_ids(&mut messages);
        }
        if format.calls == CallFormat::Harmony {
            show_thinking(&mut messages);
        }
        if format.calls == CallFormat::GlmLines {
            messages = messages.into_iter().flat_map(as_lines).collect();
        }
        let mut extra = self.extra.clone();
        if self.thinking_tokens_max == Some(0) {
            for name in THINKING_NAMES {
                extra.entry(name).or_insert(Value::Bool(false));
            }
        }
        let conversation = chat::Conversation {
            messages,
            tools,
            extra,
            shows_markup: true,
            ..chat::Conversation::default()
        };
        // GPT-OSS's template leaves out what the system says later.
        let in_turns = (format.calls == CallFormat::Harmony)
            .then(|| conversation.with_system_in_turns())
            .flatten();
        in_turns.unwrap_or(conversation)
    }

    /// How the answer is read.
    pub(crate) fn reader(&self, card: &ModelCard, asked: &GenerationFields) -> ReaderSetup {
        let tools = if self.tools.may_call() { self.tools.tools.clone() } else { Vec::new() };
        let held = match asked.params.constraint {
            Some(Constraint::Calls { .. }) if self.must_call() => Held::OnlyCalls,
            Some(Constraint::Calls { .. }) => Held::MayCall { is_cut: !asked.stops().is_empty() },
            _ => Held::No,
        };
        ReaderSetup { format: format_of(card), tools, held }
    }

    fn must_call(&self) -> bool {
        let choice = self.tools.choice.as_ref().filter(|_| self.tools.may_call());
        matches!(choice, Some(ToolChoice::Required | ToolChoice::Named(_)))
    }

    /// Holds the answer to what was asked.
    ///
    /// # Errors
    /// 400 where two things are asked for that cannot both be.
    pub(crate) fn hold(
        &self,
        asked: &mut GenerationFields,
        card: &ModelCard,
    ) -> Result<(), ApiError> {
        if self.must_call() {
            // There is no text for them to end, and within a call they would leave half of it.
            asked.forget_stops();
        }
        let params = &mut asked.params;
        let format = format_of(card);
        if let Some(choice) = self.tools.choice.as_ref().filter(|_| self.tools.may_call()) {
            let constraint = params.constraint.take();
            params.constraint = self.constraint(format, choice, constraint)?;
        }
        let budget = self.budget();
        // A model that does not think aloud is within any budget.
        if params.constraint.is_some() || budget.is_some() {
            params.thoughts = thoughts(format, budget, params);
        }
        // GPT-OSS thinks before it calls, and calls in a channel that a closing text would end.
        let is_harmony = format.calls == CallFormat::Harmony;
        if is_harmony && budget == Some(0) && self.tools.may_call() {
            params.thoughts = None;
        }
        Ok(())
    }

    fn constraint(
        &self,
        format: AnswerFormat,
        choice: &ToolChoice,
        constraint: Option<Constraint>,
    ) -> Result<Option<Constraint>, ApiError> {
        let (tools, is_parallel) = (&self.tools.tools, self.tools.is_parallel);
        let grammar = match (choice, &constraint) {
            (ToolChoice::Auto, None) if !self.tools.is_strict => return Ok(None),
            (ToolChoice::Auto, None) => {
                let Some(grammar) = format.calls.lazy_call_grammar(tools, is_parallel) else {
                    return Ok(None);
                };
                grammar
            }
            (ToolChoice::Auto, Some(Constraint::JsonSchema(schema))) => {
                let grammar = format.calls.call_grammar(tools, choice, is_parallel);
                grammar.or_answer(schema)
            }
            (ToolChoice::Auto, Some(Constraint::JsonObject)) => {
                let grammar = format.calls.call_grammar(tools, choice, is_parallel);
                grammar.or_answer(r#"{"type":"object"}"#)
            }
            (_, None) => format.calls.call_grammar(tools, choice, is_parallel),
            (_, Some(other)) => {
                let kind = other.kind();
                let text = format!("an answer cannot follow a {kind} and call tools at once");
                return Err(ApiError::invalid(Some("tool_choice"), text));
            }
        };
        let CallGrammar { rules, markers, schemas } = grammar;
        let (rules, markers, schemas) = (rules.into(), markers.into(), schemas.into());
        Ok(Some(Constraint::Calls { rules, markers, schemas }))
    }
}

/// The model's format; where its template knows no tools, they are told of in Hermes' way.
fn format_of(card: &ModelCard) -> AnswerFormat {
    let format = card.answer_format;
    if format.template_knows_tools || format.calls == CallFormat::Harmony {
        return format;
    }
    format.with_calls(CallFormat::Hermes)
}

/// Templates of Mistral's take ids of nine letters and digits only.
const MISTRAL_ID_LETTERS: usize = 9;

fn shorten_ids(messages: &mut [chat::Message]) {
    let short = |id: &str| -> String {
        let letters: Vec<char> = id.chars().filter(char::is_ascii_alphanumeric).collect();
        let kept = letters.len().min(MISTRAL_ID_LETTERS);
        let kept: String = letters[letters.len() - kept..].iter().collect();
        format!("{kept:0>MISTRAL_ID_LETTERS$}")
    };
    for message in messages {
        if let Some(id) = &mut message.tool_call_id {
            *id = short(id);
        }
        for call in message.tool_calls.iter_mut().filter_map(Value::as_array_mut).flatten() {
            if let Some(id) = call.get("id").and_then(Value::as_str).map(short) {
                call["id"] = Value::from(id);
            }
        }
    }
}

/// GPT-OSS's template knows thoughts by another name.
fn show_thinking(messages: &mut [chat::Message]) {
    for message in messages {
        message.thinking.clone_from(&message.reasoning_content);
    }
}

/// GLM-4's templates show a call as a message whose metadata is its name, and know results by
/// another role.
fn as_lines(mut message: chat::Message) -> Vec<chat::Message> {
    if message.role == "tool" {
        message.role = "observation".to_owned();
    }
    let Some(Value::Array(calls)) = message.tool_calls.take() else { return vec![message] };
    let has_text = message.content.as_deref().is_some_and(|text| !text.trim().is_empty());
    let text = has_text.then_some(message);
    let call = |call: &Value| {
        let function = &call["function"];
        let metadata = function["name"].as_str().map(str::to_owned);
        let arguments = match &function["arguments"] {
            Value::String(text) => text.clone(),
            object => object.to_string(),
        };
        chat::Message { metadata, ..chat::Message::new("assistant", &arguments) }
    };
    text.into_iter().chain(calls.iter().map(call)).collect()
}

fn thoughts(
    format: AnswerFormat,
    tokens_max: Option<u32>,
    params: &SamplingParams,
) -> Option<Thoughts> {
    let markers = format.thoughts?;
    let is_harmony = format.calls == CallFormat::Harmony;
    // Its grammar of calls has the thoughts in it.
    if is_harmony && matches!(params.constraint, Some(Constraint::Calls { .. })) {
        return None;
    }
    let close = if is_harmony && tokens_max == Some(0) {
        markers.end.to_owned()
    } else if is_harmony {
        format!("<|end|><|start|>assistant{}", markers.end)
    } else {
        format!("\n{}\n\n", markers.end)
    };
    Some(Thoughts {
        begin: markers.begin.into(),
        end: markers.end.into(),
        close: close.into(),
        tokens_max,
        is_always: is_harmony,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_and_results_are_lines_for_glm() {
        let calls = json!([
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}}]);
        let called =
            chat::Message { tool_calls: Some(calls), ..chat::Message::new("assistant", "I look.") };
        let messages =
            [called, chat::Message::new("tool", "one"), chat::Message::new("user", "Go")];
        let lines: Vec<chat::Message> = messages.into_iter().flat_map(as_lines).collect();
        let seen: Vec<_> = lines
            .iter()
            .map(|line| (line.role.as_str(), line.metadata.as_deref(), line.content.as_deref()))
            .collect();
        let expected = [
            ("assistant", None, Some("I look.")),
            ("assistant", Some("f"), Some("{\"a\":1}")),
            ("assistant", Some("g"), Some("{}")),
            ("observation", None, Some("one")),
            ("user", None, Some("Go")),
        ];
        assert_eq!(seen, expected);
    }
}
