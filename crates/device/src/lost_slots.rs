//! What of a step is still to be computed when one before it has failed?
//!
//! Steps are planned ahead, so a failed one may have others behind it that go on with what it was
//! to leave in its slots: a sequence's settings, its state, the token it sampled. Whoever planned
//! them gives those sequences up, but cannot call the steps back. So before a step runs, its rows
//! of such slots are taken out: it is computed for the others. A slot is whole again when it is
//! set.

use crate::{Fault, StateCopy, StepInputs, StepOutputs};

/// Slots in which a step failed since they were last set.
#[derive(Default)]
pub(crate) struct LostSlots {
    is_lost: Vec<bool>,
    count: usize,
}

impl LostSlots {
    /// With room for `slots`, so that none takes memory.
    pub(crate) fn new(slots: u32) -> Self {
        Self { is_lost: vec![false; slots as usize], count: 0 }
    }

    /// `failed_slots_rest`: takes out of a step what belongs to slots that are lost.
    pub(crate) fn leave_out(&mut self, inputs: &mut StepInputs) {
        if self.count == 0 {
            return;
        }
        for reset in &inputs.resets {
            self.set(reset.slot, false);
        }
        inputs.states.retain(|copy| {
            let (StateCopy::Load { slot, .. } | StateCopy::Save { slot, .. }) = *copy;
            !self.contains(slot)
        });
        // Rows, tokens and tables follow each other, so the ones that stay move up.
        let (mut token, mut tokens_kept, mut blocks_kept) = (0, 0, 0);
        let StepInputs { rows, tokens, blocks, .. } = inputs;
        rows.retain_mut(|row| {
            let (first, table) = (token, row.blocks_start as usize);
            token += row.length as usize;
            if self.contains(row.slot) {
                return false;
            }
            tokens.copy_within(first..token, tokens_kept);
            tokens_kept += row.length as usize;
            blocks.copy_within(table..table + row.blocks_count as usize, blocks_kept);
            row.blocks_start = blocks_kept as u32;
            blocks_kept += row.blocks_count as usize;
            true
        });
        tokens.truncate(tokens_kept);
        blocks.truncate(blocks_kept);
    }

    /// A step has run, or was not even begun.
    pub(crate) fn ran(
        &mut self,
        inputs: &StepInputs,
        outputs: &StepOutputs,
        result: &Result<(), Fault>,
    ) {
        if result.is_err() {
            inputs.rows.iter().for_each(|row| self.set(row.slot, true));
            return;
        }
        for sample in outputs.samples.iter().filter(|sample| sample.sampled.is_err()) {
            self.set(sample.slot, true);
        }
    }

    fn contains(&self, slot: u32) -> bool {
        self.is_lost.get(slot as usize).is_some_and(|&is_lost| is_lost)
    }

    fn set(&mut self, slot: u32, is_lost: bool) {
        // A slot that does not exist is the step's own fault, and told by its audit.
        let Some(state) = self.is_lost.get_mut(slot as usize) else { return };
        self.count = self.count + usize::from(is_lost) - usize::from(*state);
        *state = is_lost;
    }
}
