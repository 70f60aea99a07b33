//! What did evicted blocks hold, and states that were given up? Told to whoever keeps their bytes
//! elsewhere.

use std::sync::Arc;

use messages::{BlockIndex, CacheNamespace, StateIndex, TokenId};

use crate::BlockPool;
use crate::prefix_tree::PrefixTree;
use crate::states::StatePlaces;

/// A block and the prefix whose end it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixBlock<'a> {
    pub block: BlockIndex,
    pub namespace: &'a Arc<CacheNamespace>,
    /// From position 0 to the end of the block.
    pub tokens: &'a [TokenId],
}

/// A state and the prefix at whose end it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixState<'a> {
    pub state: StateIndex,
    pub namespace: &'a Arc<CacheNamespace>,
    /// From position 0 to the end of a block.
    pub tokens: &'a [TokenId],
}

/// Evictions since they were last forgotten; none are noted until somebody asks for them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evictions {
    is_noting: bool,
    blocks: Noted<BlockIndex>,
    states: Noted<StateIndex>,
}

#[derive(Clone, Debug)]
struct Noted<T> {
    /// With where the prefix ends in `tokens`.
    all: Vec<(T, Arc<CacheNamespace>, usize)>,
    tokens: Vec<TokenId>,
}

impl<T> Default for Noted<T> {
    fn default() -> Self {
        Self { all: Vec::new(), tokens: Vec::new() }
    }
}

impl<T: Copy> Noted<T> {
    fn note(&mut self, tree: &PrefixTree, what: T, block: BlockIndex) {
        let namespace = tree.prefix(block, &mut self.tokens);
        self.all.push((what, namespace, self.tokens.len()));
    }

    fn each(&self) -> impl Iterator<Item = (T, &Arc<CacheNamespace>, &[TokenId])> {
        let mut start = 0;
        self.all.iter().map(move |(what, namespace, end)| {
            let tokens = &self.tokens[std::mem::replace(&mut start, *end)..*end];
            (*what, namespace, tokens)
        })
    }

    fn clear(&mut self) {
        self.all.clear();
        self.tokens.clear();
    }
}

impl Evictions {
    pub(crate) fn note(&mut self, tree: &PrefixTree, block: BlockIndex) {
        if self.is_noting {
            self.blocks.note(tree, block, block);
        }
    }

    /// A block's state is given up: with the block, or for that of another.
    pub(crate) fn note_state(&mut self, tree: &PrefixTree, state: StateIndex, block: BlockIndex) {
        if self.is_noting {
            self.states.note(tree, state, block);
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
        let blocks = self.evictions.blocks.each();
        blocks.map(|(block, namespace, tokens)| PrefixBlock { block, namespace, tokens })
    }

    /// The states that were given up since then. They are there until the next step that keeps
    /// one in their place.
    pub fn lost_states(&self) -> impl Iterator<Item = PrefixState<'_>> {
        let states = self.evictions.states.each();
        states.map(|(state, namespace, tokens)| PrefixState { state, namespace, tokens })
    }

    pub fn forget_evictions(&mut self) {
        self.evictions.blocks.clear();
        self.evictions.states.clear();
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

    /// Calls `see` with every state that is kept behind a block.
    pub fn each_state(&self, mut see: impl FnMut(PrefixState<'_>)) {
        let mut tokens = Vec::new();
        for (state, block) in self.states.iter().flat_map(StatePlaces::attached) {
            tokens.clear();
            let namespace = self.tree.prefix(block, &mut tokens);
            see(PrefixState { state, namespace: &namespace, tokens: &tokens });
        }
    }
}
