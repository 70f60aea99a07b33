//! Why was no more of a prompt found in the tree?

use messages::{CachedEnd, TokenId};

use crate::prefix_tree::Parent;
use crate::{BlockPool, BlockTable};

/// Blocks with the same parent that are compared with a prompt, the youngest: a bound on the time.
const COMPARED_MAX: usize = 64;

impl BlockPool {
    /// Why `table`, which has taken what is cached of `tokens`, found no more of them.
    pub fn end_of_cached(&self, table: &BlockTable, tokens: &[TokenId]) -> CachedEnd {
        let block_tokens = self.block_tokens as usize;
        let Some(parent) = self.last_sealed(table) else { return CachedEnd::Off };
        let start = table.sealed * block_tokens;
        let Some(wanted) = tokens.get(start..start + block_tokens) else {
            return if table.sealed == 0 { CachedEnd::Short } else { CachedEnd::Whole };
        };
        if self.tree.child(parent, wanted).is_some() {
            return CachedEnd::NoState;
        }
        if self.tree.was_evicted(parent, wanted) {
            return CachedEnd::Evicted;
        }
        let common = |tokens: &[TokenId]| {
            tokens.iter().zip(wanted).take_while(|(cached, wanted)| cached == wanted).count()
        };
        let followers = self.tree.children(parent).take(COMPARED_MAX);
        match followers.map(|block| common(self.tree.tokens_of(block))).max() {
            Some(common) => CachedEnd::Differs { at: (start + common) as u32 },
            None if matches!(parent, Parent::Root(_)) => CachedEnd::New,
            None => CachedEnd::Ends,
        }
    }
}
