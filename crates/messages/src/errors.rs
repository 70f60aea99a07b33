//! Whose fault is it? A [`Refusal`] is the caller's, a [`Fault`] the machine's.

use std::time::Duration;

/// A request that is not served, and why; the text is for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// The request field at fault, where one is.
    pub field: Option<String>,
    pub message: String,
    /// After which time the same request is likely to be served, where that is known.
    pub retry_after: Option<Duration>,
}

/// What the caller can do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// The request cannot be served as written (HTTP 400).
    Invalid,
    /// Prompt and answer do not fit into the context (HTTP 400): clients shorten and try again.
    TooLong,
    /// The model asked for is not here (HTTP 404).
    UnknownModel,
    /// What is asked for cannot be while something else is so, which the caller can change or wait
    /// for (HTTP 409).
    Conflict,
    /// Too much is waiting; the same request may succeed later (HTTP 429).
    Busy,
    /// The server is stopping or broken (HTTP 503).
    Unavailable,
    /// Its own deadline passed before it was answered (HTTP 504).
    Late,
}

impl Refusal {
    pub fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(RefusalKind::Invalid, message) }
    }

    /// A prompt that leaves no room for an answer; in the words that clients of OpenAI's and of
    /// Anthropic's look for before they shorten a conversation.
    pub fn too_long(field: &str, prompt_tokens: u64, context_tokens: u64) -> Self {
        let text = format!(
            "the prompt is too long: {prompt_tokens} tokens > {context_tokens} maximum; this \
             model's maximum context length is {context_tokens} tokens, of prompt and answer: \
             shorten the prompt"
        );
        Self { field: Some(field.to_owned()), ..Self::new(RefusalKind::TooLong, text) }
    }

    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, field: None, message: message.into(), retry_after: None }
    }
}

/// The machine failed: device, disk or memory. The request may be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);
