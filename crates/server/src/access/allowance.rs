//! How much may one key still ask for?
//!
//! A bucket for requests and one for tokens, each filled evenly to what a minute allows; a window
//! of 24 hours, from its first token on, for the tokens of a day; a count of requests under way.
//! Tokens are charged as they are read and written: a request begins while something is left, and
//! an answer that has begun is finished, so that the next one waits the longer. Time is an argument
//! and monotonic: a clock that is set changes nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use config::KeyConfig;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// One answer's end is about so far away.
const RETRY_WHEN_CROWDED: Duration = Duration::from_secs(1);

/// What a key may use, and has used.
pub(crate) struct Allowance(Mutex<State>);

struct State {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    tokens_per_day: Option<u64>,
    day_began: Option<Instant>,
    day_tokens: u64,
    concurrent_max: Option<u32>,
    running: u32,
}

/// Which limit refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exhausted {
    Concurrent,
    Requests,
    Tokens,
    Day,
}

/// A request that may not begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) limit: Exhausted,
    pub(crate) allowed: u64,
    /// When one may.
    pub(crate) retry_after: Duration,
}

/// Where one limit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gauge {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Until all of it is there again.
    pub(crate) reset: Duration,
}

/// A request under way; dropped at its end.
pub(crate) struct Entry(Arc<Allowance>);

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.state().running -= 1;
    }
}

impl Allowance {
    pub(crate) fn new(key: &KeyConfig, now: Instant) -> Self {
        let bucket = |per_minute| Bucket { per_minute, level: per_minute as f64, at: now };
        Self(Mutex::new(State {
            requests: key.requests_per_minute.map(|most| bucket(most.into())),
            tokens: key.tokens_per_minute.map(bucket),
            tokens_per_day: key.tokens_per_day,
            day_began: None,
            day_tokens: 0,
            concurrent_max: key.concurrent_max,
            running: 0,
        }))
    }

    /// Other limits from now on; what is used stays used.
    pub(crate) fn take_up(&self, key: &KeyConfig, now: Instant) {
        let next = Self::new(key, now).0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        let merge = |held: Option<Bucket>, next: Option<Bucket>| match (held, next) {
            (Some(held), Some(next)) => {
                let used = held.per_minute as f64 - held.at(now).level;
                Some(Bucket { level: next.level - used.min(next.level), ..next })
            }
            (_, next) => next,
        };
        state.requests = merge(state.requests, next.requests);
        state.tokens = merge(state.tokens, next.tokens);
        state.tokens_per_day = next.tokens_per_day;
        state.concurrent_max = next.concurrent_max;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Plain numbers, each right by itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins.
    ///
    /// # Errors
    /// [`Denied`] by the limit that is used up; nothing is counted then.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant) -> Result<Entry, Denied> {
        let mut state = self.state();
        if let Some(denied) = state.denied(now) {
            return Err(denied);
        }
        if let Some(requests) = &mut state.requests {
            *requests = requests.at(now);
            requests.level -= 1.0;
        }
        state.running += 1;
        drop(state);
        Ok(Entry(Arc::clone(self)))
    }

    /// So many tokens were read or written.
    pub(crate) fn charge(&self, tokens: u64, now: Instant) {
        let mut state = self.state();
        if let Some(bucket) = &mut state.tokens {
            *bucket = bucket.at(now);
            bucket.level -= tokens as f64;
        }
        if state.tokens_per_day.is_some() {
            if state.day_left(now).is_none() {
                (state.day_began, state.day_tokens) = (Some(now), 0);
            }
            state.day_tokens = state.day_tokens.saturating_add(tokens);
        }
    }

    pub(crate) fn requests(&self, now: Instant) -> Option<Gauge> {
        self.state().requests.map(|bucket| bucket.gauge(now))
    }

    /// Of the minute, or of the day where less is left of that.
    pub(crate) fn tokens(&self, now: Instant) -> Option<Gauge> {
        let state = self.state();
        let minute = state.tokens.map(|bucket| bucket.gauge(now));
        let day = state.tokens_per_day.map(|limit| {
            let left = state.day_left(now);
            let used = left.map_or(0, |_| state.day_tokens);
            let (remaining, reset) = (limit.saturating_sub(used), left.unwrap_or_default());
            Gauge { limit, remaining, reset }
        });
        minute.into_iter().chain(day).min_by_key(|gauge| gauge.remaining)
    }
}

impl State {
    fn denied(&self, now: Instant) -> Option<Denied> {
        if let Some(most) = self.concurrent_max.filter(|&most| self.running >= most) {
            let (limit, retry_after) = (Exhausted::Concurrent, RETRY_WHEN_CROWDED);
            return Some(Denied { limit, allowed: most.into(), retry_after });
        }
        if let Some(left) = self.day_left(now)
            && let Some(most) = self.tokens_per_day.filter(|&most| self.day_tokens >= most)
        {
            return Some(Denied { limit: Exhausted::Day, allowed: most, retry_after: left });
        }
        for (limit, bucket) in
            [(Exhausted::Requests, self.requests), (Exhausted::Tokens, self.tokens)]
        {
            let Some(bucket) = bucket.map(|bucket| bucket.at(now)) else { continue };
            if bucket.level < 1.0 {
                let (allowed, retry_after) = (bucket.per_minute, bucket.until(1.0));
                return Some(Denied { limit, allowed, retry_after });
            }
        }
        None
    }

    /// Of the window that has begun; `None`: none has, or it is over.
    fn day_left(&self, now: Instant) -> Option<Duration> {
        let left = DAY.checked_sub(now.saturating_duration_since(self.day_began?))?;
        Some(left).filter(|left| !left.is_zero())
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    per_minute: u64,
    /// Below zero: used in advance.
    level: f64,
    at: Instant,
}

impl Bucket {
    fn at(self, now: Instant) -> Self {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.per_second();
        Self { level: (self.level + earned).min(self.per_minute as f64), at: now, ..self }
    }

    fn per_second(self) -> f64 {
        self.per_minute as f64 / MINUTE.as_secs_f64()
    }

    fn until(self, level: f64) -> Duration {
        let seconds = (level - self.level).max(0.0) / self.per_second();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn gauge(self, now: Instant) -> Gauge {
        let bucket = self.at(now);
        Gauge {
            limit: bucket.per_minute,
            remaining: bucket.level.max(0.0) as u64,
            reset: bucket.until(bucket.per_minute as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn key(fields: &str) -> KeyConfig {
        let digest = "0".repeat(64);
        let text = format!("{{\"name\": \"a\", \"sha256\": \"{digest}\"{fields}}}");
        serde_json::from_str(&text).unwrap()
    }

    fn allowance(fields: &str, now: Instant) -> Arc<Allowance> {
        Arc::new(Allowance::new(&key(fields), now))
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn requests_come_back_evenly() {
        let now = Instant::now();
        let allowance = allowance(", \"requests_per_minute\": 3", now);
        for _ in 0..3 {
            drop(allowance.enter(now).unwrap_or_else(|_| panic!("three fit")));
        }
        let denied = allowance.enter(now).err().unwrap();
        let expected = Denied { limit: Exhausted::Requests, allowed: 3, retry_after: seconds(20) };
        assert_eq!(denied, expected);
        assert_eq!(allowance.requests(now).unwrap().remaining, 0);
        assert_eq!(allowance.requests(now).unwrap().reset, seconds(60));
        assert!(allowance.enter(now + seconds(19)).is_err());
        assert!(allowance.enter(now + seconds(20)).is_ok());
        assert_eq!(allowance.requests(now + seconds(1000)).unwrap().remaining, 3, "no more");
        assert!(allowance.enter(now - seconds(1)).is_err(), "time never falls");
    }

    #[test]
    fn what_is_used_in_advance_is_waited_for() {
        let now = Instant::now();
        let allowance = allowance(", \"tokens_per_minute\": 60", now);
        assert!(allowance.enter(now).is_ok());
        allowance.charge(100, now);
        let denied = allowance.enter(now).err().unwrap();
        assert_eq!((denied.limit, denied.retry_after), (Exhausted::Tokens, seconds(41)));
        assert!(allowance.enter(now + seconds(41)).is_ok());
    }

    #[test]
    fn a_day_begins_with_its_first_token() {
        let now = Instant::now();
        let allowance = allowance(", \"tokens_per_day\": 10", now);
        assert!(allowance.enter(now).is_ok());
        allowance.charge(10, now + seconds(100));
        let denied = allowance.enter(now + seconds(200)).err().unwrap();
        assert_eq!((denied.limit, denied.retry_after), (Exhausted::Day, DAY - seconds(100)));
        assert_eq!(allowance.tokens(now + seconds(200)).unwrap().remaining, 0);
        assert!(allowance.enter(now + DAY + seconds(100)).is_ok());
        assert_eq!(allowance.tokens(now + DAY + seconds(100)).unwrap().remaining, 10);
    }

    #[test]
    fn requests_under_way_are_counted_until_they_end() {
        let now = Instant::now();
        let allowance = allowance(", \"concurrent_max\": 2", now);
        let (one, two) = (allowance.enter(now).ok(), allowance.enter(now).ok());
        assert_eq!(allowance.enter(now).err().unwrap().limit, Exhausted::Concurrent);
        drop(one);
        assert!(allowance.enter(now).is_ok());
        drop(two);
        assert_eq!(allowance.state().running, 0);
    }

    #[test]
    fn new_limits_forget_nothing() {
        let now = Instant::now();
        let allowance = allowance(", \"tokens_per_minute\": 100, \"tokens_per_day\": 100", now);
        allowance.charge(60, now);
        let next = key(", \"tokens_per_minute\": 80, \"tokens_per_day\": 50");
        allowance.take_up(&next, now);
        assert_eq!(allowance.enter(now).err().unwrap().limit, Exhausted::Day);
        allowance.take_up(&key(", \"tokens_per_minute\": 80"), now);
        assert_eq!(allowance.tokens(now).unwrap().remaining, 20);
        allowance.take_up(&key(""), now);
        assert_eq!(allowance.tokens(now), None);
    }
}
