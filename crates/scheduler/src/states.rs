//! Which states are kept, for sequences that carry one from token to token?
//!
//! Such a sequence starts behind a cached prefix only where a state was kept at its very end, and
//! has its own kept where others may want to start. That is at two borders of blocks in a prompt:
//! the last one before its end, for whoever goes on with this text; and the one up to which others
//! had read the same, for it parts there from theirs, and the next may part there too. Rows end at
//! such borders. A few tokens are left behind the last border: templates end in some that a later
//! turn has not.
//!
//! A place is taken when the row that ends at the border is planned, and its block gets the state
//! when that row has settled; so nobody finds what a failed step left.

use messages::{SlotIndex, StateMove, StepPlan};

use crate::Scheduler;
use crate::sequence::Sequence;

/// Of a prompt's end, with its last token, which is computed in any case: as many as templates
/// open thoughts with.
const LEFT_BEHIND_TOKENS: u32 = 4;

impl Scheduler {
    /// From now on sequences carry a state, of which `count` are kept beside those of the slots.
    pub fn keep_states(&mut self, count: u32) {
        self.pool.keep_states(count);
        self.carries = true;
    }

    /// Works out where states of an admitted sequence are kept, and where it takes its first.
    pub(crate) fn set_borders(&mut self, sequence: &mut Sequence) {
        sequence.state = None;
        sequence.borders = [0; 2];
        let Some(namespace) = sequence.cache_namespace.clone().filter(|_| self.carries) else {
            return;
        };
        if sequence.computed > 0 && !sequence.takes_state {
            let state = self.pool.state_behind(&sequence.table);
            assert!(state.is_some(), "state_conserved: a prefix without a state was taken");
            sequence.state = state;
        }
        let block = self.limits.block_tokens;
        let before_last = sequence.known() - 1;
        let last = sequence.known().saturating_sub(LEFT_BEHIND_TOKENS) / block * block;
        let tokens = &sequence.tokens[..before_last as usize];
        let shared = self.pool.cached_prefix(&namespace, tokens).in_tree as u32 * block;
        sequence.borders = [shared.min(last), last];
    }

    /// The states that sequences start from which the plan being made admitted.
    pub(crate) fn load_states(&mut self, plan: &mut StepPlan) {
        for place in 0..self.admitted.len() {
            let index = self.position(self.admitted[place]);
            let sequence = &mut self.running[index];
            let to = sequence.slot();
            let load = |from| StateMove::Load { from, to };
            plan.states.extend(sequence.state.take().map(load));
        }
    }

    /// A place for the state at `end`, where a row of a sequence ends without guesses.
    pub(crate) fn save_state(
        &mut self,
        plan: &mut StepPlan,
        index: usize,
        end: u32,
    ) -> Option<messages::StateIndex> {
        let sequence = &self.running[index];
        if !sequence.borders.contains(&end) {
            return None;
        }
        let from: SlotIndex = sequence.slot();
        let to = self.pool.take_state()?;
        plan.states.push(StateMove::Save { from, to });
        Some(to)
    }
}

impl Sequence {
    /// The next border at which a row of it must end.
    pub(crate) fn next_border(&self) -> Option<u32> {
        self.borders.into_iter().filter(|&border| border > self.computed).min()
    }
}
