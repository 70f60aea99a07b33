//! How many requests may run at once, when would one more have its first token, and is that too
//! late?
//!
//! The number is not a constant. Memory allows as many as the KV blocks hold of what sequences
//! turned out to need; latency as many as a step can have rows and still be within the target for
//! the time between tokens, as steps were measured. Settings bound both from above, and at least
//! one always runs.
//!
//! When a newcomer would have its first token follows from what those before it have still to read
//! and to say, and from how fast that goes (`forecast`); and from how far such forecasts were off:
//! they are stretched until few come later than allowed. One that might well come later is refused
//! at once, as is one that finds the queue full; one that has waited so long for a place although
//! it was not expected to is refused then. Before anything is measured nobody is refused for what
//! might be.
//!
//! No clock and no threads: times and measurements are arguments.

mod answer_lengths;
mod forecast;

use std::time::Duration;

use scheduler::Work;

use answer_lengths::AnswerLengths;
use forecast::{Forecast, Forecaster, Speeds};

/// Bounds from the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimiterRules {
    pub(crate) running_max: u32,
    /// Who waits beyond those that could start at once.
    pub(crate) waiting_max: u32,
    pub(crate) block_count: u32,
    /// Time between two tokens of a stream; `None`: it may be any.
    pub(crate) token_target: Option<Duration>,
    /// Longest wait for a first token; `None`: for ever.
    pub(crate) queue_time_max: Option<Duration>,
}

/// The decision for one model.
#[derive(Clone, Debug)]
pub(crate) struct Limiter {
    rules: LimiterRules,
    steps: StepTimes,
    /// KV blocks that a sequence held at its end.
    blocks: Average,
    lengths: AnswerLengths,
    reading: Rate,
    reading_alone: Rate,
    token: Rate,
    caution: Caution,
    forecaster: Forecaster,
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
    /// Whether the queue's time bounds its wait until its first token, or only that for a place:
    /// where nobody is before it or its own prompt is long, the wait is not the queue's.
    pub(crate) bounds_first_token: bool,
    forecast: Forecast,
    /// Times that forecasts had been found too short by then.
    corrections: u64,
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

/// A step as it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepMeasure {
    /// Rows of streams, guesses at their next tokens included.
    pub(crate) rows: u32,
    pub(crate) streams: u32,
    pub(crate) prompt_tokens: u32,
    /// Whether it left some of a prompt unread: it read as much as it might.
    pub(crate) left_unread: bool,
    /// What its computing took.
    pub(crate) seconds: f64,
    /// From the end of the step before to its own, if there was no pause.
    pub(crate) elapsed_seconds: f64,
}

/// Steps that cost at most this much more than one of a single row are as good as free, whatever
/// the target: where one row misses it, company changes little.
const FREE_COMPANY: f64 = 1.25;
/// What a new measurement counts in an average.
const WEIGHT: f64 = 0.125;
/// HTTP has no shorter time to say.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// A longer one is a guess about guesses.
const RETRY_MAX: Duration = Duration::from_secs(600);

impl Limiter {
    pub(crate) fn new(rules: LimiterRules) -> Self {
        assert!(rules.running_max > 0 && rules.block_count > 0, "a model serves somebody");
        Self {
            rules,
            steps: StepTimes::default(),
            blocks: Average::default(),
            lengths: AnswerLengths::default(),
            reading: Rate::default(),
            reading_alone: Rate::default(),
            token: Rate::default(),
            caution: Caution::default(),
            forecaster: Forecaster::default(),
            running: 0,
            queued: 0,
            limit: rules.running_max,
        }
    }

    /// Other bounds of the queue hold from now on; who is in it stays.
    pub(crate) fn set_queue(&mut self, waiting_max: u32, queue_time_max: Option<Duration>) {
        self.rules = LimiterRules { waiting_max, queue_time_max, ..self.rules };
    }

    pub(crate) fn set_token_target(&mut self, token_target: Option<Duration>) {
        self.rules = LimiterRules { token_target, ..self.rules };
        self.limit = self.allowed();
    }

    pub(crate) fn queue_time_max(&self) -> Option<Duration> {
        self.rules.queue_time_max
    }

    /// Lets a request into the queue, behind those `ahead` that wait and beside those `running`,
    /// or does not. It has waited for `waited` already.
    pub(crate) fn arrive(
        &mut self,
        own: &Work,
        waited: Duration,
        running: impl Iterator<Item = Work> + Clone,
        ahead: impl Iterator<Item = Work> + Clone,
    ) -> Result<Arrival, Rejection> {
        let forecast = self.forecast(own, running, ahead);
        self.check_room(forecast.next_place)?;
        let queued = self.queued;
        let is_first = queued == 0 && self.running == 0;
        if let Some(most) = self.rules.queue_time_max.filter(|_| !is_first) {
            let wait = waited + self.counted(&forecast, most).mul_f64(self.caution.factor);
            if wait > most {
                let retry_after = retry_after((wait - most).max(forecast.next_place));
                return Err(Rejection { why: Why::Late { wait }, retry_after });
            }
        }
        self.queued += 1;
        let most = self.rules.queue_time_max.filter(|_| !is_first);
        let bounds_first_token = most.is_some_and(|most| forecast.own_reading <= most / 2);
        let corrections = self.caution.corrections;
        Ok(Arrival { before: queued, bounds_first_token, forecast, corrections })
    }

    /// Whether one more may wait, where a place is expected to come free in so long.
    pub(crate) fn check_room(&self, next_place: Duration) -> Result<(), Rejection> {
        let queued = self.queued;
        let starts_at_once = self.limit.saturating_sub(self.running);
        if u64::from(queued) < u64::from(self.rules.waiting_max) + u64::from(starts_at_once) {
            return Ok(());
        }
        Err(Rejection { why: Why::Full { queued }, retry_after: retry_after(next_place) })
    }

    /// The part of a forecast that the queue's time bounds. What reading a long prompt takes is its
    /// own affair: beyond half of the queue's time it does not count.
    fn counted(&self, forecast: &Forecast, queue_time_max: Duration) -> Duration {
        let own = forecast.own_reading;
        forecast.first_token.saturating_sub(own.saturating_sub(queue_time_max / 2))
    }

    fn forecast(
        &mut self,
        own: &Work,
        running: impl Iterator<Item = Work> + Clone,
        ahead: impl Iterator<Item = Work> + Clone,
    ) -> Forecast {
        let speeds = self.speeds();
        let lengths = &self.lengths;
        let to_come = |work: &Work| lengths.to_come(work.answer_tokens_max, work.answer_tokens);
        self.forecaster.forecast(&speeds, self.limit, running, ahead, own, to_come)
    }

    fn speeds(&self) -> Speeds {
        let (beside, alone) = (self.reading.mean(), self.reading_alone.mean());
        // All places are taken where somebody waits: steps are then as long as they get.
        let token = self.token.mean().map(|mean| mean.max(self.steps.seconds(self.running)));
        Speeds {
            reading: beside.or(alone).unwrap_or(0.0),
            reading_alone: alone.or(beside).unwrap_or(0.0),
            token: token.unwrap_or(0.0),
        }
    }

    /// A request that was let in had its first token after so long, or was refused then.
    pub(crate) fn note_first_token(&mut self, arrival: &Arrival, waited: Duration) {
        let Some(most) = self.rules.queue_time_max else { return };
        let forecast = self.counted(&arrival.forecast, most);
        // What is soon is no trouble, whatever was said of it.
        if forecast >= most / 8 {
            let own = arrival.forecast.own_reading.saturating_sub(most / 2);
            let ratio = waited.saturating_sub(own).as_secs_f64() / forecast.as_secs_f64();
            self.caution.learn(ratio, arrival.corrections);
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

    pub(crate) fn note_step(&mut self, step: &StepMeasure) {
        if step.prompt_tokens == 0 {
            self.steps.learn(step.rows, step.seconds);
            self.limit = self.allowed();
        } else if step.left_unread {
            let rate = if step.streams > 0 { &mut self.reading } else { &mut self.reading_alone };
            rate.add(step.elapsed_seconds, step.prompt_tokens);
        }
    }

    /// While `elapsed` went by, so many streams were told so many tokens together.
    pub(crate) fn note_tokens(&mut self, streams: u32, tokens: u32, elapsed_seconds: f64) {
        self.token.add(elapsed_seconds * f64::from(streams), tokens);
    }

    /// A sequence that might have had `tokens_max` gave its place back after `tokens`, holding so
    /// many blocks.
    pub(crate) fn note_end(&mut self, tokens_max: u32, tokens: u32, blocks: u32) {
        self.lengths.add(tokens_max, tokens);
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

    /// How long a short request would wait for a place that came now, behind all that wait; zero
    /// as long as nothing is known.
    pub(crate) fn newcomer_wait(
        &mut self,
        running: impl Iterator<Item = Work> + Clone,
        waiting: impl Iterator<Item = Work> + Clone,
    ) -> Duration {
        self.forecast(&Work::default(), running, waiting).place
    }

    /// Whether a request has waited too long, and when to come back.
    pub(crate) fn overdue(&self, waited: Duration) -> Option<Rejection> {
        self.rules.queue_time_max.filter(|&most| waited >= most)?;
        let retry_after = retry_after(Duration::ZERO);
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
}

/// Seconds for each token, over the last steps: many tokens weigh more than few.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    seconds: f64,
    tokens: f64,
}

/// What stays of earlier steps after each: about 32 of them count.
const RATE_KEPT: f64 = 1.0 - 1.0 / 32.0;

impl Rate {
    fn add(&mut self, seconds: f64, tokens: u32) {
        self.seconds = self.seconds * RATE_KEPT + seconds;
        self.tokens = self.tokens * RATE_KEPT + f64::from(tokens);
    }

    fn mean(&self) -> Option<f64> {
        (self.tokens > 0.0).then(|| self.seconds / self.tokens)
    }
}

/// By how much forecasts are stretched, so that [`LATE_SHARE`] of those let in come later than
/// that: each that does raises it by a good deal, half of the way to what it took at least; each
/// that does not lowers it by a little; and the two balance at that share.
#[derive(Clone, Copy, Debug)]
struct Caution {
    factor: f64,
    corrections: u64,
}

/// Of those let in, who may come later than the stretched forecast.
const LATE_SHARE: f64 = 0.0005;
/// What each that comes later raises it by, at least.
const CAUTION_RAISE: f64 = 0.1;
/// Before it is known how far forecasts are off: 1.3 times and more was seen.
const CAUTION_FIRST: f64 = 1.3;
const CAUTION_MIN: f64 = 0.5;
const CAUTION_MAX: f64 = 4.0;

impl Default for Caution {
    fn default() -> Self {
        Self { factor: CAUTION_FIRST, corrections: 0 }
    }
}

impl Caution {
    fn learn(&mut self, ratio: f64, corrections_before: u64) {
        if ratio <= self.factor {
            self.factor -= CAUTION_RAISE * LATE_SHARE;
        } else if corrections_before == self.corrections {
            // Many come late together, for one reason: those let in before it was known tell
            // nothing new.
            self.corrections += 1;
            self.factor += CAUTION_RAISE.max((ratio - self.factor) / 2.0);
        }
        self.factor = self.factor.clamp(CAUTION_MIN, CAUTION_MAX);
    }
}

/// Not before it makes sense.
fn retry_after(at_least: Duration) -> Duration {
    at_least.clamp(RETRY_MIN, RETRY_MAX)
}

#[cfg(test)]
#[path = "limiter/tests.rs"]
mod tests;

#[cfg(test)]
#[path = "limiter/world_tests.rs"]
mod world_tests;
