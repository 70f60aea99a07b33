//! Where do the positions of one sequence live?

use messages::BlockIndex;

use crate::prefix_tree::RootIndex;

/// The blocks of one sequence in order: position `p` lives in `blocks()[p / block_tokens]`.
///
/// Only a [`crate::BlockPool`] changes a table, so that every holder is counted. Clone a table only
/// together with its pool (a replay does): alone, the copy would hold blocks that nobody counted.
#[derive(Clone, Debug, Default)]
pub struct BlockTable {
    pub(crate) blocks: Vec<BlockIndex>,
    /// Leading blocks that are in the prefix tree: full, never written again.
    pub(crate) sealed: usize,
    /// Where in the prefix tree its blocks are looked up and put; `None`: nowhere.
    pub(crate) root: Option<RootIndex>,
}

impl BlockTable {
    /// An empty table that holds `blocks` blocks before its memory grows.
    pub fn with_capacity(blocks: usize) -> Self {
        Self { blocks: Vec::with_capacity(blocks), sealed: 0, root: None }
    }

    pub fn blocks(&self) -> &[BlockIndex] {
        &self.blocks
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Leading blocks that may only be read.
    pub fn sealed(&self) -> usize {
        self.sealed
    }
}
