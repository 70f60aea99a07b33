//! When is a device too broken to be sent work? A circuit breaker: closed, open, half open.
//!
//! Closed, everything is admitted. Some faults within a window open it: nothing is admitted, so
//! that callers learn at once what they would otherwise wait for. After a pause it is half open:
//! the first request that needs the device is admitted as a trial, and the next finished step says
//! whether the breaker closes or opens again. A trial that is cancelled before its first step gives
//! way to another after a pause. While it is open, steps of requests admitted before may still end:
//! how they do changes nothing.
//!
//! Time is passed in, as a duration since any fixed moment.

use std::collections::VecDeque;
use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRules {
    /// So many failed steps within `window` open it; at least 1.
    pub faults_max: u32,
    pub window: Duration,
    /// From opening to the first trial.
    pub pause: Duration,
}

impl Default for BreakerRules {
    /// One bad step is bad luck, five in half a minute are a device to leave alone; ten seconds
    /// are about the time that a driver takes to reset one.
    fn default() -> Self {
        let (window, pause) = (Duration::from_secs(30), Duration::from_secs(10));
        Self { faults_max: 5, window, pause }
    }
}

/// What a breaker says of its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    #[default]
    Closed,
    /// Nothing is admitted for this long.
    Open { rest: Duration },
    /// The next request is a trial, or one is under way.
    HalfOpen,
}

pub(crate) struct Breaker {
    rules: BreakerRules,
    /// Of the window before the latest one; empty unless closed.
    faults: VecDeque<Duration>,
    gate: Gate,
    opened_total: u64,
}

enum Gate {
    Closed,
    Open {
        until: Duration,
    },
    /// One request is on trial; another may try from `until` on.
    Trial {
        until: Duration,
    },
}

impl Breaker {
    pub(crate) fn new(rules: BreakerRules) -> Self {
        Self { rules, faults: VecDeque::new(), gate: Gate::Closed, opened_total: 0 }
    }

    /// Holds other rules from now on; a pause that has begun ends as it was to.
    pub(crate) fn set_rules(&mut self, rules: BreakerRules) {
        self.rules = rules;
    }

    /// Says how long a request has to wait before it may come; one that may has not taken the
    /// trial.
    pub(crate) fn check(&self, now: Duration) -> Result<(), Duration> {
        match self.gate {
            Gate::Open { until } | Gate::Trial { until } if now < until => Err(until - now),
            Gate::Closed | Gate::Open { .. } | Gate::Trial { .. } => Ok(()),
        }
    }

    /// Lets a request go to the device, or says how long to wait before asking again.
    pub(crate) fn admit(&mut self, now: Duration) -> Result<(), Duration> {
        self.check(now)?;
        match self.gate {
            Gate::Closed => {}
            Gate::Open { .. } | Gate::Trial { .. } => {
                self.gate = Gate::Trial { until: now + self.rules.pause };
            }
        }
        Ok(())
    }

    /// A step has run.
    pub(crate) fn succeeded(&mut self) {
        if matches!(self.gate, Gate::Trial { .. }) {
            self.gate = Gate::Closed;
        }
    }

    /// A step has failed.
    pub(crate) fn failed(&mut self, now: Duration) {
        match self.gate {
            Gate::Closed => {
                self.faults.push_back(now);
                while self.faults.front().is_some_and(|&fault| now - fault > self.rules.window) {
                    self.faults.pop_front();
                }
                if self.faults.len() < self.rules.faults_max as usize {
                    return;
                }
            }
            Gate::Open { until } if now < until => return,
            // Half open, it opens again.
            Gate::Open { .. } | Gate::Trial { .. } => {}
        }
        self.faults.clear();
        self.gate = Gate::Open { until: now + self.rules.pause };
        self.opened_total += 1;
    }

    pub(crate) fn state(&self, now: Duration) -> BreakerState {
        match self.gate {
            Gate::Closed => BreakerState::Closed,
            Gate::Open { until } if now < until => BreakerState::Open { rest: until - now },
            Gate::Open { .. } | Gate::Trial { .. } => BreakerState::HalfOpen,
        }
    }

    /// How often it has opened.
    pub(crate) fn opened_total(&self) -> u64 {
        self.opened_total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: BreakerRules = BreakerRules {
        faults_max: 3,
        window: Duration::from_secs(10),
        pause: Duration::from_secs(5),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn faults_open_it_and_a_trial_closes_it() {
        let mut breaker = Breaker::new(RULES);
        for second in 1..=3 {
            assert_eq!(breaker.admit(at(second)), Ok(()));
            breaker.failed(at(second));
        }
        assert_eq!(breaker.state(at(3)), BreakerState::Open { rest: at(5) });
        breaker.succeeded();
        breaker.failed(at(6));
        assert_eq!(breaker.opened_total(), 1, "an older step opens nothing that is open");
        assert_eq!(breaker.admit(at(7)), Err(at(1)), "nor does it close it or prolong the pause");
        assert_eq!(breaker.check(at(8)), Ok(()), "who only asks is no trial");
        assert_eq!(breaker.admit(at(8)), Ok(()), "the trial");
        assert_eq!(breaker.check(at(8)), Err(at(5)));
        assert_eq!(breaker.admit(at(8)), Err(at(5)), "one trial at a time");
        breaker.failed(at(9));
        breaker.failed(at(9));
        assert_eq!(breaker.admit(at(13)), Err(at(1)));
        assert_eq!(breaker.admit(at(14)), Ok(()));
        assert_eq!(breaker.admit(at(19)), Ok(()), "the first trial never ran");
        breaker.succeeded();
        assert_eq!(breaker.state(at(19)), BreakerState::Closed);
        assert_eq!(breaker.opened_total(), 2);
    }

    #[test]
    fn faults_far_apart_do_not_open_it() {
        let mut breaker = Breaker::new(RULES);
        for second in (0..100).step_by(6) {
            breaker.failed(at(second));
            assert_eq!(breaker.state(at(second)), BreakerState::Closed);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Happened {
        Asked,
        Succeeded,
        Failed,
    }

    /// The same, worked out from the whole history each time.
    fn naive(history: &[(u64, Happened)], now: u64) -> (BreakerState, u64) {
        let (mut state, mut since) = ("closed", 0);
        let (mut counted_from, mut opened) = (0, 0);
        for (index, &(time, happened)) in history.iter().enumerate() {
            let may_try = state != "closed" && time >= since + 5;
            match (happened, state) {
                (Happened::Asked, _) if may_try => (state, since) = ("trial", time),
                (Happened::Succeeded, "trial") => (state, counted_from) = ("closed", index),
                (Happened::Failed, "closed") => {
                    let recent = history[counted_from..=index].iter().filter(|(then, what)| {
                        matches!(what, Happened::Failed) && time - then <= 10
                    });
                    if recent.count() >= 3 {
                        (state, since, opened) = ("open", time, opened + 1);
                    }
                }
                (Happened::Failed, "trial") => (state, since, opened) = ("open", time, opened + 1),
                (Happened::Failed, _) if may_try => (since, opened) = (time, opened + 1),
                _ => {}
            }
        }
        let state = match state {
            "closed" => BreakerState::Closed,
            "open" if now < since + 5 => BreakerState::Open { rest: at(since + 5 - now) },
            _ => BreakerState::HalfOpen,
        };
        (state, opened)
    }

    #[test]
    fn it_agrees_with_the_whole_history() {
        let mut random = 7_u64;
        let mut draw = |count: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % count
        };
        let mut opened = 0;
        for _ in 0..300 {
            let (mut breaker, mut history, mut now) = (Breaker::new(RULES), Vec::new(), 0);
            for _ in 0..60 {
                now += draw(4);
                let happened = match draw(4) {
                    0 => Happened::Asked,
                    1 => Happened::Succeeded,
                    _ => Happened::Failed,
                };
                history.push((now, happened));
                match happened {
                    Happened::Asked => drop(breaker.admit(at(now))),
                    Happened::Succeeded => breaker.succeeded(),
                    Happened::Failed => breaker.failed(at(now)),
                }
                let seen = (breaker.state(at(now)), breaker.opened_total());
                assert_eq!(seen, naive(&history, now), "{history:?}");
            }
            opened += breaker.opened_total();
        }
        assert!(opened > 100, "{opened}");
    }
}
