//! `POST /v1/chat/completions`: what does the model say next in this conversation?

use std::sync::Arc;

use axum::extract::Request;
use axum::response::Response;
use engine::{Delta, Prompt};
use serde::Serialize;

use super::Answer;
use crate::answers::Answers;
use crate::app::{App, unix_seconds};
use crate::reply::{
    ApiError, ChatLogprobs, ChunkWriter, EventWriter, Usage, ended, finish_reason, json_response,
    respond, system_fingerprint,
};
use crate::request::{
    Bounds, Fields, GenerationFields, Logprobs, RequestSize, SharingHeaders, read_body,
    read_messages,
};

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = std::time::Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = Fields::parse(body.bytes())?;
        let bounds = app.options.bounds(started);
        let size = body.bytes().len();
        let (card, asked) = read_fields(&app, &mut fields, &headers, (size, bounds))?;
        let messages = read_messages(&mut fields)?;
        fields.finish()?;
        drop(body);
        let writer = Writer {
            id: app.fresh_name("chatcmpl-"),
            created: unix_seconds(),
            model: card.id.clone(),
            fingerprint: system_fingerprint(&card),
            service_tier: asked.service_tier,
            with_usage: asked.stream.include_usage(),
            with_logprobs: asked.params.logprobs.is_some(),
            begun: vec![false; asked.choices as usize],
        };
        let stream = asked.stream;
        let requests = asked.into_requests(&card.id, vec![Prompt::Chat(messages)]);
        let answers = Answers::admit(&app, requests, started).await?;
        respond(&app, answers, writer, (stream.is_on(), headers.explains)).await
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
    ("add_generation_prompt", &["true"]),
    ("add_special_tokens", &["false"]),
    ("audio", &[]),
    ("continue_final_message", &["false"]),
    ("echo", &["false"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("modalities", &["[\"text\"]"]),
    ("parallel_tool_calls", &["true", "false"]),
    ("prediction", &[]),
    ("reasoning_effort", &[]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("tools", &["[]"]),
    ("verbosity", &[]),
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
    /// Choices whose first chunk, which names the role, is out.
    begun: Vec<bool>,
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
    content: &'a str,
    refusal: Option<()>,
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
        }
    }

    fn write_chunk(&self, events: &mut EventWriter, choices: Vec<ChunkChoice<'_>>) {
        let usage = self.with_usage.then_some(None);
        events.write(&self.object("chat.completion.chunk", choices, usage));
    }
}

impl ChunkWriter for Writer {
    async fn collect(self, answers: Answers) -> Result<Response, ApiError> {
        let (collected, usage) = answers.collect().await?;
        let mut choices = Vec::with_capacity(collected.len());
        for (index, choice) in collected.iter().enumerate() {
            choices.push(WholeChoice {
                index,
                message: WholeMessage { role: "assistant", content: &choice.text, refusal: None },
                logprobs: self.with_logprobs.then(|| ChatLogprobs::new(&choice.tokens)),
                finish_reason: finish_reason(choice.reason)?,
                stop_reason: choice.stop.as_deref(),
            });
        }
        Ok(json_response(&self.object("chat.completion", choices, Some(Some(usage)))))
    }

    fn delta(
        &mut self,
        index: usize,
        delta: &Delta,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        if !self.begun[index] {
            self.begun[index] = true;
            let delta = MessageDelta { role: Some("assistant"), content: Some("") };
            let choice = ChunkChoice {
                index,
                delta,
                logprobs: None,
                finish_reason: None,
                stop_reason: None,
            };
            self.write_chunk(events, vec![choice]);
        }
        let logprobs = (self.with_logprobs && !delta.tokens.is_empty())
            .then(|| ChatLogprobs::new(&delta.tokens));
        let (reason, stop) = match ended(delta)? {
            Some((reason, stop)) => (Some(finish_reason(reason)?), stop),
            None => (None, None),
        };
        if delta.text.is_empty() && logprobs.is_none() && reason.is_none() {
            return Ok(());
        }
        let content = (!delta.text.is_empty() || reason.is_none()).then_some(delta.text.as_str());
        let choice = ChunkChoice {
            index,
            delta: MessageDelta { role: None, content },
            logprobs,
            finish_reason: reason,
            stop_reason: stop,
        };
        self.write_chunk(events, vec![choice]);
        Ok(())
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        if self.with_usage {
            let choices = Vec::<ChunkChoice<'_>>::new();
            events.write(&self.object("chat.completion.chunk", choices, Some(Some(usage))));
        }
        events.write_done();
    }
}
