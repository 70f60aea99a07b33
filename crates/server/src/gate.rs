//! What holds for every request, whatever its route? Names it, checks where it comes from, catches
//! panics, counts and logs it.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tower_service::Service;

use crate::app::App;
use crate::reply::{ApiError, Dialect};
use crate::routes::RouteLabel;
use crate::timed_stream::Phase;

/// Longer than any URL of this API with any sane model name.
const URI_BYTES_MAX: usize = 8 << 10;

/// Request headers that pages of allowed origins may set.
const ALLOWED_HEADERS: &str = "anthropic-beta, anthropic-version, authorization, content-type, \
    x-api-key, x-pelton-cache-salt, x-pelton-explain, x-pelton-sharing, x-request-id";

/// Answers one request; never fails, so that a connection ends only by its peer or by time.
pub(crate) async fn answer(
    app: Arc<App>,
    router: Router,
    phase: Arc<Phase>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    phase.request_came();
    let started = Instant::now();
    let id = request_id(request.headers()).unwrap_or_else(|| app.fresh_name("req-"));
    let method = request.method().clone();
    let origin = app.live().hosts.allowed_origin(request.headers());
    let checked = check(&app, &request);
    let dialect = Dialect::of(request.uri().path());
    let mut response = match checked {
        Err(error) => error.into_response(dialect),
        Ok(()) if origin.is_some() && is_preflight(&request) => preflight(),
        Ok(()) => dispatch(router, request, dialect).await,
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        if dialect == Dialect::Anthropic {
            headers.insert("request-id", value.clone());
        }
        headers.insert("x-request-id", value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if app.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    let route = response.extensions().get::<RouteLabel>().map_or("other", |label| label.0);
    app.metrics.count_response(route, response.status().as_u16());
    let line = LogLine { id, method, route, status: response.status(), started };
    Ok(response.map(|body| Body::new(Tracked { body, _end: Ended { phase, line } })))
}

fn check(app: &App, request: &Request<Incoming>) -> Result<(), ApiError> {
    // `to_string` would allocate what the client sent once more; the parts' lengths do.
    let uri = request.uri();
    let bytes = uri.path().len() + uri.query().map_or(0, str::len);
    if bytes > URI_BYTES_MAX {
        return Err(ApiError::uri_too_long(URI_BYTES_MAX));
    }
    app.live().hosts.check(request.version(), uri, request.headers())?;
    if app.is_draining() && !TELLS_OF_STOPPING.contains(&uri.path()) {
        return Err(ApiError::stopping());
    }
    Ok(())
}

/// What is answered to the last: it is how one sees that the server is stopping.
const TELLS_OF_STOPPING: [&str; 4] = ["/health", "/health/ready", "/metrics", "/ready"];

/// The caller's own id if it is one that logs and headers can carry.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let is_sane = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    ((1..=128).contains(&id.len()) && id.bytes().all(is_sane)).then(|| id.to_owned())
}

fn is_preflight(request: &Request<Incoming>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let mut allow = |name, value| headers.insert(name, HeaderValue::from_static(value));
    allow(header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST");
    allow(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_HEADERS);
    allow(header::ACCESS_CONTROL_MAX_AGE, "600");
    response
}

async fn dispatch(mut router: Router, request: Request<Incoming>, dialect: Dialect) -> Response {
    let mut handling = pin!(router.call(request));
    let caught = std::future::poll_fn(|context| {
        // A handler that panicked is never polled again, so nobody sees its broken state; what it
        // shares with others is behind locks and atomics.
        let polled = catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(context)));
        polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
    });
    match caught.await {
        Some(Ok(response)) => response,
        Some(Err(never)) => match never {},
        None => {
            tracing::error!("a handler panicked");
            ApiError::internal().into_response(dialect)
        }
    }
}

/// A response body that knows when it has ended or was dropped.
struct Tracked {
    body: Body,
    _end: Ended,
}

struct Ended {
    phase: Arc<Phase>,
    line: LogLine,
}

/// Nothing of a request's content: an id of checked letters, a route of ours, numbers.
struct LogLine {
    id: String,
    method: Method,
    route: &'static str,
    status: StatusCode,
    started: Instant,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.phase.response_ended();
        let line = &self.line;
        tracing::info!(
            id = %line.id,
            method = known_method(&line.method),
            route = line.route,
            status = line.status.as_u16(),
            ms = line.started.elapsed().as_millis() as u64,
            "request"
        );
    }
}

/// Methods are free text on the wire; the log shows only those we know.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
