//! How do answers and refusals look on the wire?

mod api_error;
mod call_ids;
mod dialect;
mod events;
mod explaining;
mod logprobs;
mod ollama;

use answer_format::{Call, Part};
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use engine::{DeltaToken, End, ModelCard};
use messages::{FinishReason, ProposalCounts};
use serde::Serialize;

use crate::answers::Piece;
pub(crate) use api_error::ApiError;
pub(crate) use call_ids::CallIds;
pub(crate) use dialect::{Dialect, ErrorObject};
pub(crate) use events::{ChunkWriter, EventWriter, StreamForm, respond};
pub(crate) use logprobs::{ChatLogprobs, TextLogprobs, TokenScore};
pub(crate) use ollama::{OllamaForm, OllamaWriter, utc};

/// One finished answer of a request that is not streamed.
#[derive(Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) thoughts: String,
    pub(crate) calls: Vec<Call>,
    pub(crate) tokens: Vec<DeltaToken>,
    pub(crate) reason: Option<FinishReason>,
    pub(crate) stop: Option<String>,
}

impl Choice {
    pub(crate) fn add(&mut self, delta: Piece) {
        for part in delta.parts {
            match part {
                Part::Text(text) => self.text.push_str(&text),
                Part::Thought(text) => self.thoughts.push_str(&text),
                Part::CallName(name) => self.calls.push(Call { name, arguments: String::new() }),
                Part::CallArguments(text) => {
                    if let Some(call) = self.calls.last_mut() {
                        call.arguments.push_str(&text);
                    }
                }
            }
        }
        // Ids without log-probabilities are of no use to the reply.
        self.tokens.extend(delta.tokens.into_iter().filter(|token| token.logprob.is_some()));
        if let Some(End::Finished { reason, stop, .. }) = delta.end {
            self.reason = Some(reason);
            self.stop = stop;
        }
    }
}

/// Tokens read and written.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Clone, Copy, Default, Serialize)]
struct PromptTokensDetails {
    /// Found in the KV cache and not computed.
    cached_tokens: u64,
}

/// OpenAI's words for guesses at the answer that were checked on the way.
#[derive(Clone, Copy, Default, Serialize)]
struct CompletionTokensDetails {
    /// Of thoughts, where they are told apart from the answer.
    reasoning_tokens: u64,
    accepted_prediction_tokens: u64,
    rejected_prediction_tokens: u64,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens: 0,
            total_tokens: prompt_tokens,
            prompt_tokens_details: PromptTokensDetails::default(),
            completion_tokens_details: CompletionTokensDetails::default(),
        }
    }

    /// Counts tokens of thoughts, which are among those of the answer.
    pub(crate) fn add_thoughts(&mut self, tokens: u64) {
        self.completion_tokens_details.reasoning_tokens += tokens;
    }

    pub(crate) fn reasoning_tokens(&self) -> u64 {
        self.completion_tokens_details.reasoning_tokens
    }

    pub(crate) fn total_tokens(&self) -> u64 {
        self.total_tokens
    }

    pub(crate) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.cached_tokens
    }

    /// Counts a finished answer.
    pub(crate) fn add(
        &mut self,
        completion_tokens: u64,
        cached_tokens: u64,
        proposals: ProposalCounts,
    ) {
        self.prompt_tokens_details.cached_tokens += cached_tokens;
        self.completion_tokens += completion_tokens;
        self.total_tokens += completion_tokens;
        let details = &mut self.completion_tokens_details;
        details.accepted_prediction_tokens += u64::from(proposals.accepted);
        details.rejected_prediction_tokens += u64::from(proposals.rejected);
    }
}

/// How answers came about, for callers who want to know; printable.
pub(crate) struct Explanation {
    pub(crate) sharing: String,
    pub(crate) queue: String,
}

/// Why an answer ended and at which text; `None` while it goes on.
///
/// # Errors
/// When it failed or came too late.
pub(crate) fn ended(end: Option<&End>) -> Result<Option<(FinishReason, Option<&str>)>, ApiError> {
    match end {
        None => Ok(None),
        Some(End::Finished { reason, stop, .. }) => Ok(Some((*reason, stop.as_deref()))),
        Some(End::Refused(refusal)) => Err(refusal.clone().into()),
        Some(End::Failed(fault)) => Err(ApiError::failed(fault)),
        Some(End::Late(deadline)) => Err(ApiError::late(&deadline.text())),
    }
}

/// OpenAI's word for why an answer ended; an answer that was stopped from our side is an error.
pub(crate) fn finish_reason(
    reason: impl Into<Option<FinishReason>>,
) -> Result<&'static str, ApiError> {
    match reason.into() {
        Some(FinishReason::Stop) => Ok("stop"),
        Some(FinishReason::Length) => Ok("length"),
        Some(FinishReason::Cancelled) | None => {
            Err(ApiError::unavailable("the server is stopping; send the request again"))
        }
    }
}

/// What the answer depends on besides the request: our version and the device.
pub(crate) fn system_fingerprint(card: &ModelCard) -> String {
    format!("pelton-{}-{}", env!("CARGO_PKG_VERSION"), card.device)
}

pub(crate) fn json_response(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        Err(error) => {
            tracing::error!(%error, "cannot write a reply as JSON");
            ApiError::internal().into_response(Dialect::OpenAi)
        }
    }
}
