//! Is every block where it should be?

use crate::{BlockPool, BlockTable};

impl BlockPool {
    /// Checks `kv_conserved` and `kv_single_writer`, given every table there is.
    ///
    /// # Panics
    /// When one is broken: two sequences writing one block would mix two users' texts.
    pub fn audit<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) {
        let mut held = vec![0_u32; self.block_count()];
        let mut written = vec![false; self.block_count()];
        for table in tables {
            assert!(table.sealed <= table.blocks.len(), "sealed blocks are the table's own");
            for (place, block) in table.blocks.iter().enumerate() {
                let index = block.0 as usize;
                held[index] += 1;
                written[index] |= place >= table.sealed;
            }
        }
        for (index, &count) in held.iter().enumerate() {
            assert_eq!(self.holders[index], count, "kv_conserved: holders of block {index}");
            assert!(
                count <= 1 || !written[index],
                "kv_single_writer: block {index} has a writer and {count} holders"
            );
        }
        self.audit_lists();
    }

    fn audit_lists(&self) {
        let mut listed = vec![false; self.block_count()];
        for (list, block) in self
            .free
            .iter()
            .map(|block| (true, block))
            .chain(self.pending.iter().map(|b| (false, b)))
        {
            let index = block.0 as usize;
            assert!(!listed[index], "kv_conserved: block {index} is listed twice");
            listed[index] = true;
            assert_eq!(self.holders[index], 0, "kv_conserved: listed block {index} is held");
            assert_eq!(list, self.is_free(*block), "release_after_last_use: block {index}");
        }
        let owned = self.holders.iter().filter(|&&count| count > 0).count();
        let total = self.free_count() + self.pending_count() + owned;
        assert_eq!(total, self.block_count(), "kv_conserved: free + pending + owned");
    }
}
