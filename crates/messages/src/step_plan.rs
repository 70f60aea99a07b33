//! What will the device do in one step? Plain data, without a reason why.

use crate::{BlockIndex, SequenceId, SlotIndex, StepIndex, TokenId};

/// Where the id of one input token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    Known(TokenId),
    /// The token last sampled into this slot: it may still be on its way when the step is planned.
    Slot(SlotIndex),
}

/// A run of consecutive positions of one sequence. There is no prefill or decode: a decode is a
/// row of length 1, a chunk of a prompt is longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanRow {
    pub sequence: SequenceId,
    pub slot: SlotIndex,
    /// Position of the row's first token in its sequence.
    pub start: u32,
    /// Tokens in the row, at least 1.
    pub length: u32,
    /// `Some(n)`: sample after the last token; it becomes the sequence's `n`th generated token
    /// (from 0), which also numbers its random draw.
    pub sample_index: Option<u32>,
}

/// Everything a device needs to know about one step, as ragged arrays.
///
/// Invariants, checked by [`StepPlan::audit`]: `tokens` holds the rows' lengths in order; each
/// row's table covers its last position; a slot and a sequence appear at most once; a
/// [`TokenSource::Slot`] names its own row's slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    pub step: StepIndex,
    pub rows: Vec<PlanRow>,
    /// `[sum of row lengths]`
    pub tokens: Vec<TokenSource>,
    /// `[rows + 1]`: row `r`'s block table is `blocks[block_starts[r]..block_starts[r + 1]]`.
    pub block_starts: Vec<u32>,
    pub blocks: Vec<BlockIndex>,
}

impl StepPlan {
    pub fn empty(step: StepIndex) -> Self {
        Self {
            step,
            rows: Vec::new(),
            tokens: Vec::new(),
            block_starts: vec![0],
            blocks: Vec::new(),
        }
    }

    /// Empties the plan for the next step, keeping its memory.
    pub fn clear(&mut self, step: StepIndex) {
        self.step = step;
        self.rows.clear();
        self.tokens.clear();
        self.block_starts.clear();
        self.block_starts.push(0);
        self.blocks.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The block table of row `row`.
    pub fn block_table(&self, row: usize) -> &[BlockIndex] {
        &self.blocks[self.block_starts[row] as usize..self.block_starts[row + 1] as usize]
    }

    /// Checks the invariants of the type.
    ///
    /// # Panics
    /// When one is broken: a wrong table would show one user's text to another.
    pub fn audit(&self, block_tokens: u32) {
        assert_eq!(self.block_starts.len(), self.rows.len() + 1, "one table for each row");
        let total: usize = self.rows.iter().map(|row| row.length as usize).sum();
        assert_eq!(total, self.tokens.len(), "tokens hold the rows' lengths");
        let mut token = 0;
        for (index, row) in self.rows.iter().enumerate() {
            assert!(row.length > 0, "row {index} is empty");
            let covered = self.block_table(index).len() as u64 * u64::from(block_tokens);
            let end = u64::from(row.start) + u64::from(row.length);
            assert!(end <= covered, "row {index} ends at {end}, its table covers {covered}");
            for source in &self.tokens[token..token + row.length as usize] {
                if let TokenSource::Slot(slot) = source {
                    assert_eq!(*slot, row.slot, "row {index} reads another row's token");
                }
            }
            token += row.length as usize;
            for other in &self.rows[..index] {
                assert_ne!(other.sequence, row.sequence, "a sequence appears twice");
                assert_ne!(other.slot, row.slot, "a slot appears twice");
            }
        }
    }
}
