//! What will the device do in one step? Plain data, without a reason why.

use crate::{BlockIndex, SequenceId, SlotIndex, StateIndex, StepIndex, TokenId};

/// Where the id of one input token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    Known(TokenId),
    /// The token last sampled into this slot: it may still be on its way when the step is planned.
    Slot(SlotIndex),
}

/// A run of consecutive positions of one sequence. There is no prefill or decode: a decode is a
/// row of length 1, a chunk of a prompt is longer, and a row may end in guesses to be checked.
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
    /// The row's last `proposed` tokens are guesses at what will be sampled. The device samples
    /// after the token before them and goes on after each guess that was right, so the row yields
    /// from 1 to `proposed + 1` samples: those that decoding one by one would give.
    pub proposed: u32,
}

/// What a sequence carries, between its slot and a place where it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateMove {
    /// Before the slot's row, which starts where the state was kept.
    Load { from: StateIndex, to: SlotIndex },
    /// Behind the slot's row, which has no guesses.
    Save { from: SlotIndex, to: StateIndex },
}

/// A running sequence that lacks one token: it has a row in the next step, if that has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub id: SequenceId,
    /// Whether all its tokens are known, so that guesses can follow them; else the last one is on
    /// its way.
    pub is_open: bool,
}

/// Everything a device needs to know about one step, as ragged arrays.
///
/// Invariants, checked by [`StepPlan::audit`]: `tokens` holds the rows' lengths in order; each
/// row's table covers its last position; a slot and a sequence appear at most once; a
/// [`TokenSource::Slot`] names its own row's slot; proposed tokens are known and follow one that
/// is sampled after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    pub step: StepIndex,
    pub rows: Vec<PlanRow>,
    /// `[sum of row lengths]`
    pub tokens: Vec<TokenSource>,
    /// `[rows + 1]`: row `r`'s block table is `blocks[block_starts[r]..block_starts[r + 1]]`.
    pub block_starts: Vec<u32>,
    pub blocks: Vec<BlockIndex>,
    /// Of models whose sequences carry a state: all loads are done before all saves.
    pub states: Vec<StateMove>,
}

impl StepPlan {
    pub fn empty(step: StepIndex) -> Self {
        Self {
            step,
            rows: Vec::new(),
            tokens: Vec::new(),
            block_starts: vec![0],
            blocks: Vec::new(),
            states: Vec::new(),
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
        self.states.clear();
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
            assert!(row.proposed < row.length, "row {index} is all guesses");
            assert!(row.proposed == 0 || row.sample_index.is_some(), "row {index} checks nothing");
            let sources = &self.tokens[token..token + row.length as usize];
            for (place, source) in (0..).zip(sources) {
                if let TokenSource::Slot(slot) = source {
                    assert_eq!(*slot, row.slot, "row {index} reads another row's token");
                    assert!(place < row.length - row.proposed, "row {index} guesses nothing");
                }
            }
            let saves = |copy: &&StateMove| match copy {
                StateMove::Save { from, .. } => *from == row.slot,
                StateMove::Load { .. } => false,
            };
            let saved = self.states.iter().filter(saves).count();
            assert!(saved == 0 || saved == 1 && row.proposed == 0, "row {index} saves guesses");
            token += row.length as usize;
            for other in &self.rows[..index] {
                assert_ne!(other.sequence, row.sequence, "a sequence appears twice");
                assert_ne!(other.slot, row.slot, "a slot appears twice");
            }
        }
    }
}
