//! Which blocks are free, and when may a released one be used again?

use messages::{BlockIndex, StepIndex};

use crate::BlockTable;

/// All blocks of one KV cache. Its memory is allocated once, in [`BlockPool::new`].
///
/// A block is *free* (in the free list), *owned* (held by at least one table) or *pending* (held by
/// no table, but named by a step the device has not finished).
#[derive(Clone, Debug)]
pub struct BlockPool {
    pub(crate) block_tokens: u32,
    /// Last in, first out: a block just released is the likeliest to be in a cache.
    pub(crate) free: Vec<BlockIndex>,
    pub(crate) pending: Vec<BlockIndex>,
    /// Tables holding each block.
    pub(crate) holders: Vec<u32>,
    /// Steps that must be settled before each block may be free again: its last use plus one.
    pub(crate) busy_until: Vec<u64>,
    /// Steps settled so far; they settle in order, so this is also the first unsettled step.
    pub(crate) settled_count: u64,
}

impl BlockPool {
    /// A pool of `block_count` free blocks of `block_tokens` positions each.
    ///
    /// # Panics
    /// When either is 0.
    pub fn new(block_count: u32, block_tokens: u32) -> Self {
        assert!(block_count > 0, "a pool has at least one block");
        assert!(block_tokens > 0, "a block holds at least one position");
        Self {
            block_tokens,
            // Reversed, so that block 0 is taken first.
            free: (0..block_count).rev().map(BlockIndex).collect(),
            pending: Vec::with_capacity(block_count as usize),
            holders: vec![0; block_count as usize],
            busy_until: vec![0; block_count as usize],
            settled_count: 0,
        }
    }

    /// Positions in one block.
    pub fn block_tokens(&self) -> u32 {
        self.block_tokens
    }

    pub fn block_count(&self) -> usize {
        self.holders.len()
    }

    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Blocks that become free when the steps naming them settle.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Blocks held by at least one table.
    pub fn owned_count(&self) -> usize {
        self.block_count() - self.free_count() - self.pending_count()
    }

    pub fn is_free(&self, block: BlockIndex) -> bool {
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
    /// `false` when too few are free.
    #[must_use]
    pub fn grow(&mut self, table: &mut BlockTable, positions: u32) -> bool {
        let missing = self.blocks_for(positions).saturating_sub(table.blocks.len());
        if missing > self.free.len() {
            return false;
        }
        for _ in 0..missing {
            let block = self.free.pop().expect("invariant: counted above");
            assert!(self.is_free(block), "{block:?} was in the free list while in use");
            self.holders[block.0 as usize] = 1;
            table.blocks.push(block);
        }
        assert!(self.covered(table) >= u64::from(positions), "a grown table covers its positions");
        true
    }

    /// Lets the empty table `target` hold the full blocks among the first `positions` positions of
    /// `source`. Both may only read them from now on. Returns the positions shared: `positions`
    /// rounded down to whole blocks, for a partly filled block still has a writer.
    ///
    /// # Panics
    /// When `target` holds blocks already or `source` does not cover `positions`.
    pub fn share(
        &mut self,
        source: &mut BlockTable,
        target: &mut BlockTable,
        positions: u32,
    ) -> u32 {
        assert!(target.is_empty(), "blocks can only be shared into an empty table");
        assert!(u64::from(positions) <= self.covered(source), "more positions than the source has");
        let full = (positions / self.block_tokens) as usize;
        for &block in &source.blocks[..full] {
            assert!(self.holders[block.0 as usize] > 0, "{block:?} is held by its source");
            self.holders[block.0 as usize] += 1;
            target.blocks.push(block);
        }
        source.sealed = source.sealed.max(full);
        target.sealed = full;
        full as u32 * self.block_tokens
    }

    /// Takes all blocks back from `table`. `last_use` is the last step that named the table: its
    /// blocks are free only once that step is settled.
    pub fn release(&mut self, table: &mut BlockTable, last_use: Option<StepIndex>) {
        let busy_until = last_use.map_or(0, |step| step.0 + 1);
        // Backwards, so that the free list hands them out in their old order.
        for &block in table.blocks.iter().rev() {
            let index = block.0 as usize;
            assert!(self.holders[index] > 0, "{block:?} released twice");
            self.holders[index] -= 1;
            // Kept even while others hold the block: the last holder may not be its last user.
            self.busy_until[index] = self.busy_until[index].max(busy_until);
            if self.holders[index] > 0 {
                continue;
            }
            if self.is_free(block) {
                self.free.push(block);
            } else {
                self.pending.push(block);
            }
        }
        table.blocks.clear();
        table.sealed = 0;
    }

    /// Step `step` is finished on the device: blocks that waited for it become free.
    ///
    /// # Panics
    /// When steps do not settle in order.
    pub fn settle(&mut self, step: StepIndex) {
        assert_eq!(step.0, self.settled_count, "steps settle in order");
        self.settled_count += 1;
        let Self { pending, free, busy_until, settled_count, .. } = self;
        pending.retain(|&block| {
            let waits = busy_until[block.0 as usize] > *settled_count;
            if !waits {
                free.push(block);
            }
            waits
        });
        assert!(self.free.len() <= self.block_count(), "more free blocks than blocks");
    }
}
