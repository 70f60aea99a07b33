//! How far is a load? Counted as tensors are lent to the device; who watches reads beside it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of weights; a model that waits has none yet.
#[derive(Debug, Default)]
pub struct LoadProgress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl LoadProgress {
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// 0 before it is known.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Another model begins.
    pub(crate) fn expect(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
