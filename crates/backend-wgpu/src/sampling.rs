//! How do logits become tokens? Here in the process, by the function of all backends; rows of large
//! steps on several threads, for each is its own.

use std::num::NonZero;
use std::thread;

use device::{Fault, SampleOutput, SampledRow, StepInputs, StepOutputs};
use ops::sample_rows::{SampleError, Sampled, Scratch, Slot, reference};

use crate::sizes::CHOSEN_ELEMENTS;

/// Logits from which threads pay: what one takes to look at them is many times a thread's start.
const SHARED_FROM: usize = 1 << 20;

/// What a step of so many logits is shared by.
fn threads_for(logits: usize) -> usize {
    if logits < SHARED_FROM { 1 } else { thread::available_parallelism().map_or(1, NonZero::get) }
}

/// Slots of sequences, and room for the work of each thread.
pub(crate) struct Sampling {
    slots: Vec<Option<Slot>>,
    scratches: Vec<Scratch>,
    vocabulary: usize,
}

/// A row to be sampled: its slot is taken out of all slots meanwhile.
struct Task<'a> {
    row: SampledRow<'a>,
    slot: Slot,
    logits: &'a mut [f32],
    samples: Vec<SampleOutput>,
}

impl Sampling {
    pub(crate) fn new(slots: usize, vocabulary: usize) -> Self {
        let slots = (0..slots).map(|_| None).collect();
        Self { slots, scratches: vec![Scratch::for_vocabulary(vocabulary)], vocabulary }
    }

    pub(crate) fn slots(&self) -> &[Option<Slot>] {
        &self.slots
    }

    pub(crate) fn set(&mut self, slot: u32, to: Slot) {
        self.slots[slot as usize] = Some(to);
    }

    /// # Errors
    /// [`Fault`]: a slot was sampled before it was set.
    pub(crate) fn sample(
        &mut self,
        inputs: &StepInputs,
        logits: &mut [f32],
        outputs: &mut StepOutputs,
    ) -> Result<(), Fault> {
        let threads = threads_for(logits.len());
        let mut tasks = self.tasks(inputs, logits)?;
        let share = tasks.len().div_ceil(threads).max(1);
        let vocabulary = self.vocabulary;
        let shares = tasks.len().div_ceil(share).max(1);
        self.scratches
            .resize_with(self.scratches.len().max(shares), || Scratch::for_vocabulary(vocabulary));
        let mut work = tasks.chunks_mut(share).zip(&mut self.scratches);
        let own = work.next();
        thread::scope(|scope| {
            for (tasks, scratch) in work {
                scope.spawn(|| tasks.iter_mut().for_each(|task| task.run(vocabulary, scratch)));
            }
            if let Some((tasks, scratch)) = own {
                tasks.iter_mut().for_each(|task| task.run(vocabulary, scratch));
            }
        });
        for task in tasks {
            self.slots[task.row.slot as usize] = Some(task.slot);
            outputs.samples.extend(task.samples);
        }
        Ok(())
    }

    /// Whether a step's tokens are their rows' largest logits.
    pub(crate) fn takes_largest(&self, inputs: &StepInputs) -> bool {
        !inputs.keep_logits
            && inputs.sampled_rows().all(|row| {
                let slot = self.slots[row.slot as usize].as_ref();
                slot.is_some_and(|slot| slot.takes_largest(row.sample_index))
            })
    }

    /// Of such a step, from what the device says of each row.
    pub(crate) fn take_largest(
        &mut self,
        inputs: &StepInputs,
        chosen: &[f32],
        outputs: &mut StepOutputs,
    ) {
        let each = CHOSEN_ELEMENTS as usize;
        for row in inputs.sampled_rows() {
            let slot = self.slots[row.slot as usize].as_mut();
            let slot = slot.expect("invariant: asked of such a step only");
            let own = chosen[row.place * each..].chunks_exact(each).take(1 + row.proposals.len());
            let sample = |own: &[f32], _: &mut Slot| largest_of(own);
            settle(&row, slot, own, sample, &mut outputs.samples);
        }
    }

    fn tasks<'a>(
        &mut self,
        inputs: &'a StepInputs,
        mut logits: &'a mut [f32],
    ) -> Result<Vec<Task<'a>>, Fault> {
        // All of them before one is taken out: the others' sequences go on.
        let is_unset = |row: &SampledRow<'_>| self.slots[row.slot as usize].is_none();
        if let Some(row) = inputs.sampled_rows().find(is_unset) {
            return Err(Fault(format!("slot {} was sampled before it was set", row.slot)));
        }
        let mut tasks = Vec::new();
        for row in inputs.sampled_rows() {
            let count = (1 + row.proposals.len()) * self.vocabulary;
            let (own, rest) = std::mem::take(&mut logits).split_at_mut(count);
            logits = rest;
            let slot = self.slots[row.slot as usize].take();
            let slot = slot.expect("invariant: rows of a step have slots of their own");
            tasks.push(Task { row, slot, logits: own, samples: Vec::new() });
        }
        Ok(tasks)
    }
}

impl Task<'_> {
    /// Samples after each guess until one is wrong.
    fn run(&mut self, vocabulary: usize, scratch: &mut Scratch) {
        let first = self.row.sample_index;
        let rows = self.logits.chunks_exact_mut(vocabulary).zip(first..);
        let sample = |(logits, index), slot: &mut Slot| reference(slot, index, logits, scratch);
        settle(&self.row, &mut self.slot, rows, sample, &mut self.samples);
    }
}

/// Samples from what there is of each guess until one is wrong.
fn settle<T>(
    row: &SampledRow<'_>,
    slot: &mut Slot,
    guesses: impl Iterator<Item = T>,
    mut sample: impl FnMut(T, &mut Slot) -> Result<Sampled, SampleError>,
    samples: &mut Vec<SampleOutput>,
) {
    for (count, guess) in guesses.enumerate() {
        let sampled = sample(guess, slot);
        let token = sampled.as_ref().ok().map(|sampled| sampled.token);
        samples.push(SampleOutput { slot: row.slot, sampled });
        let Some(token) = token else { break };
        slot.observe(token);
        if !row.goes_on(count, token) {
            break;
        }
    }
}

/// Out of the largest of each part of a row, as `kernels/sample_rows.largest.wgsl` has them.
fn largest_of(parts: &[f32]) -> Result<Sampled, SampleError> {
    let parts = parts.as_chunks::<2>().0;
    let mut best = [0.0, f32::NEG_INFINITY];
    for &[column, logit] in parts {
        if column < 0.0 {
            return Err(SampleError::NotFinite);
        }
        if logit > best[1] {
            best = [column, logit];
        }
    }
    if !best[1].is_finite() {
        return Err(SampleError::NotFinite);
    }
    Ok(Sampled { token: best[0] as u32, logprob: None })
}

/// Numbers as the device has them, behind those that are in `to`.
pub(crate) fn take_floats(bytes: &[u8], to: &mut Vec<f32>) {
    let values = bytes.as_chunks::<4>().0;
    let first = to.len();
    to.resize(first + values.len(), 0.0);
    let to = &mut to[first..];
    let threads = threads_for(values.len());
    let (is_shared, share) = (threads > 1, values.len().div_ceil(threads).max(1));
    thread::scope(|scope| {
        for (values, to) in values.chunks(share).zip(to.chunks_mut(share)) {
            let pairs = to.iter_mut().zip(values);
            let copy = || pairs.for_each(|(to, bytes)| *to = f32::from_le_bytes(*bytes));
            if is_shared { drop(scope.spawn(copy)) } else { copy() }
        }
    });
}

#[cfg(test)]
mod tests {
    use device::RowInput;
    use ops::sample_rows::SampleParams;

    use super::*;

    const VOCABULARY: usize = 1 << 15;
    const ROWS: u32 = 48;

    fn drawn() -> SampleParams {
        SampleParams { temperature: 1.0, seed: 7, ..SampleParams::default() }
    }

    fn logits() -> Vec<f32> {
        let mixed = |index: u32| index.wrapping_mul(2_654_435_769) >> 16;
        (0..ROWS * VOCABULARY as u32).map(|index| mixed(index) as f32 / 8192.0).collect()
    }

    /// More logits than one thread takes, in rows of which each continues its own sequence.
    #[test]
    fn rows_on_several_threads_are_sampled_as_on_one() {
        let mut inputs = StepInputs::default();
        let mut sampling = Sampling::new(ROWS as usize, VOCABULARY);
        for slot in 0..ROWS {
            sampling.set(slot, Slot::new(drawn(), &[slot], &[]));
            inputs.tokens.push(device::TokenInput::Known(slot));
            inputs.rows.push(RowInput {
                slot,
                start: slot,
                length: 1,
                blocks_start: 0,
                blocks_count: 1,
                sample_index: Some(slot),
                proposed: 0,
            });
        }
        let (mut together, mut outputs) = (logits(), StepOutputs::default());
        assert!(together.len() >= SHARED_FROM, "a step that is shared");
        sampling.sample(&inputs, &mut together, &mut outputs).expect("all slots are set");
        let mut scratch = Scratch::for_vocabulary(VOCABULARY);
        let mut alone = logits();
        for (slot, logits) in (0..ROWS).zip(alone.chunks_exact_mut(VOCABULARY)) {
            let mut state = Slot::new(drawn(), &[slot], &[]);
            let sampled = reference(&mut state, slot, logits, &mut scratch);
            assert_eq!(outputs.samples[slot as usize], SampleOutput { slot, sampled });
        }
        assert_eq!(outputs.samples.len(), ROWS as usize);
        assert!(sampling.slots().iter().all(Option::is_some), "slots are back");
    }

    #[test]
    fn many_floats_are_taken_in_their_order() {
        let values = logits();
        let mut taken = vec![1.0];
        take_floats(bytemuck::cast_slice(&values), &mut taken);
        assert!(taken[0] == 1.0 && taken[1..] == values);
    }
}
