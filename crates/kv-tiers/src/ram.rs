//! Which blocks are kept in memory?

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{BlockBytes, BlockKey};

/// Least recently used goes first. A device gives up the end of a prefix before its beginning, so
/// ends are the older ones here too.
pub(crate) struct Ram {
    bytes_max: u64,
    bytes: u64,
    blocks: BTreeMap<BlockKey, (u64, BlockBytes)>,
    /// Keys by their last use.
    order: BTreeMap<u64, BlockKey>,
    uses: u64,
}

impl Ram {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let (blocks, order) = (BTreeMap::new(), BTreeMap::new());
        Self { bytes_max, bytes: 0, blocks, order, uses: 0 }
    }

    /// Takes a block in; returns those that make room for it, or itself where it never fits.
    pub(crate) fn insert(
        &mut self,
        key: BlockKey,
        bytes: BlockBytes,
    ) -> Vec<(BlockKey, BlockBytes)> {
        let length = (*bytes).as_ref().len() as u64;
        if length > self.bytes_max {
            return vec![(key, bytes)];
        }
        self.remove(&key);
        let mut gone = Vec::new();
        while self.bytes + length > self.bytes_max {
            let (_, &oldest) = self.order.first_key_value().expect("invariant: bytes are counted");
            let bytes = self.remove(&oldest).expect("invariant: the order names what is here");
            gone.push((oldest, bytes));
        }
        self.uses += 1;
        self.order.insert(self.uses, key);
        self.blocks.insert(key, (self.uses, bytes));
        self.bytes += length;
        assert!(self.bytes <= self.bytes_max, "the memory tier is over its budget");
        gone
    }

    /// `false` where there is none.
    pub(crate) fn forget_oldest(&mut self) -> bool {
        let oldest = self.order.first_key_value().map(|(_, &key)| key);
        oldest.is_some_and(|oldest| self.remove(&oldest).is_some())
    }

    /// The block, which is now the most recently used.
    pub(crate) fn get(&mut self, key: &BlockKey) -> Option<BlockBytes> {
        let (used, bytes) = self.blocks.get_mut(key)?;
        self.uses += 1;
        self.order.remove(used);
        *used = self.uses;
        self.order.insert(self.uses, *key);
        Some(Arc::clone(bytes))
    }

    pub(crate) fn contains(&self, key: &BlockKey) -> bool {
        self.blocks.contains_key(key)
    }

    fn remove(&mut self, key: &BlockKey) -> Option<BlockBytes> {
        let (used, bytes) = self.blocks.remove(key)?;
        self.order.remove(&used);
        self.bytes -= (*bytes).as_ref().len() as u64;
        Some(bytes)
    }

    /// Takes everything out, least recently used first.
    pub(crate) fn drain(&mut self) -> Vec<(BlockKey, BlockBytes)> {
        let keys: Vec<BlockKey> = std::mem::take(&mut self.order).into_values().collect();
        let mut blocks = std::mem::take(&mut self.blocks);
        self.bytes = 0;
        keys.into_iter().filter_map(|key| Some((key, blocks.remove(&key)?.1))).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }
}
