//! What surrounds every step of a program? Its model's turn on the cores, and a note for its
//! breaker of how it went.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use device::{
    BlockCopier, BlockForm, Fault, HeapPool, MemoryUse, OwnCopies, PartClock, Program, StepInputs,
    StepOutputs,
};
use messages::{Refusal, RefusalKind};

use crate::breaker::Breaker;
use crate::turns::TurnTaker;
use crate::{BreakerRules, BreakerState};

/// A breaker that admission, the device thread and status share.
pub(crate) struct SharedBreaker {
    breaker: Mutex<Breaker>,
    start: Instant,
}

impl SharedBreaker {
    pub(crate) fn new(rules: BreakerRules) -> Arc<Self> {
        let (breaker, start) = (Mutex::new(Breaker::new(rules)), Instant::now());
        Arc::new(Self { breaker, start })
    }

    /// Refuses a request while the device is left alone, with the time to wait.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.with(|breaker, now| breaker.check(now)).map_err(left_alone)
    }

    /// The same for a request that needs the device and nothing else: it may be the trial.
    pub(crate) fn admit(&self) -> Result<(), Refusal> {
        self.with(Breaker::admit).map_err(left_alone)
    }

    pub(crate) fn set_rules(&self, rules: BreakerRules) {
        self.with(|breaker, _| breaker.set_rules(rules));
    }

    /// A step was given up.
    pub(crate) fn failed(&self) {
        self.with(Breaker::failed);
    }

    pub(crate) fn state(&self) -> BreakerState {
        self.with(|breaker, now| breaker.state(now))
    }

    pub(crate) fn opened_total(&self) -> u64 {
        self.with(|breaker, _| breaker.opened_total())
    }

    fn with<T>(&self, call: impl FnOnce(&mut Breaker, Duration) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut breaker, self.start.elapsed())
    }
}

fn left_alone(rest: Duration) -> Refusal {
    let text = format!(
        "the device failed repeatedly and is left alone; it is tried again in {} s",
        whole_seconds(rest)
    );
    let retry_after = Some(rest);
    Refusal { retry_after, ..Refusal::new(RefusalKind::Unavailable, text) }
}

/// Seconds, rounded up: what is waited for is there when they are over.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000) as u64
}

/// A program that computes in turns with those of other models, watched by a breaker.
pub(crate) struct Guarded {
    pub(crate) inner: Box<dyn Program>,
    pub(crate) turns: TurnTaker,
    pub(crate) breaker: Arc<SharedBreaker>,
}

impl Program for Guarded {
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        let mut verdict = Verdict { breaker: &self.breaker, has_failed: true };
        let turn = self.turns.take();
        let result = self.inner.run(inputs, outputs);
        drop(turn);
        verdict.has_failed = result.is_err();
        result
    }

    fn block_form(&self) -> BlockForm {
        self.inner.block_form()
    }

    fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
        self.inner.read_block(block, bytes);
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        self.inner.write_block(block, bytes);
    }

    fn state_bytes(&self) -> Option<usize> {
        self.inner.state_bytes()
    }

    fn read_state(&mut self, place: u32, offset: usize, bytes: &mut [u8]) {
        self.inner.read_state(place, offset, bytes);
    }

    fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
        self.inner.copier()
    }

    fn memory(&self) -> MemoryUse {
        self.inner.memory()
    }

    fn heap_pools(&self) -> Vec<HeapPool> {
        self.inner.heap_pools()
    }

    fn own_copies(&self) -> OwnCopies {
        self.inner.own_copies()
    }

    fn clocks(&self) -> Vec<PartClock> {
        self.inner.clocks()
    }
}

/// How a step went, told when it is over; a step that panics has failed.
struct Verdict<'a> {
    breaker: &'a SharedBreaker,
    has_failed: bool,
}

impl Drop for Verdict<'_> {
    fn drop(&mut self) {
        let has_failed = self.has_failed;
        self.breaker.with(
            |breaker, now| {
                if has_failed { breaker.failed(now) } else { breaker.succeeded() }
            },
        );
    }
}
