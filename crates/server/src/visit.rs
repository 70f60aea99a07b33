//! What is known of one request, from its head to the end of its answer?
//!
//! The gate makes a [`Visit`] and puts it into the request; whoever computes an answer notes in it
//! how that went; when the answer's last byte is out or its reader has gone, the [`Departure`] goes
//! to the log, the audit log and the traces. Nothing of what was asked or said is in it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::Request;
use messages::{CachedPrompt, ProposalCounts, SharingOutcome, SharingReport};

use crate::access::Caller;
use crate::trace_context::TraceContext;

/// One request.
pub(crate) struct Visit {
    /// As `x-request-id` says, in the log and to the caller.
    pub(crate) id: String,
    pub(crate) caller: Caller,
    pub(crate) trace: TraceContext,
    /// When its head had come, by both clocks.
    pub(crate) started: Instant,
    pub(crate) started_at: SystemTime,
    answers: Mutex<Vec<AnswerRecord>>,
}

/// How one answer of a request went.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRecord {
    pub(crate) model: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached: CachedPrompt,
    pub(crate) completion_tokens: u32,
    pub(crate) proposals: ProposalCounts,
    pub(crate) sharing: SharingReport,
    /// Its wait for a place, and how many were before it.
    pub(crate) queued: Duration,
    pub(crate) queued_behind: u32,
    /// When it was let in: its prompt is encoded.
    pub(crate) admitted: Instant,
    /// When it got its place.
    pub(crate) placed: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
    pub(crate) end: AnswerEnd,
}

impl AnswerRecord {
    /// How it came to be: remembered, read along, or computed for it.
    pub(crate) fn cache(&self) -> &'static str {
        match self.sharing.outcome {
            SharingOutcome::Hit => "hit",
            SharingOutcome::Joined => "joined",
            SharingOutcome::Miss => "miss",
        }
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerEnd {
    /// Its reader left, or it has not ended yet.
    Gone,
    Stop,
    Length,
    Cancelled,
    Late,
    /// It turned out that it cannot be served as written.
    Refused,
    Failed,
}

impl AnswerEnd {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Late => "late",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Visit {
    pub(crate) fn new(id: String, caller: Caller, trace: TraceContext, started: Instant) -> Self {
        let started_at = SystemTime::now();
        Self { id, caller, trace, started, started_at, answers: Mutex::new(Vec::new()) }
    }

    /// The visit that the gate put into a request.
    pub(crate) fn of<B>(request: &Request<B>) -> Arc<Self> {
        let visit = request.extensions().get::<Arc<Self>>();
        Arc::clone(visit.expect("invariant: requests come through the gate"))
    }

    /// Notes an answer and gives its number.
    pub(crate) fn add(&self, answer: AnswerRecord) -> usize {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.push(answer);
        answers.len() - 1
    }

    pub(crate) fn note<R>(&self, index: usize, note: impl FnOnce(&mut AnswerRecord) -> R) -> R {
        note(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner)[index])
    }

    pub(crate) fn answers(&self) -> Vec<AnswerRecord> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A request that has ended.
#[derive(Clone)]
pub(crate) struct Departure {
    pub(crate) visit: Arc<Visit>,
    pub(crate) method: &'static str,
    /// A line of the route table.
    pub(crate) route: &'static str,
    pub(crate) status: u16,
    pub(crate) ended: Instant,
}
