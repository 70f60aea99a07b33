//! `POST /v1/messages`: the same question in Anthropic's form.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::response::Response;
use engine::{Delta, ModelCard, Prompt};
use messages::{FinishReason, SamplingParams};
use serde::Serialize;
use serde_json::json;

use super::Answer;
use crate::answers::Answers;
use crate::app::App;
use crate::reply::{
    ApiError, ChunkWriter, Dialect, ErrorObject, EventWriter, Usage, ended, json_response, respond,
};
use crate::request::{
    Bounds, Fields, GenerationFields, SharingHeaders, read_anthropic_messages, read_body,
    read_stop, read_urgency,
};

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = Fields::parse(body.bytes())?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let asked = read_fields(&mut fields, &card, &headers, app.options.bounds(started))?;
        let conversation = read_anthropic_messages(&mut fields)?;
        fields.finish()?;
        drop(body);
        let stream = asked.stream;
        let mut writer = Writer {
            id: app.fresh_name("msg_"),
            model: card.id.clone(),
            begun: false,
            end: None,
            usage: Usage::new(0),
        };
        let requests = asked.into_requests(&card.id, vec![Prompt::Chat(conversation)]);
        let answers = Answers::admit(&app, requests, started).await?;
        writer.usage = answers.usage();
        respond(&app, answers, writer, (stream.is_on(), headers.explains)).await
    })
}

/// Fields that are accepted only where they ask for nothing.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("container", &[]),
    ("mcp_servers", &["[]"]),
    ("output_config", &["{}"]),
    ("service_tier", &["\"auto\"", "\"standard_only\""]),
    ("speed", &["\"standard\""]),
    ("thinking", &["{\"type\":\"disabled\"}"]),
    ("tool_choice", &["{\"type\":\"none\"}", "{\"type\":\"auto\"}"]),
    ("tools", &["[]"]),
];

fn read_fields(
    fields: &mut Fields<'_>,
    card: &ModelCard,
    headers: &SharingHeaders,
    bounds: Bounds,
) -> Result<GenerationFields, ApiError> {
    let default = SamplingParams::default();
    let mut number = |name, high: f64, absent: f32| {
        let read = fields.number(name, 0.0..=high)?;
        Ok::<f32, ApiError>(read.map_or(absent, |value| value as f32))
    };
    let temperature = number("temperature", 2.0, default.temperature)?;
    let top_p = number("top_p", 1.0, default.top_p)?;
    let top_k = fields.integer("top_k", 0..=i64::from(u32::MAX))?.unwrap_or(0) as u32;
    let Some(most) = fields.integer("max_tokens", 1..=i64::from(u32::MAX))? else {
        let text = "max_tokens is missing: it is the most tokens that the answer may have";
        return Err(ApiError::invalid(Some("max_tokens"), text));
    };
    // Clients send what large models can do; where that is all there is room for, the context ends
    // the answer and not a refusal.
    let max_tokens = (most < i64::from(card.context_tokens_max)).then_some(most as u32);
    let stop = read_stop(fields, "stop_sequences")?;
    let is_streamed = fields.boolean("stream")?.unwrap_or(false);
    for &(name, neutral) in NEUTRAL {
        fields.neutral(name, neutral)?;
    }
    for name in ["cache_control", "inference_geo", "metadata", "user_profile_id", "workspace_id"] {
        fields.label(name);
    }
    let namespace = headers.namespace(fields)?;
    let (urgency, _) = read_urgency(fields, bounds)?;
    let params = SamplingParams { temperature, top_p, top_k, max_tokens, ..default };
    params.validate(card.vocabulary_size)?;
    Ok(GenerationFields::single(params, stop, is_streamed, (namespace, headers.mode), urgency))
}

/// Turns deltas into Anthropic's events.
struct Writer {
    id: String,
    model: String,
    begun: bool,
    end: Option<MessageEnd>,
    /// Before the answer: only what was read of it.
    usage: Usage,
}

#[derive(Clone, Serialize)]
struct MessageEnd {
    stop_reason: &'static str,
    stop_sequence: Option<String>,
}

#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: &'a str,
    content: Vec<TextBlock<'a>>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: MessageUsage,
}

#[derive(Serialize)]
struct TextBlock<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
}

/// What was found in the cache is not among Anthropic's `input_tokens`.
#[derive(Serialize)]
struct MessageUsage {
    input_tokens: u64,
    cache_creation_input_tokens: u64,
    cache_read_input_tokens: u64,
    output_tokens: u64,
}

impl From<Usage> for MessageUsage {
    fn from(usage: Usage) -> Self {
        let cached = usage.cached_tokens().min(usage.prompt_tokens);
        Self {
            input_tokens: usage.prompt_tokens - cached,
            cache_creation_input_tokens: 0,
            cache_read_input_tokens: cached,
            output_tokens: usage.completion_tokens,
        }
    }
}

fn message_end(reason: Option<FinishReason>, stop: Option<String>) -> Result<MessageEnd, ApiError> {
    let stop_reason = match (crate::reply::finish_reason(reason)?, &stop) {
        ("length", _) => "max_tokens",
        (_, Some(_)) => "stop_sequence",
        (_, None) => "end_turn",
    };
    Ok(MessageEnd { stop_reason, stop_sequence: stop })
}

impl Writer {
    fn message<'a>(&'a self, text: Option<&'a str>, end: Option<&'a MessageEnd>) -> Message<'a> {
        Message {
            id: &self.id,
            kind: "message",
            role: "assistant",
            model: &self.model,
            content: text.map(|text| TextBlock { kind: "text", text }).into_iter().collect(),
            stop_reason: end.map(|end| end.stop_reason),
            stop_sequence: end.and_then(|end| end.stop_sequence.as_deref()),
            usage: self.usage.into(),
        }
    }

    fn begin(&mut self, events: &mut EventWriter) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let start = json!({"type": "message_start", "message": self.message(None, None)});
        events.write_named("message_start", &start);
        let block = json!({"type": "content_block_start", "index": 0,
            "content_block": TextBlock { kind: "text", text: "" }});
        events.write_named("content_block_start", &block);
        events.write_named("ping", &json!({"type": "ping"}));
    }
}

impl ChunkWriter for Writer {
    async fn collect(mut self, answers: Answers) -> Result<Response, ApiError> {
        let (choices, usage) = answers.collect().await?;
        let choice = choices.into_iter().next().unwrap_or_default();
        self.usage = usage;
        let end = message_end(choice.reason, choice.stop)?;
        Ok(json_response(&self.message(Some(&choice.text), Some(&end))))
    }

    fn delta(
        &mut self,
        _index: usize,
        delta: &Delta,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        if let Some((reason, stop)) = ended(delta)? {
            self.end = Some(message_end(Some(reason), stop.map(str::to_owned))?);
        }
        self.begin(events);
        if !delta.text.is_empty() {
            let delta = json!({"type": "content_block_delta", "index": 0,
                "delta": {"type": "text_delta", "text": delta.text}});
            events.write_named("content_block_delta", &delta);
        }
        Ok(())
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        self.begin(events);
        events
            .write_named("content_block_stop", &json!({"type": "content_block_stop", "index": 0}));
        let delta = json!({"type": "message_delta", "delta": self.end,
            "usage": MessageUsage::from(usage)});
        events.write_named("message_delta", &delta);
        events.write_named("message_stop", &json!({"type": "message_stop"}));
    }

    fn error(&mut self, error: &ApiError, events: &mut EventWriter) {
        events.write_named("error", &ErrorObject::new(error, Dialect::Anthropic));
    }
}
