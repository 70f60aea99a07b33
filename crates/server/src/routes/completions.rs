//! `POST /v1/completions`: how does this text go on?

use std::sync::Arc;

use answer_format::Part;
use axum::extract::Request;
use axum::response::Response;
use engine::{ModelCard, Prompt};
use serde::Serialize;
use serde_json::Value;

use super::Answer;
use crate::answers::{Answers, Piece};
use crate::app::{App, unix_seconds};
use crate::reply::{
    ApiError, ChunkWriter, EventWriter, TextLogprobs, Usage, ended, finish_reason, json_response,
    respond, system_fingerprint,
};
use crate::request::{
    Bounds, Fields, GenerationFields, Logprobs, RequestSize, SharingHeaders, read_body,
    read_prompts,
};

/// OpenAI's default where `max_tokens` is absent.
const MAX_TOKENS_DEFAULT: u32 = 16;

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = std::time::Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let prompts = read_prompts(&mut fields, app.options.choices_max)?;
        let size = RequestSize {
            prompts: prompts.len(),
            choices_max: app.options.choices_max,
            body_bytes: body.bytes().len(),
        };
        let bounds = app.bounds(started);
        let asked = read_fields(&mut fields, &card, &headers, (size, bounds))?;
        let echoed = read_echo(&mut fields, &asked, &prompts)?;
        let explains = headers.explains(&mut fields)?;
        fields.finish()?;
        drop(body);
        let per_prompt = asked.choices as usize;
        let count = prompts.len() * per_prompt;
        let offsets = |index: usize| echoed.get(index / per_prompt).map_or(0, |text| chars(text));
        let writer = Writer {
            id: app.fresh_name("cmpl-"),
            created: unix_seconds(),
            model: card.id.clone(),
            fingerprint: system_fingerprint(&card),
            service_tier: asked.service_tier,
            with_usage: asked.stream.include_usage(),
            with_logprobs: asked.params.logprobs.is_some(),
            offsets: (0..count).map(offsets).collect(),
            echo: (0..count).map(|index| echoed.get(index / per_prompt).cloned()).collect(),
        };
        let stream = asked.stream;
        let requests = asked.into_requests(&card.id, prompts);
        let answers = Answers::admit(&app, requests, None).await?;
        respond(&app, answers, writer, (stream.is_on(), explains)).await
    })
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

fn read_fields(
    fields: &mut Fields<'_>,
    card: &ModelCard,
    headers: &SharingHeaders,
    (size, bounds): (RequestSize, Bounds),
) -> Result<GenerationFields, ApiError> {
    let mut asked = GenerationFields::read(fields, card, headers, bounds)?;
    asked.params.logprobs = Logprobs::text(fields)?;
    let default = MAX_TOKENS_DEFAULT.min(card.context_tokens_max).max(asked.params.min_tokens);
    asked.params.max_tokens = asked.params.max_tokens.or(Some(default));
    let best_of = fields.integer("best_of", 1..=i64::from(size.choices_max))?;
    if best_of.is_some_and(|best| best != i64::from(asked.choices)) {
        let text = "best_of other than n is not supported: ask for n answers and choose";
        return Err(ApiError::unsupported("best_of", text));
    }
    fields.neutral("suffix", &["\"\""])?;
    fields.neutral("add_special_tokens", &["true"])?;
    asked.check(card, size)?;
    Ok(asked)
}

/// The texts to put before the answers, one for each prompt; none without `echo`.
fn read_echo(
    fields: &mut Fields<'_>,
    asked: &GenerationFields,
    prompts: &[Prompt],
) -> Result<Vec<String>, ApiError> {
    if !fields.boolean("echo")?.unwrap_or(false) {
        return Ok(Vec::new());
    }
    if asked.params.logprobs.is_some() {
        let text = "echo together with logprobs is not supported: prompts are not scored";
        return Err(ApiError::unsupported("echo", text));
    }
    let text = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => Ok(text.clone()),
        Prompt::Tokens(_) | Prompt::Chat(_) | Prompt::Vector(_) => {
            Err(ApiError::unsupported("echo", "echo is supported for prompts given as text"))
        }
    };
    prompts.iter().map(text).collect()
}

/// Turns deltas into OpenAI's text completion objects.
struct Writer {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    service_tier: Option<&'static str>,
    with_usage: bool,
    with_logprobs: bool,
    /// Characters of each choice that are out already, prompt included where it is echoed.
    offsets: Vec<usize>,
    /// The prompt of each choice while it is still to be echoed.
    echo: Vec<Option<String>>,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    /// Where the request named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    choices: Vec<TextChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x_explain: Option<Value>,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    stop_reason: Option<&'a str>,
}

impl Writer {
    fn object<'a>(
        &'a self,
        choices: Vec<TextChoice<'a>>,
        usage: Option<Option<Usage>>,
    ) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            service_tier: self.service_tier,
            choices,
            usage,
            x_explain: None,
        }
    }
}

impl ChunkWriter for Writer {
    async fn collect(mut self, answers: Answers) -> Result<Response, ApiError> {
        let (collected, usage) = answers.collect().await?;
        let mut choices = Vec::with_capacity(collected.len());
        for (index, choice) in collected.iter().enumerate() {
            let logprobs = self
                .with_logprobs
                .then(|| TextLogprobs::new(&choice.tokens, &mut self.offsets[index]));
            let mut text = self.echo[index].take().unwrap_or_default();
            text.push_str(&choice.text);
            choices.push(TextChoice {
                index,
                text,
                logprobs,
                finish_reason: Some(finish_reason(choice.reason)?),
                stop_reason: choice.stop.as_deref(),
            });
        }
        Ok(json_response(&self.object(choices, Some(Some(usage)))))
    }

    fn piece(
        &mut self,
        index: usize,
        piece: &Piece,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        let logprobs = (self.with_logprobs && !piece.tokens.is_empty())
            .then(|| TextLogprobs::new(&piece.tokens, &mut self.offsets[index]));
        let (reason, stop) = match ended(piece.end.as_ref())? {
            Some((reason, stop)) => (Some(finish_reason(reason)?), stop),
            None => (None, None),
        };
        let mut text = self.echo[index].take().unwrap_or_default();
        for part in &piece.parts {
            // Nobody reads a completion: all of it is text.
            if let Part::Text(more) = part {
                text.push_str(more);
            }
        }
        if text.is_empty() && logprobs.is_none() && reason.is_none() {
            return Ok(());
        }
        let choice = TextChoice { index, text, logprobs, finish_reason: reason, stop_reason: stop };
        let usage = self.with_usage.then_some(None);
        events.write(&self.object(vec![choice], usage));
        Ok(())
    }

    fn explain(&mut self, explanation: Value, events: &mut EventWriter) {
        let chunk = self.object(Vec::new(), self.with_usage.then_some(None));
        events.write(&Completion { x_explain: Some(explanation), ..chunk });
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        if self.with_usage {
            events.write(&self.object(Vec::new(), Some(Some(usage))));
        }
        events.write_done();
    }
}
