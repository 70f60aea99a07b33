//! Who asked, when, for which model, and what came of it? A line of JSON for each request, in a
//! file, without anything of its content.
//!
//! A thread of its own writes. It is told through a bounded queue; whoever answers requests never
//! waits for a disk, and lines that find no room are counted.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use config::AuditConfig;
use serde::Serialize;

use crate::ServerError;
use crate::reply::utc;
use crate::visit::{AnswerRecord, Departure};

/// Lines that may wait for a disk: some megabytes.
const WAITING_MAX: usize = 8192;
/// Lines that are written together.
const BATCH_MAX: usize = 256;

pub(crate) struct AuditLog {
    /// `None` once the log ends.
    orders: Option<SyncSender<Order>>,
    thread: Option<JoinHandle<()>>,
    lost: Arc<AtomicU64>,
}

enum Order {
    Write(Box<Departure>),
    Reopen,
}

impl AuditLog {
    /// `None`: the configuration wants none.
    ///
    /// # Errors
    /// [`ServerError::Audit`] when the file cannot be opened: a server that should keep a log and
    /// cannot does not start.
    pub(crate) fn open(config: &AuditConfig) -> Result<Option<Self>, ServerError> {
        let Some(path) = config.file.as_ref().map(PathBuf::from) else { return Ok(None) };
        let failed = |source| ServerError::Audit { path: path.clone(), source };
        let (file, bytes) = append(&path).map_err(failed)?;
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            path: path.clone(),
            file: Some(file),
            bytes,
            bytes_max: config.rotate_mb << 20,
            old_files_max: config.old_files_max,
            lost: Arc::clone(&lost),
        };
        let (orders, told) = sync_channel(WAITING_MAX);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || writer.run(&told)).map_err(failed)?;
        Ok(Some(Self { orders: Some(orders), thread: Some(thread), lost }))
    }

    pub(crate) fn write(&self, departure: &Departure) {
        self.order(Order::Write(Box::new(departure.clone())));
    }

    /// Goes on in a new file where the old one was moved away.
    pub(crate) fn reopen(&self) {
        self.order(Order::Reopen);
    }

    fn order(&self, order: Order) {
        let sent = self.orders.as_ref().map(|orders| orders.try_send(order));
        if let Some(Err(TrySendError::Full(Order::Write(_)) | TrySendError::Disconnected(_))) = sent
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests that are not in the file.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for AuditLog {
    /// Waits until what was told is written.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It panics never; if it did, there is nobody to tell.
            let _ = thread.join();
        }
    }
}

fn append(path: &Path) -> std::io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    // Names of people and when they work.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

struct Writer {
    path: PathBuf,
    /// `None` after an error, until it can be opened again.
    file: Option<File>,
    bytes: u64,
    /// 0: any size.
    bytes_max: u64,
    old_files_max: u32,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut waiting = VecDeque::from([first]);
            waiting.extend(orders.try_iter().take(BATCH_MAX - 1));
            let mut lines = Vec::new();
            let mut count = 0;
            for order in waiting {
                match order {
                    Order::Write(departure) => {
                        write_line(&departure, &mut lines);
                        count += 1;
                    }
                    Order::Reopen => {
                        self.write(&mut lines, &mut count);
                        self.file = None;
                    }
                }
            }
            self.write(&mut lines, &mut count);
        }
    }

    fn write(&mut self, lines: &mut Vec<u8>, count: &mut u64) {
        if lines.is_empty() {
            return;
        }
        if let Err(error) = self.put(lines) {
            self.lost.fetch_add(*count, Ordering::Relaxed);
            tracing::error!(%error, lines = *count, "the audit log cannot be written");
            self.file = None;
        }
        lines.clear();
        *count = 0;
    }

    fn put(&mut self, lines: &[u8]) -> std::io::Result<()> {
        let is_full = self.bytes > 0 && self.bytes + lines.len() as u64 > self.bytes_max;
        if self.bytes_max > 0 && is_full && self.file.is_some() {
            self.rotate()?;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let (file, bytes) = append(&self.path)?;
                self.bytes = bytes;
                file
            }
        };
        file.write_all(lines)?;
        self.bytes += lines.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// `FILE` becomes `FILE.1`, that `FILE.2`, and the last is gone.
    fn rotate(&mut self) -> std::io::Result<()> {
        self.file = None;
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..self.old_files_max).rev() {
            let old = numbered(number);
            if old.exists() {
                std::fs::rename(old, numbered(number + 1))?;
            }
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

/// A request as the log shows it.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    id: &'a str,
    key: Option<&'a str>,
    tenant: Option<&'a str>,
    method: &'static str,
    route: &'static str,
    status: u16,
    model: Option<&'a str>,
    answers: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    cache: Option<&'static str>,
    /// Of the first answer, as are the times until it began and spoke.
    finish: Option<&'static str>,
    queue_ms: Option<u64>,
    first_token_ms: Option<u64>,
    ms: u64,
}

fn write_line(departure: &Departure, lines: &mut Vec<u8>) {
    let visit = &departure.visit;
    let answers = visit.answers();
    let first = answers.first();
    let since = |at: Instant| milliseconds(at.saturating_duration_since(visit.started));
    let line = Line {
        time: time(visit.started_at),
        id: &visit.id,
        key: visit.caller.name(),
        tenant: visit.caller.tenant(),
        method: departure.method,
        route: departure.route,
        status: departure.status,
        model: first.map(|answer| answer.model.as_str()),
        answers: answers.len(),
        prompt_tokens: answers.iter().map(|answer| u64::from(answer.prompt_tokens)).sum(),
        cached_tokens: answers.iter().map(|answer| u64::from(answer.cached.tokens)).sum(),
        completion_tokens: answers.iter().map(|answer| u64::from(answer.completion_tokens)).sum(),
        cache: first.map(AnswerRecord::cache),
        finish: first.map(|answer| answer.end.name()),
        queue_ms: first.map(|answer| milliseconds(answer.queued)),
        first_token_ms: first.and_then(|answer| answer.first_token).map(since),
        ms: since(departure.ended),
    };
    let start = lines.len();
    if let Err(error) = serde_json::to_writer(&mut *lines, &line) {
        tracing::error!(%error, "cannot write a line of the audit log as JSON");
        lines.truncate(start);
        return;
    }
    lines.push(b'\n');
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// By RFC 3339, to the millisecond.
fn time(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let text = utc(since.as_secs());
    format!("{}.{:03}Z", text.trim_end_matches('Z'), since.subsec_millis())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::access::Caller;
    use crate::trace_context::TraceContext;
    use crate::visit::Visit;

    fn departure(id: &str) -> Departure {
        let trace = TraceContext { trace: 1, parent: None, own: 1, is_sampled: false };
        let now = Instant::now();
        Departure {
            visit: Arc::new(Visit::new(id.to_owned(), Caller::Anyone, trace, now)),
            method: "GET",
            route: "/health",
            status: 200,
            ended: now,
        }
    }

    fn log(path: &Path, rotate_mb: u64) -> AuditLog {
        let file = Some(path.to_str().unwrap().to_owned());
        AuditLog::open(&AuditConfig { file, rotate_mb, old_files_max: 2 }).unwrap().unwrap()
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_file_that_is_full_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let name = |number: u32| folder.path().join(format!("audit.jsonl.{number}"));
        for round in 0..4 {
            std::fs::write(&path, vec![b' '; 1 << 20]).unwrap();
            let log = log(&path, 1);
            log.write(&departure(&round.to_string()));
            assert_eq!(log.lost(), 0);
            drop(log);
            assert_eq!(lines(&path)[0]["id"], round.to_string());
        }
        assert!(name(1).exists() && name(2).exists() && !name(3).exists());
        assert_eq!(std::fs::metadata(name(1)).unwrap().len(), 1 << 20);
    }

    #[test]
    fn a_file_that_was_moved_away_is_left_when_told() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("a"), folder.path().join("b"));
        let log = log(&path, 0);
        log.write(&departure("before"));
        // What was told before is written before.
        log.reopen();
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::fs::metadata(&path).unwrap().len() == 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.write(&departure("after"));
        drop(log);
        assert_eq!(lines(&moved)[0]["id"], "before");
        assert_eq!((lines(&path).len(), lines(&path)[0]["id"].clone()), (1, "after".into()));
    }

    #[test]
    fn a_file_that_cannot_be_had_is_an_error() {
        let file = Some("/nowhere/at/all".to_owned());
        let config = AuditConfig { file, ..AuditConfig::default() };
        assert!(AuditLog::open(&config).is_err());
    }
}
