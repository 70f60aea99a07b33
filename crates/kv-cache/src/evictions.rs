//! What did evicted blocks hold? Told to whoever keeps their bytes elsewhere.

use std::sync::Arc;

use messages::{BlockIndex, CacheNamespace, TokenId};

use crate::BlockPool;
use crate::prefix_tree::PrefixTree;

/// A block and the prefix whose end it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixBlock<'a> {
    pub block: BlockIndex,
    pub namespace: &'a Arc<CacheNamespace>,
    /// From position 0 to the end of the block.
    pub tokens: &'a [TokenId],
}

/// Evictions since they were last forgotten; none are noted until somebody asks for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evictions {
    is_noting: bool,
    /// With where the prefix ends in `tokens`.
    blocks: Vec<(BlockIndex, Arc<CacheNamespace>, usize)>,
    tokens: Vec<TokenId>,
}

impl Evictions {
    pub(crate) fn note(&mut self, tree: &PrefixTree, block: BlockIndex) {
        if self.is_noting {
            let namespace = tree.prefix(block, &mut self.tokens);
            self.blocks.push((block, namespace, self.tokens.len()));
        }
    }
}

impl BlockPool {
    /// From now on evictions are noted, for [`BlockPool::evictions`].
    pub fn note_evictions(&mut self) {
        self.evictions.is_noting = true;
    }

    /// What was evicted since [`BlockPool::forget_evictions`]. The bytes are there until the next
    /// step that names the block.
    pub fn evictions(&self) -> impl Iterator<Item = PrefixBlock<'_>> {
        let Evictions { blocks, tokens, .. } = &self.evictions;
        let mut start = 0;
        blocks.iter().map(move |(block, namespace, end)| {
            let tokens = &tokens[std::mem::replace(&mut start, *end)..*end];
            PrefixBlock { block: *block, namespace, tokens }
        })
    }

    pub fn forget_evictions(&mut self) {
        self.evictions.blocks.clear();
        self.evictions.tokens.clear();
    }

    /// Calls `see` with every block in the tree, those at the ends of prefixes first.
    pub fn each_cached(&self, mut see: impl FnMut(PrefixBlock<'_>)) {
        let indices = (0..self.block_count() as u32).map(BlockIndex);
        let mut blocks: Vec<_> =
            indices.filter_map(|block| Some((self.tree.node(block)?.depth, block))).collect();
        blocks.sort_unstable_by_key(|&(depth, block)| (std::cmp::Reverse(depth), block));
        let mut tokens = Vec::new();
        for (_, block) in blocks {
            tokens.clear();
            let namespace = self.tree.prefix(block, &mut tokens);
            see(PrefixBlock { block, namespace: &namespace, tokens: &tokens });
        }
    }
}
