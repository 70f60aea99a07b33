//! Which blocks are free, and when may a released one be used again?

use messages::{BlockIndex, StepIndex};

use crate::BlockTable;
use crate::evictions::Evictions;
use crate::prefix_tree::{Parent, PrefixTree};
use crate::states::StatePlaces;

const NOWHERE: u32 = u32::MAX;

/// All blocks of one KV cache. Its memory is allocated once, in [`BlockPool::new`].
///
/// A block is *free* (in the free list), *owned* (held by at least one table), *pending* (held by
/// no table, but named by a step the device has not finished) or *cached* (none of these, but in
/// the prefix tree). A cached block is given to whoever needs it, least valuable first.
#[derive(Clone, Debug)]
pub struct BlockPool {
    pub(crate) block_tokens: u32,
    /// Last in, first out: a block just released is the likeliest to be in a cache.
    pub(crate) free: Vec<BlockIndex>,
    pub(crate) pending: Vec<BlockIndex>,
    /// Where each block is in `pending`.
    pending_places: Vec<u32>,
    pub(crate) cached_count: usize,
    /// Tables holding each block.
    pub(crate) holders: Vec<u32>,
    /// Steps that must be settled before each block may be free again: its last use plus one.
    pub(crate) busy_until: Vec<u64>,
    /// Steps settled so far; they settle in order, so this is also the first unsettled step.
    pub(crate) settled_count: u64,
    pub(crate) tree: PrefixTree,
    pub(crate) evicted_total: u64,
    pub(crate) evictions: Evictions,
    /// `None`: sequences are their keys and values alone.
    pub(crate) states: Option<StatePlaces>,
}

impl BlockPool {
    /// A pool of `block_count` free blocks of `block_tokens` positions each.
    ///
    /// # Panics
    /// When either is 0.
    pub fn new(block_count: u32, block_tokens: u32) -> Self {
        assert!(block_count > 0, "a pool has at least one block");
        assert!(block_tokens > 0, "a block holds at least one position");
        let count = block_count as usize;
        Self {
            block_tokens,
            // Reversed, so that block 0 is taken first.
            free: (0..block_count).rev().map(BlockIndex).collect(),
            pending: Vec::with_capacity(count),
            pending_places: vec![NOWHERE; count],
            cached_count: 0,
            holders: vec![0; count],
            busy_until: vec![0; count],
            settled_count: 0,
            tree: PrefixTree::new(count, block_tokens),
            evicted_total: 0,
            evictions: Evictions::default(),
            states: None,
        }
    }

    /// Positions in one block.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    pub fn block_count(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that hold nothing.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Blocks that nobody uses and that hold a prefix somebody may ask for again.
    pub fn cached_count(&self) -> usize {
        self.cached_count
    }

    /// Blocks that a table can have at once.
    pub fn available_count(&self) -> usize {
        self.free.len() + self.cached_count
    }

    /// Blocks that become available when the steps naming them settle.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Blocks held by at least one table.
    pub fn owned_count(&self) -> usize {
        self.block_count() - self.available_count() - self.pending_count()
    }

    /// Whether a table may take the block to write into it: nobody reads it and no step names it.
    pub fn is_available(&self, block: BlockIndex) -> bool {
        let index = block.0 as usize;
        self.holders[index] == 0 && self.busy_until[index] <= self.settled_count
    }

    /// Blocks needed for `positions` positions.
    pub fn blocks_for(&self, positions: u32) -> usize {
        positions.div_ceil(self.block_tokens) as usize
    }

    /// Positions a table's blocks have room for.
    pub fn covered(&self, table: &BlockTable) -> u64 {
        table.blocks.len() as u64 * u64::from(self.block_tokens)
    }

    /// Gives `table` the blocks it lacks for `positions` positions: all of them, or none and
    /// `false` when too few are available. Cached blocks are evicted for it.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, positions: u32) -> bool {
        let missing = self.blocks_for(positions).saturating_sub(table.blocks.len());
        if missing > self.available_count() {
            return false;
        }
        for _ in 0..missing {
            if self.free.is_empty() {
                self.evict();
            }
            let block = self.free.pop().expect("invariant: counted above");
            assert!(self.is_available(block), "{block:?} was in the free list while in use");
            self.holders[block.0 as usize] = 1;
            table.blocks.push(block);
        }
        assert!(self.covered(table) >= u64::from(positions), "a grown table covers its positions");
        true
    }

    /// Frees the least valuable cached block.
    fn evict(&mut self) {
        let block = self.tree.heap.pop().expect("invariant: a cached block that no other follows");
        assert!(self.is_available(block), "{block:?} is evicted while in use");
        self.evictions.note(&self.tree, block);
        if let Some(states) = &mut self.states {
            if let Some(state) = states.of(block) {
                self.evictions.note_state(&self.tree, state, block);
            }
            states.forget(block);
        }
        let parent = self.tree.remove(block);
        self.cached_count -= 1;
        self.evicted_total += 1;
        self.free.push(block);
        if let Some(parent) = parent.filter(|&parent| self.is_available(parent)) {
            self.offer(parent);
        }
    }

    /// A cached block may be evicted, unless another follows it.
    fn offer(&mut self, block: BlockIndex) {
        if self.tree.node(block).is_some_and(|node| node.children == 0) {
            self.tree.heap.push(block);
        }
    }

    /// One more table holds `block`, which is in the tree.
    pub(crate) fn hold(&mut self, block: BlockIndex) {
        let index = block.0 as usize;
        assert!(self.tree.contains(block), "{block:?} is neither cached nor the table's own");
        if self.holders[index] == 0 {
            if self.pending_places[index] == NOWHERE {
                self.cached_count -= 1;
                self.tree.heap.remove(block);
            } else {
                self.leave_pending(block);
            }
        }
        self.holders[index] += 1;
    }

    /// One table less holds `block`; `busy_until` steps must settle before it is used otherwise.
    pub(crate) fn let_go(&mut self, block: BlockIndex, busy_until: u64) {
        let index = block.0 as usize;
        assert!(self.holders[index] > 0, "{block:?} released twice");
        self.holders[index] -= 1;
        // Kept even while others hold the block: the last holder may not be its last user.
        self.busy_until[index] = self.busy_until[index].max(busy_until);
        if self.holders[index] > 0 {
            return;
        }
        if let Some(node) = self.tree.node(block) {
            let position = u64::from(node.depth) * u64::from(self.block_tokens);
            self.tree.heap.value(block, position);
        }
        if self.is_available(block) {
            self.rest(block);
        } else {
            self.pending_places[index] = self.pending.len() as u32;
            self.pending.push(block);
        }
    }

    /// Nobody uses `block` any more.
    fn rest(&mut self, block: BlockIndex) {
        assert!(self.is_available(block), "release_after_last_use: {block:?} is in use");
        if self.tree.contains(block) {
            self.cached_count += 1;
            self.offer(block);
        } else {
            self.free.push(block);
        }
    }

    fn leave_pending(&mut self, block: BlockIndex) {
        let place = std::mem::replace(&mut self.pending_places[block.0 as usize], NOWHERE);
        self.pending.swap_remove(place as usize);
        if let Some(moved) = self.pending.get(place as usize) {
            self.pending_places[moved.0 as usize] = place;
        }
    }

    /// Takes all blocks back from `table`. `last_use` is the last step that named the table: its
    /// blocks are available only once that step is settled. Those in the tree stay there.
    pub fn release(&mut self, table: &mut BlockTable, last_use: Option<StepIndex>) {
        self.tree.heap.next_use();
        let busy_until = busy_until(last_use);
        // Backwards, so that the free list hands them out in their old order.
        while let Some(block) = table.blocks.pop() {
            self.let_go(block, busy_until);
        }
        table.sealed = 0;
        if let Some(root) = table.root.take() {
            self.tree.leave(root);
        }
    }

    /// Step `step` is finished on the device: blocks that waited for it become available.
    ///
    /// # Panics
    /// When steps do not settle in order.
    pub fn settle(&mut self, step: StepIndex) {
        assert_eq!(step.0, self.settled_count, "steps settle in order");
        self.settled_count += 1;
        let mut place = 0;
        while let Some(&block) = self.pending.get(place) {
            if self.is_available(block) {
                self.leave_pending(block);
                self.rest(block);
            } else {
                place += 1;
            }
        }
        assert!(self.free.len() <= self.block_count(), "more free blocks than blocks");
    }

    /// What the last sealed block of a table is to the next.
    pub(crate) fn last_sealed(&self, table: &BlockTable) -> Option<Parent> {
        match table.sealed.checked_sub(1) {
            None => table.root.map(Parent::Root),
            Some(last) => Some(Parent::Block(table.blocks[last])),
        }
    }
}

/// Steps that must be settled before blocks last named by step `last_use` are used otherwise.
pub(crate) fn busy_until(last_use: Option<StepIndex>) -> u64 {
    last_use.map_or(0, |step| step.0 + 1)
}
