//! Who owns which block of the KV cache? No bytes live here, only ownership.
//!
//! Invariants, checked by [`BlockPool::audit`]:
//! - `kv_conserved`: free + owned + pending blocks = all blocks, and a block's count of holders is
//!   the number of tables holding it;
//! - `kv_single_writer`: a block that can still be written is held by one table;
//! - `release_after_last_use`: no block is free while an unfinished step names it.
//!
//! Reading order: [`BlockTable`] (one sequence's blocks), [`BlockPool`] (all of them), `audit`.

#![forbid(unsafe_code)]

mod audit;
mod block_pool;
mod block_table;

pub use block_pool::BlockPool;
pub use block_table::BlockTable;
