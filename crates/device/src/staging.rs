//! Where are bytes between a device and elsewhere? In buffers of one size that are used again.
//!
//! A buffer is carved from a heap when none is free, and comes back when whoever has it lets go:
//! a tier that keeps blocks keeps them in these. Where the heap is used up there is no buffer, and
//! whoever asked does without: a cache may forget.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{HeapBlock, HeapPool};

/// Buffers of one size. A handle: copies are the same ring.
#[derive(Clone)]
pub struct StagingRing(Arc<Ring>);

struct Ring {
    pool: HeapPool,
    buffer_bytes: usize,
    buffers_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: Vec<HeapBlock>,
    counts: StagingStatistics,
}

/// What a ring holds and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagingStatistics {
    pub buffers: u64,
    pub buffers_free: u64,
    pub buffer_bytes: u64,
    pub taken_total: u64,
    /// Times there was none.
    pub exhaustions_total: u64,
}

/// A buffer, its holder's alone; it goes back when it is dropped.
pub struct StagingBuffer {
    block: Option<HeapBlock>,
    ring: Arc<Ring>,
}

impl StagingRing {
    /// At most `buffers_max` buffers of `buffer_bytes` out of `pool`, whose kind the process can
    /// touch.
    pub fn new(pool: HeapPool, buffer_bytes: usize, buffers_max: usize) -> Self {
        assert!(pool.kind().is_host(), "staging is memory of the process");
        Self(Arc::new(Ring { pool, buffer_bytes, buffers_max, state: Mutex::default() }))
    }

    /// A buffer with any contents; `None` where the pool is used up.
    pub fn take(&self) -> Option<StagingBuffer> {
        let ring = &self.0;
        let mut state = ring.state();
        let block = match state.free.pop() {
            Some(block) => Some(block),
            None if state.counts.buffers as usize == ring.buffers_max => None,
            None => {
                let carved = ring.pool.carve("staging", ring.buffer_bytes).ok();
                if carved.is_some() {
                    state.counts.buffers += 1;
                    // So that coming back takes no memory.
                    let all = state.counts.buffers as usize;
                    state.free.reserve(all);
                }
                carved
            }
        };
        match block {
            Some(_) => state.counts.taken_total += 1,
            None => state.counts.exhaustions_total += 1,
        }
        block.map(|block| StagingBuffer { block: Some(block), ring: Arc::clone(ring) })
    }

    pub fn buffers_max(&self) -> usize {
        self.0.buffers_max
    }

    /// Whether [`StagingRing::take`] gives none until one comes back.
    pub fn is_used_up(&self) -> bool {
        let state = self.0.state();
        state.free.is_empty() && state.counts.buffers as usize == self.0.buffers_max
    }

    pub fn statistics(&self) -> StagingStatistics {
        let state = self.0.state();
        StagingStatistics {
            buffers_free: state.free.len() as u64,
            buffer_bytes: self.0.buffer_bytes as u64,
            ..state.counts
        }
    }

    pub fn pool(&self) -> &HeapPool {
        &self.0.pool
    }
}

impl Ring {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StagingBuffer {
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.block.as_mut().expect("invariant: there until dropped").bytes_mut()
    }
}

impl AsRef<[u8]> for StagingBuffer {
    fn as_ref(&self) -> &[u8] {
        self.block.as_ref().expect("invariant: there until dropped").bytes()
    }
}

impl Drop for StagingBuffer {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.ring.state().free.push(block);
        }
    }
}

impl fmt::Debug for StagingBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "staging buffer of {} bytes", self.ring.buffer_bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{HeapSettings, HeapSource, SystemAllocator};

    #[test]
    fn buffers_are_used_again() {
        let settings = HeapSettings { heap_bytes: Some(3000), ..HeapSettings::default() };
        let source = HeapSource { settings, allocator: Arc::new(SystemAllocator) };
        let ring = StagingRing::new(HeapPool::open(source, 0).unwrap(), 1000, 9);
        for round in 0..100_u8 {
            let mut first = ring.take().unwrap();
            assert!(!ring.is_used_up());
            let second = ring.take().unwrap();
            assert!(ring.take().is_none(), "the pool has room for two");
            first.bytes_mut().fill(round);
            assert_eq!(first.as_ref(), [round; 1000]);
            drop((first, second));
        }
        let counts = ring.statistics();
        assert_eq!((counts.buffers, counts.buffers_free, counts.taken_total), (2, 2, 200));
        assert_eq!(counts.exhaustions_total, 100);
        assert_eq!(ring.pool().statistics().carved_total, 2);
    }
}
