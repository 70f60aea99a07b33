//! Whose shapes does a reply have? Each API's clients read errors in its own form only.

use serde::Serialize;

use super::ApiError;
use super::api_error::{ErrorBody, NO_THREADS};

/// An API that clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Anthropic,
    Ollama,
    OpenAi,
}

impl Dialect {
    /// The API that a path belongs to; what belongs to none speaks OpenAI's.
    pub(crate) fn of(path: &str) -> Self {
        if path == "/v1/messages" || path.starts_with("/v1/messages/") {
            Self::Anthropic
        } else if path == "/api" || path.starts_with("/api/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }
}

/// An error object of one of the APIs.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum ErrorObject<'a> {
    OpenAi {
        error: &'a ErrorBody,
    },
    Anthropic {
        #[serde(rename = "type")]
        kind: &'static str,
        error: AnthropicError<'a>,
    },
    Ollama {
        error: &'a str,
    },
}

#[derive(Serialize)]
pub(crate) struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<AnthropicDetails<'a>>,
}

/// What Anthropic's packages act upon.
#[derive(Serialize)]
struct AnthropicDetails<'a> {
    error_code: &'static str,
    unsupported: &'a [String],
}

impl<'a> ErrorObject<'a> {
    pub(crate) fn new(error: &'a ApiError, dialect: Dialect) -> Self {
        let message = error.body.message.as_str();
        match dialect {
            Dialect::OpenAi => Self::OpenAi { error: &error.body },
            Dialect::Ollama => Self::Ollama { error: message },
            Dialect::Anthropic => {
                let kind = anthropic_kind(error.status.as_u16());
                let code = error.body.code.filter(|&code| code == NO_THREADS);
                let details = code.map(|error_code| AnthropicDetails {
                    error_code,
                    unsupported: error.body.param.as_slice(),
                });
                Self::Anthropic { kind: "error", error: AnthropicError { kind, message, details } }
            }
        }
    }
}

/// Anthropic's words for the statuses that this server gives.
fn anthropic_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        504 => "timeout_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_reads_its_own_errors() {
        let error = ApiError::busy("too many");
        let json = |path| {
            let object = ErrorObject::new(&error, Dialect::of(path));
            serde_json::to_string(&object).unwrap_or_default()
        };
        assert_eq!(json("/api/chat"), r#"{"error":"too many"}"#);
        let anthropic =
            r#"{"type":"error","error":{"type":"rate_limit_error","message":"too many"}}"#;
        assert_eq!(json("/v1/messages/count_tokens"), anthropic);
        assert!(json("/v1/messagesx").starts_with(r#"{"error":{"message":"too many","type":"#));
    }
}
