//! How do the bytes of a URL reach a partial file, across cuts, redirects and odd servers?
//!
//! Source of the semantics: RFC 9110 (ranges: section 14, If-Range: 13.1.5, redirects: 15.4).

use std::io::Read;
use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

use crate::error::FetchError;
use crate::partial_file::{BLOCK_BYTES, PartialFile};
use crate::progress::{Event, Progress};
use crate::{Checksum, Settings};

/// A client that talks to one hub, and follows it elsewhere without its token.
pub(crate) struct HttpClient {
    agent: Agent,
    hub: Option<ServerName>,
    token: Option<String>,
}

/// Scheme, host and port: who would see a header.
#[derive(PartialEq)]
struct ServerName(String, String, u16);

/// The last reply of a chain of redirects, and what the earlier ones told about the file.
pub(crate) struct Reply {
    pub(crate) response: Response<Body>,
    pub(crate) linked: Linked,
}

/// The hub's redirect says size and SHA-256 of the file that it redirects to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Linked {
    pub(crate) bytes: Option<u64>,
    pub(crate) sha256: Option<Checksum>,
}

impl HttpClient {
    pub(crate) fn new(settings: &Settings) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Followed by hand, to decide about the token at every hop.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("pelton/", env!("CARGO_PKG_VERSION")))
            // Short, because another source waits; a link that needs longer to open than this is
            // too slow for a model anyway.
            .timeout_resolve(Some(Duration::from_secs(2)))
            .timeout_connect(Some(Duration::from_secs(3)))
            .timeout_recv_response(Some(Duration::from_secs(20)))
            // A stalled body ends the attempt, and the next one resumes.
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build()
            .new_agent();
        let hub = settings.hub_endpoint.parse().ok().as_ref().and_then(ServerName::of);
        Self { agent, hub, token: settings.hub_token.clone() }
    }

    /// Gets `url`, following at most 5 redirects; any status is a reply.
    pub(crate) fn get(&self, url: &str, headers: &[(&str, String)]) -> Result<Reply, String> {
        let mut linked = Linked::default();
        let mut target: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
        for _ in 0..=5 {
            let mut request = self.agent.get(&target).header("accept-encoding", "identity");
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(&target)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| unreachable_text(&target, &error))?;
            if self.is_hub(&target) {
                linked = linked.or(&response);
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Reply { response, linked });
            }
            target = redirect_target(&target, &response)?;
        }
        Err(format!("{url} redirects more than 5 times"))
    }

    fn is_hub(&self, target: &Uri) -> bool {
        self.hub.is_some() && ServerName::of(target) == self.hub
    }

    /// Brings the rest of `url` into `partial`, resuming as long as bytes arrive.
    pub(crate) fn download(
        &self,
        url: &str,
        partial: &mut PartialFile,
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        let mut fruitless_attempts = 0;
        loop {
            let before = partial.done_bytes();
            let interrupted = match self.attempt(url, partial, progress)? {
                Attempt::Complete => return Ok(()),
                Attempt::Interrupted(why) => why,
            };
            // Starting over on a server without ranges can end behind where it began.
            let gained = partial.done_bytes() > before;
            fruitless_attempts = if gained { 0 } else { fruitless_attempts + 1 };
            if fruitless_attempts == 3 {
                return Err(FetchError::Source(format!("{interrupted}; what arrived is kept")));
            }
            // One second, then two: enough for a server that restarts, short for a person.
            std::thread::sleep(Duration::from_secs(fruitless_attempts));
        }
    }

    fn attempt(
        &self,
        url: &str,
        partial: &mut PartialFile,
        progress: &mut dyn Progress,
    ) -> Result<Attempt, FetchError> {
        if partial.is_whole() {
            return Ok(Attempt::Complete);
        }
        let asked_from = resume_point(partial)?;
        let mut headers = Vec::new();
        if asked_from > 0 {
            headers.push(("range", format!("bytes={asked_from}-")));
            headers.extend(partial.etag().map(|etag| ("if-range", etag)));
        }
        let Reply { response, linked } = self.get(url, &headers).map_err(FetchError::Source)?;
        partial.expected.bytes = partial.expected.bytes.or(linked.bytes);
        partial.expected.sha256 = partial.expected.sha256.or(linked.sha256);
        match response.status() {
            StatusCode::OK => {
                partial.restart()?;
                partial.expected.bytes = partial.expected.bytes.or(content_length(&response));
            }
            StatusCode::PARTIAL_CONTENT => match content_range(&response) {
                Some((from, total)) if from == asked_from && fits(total, partial) => {
                    partial.expected.bytes = partial.expected.bytes.or(total);
                }
                _ => {
                    partial.restart()?;
                    return Ok(Attempt::Interrupted("gives another range than asked".to_owned()));
                }
            },
            StatusCode::RANGE_NOT_SATISFIABLE => {
                partial.restart()?;
                return Ok(Attempt::Interrupted("has fewer bytes than were resumed".to_owned()));
            }
            status => return Err(FetchError::Source(status_text(url, status, &self.token))),
        }
        if let Some(etag) = strong_etag(&response) {
            partial.set_etag(&etag)?;
        }
        receive(response, partial, progress)
    }
}

enum Attempt {
    Complete,
    Interrupted(String),
}

fn receive(
    response: Response<Body>,
    partial: &mut PartialFile,
    progress: &mut dyn Progress,
) -> Result<Attempt, FetchError> {
    let total_bytes = partial.expected.bytes;
    progress.event(Event::Bytes { done_bytes: partial.done_bytes(), total_bytes });
    let mut body = response.into_body().into_reader();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let count = match body.read(&mut block) {
            Ok(0) if total_bytes.is_none_or(|total| total == partial.done_bytes()) => {
                partial.expected.bytes = Some(partial.done_bytes());
                return Ok(Attempt::Complete);
            }
            Ok(0) => return Ok(Attempt::Interrupted("the connection was cut".to_owned())),
            Ok(count) => count,
            Err(error) => return Ok(Attempt::Interrupted(format!("connection lost: {error}"))),
        };
        partial.append(&block[..count])?;
        progress.event(Event::Bytes { done_bytes: partial.done_bytes(), total_bytes });
    }
}

/// Where to go on from: without a version or a checksum to hold on to, from the start.
fn resume_point(partial: &mut PartialFile) -> Result<u64, FetchError> {
    if partial.etag().is_none() && partial.expected.sha256.is_none() && partial.done_bytes() > 0 {
        partial.restart()?;
    }
    Ok(partial.done_bytes())
}

fn fits(total: Option<u64>, partial: &PartialFile) -> bool {
    total.is_none() || partial.expected.bytes.is_none() || total == partial.expected.bytes
}

impl ServerName {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().or(match scheme.as_str() {
            "https" => Some(443),
            "http" => Some(80),
            _ => None,
        })?;
        Some(Self(scheme, uri.host()?.to_ascii_lowercase(), port))
    }
}

impl Linked {
    fn or(self, response: &Response<Body>) -> Self {
        let digits = text(response, "x-linked-etag").map(|etag| etag.trim_matches('"').to_owned());
        Self {
            bytes: self.bytes.or_else(|| text(response, "x-linked-size")?.parse().ok()),
            sha256: self.sha256.or_else(|| Checksum::parse(&digits?)),
        }
    }
}

fn redirect_target(from: &Uri, response: &Response<Body>) -> Result<Uri, String> {
    let location = text(response, "location")
        .ok_or_else(|| format!("{from} redirects without saying where to"))?;
    let scheme = from.scheme_str().unwrap_or("https");
    let absolute = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        let authority = from.authority().map_or("", |authority| authority.as_str());
        format!("{scheme}://{authority}{location}")
    } else {
        return Err(format!("{from} redirects to the unusable address `{location}`"));
    };
    let target: Uri =
        absolute.parse().map_err(|_| format!("{from} redirects to the unusable `{absolute}`"))?;
    match (scheme, target.scheme_str()) {
        (_, Some("https")) | ("http", Some("http")) => Ok(target),
        _ => Err(format!("{from} redirects to `{absolute}`, which is not secured")),
    }
}

fn text<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn content_length(response: &Response<Body>) -> Option<u64> {
    text(response, "content-length")?.parse().ok()
}

/// `bytes FROM-TO/TOTAL` as its first and last number; `*` stands for an unknown total.
fn content_range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let (range, total) =
        text(response, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    let from = range.split_once('-')?.0.parse().ok()?;
    Some((from, if total == "*" { None } else { Some(total.parse().ok()?) }))
}

/// RFC 9110 section 13.1.5: a weak tag cannot guard a range.
fn strong_etag(response: &Response<Body>) -> Option<String> {
    text(response, "etag").filter(|etag| etag.starts_with('"')).map(str::to_owned)
}

fn unreachable_text(target: &Uri, error: &ureq::Error) -> String {
    format!("{} cannot be reached: {error}", target.host().unwrap_or("the server"))
}

pub(crate) fn status_text(url: &str, status: StatusCode, token: &Option<String>) -> String {
    let hint = match (status.as_u16(), token) {
        (401 | 403, None) => " (a private or gated model needs HF_TOKEN)",
        (401 | 403, Some(_)) => " (HF_TOKEN has no right to it)",
        (404, _) => " (no such repository, revision or file)",
        (429, _) => " (too many requests; try again later)",
        _ => "",
    };
    format!("{url} answers {status}{hint}")
}
