//! How does an answer look in Anthropic's form? A message of blocks: thoughts, texts and calls.

use std::sync::Arc;

use answer_format::Part;
use axum::response::Response;
use engine::ModelCard;
use messages::FinishReason;
use serde::Serialize;
use serde_json::{Value, json};

use crate::answers::{Answers, Piece};
use crate::app::App;
use crate::reply::{
    ApiError, CallIds, ChunkWriter, Dialect, ErrorObject, EventWriter, Usage, ended, finish_reason,
    json_response,
};

/// Thoughts come with a signature, which clients send back; nobody needs to check it here.
const SIGNATURE: &str = "unsigned";
/// Claude Code gives up 300 s after the last event that is no ping. A message that begins with the
/// 17th ping, of one in 15 s, after 255 s, if not before, has it wait for 555 s in all.
const PINGS_BEFORE_BEGIN: u32 = 16;

/// Turns pieces into Anthropic's events.
pub(super) struct Writer {
    id: String,
    model: String,
    ids: CallIds,
    /// The caller's own stop texts: others are the model's way to end.
    stops: Vec<String>,
    begun: bool,
    /// Sent while there was nothing to say.
    pings: u32,
    /// The kind of the block that is open.
    block: Option<Kind>,
    /// Blocks that are closed.
    closed: usize,
    has_called: bool,
    end: Option<MessageEnd>,
    /// Before the answer: only what was read of it.
    pub(super) usage: Usage,
    explanation: Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Call,
}

/// A block of an answer that is told as a whole.
struct Block {
    kind: Kind,
    /// Of a call.
    name: String,
    /// Or arguments.
    text: String,
}

impl Block {
    /// Adds a part to the blocks before it: to the last, or as one of its own.
    fn add(blocks: &mut Vec<Self>, part: Part) {
        let (kind, name, text) = match part {
            Part::Thought(text) => (Kind::Thinking, String::new(), text),
            Part::Text(text) => (Kind::Text, String::new(), text),
            Part::CallName(name) => (Kind::Call, name, String::new()),
            Part::CallArguments(text) => (Kind::Call, String::new(), text),
        };
        match blocks.last_mut().filter(|last| last.kind == kind && name.is_empty()) {
            Some(last) => last.text.push_str(&text),
            None => blocks.push(Self { kind, name, text }),
        }
    }

    fn object(&self, ids: &CallIds) -> Value {
        let Self { kind, name, text } = self;
        match kind {
            Kind::Thinking => {
                json!({"type": "thinking", "thinking": text, "signature": SIGNATURE})
            }
            Kind::Text => json!({"type": "text", "text": text}),
            Kind::Call => {
                // An answer that was cut off may have written half an object.
                let input = serde_json::from_str(text).unwrap_or_else(|_| json!({}));
                json!({"type": "tool_use", "id": ids.fresh_use(), "name": name, "input": input})
            }
        }
    }
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
    content: Vec<Value>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<&'a str>,
    usage: MessageUsage,
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

impl Writer {
    pub(super) fn new(app: &Arc<App>, card: &ModelCard, stops: Vec<String>) -> Self {
        Self {
            id: app.fresh_name("msg_"),
            model: card.id.clone(),
            ids: CallIds::new(app, card),
            stops,
            begun: false,
            pings: 0,
            block: None,
            closed: 0,
            has_called: false,
            end: None,
            usage: Usage::new(0),
            explanation: None,
        }
    }

    fn message_end(
        &self,
        reason: Option<FinishReason>,
        stop: Option<&str>,
        has_called: bool,
    ) -> Result<MessageEnd, ApiError> {
        let stop = stop.filter(|stop| self.stops.iter().any(|own| own == stop));
        let (stop_reason, stop_sequence) = match (finish_reason(reason)?, stop) {
            ("length", _) => ("max_tokens", None),
            (_, Some(stop)) => ("stop_sequence", Some(stop.to_owned())),
            (_, None) if has_called => ("tool_use", None),
            (_, None) => ("end_turn", None),
        };
        Ok(MessageEnd { stop_reason, stop_sequence })
    }

    fn message<'a>(&'a self, content: Vec<Value>, end: Option<&'a MessageEnd>) -> Message<'a> {
        Message {
            id: &self.id,
            kind: "message",
            role: "assistant",
            model: &self.model,
            content,
            stop_reason: end.map(|end| end.stop_reason),
            stop_sequence: end.and_then(|end| end.stop_sequence.as_deref()),
            usage: self.usage.into(),
        }
    }

    fn begin(&mut self, events: &mut EventWriter) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let start = json!({"type": "message_start", "message": self.message(Vec::new(), None)});
        events.write_named("message_start", &start);
    }

    /// Opens a block, and closes the one before it.
    fn open(&mut self, kind: Kind, block: &Value, events: &mut EventWriter) {
        self.close(events);
        self.block = Some(kind);
        let (name, index) = ("content_block_start", self.closed);
        events.write_named(name, &json!({"type": name, "index": index, "content_block": block}));
        if self.closed == 0 {
            events.write_named("ping", &json!({"type": "ping"}));
        }
    }

    fn close(&mut self, events: &mut EventWriter) {
        let Some(kind) = self.block.take() else { return };
        if kind == Kind::Thinking {
            self.add(&json!({"type": "signature_delta", "signature": SIGNATURE}), events);
        }
        let (name, index) = ("content_block_stop", self.closed);
        events.write_named(name, &json!({"type": name, "index": index}));
        self.closed += 1;
    }

    fn add(&self, delta: &Value, events: &mut EventWriter) {
        let (name, index) = ("content_block_delta", self.closed);
        events.write_named(name, &json!({"type": name, "index": index, "delta": delta}));
    }

    fn part(&mut self, part: &Part, events: &mut EventWriter) {
        match part {
            Part::Thought(text) => {
                if self.block != Some(Kind::Thinking) {
                    let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                    self.open(Kind::Thinking, &block, events);
                }
                self.add(&json!({"type": "thinking_delta", "thinking": text}), events);
            }
            Part::Text(text) => {
                if self.block != Some(Kind::Text) {
                    self.open(Kind::Text, &json!({"type": "text", "text": ""}), events);
                }
                self.add(&json!({"type": "text_delta", "text": text}), events);
            }
            Part::CallName(name) => {
                self.has_called = true;
                let id = self.ids.fresh_use();
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open(Kind::Call, &block, events);
            }
            Part::CallArguments(text) => {
                self.add(&json!({"type": "input_json_delta", "partial_json": text}), events);
            }
        }
    }
}

impl ChunkWriter for Writer {
    async fn collect(mut self, mut answers: Answers) -> Result<Response, ApiError> {
        let (mut blocks, mut end) = (Vec::new(), None);
        while let Some((_, piece)) =
            std::future::poll_fn(|context| answers.poll_next(context)).await
        {
            piece.parts.into_iter().for_each(|part| Block::add(&mut blocks, part));
            if let Some((reason, stop)) = ended(piece.end.as_ref())? {
                let has_called = blocks.iter().any(|block| block.kind == Kind::Call);
                end = Some(self.message_end(Some(reason), stop, has_called)?);
            }
        }
        if blocks.is_empty() {
            Block::add(&mut blocks, Part::Text(String::new()));
        }
        self.usage = answers.usage();
        let content = blocks.iter().map(|block| block.object(&self.ids)).collect();
        Ok(json_response(&self.message(content, end.as_ref())))
    }

    fn piece(
        &mut self,
        _index: usize,
        piece: &Piece,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        let ended = ended(piece.end.as_ref())?;
        self.begin(events);
        for part in &piece.parts {
            self.part(part, events);
        }
        if let Some((reason, stop)) = ended {
            self.end = Some(self.message_end(Some(reason), stop, self.has_called)?);
        }
        Ok(())
    }

    fn explain(&mut self, explanation: Value, _: &mut EventWriter) {
        self.explanation = Some(explanation);
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        self.begin(events);
        if self.block.is_none() && self.closed == 0 {
            self.open(Kind::Text, &json!({"type": "text", "text": ""}), events);
        }
        self.close(events);
        let mut delta = json!({"type": "message_delta", "delta": self.end,
            "usage": MessageUsage::from(usage)});
        if let Some(explanation) = self.explanation.take() {
            delta["x_explain"] = explanation;
        }
        events.write_named("message_delta", &delta);
        events.write_named("message_stop", &json!({"type": "message_stop"}));
    }

    /// Anthropic's own event for it.
    fn keep_alive(&mut self, events: &mut EventWriter) {
        self.pings += 1;
        if self.pings > PINGS_BEFORE_BEGIN {
            self.begin(events);
        }
        events.write_named("ping", &json!({"type": "ping"}));
    }

    fn error(&mut self, error: &ApiError, events: &mut EventWriter) {
        events.write_named("error", &ErrorObject::new(error, Dialect::Anthropic));
    }
}
