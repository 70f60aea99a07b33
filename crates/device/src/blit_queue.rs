//! How are bytes moved while the device computes? By lanes: threads that copy, in order.
//!
//! Copies of one block are done by one lane, in the order in which they were asked for. A step that
//! needs copies done carries a [`Fence`] and waits for it; what it waits is the part of the copies
//! that computing did not hide. Other work that moves bytes (reading a file ahead) goes through the
//! same lanes as a closure and is waited for by its [`BlitEvent`].
//!
//! A lane's queue is bounded. Copies that find no place are done by the step itself, as all are
//! where the queue is switched off or the device cannot copy beside its steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::trace::record;
use crate::{BlockCopier, BlockCopy, BlockLease, Fault, Program, Trace, Track};

/// Operations that wait in one lane: a prompt of 30,000 tokens that comes back from a tier.
const LANE_OPS_MAX: usize = 1024;

/// How copies are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlitSettings {
    /// Off: a step does its own copies, before anything else.
    pub enabled: bool,
    /// Lanes, and so copies at once.
    pub concurrent_ops_max: usize,
    /// Bytes of buffers for what is on its way.
    pub staging_bytes: usize,
}

impl Default for BlitSettings {
    fn default() -> Self {
        // One core's copies are as fast as memory on most machines; a second hides a slow one.
        Self { enabled: true, concurrent_ops_max: 2, staging_bytes: 64 << 20 }
    }
}

/// What a queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BlitStatistics {
    pub lanes: u32,
    pub ops_total: u64,
    pub bytes_total: u64,
    /// Operations that wait or run now.
    pub ops_in_flight: u64,
    /// Time the lanes were busy, all together.
    pub busy_seconds: f64,
    /// Time that somebody waited for copies and did nothing else.
    pub waited_seconds: f64,
    /// Copies that a step had to do itself.
    pub late_ops_total: u64,
}

impl BlitStatistics {
    /// Adds what another has done.
    pub fn add(&mut self, other: &Self) {
        self.lanes += other.lanes;
        self.ops_total += other.ops_total;
        self.bytes_total += other.bytes_total;
        self.ops_in_flight += other.ops_in_flight;
        self.busy_seconds += other.busy_seconds;
        self.waited_seconds += other.waited_seconds;
        self.late_ops_total += other.late_ops_total;
    }

    /// Share of the time of copies that was hidden behind other work; `None` before the first.
    pub fn overlap(&self) -> Option<f64> {
        let hidden = (self.busy_seconds - self.waited_seconds).max(0.0);
        (self.busy_seconds > 0.0).then(|| hidden / self.busy_seconds)
    }
}

/// What a program copies itself, besides blocks: its weights when it is loaded, what a step is
/// told and what it gives back. A handle: copies of it count together.
#[derive(Clone, Debug, Default)]
pub struct OwnCopies(Arc<OwnCounts>);

#[derive(Debug, Default)]
struct OwnCounts {
    loaded: BlitStatistics,
    ops: AtomicU64,
    bytes: AtomicU64,
}

impl OwnCopies {
    /// Of a program whose load did so much.
    pub fn of_load(loaded: BlitStatistics) -> Self {
        Self(Arc::new(OwnCounts { loaded, ..OwnCounts::default() }))
    }

    /// One more, in a step.
    pub fn count(&self, bytes: usize) {
        self.0.ops.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Lanes are of the load, and over with it.
    pub fn statistics(&self) -> BlitStatistics {
        let OwnCounts { loaded, ops, bytes } = &*self.0;
        BlitStatistics {
            lanes: 0,
            ops_total: loaded.ops_total + ops.load(Ordering::Relaxed),
            bytes_total: loaded.bytes_total + bytes.load(Ordering::Relaxed),
            ..*loaded
        }
    }
}

/// Lanes of copies. Dropping it ends them after what is queued.
pub struct BlitQueue {
    lanes: Vec<Sender<Op>>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    next_lane: AtomicUsize,
}

#[derive(Default)]
struct Shared {
    ops: AtomicU64,
    done: AtomicU64,
    bytes: AtomicU64,
    busy_nanos: AtomicU64,
    waited_nanos: AtomicU64,
    late: AtomicU64,
    trace: Option<Trace>,
}

enum Op {
    Block {
        block: u32,
        place: usize,
        copy: BlockCopy,
        copier: Arc<dyn BlockCopier>,
        fence: Arc<Fence>,
    },
    Job {
        name: &'static str,
        bytes: u64,
        run: Box<dyn FnOnce() + Send>,
        fence: Arc<Fence>,
    },
}

/// Something that a lane will have done; see [`BlitEvent::wait`].
pub struct BlitEvent {
    fence: Arc<Fence>,
    shared: Arc<Shared>,
}

/// What one step waits for, and its copies when they are done. Used again from step to step.
#[derive(Default)]
pub(crate) struct Fence {
    state: Mutex<FenceState>,
    changed: Condvar,
}

#[derive(Default)]
struct FenceState {
    pending: usize,
    /// With the place that each had among the step's copies.
    done: Vec<(usize, BlockCopy)>,
    busy: Duration,
    trouble: Option<String>,
}

impl BlitQueue {
    /// Starts the lanes.
    ///
    /// # Errors
    /// [`Fault`] when a thread cannot be started.
    pub fn start(settings: &BlitSettings, trace: Option<Trace>) -> Result<Self, Fault> {
        assert!(settings.concurrent_ops_max >= 1, "a queue has a lane");
        let shared = Arc::new(Shared { trace, ..Shared::default() });
        let (mut lanes, mut threads) = (Vec::new(), Vec::new());
        for lane in 0..settings.concurrent_ops_max as u32 {
            let (ops, inbox) = bounded(LANE_OPS_MAX);
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name("pelton-blit".to_owned())
                .spawn(move || serve(lane, &inbox, &shared))
                .map_err(|error| Fault(format!("a thread that copies cannot start: {error}")))?;
            lanes.push(ops);
            threads.push(thread);
        }
        Ok(Self { lanes, threads, shared, next_lane: AtomicUsize::new(0) })
    }

    /// Lets the next lane run `job`, which moves `bytes` bytes; waits where the lane is full.
    pub fn run(
        &self,
        name: &'static str,
        bytes: u64,
        job: impl FnOnce() + Send + 'static,
    ) -> BlitEvent {
        let fence = Arc::new(Fence::default());
        fence.state().pending = 1;
        let lane = self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        self.shared.ops.fetch_add(1, Ordering::Relaxed);
        let op = Op::Job { name, bytes, run: Box::new(job), fence: Arc::clone(&fence) };
        assert!(self.lanes[lane].send(op).is_ok(), "lanes end only when the queue does");
        BlitEvent { fence, shared: Arc::clone(&self.shared) }
    }

    /// Takes those of a step's copies that may be done beside other steps and that find a place;
    /// what stays in `copies` is the step's own to do, after the fence. `is_free` says of a block
    /// whether no step in flight names it.
    pub(crate) fn take(
        &self,
        copies: &mut Vec<BlockCopy>,
        copier: &Arc<dyn BlockCopier>,
        fence: &Arc<Fence>,
        is_free: impl Fn(u32) -> bool,
    ) {
        // Whoever plans steps does not wait: where a lane has no room for all, the step does them.
        let has_room = |lane: &Sender<Op>| LANE_OPS_MAX - lane.len() > copies.len();
        let count = if self.lanes.iter().all(has_room) {
            // The first that cannot be taken ends it: copies of one block stay in order.
            copies.iter().take_while(|copy| copy.block().is_some_and(&is_free)).count()
        } else {
            0
        };
        fence.state().pending += count;
        self.shared.ops.fetch_add(count as u64, Ordering::Relaxed);
        for (place, copy) in copies.drain(..count).enumerate() {
            let block = copy.block().expect("invariant: counted above");
            let lane = &self.lanes[block as usize % self.lanes.len()];
            let (copier, fence) = (Arc::clone(copier), Arc::clone(fence));
            let op = Op::Block { block, place, copy, copier, fence };
            assert!(lane.send(op).is_ok(), "lanes end only when the queue does");
        }
        self.shared.late.fetch_add(copies.len() as u64, Ordering::Relaxed);
    }

    /// A handle for whoever waits for a step's copies.
    pub(crate) fn waiting(&self) -> Waiting {
        Waiting(Arc::clone(&self.shared))
    }

    pub fn statistics(&self) -> BlitStatistics {
        let shared = &self.shared;
        let seconds = |nanos: &AtomicU64| nanos.load(Ordering::Relaxed) as f64 / 1e9;
        let ops = shared.ops.load(Ordering::Relaxed);
        let done = shared.done.load(Ordering::Relaxed);
        BlitStatistics {
            lanes: self.lanes.len() as u32,
            ops_total: ops,
            bytes_total: shared.bytes.load(Ordering::Relaxed),
            ops_in_flight: ops.saturating_sub(done),
            busy_seconds: seconds(&shared.busy_nanos),
            waited_seconds: seconds(&shared.waited_nanos),
            late_ops_total: shared.late.load(Ordering::Relaxed),
        }
    }
}

impl Drop for BlitQueue {
    fn drop(&mut self) {
        self.lanes.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl BlitEvent {
    pub fn is_done(&self) -> bool {
        self.fence.state().pending == 0
    }

    /// Waits until the lane has done it.
    ///
    /// # Errors
    /// [`Fault`] when it broke.
    pub fn wait(&self) -> Result<(), Fault> {
        let mut none = Vec::new();
        Waiting(Arc::clone(&self.shared)).wait(&self.fence, &mut none).map(drop)
    }
}

/// Counts how long somebody waits for copies.
pub(crate) struct Waiting(Arc<Shared>);

impl Waiting {
    /// Waits for all copies that were taken from a step, and puts them back where they were, before
    /// those in `copies`. Gives the time that the lanes were busy with them.
    pub(crate) fn wait(
        &self,
        fence: &Fence,
        copies: &mut Vec<BlockCopy>,
    ) -> Result<Duration, Fault> {
        let mut state = fence.state();
        if state.pending > 0 {
            let start = Instant::now();
            while state.pending > 0 {
                state = fence.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let waited = start.elapsed().as_nanos() as u64;
            self.0.waited_nanos.fetch_add(waited, Ordering::Relaxed);
        }
        state.done.sort_unstable_by_key(|(place, _)| *place);
        copies.splice(..0, state.done.drain(..).map(|(_, copy)| copy));
        let busy = std::mem::take(&mut state.busy);
        match state.trouble.take() {
            None => Ok(busy),
            Some(text) => Err(Fault(format!("a copy broke: {text}"))),
        }
    }
}

impl Fence {
    fn state(&self) -> MutexGuard<'_, FenceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, copy: Option<(usize, BlockCopy)>, busy: Duration, trouble: Option<String>) {
        let mut state = self.state();
        state.pending -= 1;
        state.busy += busy;
        state.done.extend(copy);
        state.trouble = state.trouble.take().or(trouble);
        drop(state);
        self.changed.notify_all();
    }
}

fn serve(lane: u32, inbox: &Receiver<Op>, shared: &Shared) {
    for op in inbox {
        let start = Instant::now();
        let (name, number, bytes, fence, copy, broken) = match op {
            Op::Block { block, place, mut copy, copier, fence } => {
                let lease = BlockLease { block };
                let run = || copy.run_beside(copier.as_ref(), &lease);
                let broken = catch_unwind(AssertUnwindSafe(run)).err();
                let (name, bytes) = (copy.name(), copy.bytes() as u64);
                (name, u64::from(lease.block), bytes, fence, Some((place, copy)), broken)
            }
            Op::Job { name, bytes, run, fence } => {
                let broken = catch_unwind(AssertUnwindSafe(run)).err();
                (name, bytes, bytes, fence, None, broken)
            }
        };
        let busy = start.elapsed();
        record(shared.trace.as_ref(), Track::Copies(lane), name, start, number);
        shared.bytes.fetch_add(bytes, Ordering::Relaxed);
        shared.busy_nanos.fetch_add(busy.as_nanos() as u64, Ordering::Relaxed);
        shared.done.fetch_add(1, Ordering::Relaxed);
        let text = broken.map(|panic| crate::ring::panic_text(panic.as_ref()));
        fence.finish(copy, busy, text);
    }
}

/// The copies of a step that are its own to do.
pub(crate) fn copy_within(program: &mut dyn Program, copies: &mut [BlockCopy]) {
    for copy in copies {
        match copy {
            BlockCopy::Out { block, bytes } => program.read_block(*block, bytes.bytes_mut()),
            BlockCopy::In { block, bytes } => program.write_block(*block, bytes.as_ref()),
            BlockCopy::StateOut { place, offset, bytes } => {
                program.read_state(*place, *offset, bytes.bytes_mut());
            }
            // Its slot is reset first: the program's own to do.
            BlockCopy::StateIn { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn jobs_are_done_in_the_order_of_their_lane() {
        let settings = BlitSettings { concurrent_ops_max: 1, ..BlitSettings::default() };
        let trace = Trace::new(16);
        let queue = BlitQueue::start(&settings, Some(trace.clone())).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let events: Vec<BlitEvent> = (0..10)
            .map(|index| {
                let seen = Arc::clone(&seen);
                queue.run("read ahead", 100, move || {
                    std::thread::sleep(Duration::from_millis(1));
                    seen.lock().unwrap().push(index);
                })
            })
            .collect();
        for event in &events {
            assert_eq!(event.wait(), Ok(()));
            assert!(event.is_done());
        }
        assert_eq!(*seen.lock().unwrap(), (0..10).collect::<Vec<_>>());
        let counts = queue.statistics();
        assert_eq!((counts.ops_total, counts.bytes_total, counts.ops_in_flight), (10, 1000, 0));
        assert!(counts.busy_seconds >= 0.01 && counts.waited_seconds > 0.0, "{counts:?}");
        assert!(counts.overlap().is_some_and(|overlap| (0.0..1.0).contains(&overlap)));
        assert_eq!(trace.spans().0.len(), 10);
    }

    #[test]
    fn a_job_that_breaks_is_told_to_whoever_waits() {
        let queue = BlitQueue::start(&BlitSettings::default(), None).unwrap();
        let event = queue.run("read ahead", 0, || panic!("no such page"));
        assert_eq!(event.wait(), Err(Fault("a copy broke: no such page".to_owned())));
        assert_eq!(queue.run("read ahead", 0, || ()).wait(), Ok(()));
    }
}
