//! Who asks, and may they?
//!
//! Without keys, whoever reaches the server may ask, as the [`Caller::Anyone`] that tells tenants
//! apart by what they send. With keys, every path but those of [`OPEN`] needs one, also paths that
//! lead nowhere, so that a route is closed unless it is named here.

mod allowance;
mod key_ring;
mod new_key;

use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderMap, HeaderValue, Method, header};
use config::AccessConfig;
use messages::Priority;

use crate::reply::ApiError;
use allowance::{Denied, Exhausted, Gauge};

pub(crate) use allowance::Entry;
pub(crate) use key_ring::{Key, KeyRing};
pub use new_key::NewKey;

/// Paths that balancers ask, and pages that ask their reader for a key.
const OPEN: [&str; 7] =
    ["/", "/dashboard", "/health", "/health/ready", "/ping", "/ready", "/v1/health"];
/// The files of those pages.
const OPEN_FOLDER: &str = "/pages/";
const METRICS: &str = "/metrics";
/// Orders and not questions: not counted as requests.
const UNCOUNTED: [&str; 3] = ["/api/show", "/models/load", "/models/unload"];

/// Who sent a request.
#[derive(Clone)]
pub(crate) enum Caller {
    /// There are no keys, or the path needs none.
    Anyone,
    Key(Arc<Key>),
}

/// The keys, and what may be seen without one.
#[derive(Default)]
pub(crate) struct Access {
    keys: KeyRing,
    open_metrics: bool,
}

impl Access {
    pub(crate) fn new(config: &AccessConfig, before: &Self) -> Self {
        Self { keys: KeyRing::new(config, &before.keys), open_metrics: config.open_metrics }
    }

    pub(crate) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Whose request it is.
    ///
    /// # Errors
    /// 401 when a key is needed and none, or none of ours, was sent.
    pub(crate) fn caller(&self, path: &str, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let is_open = OPEN.contains(&path)
            || path.starts_with(OPEN_FOLDER)
            || (self.open_metrics && path == METRICS);
        if is_open || self.keys.is_empty() {
            return Ok(Caller::Anyone);
        }
        let Some(sent) = sent_key(headers)? else {
            let text = "this server needs a key: send it as `Authorization: Bearer KEY` or \
                        `x-api-key: KEY`";
            return Err(ApiError::unauthorized(text));
        };
        match self.keys.find(sent) {
            Some(key) => Ok(Caller::Key(key)),
            None => Err(ApiError::unauthorized("the key is not one of this server's")),
        }
    }
}

impl Caller {
    fn key(&self) -> Option<&Key> {
        match self {
            Self::Anyone => None,
            Self::Key(key) => Some(key),
        }
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.key().map(|key| key.name.as_str())
    }

    /// `None`: to be told apart by what they send.
    pub(crate) fn tenant(&self) -> Option<&str> {
        self.key().map(|key| key.tenant.as_str())
    }

    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.key().is_none_or(|key| key.may_use(model))
    }

    /// `None`: it has no key to say so.
    pub(crate) fn is_admin(&self) -> Option<bool> {
        self.key().map(|key| key.is_admin)
    }

    /// What a request is that names no priority, and the highest that it may name.
    pub(crate) fn priorities(&self) -> (Priority, Priority) {
        let of_key = |key: &Key| (key.priority, key.priority);
        self.key().map_or((Priority::Normal, Priority::High), of_key)
    }

    /// A request begins, if it is one that counts and the key still may.
    ///
    /// # Errors
    /// 429 with the limit and the time after which it is worth asking again.
    pub(crate) fn enter(&self, method: &Method, path: &str) -> Result<Option<Entry>, ApiError> {
        let Some(key) = self.key() else { return Ok(None) };
        if *method != Method::POST || UNCOUNTED.contains(&path) {
            return Ok(None);
        }
        key.allowance.enter(Instant::now()).map(Some).map_err(|denied| refusal(&denied))
    }

    pub(crate) fn charge(&self, tokens: u64) {
        if let Some(key) = self.key() {
            key.allowance.charge(tokens, Instant::now());
        }
    }

    /// OpenAI's headers that say how much is left.
    pub(crate) fn write_limits(&self, headers: &mut HeaderMap) {
        let Some(key) = self.key() else { return };
        let now = Instant::now();
        if let Some(gauge) = key.allowance.requests(now) {
            write_gauge(
                headers,
                &gauge,
                [
                    "x-ratelimit-limit-requests",
                    "x-ratelimit-remaining-requests",
                    "x-ratelimit-reset-requests",
                ],
            );
        }
        if let Some(gauge) = key.allowance.tokens(now) {
            write_gauge(
                headers,
                &gauge,
                [
                    "x-ratelimit-limit-tokens",
                    "x-ratelimit-remaining-tokens",
                    "x-ratelimit-reset-tokens",
                ],
            );
        }
    }
}

fn write_gauge(headers: &mut HeaderMap, gauge: &Gauge, names: [&'static str; 3]) {
    let [limit, remaining, reset] = names;
    headers.insert(limit, HeaderValue::from(gauge.limit));
    headers.insert(remaining, HeaderValue::from(gauge.remaining));
    let text = format!("{}ms", gauge.reset.as_millis());
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(reset, value);
    }
}

fn refusal(denied: &Denied) -> ApiError {
    let allowed = denied.allowed;
    let text = match denied.limit {
        Exhausted::Concurrent => format!("this key may have {allowed} requests under way at once"),
        Exhausted::Requests => format!("this key may send {allowed} requests a minute"),
        Exhausted::Tokens => format!("this key may use {allowed} tokens a minute"),
        Exhausted::Day => format!("this key may use {allowed} tokens within 24 hours"),
    };
    let is_quota = denied.limit == Exhausted::Day;
    ApiError::over_limit(&format!("{text}; try again later"), is_quota, denied.retry_after)
}

/// The key that a request carries: a bearer token or Anthropic's `x-api-key`.
///
/// # Errors
/// 401 when one header is there more than once, or both and they differ: which one counts must not
/// depend on who looks.
fn sent_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let bearer = single(headers, header::AUTHORIZATION.as_str())?.map(|text| {
        let (scheme, key) = text.split_once(' ').unwrap_or(("", text));
        if scheme.eq_ignore_ascii_case("bearer") { key.trim() } else { "" }
    });
    let api_key = single(headers, "x-api-key")?.map(str::trim);
    match (bearer, api_key) {
        (Some(one), Some(other)) if one != other => {
            let text = "`authorization` and `x-api-key` carry different keys: send one of them";
            Err(ApiError::unauthorized(text))
        }
        (bearer, api_key) => Ok(bearer.or(api_key)),
    }
}

fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    let text = first.map(|value| value.to_str());
    match (text, second) {
        (None, _) => Ok(None),
        (Some(Ok(text)), None) => Ok(Some(text)),
        (Some(_), _) => {
            Err(ApiError::unauthorized(&format!("the header {name} must be there once, as ASCII")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_key_comes_in_one_of_two_headers() {
        let read = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for &(name, value) in pairs {
                headers.append(name, HeaderValue::from_static(value));
            }
            sent_key(&headers).map(|key| key.map(str::to_owned)).ok()
        };
        let key = Some(Some("k".to_owned()));
        assert_eq!(read(&[]), Some(None));
        assert_eq!(read(&[("authorization", "Bearer k")]), key);
        assert_eq!(read(&[("authorization", "bearer  k ")]), key);
        assert_eq!(read(&[("x-api-key", "k")]), key);
        assert_eq!(read(&[("authorization", "Bearer k"), ("x-api-key", "k")]), key);
        assert_eq!(read(&[("authorization", "Bearer k"), ("x-api-key", "l")]), None);
        assert_eq!(read(&[("authorization", "Bearer k"), ("authorization", "Bearer k")]), None);
        for other in ["k", "Basic k", "Bearer"] {
            assert_eq!(read(&[("authorization", other)]), Some(Some(String::new())), "{other}");
        }
    }
}
