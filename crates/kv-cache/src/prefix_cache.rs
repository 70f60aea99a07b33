//! Which blocks need not be computed again?
//!
//! A sequence enters a namespace and takes the blocks of its longest cached prefix; while it runs,
//! the blocks it has filled go into the tree, where others find them. Only full blocks are shared,
//! so nothing is ever copied: what a sequence writes is its own.
//!
//! Two sequences may compute the same block at once. The first that is done puts its block into the
//! tree; the other then takes that one and gives its own back. Both hold the same bytes on a device
//! whose arithmetic does not depend on a token's neighbours.

use std::sync::Arc;

use messages::{BlockIndex, CacheNamespace, StepIndex, TokenId};

use crate::block_pool::busy_until;
use crate::prefix_tree::Parent;
use crate::{BlockPool, BlockTable};

/// A cached prefix, before anyone takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachedPrefix {
    /// Full blocks of the prefix that can be taken.
    pub blocks: usize,
    /// Those in the tree: more, where no state was kept behind the last of them.
    pub in_tree: usize,
    /// Those of them that tables hold: sharing them takes nothing from what is available.
    pub owned: usize,
}

/// What the prefix tree has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCounts {
    /// Blocks in the tree, those in use included.
    pub blocks: usize,
    pub evicted_blocks_total: u64,
}

impl BlockPool {
    /// The longest cached prefix of `tokens`.
    pub fn cached_prefix(&self, namespace: &CacheNamespace, tokens: &[TokenId]) -> CachedPrefix {
        let mut found = CachedPrefix::default();
        let Some(root) = self.tree.root(namespace) else { return found };
        let mut parent = Parent::Root(root);
        let mut owned = 0;
        for tokens in tokens.chunks_exact(self.block_tokens as usize) {
            let Some(block) = self.tree.child(parent, tokens) else { break };
            found.in_tree += 1;
            owned += usize::from(self.holders[block.0 as usize] > 0);
            if self.states.as_ref().is_none_or(|states| states.of(block).is_some()) {
                (found.blocks, found.owned) = (found.in_tree, owned);
            }
            parent = Parent::Block(block);
        }
        found
    }

    /// Lets the empty `table` look up and publish blocks in a namespace, until it is released.
    ///
    /// # Panics
    /// When the table has blocks or is in a namespace already.
    pub fn enter(&mut self, table: &mut BlockTable, namespace: &Arc<CacheNamespace>) {
        assert!(table.is_empty() && table.root.is_none(), "a table enters before its first block");
        table.root = Some(self.tree.enter(namespace));
    }

    /// Takes the cached blocks of `tokens`, which start at position 0, in place of the table's own
    /// and beyond them. Returns the positions that are cached now and must not be written.
    ///
    /// `last_use` is the last step that named the table: a block of its own that it gives back for
    /// a cached one may still be written by that step.
    pub fn take_cached(
        &mut self,
        table: &mut BlockTable,
        tokens: &[TokenId],
        last_use: Option<StepIndex>,
    ) -> u32 {
        let namespace = table.root.map(|root| self.tree.namespace(root));
        let Some(namespace) = namespace.filter(|_| self.states.is_some()) else {
            return self.seal(table, tokens, last_use);
        };
        let blocks = self.cached_prefix(&namespace, tokens).blocks;
        self.seal(table, &tokens[..blocks * self.block_tokens as usize], last_use)
    }

    /// The same, whether a state was kept behind them or not: for who has it from elsewhere, and
    /// for tokens that the table's blocks hold.
    pub fn seal(
        &mut self,
        table: &mut BlockTable,
        tokens: &[TokenId],
        last_use: Option<StepIndex>,
    ) -> u32 {
        while let Some((parent, tokens)) = self.next_unsealed(table, tokens) {
            let Some(block) = self.tree.child(parent, tokens) else { break };
            self.hold(block);
            if let Some(own) = table.blocks.get_mut(table.sealed) {
                let own = std::mem::replace(own, block);
                self.let_go(own, busy_until(last_use));
            } else {
                table.blocks.push(block);
            }
            table.sealed += 1;
        }
        table.sealed as u32 * self.block_tokens
    }

    /// Puts the table's full blocks of `tokens`, which start at position 0 and are all computed by
    /// settled steps, into the tree; for those that are there already it takes the tree's.
    pub fn publish(
        &mut self,
        table: &mut BlockTable,
        tokens: &[TokenId],
        last_use: Option<StepIndex>,
    ) {
        self.seal(table, tokens, last_use);
        while let Some((parent, tokens)) = self.next_unsealed(table, tokens) {
            let root = table.root.expect("invariant: it has a parent in the tree");
            let block = table.blocks[table.sealed];
            assert_eq!(self.holders[block.0 as usize], 1, "kv_single_writer: {block:?}");
            self.tree.insert(root, parent, tokens, block);
            table.sealed += 1;
        }
    }

    /// The place in the tree and the tokens of the first full block that is not sealed.
    fn next_unsealed<'a>(
        &self,
        table: &BlockTable,
        tokens: &'a [TokenId],
    ) -> Option<(Parent, &'a [TokenId])> {
        let parent = self.last_sealed(table)?;
        let block_tokens = self.block_tokens as usize;
        let start = table.sealed * block_tokens;
        Some((parent, tokens.get(start..start + block_tokens)?))
    }

    pub fn prefix_counts(&self) -> PrefixCounts {
        PrefixCounts { blocks: self.tree.len(), evicted_blocks_total: self.evicted_total }
    }

    /// Whether the block's content can be found by its tokens.
    pub fn is_cached(&self, block: BlockIndex) -> bool {
        self.tree.contains(block)
    }
}
