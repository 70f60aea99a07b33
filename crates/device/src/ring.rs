//! How do planning, running and reading overlap? A ring of steps in flight.
//!
//! Contract, written before the ring: the planner submits at most `depth` steps that it has not
//! collected; steps run in submission order on one device thread; each submission yields exactly
//! one completion, in order, also when the program fails or panics; inputs and outputs travel in
//! the same box there and back, so nothing is allocated once `depth` boxes exist. Dropping the ring
//! ends the thread after the step that runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{BlockCopy, Fault, Program, StepInputs, StepOutputs};

/// A step that has been run, with its buffers for the next one.
pub struct Completion {
    pub inputs: Box<StepInputs>,
    pub outputs: Box<StepOutputs>,
    pub result: Result<(), Fault>,
    /// Time the program took.
    pub duration: Duration,
    /// Time the step's copies took before that.
    pub copying: Duration,
}

struct Submission {
    inputs: Box<StepInputs>,
    outputs: Box<StepOutputs>,
}

pub struct CommandRing {
    submissions: Option<Sender<Submission>>,
    completions: Receiver<Completion>,
    free: Vec<(Box<StepInputs>, Box<StepOutputs>)>,
    in_flight: usize,
    depth: usize,
    thread: Option<JoinHandle<()>>,
}

impl CommandRing {
    /// Starts the device thread. `depth` is the most steps in flight.
    ///
    /// # Errors
    /// [`Fault`] when the thread cannot be started.
    pub fn start(program: Box<dyn Program>, depth: usize) -> Result<Self, Fault> {
        assert!(depth >= 1, "a ring holds at least one step");
        let (submissions, inbox) = bounded::<Submission>(depth);
        let (outbox, completions) = bounded(depth);
        let thread = std::thread::Builder::new()
            .name("pelton-device".to_owned())
            .spawn(move || serve(program, &inbox, &outbox))
            .map_err(|error| Fault(format!("the device thread could not start: {error}")))?;
        let free = (0..depth).map(|_| Default::default()).collect();
        Ok(Self {
            submissions: Some(submissions),
            completions,
            free,
            in_flight: 0,
            depth,
            thread: Some(thread),
        })
    }

    pub fn has_room(&self) -> bool {
        self.in_flight < self.depth
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Fills a free step's inputs and submits it.
    ///
    /// # Panics
    /// When the ring is full: the planner must ask [`CommandRing::has_room`].
    pub fn submit(&mut self, fill: impl FnOnce(&mut StepInputs)) {
        let (mut inputs, outputs) = self.free.pop().expect("invariant: the ring has room");
        fill(&mut inputs);
        let sender = self.submissions.as_ref().expect("invariant: open until dropped");
        let sent = sender.try_send(Submission { inputs, outputs });
        assert!(sent.is_ok(), "the device thread takes `depth` submissions and never ends early");
        self.in_flight += 1;
    }

    /// Ready when a completion can be collected; for use in a `select`.
    pub fn completions(&self) -> &Receiver<Completion> {
        &self.completions
    }

    /// Counts a completion received from [`CommandRing::completions`] and hands it to `read`.
    pub fn collect<T>(&mut self, completion: Completion, read: impl FnOnce(&Completion) -> T) -> T {
        assert!(self.in_flight > 0, "a completion without a submission");
        self.in_flight -= 1;
        let value = read(&completion);
        self.free.push((completion.inputs, completion.outputs));
        value
    }
}

impl Drop for CommandRing {
    fn drop(&mut self) {
        drop(self.submissions.take());
        if let Some(thread) = self.thread.take() {
            // The outbox has room for every step in flight, so the thread cannot be stuck on it.
            let _ = thread.join();
        }
    }
}

fn serve(mut program: Box<dyn Program>, inbox: &Receiver<Submission>, outbox: &Sender<Completion>) {
    for Submission { mut inputs, mut outputs } in inbox {
        let start = Instant::now();
        let mut copying = Duration::ZERO;
        let run = catch_unwind(AssertUnwindSafe(|| {
            copy_blocks(program.as_mut(), &mut inputs.copies);
            copying = start.elapsed();
            // A step may be there for its copies alone.
            if inputs.rows.is_empty() { Ok(()) } else { program.run(&inputs, &mut outputs) }
        }));
        let result = run.unwrap_or_else(|panic| Err(Fault(panic_text(panic.as_ref()))));
        let duration = start.elapsed().saturating_sub(copying);
        let completion = Completion { inputs, outputs, result, duration, copying };
        if outbox.send(completion).is_err() {
            return;
        }
    }
}

fn copy_blocks(program: &mut dyn Program, copies: &mut [BlockCopy]) {
    for copy in copies {
        match copy {
            BlockCopy::Out { block, bytes } => program.read_block(*block, bytes),
            BlockCopy::In { block, bytes } => program.write_block(*block, bytes),
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the device program broke: {}", text.unwrap_or_else(|| "no reason given".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::CommandRing;
    use crate::{BlockCopy, BlockForm, Fault, MemoryUse, Program, StepInputs, StepOutputs};

    /// Answers with the step's number; fails at 3, panics at 5. Has two blocks of two bytes.
    #[derive(Default)]
    struct Echo([[u8; 2]; 2]);

    impl Program for Echo {
        fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
            outputs.step = inputs.step;
            assert_ne!(inputs.step, 5, "five");
            if inputs.step == 3 { Err(Fault("three".to_owned())) } else { Ok(()) }
        }

        fn block_form(&self) -> BlockForm {
            BlockForm { name: "two bytes".to_owned(), bytes: 2 }
        }

        fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0[block as usize]);
        }

        fn write_block(&mut self, block: u32, bytes: &[u8]) {
            self.0[block as usize].copy_from_slice(bytes);
        }

        fn memory(&self) -> MemoryUse {
            MemoryUse::default()
        }
    }

    /// A step like any other, so that the program sees it.
    fn row() -> crate::RowInput {
        let (slot, start, length) = (0, 0, 1);
        let (blocks_start, blocks_count, sample_index) = (0, 1, None);
        crate::RowInput {
            slot,
            start,
            length,
            blocks_start,
            blocks_count,
            sample_index,
            proposed: 0,
        }
    }

    #[test]
    fn copies_are_done_in_order_before_their_step() {
        let mut ring = CommandRing::start(Box::<Echo>::default(), 2).expect("a thread");
        let written = |byte: u8| BlockCopy::In { block: 1, bytes: Arc::new([byte; 2]) };
        let read = |block| BlockCopy::Out { block, bytes: vec![9; 2] };
        for copies in [vec![read(1), written(4), read(1), written(5)], vec![read(0), read(1)]] {
            ring.submit(|inputs| {
                inputs.clear(0);
                inputs.copies = copies;
            });
        }
        let mut seen = Vec::new();
        for _ in 0..2 {
            let completion = ring.completions().recv().expect("one each");
            assert_eq!(completion.result, Ok(()), "no rows, so the program is not asked");
            ring.collect(completion, |done| {
                seen.extend(done.inputs.copies.iter().filter_map(|copy| match copy {
                    BlockCopy::Out { bytes, .. } => Some(bytes.clone()),
                    BlockCopy::In { .. } => None,
                }));
            });
        }
        assert_eq!(seen, [[0; 2], [4; 2], [0; 2], [5; 2]]);
    }

    #[test]
    fn completions_come_in_order_whatever_happens() {
        let mut ring = CommandRing::start(Box::<Echo>::default(), 2).expect("a thread");
        let mut seen = Vec::new();
        let mut submitted = 0;
        while seen.len() < 8 {
            while ring.has_room() && submitted < 8 {
                let step = submitted;
                ring.submit(|inputs| {
                    inputs.clear(step);
                    inputs.rows.push(row());
                });
                submitted += 1;
            }
            let completion = ring.completions().recv().expect("one each");
            seen.push(ring.collect(completion, |done| (done.inputs.step, done.result.clone())));
        }
        for (expected, (step, result)) in (0..).zip(&seen) {
            assert_eq!(*step, expected);
            match step {
                3 => assert_eq!(*result, Err(Fault("three".to_owned()))),
                5 => assert!(result.as_ref().is_err_and(|fault| fault.0.contains("five"))),
                _ => assert_eq!(*result, Ok(())),
            }
        }
        assert_eq!(ring.in_flight(), 0);
    }
}
