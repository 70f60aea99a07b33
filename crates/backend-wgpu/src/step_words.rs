//! What does a step tell the device? One list of words: four a token, then lists of other things.

use device::{Capacity, Fault, RowInput, StepInputs, Tape, TokenInput};
use ops::rotary::{Rotary, cos_sin};
use ops::sample_rows::Slot;

use crate::sizes::{TOKEN_WORDS, step_words};

/// The words of a step, and where its lists begin.
pub(crate) struct StepWords {
    pub(crate) words: Vec<u32>,
    most: usize,
    /// Rows that are sampled.
    pub(crate) picks: u32,
    /// Cosines and sines, of each of the tape's rotaries.
    pub(crate) turns: Vec<u32>,
    pub(crate) tokens: u32,
    pub(crate) sampled: u32,
    frequencies: Vec<Vec<f32>>,
    /// Of one token.
    angles: Vec<(f32, f32)>,
}

impl StepWords {
    pub(crate) fn new(tape: &Tape, capacity: &Capacity) -> Self {
        let most = step_words(tape, capacity);
        Self {
            words: Vec::with_capacity(most),
            most,
            picks: 0,
            turns: vec![0; tape.rotaries.len()],
            tokens: 0,
            sampled: 0,
            frequencies: tape.rotaries.iter().map(Rotary::inverse_frequencies).collect(),
            angles: Vec::new(),
        }
    }

    /// # Errors
    /// [`Fault`]: a slot was read before it was set, or the block tables are too long together.
    pub(crate) fn fill(
        &mut self,
        tape: &Tape,
        inputs: &StepInputs,
        slots: &[Option<Slot>],
    ) -> Result<(), Fault> {
        self.words.clear();
        let tokens = inputs.tokens.len();
        self.tokens = tokens as u32;
        let blocks = tokens * TOKEN_WORDS;
        let mut first = 0;
        for row in &inputs.rows {
            self.add_row(row, first, blocks, inputs, slots)?;
            first += row.length;
        }
        self.words.extend_from_slice(&inputs.blocks);
        self.picks = self.words.len() as u32;
        self.words.extend(inputs.sampled_tokens());
        self.sampled = self.words.len() as u32 - self.picks;
        for (index, rotary) in tape.rotaries.iter().enumerate() {
            self.turns[index] = self.words.len() as u32;
            self.add_turns(index, rotary, inputs);
        }
        if self.words.len() > self.most {
            let entries = inputs.blocks.len();
            let text = format!("a step with {entries} entries in its block tables is too large");
            return Err(Fault(text));
        }
        Ok(())
    }

    fn add_row(
        &mut self,
        row: &RowInput,
        first: u32,
        blocks: usize,
        inputs: &StepInputs,
        slots: &[Option<Slot>],
    ) -> Result<(), Fault> {
        let table = blocks as u32 + row.blocks_start;
        let last = row.start + row.length - 1;
        let own = &inputs.tokens[first as usize..][..row.length as usize];
        for (position, token) in (row.start..).zip(own) {
            let id = match *token {
                TokenInput::Known(id) => id,
                TokenInput::Slot(slot) => slots[slot as usize]
                    .as_ref()
                    .map(|slot| slot.last)
                    .ok_or_else(|| Fault(format!("slot {slot} was read before it was set")))?,
            };
            self.words.extend([id, position, table, last]);
        }
        Ok(())
    }

    fn add_turns(&mut self, index: usize, rotary: &Rotary, inputs: &StepInputs) {
        let frequencies = &self.frequencies[index];
        self.angles.resize(frequencies.len(), (0.0, 0.0));
        let factor = rotary.attention_factor();
        for row in &inputs.rows {
            for position in row.start..row.start + row.length {
                cos_sin(frequencies, factor, position, &mut self.angles);
                let words =
                    self.angles.iter().flat_map(|&(cos, sin)| [cos.to_bits(), sin.to_bits()]);
                self.words.extend(words);
            }
        }
    }
}
