//! Where do blocks of keys and values go when the device has no room for them?
//!
//! Into memory, and from there, or at once, to disk; each tier has a budget in bytes that it never
//! exceeds. A block is named by a hash over everything its bytes depend on: model, layout,
//! namespace and all tokens up to its end ([`BlockKey`]). What blocks mean is not known here.
//!
//! Whoever plans steps never waits: [`Tiers::keep`] puts into memory or into a bounded queue, and
//! [`Tiers::load`] answers from the thread that reads. Reading order: `key`, `buffers`, `ram`,
//! `record` (a block on disk), `shared_folder`, `disk`, `tiers`.

#![forbid(unsafe_code)]

mod buffers;
mod disk;
mod key;
mod ram;
mod record;
mod shared_folder;
mod tiers;

pub use buffers::{BlockBuffers, BlockBytes, HeapBuffers, NoRoom};
pub use key::BlockKey;
pub use tiers::{Loaded, TierCounts, TierError, TierSettings, Tiers};
