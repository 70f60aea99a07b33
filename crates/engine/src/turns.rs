//! Who computes now? Several models share the cores by taking turns, one step at a time.
//!
//! Each model has a team of threads as wide as the machine; two steps at once would make the
//! phases of both wait for a core. So a step runs while its model holds the turn. The next turn
//! goes to the waiting model that has computed least, so models share time and not steps: a small
//! model beside a large one gets half of the time, many short steps to one long one. A model that
//! has been idle starts where the others are; it has no claim to the time it did not use.
//!
//! A model that computes without pause is away from the queue for some microseconds between two
//! steps. If it is the one that has computed least, the turn waits for it that long.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longer than a device thread takes from one step to the next that already waits in its ring
/// (two channel operations, tens of microseconds when cores are busy); paid once when a model
/// falls idle beside a busy one.
const RETURN_TIME: Duration = Duration::from_micros(500);

/// The turns of one process.
pub(crate) struct Turns {
    order: Mutex<TurnOrder>,
    changed: Condvar,
    start: Instant,
    /// Models that have running streams.
    streaming: Arc<AtomicU32>,
}

/// Whether one model has running streams, and whether others do: their tokens wait for its steps.
pub(crate) struct Streaming {
    all: Arc<AtomicU32>,
    own: bool,
}

/// One model's place among the others.
pub(crate) struct TurnTaker {
    turns: Arc<Turns>,
    id: u64,
}

/// The cores are this model's until it is dropped.
pub(crate) struct Turn<'a>(&'a TurnTaker);

impl Turns {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            order: Mutex::default(),
            changed: Condvar::new(),
            start: Instant::now(),
            streaming: Arc::default(),
        })
    }

    pub(crate) fn join(self: &Arc<Self>) -> TurnTaker {
        TurnTaker { turns: Arc::clone(self), id: self.lock().join() }
    }

    fn lock(&self) -> MutexGuard<'_, TurnOrder> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streaming {
    pub(crate) fn set(&mut self, own: bool) {
        match (self.own, own) {
            (false, true) => _ = self.all.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.all.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
        self.own = own;
    }

    pub(crate) fn others(&self) -> bool {
        self.all.load(Ordering::Relaxed) > u32::from(self.own)
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl TurnTaker {
    pub(crate) fn streaming(&self) -> Streaming {
        Streaming { all: Arc::clone(&self.turns.streaming), own: false }
    }

    /// Waits for this model's turn.
    pub(crate) fn take(&self) -> Turn<'_> {
        let turns = &*self.turns;
        let mut order = turns.lock();
        order.arrive(self.id);
        loop {
            let now = turns.start.elapsed();
            let patience = match order.next(now) {
                Next::Start(id) if id == self.id => break order.start(self.id, now),
                // The one that is next has been woken or is about to arrive.
                Next::Start(_) | Next::Nobody => None,
                Next::WaitUntil(until) => Some(until - now),
            };
            order = match patience {
                None => turns.changed.wait(order).unwrap_or_else(PoisonError::into_inner),
                Some(time) => {
                    let waited = turns.changed.wait_timeout(order, time);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let turns = &*self.0.turns;
        let mut order = turns.lock();
        order.release(turns.start.elapsed());
        drop(order);
        turns.changed.notify_all();
    }
}

impl Drop for TurnTaker {
    fn drop(&mut self) {
        self.turns.lock().leave(self.id);
        self.turns.changed.notify_all();
    }
}

/// The decision, with time passed in as a duration since any fixed moment.
#[derive(Default)]
struct TurnOrder {
    takers: BTreeMap<u64, Taker>,
    next_id: u64,
    running: Option<(u64, Duration)>,
    /// Who ran last, until when, and may be back soon.
    last: Option<(u64, Duration)>,
    /// The computing time at which the latest turn began, of whoever took it: where newcomers
    /// start.
    reached: Duration,
}

#[derive(Default)]
struct Taker {
    computed: Duration,
    is_waiting: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Start(u64),
    /// Somebody with a better claim is expected back before that.
    WaitUntil(Duration),
    Nobody,
}

impl TurnOrder {
    fn join(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.takers.insert(id, Taker::default());
        id
    }

    fn leave(&mut self, id: u64) {
        let taker = self.takers.remove(&id).expect("invariant: it joined once and leaves once");
        assert!(!taker.is_waiting, "nobody leaves while waiting for a turn");
    }

    fn arrive(&mut self, id: u64) {
        let reached = self.reached;
        let taker = self.taker(id);
        assert!(!taker.is_waiting, "one turn at a time");
        taker.is_waiting = true;
        taker.computed = taker.computed.max(reached);
    }

    fn next(&self, now: Duration) -> Next {
        if self.running.is_some() {
            return Next::Nobody;
        }
        let waiting = self.takers.iter().filter(|(_, taker)| taker.is_waiting);
        let Some((&id, least)) = waiting.min_by_key(|(_, taker)| taker.computed) else {
            return Next::Nobody;
        };
        if let Some((last, until)) = self.last
            && let Some(taker) = self.takers.get(&last)
            && !taker.is_waiting
            && taker.computed < least.computed
            && now < until + RETURN_TIME
        {
            return Next::WaitUntil(until + RETURN_TIME);
        }
        Next::Start(id)
    }

    fn start(&mut self, id: u64, now: Duration) {
        assert!(self.running.is_none(), "one model computes at a time");
        self.running = Some((id, now));
        let taker = self.taker(id);
        taker.is_waiting = false;
        let computed = taker.computed;
        self.reached = self.reached.max(computed);
    }

    fn release(&mut self, now: Duration) {
        let (id, since) = self.running.take().expect("invariant: released once, by its holder");
        self.taker(id).computed += now.saturating_sub(since);
        self.last = Some((id, now));
    }

    fn taker(&mut self, id: u64) -> &mut Taker {
        self.takers.get_mut(&id).expect("invariant: a taker stays until it leaves")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// What each model got in a simulated time: steps, and its longest wait.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Got {
        steps: u64,
        computed: Duration,
        longest_wait: Duration,
    }

    /// Models that always have work, each step as long as given; `starts` says from when.
    fn simulate(steps: &[Duration], starts: &[Duration], end: Duration) -> Vec<Got> {
        let mut order = TurnOrder::default();
        let ids: Vec<u64> = steps.iter().map(|_| order.join()).collect();
        let mut arrivals: Vec<Option<Duration>> = starts.iter().copied().map(Some).collect();
        let mut waiting_since = vec![Duration::ZERO; steps.len()];
        let mut got = vec![Got::default(); steps.len()];
        let mut now = Duration::ZERO;
        while now < end {
            for index in 0..steps.len() {
                if arrivals[index].is_some_and(|time| time <= now) {
                    arrivals[index] = None;
                    order.arrive(ids[index]);
                    waiting_since[index] = now;
                }
            }
            match order.next(now) {
                Next::Start(id) => {
                    let index = ids.iter().position(|&known| known == id).unwrap();
                    let wait = now - waiting_since[index];
                    got[index].longest_wait = got[index].longest_wait.max(wait);
                    order.start(id, now);
                    now += steps[index];
                    order.release(now);
                    got[index].steps += 1;
                    got[index].computed += steps[index];
                    // Back after the time that two channel operations take.
                    arrivals[index] = Some(now + Duration::from_micros(20));
                }
                Next::WaitUntil(until) => {
                    let next = arrivals.iter().flatten().min().copied().unwrap_or(until);
                    now = next.min(until).max(now + Duration::from_nanos(1));
                }
                Next::Nobody => now = arrivals.iter().flatten().min().copied().unwrap_or(end),
            }
        }
        got
    }

    #[test]
    fn time_is_shared_whatever_the_length_of_a_step() {
        for steps in [[ms(10), ms(10)], [ms(200), ms(10)], [ms(7), ms(90)]] {
            let got = simulate(&steps, &[ms(0), ms(0)], ms(20_000));
            let longest = steps[0].max(steps[1]);
            let apart = got[0].computed.abs_diff(got[1].computed);
            assert!(apart <= 2 * longest, "{steps:?}: {got:?}");
            for (got, step) in got.iter().zip(steps) {
                let bound = longest + step + RETURN_TIME;
                assert!(got.longest_wait <= bound, "{steps:?}: {got:?}");
            }
        }
    }

    #[test]
    fn a_newcomer_takes_no_more_than_its_share() {
        let got = simulate(&[ms(10), ms(10)], &[ms(0), ms(10_000)], ms(20_000));
        assert!(got[0].computed >= ms(14_900), "{got:?}");
        assert!(got[1].computed >= ms(4_900), "{got:?}");
        assert!(got[0].longest_wait <= ms(21), "{got:?}");
    }

    #[test]
    fn one_model_alone_never_waits() {
        let got = simulate(&[ms(10)], &[ms(0)], ms(1000));
        assert_eq!(got[0].longest_wait, Duration::ZERO);
        assert!(got[0].steps >= 99, "{got:?}");
    }

    #[test]
    fn a_model_that_left_is_not_waited_for() {
        let mut order = TurnOrder::default();
        let (heavy, light) = (order.join(), order.join());
        order.arrive(heavy);
        order.start(heavy, ms(0));
        order.release(ms(100));
        order.arrive(light);
        order.arrive(heavy);
        order.start(light, ms(100));
        order.release(ms(101));
        assert_eq!(order.next(ms(101)), Next::WaitUntil(ms(101) + RETURN_TIME));
        order.leave(light);
        assert_eq!(order.next(ms(101)), Next::Start(heavy));
    }

    #[test]
    fn one_holds_the_turn_at_a_time() {
        let turns = Turns::new();
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (taker, inside) = (turns.join(), &inside);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let turn = taker.take();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::hint::spin_loop();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(turn);
                    }
                });
            }
        });
        assert!(turns.lock().takers.is_empty());
    }
}
