//! What is still to be saved at the end? Counted where it is done; who ends the process reads
//! beside it, and can say what it did not wait for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Of all models of a process.
#[derive(Debug, Default)]
pub struct SaveProgress {
    answers: AtomicU64,
    copies: AtomicU64,
    /// Of each model that is saving: its blocks that are not on disk.
    blocks: Mutex<Vec<Weak<AtomicU64>>>,
}

impl SaveProgress {
    /// Models whose remembered answers are being written.
    pub fn answers_left(&self) -> u64 {
        self.answers.load(Ordering::Acquire)
    }

    /// Blocks of keys and values that are to be written to disk.
    pub fn blocks_left(&self) -> u64 {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let left = blocks.iter().filter_map(Weak::upgrade);
        left.map(|left| left.load(Ordering::Acquire)).sum()
    }

    /// Whether blocks are on their way from a device, so that it is the one to wait for.
    pub fn waits_for_device(&self) -> bool {
        self.copies.load(Ordering::Acquire) > 0
    }

    /// Whether a disk is being written to.
    pub fn is_writing(&self) -> bool {
        self.answers_left() > 0 || (self.blocks_left() > 0 && !self.waits_for_device())
    }

    pub(crate) fn write_answers<T>(&self, write: impl FnOnce() -> T) -> T {
        let _counted = Counted::new(&self.answers);
        write()
    }

    pub(crate) fn wait_for_device<T>(&self, wait: impl FnOnce() -> T) -> T {
        let _counted = Counted::new(&self.copies);
        wait()
    }

    /// Blocks that a model is to save, counted down as they are; forgotten when it is dropped.
    pub(crate) fn expect_blocks(&self, count: u64) -> Arc<AtomicU64> {
        let left = Arc::new(AtomicU64::new(count));
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.retain(|others| others.strong_count() > 0);
        blocks.push(Arc::downgrade(&left));
        left
    }
}

/// One more, until it is dropped.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
