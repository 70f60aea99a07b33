//! How many requests may run at once, how long would one more wait, and is that too long?
//!
//! The number is not a constant. Memory allows as many as the KV blocks hold of what sequences
//! turned out to need; latency as many as a step can have rows and still be within the target for
//! the time between tokens, as steps were measured. Settings bound both from above, and at least
//! one always runs.
//!
//! How long a newcomer would wait follows from how long sequences held their places so far, and
//! from how far such expectations were off. One that might well wait longer than allowed is refused
//! at once, as is one that finds the queue full; one that has waited so long although it was not
//! expected to is refused then. Before anything is measured nobody is refused for what might be.
//!
//! No clock and no threads: times and measurements are arguments.

use std::time::Duration;

/// Bounds from the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimiterRules {
    pub(crate) running_max: u32,
    /// Who waits beyond those that could start at once.
    pub(crate) waiting_max: u32,
    pub(crate) block_count: u32,
    /// Time between two tokens of a stream; `None`: it may be any.
    pub(crate) token_target: Option<Duration>,
    /// Longest wait for a place; `None`: for ever.
    pub(crate) queue_time_max: Option<Duration>,
}

/// The decision for one model.
#[derive(Clone, Debug)]
pub(crate) struct Limiter {
    rules: LimiterRules,
    steps: StepTimes,
    /// KV blocks that a sequence held at its end.
    blocks: Average,
    /// Seconds that a sequence held its place.
    places: Average,
    /// Waits, as parts of what was expected.
    lateness: Average,
    running: u32,
    queued: u32,
    /// As it follows from the measurements so far.
    limit: u32,
}

/// What is known of a request when it is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Requests that wait already.
    pub(crate) before: u32,
    /// How long it should wait; `None`: not at all, or nobody knows.
    expected: Option<Duration>,
}

/// A request that is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) why: Why,
    /// When one like it would be let in, if nobody else came.
    pub(crate) retry_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// So many wait already.
    Full { queued: u32 },
    /// It would wait so long.
    Late { wait: Duration },
}

/// Steps that cost at most this much more than one of a single row are as good as free, whatever
/// the target: where one row misses it, company changes little.
const FREE_COMPANY: f64 = 1.25;
/// What a new measurement counts in an average.
const WEIGHT: f64 = 0.125;
/// Beyond it an expectation was none.
const LATENESS_MAX: f64 = 4.0;
/// HTTP has no shorter time to say.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// A longer one is a guess about guesses.
const RETRY_MAX: Duration = Duration::from_secs(600);

impl Limiter {
    /// Other bounds of the queue hold from now on; who is in it stays.
    pub(crate) fn set_queue(&mut self, waiting_max: u32, queue_time_max: Option<Duration>) {
        self.rules = LimiterRules { waiting_max, queue_time_max, ..self.rules };
    }

    pub(crate) fn queue_time_max(&self) -> Option<Duration> {
        self.rules.queue_time_max
    }

    pub(crate) fn new(rules: LimiterRules) -> Self {
        assert!(rules.running_max > 0 && rules.block_count > 0, "a model serves somebody");
        Self {
            rules,
            steps: StepTimes::default(),
            blocks: Average::default(),
            places: Average::default(),
            lateness: Average::default(),
            running: 0,
            queued: 0,
            limit: rules.running_max,
        }
    }

    /// Lets a request into the queue.
    pub(crate) fn arrive(&mut self) -> Result<Arrival, Rejection> {
        let queued = self.queued;
        let starts_at_once = self.limit.saturating_sub(self.running);
        if u64::from(queued) >= u64::from(self.rules.waiting_max) + u64::from(starts_at_once) {
            let retry_after = self.retry_after(Duration::ZERO);
            return Err(Rejection { why: Why::Full { queued }, retry_after });
        }
        let wait = self.wait(queued);
        if let (Some(wait), Some(most)) = (wait, self.rules.queue_time_max) {
            let wait = wait.mul_f64(self.lateness.upper().unwrap_or(1.0).min(LATENESS_MAX));
            if wait > most {
                let retry_after = self.retry_after(wait - most);
                return Err(Rejection { why: Why::Late { wait }, retry_after });
            }
        }
        self.queued += 1;
        Ok(Arrival { before: queued, expected: wait.filter(|wait| !wait.is_zero()) })
    }

    /// A request waited so long, and got a place or gave up.
    pub(crate) fn note_wait(&mut self, arrival: Arrival, waited: Duration) {
        if let Some(expected) = arrival.expected {
            self.lateness.add((waited.as_secs_f64() / expected.as_secs_f64()).min(LATENESS_MAX));
        }
    }

    /// A request that was let in waits no more: it starts, or is gone.
    pub(crate) fn leave_queue(&mut self) {
        assert!(self.queued > 0, "queues_bounded: who leaves the queue was in it");
        self.queued -= 1;
    }

    /// So many sequences hold a place now.
    pub(crate) fn note_running(&mut self, running: u32) {
        self.running = running;
    }

    /// A step of `rows` streams, without prompts, took so long.
    pub(crate) fn note_step(&mut self, rows: u32, seconds: f64) {
        self.steps.learn(rows, seconds);
        self.limit = self.allowed();
    }

    /// A sequence gave its place back after so long, holding so many blocks.
    pub(crate) fn note_end(&mut self, held: Duration, blocks: u32) {
        self.places.add(held.as_secs_f64());
        self.blocks.add(f64::from(blocks));
        self.limit = self.allowed();
    }

    /// How many may run at once; at least 1.
    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    pub(crate) fn queued(&self) -> u32 {
        self.queued
    }

    /// How long a request would wait that came now; `None`: nothing is known yet.
    pub(crate) fn newcomer_wait(&self) -> Option<Duration> {
        self.wait(self.queued)
    }

    /// Whether a request has waited too long, and when to come back.
    pub(crate) fn overdue(&self, waited: Duration) -> Option<Rejection> {
        let most = self.rules.queue_time_max.filter(|&most| waited >= most)?;
        let excess = self.newcomer_wait().unwrap_or(most).saturating_sub(most);
        let retry_after = self.retry_after(excess);
        Some(Rejection { why: Why::Late { wait: waited }, retry_after })
    }

    fn allowed(&self) -> u32 {
        self.by_memory().min(self.by_latency()).clamp(1, self.rules.running_max)
    }

    /// As many as the blocks hold of sequences as they come. What `n` of them need scatters by the
    /// root of `n` as much as what one needs, so with twice that set aside
    /// `n mean + 2 deviation sqrt(n) = blocks`, which is solved for `sqrt(n)`.
    fn by_memory(&self) -> u32 {
        let Some(mean) = self.blocks.mean().map(|blocks| blocks.max(1.0)) else { return u32::MAX };
        let (off, blocks) = (self.blocks.deviation, f64::from(self.rules.block_count));
        let root = (off.mul_add(off, mean * blocks).sqrt() - off) / mean;
        // A whole number must not be rounded to the one below.
        (root * root + 1e-9) as u32
    }

    /// As many as a step can serve within the target.
    fn by_latency(&self) -> u32 {
        match self.rules.token_target {
            None => u32::MAX,
            Some(target) => {
                let alone = self.steps.seconds(1);
                self.steps.rows_within(target.as_secs_f64().max(FREE_COMPANY * alone))
            }
        }
    }

    /// What somebody behind `before` others waits: places come free one after another, each after
    /// its share of the time that one is held.
    fn wait(&self, before: u32) -> Option<Duration> {
        let free = self.limit.saturating_sub(self.running);
        let turns = (before + 1).saturating_sub(free);
        if turns == 0 {
            return Some(Duration::ZERO);
        }
        let held = self.places.mean()?;
        let seconds = f64::from(turns) * held / f64::from(self.limit);
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// At least until the next place comes free.
    fn retry_after(&self, at_least: Duration) -> Duration {
        let place = self.places.mean().map(|held| held / f64::from(self.limit));
        let place = place.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        at_least.max(place.unwrap_or(RETRY_MIN)).clamp(RETRY_MIN, RETRY_MAX)
    }
}

/// Seconds of a step as a part for every step and a part for each row, learned from every step: the
/// weights move a part of the way to what it took (normalized least mean squares: B. Widrow,
/// M. Hoff, 1960). What steps of one size do not tell, they leave as it was.
#[derive(Clone, Copy, Debug, Default)]
struct StepTimes {
    step: f64,
    rows: f64,
    learned: u64,
}

/// Rows that together are taken to be about as long as what every step takes.
const ROWS_UNIT: f64 = 8.0;

impl StepTimes {
    fn learn(&mut self, rows: u32, seconds: f64) {
        let cause = f64::from(rows) / ROWS_UNIT;
        self.learned += 1;
        let rate = WEIGHT.max(1.0 / self.learned as f64);
        let change = rate * (seconds - self.seconds(rows)) / (1.0 + cause * cause);
        self.step = (self.step + change).max(0.0);
        self.rows = (self.rows + change * cause).max(0.0);
    }

    fn seconds(&self, rows: u32) -> f64 {
        self.step + self.rows * f64::from(rows) / ROWS_UNIT
    }

    /// The most rows that take no longer. Before anything is learned that is any number.
    fn rows_within(&self, seconds: f64) -> u32 {
        let rows = (seconds - self.step) * ROWS_UNIT / self.rows;
        // Where a row takes no time this is infinite, or no number: any number fits.
        if rows.is_nan() { u32::MAX } else { rows.max(0.0) as u32 }
    }
}

/// A moving average and how far single values are off it.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    mean: f64,
    deviation: f64,
    count: u64,
}

impl Average {
    fn add(&mut self, value: f64) {
        // The first ones count alike, or the very first would weigh for long.
        self.count += 1;
        let weight = WEIGHT.max(1.0 / self.count as f64);
        let error = value - self.mean;
        self.mean += weight * error;
        if self.count > 1 {
            self.deviation += weight * (error.abs() - self.deviation);
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }

    /// What few values are above: of such as scatter normally, one in twenty.
    fn upper(&self) -> Option<f64> {
        self.mean().map(|mean| mean + 2.0 * self.deviation)
    }
}

#[cfg(test)]
#[path = "limiter/tests.rs"]
mod tests;
