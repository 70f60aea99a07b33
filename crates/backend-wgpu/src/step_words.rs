//! What does a step tell the device? One list of words: four a token, then lists of other things.

use device::{Capacity, Fault, RowInput, StateLog, StepInputs, Tape, TokenInput};
use ops::rotary::{Rotary, cos_sin};
use ops::sample_rows::Slot;
use ops::{EmbedBy, Op};

use crate::attention::{self, Tiles};
use crate::sizes::{TOKEN_BLOCKS, TOKEN_WORDS, step_words};

/// Which lists the ops of a tape need.
struct Lists {
    separator: Option<u32>,
    has_adapters: bool,
    is_pooled: bool,
    has_states: bool,
}

impl Lists {
    fn of(tape: &Tape) -> Self {
        let separator = tape.ops.iter().find_map(|op| match op {
            Op::EmbedMore { by: EmbedBy::Text { separator }, .. } => Some(*separator),
            _ => None,
        });
        let has_adapters = tape.ops.iter().any(|op| matches!(op, Op::AddLowRank { .. }));
        Self {
            separator,
            has_adapters,
            is_pooled: tape.pooled().is_some(),
            has_states: !tape.state.is_empty(),
        }
    }
}

/// The words of a step, and where its lists begin.
pub(crate) struct StepWords {
    pub(crate) words: Vec<u32>,
    most: usize,
    /// Rows that are sampled.
    pub(crate) picks: u32,
    /// Cosines and sines, of each of the tape's rotaries.
    pub(crate) turns: Vec<u32>,
    /// Which text of two a token is of, where a model tells them apart.
    pub(crate) texts: u32,
    /// The adapter of each token, where there are any.
    pub(crate) adapters: u32,
    /// What pooling wants of each row: see `kernels/pool_rows.wgsl`.
    pub(crate) pools: u32,
    /// What sequences that carry a state want of each row: see `kernels/carried.wgsli`.
    pub(crate) carried: u32,
    /// Of attention by matrix units.
    tiles: Vec<Tiles>,
    /// Where the states of slots stand.
    log: StateLog,
    pub(crate) tokens: u32,
    /// The last position that a token of the step has.
    pub(crate) positions_most: u32,
    pub(crate) rows: u32,
    pub(crate) sampled: u32,
    lists: Lists,
    /// Of each slot.
    slot_adapters: Vec<Option<u32>>,
    in_use: Vec<bool>,
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
            texts: 0,
            adapters: 0,
            pools: 0,
            carried: 0,
            tiles: attention::tile_sizes(tape)
                .into_iter()
                .map(|tokens| Tiles { tokens, start: 0, count: 0 })
                .collect(),
            log: StateLog::new(capacity),
            tokens: 0,
            positions_most: 0,
            rows: 0,
            sampled: 0,
            lists: Lists::of(tape),
            slot_adapters: vec![None; capacity.slots as usize],
            in_use: Vec::new(),
            frequencies: tape.rotaries.iter().map(Rotary::inverse_frequencies).collect(),
            angles: Vec::new(),
        }
    }

    /// A slot's next rows have this adapter.
    pub(crate) fn set_adapter(&mut self, slot: u32, adapter: Option<u32>) {
        self.slot_adapters[slot as usize] = adapter;
        let count = adapter.map_or(0, |adapter| adapter as usize + 1);
        self.in_use.resize(self.in_use.len().max(count), false);
    }

    /// Tiles of so many tokens at most, which an op of the tape has.
    pub(crate) fn tiles_of(&self, tokens: u32) -> Tiles {
        let found = self.tiles.iter().find(|tiles| tiles.tokens == tokens);
        *found.expect("invariant: each size of the tape's attention is listed")
    }

    /// Whether a row of the step has it.
    pub(crate) fn has_adapter(&self, adapter: u32) -> bool {
        self.in_use.get(adapter as usize).copied().unwrap_or(false)
    }

    /// # Errors
    /// [`Fault`]: a slot was read before it was set, or the block tables are too long together.
    pub(crate) fn fill(
        &mut self,
        tape: &Tape,
        inputs: &StepInputs,
        slots: &[Option<Slot>],
    ) -> Result<(), Fault> {
        if self.lists.has_states {
            self.log.take(inputs)?;
        }
        self.words.clear();
        let tokens = inputs.tokens.len();
        self.tokens = tokens as u32;
        self.rows = inputs.rows.len() as u32;
        let last = |row: &RowInput| row.start + row.length - 1;
        self.positions_most = inputs.rows.iter().map(last).max().unwrap_or(0);
        let mut first = 0;
        for row in &inputs.rows {
            self.add_row(row, first, inputs, slots)?;
            first += row.length;
        }
        self.picks = self.words.len() as u32;
        self.words.extend(inputs.sampled_tokens());
        self.sampled = self.words.len() as u32 - self.picks;
        self.add_lists(inputs);
        for (index, rotary) in tape.rotaries.iter().enumerate() {
            self.turns[index] = self.words.len() as u32;
            self.add_turns(index, rotary, inputs);
        }
        self.add_blocks(inputs);
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
        inputs: &StepInputs,
        slots: &[Option<Slot>],
    ) -> Result<(), Fault> {
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
            self.words.extend([id, position, row.blocks_start, last]);
        }
        Ok(())
    }

    /// Behind all else, which so is where it was in a step of the same tokens with other blocks.
    fn add_blocks(&mut self, inputs: &StepInputs) {
        let blocks = self.words.len() as u32;
        let tokens = self.words.chunks_exact_mut(TOKEN_WORDS).take(inputs.tokens.len());
        tokens.for_each(|token| token[TOKEN_BLOCKS] += blocks);
        self.words.extend_from_slice(&inputs.blocks);
    }

    /// What only some tapes need, in the order of tokens and rows.
    fn add_lists(&mut self, inputs: &StepInputs) {
        self.texts = self.words.len() as u32;
        if let Some(separator) = self.lists.separator {
            self.add_texts(separator);
        }
        self.adapters = self.words.len() as u32;
        if self.lists.has_adapters {
            self.in_use.fill(false);
            for row in &inputs.rows {
                let adapter = self.slot_adapters[row.slot as usize];
                if let Some(adapter) = adapter {
                    self.in_use[adapter as usize] = true;
                }
                let word = adapter.unwrap_or(u32::MAX);
                self.words.extend(std::iter::repeat_n(word, row.length as usize));
            }
        }
        self.tiles.iter_mut().for_each(|tiles| tiles.list(inputs, &mut self.words));
        self.pools = self.words.len() as u32;
        if self.lists.is_pooled {
            let (mut first, mut place) = (0, 0);
            for row in &inputs.rows {
                let is_last = row.sample_index.is_some();
                let to = if is_last { place } else { u32::MAX };
                self.words.extend([first, row.length, row.start, row.slot, to]);
                first += row.length;
                place += u32::from(is_last);
            }
        }
        self.carried = self.words.len() as u32;
        if self.lists.has_states {
            let mut first = 0;
            for (index, row) in inputs.rows.iter().enumerate() {
                let right = self.log.right(index);
                self.words.extend([first, row.length, row.slot, row.proposed, right]);
                first += row.length;
            }
        }
    }

    /// Texts are whole in their step.
    fn add_texts(&mut self, separator: u32) {
        let mut is_second = false;
        for token in 0..self.tokens as usize {
            let at = token * TOKEN_WORDS;
            let (id, position) = (self.words[at], self.words[at + 1]);
            is_second &= position > 0;
            self.words.push(u32::from(is_second));
            is_second |= id == separator;
        }
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
