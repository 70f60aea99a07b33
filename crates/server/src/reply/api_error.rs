//! How is a request refused? With a status and a printable text that names the field.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use messages::{Fault, Refusal, RefusalKind};
use serde::Serialize;

use super::dialect::{Dialect, ErrorObject};
use super::json_response;

/// A refusal or failure on its way to the caller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) body: ErrorBody,
    /// After which time the same request is likely to succeed, where it may.
    retry_after: Duration,
}

/// OpenAI's error object.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ErrorBody {
    pub(crate) message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    pub(crate) param: Option<String>,
    pub(super) code: Option<&'static str>,
}

/// Anthropic's code for a request with a conversation that cannot be kept, by which its packages
/// know to send it whole.
pub(super) const NO_THREADS: &str = "thread_unsupported_request";
const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
/// Longer texts repeat what the caller sent.
const MESSAGE_CHARS_MAX: usize = 1000;
/// One step of a busy engine frees a place within about this time.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: &str,
    ) -> Self {
        let body = ErrorBody { message: printable(message), kind, param: None, code };
        Self { status, body, retry_after: RETRY_AFTER }
    }

    pub(crate) fn invalid(field: Option<&str>, message: impl AsRef<str>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, INVALID, None, message.as_ref());
        error.body.param = field.map(printable);
        error
    }

    pub(crate) fn unknown_field(field: &str, message: &str) -> Self {
        let mut error = Self::invalid(Some(field), message);
        error.body.code = Some("unknown_parameter");
        error
    }

    pub(crate) fn unsupported(field: &str, message: &str) -> Self {
        let mut error = Self::invalid(Some(field), message);
        error.body.code = Some("unsupported_parameter");
        error
    }

    /// Of a conversation that the server is to keep.
    pub(crate) fn no_threads(field: &str) -> Self {
        let text = format!(
            "`{field}` is not supported: send the whole conversation, of which the cache has what \
             was read before"
        );
        let mut error = Self::invalid(Some(field), text);
        error.body.code = Some(NO_THREADS);
        error
    }

    /// Of a part that is not text, where only text can be read.
    pub(crate) fn no_text(place: &str, kind: &str) -> Self {
        let kind: String = kind.chars().take(40).collect();
        Self::unsupported(place, &format!("{place} is `{kind}`; only texts are supported"))
    }

    pub(crate) fn unknown_model(name: &str, known: &str) -> Self {
        let name: String = name.chars().take(100).collect();
        let text = format!("the model `{name}` is not here; there are {known}, also as `default`");
        let code = Some("model_not_found");
        let mut error = Self::new(StatusCode::NOT_FOUND, INVALID, code, &text);
        error.body.param = Some("model".to_owned());
        error
    }

    pub(crate) fn unknown_response(id: &str, field: &str) -> Self {
        let id: String = id.chars().take(100).collect();
        let text = format!("there is no response `{id}` of yours here; it may have been forgotten");
        let code = Some("response_not_found");
        let mut error = Self::new(StatusCode::NOT_FOUND, INVALID, code, &text);
        error.body.param = Some(field.to_owned());
        error
    }

    /// `hint`: what to do instead.
    pub(crate) fn unknown_route(hint: &str) -> Self {
        let text = format!("there is nothing at this path; {hint}");
        Self::new(StatusCode::NOT_FOUND, INVALID, Some("unknown_url"), &text)
    }

    pub(crate) fn wrong_method() -> Self {
        let text = "this path does not answer this method; the allow header lists those it does";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed"), text)
    }

    pub(crate) fn foreign_host() -> Self {
        let text = "the Host header names another machine; add the name to allowed_hosts if it is \
                    this one";
        Self::new(StatusCode::FORBIDDEN, INVALID, Some("foreign_host"), text)
    }

    pub(crate) fn not_local() -> Self {
        let text = "models are loaded and unloaded from this machine only, asked as localhost or \
                    127.0.0.1 and not through a proxy";
        Self::new(StatusCode::FORBIDDEN, INVALID, Some("not_local"), text)
    }

    pub(crate) fn no_admin() -> Self {
        let text = "this key may not load and unload models: it needs `admin: true`";
        Self::new(StatusCode::FORBIDDEN, INVALID, Some("no_admin"), text)
    }

    pub(crate) fn unauthorized(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"), message)
    }

    pub(crate) fn forbidden_model(name: &str) -> Self {
        let name: String = name.chars().take(100).collect();
        let text = format!("this key may not use the model `{name}`; see GET /v1/models");
        let code = Some("model_not_found");
        let mut error = Self::new(StatusCode::FORBIDDEN, INVALID, code, &text);
        error.body.param = Some("model".to_owned());
        error
    }

    pub(crate) fn too_urgent(field: &str) -> Self {
        let text = format!("{field} asks for more than this key may have: leave it out");
        let mut error = Self::new(StatusCode::FORBIDDEN, INVALID, Some("too_urgent"), &text);
        error.body.param = Some(field.to_owned());
        error
    }

    /// A key has used up what it may.
    pub(crate) fn over_limit(message: &str, is_quota: bool, retry_after: Duration) -> Self {
        let mut error = Self::busy(message);
        if is_quota {
            error.body.code = Some("insufficient_quota");
        }
        error.retry_after = retry_after;
        error
    }

    pub(crate) fn stopping() -> Self {
        Self::unavailable("the server is stopping; ask another, or this one when it is back")
    }

    pub(crate) fn uri_too_long(bytes_max: usize) -> Self {
        let text = format!("the path and query have more than {bytes_max} bytes");
        Self::new(StatusCode::URI_TOO_LONG, INVALID, None, &text)
    }

    pub(crate) fn head_too_large(bytes_max: usize) -> Self {
        let text = format!("the request line and headers have more than {bytes_max} bytes");
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID, None, &text)
    }

    pub(crate) fn not_json() -> Self {
        let text = "the body must come as content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, None, text)
    }

    pub(crate) fn encoded() -> Self {
        let text = "the body is compressed (content-encoding): send it as it is";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, None, text)
    }

    pub(crate) fn body_too_large(bytes_max: usize) -> Self {
        let text = format!("the body has more than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, None, &text)
    }

    pub(crate) fn body_too_slow() -> Self {
        let text = "the body came too slowly; it must come at 1 KiB/s or faster";
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, None, text)
    }

    pub(crate) fn busy(message: &str) -> Self {
        let code = Some("rate_limit_exceeded");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
    }

    pub(crate) fn unavailable(message: &str) -> Self {
        let code = Some("service_unavailable");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message)
    }

    /// The engine failed under this request; the same request may succeed.
    pub(crate) fn failed(fault: &Fault) -> Self {
        tracing::error!(fault = %printable(&fault.0), "an answer failed");
        let text = format!("the answer failed: {fault}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("engine_failed"), &text)
    }

    /// The request's own deadline passed before the answer was complete.
    pub(crate) fn late(message: &str) -> Self {
        let code = Some("deadline_exceeded");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", code, message)
    }

    pub(crate) fn internal() -> Self {
        let text = "the server failed on this request; please report it";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, None, text)
    }

    pub(crate) fn into_response(self, dialect: Dialect) -> Response {
        let mut response = json_response(&ErrorObject::new(&self, dialect));
        *response.status_mut() = self.status;
        let may_retry = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if may_retry.contains(&self.status) {
            // Whole seconds, rounded up: RFC 9110 has no smaller unit.
            let seconds = self.retry_after.as_millis().div_ceil(1000) as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        let is_hopeless = self.body.code == Some("insufficient_quota");
        if self.status == StatusCode::GATEWAY_TIMEOUT || is_hopeless {
            // OpenAI's clients try again after a 429 or a 504, unless they are told not to: what a
            // day allows is used up, or the caller has said that it is too late.
            response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.message.as_str();
        let mut error = match refusal.kind {
            RefusalKind::Invalid => Self::invalid(None, text),
            RefusalKind::TooLong => {
                Self::new(StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded"), text)
            }
            RefusalKind::UnknownModel => {
                Self::new(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), text)
            }
            RefusalKind::Conflict => {
                Self::new(StatusCode::CONFLICT, INVALID, Some("model_in_use"), text)
            }
            RefusalKind::Busy => Self::busy(text),
            RefusalKind::Unavailable => Self::unavailable(text),
            RefusalKind::Late => Self::late(text),
        };
        error.body.param = refusal.field.as_deref().map(printable);
        error.retry_after = refusal.retry_after.unwrap_or(RETRY_AFTER);
        error
    }
}

/// Printable ASCII, so that no terminal or log that shows the text can be talked to by it.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(MESSAGE_CHARS_MAX));
    for letter in text.chars().take(MESSAGE_CHARS_MAX) {
        if matches!(letter, ' '..='~') {
            shown.push(letter);
        } else {
            shown.extend(letter.escape_default());
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_printable_and_bounded() {
        let error = ApiError::unknown_model("a\u{1b}[31m\n\u{e9}", "`b`");
        assert!(error.body.message.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        assert!(error.body.message.contains("\\u{1b}[31m\\n\\u{e9}"), "{}", error.body.message);
        let long = ApiError::invalid(None, "\u{1f600}".repeat(100_000));
        assert!(long.body.message.len() <= 10 * MESSAGE_CHARS_MAX);
    }

    #[test]
    fn refusals_keep_their_kind_and_field() {
        let cases = [
            (Refusal::invalid("top_p", "x"), 400, Some("top_p"), false),
            (Refusal::too_long("messages", 9, 8), 400, Some("messages"), false),
            (Refusal::new(RefusalKind::UnknownModel, "x"), 404, None, false),
            (Refusal::new(RefusalKind::Conflict, "x"), 409, None, false),
            (Refusal::new(RefusalKind::Busy, "x"), 429, None, true),
            (Refusal::new(RefusalKind::Unavailable, "x"), 503, None, true),
            (Refusal::new(RefusalKind::Late, "x"), 504, None, false),
        ];
        for (refusal, status, field, may_retry) in cases {
            let error = ApiError::from(refusal);
            assert_eq!(error.status.as_u16(), status);
            assert_eq!(error.body.param.as_deref(), field);
            let response = error.into_response(Dialect::OpenAi);
            assert_eq!(response.headers().contains_key("retry-after"), may_retry, "{status}");
        }
        let too_long = ApiError::from(Refusal::too_long("messages", 9, 8)).body;
        assert_eq!(too_long.code, Some("context_length_exceeded"));
        // What Claude Code and LangChain look for.
        assert!(too_long.message.contains("prompt is too long: 9 tokens > 8 maximum"));
        assert!(too_long.message.contains("maximum context length is 8 tokens"));
        let retry_after = Some(Duration::from_millis(2100));
        let refusal = Refusal { retry_after, ..Refusal::new(RefusalKind::Unavailable, "x") };
        let response = ApiError::from(refusal).into_response(Dialect::OpenAi);
        assert_eq!(response.headers()["retry-after"], "3");
    }
}
