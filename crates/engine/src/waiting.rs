//! Who waits for a place, who holds one, and who has waited too long?
//!
//! A request is in the queue from the moment it is let in: while its prompt is rendered and
//! encoded, and until its sequence starts. Whoever reads along with a sequence that waits, waits
//! with it. Each holds a [`Place`] in the queue's count, given back when it is dropped, wherever
//! that happens.
//!
//! `limiter` decides; here are its clock, its lock and the numbers of those it decides about.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use messages::{Refusal, RefusalKind, SequenceId, TokenEvent};

use crate::guarded::whole_seconds;
use crate::limiter::{Arrival, Limiter, LimiterRules, Rejection, Why};
use crate::outbox::Outbox;
use crate::readers::Outgoing;
use crate::{QueueReport, QueueStatus};

/// What admission, the step loop and status share of the queue.
pub(crate) struct Queue {
    state: Mutex<State>,
    /// As it was made: what surrounds it has room for no more.
    waiting_max: u32,
    /// Requests refused for whatever reason, before they started.
    pub(crate) refused_total: AtomicU64,
}

struct State {
    limiter: Limiter,
    status: QueueStatus,
}

impl Queue {
    pub(crate) fn new(rules: LimiterRules) -> Arc<Self> {
        let state = State { limiter: Limiter::new(rules), status: QueueStatus::default() };
        let waiting_max = rules.waiting_max;
        Arc::new(Self { state: Mutex::new(state), waiting_max, refused_total: AtomicU64::new(0) })
    }

    /// Other bounds hold from now on; more may wait only up to what was allowed at the start.
    pub(crate) fn set_bounds(&self, waiting_max: u32, queue_time_max: Option<Duration>) {
        let waiting_max = waiting_max.min(self.waiting_max);
        self.lock().limiter.set_queue(waiting_max, queue_time_max);
    }

    /// Lets a request into the queue, or says when to come back.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Place, Refusal> {
        let mut state = self.lock();
        let arrived = state.limiter.arrive();
        let arrival = arrived.map_err(|rejection| {
            match rejection.why {
                Why::Full { .. } => state.status.refused_full_total += 1,
                Why::Late { .. } => state.status.refused_late_total += 1,
            }
            refusal(rejection)
        })?;
        Ok(Place { queue: Arc::clone(self), arrived: Instant::now(), arrival })
    }

    /// The refusal of a request that has waited too long.
    pub(crate) fn overdue(&self, waited: Duration) -> Option<Refusal> {
        let mut state = self.lock();
        let rejection = state.limiter.overdue(waited)?;
        state.status.refused_late_total += 1;
        let text = format!("no place came free within {} s", whole_seconds(waited));
        Some(Refusal { message: text, ..refusal(rejection) })
    }

    pub(crate) fn status(&self) -> QueueStatus {
        let state = self.lock();
        QueueStatus {
            running_limit: state.limiter.limit(),
            length: state.limiter.queued(),
            newcomer_wait: state.limiter.newcomer_wait(),
            ..state.status.clone()
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(rejection: Rejection) -> Refusal {
    let text = match rejection.why {
        Why::Full { queued } => format!("{queued} requests are waiting, the most there may be"),
        Why::Late { wait } => {
            let seconds = whole_seconds(wait);
            format!("a place is expected in {seconds} s, longer than a request may wait")
        }
    };
    let text = format!("{text}; try again in {} s", whole_seconds(rejection.retry_after));
    let retry_after = Some(rejection.retry_after);
    Refusal { retry_after, ..Refusal::new(RefusalKind::Busy, text) }
}

/// One request's place in the queue.
pub(crate) struct Place {
    queue: Arc<Queue>,
    arrived: Instant,
    arrival: Arrival,
}

impl Place {
    pub(crate) fn waited(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// The request starts: the end of its place.
    pub(crate) fn start(self, outbox: &Outbox) {
        let report = QueueReport { waited: self.waited(), before: self.arrival.before };
        let mut state = self.queue.lock();
        state.limiter.note_wait(self.arrival, report.waited);
        state.status.started_total += 1;
        state.status.waited_seconds_total += report.waited.as_secs_f64();
        drop(state);
        // Before it is told: whoever has started is not in the queue.
        drop(self);
        outbox.send(Outgoing::Started(report));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.lock().limiter.leave_queue();
    }
}

/// The sequences of one model, as the step loop sees them.
pub(crate) struct Waiting {
    queue: Arc<Queue>,
    block_tokens: u32,
    waiting: BTreeMap<SequenceId, Vec<(Place, Outbox)>>,
    running: BTreeMap<SequenceId, Running>,
}

struct Running {
    since: Instant,
    prompt_tokens: u32,
    generated_tokens: u32,
    /// Of the prompt, held by others as well.
    cached_tokens: u32,
}

impl Waiting {
    pub(crate) fn new(queue: Arc<Queue>, block_tokens: u32) -> Self {
        Self { queue, block_tokens, waiting: BTreeMap::new(), running: BTreeMap::new() }
    }

    /// A request waits for its sequence, alone or with others.
    pub(crate) fn wait(&mut self, id: SequenceId, place: Place, outbox: Outbox) {
        self.waiting.entry(id).or_default().push((place, outbox));
    }

    /// A request reads along with a sequence: it starts when that does.
    pub(crate) fn join(&mut self, id: SequenceId, place: Place, outbox: Outbox) {
        match self.waiting.get_mut(&id) {
            Some(waiting) => waiting.push((place, outbox)),
            None => place.start(&outbox),
        }
    }

    /// A sequence was given a slot, for the first time or again.
    pub(crate) fn admitted(&mut self, id: SequenceId, prompt_tokens: usize) {
        let Some(waiting) = self.waiting.remove(&id) else { return };
        for (place, outbox) in waiting {
            place.start(&outbox);
        }
        let (since, prompt_tokens) = (Instant::now(), prompt_tokens as u32);
        let running = Running { since, prompt_tokens, generated_tokens: 0, cached_tokens: 0 };
        self.running.insert(id, running);
    }

    pub(crate) fn observe(&mut self, event: &TokenEvent) {
        if let Some(running) = self.running.get_mut(&event.sequence) {
            running.generated_tokens += 1;
            running.cached_tokens = event.cached_tokens;
        }
    }

    /// A sequence has ended or was given up, wherever it was.
    pub(crate) fn ended(&mut self, id: SequenceId) {
        self.waiting.remove(&id);
        let Some(running) = self.running.remove(&id) else { return };
        let tokens = running.prompt_tokens - running.cached_tokens + running.generated_tokens;
        let blocks = tokens.div_ceil(self.block_tokens);
        self.queue.lock().limiter.note_end(running.since.elapsed(), blocks);
    }

    /// A step of so many rows of streams, and nothing else, took so long.
    pub(crate) fn note_step(&self, rows: usize, duration: Duration) {
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        self.queue.lock().limiter.note_step(rows, duration.as_secs_f64());
    }

    /// So many run now; gives how many may.
    pub(crate) fn note_running(&self, running: u32) -> u32 {
        let mut state = self.queue.lock();
        state.limiter.note_running(running);
        state.limiter.limit()
    }

    /// Tells all who have waited too long, and gives the sequences that they waited for.
    pub(crate) fn refuse_overdue(&mut self, overdue: &mut Vec<SequenceId>) {
        let queue = &self.queue;
        if queue.lock().limiter.queue_time_max().is_none() {
            return;
        }
        self.waiting.retain(|&id, waiting| {
            // The first has waited longest. Who joined it goes with it: the sequence is given up.
            let Some((first, _)) = waiting.first() else { return true };
            let Some(refusal) = queue.overdue(first.waited()) else { return true };
            queue.refused_total.fetch_add(waiting.len() as u64, Ordering::Relaxed);
            for (place, outbox) in waiting.iter() {
                queue.lock().limiter.note_wait(place.arrival, place.waited());
                outbox.send(Outgoing::Refused(refusal.clone()));
            }
            overdue.push(id);
            false
        });
    }

    /// When somebody will have waited too long; `None`: nobody will.
    pub(crate) fn next_overdue(&self) -> Option<Duration> {
        let most = self.queue.lock().limiter.queue_time_max()?;
        let firsts = self.waiting.values().filter_map(|waiting| waiting.first());
        let longest = firsts.map(|(place, _)| place.waited()).max()?;
        Some(most.saturating_sub(longest))
    }
}
