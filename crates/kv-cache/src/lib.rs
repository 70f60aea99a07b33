//! Who owns which block of the KV cache, and which blocks need not be computed again? No bytes
//! live here, only ownership.
//!
//! Invariants, checked by [`BlockPool::audit`]:
//! - `kv_conserved`: free + cached + owned + pending blocks = all blocks, and a block's count of
//!   holders is the number of tables holding it;
//! - `kv_single_writer`: a block that can still be written is held by one table and cannot be found
//!   in the prefix tree;
//! - `release_after_last_use`: no block is available while an unfinished step names it;
//! - `state_conserved`, of models whose sequences carry a state: see `states`.
//!
//! Reading order: [`BlockTable`] (one sequence's blocks), [`BlockPool`] (all of them),
//! `prefix_cache` (what tables share), `prefix_tree` (where it is found), `eviction` (what is
//! given up), `evictions` (what that was), `children`, `forgotten` and `explaining` (why no more
//! was found), `audit`.

#![forbid(unsafe_code)]

mod audit;
mod block_pool;
mod block_table;
mod children;
mod eviction;
mod evictions;
mod explaining;
mod forgotten;
mod prefix_cache;
mod prefix_tree;
mod states;

pub use block_pool::BlockPool;
pub use block_table::BlockTable;
pub use evictions::{PrefixBlock, PrefixState};
pub use prefix_cache::{CachedPrefix, PrefixCounts};
