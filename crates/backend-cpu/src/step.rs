//! Where are a step's tokens? Worked out once a step, read by every layer.

use device::{Capacity, Fault, StepInputs, TokenInput};

/// Reused from step to step, with room for the largest from the start: no step takes memory.
pub(crate) struct StepPlaces {
    /// Per token: its id, position, and index of its row.
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<u32>,
    /// The last position of its row.
    pub(crate) row_ends: Vec<u32>,
    pub(crate) sequences: Vec<u32>,
    /// Per token: `block * block_tokens + offset`, where its key and value go.
    pub(crate) cache_slots: Vec<u32>,
    /// `[rows + 1]`: where each row's block table starts.
    pub(crate) table_starts: Vec<u32>,
    /// Tokens that are sampled after, in row order.
    pub(crate) sampled: Vec<u32>,
}

impl StepPlaces {
    pub(crate) fn new(capacity: &Capacity) -> Self {
        let tokens = || Vec::with_capacity(capacity.step_tokens_max as usize);
        Self {
            tokens: tokens(),
            positions: tokens(),
            row_ends: tokens(),
            sequences: tokens(),
            cache_slots: tokens(),
            table_starts: Vec::with_capacity(capacity.slots as usize + 1),
            sampled: Vec::with_capacity(capacity.sampled_tokens_max() as usize),
        }
    }

    pub(crate) fn fill(
        &mut self,
        inputs: &StepInputs,
        block_tokens: u32,
        last_token: impl Fn(u32) -> Option<u32>,
    ) -> Result<(), Fault> {
        self.tokens.clear();
        self.positions.clear();
        self.row_ends.clear();
        self.sequences.clear();
        self.cache_slots.clear();
        self.table_starts.clear();
        self.sampled.clear();
        for token in &inputs.tokens {
            self.tokens.push(match *token {
                TokenInput::Known(token) => token,
                TokenInput::Slot(slot) => last_token(slot)
                    .ok_or_else(|| Fault(format!("slot {slot} was read before it was set")))?,
            });
        }
        let mut table_end = 0;
        for (index, row) in (0..).zip(&inputs.rows) {
            assert_eq!(row.blocks_start, table_end, "block tables follow each other");
            table_end += row.blocks_count;
            self.table_starts.push(row.blocks_start);
            for position in row.start..row.start + row.length {
                let block = inputs.blocks[(row.blocks_start + position / block_tokens) as usize];
                self.positions.push(position);
                self.row_ends.push(row.start + row.length - 1);
                self.sequences.push(index);
                self.cache_slots.push(block * block_tokens + position % block_tokens);
            }
        }
        self.table_starts.push(table_end);
        self.sampled.extend(inputs.sampled_tokens());
        Ok(())
    }
}
