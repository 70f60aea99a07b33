//! How does an answer look as a response? A list of items, each told by a run of events.

use std::sync::Arc;
use std::time::Instant;

use answer_format::Part;
use axum::response::Response;
use engine::ModelCard;
use messages::FinishReason;
use serde_json::{Map, Value, json};

use crate::answers::{Answers, Piece};
use crate::app::{App, unix_seconds};
use crate::reply::{
    ApiError, CallIds, ChunkWriter, EventWriter, TokenScore, Usage, ended, finish_reason,
    json_response,
};
use crate::request::{CallForms, full_name, input_of, text_arguments};
use crate::stored_responses::Stored;

/// Turns pieces into the events of a response.
pub(super) struct Writer {
    app: Arc<App>,
    ids: CallIds,
    id: String,
    created: u64,
    model: String,
    /// What the response repeats of the request.
    echo: Map<String, Value>,
    call_forms: CallForms,
    /// Where it is to be kept.
    pub(super) keep: Option<Keep>,
    items: Vec<Value>,
    /// The item that is being written.
    open: Option<Open>,
    /// Of tokens whose text is still to come.
    scores: Vec<Value>,
    events: u64,
    reason: Option<FinishReason>,
    explanation: Option<Value>,
}

/// What is kept with a response.
pub(super) struct Keep {
    pub(super) tenant: String,
    pub(super) input: Vec<Value>,
    pub(super) messages: Vec<chat::Message>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    Call,
    /// With a text, which is known at its end only.
    CustomCall,
}

impl Kind {
    fn is_call(self) -> bool {
        matches!(self, Self::Call | Self::CustomCall)
    }
}

struct Open {
    kind: Kind,
    id: String,
    call_id: String,
    name: String,
    namespace: Option<String>,
    text: String,
    /// Of the text's tokens, where they were asked for.
    scores: Vec<Value>,
}

impl Open {
    fn item(&self, status: &str) -> Value {
        let (id, text) = (self.id.as_str(), self.text.as_str());
        let mut item = match self.kind {
            Kind::Reasoning => json!({"id": id, "type": "reasoning", "summary": [],
                "content": [{"type": "reasoning_text", "text": text}], "status": status}),
            Kind::Message => json!({"id": id, "type": "message", "status": status,
                "role": "assistant", "content": [content_part(text, &self.scores)]}),
            Kind::Call => json!({"id": id, "type": "function_call", "status": status,
                "call_id": self.call_id, "name": self.name, "arguments": text}),
            Kind::CustomCall => json!({"id": id, "type": "custom_tool_call", "status": status,
                "call_id": self.call_id, "name": self.name, "input": input_of(text)}),
        };
        if let Some(namespace) = &self.namespace {
            item["namespace"] = json!(namespace);
        }
        item
    }

    /// As it is before its first word.
    fn begun(&self) -> Value {
        let mut item = self.item("in_progress");
        if !self.kind.is_call() {
            item["content"] = json!([]);
        }
        item
    }
}

fn content_part(text: &str, scores: &[Value]) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": scores})
}

impl Writer {
    pub(super) fn new(
        app: &Arc<App>,
        card: &ModelCard,
        (echo, call_forms): (Map<String, Value>, CallForms),
        keep: Option<Keep>,
    ) -> Self {
        Self {
            app: Arc::clone(app),
            ids: CallIds::new(app, card),
            id: app.fresh_name("resp_"),
            created: unix_seconds(),
            model: card.id.clone(),
            echo,
            call_forms,
            keep,
            items: Vec::new(),
            open: None,
            scores: Vec::new(),
            events: 0,
            reason: None,
            explanation: None,
        }
    }

    fn event(&mut self, events: &mut EventWriter, name: &'static str, fields: Value) {
        let mut event = json!({"type": name, "sequence_number": self.events});
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
        }
        self.events += 1;
        events.write_named(name, &event);
    }

    fn object(&self, status: &str, usage: Option<Usage>) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let usage = usage.map(|usage| {
            json!({
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens()},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens()},
                "total_tokens": usage.total_tokens(),
            })
        });
        let mut object = json!({
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "background": false, "error": null, "incomplete_details": incomplete,
            "model": self.model, "output": self.items, "truncation": "disabled",
            "max_tool_calls": null, "store": self.keep.is_some(),
            "usage": usage,
        });
        if let Some(object) = object.as_object_mut() {
            object.extend(self.echo.clone());
        }
        object
    }

    fn begin(&mut self, events: &mut EventWriter) {
        if self.events > 0 {
            return;
        }
        for name in ["response.created", "response.in_progress"] {
            let response = self.object("in_progress", None);
            self.event(events, name, json!({"response": response}));
        }
    }

    fn part(&mut self, part: &Part, events: &mut EventWriter) {
        let (kind, text, name) = match part {
            Part::Thought(text) => (Kind::Reasoning, text.as_str(), ""),
            Part::Text(text) => (Kind::Message, text.as_str(), ""),
            Part::CallName(name) => (Kind::Call, "", name.as_str()),
            Part::CallArguments(text) => (Kind::Call, text.as_str(), ""),
        };
        let is_same = |open: &Open| open.kind == kind || (open.kind.is_call() && kind.is_call());
        let is_open = self.open.as_ref().is_some_and(is_same);
        if !is_open || !name.is_empty() {
            self.open(kind, name, events);
        }
        if text.is_empty() {
            return;
        }
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        if open.kind == Kind::CustomCall {
            return;
        }
        let mut fields =
            json!({"item_id": open.id, "output_index": self.items.len(), "delta": text});
        let name = match kind {
            Kind::Reasoning => "response.reasoning_text.delta",
            Kind::Message => "response.output_text.delta",
            Kind::Call | Kind::CustomCall => "response.function_call_arguments.delta",
        };
        if !kind.is_call() {
            fields["content_index"] = json!(0);
        }
        if kind == Kind::Message {
            fields["logprobs"] = json!(self.scores);
            open.scores.append(&mut self.scores);
        }
        self.event(events, name, fields);
    }

    fn open(&mut self, kind: Kind, name: &str, events: &mut EventWriter) {
        self.close("completed", events);
        let form = self.call_forms.find(name);
        let kind = if kind == Kind::Call && form.is_custom { Kind::CustomCall } else { kind };
        let prefix = match kind {
            Kind::Reasoning => "rs_",
            Kind::Message => "msg_",
            Kind::Call => "fc_",
            Kind::CustomCall => "ctc_",
        };
        let open = Open {
            kind,
            id: self.app.fresh_name(prefix),
            call_id: if kind.is_call() { self.ids.fresh() } else { String::new() },
            name: form.name,
            namespace: form.namespace,
            text: String::new(),
            scores: Vec::new(),
        };
        let (item, id, index) = (open.begun(), open.id.clone(), self.items.len());
        self.open = Some(open);
        let fields = json!({"output_index": index, "item": item});
        self.event(events, "response.output_item.added", fields);
        let part = match kind {
            Kind::Reasoning => json!({"type": "reasoning_text", "text": ""}),
            Kind::Message => content_part("", &[]),
            Kind::Call | Kind::CustomCall => return,
        };
        let fields =
            json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
        self.event(events, "response.content_part.added", fields);
    }

    /// Ends the item that is being written.
    fn close(&mut self, status: &str, events: &mut EventWriter) {
        let Some(mut open) = self.open.take() else { return };
        if open.kind == Kind::Message {
            open.scores.append(&mut self.scores);
        }
        let item = open.item(status);
        let at = json!({"item_id": open.id, "output_index": self.items.len()});
        let with = |more: Value| {
            let mut fields = at.clone();
            if let (Some(fields), Value::Object(more)) = (fields.as_object_mut(), more) {
                fields.extend(more);
            }
            fields
        };
        if open.kind == Kind::CustomCall {
            let fields = with(json!({"delta": item["input"]}));
            self.event(events, "response.custom_tool_call_input.delta", fields);
        }
        let (name, fields) = match open.kind {
            Kind::Reasoning => (
                "response.reasoning_text.done",
                with(json!({"content_index": 0, "text": open.text})),
            ),
            Kind::Message => (
                "response.output_text.done",
                with(json!({"content_index": 0, "text": open.text, "logprobs": open.scores})),
            ),
            Kind::Call => (
                "response.function_call_arguments.done",
                with(json!({"name": open.name, "arguments": open.text})),
            ),
            Kind::CustomCall => {
                ("response.custom_tool_call_input.done", with(json!({"input": item["input"]})))
            }
        };
        self.event(events, name, fields);
        if !open.kind.is_call() {
            let fields = with(json!({"content_index": 0, "part": item["content"][0]}));
            self.event(events, "response.content_part.done", fields);
        }
        let fields = json!({"output_index": self.items.len(), "item": item});
        self.event(events, "response.output_item.done", fields);
        self.items.push(item);
    }

    /// Ends the response, and keeps it where that was asked for.
    fn finish(&mut self, usage: Usage, events: &mut EventWriter) -> Result<Value, ApiError> {
        let status = match finish_reason(self.reason)? {
            "length" => "incomplete",
            _ => "completed",
        };
        self.close(status, events);
        let response = self.object(status, Some(usage));
        if let Some(keep) = self.keep.take() {
            let Keep { tenant, input, mut messages } = keep;
            messages.push(answer_of(&self.items));
            let (id, response) = (self.id.clone(), response.clone());
            let stored = Stored { id, tenant, response, input, messages };
            self.app.responses.put(stored, Instant::now());
        }
        Ok(response)
    }
}

/// The items of an answer as one turn.
fn answer_of(items: &[Value]) -> chat::Message {
    let of = |kind: &'static str| items.iter().filter(move |item| item["type"] == kind);
    let texts = |kind: &'static str| -> Option<String> {
        let texts = of(kind).filter_map(|item| item["content"][0]["text"].as_str());
        let texts: Vec<&str> = texts.collect();
        (!texts.is_empty()).then(|| texts.join("\n"))
    };
    let call = |item: &Value| {
        let arguments = match item["input"].as_str() {
            Some(input) => text_arguments(input),
            None => {
                let arguments = item["arguments"].as_str().unwrap_or("{}");
                serde_json::from_str(arguments).unwrap_or_else(|_| json!({}))
            }
        };
        let name = full_name(item["namespace"].as_str(), item["name"].as_str().unwrap_or_default());
        json!({"id": item["call_id"], "type": "function",
            "function": {"name": name, "arguments": arguments}})
    };
    let is_call =
        |item: &&Value| item["type"] == "function_call" || item["type"] == "custom_tool_call";
    let calls: Vec<Value> = items.iter().filter(is_call).map(call).collect();
    chat::Message {
        role: "assistant".to_owned(),
        content: texts("message").or_else(|| calls.is_empty().then(String::new)),
        reasoning_content: texts("reasoning"),
        tool_calls: (!calls.is_empty()).then(|| Value::from(calls)),
        ..chat::Message::default()
    }
}

impl ChunkWriter for Writer {
    async fn collect(mut self, mut answers: Answers) -> Result<Response, ApiError> {
        // The same events, which nobody is told.
        let mut events = EventWriter::default();
        while let Some((index, piece)) =
            std::future::poll_fn(|context| answers.poll_next(context)).await
        {
            self.piece(index, &piece, &mut events)?;
            events.clear();
        }
        Ok(json_response(&self.finish(answers.usage(), &mut events)?))
    }

    fn piece(
        &mut self,
        _index: usize,
        piece: &Piece,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        let ended = ended(piece.end.as_ref())?;
        self.begin(events);
        self.scores.extend(TokenScore::all(&piece.tokens).map(|score| json!(score)));
        for part in &piece.parts {
            self.part(part, events);
        }
        if self.open.as_ref().is_some_and(|open| open.kind != Kind::Message) {
            // Of thoughts and calls, and of the markers around them.
            self.scores.clear();
        }
        if let Some((reason, _)) = ended {
            // What cannot be told as a reason is an error, and not the end of a response.
            finish_reason(reason)?;
            self.reason = Some(reason);
            if self.open.is_none() && self.items.is_empty() {
                self.open(Kind::Message, "", events);
            }
        }
        Ok(())
    }

    fn explain(&mut self, explanation: Value, _: &mut EventWriter) {
        self.explanation = Some(explanation);
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        self.begin(events);
        match self.finish(usage, events) {
            Ok(mut response) => {
                if let Some(explanation) = self.explanation.take() {
                    response["x_explain"] = explanation;
                }
                let name = match response["status"].as_str() {
                    Some("incomplete") => "response.incomplete",
                    _ => "response.completed",
                };
                self.event(events, name, json!({"response": response}));
            }
            Err(error) => self.error(&error, events),
        }
    }

    fn error(&mut self, error: &ApiError, events: &mut EventWriter) {
        self.begin(events);
        self.close("incomplete", events);
        let mut response = self.object("failed", None);
        let message = error.body.message.as_str();
        let is_callers = error.status.is_client_error();
        let code = if is_callers { "invalid_prompt" } else { "server_error" };
        response["error"] = json!({"code": code, "message": message});
        self.event(events, "response.failed", json!({"response": response}));
        let fields = json!({"code": code, "message": message, "param": null});
        self.event(events, "error", fields);
    }
}
