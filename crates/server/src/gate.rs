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
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tower_service::Service;

use crate::access::{Caller, Entry};
use crate::app::{Live, Shared};
use crate::reply::{ApiError, Dialect};
use crate::routes::route_of;
use crate::timed_stream::Phase;
use crate::visit::{Departure, Visit};

/// Longer than any URL of this API with any sane model name.
const URI_BYTES_MAX: usize = 8 << 10;

/// Reply headers that they may read.
const EXPOSED_HEADERS: &str = "request-id, retry-after, x-pelton-queue, x-pelton-sharing, \
    x-ratelimit-limit-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, \
    x-ratelimit-remaining-tokens, x-ratelimit-reset-requests, x-ratelimit-reset-tokens, \
    x-request-id, x-should-retry";

/// Answers one request; never fails, so that a connection ends only by its peer or by time.
pub(crate) async fn answer<B>(
    app: Arc<Shared>,
    router: Router,
    phase: Arc<Phase>,
    mut request: Request<B>,
) -> Result<Response<Body>, Infallible>
where
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
{
    phase.request_came();
    let started = Instant::now();
    let live = app.live();
    let id = request_id(request.headers()).unwrap_or_else(|| app.fresh_name("req-"));
    let method = known_method(request.method());
    let trace = app.trace_context(request.headers());
    let origin = live.hosts.allowed_origin(request.headers());
    let dialect = Dialect::of(request.uri().path());
    let is_preflight = origin.is_some() && is_preflight(&request);
    let wished = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut visit = Visit::new(id, Caller::Anyone, trace, started);
    let mut entry = None;
    let passed = match check(&app, &live, &request) {
        // Browsers ask whether they may send a key before they do.
        Ok(()) if !is_preflight => {
            admit(&live, &request, &mut visit.caller).map(|entered| entry = entered)
        }
        passed => passed,
    };
    let visit = Arc::new(visit);
    let route = route_of(request.uri().path());
    let departure =
        Departure { visit: Arc::clone(&visit), method, route, status: GONE, ended: started };
    let mut end = Ended { app: Arc::clone(&app), phase, departure, _entry: entry };
    let mut response = match passed {
        Err(error) => error.into_response(dialect),
        Ok(()) if is_preflight => preflight(wished),
        Ok(()) => {
            request.extensions_mut().insert(Arc::clone(&visit));
            dispatch(router, request, dialect).await
        }
    };
    write_headers(&app, &visit, dialect, response.headers_mut());
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        let exposed = HeaderValue::from_static(EXPOSED_HEADERS);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    end.departure.status = response.status().as_u16();
    app.metrics.count_response(route, end.departure.status);
    Ok(response.map(|body| Body::new(Tracked { body, _end: end })))
}

/// The status of a request whose sender left before there was one, as nginx has it.
const GONE: u16 = 499;

/// What every reply says.
fn write_headers(app: &Shared, visit: &Visit, dialect: Dialect, headers: &mut HeaderMap) {
    visit.caller.write_limits(headers);
    if let Ok(value) = HeaderValue::from_str(&visit.id) {
        if dialect == Dialect::Anthropic {
            headers.insert("request-id", value.clone());
        }
        headers.insert("x-request-id", value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if app.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Who asks, told apart before anything of the body is read.
fn admit<B>(
    live: &Live,
    request: &Request<B>,
    caller: &mut Caller,
) -> Result<Option<Entry>, ApiError> {
    let path = request.uri().path();
    *caller = live.access.caller(path, request.headers())?;
    caller.enter(request.method(), path)
}

fn check<B>(app: &Shared, live: &Live, request: &Request<B>) -> Result<(), ApiError> {
    // `to_string` would allocate what the client sent once more; the parts' lengths do.
    let uri = request.uri();
    let bytes = uri.path().len() + uri.query().map_or(0, str::len);
    if bytes > URI_BYTES_MAX {
        return Err(ApiError::uri_too_long(URI_BYTES_MAX));
    }
    // hyper's buffer may hold more than its bound when a head comes in few pieces.
    let head_bytes_max = live.listen.request_head_bytes_max;
    if head_bytes(request) > head_bytes_max {
        return Err(ApiError::head_too_large(head_bytes_max));
    }
    live.hosts.check(request.version(), uri, request.headers())?;
    if app.is_draining() && !TELLS_OF_STOPPING.contains(&uri.path()) {
        return Err(ApiError::stopping());
    }
    Ok(())
}

/// Of the request line and the headers, as they came.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let uri = request.uri().path().len() + request.uri().query().map_or(0, str::len);
    let line = request.method().as_str().len() + uri + "  HTTP/1.1\r\n\r\n".len();
    let header = |(name, value): (&HeaderName, &HeaderValue)| {
        name.as_str().len() + value.len() + ": \r\n".len()
    };
    line + request.headers().iter().map(header).sum::<usize>()
}

/// What is answered to the last: it is how one sees that the server is stopping.
const TELLS_OF_STOPPING: [&str; 6] =
    ["/health", "/health/ready", "/metrics", "/ping", "/ready", "/v1/health"];

/// The caller's own id if it is one that logs and headers can carry.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get("x-request-id")?.to_str().ok()?;
    let is_sane = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    ((1..=128).contains(&id.len()) && id.bytes().all(is_sane)).then(|| id.to_owned())
}

fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// A page of an allowed origin may set the headers that it wishes to: vendors' clients send a dozen
/// of their own, with each version others, and none of them can do more than a program could.
fn preflight(wished: Option<HeaderValue>) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let mut allow = |name, value| headers.insert(name, HeaderValue::from_static(value));
    allow(header::ACCESS_CONTROL_ALLOW_METHODS, "DELETE, GET, POST");
    allow(header::ACCESS_CONTROL_MAX_AGE, "600");
    if let Some(wished) = wished {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wished);
    }
    response
}

async fn dispatch<B>(mut router: Router, request: Request<B>, dialect: Dialect) -> Response
where
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
{
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

/// A response body, and what happens when it has ended or was dropped.
struct Tracked {
    body: Body,
    _end: Ended,
}

struct Ended {
    app: Arc<Shared>,
    phase: Arc<Phase>,
    departure: Departure,
    /// The request's place among those that its key may have at once.
    _entry: Option<Entry>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.phase.response_ended();
        let departure = &mut self.departure;
        departure.ended = Instant::now();
        // Nothing of a request's content: an id of checked letters, a key's name, a route of ours.
        tracing::info!(
            id = %departure.visit.id,
            key = departure.visit.caller.name().unwrap_or("-"),
            method = departure.method,
            route = departure.route,
            status = departure.status,
            ms = (departure.ended - departure.visit.started).as_millis() as u64,
            "request"
        );
        self.app.outside.tell(departure);
    }
}

/// Methods are free text on the wire; the log shows only those we know.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::DELETE => "DELETE",
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
