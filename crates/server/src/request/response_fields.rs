//! What does a request of OpenAI's responses API hold? Items instead of messages, and settings in
//! places of their own.

use std::collections::BTreeMap;

use engine::ModelCard;
use messages::{Constraint, SamplingParams};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::conversation::{MESSAGES_MAX, template_call};
use super::dialog::Dialog;
use super::dialog_fields::known_effort;
use super::fields::{Rest, only_labels};
use super::generation_fields::LOGPROBS_MAX;
use super::response_tools::{
    CallForms, full_name, is_openais_own, read_flat_tools, text_arguments,
};
use super::text_or_list::TextOrList;
use super::{Bounds, Fields, GenerationFields, SharingHeaders, read_urgency};
use crate::reply::ApiError;

/// What is asked, and what the response repeats of it.
pub(crate) struct ResponseFields {
    pub(crate) asked: GenerationFields,
    pub(crate) dialog: Dialog,
    pub(crate) call_forms: CallForms,
    /// The new turns.
    pub(crate) messages: Vec<chat::Message>,
    /// The same as they were sent.
    pub(crate) input: Vec<Value>,
    pub(crate) instructions: Option<String>,
    pub(crate) previous: Option<String>,
    pub(crate) is_stored: bool,
    /// Fields of the response that say what was asked.
    pub(crate) echo: Vec<(&'static str, Value)>,
}

#[derive(Deserialize, JsonSchema)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    id: Option<String>,
    role: Option<String>,
    content: Option<TextOrList<Content>>,
    call_id: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    arguments: Option<String>,
    /// Of a call with a text.
    input: Option<String>,
    output: Option<TextOrList<Content>>,
    summary: Option<Vec<Content>>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

/// Fields of items that change no answer: what became of them, who called, and what OpenAI alone
/// can read.
const ITEM_LABELS: &[&str] =
    &["action", "caller", "created_by", "encrypted_content", "phase", "status"];

#[derive(Deserialize, JsonSchema)]
struct Content {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    refusal: Option<String>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

/// Fields of texts that were said about them, and of what is cached, which is found by itself.
const CONTENT_LABELS: &[&str] = &["annotations", "logprobs", "prompt_cache_breakpoint"];

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct TextSettings {
    format: Option<TextFormat>,
    verbosity: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TextFormat {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
    /// For the model's eyes in OpenAI's service; here the messages say what is wanted.
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    /// The schema is followed, whether this says so or not.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Reasoning {
    effort: Option<String>,
    /// Thoughts come as they are: nobody sums them up.
    summary: Option<Value>,
    generate_summary: Option<Value>,
    context: Option<Value>,
}

/// Finds an item of the caller's stored responses by its id.
pub(crate) type FindItem<'a> = &'a dyn Fn(&str) -> Option<Value>;

/// Fields that are accepted only where they ask for nothing.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("background", &["false"]),
    ("conversation", &[]),
    ("max_tool_calls", &[]),
    ("prompt", &[]),
    ("prompt_cache_retention", &["\"in-memory\"", "\"in_memory\""]),
    ("truncation", &["\"disabled\""]),
];

/// # Errors
/// 400 naming what is missing, wrong or not supported.
pub(crate) fn read_response_fields(
    fields: &mut Fields<'_>,
    card: &ModelCard,
    headers: &SharingHeaders,
    bounds: Bounds,
    find_item: FindItem<'_>,
) -> Result<ResponseFields, ApiError> {
    let mut echo: Vec<(&'static str, Value)> = Vec::new();
    for name in ["metadata", "prompt_cache_key", "safety_identifier", "user"] {
        echo.push((name, fields.typed(name)?.unwrap_or_default()));
    }
    for name in ["client_metadata", "prompt_cache_options"] {
        fields.label(name);
    }
    let ((dialog, call_forms), text) = (read_dialog(fields, &mut echo)?, fields.raw("text"));
    let constraint = read_text(text, &mut echo)?;
    let logprobs = read_include(fields, &mut echo)?;
    let params = SamplingParams { constraint, logprobs, ..read_params(fields, card, &mut echo)? };
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    fields.neutral("stream_options", &["{}", "{\"include_obfuscation\":false}"])?;
    for &(name, neutral) in NEUTRAL {
        fields.neutral(name, neutral)?;
    }
    let namespace = headers.namespace(fields)?;
    let (urgency, tier) = read_urgency(fields, bounds)?;
    echo.push(("service_tier", json!(tier.unwrap_or("default"))));
    let sharing = (namespace, headers.mode);
    let asked = GenerationFields::single(params, Vec::new(), is_streamed, sharing, urgency);
    let (messages, input) = read_input(fields, find_item)?;
    Ok(ResponseFields {
        asked,
        dialog,
        call_forms,
        messages,
        input,
        instructions: fields.string("instructions")?,
        previous: fields.string("previous_response_id")?,
        is_stored: fields.boolean("store")?.unwrap_or(true),
        echo,
    })
}

/// What is to be told besides the answer: scores of its tokens, and how many likely ones beside
/// each.
fn read_include(
    fields: &mut Fields<'_>,
    echo: &mut Vec<(&'static str, Value)>,
) -> Result<Option<u32>, ApiError> {
    const LOGPROBS: &str = "message.output_text.logprobs";
    let include = fields.typed::<Vec<String>>("include")?.unwrap_or_default();
    let known = ["reasoning.encrypted_content", LOGPROBS];
    if let Some(other) = include.iter().find(|name| !known.contains(&name.as_str())) {
        let shown: String = other.chars().take(60).collect();
        let text = format!("`{shown}` cannot be included: leave it out");
        return Err(ApiError::unsupported("include", &text));
    }
    let top = fields.integer("top_logprobs", 0..=LOGPROBS_MAX)?.unwrap_or(0);
    let is_on = include.iter().any(|name| name == LOGPROBS);
    if top > 0 && !is_on {
        let text = format!("top_logprobs needs `{LOGPROBS}` in include");
        return Err(ApiError::invalid(Some("top_logprobs"), text));
    }
    echo.push(("top_logprobs", json!(top)));
    Ok(is_on.then_some(top as u32))
}

fn read_dialog(
    fields: &mut Fields<'_>,
    echo: &mut Vec<(&'static str, Value)>,
) -> Result<(Dialog, CallForms), ApiError> {
    let mut told = fields.peek("tools")?.unwrap_or_else(|| json!([]));
    if let Some(told) = told.as_array_mut() {
        // The response says which tools there were, and so not those that were left out.
        told.retain(|tool| !tool["type"].as_str().is_some_and(is_openais_own));
    }
    echo.push(("tools", told));
    echo.push(("tool_choice", fields.peek("tool_choice")?.unwrap_or_else(|| json!("auto"))));
    let is_parallel = fields.peek("parallel_tool_calls")?.unwrap_or_else(|| json!(true));
    echo.push(("parallel_tool_calls", is_parallel));
    let (tools, call_forms) = read_flat_tools(fields)?;
    let mut dialog = Dialog { tools, ..Dialog::default() };
    let reasoning = fields.typed::<Reasoning>("reasoning")?.unwrap_or_default();
    let Reasoning { effort, summary, generate_summary: _, context: _ } = reasoning;
    if let Some(effort) = &effort {
        dialog.effort(known_effort("reasoning.effort", effort)?);
    }
    echo.push(("reasoning", json!({"effort": effort, "summary": summary})));
    Ok((dialog, call_forms))
}

fn read_text(
    raw: Option<&str>,
    echo: &mut Vec<(&'static str, Value)>,
) -> Result<Option<Constraint>, ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some("text"), text));
    let given: Value = raw.and_then(|raw| serde_json::from_str(raw).ok()).unwrap_or_default();
    let settings: TextSettings = match raw.map(serde_json::from_str) {
        None => TextSettings::default(),
        Some(Ok(settings)) => settings,
        Some(Err(error)) => return refuse(format!("text: {error}")),
    };
    let verbosity = settings.verbosity.unwrap_or_else(|| "medium".to_owned());
    if !["low", "medium", "high"].contains(&verbosity.as_str()) {
        return refuse("text.verbosity must be `low`, `medium` or `high`".to_owned());
    }
    let (constraint, format) = match settings.format {
        None => (None, json!({"type": "text"})),
        Some(TextFormat { kind, schema, .. }) => {
            let constraint = match (kind.as_str(), schema) {
                ("text", None) => None,
                ("json_object", None) => Some(Constraint::JsonObject),
                ("json_schema", Some(schema)) => {
                    Some(Constraint::JsonSchema(schema.to_string().into()))
                }
                ("json_schema", None) => return refuse("text.format.schema is missing".to_owned()),
                _ => {
                    let text = "text.format.type must be `text`, `json_object` or `json_schema`";
                    return refuse(text.to_owned());
                }
            };
            (constraint, given["format"].clone())
        }
    };
    echo.push(("text", json!({"format": format, "verbosity": verbosity})));
    Ok(constraint)
}

fn read_params(
    fields: &mut Fields<'_>,
    card: &ModelCard,
    echo: &mut Vec<(&'static str, Value)>,
) -> Result<SamplingParams, ApiError> {
    let default = card.defaults.clone();
    let number = |value: f32| f64::from(value);
    let temperature = fields.number("temperature", 0.0..=2.0)?;
    let temperature = temperature.unwrap_or_else(|| number(default.temperature));
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or_else(|| number(default.top_p));
    let most = fields.integer("max_output_tokens", 1..=i64::from(u32::MAX))?;
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned);
    echo.extend([
        ("temperature", json!(temperature)),
        ("top_p", json!(top_p)),
        ("max_output_tokens", json!(most)),
    ]);
    // As in Anthropic's API: where that is all there is room for, the context ends the answer.
    let most = most.filter(|&most| most < i64::from(card.context_tokens_max));
    Ok(SamplingParams {
        temperature: temperature as f32,
        top_p: top_p as f32,
        max_tokens: most.map(|most| most as u32),
        seed,
        ..default
    })
}

/// The turns of `input`: a text, or items.
fn read_input(
    fields: &mut Fields<'_>,
    find_item: FindItem<'_>,
) -> Result<(Vec<chat::Message>, Vec<Value>), ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some("input"), text));
    let given = fields.peek("input")?;
    match fields.typed::<TextOrList<Item>>("input")? {
        None => refuse("input is missing: send a text or items".to_owned()),
        Some(TextOrList::Text(text)) => {
            let item = json!({"type": "message", "role": "user",
                "content": [{"type": "input_text", "text": text}]});
            Ok((vec![chat::Message::new("user", &text)], vec![item]))
        }
        Some(TextOrList::List(items)) => {
            let count = items.len();
            if count == 0 || count > MESSAGES_MAX {
                return refuse(format!(
                    "there are {count} items, there must be 1 to {MESSAGES_MAX}"
                ));
            }
            let mut turns = Turns::default();
            let mut input = given.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
            for (index, mut item) in items.into_iter().enumerate() {
                let place = format!("input[{index}]");
                if let Some(id) = item.reference() {
                    let (found, value) = referred(&place, id, find_item)?;
                    item = found;
                    input[index] = value;
                }
                turns.add(&place, item)?;
            }
            Ok((turns.messages, input))
        }
    }
}

impl Item {
    /// The id of the item that it stands for.
    fn reference(&self) -> Option<&str> {
        let is_bare = self.kind.is_none() && self.role.is_none();
        let is_reference = is_bare || self.kind.as_deref() == Some("item_reference");
        self.id.as_deref().filter(|_| is_reference)
    }
}

fn referred(place: &str, id: &str, find_item: FindItem<'_>) -> Result<(Item, Value), ApiError> {
    let found = find_item(id);
    let read = found.and_then(|item| Some((serde_json::from_value(item.clone()).ok()?, item)));
    read.ok_or_else(|| {
        let id: String = id.chars().take(100).collect();
        let text =
            format!("{place}: there is no item `{id}` in a response of yours that is stored");
        ApiError::invalid(Some(&format!("{place}.id")), text)
    })
}

/// Types of items that are read.
const ITEMS: &[&str] = &[
    "custom_tool_call",
    "custom_tool_call_output",
    "function_call",
    "function_call_output",
    "message",
    "reasoning",
    "web_search_call",
];

/// Items, of which an answer may have several: thoughts, a text and calls are one message.
#[derive(Default)]
struct Turns {
    messages: Vec<chat::Message>,
}

impl Turns {
    fn add(&mut self, place: &str, item: Item) -> Result<(), ApiError> {
        let missing = |field: &str| {
            let place = format!("{place}.{field}");
            ApiError::invalid(Some(&place), format!("{place} is missing"))
        };
        let kind = item.kind.as_deref().unwrap_or("message");
        if ITEMS.contains(&kind) {
            only_labels(place, &item.rest, ITEM_LABELS)?;
        }
        match kind {
            "message" => {
                let role = item.role.ok_or_else(|| missing("role"))?;
                if !["assistant", "developer", "system", "user"].contains(&role.as_str()) {
                    let text = format!("{place}.role is not assistant, developer, system or user");
                    return Err(ApiError::invalid(Some(&format!("{place}.role")), text));
                }
                let content = item.content.ok_or_else(|| missing("content"))?;
                let text = content_text(&format!("{place}.content"), content)?;
                if role == "assistant" {
                    let answer = self.answer(|answer| answer.content.is_none());
                    answer.content = Some(text);
                } else {
                    self.messages.push(chat::Message::new(&role, &text));
                }
            }
            "reasoning" => {
                let content = item.content.or(item.summary.map(TextOrList::List));
                let content = content.unwrap_or(TextOrList::List(Vec::new()));
                let text = content_text(&format!("{place}.content"), content)?;
                let answer = self.answer(|_| false);
                answer.reasoning_content = (!text.is_empty()).then_some(text);
            }
            kind @ ("custom_tool_call" | "function_call") => {
                let name = item.name.ok_or_else(|| missing("name"))?;
                let name = full_name(item.namespace.as_deref(), &name);
                let arguments = if kind == "function_call" {
                    item.arguments.map(Value::String)
                } else {
                    Some(text_arguments(&item.input.ok_or_else(|| missing("input"))?))
                };
                let call = template_call(item.call_id.as_deref(), &name, arguments);
                let answer = self.answer(|_| true);
                let calls = answer.tool_calls.get_or_insert_with(|| json!([]));
                calls.as_array_mut().into_iter().for_each(|list| list.push(call.clone()));
            }
            // What another server looked for; what it found is not among the items.
            "web_search_call" => {}
            "custom_tool_call_output" | "function_call_output" => {
                let id = item.call_id.ok_or_else(|| missing("call_id"))?;
                let output = item.output.ok_or_else(|| missing("output"))?;
                let text = content_text(&format!("{place}.output"), output)?;
                let message = chat::Message::new("tool", &text);
                self.messages.push(chat::Message { tool_call_id: Some(id), ..message });
            }
            kind => {
                let (kind, place) =
                    (kind.chars().take(40).collect::<String>(), format!("{place}.type"));
                let text = format!("{place} is `{kind}`, which is not supported here");
                return Err(ApiError::unsupported(&place, &text));
            }
        }
        Ok(())
    }

    /// The answer that is being put together, where it may go on, or a new one.
    fn answer(&mut self, may_go_on: impl Fn(&chat::Message) -> bool) -> &mut chat::Message {
        let last = self.messages.last();
        let goes_on = last.is_some_and(|last| {
            // Thoughts and a text come before calls.
            last.role == "assistant" && may_go_on(last)
        });
        if !goes_on {
            self.messages
                .push(chat::Message { role: "assistant".to_owned(), ..Default::default() });
        }
        let last = self.messages.len() - 1;
        &mut self.messages[last]
    }
}

fn content_text(place: &str, content: TextOrList<Content>) -> Result<String, ApiError> {
    let parts = match content {
        TextOrList::Text(text) => return Ok(text),
        TextOrList::List(parts) => parts,
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        let kinds =
            ["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"];
        let (true, Some(text)) = (kinds.contains(&part.kind.as_str()), part.text.or(part.refusal))
        else {
            return Err(ApiError::no_text(&format!("{place}[{index}].type"), &part.kind));
        };
        only_labels(&format!("{place}[{index}]"), &part.rest, CONTENT_LABELS)?;
        texts.push(text);
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(input: &Value) -> Result<Vec<chat::Message>, ApiError> {
        let body = json!({"input": input}).to_string();
        let find = |id: &str| (id == "msg_9").then(|| json!({"role": "user", "content": "Hi"}));
        let read = read_input(&mut Fields::parse(body.as_bytes()).unwrap(), &find);
        read.map(|(messages, _)| messages)
    }

    #[test]
    fn items_become_turns() {
        let messages = read(&json!([
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs_1", "summary": [],
             "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
             "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "message", "role": "assistant", "content": "Done."},
        ]))
        .unwrap();
        let roles: Vec<&str> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
        assert_eq!(messages[1].reasoning_content.as_deref(), Some("hm"));
        assert_eq!(messages[1].content.as_deref(), Some("I look."));
        assert_eq!(messages[1].tool_calls.as_ref().unwrap()[1]["function"]["name"], "g");
        assert_eq!(messages[2].tool_call_id.as_deref(), Some("c1"));
    }

    #[test]
    fn references_and_calls_with_texts_are_read() {
        let messages = read(&json!([
            {"type": "item_reference", "id": "msg_9"},
            {"id": "msg_9"},
            {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "a\nb"},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
            {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
            {"type": "function_call", "call_id": "c2", "namespace": "git", "name": "log",
             "arguments": "{}"},
        ]))
        .unwrap();
        assert_eq!(messages[..2], [chat::Message::new("user", "Hi"), messages[0].clone()]);
        let function = |at: usize| &messages[at].tool_calls.as_ref().unwrap()[0]["function"];
        assert_eq!(*function(2), json!({"name": "patch", "arguments": {"input": "a\nb"}}));
        assert_eq!(messages[3].content.as_deref(), Some("done"));
        assert_eq!(function(4)["name"], "git.log");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (input, param) in [
            (json!(null), "input"),
            (json!([]), "input"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"role": "tool", "content": ""}]), "input[0].role"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0].id"),
            (json!([{"type": "custom_tool_call", "name": "x"}]), "input[0].input"),
            (json!([{"type": "computer_call", "pending": []}]), "input[0].type"),
            (json!([{"role": "user", "content": "", "status": null, "x": 1}]), "input[0].x"),
            (
                json!([{"role": "user", "content": [{"type": "input_text", "text": "",
                    "logprobs": [], "x": 1}]}]),
                "input[0].content[0].x",
            ),
            (json!([{"type": "function_call_output", "output": "x"}]), "input[0].call_id"),
            (
                json!([{"role": "user", "content": [{"type": "input_image"}]}]),
                "input[0].content[0].type",
            ),
        ] {
            let error = read(&input).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{input}");
        }
    }
}
