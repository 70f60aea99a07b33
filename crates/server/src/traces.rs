//! How did each request spend its time? Spans of OpenTelemetry, sent to a collector.
//!
//! OTLP over HTTP in its JSON form, written here: it is one kind of message, and the crates that
//! know all of the protocol would be more packages than the rest of this server has. A thread of
//! its own makes spans of departed requests and sends them in batches; it is told through a bounded
//! queue, so a collector that is slow or gone costs spans, which are counted, and never a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use config::TracesConfig;
use serde_json::{Value, json};

use crate::ServerError;
use crate::visit::{AnswerRecord, Departure, Visit};

/// Requests that are sent together.
const BATCH_MAX: usize = 256;
/// How long a request waits for others at most.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// For a batch, connecting included.
const SEND_MAX: Duration = Duration::from_secs(10);

/// OTLP's numbers for the kinds of a span, and for a status.
const KIND_INTERNAL: u32 = 1;
const KIND_SERVER: u32 = 2;
const STATUS_ERROR: u32 = 2;

pub(crate) struct Traces {
    /// `None` once they end.
    departures: Option<SyncSender<Departure>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
    sample_percent: u32,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl Traces {
    /// `None`: the configuration wants none.
    ///
    /// # Errors
    /// [`ServerError::Traces`] when the thread cannot be started or the endpoint is no URL.
    pub(crate) fn start(config: &TracesConfig) -> Result<Option<Self>, ServerError> {
        let Some(endpoint) = config.endpoint.clone() else { return Ok(None) };
        let failed = |problem: String| ServerError::Traces { endpoint: endpoint.clone(), problem };
        let is_web = endpoint.starts_with("http://") || endpoint.starts_with("https://");
        if !is_web || endpoint.parse::<axum::http::Uri>().is_err() {
            return Err(failed("it must be a URL of http or https".to_owned()));
        }
        let counts = Arc::new(Counts::default());
        let sender = Sender {
            client: client(),
            endpoint: endpoint.clone(),
            service_name: config.service_name.clone(),
            counts: Arc::clone(&counts),
        };
        let (departures, told) = sync_channel(config.queue_max as usize);
        let thread = std::thread::Builder::new().name("traces".to_owned());
        let thread =
            thread.spawn(move || sender.run(&told)).map_err(|error| failed(error.to_string()))?;
        let sample_percent = config.sample_percent;
        Ok(Some(Self {
            departures: Some(departures),
            thread: Some(thread),
            counts,
            sample_percent,
        }))
    }

    /// Whether a trace that begins here is one to be sent.
    pub(crate) fn samples(&self, trace: u128) -> bool {
        // Its low bits are as good as random.
        (trace % 100) < u128::from(self.sample_percent)
    }

    pub(crate) fn send(&self, departure: &Departure) {
        if !departure.visit.trace.is_sampled {
            return;
        }
        let sent = self.departures.as_ref().map(|queue| queue.try_send(departure.clone()));
        if matches!(sent, Some(Err(_))) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests whose spans were taken by the collector.
    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Traces {
    /// Sends what is left; a collector that does not answer holds this up for one batch.
    fn drop(&mut self) {
        self.departures = None;
        if let Some(thread) = self.thread.take() {
            // It panics never; if it did, there is nobody to tell.
            let _ = thread.join();
        }
    }
}

fn client() -> ureq::Agent {
    let config = ureq::Agent::config_builder();
    config.timeout_global(Some(SEND_MAX)).max_redirects(0).build().into()
}

struct Sender {
    client: ureq::Agent,
    endpoint: String,
    service_name: String,
    counts: Arc<Counts>,
}

impl Sender {
    fn run(self, departures: &Receiver<Departure>) {
        let mut is_over = false;
        let mut failures = 0_u32;
        while !is_over {
            let Ok(first) = departures.recv() else { return };
            let mut batch = vec![first];
            let deadline = Instant::now() + BATCH_WAIT;
            while batch.len() < BATCH_MAX {
                let left = deadline.saturating_duration_since(Instant::now());
                match departures.recv_timeout(left) {
                    Ok(departure) => batch.push(departure),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        is_over = true;
                        break;
                    }
                }
            }
            let count = batch.len() as u64;
            match self.post(&batch) {
                Ok(()) => {
                    failures = 0;
                    self.counts.sent.fetch_add(count, Ordering::Relaxed);
                }
                Err(error) => {
                    self.counts.dropped.fetch_add(count, Ordering::Relaxed);
                    // A collector that is down for a day is worth one line.
                    if failures == 0 {
                        tracing::warn!(%error, "the collector of traces takes none");
                    }
                    failures = failures.saturating_add(1);
                }
            }
        }
        // What came while the last batch was sent.
        self.counts.dropped.fetch_add(departures.try_iter().count() as u64, Ordering::Relaxed);
    }

    fn post(&self, batch: &[Departure]) -> Result<(), ureq::Error> {
        let body = export(&self.service_name, batch).to_string();
        let request = self.client.post(&self.endpoint).content_type("application/json");
        // The answer's body says what the collector left out, which is its business.
        request.send(body).map(drop)
    }
}

/// An `ExportTraceServiceRequest`.
fn export(service_name: &str, batch: &[Departure]) -> Value {
    let spans: Vec<Value> = batch.iter().flat_map(spans).collect();
    json!({"resourceSpans": [{
        "resource": {"attributes": [text("service.name", service_name)]},
        "scopeSpans": [{
            "scope": {"name": "pelton", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans,
        }],
    }]})
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// 64-bit numbers are texts in the JSON of protocol buffers.
fn number(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// The request's span, and those of each of its answers below it.
fn spans(departure: &Departure) -> Vec<Value> {
    let visit = &departure.visit;
    let root = span_id(visit, 0);
    let answers = visit.answers();
    let mut attributes = vec![
        text("http.request.method", departure.method),
        text("http.route", departure.route),
        number("http.response.status_code", departure.status.into()),
        text("pelton.request_id", &visit.id),
    ];
    attributes.extend(visit.caller.name().map(|name| text("pelton.key", name)));
    if let Some(first) = answers.first() {
        let sum = |tokens: fn(&AnswerRecord) -> u32| -> u64 {
            answers.iter().map(|answer| u64::from(tokens(answer))).sum()
        };
        attributes.extend([
            text("gen_ai.request.model", &first.model),
            number("gen_ai.usage.input_tokens", sum(|answer| answer.prompt_tokens)),
            number("gen_ai.usage.output_tokens", sum(|answer| answer.completion_tokens)),
            number("pelton.cached_tokens", sum(|answer| answer.cached.tokens)),
            text("pelton.finish", first.end.name()),
        ]);
    }
    let name = format!("{} {}", departure.method, departure.route);
    let times = (visit.started, departure.ended);
    let mut span = span(visit, (&name, KIND_SERVER), times, (root, visit.trace.parent));
    span["attributes"] = Value::Array(attributes);
    if departure.status >= 500 {
        span["status"] = json!({"code": STATUS_ERROR});
    }
    let mut spans = vec![span];
    for (index, answer) in answers.iter().enumerate() {
        let ended = answer.last_token.unwrap_or(departure.ended);
        let placed = answer.placed.unwrap_or(ended);
        let first = answer.first_token.unwrap_or(ended);
        let phases = [
            ("encode", visit.started, Some(answer.admitted)),
            ("queue", answer.admitted, Some(placed)),
            ("prefill", placed, answer.placed.map(|_| first)),
            ("decode", first, answer.first_token.map(|_| ended)),
        ];
        for (phase, (name, from, to)) in phases.into_iter().enumerate() {
            let Some(to) = to else { continue };
            let id = span_id(visit, 1 + 4 * index as u64 + phase as u64);
            let mut span = self::span(visit, (name, KIND_INTERNAL), (from, to), (id, Some(root)));
            let mut attributes = vec![number("pelton.answer", index as u64)];
            attributes.extend(details(name, answer));
            span["attributes"] = Value::Array(attributes);
            spans.push(span);
        }
    }
    spans
}

/// What is to be said of one phase of an answer.
fn details(phase: &str, answer: &AnswerRecord) -> Vec<Value> {
    match phase {
        "queue" => vec![number("pelton.queue_before", answer.queued_behind.into())],
        "prefill" => vec![
            number("pelton.prompt_tokens", answer.prompt_tokens.into()),
            number("pelton.cached_tokens", answer.cached.tokens.into()),
            text("pelton.cache", answer.cache()),
        ],
        "decode" => vec![
            number("pelton.completion_tokens", answer.completion_tokens.into()),
            number("pelton.guesses_accepted", answer.proposals.accepted.into()),
            number("pelton.guesses_rejected", answer.proposals.rejected.into()),
        ],
        _ => Vec::new(),
    }
}

/// Random enough within its trace: the standard asks for uniqueness there only.
fn span_id(visit: &Visit, number: u64) -> u64 {
    // The finalizer of SplitMix64 (G. Steele, D. Lea, C. Flood, 2014), a permutation: numbers that
    // differ give ids that differ. The caller's span may have any id, so a request's own begin
    // where its random name says.
    let mut id = visit.trace.own.wrapping_add(number);
    id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (id ^ (id >> 31)).max(1)
}

fn span(
    visit: &Visit,
    (name, kind): (&str, u32),
    (from, to): (Instant, Instant),
    (id, parent): (u64, Option<u64>),
) -> Value {
    let at = |instant: Instant| {
        let at = visit.started_at + instant.saturating_duration_since(visit.started);
        nanoseconds(at).to_string()
    };
    let mut span = json!({
        "traceId": format!("{:032x}", visit.trace.trace),
        "spanId": format!("{id:016x}"),
        "name": name,
        "kind": kind,
        "startTimeUnixNano": at(from),
        "endTimeUnixNano": at(to.max(from)),
    });
    if let Some(parent) = parent {
        span["parentSpanId"] = Value::String(format!("{parent:016x}"));
    }
    span
}

fn nanoseconds(at: SystemTime) -> u128 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
