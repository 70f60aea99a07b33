//! Which states of sequences are kept, and behind which cached blocks?
//!
//! A model may carry a state from token to token that cannot be read back from keys and values. Its
//! sequences start behind a cached prefix only where a state was kept at its very end: behind a
//! block of the tree. Only numbers of places live here; a device keeps the states.
//!
//! Invariant `state_conserved`: free, attached and taken places are all places; a place is attached
//! to one block, which is in the tree, and a block has one at most.

use messages::{BlockIndex, StateIndex};

use crate::prefix_tree::Parent;
use crate::{BlockPool, BlockTable};

/// Where states are kept besides the slots' own.
#[derive(Clone, Debug)]
pub(crate) struct StatePlaces {
    free: Vec<StateIndex>,
    /// By block: the state at its end.
    of_block: Vec<Option<StateIndex>>,
    /// By place: whose end it is, and when that was last wanted.
    attached: Vec<Option<(BlockIndex, u64)>>,
    uses: u64,
}

impl StatePlaces {
    fn new(count: u32, blocks: usize) -> Self {
        Self {
            free: (0..count).rev().map(StateIndex).collect(),
            of_block: vec![None; blocks],
            attached: vec![None; count as usize],
            uses: 0,
        }
    }

    pub(crate) fn of(&self, block: BlockIndex) -> Option<StateIndex> {
        self.of_block[block.0 as usize]
    }

    fn attach(&mut self, state: StateIndex, block: BlockIndex) {
        self.uses += 1;
        self.of_block[block.0 as usize] = Some(state);
        self.attached[state.0 as usize] = Some((block, self.uses));
    }

    /// A block leaves the tree, and takes what was behind it along.
    pub(crate) fn forget(&mut self, block: BlockIndex) {
        if let Some(state) = self.of_block[block.0 as usize].take() {
            self.attached[state.0 as usize] = None;
            self.free.push(state);
        }
    }

    pub(crate) fn touch(&mut self, block: BlockIndex) -> Option<StateIndex> {
        let state = self.of(block)?;
        self.attach(state, block);
        Some(state)
    }

    /// The state that nobody wanted for the longest time, and its block.
    fn least_wanted(&self) -> Option<(StateIndex, BlockIndex)> {
        let places = (0..).map(StateIndex).zip(&self.attached);
        let attached =
            places.filter_map(|(state, of)| of.map(|(block, used)| (used, state, block)));
        attached.min().map(|(_, state, block)| (state, block))
    }

    /// All states behind blocks.
    pub(crate) fn attached(&self) -> impl Iterator<Item = (StateIndex, BlockIndex)> {
        let places = (0..).map(StateIndex).zip(&self.attached);
        places.filter_map(|(state, of)| of.map(|(block, _)| (state, block)))
    }
}

impl BlockPool {
    /// From now on a prefix is taken only up to a block that has a state behind it, of which
    /// `count` are kept.
    pub fn keep_states(&mut self, count: u32) {
        self.states = Some(StatePlaces::new(count, self.block_count()));
    }

    /// A place for a state; that of another block is given up for it. `None`: all are taken.
    pub fn take_state(&mut self) -> Option<StateIndex> {
        let states = self.states.as_mut()?;
        if states.free.is_empty() {
            let (state, block) = states.least_wanted()?;
            self.evictions.note_state(&self.tree, state, block);
            states.forget(block);
        }
        states.free.pop()
    }

    /// The state of `table` at the end of `positions` was kept: others find it there, if they find
    /// the block. Else its place is free again.
    pub fn attach_state(&mut self, table: &BlockTable, positions: u32, state: StateIndex) {
        let blocks = (positions / self.block_tokens) as usize;
        assert_eq!(positions % self.block_tokens, 0, "a state is kept at the end of a block");
        let sealed = &table.blocks[..table.sealed];
        let block = blocks.checked_sub(1).and_then(|last| sealed.get(last)).copied();
        let places = self.states.as_mut().expect("invariant: it was taken from there");
        match block.filter(|&block| places.of(block).is_none()) {
            Some(block) => places.attach(state, block),
            None => places.free.push(state),
        }
    }

    /// The state at the end of a table's sealed blocks.
    pub fn state_behind(&mut self, table: &BlockTable) -> Option<StateIndex> {
        let Some(Parent::Block(last)) = self.last_sealed(table) else { return None };
        self.states.as_mut()?.touch(last)
    }

    /// Checks `state_conserved`, given how many places are taken.
    ///
    /// # Panics
    /// When it is broken: a sequence would go on from another's state.
    pub fn audit_states(&self, taken: usize) {
        let Some(states) = &self.states else {
            assert_eq!(taken, 0, "state_conserved: a state without a place");
            return;
        };
        let mut seen = vec![false; states.attached.len()];
        for state in &states.free {
            let was_seen = std::mem::replace(&mut seen[state.0 as usize], true);
            assert!(!was_seen, "state_conserved: {state:?} is free twice");
        }
        for (index, block) in states.of_block.iter().enumerate() {
            let Some(state) = block else { continue };
            let block = BlockIndex(index as u32);
            assert!(self.tree.contains(block), "state_conserved: {block:?} is not in the tree");
            let own = states.attached[state.0 as usize].map(|(block, _)| block);
            assert_eq!(own, Some(block), "state_conserved: {state:?}");
            let was_seen = std::mem::replace(&mut seen[state.0 as usize], true);
            assert!(!was_seen, "state_conserved: {state:?} is attached and free");
        }
        let attached = states.attached.iter().flatten().count();
        let all = states.free.len() + attached + taken;
        assert_eq!(all, states.attached.len(), "state_conserved: free + attached + taken");
        assert_eq!(seen.iter().filter(|seen| **seen).count(), all - taken, "state_conserved");
    }
}
