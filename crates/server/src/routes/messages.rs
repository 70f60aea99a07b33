//! `POST /v1/messages`: the same question in Anthropic's form.

mod anthropic_writer;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use engine::{ModelCard, Prompt};
use messages::SamplingParams;
use serde_json::json;

use anthropic_writer::Writer;

use super::Answer;
use crate::answers::Answers;
use crate::app::App;
use crate::reply::{ApiError, json_response, respond};
use crate::request::{
    AnthropicMessages, Bounds, Fields, GenerationFields, SharingHeaders, read_anthropic_dialog,
    read_anthropic_messages, read_body, read_output_config, read_stop, read_urgency,
};

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let mut asked = read_fields(&mut fields, &card, &headers, app.bounds(started))?;
        let mut dialog = read_anthropic_dialog(&mut fields)?;
        asked.params.constraint = read_output_config(&mut fields, &mut dialog)?;
        let AnthropicMessages { messages, tools_named, is_continued } =
            read_anthropic_messages(&mut fields)?;
        dialog.tools.load_deferred(&tools_named);
        dialog.hold(&mut asked, &card)?;
        asked.params.validate(card.vocabulary_size)?;
        let explains = headers.explains(&mut fields)?;
        fields.finish()?;
        drop(body);
        let conversation =
            chat::Conversation { is_continued, ..dialog.conversation(messages, &card) };
        let setup = dialog.reader(&card, &asked);
        let stream = asked.stream;
        let mut writer = Writer::new(&app, &card, asked.stops().to_vec());
        let requests = asked.into_requests(&card.id, vec![Prompt::Chat(conversation)]);
        let answers = Answers::admit(&app, requests, Some(&setup)).await?;
        writer.usage = answers.usage();
        respond(&app, answers, writer, (stream.is_on(), explains)).await
    })
}

/// Fields that are accepted only where they ask for nothing.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("container", &[]),
    ("mcp_servers", &["[]"]),
    ("service_tier", &["\"auto\"", "\"standard_only\""]),
    ("speed", &["\"standard\""]),
];

/// Fields that change nothing here: where it is computed, for whom, what is cached, and which
/// models answer when one declines to, as none here does.
const LABELS: [&str; 6] =
    ["cache_control", "fallbacks", "inference_geo", "metadata", "user_profile_id", "workspace_id"];

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
    fields.neutral("thread", &[]).map_err(|_| ApiError::no_threads("thread"))?;
    for &(name, neutral) in NEUTRAL {
        fields.neutral(name, neutral)?;
    }
    for name in LABELS {
        fields.label(name);
    }
    let namespace = headers.namespace(fields)?;
    let (urgency, _) = read_urgency(fields, bounds)?;
    let params = SamplingParams { temperature, top_p, top_k, max_tokens, ..default };
    Ok(GenerationFields::single(params, stop, is_streamed, (namespace, headers.mode), urgency))
}

/// `POST /v1/messages/count_tokens`: how long is this conversation for the model?
pub(super) fn count_tokens(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let mut dialog = read_anthropic_dialog(&mut fields)?;
        read_output_config(&mut fields, &mut dialog)?;
        let AnthropicMessages { messages, tools_named, is_continued } =
            read_anthropic_messages(&mut fields)?;
        dialog.tools.load_deferred(&tools_named);
        for &(name, neutral) in NEUTRAL {
            fields.neutral(name, neutral)?;
        }
        for name in LABELS {
            fields.label(name);
        }
        fields.finish()?;
        drop(body);
        let conversation = dialog.conversation(messages, &card);
        let prompt = Prompt::Chat(chat::Conversation { is_continued, ..conversation });
        let encoded = app.service.encode(&card.id, prompt).await?;
        Ok(json_response(&json!({"input_tokens": encoded.ids.len()})))
    })
}
