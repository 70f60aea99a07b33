//! `POST /v1/chat/completions`: what does the model say next in this conversation?

use std::sync::Arc;

use answer_format::{Call, Part};
use axum::extract::Request;
use axum::response::Response;
use engine::Prompt;
use messages::FinishReason;
use serde::Serialize;
use serde_json::Value;

use super::Answer;
use crate::answers::{Answers, Piece};
use crate::app::{App, unix_seconds};
use crate::reply::{
    ApiError, CallIds, ChatLogprobs, Choice, ChunkWriter, EventWriter, Usage, ended, finish_reason,
    json_response, respond, system_fingerprint,
};
use crate::request::{
    Bounds, Fields, GenerationFields, Logprobs, RequestSize, SharingHeaders, read_body,
    read_continuation, read_dialog, read_messages,
};

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = std::time::Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let bounds = app.bounds(started);
        let size = body.bytes().len();
        let (card, mut asked) = read_fields(&app, &mut fields, &headers, (size, bounds))?;
        let dialog = read_dialog(&mut fields)?;
        dialog.hold(&mut asked, &card)?;
        asked.params.validate(card.vocabulary_size)?;
        let messages = read_messages(&mut fields)?;
        let is_continued = read_continuation(&mut fields, &messages)?;
        let explains = headers.explains(&mut fields)?;
        fields.finish()?;
        drop(body);
        let conversation =
            chat::Conversation { is_continued, ..dialog.conversation(messages, &card) };
        let setup = dialog.reader(&card, &asked);
        let writer = Writer {
            id: app.fresh_name("chatcmpl-"),
            created: unix_seconds(),
            model: card.id.clone(),
            fingerprint: system_fingerprint(&card),
            service_tier: asked.service_tier,
            with_usage: asked.stream.include_usage(),
            with_logprobs: asked.params.logprobs.is_some(),
            has_begun: false,
            ids: CallIds::new(&app, &card),
            calls: vec![0; asked.choices as usize],
            is_legacy: dialog.tools.is_legacy,
        };
        let stream = asked.stream;
        let requests = asked.into_requests(&card.id, vec![Prompt::Chat(conversation)]);
        let answers = Answers::admit(&app, requests, Some(&setup)).await?;
        respond(&app, answers, writer, (stream.is_on(), explains)).await
    })
}

fn read_fields(
    app: &App,
    fields: &mut Fields<'_>,
    headers: &SharingHeaders,
    (body_bytes, bounds): (usize, Bounds),
) -> Result<(engine::ModelCard, GenerationFields), ApiError> {
    let card = app.pick_model(fields.string("model")?.as_deref())?;
    let mut asked = GenerationFields::read(fields, &card, headers, bounds)?;
    asked.params.logprobs = Logprobs::chat(fields)?;
    let context = i64::from(card.context_tokens_max);
    let newer = fields.integer("max_completion_tokens", 1..=context)?.map(|count| count as u32);
    match (asked.params.max_tokens, newer) {
        (Some(old), Some(new)) if old != new => {
            let text = format!("max_tokens is {old} and max_completion_tokens is {new}: send one");
            return Err(ApiError::invalid(Some("max_completion_tokens"), text));
        }
        (old, new) => asked.params.max_tokens = old.or(new),
    }
    for &(name, neutral) in NEUTRAL {
        fields.neutral(name, neutral)?;
    }
    let choices_max = bounds.choices_max;
    asked.check(&card, RequestSize { prompts: 1, choices_max, body_bytes })?;
    Ok((card, asked))
}

/// Fields that clients send by habit, with the values that ask for nothing we do not do.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("add_special_tokens", &["false"]),
    ("audio", &[]),
    ("echo", &["false"]),
    ("modalities", &["[\"text\"]"]),
    ("prediction", &[]),
    ("verbosity", &["\"low\"", "\"medium\"", "\"high\""]),
    ("web_search_options", &[]),
];

/// Turns deltas into OpenAI's chat objects.
struct Writer {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    service_tier: Option<&'static str>,
    with_usage: bool,
    with_logprobs: bool,
    /// Whether each choice's first chunk, which names the role, is out.
    has_begun: bool,
    ids: CallIds,
    /// Calls of each choice so far.
    calls: Vec<usize>,
    /// Calls are told in the older `function_call`.
    is_legacy: bool,
}

#[derive(Serialize)]
struct Completion<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    /// Where the request named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    choices: Vec<C>,
    /// Absent, null (a chunk before the last, where usage was asked for) or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_explain: Option<Value>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: MessageDelta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct MessageDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    /// Thoughts, by the name that DeepSeek gave them and by the one that others use.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallDelta<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<FunctionDelta<'a>>,
}

/// A call's beginning, with its id and name, or more of its arguments.
#[derive(Serialize)]
struct CallDelta<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Serialize)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

#[derive(Serialize)]
struct WholeChoice<'a> {
    index: usize,
    message: WholeMessage<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<&'a str>,
}

#[derive(Serialize)]
struct WholeMessage<'a> {
    role: &'static str,
    /// Null beside calls, where nothing else was said.
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallDelta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<FunctionDelta<'a>>,
}

impl Writer {
    fn object<'a, C>(
        &'a self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
    ) -> Completion<'a, C> {
        Completion {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            service_tier: self.service_tier,
            choices,
            usage,
            x_explain: None,
        }
    }

    fn write_chunk(&self, events: &mut EventWriter, choices: Vec<ChunkChoice<'_>>) {
        let usage = self.with_usage.then_some(None);
        events.write(&self.object("chat.completion.chunk", choices, usage));
    }
}

impl Writer {
    /// OpenAI's word for why an answer ended that may have called.
    fn call_reason(
        &self,
        reason: Option<FinishReason>,
        has_called: bool,
    ) -> Result<&'static str, ApiError> {
        Ok(match finish_reason(reason)? {
            "stop" if has_called && self.is_legacy => "function_call",
            "stop" if has_called => "tool_calls",
            reason => reason,
        })
    }

    fn whole<'a>(&self, choice: &'a Choice) -> WholeMessage<'a> {
        let thoughts = (!choice.thoughts.is_empty()).then_some(choice.thoughts.as_str());
        let has_said = !choice.text.is_empty() || choice.calls.is_empty();
        let call = |(index, call): (usize, &'a Call)| CallDelta {
            index,
            id: Some(self.ids.fresh()),
            kind: Some("function"),
            function: FunctionDelta { name: Some(&call.name), arguments: &call.arguments },
        };
        let legacy = choice.calls.first().filter(|_| self.is_legacy);
        let legacy =
            legacy.map(|call| FunctionDelta { name: Some(&call.name), arguments: &call.arguments });
        let calls = if self.is_legacy { &[][..] } else { &choice.calls };
        WholeMessage {
            role: "assistant",
            content: has_said.then_some(choice.text.as_str()),
            refusal: None,
            reasoning_content: thoughts,
            reasoning: thoughts,
            tool_calls: calls.iter().enumerate().map(call).collect(),
            function_call: legacy,
        }
    }

    /// What a part adds to the message of a choice.
    fn part<'a>(&mut self, index: usize, part: &'a Part) -> MessageDelta<'a> {
        let none = MessageDelta::default();
        match part {
            Part::CallName(name) if self.is_legacy => {
                self.calls[index] += 1;
                let function = FunctionDelta { name: Some(name), arguments: "" };
                MessageDelta { function_call: Some(function), ..none }
            }
            Part::CallArguments(text) if self.is_legacy => {
                let function = FunctionDelta { name: None, arguments: text };
                MessageDelta { function_call: Some(function), ..none }
            }
            Part::Text(text) => MessageDelta { content: Some(text), ..none },
            Part::Thought(text) => {
                let thought = Some(text.as_str());
                MessageDelta { reasoning_content: thought, reasoning: thought, ..none }
            }
            Part::CallName(name) => {
                self.calls[index] += 1;
                let id = Some(self.ids.fresh());
                let function = FunctionDelta { name: Some(name), arguments: "" };
                let place = self.calls[index] - 1;
                let call = CallDelta { index: place, id, kind: Some("function"), function };
                MessageDelta { tool_calls: Some([call]), ..none }
            }
            Part::CallArguments(text) => {
                let function = FunctionDelta { name: None, arguments: text };
                let place = self.calls[index].saturating_sub(1);
                let call = CallDelta { index: place, id: None, kind: None, function };
                MessageDelta { tool_calls: Some([call]), ..none }
            }
        }
    }
}

impl ChunkWriter for Writer {
    async fn collect(self, answers: Answers) -> Result<Response, ApiError> {
        let (collected, usage) = answers.collect().await?;
        let mut choices = Vec::with_capacity(collected.len());
        for (index, choice) in collected.iter().enumerate() {
            choices.push(WholeChoice {
                index,
                message: self.whole(choice),
                logprobs: self.with_logprobs.then(|| ChatLogprobs::new(&choice.tokens)),
                finish_reason: self.call_reason(choice.reason, !choice.calls.is_empty())?,
                stop_reason: choice.stop.as_deref(),
            });
        }
        Ok(json_response(&self.object("chat.completion", choices, Some(Some(usage)))))
    }

    fn piece(
        &mut self,
        index: usize,
        piece: &Piece,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        if !std::mem::replace(&mut self.has_begun, true) {
            // Of all, in order: OpenAI's client puts the first that it hears of at place 0.
            for index in 0..self.calls.len() {
                let role = Some("assistant");
                let delta = MessageDelta { role, content: Some(""), ..MessageDelta::default() };
                self.write_chunk(events, vec![ChunkChoice::new(index, delta)]);
            }
        }
        let mut logprobs = (self.with_logprobs && !piece.tokens.is_empty())
            .then(|| ChatLogprobs::new(&piece.tokens));
        let mut deltas: Vec<MessageDelta<'_>> =
            piece.parts.iter().map(|part| self.part(index, part)).collect();
        let (reason, stop) = match ended(piece.end.as_ref())? {
            Some((reason, stop)) => {
                (Some(self.call_reason(Some(reason), self.calls[index] > 0)?), stop)
            }
            None => (None, None),
        };
        if deltas.is_empty() && (logprobs.is_some() || reason.is_some()) {
            let content = reason.is_none().then_some("");
            deltas.push(MessageDelta { content, ..MessageDelta::default() });
        }
        let count = deltas.len();
        for (place, delta) in deltas.into_iter().enumerate() {
            let mut choice = ChunkChoice::new(index, delta);
            choice.logprobs = logprobs.take();
            if place + 1 == count {
                (choice.finish_reason, choice.stop_reason) = (reason, stop);
            }
            self.write_chunk(events, vec![choice]);
        }
        Ok(())
    }

    fn explain(&mut self, explanation: Value, events: &mut EventWriter) {
        let usage = self.with_usage.then_some(None);
        let chunk = self.object("chat.completion.chunk", Vec::<ChunkChoice<'_>>::new(), usage);
        events.write(&Completion { x_explain: Some(explanation), ..chunk });
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        if self.with_usage {
            let choices = Vec::<ChunkChoice<'_>>::new();
            events.write(&self.object("chat.completion.chunk", choices, Some(Some(usage))));
        }
        events.write_done();
    }
}

impl<'a> ChunkChoice<'a> {
    fn new(index: usize, delta: MessageDelta<'a>) -> Self {
        Self { index, delta, logprobs: None, finish_reason: None, stop_reason: None }
    }
}
