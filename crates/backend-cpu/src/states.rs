//! What do sequences carry from token to token? Of each slot, and of places besides, in f32.
//!
//! Memory is `[slots + places, elements]`, and `[slots, guesses, guess elements]` of what is kept
//! of guesses until the next row of their slot tells which were right ([`StateLog`]). Loads are
//! done before a step's ops and saves behind them, by the thread that runs the team.

use std::marker::PhantomData;

use device::{
    BlockCopy, Capacity, Fault, HeapError, HeapPool, RowInput, StateCopy, StateLog, StateShape,
    StepInputs,
};
use ops::Carried;

use crate::memory::LargeBuffer;

pub(crate) struct States {
    shape: StateShape,
    slots: usize,
    guesses_max: usize,
    log: StateLog,
    /// `None` where sequences carry nothing.
    memory: Option<[LargeBuffer; 2]>,
}

impl States {
    pub(crate) fn carve(
        pool: &HeapPool,
        shape: StateShape,
        capacity: &Capacity,
    ) -> Result<Self, HeapError> {
        let carve = |bytes: usize| LargeBuffer::carve(pool, "states", bytes.max(4));
        let [values, guesses] = Self::parts(shape, capacity);
        let is_there = !shape.is_empty();
        Ok(Self {
            shape,
            slots: capacity.slots as usize,
            guesses_max: capacity.proposed_tokens_max as usize,
            log: StateLog::new(capacity),
            memory: is_there.then(|| Ok([carve(values)?, carve(guesses)?])).transpose()?,
        })
    }

    /// Bytes of states and of what is kept of guesses.
    pub(crate) fn parts(shape: StateShape, capacity: &Capacity) -> [usize; 2] {
        let states = (capacity.slots + capacity.states) as usize;
        let guesses = capacity.slots as usize * capacity.proposed_tokens_max as usize;
        [4 * states * shape.elements as usize, 4 * guesses * shape.guess_elements as usize]
    }

    /// What they take of a pool.
    pub(crate) fn room(shape: StateShape, capacity: &Capacity) -> usize {
        let parts = Self::parts(shape, capacity).map(|bytes| HeapPool::room(bytes.max(4)));
        if shape.is_empty() { 0 } else { parts.iter().sum() }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.memory.iter().flatten().map(|buffer| buffer.len() as u64).sum()
    }

    /// Before the ops of a step.
    pub(crate) fn begin(&mut self, inputs: &StepInputs) -> Result<(), Fault> {
        if self.memory.is_none() {
            return Ok(());
        }
        for reset in &inputs.resets {
            self.state(reset.slot as usize).fill(0.0);
        }
        for copy in &inputs.copies {
            if let BlockCopy::StateIn { slot, offset, bytes, .. } = copy {
                write(&mut self.state(*slot as usize)[offset / 4..], bytes.as_ref());
            }
        }
        for copy in &inputs.states {
            if let StateCopy::Load { place, slot } = *copy {
                self.copy(self.slots + place as usize, slot as usize);
            }
        }
        self.log.take(inputs)
    }

    /// Behind the ops of a step.
    pub(crate) fn end(&mut self, inputs: &StepInputs) {
        for copy in &inputs.states {
            if let StateCopy::Save { slot, place } = *copy {
                self.copy(slot as usize, self.slots + place as usize);
            }
        }
    }

    /// Of one state; `None` where sequences carry nothing.
    pub(crate) fn state_bytes(&self) -> Option<usize> {
        self.memory.as_ref().map(|_| 4 * self.shape.elements as usize)
    }

    /// Of the state in a place what is from the byte at `offset` on, and zeros behind its end.
    pub(crate) fn read(&mut self, place: u32, offset: usize, bytes: &mut [u8]) {
        let from = &self.state(self.slots + place as usize)[offset / 4..];
        let mut from = from.iter();
        for to in bytes.as_chunks_mut::<4>().0 {
            *to = from.next().copied().unwrap_or(0.0).to_le_bytes();
        }
    }

    fn state(&mut self, index: usize) -> &mut [f32] {
        let elements = self.shape.elements as usize;
        let [values, _] = self.memory.as_mut().expect("invariant: states were carved");
        assert!(4 * (index + 1) * elements <= values.len(), "state {index} is there");
        // SAFETY: inside the buffer by the assertion above, zeroed at first and aligned; `&mut`
        // says that no step runs.
        unsafe {
            let start = values.pointer().cast::<f32>().add(index * elements);
            std::slice::from_raw_parts_mut(start, elements)
        }
    }

    fn copy(&mut self, from: usize, to: usize) {
        assert_ne!(from, to, "a state is copied to another place");
        let from = self.state(from) as *const [f32];
        // SAFETY: another state of the same buffer, which nobody writes meanwhile.
        let from = unsafe { &*from };
        self.state(to).copy_from_slice(from);
    }

    /// One op's part of what the rows of a step carry: so many elements of each state, and of what
    /// is kept of a guess.
    pub(crate) fn carrying<'a>(
        &'a self,
        inputs: &'a StepInputs,
        carried: Carried,
        [elements, kept]: [usize; 2],
    ) -> Carrying<'a> {
        let StateShape { elements: all, guess_elements: all_kept } = self.shape;
        let is_inside = carried.state as usize + elements <= all as usize
            && carried.guess as usize + kept <= all_kept as usize;
        assert!(is_inside, "{carried:?} of {elements} and {kept} is inside {:?}", self.shape);
        let [values, guesses] = self.memory.as_ref().expect("invariant: states were carved");
        Carrying {
            rows: &inputs.rows,
            log: &self.log,
            // Not dereferenced here.
            states: values.pointer().cast::<f32>().wrapping_add(carried.state as usize),
            guesses: guesses.pointer().cast::<f32>().wrapping_add(carried.guess as usize),
            shape: self.shape,
            slots: self.slots,
            guesses_max: self.guesses_max,
            owner: PhantomData,
        }
    }
}

/// As much of a state as there is room for: the last piece is longer.
fn write(to: &mut [f32], bytes: &[u8]) {
    for (to, from) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *to = f32::from_le_bytes(*from);
    }
}

/// One op's part of what the rows of a step carry. A slot has one row in a step; who writes which
/// elements of its state is the kernel's to settle.
#[derive(Clone, Copy)]
pub(crate) struct Carrying<'a> {
    rows: &'a [RowInput],
    log: &'a StateLog,
    states: *mut f32,
    guesses: *mut f32,
    shape: StateShape,
    slots: usize,
    guesses_max: usize,
    owner: PhantomData<&'a f32>,
}

// SAFETY: plain floats; races are excluded by the contracts of the kernels.
unsafe impl Send for Carrying<'_> {}
// SAFETY: as above.
unsafe impl Sync for Carrying<'_> {}

/// A row, by its places among the tokens of the step.
#[derive(Clone, Copy)]
pub(crate) struct CarriedRow {
    /// The op's first element of its slot's state.
    pub(crate) state: *mut f32,
    /// And of what is kept of its first guess.
    guesses: *mut f32,
    guess_stride: usize,
    /// Guesses of the slot's row before that were right.
    pub(crate) right: usize,
    pub(crate) first: usize,
    /// Where its guesses start.
    pub(crate) certain: usize,
    pub(crate) end: usize,
}

impl Carrying<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn has_guesses(&self) -> bool {
        self.rows.iter().any(|row| row.proposed > 0)
    }

    pub(crate) fn row(&self, index: usize) -> CarriedRow {
        let row = &self.rows[index];
        let (slot, guesses) = (row.slot as usize, row.proposed as usize);
        assert!(slot < self.slots && guesses <= self.guesses_max, "a step within its capacity");
        let first = self.rows[..index].iter().map(|row| row.length as usize).sum::<usize>();
        let end = first + row.length as usize;
        let guess_stride = self.shape.guess_elements as usize;
        CarriedRow {
            // Inside the buffers: a slot that is there, by the assertion above.
            state: self.states.wrapping_add(slot * self.shape.elements as usize),
            guesses: self.guesses.wrapping_add(slot * self.guesses_max * guess_stride),
            guess_stride,
            right: self.log.right(index) as usize,
            first,
            certain: end - guesses,
            end,
        }
    }
}

impl CarriedRow {
    /// What the op keeps of a guess.
    pub(crate) fn kept(&self, guess: usize) -> *mut f32 {
        self.guesses.wrapping_add(guess * self.guess_stride)
    }
}
