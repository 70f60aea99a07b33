//! Is every block where it should be?

use messages::BlockIndex;

use crate::prefix_tree::Parent;
use crate::{BlockPool, BlockTable};

impl BlockPool {
    /// Checks `kv_conserved`, `kv_single_writer`, `release_after_last_use` and the prefix tree,
    /// given every table there is.
    ///
    /// # Panics
    /// When one is broken: two sequences writing one block would mix two users' texts.
    pub fn audit<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut held = vec![0_u32; self.block_count()];
        let mut roots = Vec::new();
        for table in tables {
            roots.extend(table.root);
            for block in &table.blocks {
                held[block.0 as usize] += 1;
            }
            self.audit_sealed(table);
        }
        for (index, &count) in held.iter().enumerate() {
            assert_eq!(self.holders[index], count, "kv_conserved: holders of block {index}");
        }
        self.tree.audit(|block| held[block.0 as usize] > 0, &roots);
        self.audit_lists();
    }

    /// A table's sealed blocks are a path of the tree; the others are its own.
    fn audit_sealed(&self, table: &BlockTable) {
        assert!(table.sealed <= table.blocks.len(), "sealed blocks are the table's own");
        let (sealed, own) = table.blocks.split_at(table.sealed);
        let mut parent = table.root.map(Parent::Root);
        for &block in sealed {
            let node = self.tree.node(block).expect("invariant: a sealed block is in the tree");
            assert_eq!(Some(node.parent), parent, "{block:?} follows another block");
            parent = Some(Parent::Block(block));
        }
        for &block in own {
            assert_eq!(
                (self.holders[block.0 as usize], self.tree.contains(block)),
                (1, false),
                "kv_single_writer: {block:?} can be written and others can read it"
            );
        }
    }

    fn audit_lists(&self) {
        let mut listed = vec![false; self.block_count()];
        let free = self.free.iter().map(|block| (true, block));
        for (is_free, &block) in free.chain(self.pending.iter().map(|block| (false, block))) {
            let index = block.0 as usize;
            assert!(!listed[index], "kv_conserved: block {index} is listed twice");
            listed[index] = true;
            assert_eq!(self.holders[index], 0, "kv_conserved: listed block {index} is held");
            let available = self.is_available(block);
            assert_eq!(is_free, available, "release_after_last_use: block {index}");
            assert!(!is_free || !self.tree.contains(block), "free block {index} is in the tree");
        }
        let blocks = (0..self.block_count() as u32).map(BlockIndex);
        let cached = blocks.filter(|&b| self.is_available(b) && self.tree.contains(b));
        let leaf = |block: &BlockIndex| self.tree.node(*block).is_some_and(|n| n.children == 0);
        let leaves: Vec<BlockIndex> = cached.clone().filter(leaf).collect();
        assert!(leaves.iter().all(|&leaf| self.tree.heap.contains(leaf)), "it cannot be evicted");
        assert_eq!(leaves.len(), self.tree.heap.len(), "a block in use may be evicted");
        assert_eq!(self.cached_count, cached.count(), "kv_conserved: cached blocks");
        let owned = self.holders.iter().filter(|&&count| count > 0).count();
        let total = self.available_count() + self.pending_count() + owned;
        assert_eq!(total, self.block_count(), "kv_conserved: free + cached + pending + owned");
    }
}
