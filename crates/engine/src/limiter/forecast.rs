//! When would a request that came now have its first token?
//!
//! Two things are waited for: a place, of which there are so many, and the reading of prompts,
//! which is done one after another as it were. Both are played forward from what those that run and
//! wait have still to do, at the speeds that were measured: places come free when answers end, who
//! is next takes one, its prompt is read after those before it. Prompts that have much more to be
//! read do not count: those are overtaken (`scheduler::reading_class`), but for a quarter.
//!
//! No clock: speeds are arguments.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use scheduler::{Work, reading_class};

/// How fast things go, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Speeds {
    /// For each token of a prompt that is read beside streams.
    pub(crate) reading: f64,
    /// The same where there are no streams.
    pub(crate) reading_alone: f64,
    /// Between two tokens of a stream.
    pub(crate) token: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Forecast {
    /// Until the newcomer has a place.
    pub(crate) place: Duration,
    /// Until it has its first token.
    pub(crate) first_token: Duration,
    /// Of that, what reading its own prompt takes.
    pub(crate) own_reading: Duration,
    /// Until any place comes free; zero: one is.
    pub(crate) next_place: Duration,
}

/// Plays forward; keeps its memory, so that it takes none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forecaster {
    /// When each place comes free, in nanoseconds.
    places: BinaryHeap<Reverse<u64>>,
}

/// Of the tokens read beside others, what the smaller prompts have while a larger one is read.
const SHARE_BESIDE_LARGER: f64 = 0.75;

impl Forecaster {
    /// `own` comes behind `ahead` for one of `limit` places, of which `running` have theirs. Each
    /// is expected to say the tokens that `to_come` tells of it.
    pub(crate) fn forecast(
        &mut self,
        speeds: &Speeds,
        limit: u32,
        running: impl Iterator<Item = Work> + Clone,
        ahead: impl Iterator<Item = Work> + Clone,
        own: &Work,
        to_come: impl Fn(&Work) -> f64,
    ) -> Forecast {
        let class = reading_class(own.unread_tokens);
        let is_larger = |work: &Work| reading_class(work.unread_tokens) > class;
        let has_streams =
            running.clone().any(|work| work.unread_tokens == 0 && to_come(&work) > 0.0)
                || ahead.clone().next().is_some();
        let fast = if has_streams { speeds.reading } else { speeds.reading_alone };
        let has_larger = running.clone().chain(ahead.clone()).any(|work| is_larger(&work));
        let slow = if has_larger { fast / SHARE_BESIDE_LARGER } else { fast };
        self.places.clear();
        let mut read_until = 0.0;
        // The place is held from `start` until what this gives.
        let mut hold = |start: f64, work: &Work| {
            let reading = f64::from(work.unread_tokens) * slow;
            let is_read = if is_larger(work) {
                start + f64::from(work.unread_tokens) * fast
            } else if work.unread_tokens == 0 {
                start
            } else {
                read_until = start.max(read_until) + reading;
                read_until
            };
            (is_read, is_read + to_come(work) * speeds.token)
        };
        for work in running {
            let (_, end) = hold(0.0, &work);
            self.places.push(Reverse(nanoseconds(end)));
        }
        while self.places.len() > limit as usize {
            // More run than may: this one's place is nobody's afterwards.
            self.places.pop();
        }
        let is_free = self.places.len() < limit as usize;
        let free_count = limit as usize - self.places.len();
        self.places.extend(std::iter::repeat_n(Reverse(0), free_count));
        let next_place = if is_free { 0.0 } else { self.next_place() };
        for work in ahead {
            let start = self.take_place();
            let (_, end) = hold(start, &work);
            self.places.push(Reverse(nanoseconds(end)));
        }
        let place = self.take_place();
        let (is_read, _) = hold(place, own);
        let own_reading = f64::from(own.unread_tokens) * slow;
        Forecast {
            place: duration(place),
            first_token: duration(is_read + speeds.token),
            own_reading: duration(own_reading),
            next_place: duration(next_place),
        }
    }

    fn next_place(&self) -> f64 {
        self.places.peek().map_or(0.0, |&Reverse(at)| at as f64 * 1e-9)
    }

    fn take_place(&mut self) -> f64 {
        let Reverse(at) = self.places.pop().expect("invariant: at least one may run");
        at as f64 * 1e-9
    }
}

fn nanoseconds(seconds: f64) -> u64 {
    // What is too long for the type is as long as it can say.
    (seconds * 1e9) as u64
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEEDS: Speeds = Speeds { reading: 0.001, reading_alone: 0.0005, token: 0.01 };

    fn work(unread_tokens: u32, to_come: u32) -> Work {
        Work { unread_tokens, answer_tokens: 0, answer_tokens_max: to_come }
    }

    fn check(limit: u32, running: &[Work], ahead: &[Work], own: Work, expected: [f64; 3]) {
        let to_come = |work: &Work| f64::from(work.answer_tokens_max - work.answer_tokens);
        let (running, ahead) = (running.iter().copied(), ahead.iter().copied());
        let forecast =
            Forecaster::default().forecast(&SPEEDS, limit, running, ahead, &own, to_come);
        let found = [forecast.next_place, forecast.place, forecast.first_token];
        let off = found.iter().zip(expected).map(|(time, all)| (time.as_secs_f64() - all).abs());
        assert!(off.fold(0.0, f64::max) < 1e-6, "{found:?} and not {expected:?}");
    }

    #[test]
    fn an_idle_machine_reads_at_once() {
        check(2, &[], &[], work(100, 10), [0.0, 0.0, 0.06]);
        check(2, &[work(0, 10)], &[], work(100, 10), [0.0, 0.0, 0.11]);
    }

    #[test]
    fn places_come_free_as_answers_end() {
        let running = [work(0, 50), work(0, 100)];
        check(2, &running, &[], work(100, 10), [0.5, 0.5, 0.61]);
        // The first place is taken by somebody short, who gives it to the newcomer.
        check(2, &running, &[work(100, 10)], work(100, 10), [0.5, 0.7, 0.81]);
        // By somebody long: the newcomer has the second.
        check(2, &running, &[work(100, 200)], work(100, 10), [0.5, 1.0, 1.11]);
        // Fewer may run than do: one answer's end makes no place.
        check(1, &running, &[], work(100, 10), [1.0, 1.0, 1.11]);
    }

    #[test]
    fn prompts_are_read_one_after_another() {
        let running = [work(100, 10), work(120, 10), work(0, 10)];
        check(8, &running, &[], work(100, 10), [0.0, 0.0, 0.33]);
        let ahead = [work(100, 10), work(200, 10)];
        check(8, &running, &ahead, work(100, 10), [0.0, 0.0, 0.63]);
    }

    #[test]
    fn a_short_prompt_does_not_wait_for_a_long_one() {
        // It has three quarters of what is read, and nobody streams.
        check(8, &[work(10_000, 10)], &[], work(30, 10), [0.0, 0.0, 0.03]);
        // The long one waits for the short one.
        check(8, &[work(30, 10)], &[], work(10_000, 10), [0.0, 0.0, 5.025]);
    }
}
