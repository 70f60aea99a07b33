//! How do planning, running and reading overlap? A ring of steps in flight.
//!
//! Contract, written before the ring: the planner submits at most `depth` steps that it has not
//! collected; steps run in submission order on one device thread; each submission yields exactly
//! one completion, in order, also when the program fails or panics; inputs and outputs travel in
//! the same box there and back, so nothing is allocated once `depth` boxes exist. Dropping the ring
//! ends the thread after the step that runs.
//!
//! A step that fails may have others behind it that go on where it was to end. Their rows of its
//! slots are not computed (`lost_slots`), and are not among the inputs of their completions.
//!
//! A device may hang. Whoever waits for a step asks [`CommandRing::patience`] how long, asks again,
//! and when nothing is left of it gives up ([`CommandRing::give_up`]): steps in flight are lost,
//! and nothing is submitted until the device thread has come back from them, for what they still
//! write must not meet another step. A thread that never comes back is left behind when the ring is
//! dropped, and its program with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select_biased};

use crate::blit_queue::{Fence, Waiting, copy_within};
use crate::lost_slots::LostSlots;
use crate::trace::record;
use crate::{
    BlitQueue, BlitStatistics, BlockCopier, Capacity, Fault, HeapPool, OwnCopies, PartClock,
    Program, StepInputs, StepOutputs, Trace, Track,
};

/// How steps are handed over.
#[derive(Clone, Debug)]
pub struct RingSettings {
    /// Most steps in flight.
    pub depth: usize,
    /// A step that takes longer has hung, unless such have finished or come back; `None`: never.
    pub timeout: Option<Duration>,
    pub trace: Option<Trace>,
}

impl Default for RingSettings {
    fn default() -> Self {
        // A prompt's step of a 70B model takes a processor minutes.
        let timeout = Some(Duration::from_secs(120));
        Self { depth: RING_DEPTH_DEFAULT, timeout, trace: None }
    }
}

/// One step runs, one waits behind it: see `RingStatistics::idle_seconds`.
pub const RING_DEPTH_DEFAULT: usize = 2;
/// Steps may take so many times as long as the slowest that finished.
const PATIENCE_STEPS: u32 = 10;
/// Looks at a step before it has hung. By a look that comes late, a process that was stopped sees
/// that its device was, too.
const PATIENCE_LOOKS: u32 = 8;

/// A step that has been run, with its buffers for the next one.
pub struct Completion {
    pub inputs: Box<StepInputs>,
    pub outputs: Box<StepOutputs>,
    pub result: Result<(), Fault>,
    /// Time the program took.
    pub duration: Duration,
    /// Time the step's copies took, most of it beside the steps before.
    pub copying: Duration,
    /// From submission to the beginning.
    queued: Duration,
    /// From the end of the step before to this one's beginning, or to its copies.
    idle: Duration,
    epoch: u64,
    fence: Arc<Fence>,
}

impl Completion {
    /// Of a step whose device is not waited for any more.
    pub fn given_up(step: u64, fault: Fault) -> Self {
        let inputs = Box::new(StepInputs { step, ..StepInputs::default() });
        let [duration, copying, queued, idle] = [Duration::ZERO; 4];
        let (result, outputs, fence) = (Err(fault), Box::default(), Arc::default());
        Self { inputs, outputs, result, duration, copying, queued, idle, epoch: 0, fence }
    }
}

struct Submission {
    slot: Slot,
    at: Instant,
    /// There was work all the time since the step before.
    is_steady: bool,
    epoch: u64,
}

/// The buffers of one step.
#[derive(Default)]
struct Slot {
    inputs: Box<StepInputs>,
    outputs: Box<StepOutputs>,
    fence: Arc<Fence>,
}

impl Slot {
    fn new(capacity: &Capacity) -> Self {
        let mut slot = Self::default();
        slot.inputs.reserve(capacity);
        slot.outputs.reserve(capacity);
        slot
    }
}

/// What a ring has done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RingStatistics {
    pub depth: u32,
    pub steps_in_flight: u32,
    pub steps_total: u64,
    /// Time in the program.
    pub run_seconds: f64,
    /// Time the device waited for its next step while there was work to plan.
    pub idle_seconds: f64,
    /// Time steps waited behind others.
    pub queued_seconds: f64,
    /// Time it took to plan steps and write their inputs.
    pub planning_seconds: f64,
    pub timeouts_total: u64,
    /// Steps given up whose device has not come back.
    pub steps_stuck: u32,
}

impl RingStatistics {
    /// Share of the time with work in which the device had none; `None` before the first step.
    pub fn idle_share(&self) -> Option<f64> {
        let all = self.run_seconds + self.idle_seconds;
        (all > 0.0).then(|| self.idle_seconds / all)
    }
}

pub struct CommandRing {
    submissions: Option<Sender<Submission>>,
    completions: Receiver<Completion>,
    free: Vec<Slot>,
    settings: RingSettings,
    copies: Option<(BlitQueue, Arc<dyn BlockCopier>)>,
    own_copies: OwnCopies,
    clocks: Vec<PartClock>,
    named: NamedBlocks,
    /// Goes up when steps are given up; older ones are stale.
    epoch: Arc<AtomicU64>,
    /// When the device last showed that it is alive.
    progress: Instant,
    /// When somebody last asked how long to wait, and what the answer was.
    looked: Option<(Instant, Duration)>,
    slowest: Duration,
    /// As set, or longer where that was too short.
    timeout: Duration,
    is_steady: bool,
    counts: RingStatistics,
    thread: Option<JoinHandle<()>>,
}

impl CommandRing {
    /// Starts the device thread; `copies` does the copies that need not wait for it. Room for
    /// steps of `capacity` is made here, so that submitting one takes no memory.
    ///
    /// # Errors
    /// [`Fault`] when the thread cannot be started.
    pub fn start(
        program: Box<dyn Program>,
        capacity: &Capacity,
        settings: RingSettings,
        copies: Option<BlitQueue>,
    ) -> Result<Self, Fault> {
        let depth = settings.depth;
        assert!(depth >= 1, "a ring holds at least one step");
        let (submissions, inbox) = bounded::<Submission>(depth);
        let (outbox, completions) = bounded(depth);
        let epoch = Arc::new(AtomicU64::new(0));
        let copies = copies.and_then(|queue| Some((queue, program.copier()?)));
        let (own_copies, clocks) = (program.own_copies(), program.clocks());
        let device = DeviceThread {
            pools: program.heap_pools(),
            program,
            epoch: Arc::clone(&epoch),
            waiting: copies.as_ref().map(|(queue, _)| queue.waiting()),
            trace: settings.trace.clone(),
            lost: LostSlots::new(capacity.slots),
            last_end: None,
        };
        let (waits, began) = bounded::<()>(0);
        let thread = std::thread::Builder::new()
            .name("pelton-device".to_owned())
            .spawn(move || {
                wait_beforehand(&inbox, &began);
                device.serve(&inbox, &outbox);
            })
            .map_err(|error| Fault(format!("the device thread could not start: {error}")))?;
        while matches!(waits.try_send(()), Err(TrySendError::Full(()))) {
            std::thread::yield_now();
        }
        Ok(Self {
            submissions: Some(submissions),
            completions,
            free: (0..depth).map(|_| Slot::new(capacity)).collect(),
            timeout: settings.timeout.unwrap_or_default(),
            settings,
            copies,
            own_copies,
            clocks,
            named: NamedBlocks::default(),
            epoch,
            progress: Instant::now(),
            looked: None,
            slowest: Duration::ZERO,
            is_steady: false,
            counts: RingStatistics { depth: depth as u32, ..RingStatistics::default() },
            thread: Some(thread),
        })
    }

    pub fn has_room(&self) -> bool {
        self.counts.steps_stuck == 0 && self.in_flight() < self.settings.depth
    }

    pub fn in_flight(&self) -> usize {
        self.counts.steps_in_flight as usize
    }

    /// Fills a free step's inputs and submits it. `since` is when its planning began.
    ///
    /// # Panics
    /// When the ring is full: the planner must ask [`CommandRing::has_room`].
    pub fn submit(&mut self, since: Instant, fill: impl FnOnce(&mut StepInputs)) {
        assert!(self.has_room(), "depth_bounded: {} steps are in flight", self.in_flight());
        let mut slot = self.free.pop().expect("invariant: the ring has room");
        fill(&mut slot.inputs);
        if let Some((queue, copier)) = &self.copies {
            let named = &self.named;
            queue.take(&mut slot.inputs.copies, copier, &slot.fence, |block| named.is_free(block));
            self.named.begin(&slot.inputs);
        }
        let at = Instant::now();
        self.counts.planning_seconds += (at - since).as_secs_f64();
        record(self.settings.trace.as_ref(), Track::Planner, "plan", since, slot.inputs.step);
        if self.in_flight() == 0 {
            self.progress = at;
            self.looked = None;
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        let sender = self.submissions.as_ref().expect("invariant: open until dropped");
        let sent = sender.try_send(Submission { slot, at, is_steady: self.is_steady, epoch });
        assert!(sent.is_ok(), "the device thread takes `depth` submissions and never ends early");
        self.is_steady = true;
        self.counts.steps_in_flight += 1;
    }

    /// What a step gave has been settled, from `since` on; for the timeline.
    pub fn settled(&self, since: Instant, step: u64) {
        record(self.settings.trace.as_ref(), Track::Planner, "settle", since, step);
    }

    /// Nothing is left to do: what the device waits from now on is not for a plan.
    pub fn rest(&mut self) {
        self.is_steady = false;
    }

    /// Ready when a completion can be collected; for use in a `select`.
    pub fn completions(&self) -> &Receiver<Completion> {
        &self.completions
    }

    /// Whether a completion is of a step that was given up.
    pub fn is_stale(&self, completion: &Completion) -> bool {
        completion.epoch != self.epoch.load(Ordering::Acquire)
    }

    /// Counts a completion received from [`CommandRing::completions`] and hands it to `read`;
    /// one of a step that was given up is only put away.
    pub fn collect<T>(
        &mut self,
        mut completion: Completion,
        read: impl FnOnce(&mut Completion) -> T,
    ) -> Option<T> {
        self.progress = Instant::now();
        self.looked = None;
        let is_stale = self.is_stale(&completion);
        let counts = &mut self.counts;
        let value = if !is_stale {
            assert!(counts.steps_in_flight > 0, "a completion without a submission");
            counts.steps_in_flight -= 1;
            counts.steps_total += 1;
            counts.run_seconds += completion.duration.as_secs_f64();
            counts.idle_seconds += completion.idle.as_secs_f64();
            counts.queued_seconds += completion.queued.as_secs_f64();
            self.slowest = self.slowest.max(completion.duration);
            Some(read(&mut completion))
        } else {
            counts.steps_stuck -= 1;
            // A device that is slower than was thought is not given up for ever: twice the time at
            // each turn, up to twice what the step took. One that hung for long gains no more.
            let learnt = (2 * self.timeout).min(2 * completion.duration);
            self.timeout = self.timeout.max(learnt);
            None
        };
        if self.copies.is_some() {
            self.named.end();
        }
        let Completion { mut inputs, outputs, fence, .. } = completion;
        inputs.copies.clear();
        self.free.push(Slot { inputs, outputs, fence });
        value
    }

    /// How long to wait for the next completion before asking again; 0: it is overdue; `None`: wait
    /// for ever. Time in which nobody asked though it was time to is not the device's: the whole
    /// process, or its machine, stood still.
    pub fn patience(&mut self) -> Option<Duration> {
        self.settings.timeout?;
        if self.in_flight() == 0 {
            return None;
        }
        let timeout = self.timeout.max(self.slowest * PATIENCE_STEPS);
        let now = Instant::now();
        if let Some((looked, wait)) = self.looked {
            let stood_still = now.saturating_duration_since(looked).saturating_sub(wait);
            self.progress = now.min(self.progress + stood_still);
        }
        let left = timeout.saturating_sub(now.saturating_duration_since(self.progress));
        let wait = left.min(timeout / PATIENCE_LOOKS);
        self.looked = Some((now, wait));
        Some(wait)
    }

    /// The next completion; `None` where it is overdue. Of a ring with steps in flight.
    pub fn wait(&mut self) -> Option<Completion> {
        loop {
            let Some(patience) = self.patience() else { return self.completions.recv().ok() };
            match self.completions.recv_timeout(patience) {
                Ok(completion) => return Some(completion),
                Err(_) if patience.is_zero() => return None,
                Err(_) => {}
            }
        }
    }

    /// Gives up all steps in flight; their completions will be put away when they come. Says how
    /// long the device has been silent.
    pub fn give_up(&mut self) -> Duration {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let counts = &mut self.counts;
        counts.timeouts_total += 1;
        counts.steps_stuck += counts.steps_in_flight;
        counts.steps_in_flight = 0;
        self.progress.elapsed()
    }

    /// Whether steps were given up and their device has not come back.
    pub fn is_stuck(&self) -> bool {
        self.counts.steps_stuck > 0
    }

    pub fn statistics(&self) -> RingStatistics {
        self.counts
    }

    /// The queue of copies, where there is one.
    pub fn copies(&self) -> Option<&BlitQueue> {
        self.copies.as_ref().map(|(queue, _)| queue)
    }

    /// Of the parts of a program that is on several devices.
    pub fn clocks(&self) -> &[PartClock] {
        &self.clocks
    }

    /// Of the queue, and of what the program copies itself.
    pub fn copy_statistics(&self) -> BlitStatistics {
        let mut all = self.own_copies.statistics();
        self.copies().iter().for_each(|queue| all.add(&queue.statistics()));
        all
    }
}

impl Drop for CommandRing {
    fn drop(&mut self) {
        drop(self.submissions.take());
        let Some(thread) = self.thread.take() else { return };
        if self.is_stuck() {
            while let Ok(completion) = self.completions.try_recv() {
                self.collect(completion, |_| ());
            }
        }
        if self.is_stuck() {
            tracing::error!("the device has not come back: its thread and memory are left behind");
        } else {
            // The outbox has room for every step in flight, so the thread cannot be stuck on it.
            let _ = thread.join();
        }
    }
}

/// How often each block is named by steps in flight.
#[derive(Default)]
struct NamedBlocks {
    counts: Vec<u32>,
    /// Of each step in flight, how many blocks it names.
    steps: std::collections::VecDeque<usize>,
    blocks: std::collections::VecDeque<u32>,
}

impl NamedBlocks {
    fn is_free(&self, block: u32) -> bool {
        self.counts.get(block as usize).is_none_or(|&count| count == 0)
    }

    fn begin(&mut self, inputs: &StepInputs) {
        // Copies that stayed with the step name their blocks, too.
        let own = inputs.copies.iter().filter_map(crate::BlockCopy::block);
        let before = self.blocks.len();
        for block in inputs.blocks.iter().copied().chain(own) {
            let length = self.counts.len().max(block as usize + 1);
            self.counts.resize(length, 0);
            self.counts[block as usize] += 1;
            self.blocks.push_back(block);
        }
        self.steps.push_back(self.blocks.len() - before);
    }

    /// The oldest step has ended.
    fn end(&mut self) {
        let count = self.steps.pop_front().expect("invariant: steps end in order");
        for block in self.blocks.drain(..count) {
            self.counts[block as usize] -= 1;
        }
    }
}

struct DeviceThread {
    program: Box<dyn Program>,
    pools: Vec<HeapPool>,
    epoch: Arc<AtomicU64>,
    waiting: Option<Waiting>,
    trace: Option<Trace>,
    lost: LostSlots,
    last_end: Option<Instant>,
}

/// A thread's first wait at a channel takes memory, for the thread and for the channel's list of
/// who waits. Had the device always been slower than the plans, that would be in the middle of
/// serving. Waits for the inbox and then for the other: who has sent to that one, which has no
/// room, knows that both waits had begun.
fn wait_beforehand(inbox: &Receiver<Submission>, began: &Receiver<()>) {
    select_biased! {
        recv(inbox) -> _ => unreachable!("nobody has the other end yet"),
        recv(began) -> _ => {}
    }
}

impl DeviceThread {
    fn serve(mut self, inbox: &Receiver<Submission>, outbox: &Sender<Completion>) {
        for submission in inbox {
            if outbox.send(self.run(submission)).is_err() {
                return;
            }
        }
    }

    fn run(&mut self, submission: Submission) -> Completion {
        let Submission { slot, at, is_steady, epoch } = submission;
        let Slot { mut inputs, mut outputs, fence } = slot;
        let begin = Instant::now();
        let idle = self.last_end.filter(|_| is_steady).map_or(Duration::ZERO, |end| begin - end);
        let mut copying = Duration::ZERO;
        let mut start = begin;
        self.lost.leave_out(&mut inputs);
        outputs.clear(inputs.step);
        let run = catch_unwind(AssertUnwindSafe(|| {
            // The rest is the step's own to copy.
            let own = inputs.copies.len();
            if let Some(waiting) = &self.waiting {
                copying = waiting.wait(&fence, &mut inputs.copies)?;
            }
            if epoch != self.epoch.load(Ordering::Acquire) {
                return Err(Fault("given up before it began".to_owned()));
            }
            let _pauses: [Option<_>; 2] =
                std::array::from_fn(|index| self.pools.get(index).map(HeapPool::pause_growth));
            let done = inputs.copies.len() - own;
            start = Instant::now();
            copy_within(self.program.as_mut(), &mut inputs.copies[done..]);
            copying += start.elapsed();
            start = Instant::now();
            // A step may be there for its copies alone.
            if inputs.rows.is_empty() { Ok(()) } else { self.program.run(&inputs, &mut outputs) }
        }));
        let broken = |text| Err(Fault(format!("the device program broke: {text}")));
        let result = run.unwrap_or_else(|panic| broken(panic_text(panic.as_ref())));
        self.lost.ran(&inputs, &outputs, &result);
        record(self.trace.as_ref(), Track::Device, "step", start, inputs.step);
        self.last_end = Some(Instant::now());
        let (duration, queued) = (start.elapsed(), begin.saturating_duration_since(at));
        Completion { inputs, outputs, result, duration, copying, queued, idle, epoch, fence }
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no reason given".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use super::{CommandRing, NamedBlocks, RingSettings};
    use crate::{
        BlitQueue, BlitSettings, BlockCopier, BlockCopy, BlockForm, BlockLease, Capacity, Fault,
        HeapPool, HeapSettings, HeapSource, HostBytes, MemoryUse, Program, RowInput, SampleOutput,
        SlotReset, StagingRing, StateCopy, StepInputs, StepOutputs, SystemAllocator, TokenInput,
    };
    use ops::sample_rows::{SampleError, SampleParams, Sampled};

    const CAPACITY: Capacity = Capacity {
        step_tokens_max: 8,
        slots: 4,
        proposed_tokens_max: 2,
        block_count: 4,
        block_tokens: 16,
        states: 4,
    };

    /// Two blocks of two bytes.
    #[derive(Clone, Default)]
    struct Blocks(Arc<Mutex<[[u8; 2]; 2]>>);

    impl BlockCopier for Blocks {
        fn read_block(&self, lease: &BlockLease, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0.lock().unwrap()[lease.block() as usize]);
        }

        fn write_block(&self, lease: &BlockLease, bytes: &[u8]) {
            self.0.lock().unwrap()[lease.block() as usize].copy_from_slice(bytes);
        }
    }

    /// Answers with the step's number; fails at 3, panics at 5, takes its time at 7 and 8.
    #[derive(Default)]
    struct Echo(Blocks);

    impl Program for Echo {
        fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
            outputs.step = inputs.step;
            assert_ne!(inputs.step, 5, "five");
            if matches!(inputs.step, 7 | 8) {
                std::thread::sleep(Duration::from_millis(300));
            }
            if inputs.step == 3 { Err(Fault("three".to_owned())) } else { Ok(()) }
        }

        fn block_form(&self) -> BlockForm {
            BlockForm { name: "two bytes".to_owned(), bytes: 2 }
        }

        fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
            self.0.read_block(&BlockLease { block }, bytes);
        }

        fn write_block(&mut self, block: u32, bytes: &[u8]) {
            self.0.write_block(&BlockLease { block }, bytes);
        }

        fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
            Some(Arc::new(self.0.clone()))
        }

        fn memory(&self) -> MemoryUse {
            MemoryUse::default()
        }
    }

    /// A step like any other, so that the program sees it.
    fn row() -> RowInput {
        let (slot, start, length) = (0, 0, 1);
        let (blocks_start, blocks_count, sample_index) = (0, 1, None);
        RowInput { slot, start, length, blocks_start, blocks_count, sample_index, proposed: 0 }
    }

    fn ring(depth: usize, lanes: usize, timeout: Option<Duration>) -> CommandRing {
        let settings = RingSettings { depth, timeout, trace: None };
        let blit = BlitSettings { concurrent_ops_max: lanes, ..BlitSettings::default() };
        let copies = (lanes > 0).then(|| BlitQueue::start(&blit, None).unwrap());
        CommandRing::start(Box::<Echo>::default(), &CAPACITY, settings, copies).unwrap()
    }

    fn submit(ring: &mut CommandRing, step: u64) {
        ring.submit(Instant::now(), |inputs| {
            fill_rows(inputs, step, &[0], &[(0, &[])]);
        });
    }

    #[test]
    fn copies_are_done_in_order_before_their_step() {
        let source =
            HeapSource { settings: HeapSettings::default(), allocator: Arc::new(SystemAllocator) };
        let staging = StagingRing::new(HeapPool::open(source, 100 * 256).unwrap(), 2, 100);
        // Without lanes the step does them: the slow twin.
        for lanes in [0, 1, 2, 3] {
            let mut ring = ring(2, lanes, None);
            let written =
                |byte: u8| BlockCopy::In { block: 1, bytes: HostBytes(Arc::new([byte; 2])) };
            let read = |block| {
                let mut bytes = staging.take().unwrap();
                bytes.bytes_mut().fill(9);
                BlockCopy::Out { block, bytes }
            };
            for copies in [vec![read(1), written(4), read(1), written(5)], vec![read(0), read(1)]] {
                ring.submit(Instant::now(), |inputs| {
                    inputs.clear(0);
                    inputs.copies = copies;
                });
            }
            let mut seen = Vec::new();
            for _ in 0..2 {
                let completion = ring.completions().recv().unwrap();
                assert_eq!(completion.result, Ok(()), "no rows, so the program is not asked");
                ring.collect(completion, |done| {
                    seen.extend(done.inputs.copies.iter().filter_map(|copy| match copy {
                        BlockCopy::Out { bytes, .. } => Some(bytes.as_ref().to_vec()),
                        _ => None,
                    }));
                });
            }
            assert_eq!(seen, [[0; 2], [4; 2], [0; 2], [5; 2]], "{lanes} lanes");
            if let Some(queue) = ring.copies() {
                let counts = queue.statistics();
                assert_eq!(
                    (counts.ops_total, counts.bytes_total, counts.late_ops_total),
                    (6, 12, 0)
                );
            }
        }
        assert_eq!(staging.statistics().buffers, staging.statistics().buffers_free);
    }

    #[test]
    fn blocks_that_steps_name_are_copied_by_the_step_itself() {
        let mut ring = ring(2, 1, None);
        let written = || BlockCopy::In { block: 1, bytes: HostBytes(Arc::new([1; 2])) };
        for (step, blocks) in [(7, vec![1]), (0, vec![])] {
            ring.submit(Instant::now(), |inputs| {
                inputs.clear(step);
                inputs.rows.push(row());
                inputs.blocks = blocks;
                inputs.copies.push(written());
            });
        }
        for _ in 0..2 {
            let completion = ring.completions().recv().unwrap();
            ring.collect(completion, |done| assert_eq!(done.result, Ok(())));
        }
        let counts = ring.copies().unwrap().statistics();
        assert_eq!((counts.ops_total, counts.late_ops_total), (1, 1), "7 ran and named it");
    }

    #[test]
    fn named_blocks_are_counted() {
        let mut named = NamedBlocks::default();
        let of = |blocks: Vec<u32>| StepInputs { blocks, ..StepInputs::default() };
        named.begin(&of(vec![0, 2, 2]));
        named.begin(&of(vec![2]));
        assert!(!named.is_free(0) && named.is_free(1) && !named.is_free(2) && named.is_free(9));
        named.end();
        assert!(named.is_free(0) && !named.is_free(2));
        named.end();
        assert!(named.is_free(2));
    }

    #[test]
    fn completions_come_in_order_whatever_happens() {
        for depth in 1..=4 {
            let mut ring = ring(depth, 1, None);
            let mut seen = Vec::new();
            let mut submitted = 0;
            while seen.len() < 7 {
                while ring.has_room() && submitted < 7 {
                    submit(&mut ring, submitted);
                    submitted += 1;
                }
                assert!(ring.in_flight() <= depth);
                let completion = ring.completions().recv().unwrap();
                let read = ring.collect(completion, |done| (done.inputs.step, done.result.clone()));
                seen.extend(read);
            }
            for (expected, (step, result)) in (0..).zip(&seen) {
                assert_eq!(*step, expected);
                match step {
                    3 => assert_eq!(*result, Err(Fault("three".to_owned()))),
                    5 => assert!(result.as_ref().is_err_and(|fault| fault.0.contains("five"))),
                    _ => assert_eq!(*result, Ok(())),
                }
            }
            let counts = ring.statistics();
            assert_eq!((counts.steps_in_flight, counts.steps_total), (0, 7));
            assert!(counts.idle_share().is_some_and(|share| (0.0..=1.0).contains(&share)));
        }
    }

    /// What a program was given of one step: slots, tokens, blocks and states.
    type Given = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<StateCopy>);

    /// Fails at 0, cannot sample slot 0 at 2; keeps what it was given of each step.
    #[derive(Default)]
    struct Watched(Arc<Mutex<Vec<Given>>>, Echo);

    impl Program for Watched {
        fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
            inputs.audit(&CAPACITY);
            let slots = inputs.rows.iter().map(|row| row.slot).collect();
            let token = |token: &TokenInput| match *token {
                TokenInput::Known(token) => token,
                TokenInput::Slot(slot) => 100 + slot,
            };
            let tokens = inputs.tokens.iter().map(token).collect();
            let table = |row: &RowInput| {
                let start = row.blocks_start as usize;
                inputs.blocks[start..start + row.blocks_count as usize].to_vec()
            };
            let blocks = inputs.rows.iter().flat_map(table).collect();
            self.0.lock().unwrap().push((slots, tokens, blocks, inputs.states.clone()));
            if inputs.step == 0 {
                return Err(Fault("zero".to_owned()));
            }
            outputs.samples.extend(inputs.rows.iter().map(|row| SampleOutput {
                slot: row.slot,
                sampled: if (inputs.step, row.slot) == (2, 0) {
                    Err(SampleError::NotFinite)
                } else {
                    Ok(Sampled { token: 0, logprob: None })
                },
            }));
            Ok(())
        }

        fn block_form(&self) -> BlockForm {
            self.1.block_form()
        }

        fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
            self.1.read_block(block, bytes);
        }

        fn write_block(&mut self, block: u32, bytes: &[u8]) {
            self.1.write_block(block, bytes);
        }

        fn memory(&self) -> MemoryUse {
            MemoryUse::default()
        }
    }

    /// A slot and the tokens of its row; none: one token that the slot remembers.
    type SlotRow<'a> = (u32, &'a [u32]);

    /// A step with a block of its slot's number for each row.
    fn fill_rows(inputs: &mut StepInputs, step: u64, resets: &[u32], rows: &[SlotRow<'_>]) {
        inputs.clear(step);
        inputs.resets.extend(resets.iter().map(|&slot| SlotReset {
            slot,
            params: SampleParams::default(),
            prompt: Vec::new(),
            generated: Vec::new(),
            adapter: None,
        }));
        for &(slot, tokens) in rows {
            let length = tokens.len().max(1) as u32;
            let blocks_start = inputs.blocks.len() as u32;
            inputs.rows.push(RowInput { slot, length, blocks_start, ..row() });
            inputs.blocks.push(slot);
            inputs.tokens.extend(tokens.iter().map(|&token| TokenInput::Known(token)));
            if tokens.is_empty() {
                inputs.tokens.push(TokenInput::Slot(slot));
            }
            inputs.states.push(StateCopy::Save { slot, place: slot });
        }
    }

    #[test]
    fn failed_slots_rest() {
        let program = Watched::default();
        let given = Arc::clone(&program.0);
        let settings = RingSettings { depth: 4, timeout: None, trace: None };
        let mut ring = CommandRing::start(Box::new(program), &CAPACITY, settings, None).unwrap();
        let steps: [(&[u32], &[SlotRow<'_>]); 4] = [
            (&[0, 1], &[(0, &[1, 2]), (1, &[3])]),
            // Slot 2 is set by the step behind the one that fails.
            (&[2], &[(0, &[]), (2, &[4, 5]), (1, &[])]),
            // Slot 0 is set again and cannot be sampled, so it rests again.
            (&[0], &[(1, &[]), (0, &[6]), (2, &[])]),
            (&[1], &[(0, &[]), (1, &[7])]),
        ];
        for (step, (resets, rows)) in (0..).zip(steps) {
            ring.submit(Instant::now(), |inputs| fill_rows(inputs, step, resets, rows));
        }
        let mut kept = Vec::new();
        for _ in steps {
            let completion = ring.completions().recv().unwrap();
            let slots = completion.inputs.rows.iter().map(|row| row.slot).collect::<Vec<_>>();
            kept.push((completion.result.is_ok(), slots));
            ring.collect(completion, |_| ());
        }
        let expected = [(false, vec![0, 1]), (true, vec![2]), (true, vec![0, 2]), (true, vec![1])];
        assert_eq!(kept, expected, "whoever reads a completion sees what was computed");
        let save = |slot| StateCopy::Save { slot, place: slot };
        let given = given.lock().unwrap();
        assert_eq!(given[1], (vec![2], vec![4, 5], vec![2], vec![save(2)]));
        assert_eq!(given[2], (vec![0, 2], vec![6, 102], vec![0, 2], vec![save(0), save(2)]));
        assert_eq!(given[3], (vec![1], vec![7], vec![1], vec![save(1)]));
    }

    #[test]
    fn steps_that_hang_are_given_up_and_the_device_may_come_back() {
        let mut ring = ring(3, 1, Some(Duration::from_millis(20)));
        for step in [7, 8, 9] {
            submit(&mut ring, step);
        }
        let patience = ring.patience().unwrap();
        assert!(patience <= Duration::from_millis(20), "{patience:?}");
        assert!(ring.wait().is_none(), "it hangs");
        assert!(ring.give_up() >= Duration::from_millis(20));
        assert!(ring.is_stuck() && !ring.has_room() && ring.patience().is_none());
        let mut ends = Vec::new();
        while ring.is_stuck() {
            let completion = ring.completions().recv().unwrap();
            assert!(ring.is_stale(&completion));
            ends.push((completion.inputs.step, completion.result.is_ok()));
            assert_eq!(ring.collect(completion, |_| ()), None);
        }
        assert_eq!(ends, [(7, true), (8, false), (9, false)], "what had not begun is left out");
        submit(&mut ring, 10);
        let learnt = Duration::from_millis(20)..=Duration::from_millis(40);
        assert!(
            learnt.contains(&ring.timeout),
            "the next is waited for longer: {:?}",
            ring.timeout
        );
        assert!(ring.timeout > *learnt.start(), "{:?}", ring.timeout);
        let completion = ring.completions().recv().unwrap();
        assert_eq!(ring.collect(completion, |done| done.result.clone()), Some(Ok(())));
        assert_eq!(ring.statistics().timeouts_total, 1);
    }

    #[test]
    fn time_in_which_the_process_stood_still_is_not_the_devices() {
        let mut ring = ring(1, 0, Some(Duration::from_millis(240)));
        submit(&mut ring, 7);
        let first = ring.patience().unwrap();
        // Nobody looks: as after SIGSTOP, but that the device goes on.
        std::thread::sleep(Duration::from_millis(280));
        let second = ring.patience().unwrap();
        assert!(first > Duration::ZERO && second > Duration::ZERO, "{first:?} {second:?}");
        let completion = ring.wait().expect("it took 300 ms, of which 250 do not count");
        assert_eq!(ring.collect(completion, |done| done.result.clone()), Some(Ok(())));
        assert_eq!(ring.statistics().timeouts_total, 0);
    }
}
