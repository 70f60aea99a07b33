//! What sequences carry from token to token: of each slot, and of places besides.

use device::{BlockCopy, Capacity, Fault, RowInput, StateCopy, StateLog, StateShape, StepInputs};
use ops::Carried;

#[derive(Default)]
pub(crate) struct States {
    shape: StateShape,
    slots: usize,
    guesses_max: usize,
    log: StateLog,
    /// `[slots + places, elements]`
    values: Vec<f32>,
    /// What is kept of each slot's guesses, `[slots, guesses, guess elements]`.
    guesses: Vec<f32>,
    /// Of the guesses of the row that is computed.
    aside: Vec<f32>,
}

/// One row of a step, as an op that carries something goes through it.
pub(crate) struct CarriedRow<'a> {
    pub(crate) row: &'a RowInput,
    /// Guesses of the slot's row before that were right.
    right: usize,
    /// Where its tokens start among those of the step.
    first: usize,
}

/// What happens to an op's state at one token.
pub(crate) enum Turn<'a> {
    /// A guess that was kept was right.
    Replay { kept: &'a [f32] },
    /// A token of the step, by its place there.
    Token(usize),
}

impl States {
    pub(crate) fn new(shape: StateShape, capacity: &Capacity) -> Self {
        let elements = Self::elements(shape, capacity);
        Self {
            shape,
            slots: capacity.slots as usize,
            guesses_max: capacity.proposed_tokens_max as usize,
            log: StateLog::new(capacity),
            values: vec![0.0; elements[0]],
            guesses: vec![0.0; elements[1]],
            aside: Vec::with_capacity(shape.elements as usize),
        }
    }

    /// Of states, and of what is kept of guesses.
    pub(crate) fn elements(shape: StateShape, capacity: &Capacity) -> [usize; 2] {
        let states = (capacity.slots + capacity.states) as usize;
        let guesses = capacity.slots as usize * capacity.proposed_tokens_max as usize;
        [states * shape.elements as usize, guesses * shape.guess_elements as usize]
    }

    pub(crate) fn bytes(&self) -> u64 {
        4 * (self.values.len() + self.guesses.len()) as u64
    }

    /// Before the ops of a step.
    pub(crate) fn begin(&mut self, inputs: &StepInputs) -> Result<(), Fault> {
        if self.shape.is_empty() {
            return Ok(());
        }
        for reset in &inputs.resets {
            let range = self.range(reset.slot as usize);
            self.values[range].fill(0.0);
        }
        for copy in &inputs.copies {
            if let BlockCopy::StateIn { slot, offset, bytes, .. } = copy {
                let range = self.range(*slot as usize);
                let to = self.values[range].iter_mut().skip(offset / 4);
                for (to, from) in to.zip(bytes.as_ref().as_chunks::<4>().0) {
                    *to = f32::from_le_bytes(*from);
                }
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
        (!self.shape.is_empty()).then_some(4 * self.shape.elements as usize)
    }

    /// Of the state in a place what is from the byte at `offset` on, and zeros behind its end.
    pub(crate) fn read(&self, place: u32, offset: usize, bytes: &mut [u8]) {
        let range = self.range(self.slots + place as usize);
        let mut from = self.values[range].iter().skip(offset / 4);
        for to in bytes.as_chunks_mut::<4>().0 {
            *to = from.next().copied().unwrap_or(0.0).to_le_bytes();
        }
    }

    fn range(&self, state: usize) -> std::ops::Range<usize> {
        let elements = self.shape.elements as usize;
        state * elements..(state + 1) * elements
    }

    fn copy(&mut self, from: usize, to: usize) {
        let (from, to) = (self.range(from), self.range(to).start);
        self.values.copy_within(from, to);
    }

    pub(crate) fn rows<'a>(&self, inputs: &'a StepInputs) -> Vec<CarriedRow<'a>> {
        let mut first = 0;
        let carried = |(index, row): (usize, &'a RowInput)| {
            let right = self.log.right(index) as usize;
            let own = first;
            first += row.length as usize;
            CarriedRow { row, right, first: own }
        };
        inputs.rows.iter().enumerate().map(carried).collect()
    }

    /// Takes an op through a row: first the guesses that were right, then its tokens, and those
    /// that are guesses with a copy of the state. `inputs_of` gives what is kept of a token.
    pub(crate) fn walk(
        &mut self,
        CarriedRow { row, right, first }: &CarriedRow<'_>,
        carried: Carried,
        elements: usize,
        inputs_of: impl Fn(usize) -> Vec<f32>,
        mut turn: impl FnMut(&mut [f32], Turn<'_>),
    ) {
        let slot = row.slot as usize;
        let start = self.range(slot).start + carried.state as usize;
        let state = &mut self.values[start..start + elements];
        let width = self.shape.guess_elements as usize;
        let guesses = &mut self.guesses[slot * self.guesses_max * width..];
        let end = first + row.length as usize;
        let kept_width = inputs_of(*first).len();
        for kept in guesses.chunks_exact(width.max(1)).take(*right) {
            let kept = &kept[carried.guess as usize..][..kept_width];
            turn(state, Turn::Replay { kept });
        }
        let certain = end - row.proposed as usize;
        (*first..certain).for_each(|token| turn(state, Turn::Token(token)));
        self.aside.clear();
        self.aside.extend_from_slice(state);
        for (token, kept) in (certain..end).zip(guesses.chunks_exact_mut(width.max(1))) {
            kept[carried.guess as usize..][..kept_width].copy_from_slice(&inputs_of(token));
            turn(&mut self.aside, Turn::Token(token));
        }
    }
}
