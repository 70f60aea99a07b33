//! Is there a body of JSON, of allowed size, in time? Checked before any of it is parsed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use hyper::body::Body as HttpBody;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::fields::{Description, Fields};
use crate::app::App;
use crate::reply::{ApiError, Dialect};

/// A request's body and its share of the bytes that may be held at once.
pub(crate) struct HeldBody<'a> {
    bytes: Vec<u8>,
    share: Option<SemaphorePermit<'a>>,
    description: Option<Description>,
}

impl HeldBody<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// # Errors
    /// 400 where it is not one JSON object or names a field twice.
    pub(crate) fn fields(&self) -> Result<Fields<'_>, ApiError> {
        Ok(Fields::parse(&self.bytes)?.described(self.description.clone()))
    }
}

/// A client that sends a little too much is read to its end, so that it finds our answer instead
/// of a broken connection.
const EXCESS_TIMES: usize = 4;

/// Reads a JSON body.
///
/// # Errors
/// 415 for another content type or a compressed body, 413 when it is too large, 408 when it comes
/// more slowly than 1 KiB/s, 429 when too many bytes are held for others.
pub(crate) async fn read_body(app: &Arc<App>, request: Request) -> Result<HeldBody<'_>, ApiError> {
    let (mut parts, mut body) = request.into_parts();
    let description = parts.extensions.remove::<Description>();
    // Ollama's clients leave it out, as its own documentation does.
    let may_leave_out = Dialect::of(parts.uri.path()) == Dialect::Ollama;
    let is_left_out = may_leave_out && is_of_no_page(&parts.headers);
    if !is_json(&parts.headers) && !is_left_out {
        return Err(ApiError::not_json());
    }
    if let Some(encoding) = parts.headers.get(header::CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(ApiError::encoded());
    }
    let bytes_max = app.options.listen.request_body_bytes_max;
    let declared = body.size_hint().lower();
    let too_large = ApiError::body_too_large(bytes_max);
    let waits = parts.headers.contains_key(header::EXPECT);
    let hopeless = bytes_max.saturating_mul(EXCESS_TIMES) as u64;
    if declared > hopeless || (waits && declared > bytes_max as u64) {
        return Err(too_large);
    }
    let mut held = HeldBody { bytes: Vec::new(), share: None, description: description.clone() };
    let mut bytes_seen = 0_usize;
    let started = Instant::now();
    let earned = |bytes: usize| Duration::from_millis(bytes as u64 * 1000 / 1024);
    loop {
        let deadline = started + app.options.patience.body + earned(bytes_seen.min(bytes_max));
        let frame = timeout_at(deadline, next_data(&mut body));
        let data = match frame.await {
            Err(_) => return Err(ApiError::body_too_slow()),
            Ok(Err(_)) => return Err(ApiError::invalid(None, "the body broke off")),
            Ok(Ok(None)) => break,
            Ok(Ok(Some(data))) => data,
        };
        bytes_seen += data.len();
        if bytes_seen > bytes_max.saturating_mul(EXCESS_TIMES) {
            return Err(too_large);
        }
        if bytes_seen > bytes_max {
            // Read on without keeping it.
            held = HeldBody { bytes: Vec::new(), share: None, description: description.clone() };
            continue;
        }
        hold(app, &mut held, &data)?;
    }
    if bytes_seen > bytes_max { Err(too_large) } else { Ok(held) }
}

fn hold<'a>(app: &'a App, held: &mut HeldBody<'a>, data: &Bytes) -> Result<(), ApiError> {
    let busy = || ApiError::busy("too many large requests at once; send the request again later");
    let count = u32::try_from(data.len()).map_err(|_| busy())?;
    let more = app.body_bytes.try_acquire_many(count).map_err(|_| busy())?;
    match &mut held.share {
        Some(before) => before.merge(more),
        None => held.share = Some(more),
    }
    held.bytes.extend_from_slice(data);
    Ok(())
}

/// The next bytes of a body; `None` at its end.
pub(crate) async fn next_data(body: &mut Body) -> Result<Option<Bytes>, axum::Error> {
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame.transpose()?.map(hyper::body::Frame::into_data) {
            Some(Ok(data)) => return Ok(Some(data)),
            // Trailers say nothing here.
            Some(Err(_)) => {}
            None => return Ok(None),
        }
    }
}

/// No browser sends a page's POST without saying whose page it is.
fn is_of_no_page(headers: &HeaderMap) -> bool {
    ["origin", "referer", "sec-fetch-site"].iter().all(|name| !headers.contains_key(*name))
}

/// Also what keeps pages of other sites from posting: they cannot send this type unasked.
fn is_json(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else { return false };
    let essence = kind.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case("application/json")
}
