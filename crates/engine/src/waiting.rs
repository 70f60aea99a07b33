//! Who waits for a place, who holds one, and who has waited too long?
//!
//! A sequence is in the queue from the moment it is let in until it has a slot. It holds a
//! [`Place`] in the queue's count, given back when that is dropped, wherever that happens. Whoever
//! reads along with a sequence that waits, waits with it and counts for nothing; nor does a request
//! that has not been encoded yet, for only then is it known whether it needs a sequence of its own.
//!
//! Its readers are told that it starts when its first token comes, for until then it can be refused
//! for having waited too long; where reading the prompt alone is long, that is told with the slot.
//!
//! `limiter` decides; here are its clock, its lock and the numbers of those it decides about.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use messages::{
    Priority, Refusal, RefusalKind, SequenceId, StepPlan, StepResult, SubscriberId, TokenEvent,
};
use scheduler::{Scheduler, Work};

use crate::guarded::whole_seconds;
use crate::limiter::{Arrival, Limiter, LimiterRules, Rejection, Why};
use crate::outbox::Outbox;
use crate::readers::Outgoing;
use crate::step_watch::StepWatch;
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

    /// As many run from now on as can be told tokens this often.
    pub(crate) fn set_token_target(&self, target: Option<Duration>) {
        self.lock().limiter.set_token_target(target);
    }

    /// Lets a request into the queue, or says when to come back.
    fn enter(self: &Arc<Self>, newcomer: &Newcomer<'_>) -> Result<Place, Refusal> {
        let Newcomer { work, arrived, priority, tenant, scheduler } = *newcomer;
        let mut state = self.lock();
        let ahead = scheduler.work_ahead_of(priority, tenant);
        let waited = arrived.elapsed();
        let entered = state.limiter.arrive(&work, waited, scheduler.work_running(), ahead);
        let arrival = entered.map_err(|rejection| {
            match rejection.why {
                Why::Full { .. } => state.status.refused_full_total += 1,
                Why::Late { .. } => state.status.refused_late_total += 1,
            }
            refusal(rejection)
        })?;
        Ok(Place { queue: Arc::clone(self), arrived, arrival })
    }

    /// Refuses a request that needs a place in the queue while there is none, whatever it asks.
    pub(crate) fn check_room(&self) -> Result<(), Refusal> {
        let mut state = self.lock();
        let next_place = state.status.newcomer_wait.unwrap_or_default();
        let room = state.limiter.check_room(next_place);
        state.status.refused_full_total += u64::from(room.is_err());
        room.map_err(refusal)
    }

    /// The refusal of a request that has waited too long for something.
    pub(crate) fn overdue(&self, waited: Duration, missed: Missed) -> Option<Refusal> {
        let mut state = self.lock();
        let rejection = state.limiter.overdue(waited)?;
        if let Missed::Place(Some(arrival)) | Missed::FirstToken(arrival) = &missed {
            state.limiter.note_first_token(arrival, waited);
        }
        state.status.refused_late_total += 1;
        let what = match missed {
            Missed::Place(_) => "no place came free",
            Missed::FirstToken(_) => "the answer did not begin",
        };
        // Not more than was allowed: it is found late by some milliseconds.
        let text = format!("{what} within {} s", waited.as_secs().max(1));
        Some(Refusal { message: text, ..refusal(rejection) })
    }

    pub(crate) fn status(&self) -> QueueStatus {
        let state = self.lock();
        QueueStatus {
            running_limit: state.limiter.limit(),
            length: state.limiter.queued(),
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
            format!("the answer would begin in {seconds} s, later than a request may wait")
        }
    };
    let text = format!("{text}; try again in {} s", whole_seconds(rejection.retry_after));
    let retry_after = Some(rejection.retry_after);
    Refusal { retry_after, ..Refusal::new(RefusalKind::Busy, text) }
}

/// What a request has waited for too long.
pub(crate) enum Missed {
    /// If it was let into the queue already, with what was expected of it.
    Place(Option<Arrival>),
    FirstToken(Arrival),
}

/// A request that has no sequence yet.
pub(crate) struct Newcomer<'a> {
    pub(crate) work: Work,
    pub(crate) arrived: Instant,
    pub(crate) priority: Priority,
    pub(crate) tenant: &'a Arc<str>,
    /// Of those before it.
    pub(crate) scheduler: &'a Scheduler,
}

/// One sequence's place in the queue.
pub(crate) struct Place {
    queue: Arc<Queue>,
    arrived: Instant,
    arrival: Arrival,
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
    waiting: BTreeMap<SequenceId, Waits>,
    running: BTreeMap<SequenceId, Running>,
    watch: StepWatch,
    /// From one step to the next, on average.
    plan_seconds: f64,
}

/// How long requests wait until they are more urgent than all others, where nothing bounds it.
const OVERDUE_AFTER: Duration = Duration::from_secs(90);
/// The same of the time for which they may wait at all.
const OVERDUE_SHARE: f64 = 0.5;
/// What a step counts in the average.
const STEP_WEIGHT: f64 = 0.05;

/// One sequence and who waits for it.
struct Waits {
    place: Place,
    answer_tokens_max: u32,
    readers: Vec<WaitingReader>,
}

/// One who is told when the wait is over.
pub(crate) struct WaitingReader {
    pub(crate) subscriber: SubscriberId,
    pub(crate) arrived: Instant,
    pub(crate) outbox: Outbox,
}

struct Running {
    /// Until its first token.
    awaited: Option<Awaited>,
    prompt_tokens: u32,
    answer_tokens_max: u32,
    generated_tokens: u32,
    /// Of the prompt, held by others as well.
    cached_tokens: u32,
}

struct Awaited {
    arrived: Instant,
    arrival: Arrival,
    /// Readers that are not told yet.
    held: Vec<(WaitingReader, QueueReport)>,
}

impl Waiting {
    pub(crate) fn new(queue: Arc<Queue>, block_tokens: u32) -> Self {
        let (waiting, running) = (BTreeMap::new(), BTreeMap::new());
        let (watch, plan_seconds) = (StepWatch::default(), 0.01);
        Self { queue, block_tokens, waiting, running, watch, plan_seconds }
    }

    /// Lets a request into the queue, or says when to come back.
    pub(crate) fn enter(&self, newcomer: &Newcomer<'_>) -> Result<Place, Refusal> {
        self.queue.enter(newcomer)
    }

    /// A request waits for its sequence, whose answer has so many tokens at most.
    pub(crate) fn wait(
        &mut self,
        id: SequenceId,
        place: Place,
        reader: WaitingReader,
        answer_tokens_max: u32,
    ) {
        self.waiting.insert(id, Waits { place, answer_tokens_max, readers: vec![reader] });
    }

    /// A request reads along with a sequence: it starts when that does.
    pub(crate) fn join(&mut self, id: SequenceId, reader: WaitingReader) {
        if let Some(waits) = self.waiting.get_mut(&id) {
            return waits.readers.push(reader);
        }
        let report = reader.report(0);
        let awaited = self.running.get_mut(&id).and_then(|running| running.awaited.as_mut());
        match awaited.filter(|awaited| !awaited.held.is_empty()) {
            Some(awaited) => awaited.held.push((reader, report)),
            None => self.start(&reader, report),
        }
    }

    /// A request's answer is there already.
    pub(crate) fn start_at_once(&self, reader: &WaitingReader) {
        self.start(reader, reader.report(0));
    }

    /// A request's answer begins.
    fn start(&self, reader: &WaitingReader, report: QueueReport) {
        let mut state = self.queue.lock();
        state.status.started_total += 1;
        state.status.waited_seconds_total += report.waited.as_secs_f64();
        drop(state);
        reader.outbox.send(Outgoing::Started(report));
    }

    /// A sequence was given a slot, for the first time or again.
    pub(crate) fn admitted(&mut self, id: SequenceId, prompt_tokens: usize) {
        let Some(Waits { place, answer_tokens_max, readers }) = self.waiting.remove(&id) else {
            return;
        };
        let (arrived, arrival) = (place.arrived, place.arrival);
        // Before anybody is told: whoever has started is not in the queue.
        drop(place);
        let reports = readers.into_iter().map(|reader| {
            let report = reader.report(arrival.before);
            (reader, report)
        });
        let mut held: Vec<_> = reports.collect();
        if !arrival.bounds_first_token {
            held.drain(..).for_each(|(reader, report)| self.start(&reader, report));
        }
        let running = Running {
            awaited: Some(Awaited { arrived, arrival, held }),
            prompt_tokens: prompt_tokens as u32,
            answer_tokens_max,
            generated_tokens: 0,
            cached_tokens: 0,
        };
        self.running.insert(id, running);
    }

    pub(crate) fn observe(&mut self, event: &TokenEvent) {
        let Some(running) = self.running.get_mut(&event.sequence) else { return };
        running.generated_tokens += 1;
        running.cached_tokens = event.cached.tokens;
        if let Some(Awaited { arrived, arrival, held }) = running.awaited.take() {
            self.queue.lock().limiter.note_first_token(&arrival, arrived.elapsed());
            held.into_iter().for_each(|(reader, report)| self.start(&reader, report));
        }
    }

    /// A sequence has ended or was given up, wherever it was.
    pub(crate) fn ended(&mut self, id: SequenceId) {
        self.waiting.remove(&id);
        let Some(running) = self.running.remove(&id) else { return };
        if running.awaited.is_some() {
            // It was given up before it said anything, which tells nothing of answers.
            return;
        }
        let generated = running.generated_tokens;
        let tokens = running.prompt_tokens - running.cached_tokens + generated;
        let blocks = tokens.div_ceil(self.block_tokens);
        self.queue.lock().limiter.note_end(running.answer_tokens_max, generated, blocks);
    }

    /// A step was planned; `left_unread`: there is more of the prompts than it reads.
    pub(crate) fn planned(&mut self, plan: &StepPlan, left_unread: bool) {
        self.watch.planned(plan, left_unread);
    }

    /// The oldest step in flight computed for so long and gave this.
    pub(crate) fn finished(&mut self, duration: Duration, result: &StepResult) {
        let samples = result.samples.len();
        let (step, tokens) = self.watch.finished(duration, Instant::now(), samples);
        self.plan_seconds += STEP_WEIGHT * (step.elapsed_seconds - self.plan_seconds);
        let limiter = &mut self.queue.lock().limiter;
        limiter.note_step(&step);
        limiter.note_tokens(step.streams, tokens, step.elapsed_seconds);
    }

    /// Looks at who runs and who waits now; gives how many may run.
    pub(crate) fn look(&self, scheduler: &Scheduler) -> u32 {
        let mut state = self.queue.lock();
        let State { limiter, status } = &mut *state;
        limiter.note_running(scheduler.running_count() as u32);
        let (running, waiting) = (scheduler.work_running(), scheduler.work_waiting());
        status.newcomer_wait = Some(limiter.newcomer_wait(running, waiting));
        limiter.limit()
    }

    /// Plans after which a request is more urgent by a priority, so that the least urgent comes
    /// before all others well before it would be refused for having waited.
    pub(crate) fn aging_plans(&self) -> u32 {
        let bound = self.queue.lock().limiter.queue_time_max();
        let whole = bound.map_or(OVERDUE_AFTER, |most| most.mul_f64(OVERDUE_SHARE));
        let level = whole.as_secs_f64() / f64::from(scheduler::AGING_LEVELS);
        (level / self.plan_seconds.max(1e-6)).clamp(1.0, 1e9) as u32
    }

    /// Tells all who have waited too long; gives their numbers.
    pub(crate) fn refuse_overdue(&mut self, overdue: &mut Vec<SubscriberId>) {
        let queue = &self.queue;
        if queue.lock().limiter.queue_time_max().is_none() {
            return;
        }
        let mut may_wait = |reader: &WaitingReader, missed: Missed| {
            let refusal = queue.overdue(reader.arrived.elapsed(), missed);
            let Some(refusal) = refusal else { return true };
            queue.refused_total.fetch_add(1, Ordering::Relaxed);
            reader.outbox.send(Outgoing::Refused(refusal));
            overdue.push(reader.subscriber);
            false
        };
        for waits in self.waiting.values_mut() {
            let arrival = waits.place.arrival;
            waits.readers.retain(|reader| may_wait(reader, Missed::Place(Some(arrival))));
        }
        for awaited in self.running.values_mut().filter_map(|running| running.awaited.as_mut()) {
            let Awaited { arrival, held, .. } = awaited;
            held.retain(|(reader, _)| may_wait(reader, Missed::FirstToken(*arrival)));
        }
    }

    /// When somebody will have waited too long; `None`: nobody will.
    pub(crate) fn next_overdue(&self) -> Option<Duration> {
        let most = self.queue.lock().limiter.queue_time_max()?;
        let waiting = self.waiting.values().flat_map(|waits| &waits.readers);
        let awaited = self.running.values().filter_map(|running| running.awaited.as_ref());
        let held = awaited.flat_map(|awaited| &awaited.held).map(|(reader, _)| reader);
        let first = waiting.chain(held).map(|reader| reader.arrived).min()?;
        Some(most.saturating_sub(first.elapsed()))
    }
}

impl WaitingReader {
    /// What is told of its wait, if that ends now behind so many others.
    fn report(&self, before: u32) -> QueueReport {
        QueueReport { waited: self.arrived.elapsed(), before }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However long steps take, the least urgent comes before all others after half the time for
    /// which it may wait (`no_starvation`, by the clock).
    #[test]
    fn requests_age_by_the_time_they_may_wait() {
        let rules = |queue_time_max| LimiterRules {
            running_max: 1,
            waiting_max: 1,
            block_count: 1,
            token_target: None,
            queue_time_max,
        };
        for (bound, overdue_after) in [(Some(30), 15.0), (Some(4), 2.0), (None, 90.0)] {
            let queue = Queue::new(rules(bound.map(Duration::from_secs)));
            let mut waiting = Waiting::new(queue, 16);
            for step in [0.001, 0.05] {
                for _ in 0..200 {
                    waiting.planned(&StepPlan::empty(messages::StepIndex(0)), false);
                    let result = StepResult { step: messages::StepIndex(0), samples: Vec::new() };
                    waiting.finished(Duration::from_secs_f64(step), &result);
                }
                let plans = f64::from(waiting.aging_plans() * scheduler::AGING_LEVELS);
                let after = plans * step;
                assert!(
                    (0.9 * overdue_after..=1.01 * overdue_after).contains(&after),
                    "{after} s of {bound:?}, steps of {step} s"
                );
            }
        }
    }
}
