//! What do sequences carry from token to token? Of each slot, and of places besides, in f32.
//!
//! Memory is `[slots + places, elements]`, and `[slots, guesses, guess elements]` of what is kept
//! of guesses until the next row of their slot tells which were right ([`StateLog`]). Loads are
//! done before a step's kernels and saves behind them, on their stream.

use device::{Capacity, Fault, HeapPool, LoadError, StateCopy, StateLog, StateShape, StepInputs};
use ops::Carried;

use crate::driver::CudaError;
use crate::gpu::{Address, Stream};

pub(crate) struct States {
    shape: StateShape,
    slots: usize,
    guesses_max: u32,
    log: StateLog,
    values: Address,
    guesses: Address,
}

/// One op's part of the first slot's, and how far it is to those of others.
pub(crate) struct CarriedPlace {
    pub(crate) states: Address,
    pub(crate) guesses: Address,
    pub(crate) state_stride: u32,
    pub(crate) guess_stride: u32,
    pub(crate) guesses_max: u32,
}

/// Bytes of states and of what is kept of guesses.
fn parts(shape: StateShape, capacity: &Capacity) -> [usize; 2] {
    let states = (capacity.slots + capacity.states) as usize;
    let guesses = capacity.slots as usize * capacity.proposed_tokens_max as usize;
    [4 * states * shape.elements as usize, 4 * guesses * shape.guess_elements as usize]
}

impl States {
    /// What they take of a pool; nothing where sequences carry nothing.
    pub(crate) fn room(shape: StateShape, capacity: &Capacity) -> usize {
        parts(shape, capacity).into_iter().map(HeapPool::room).sum()
    }

    pub(crate) fn carve(
        shape: StateShape,
        capacity: &Capacity,
        carve: &mut dyn FnMut(usize) -> Result<Address, LoadError>,
    ) -> Result<Self, LoadError> {
        let [values, guesses] = parts(shape, capacity);
        Ok(Self {
            shape,
            slots: capacity.slots as usize,
            guesses_max: capacity.proposed_tokens_max,
            log: StateLog::new(capacity),
            values: carve(values)?,
            guesses: carve(guesses)?,
        })
    }

    /// Before the kernels of a step.
    pub(crate) fn begin(&mut self, stream: &Stream, inputs: &StepInputs) -> Result<(), Fault> {
        if self.shape.is_empty() {
            return Ok(());
        }
        let failed = |error: CudaError| Fault(error.to_string());
        for reset in &inputs.resets {
            stream.zero(self.state(reset.slot as usize), self.bytes()).map_err(failed)?;
        }
        for copy in &inputs.states {
            if let StateCopy::Load { place, slot } = *copy {
                self.copy(stream, self.slots + place as usize, slot as usize).map_err(failed)?;
            }
        }
        self.log.take(inputs)
    }

    /// Behind the kernels of a step.
    pub(crate) fn end(&self, stream: &Stream, inputs: &StepInputs) -> Result<(), CudaError> {
        for copy in &inputs.states {
            if let StateCopy::Save { slot, place } = *copy {
                self.copy(stream, slot as usize, self.slots + place as usize)?;
            }
        }
        Ok(())
    }

    /// Guesses of a row's slot that were right, by the row's place in the step.
    pub(crate) fn right(&self, index: usize) -> u32 {
        if self.shape.is_empty() { 0 } else { self.log.right(index) }
    }

    pub(crate) fn place(&self, carried: Carried) -> CarriedPlace {
        CarriedPlace {
            states: self.values.plus(4 * carried.state as usize),
            guesses: self.guesses.plus(4 * carried.guess as usize),
            state_stride: self.shape.elements,
            guess_stride: self.shape.guess_elements,
            guesses_max: self.guesses_max,
        }
    }

    fn bytes(&self) -> usize {
        4 * self.shape.elements as usize
    }

    fn state(&self, index: usize) -> Address {
        self.values.plus(index * self.bytes())
    }

    fn copy(&self, stream: &Stream, from: usize, to: usize) -> Result<(), CudaError> {
        stream.copy_within(self.state(to), self.state(from), self.bytes())
    }
}
