//! How did the answers come about, for callers who want to know? In the reply's headers what is
//! known when it begins, and as `x_explain` in its body what is known when it ends.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use messages::CachedEnd;
use serde_json::{Value, json};

use crate::answers::Answers;
use crate::request::{QUEUE, SHARING, next_data};
use crate::visit::{AnswerRecord, Visit};

use super::ApiError;

/// The field and the event.
pub(super) const NAME: &str = "x_explain";

/// All that is known of the request's answers.
pub(super) fn explanation(visit: &Visit) -> Value {
    let answers: Vec<Value> = visit.answers().iter().map(|answer| one(visit, answer)).collect();
    json!({"request_id": visit.id, "answers": answers})
}

fn one(visit: &Visit, answer: &AnswerRecord) -> Value {
    let first = answer.first_token.map(|first| first - visit.started);
    json!({
        "model": answer.model,
        "cache": answer.cache(),
        "why": answer.sharing.why,
        "queue_seconds": answer.queued.as_secs_f64(),
        "queue_before": answer.queued_behind,
        "prompt_tokens": answer.prompt_tokens,
        "cached_prompt_tokens": answer.cached.tokens,
        "cached_prompt_why": why_cached(answer.cached.end),
        "completion_tokens": answer.completion_tokens,
        "first_token_seconds": first.map(|first| first.as_secs_f64()),
        "guesses_accepted": answer.proposals.accepted,
        "guesses_rejected": answer.proposals.rejected,
    })
}

/// Why so much of the prompt was in the cache, and no more.
fn why_cached(end: CachedEnd) -> String {
    let text = match end {
        CachedEnd::Off => {
            "not looked for: none are kept for this model, or the request asks for no sharing"
        }
        CachedEnd::Shared => "the answer is another request's, prompt and all",
        CachedEnd::Whole => "all whole blocks of the prompt were cached",
        CachedEnd::Short => "the prompt is shorter than a block of the cache",
        CachedEnd::New => "nothing is cached for this key, salt and adapter: a first turn",
        CachedEnd::Ends => "what is cached ends there: a new turn",
        CachedEnd::Differs { at } => {
            return format!("what is cached has another token at position {at} of the prompt");
        }
        CachedEnd::Evicted => "what follows was cached and has been evicted: room was needed",
        CachedEnd::NoState => {
            "what follows is cached, but the state that this model carries was not kept there"
        }
    };
    text.to_owned()
}

/// The headers that say how the answers came about.
pub(super) fn headers(answers: &Answers) -> HeaderMap {
    let explanation = answers.explanation();
    let pairs = [(SHARING, explanation.sharing), (QUEUE, explanation.queue)];
    // Of our own printable text, so it always is a value.
    let header = |(name, text): (_, String)| {
        Some((HeaderName::from_static(name), HeaderValue::from_str(&text).ok()?))
    };
    pairs.into_iter().filter_map(header).collect()
}

/// A whole reply, which is one JSON object, with a field more at its end.
pub(super) async fn with_field(response: Response, value: &Value) -> Result<Response, ApiError> {
    let (parts, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = next_data(&mut body).await.map_err(|_| ApiError::internal())? {
        bytes.extend_from_slice(&data);
    }
    if bytes.pop() != Some(b'}') {
        tracing::error!("a reply to be explained is no JSON object");
        return Err(ApiError::internal());
    }
    bytes.extend_from_slice(format!(",\"{NAME}\":{value}}}").as_bytes());
    Ok(Response::from_parts(parts, Body::from(Bytes::from(bytes))))
}
