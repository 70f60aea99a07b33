//! Who gets which part of a device's memory? A few heaps made at load, carved into buffers.
//!
//! A buffer ([`HeapBlock`]) comes back when it is dropped. The pool asks its allocator for heaps
//! when it is opened; later only if growth is allowed, and never while a step runs. A request that
//! finds no room is refused, counted and logged; the process goes on. Switched off, each buffer is
//! an allocation of its own, through the same calls.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::LoadError;
use crate::free_spans::{CLASSES, FreeSpans, GRAIN, size_class};
use crate::heap_memory::{self, HeapMemory, MemoryKind, SharedAllocator};

/// How a pool is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapSettings {
    /// Off: each buffer is an allocation of its own.
    pub enabled: bool,
    /// Bytes of each heap; `None`: one heap, as large as what is planned for it.
    pub heap_bytes: Option<usize>,
    /// Heaps made at load, where `heap_bytes` is given.
    pub heaps: u32,
    /// Buffers that are carved, touched and given back at load, so that first uses are not slow.
    pub warm_up_bytes: Vec<usize>,
    /// Whether further heaps may be made, between steps.
    pub may_grow: bool,
    /// Whether sizes are counted by class.
    pub tracks_classes: bool,
    pub logs_exhaustion: bool,
}

impl Default for HeapSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            heap_bytes: None,
            heaps: 1,
            warm_up_bytes: Vec::new(),
            may_grow: false,
            tracks_classes: true,
            logs_exhaustion: true,
        }
    }
}

/// Settings and the allocator they are for: all that a backend needs to open its pools.
#[derive(Clone, Debug)]
pub struct HeapSource {
    pub settings: HeapSettings,
    pub allocator: SharedAllocator,
}

/// A pool refuses; the text says what was asked for, what there is, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HeapError(pub String);

impl From<HeapError> for LoadError {
    fn from(error: HeapError) -> Self {
        Self(error.0)
    }
}

/// What a pool holds and has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapStatistics {
    pub heaps: u32,
    /// Of all heaps.
    pub reserved_bytes: u64,
    /// Of all buffers, as asked for.
    pub used_bytes: u64,
    /// Highest `used_bytes` so far.
    pub peak_used_bytes: u64,
    /// The largest buffer that fits now.
    pub largest_free_bytes: u64,
    /// Free in heaps, in pieces of any size.
    pub free_bytes: u64,
    pub carved_total: u64,
    pub freed_total: u64,
    /// Requests refused for lack of room.
    pub exhaustions_total: u64,
    /// Heaps asked of the allocator; after load this stands still unless the pool may grow.
    pub allocations_total: u64,
    /// Buffers and free spans by size class; empty where classes are not tracked.
    pub classes: Vec<ClassStatistics>,
}

/// Of the sizes from `bytes` up to twice as much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStatistics {
    pub bytes: u64,
    pub used_blocks: u64,
    pub used_bytes: u64,
    pub free_spans: u64,
    pub free_bytes: u64,
}

impl HeapStatistics {
    /// Share of the free bytes that no single buffer could get: 0 where they are in one piece.
    pub fn fragmentation(&self) -> f64 {
        if self.free_bytes == 0 {
            return 0.0;
        }
        1.0 - self.largest_free_bytes as f64 / self.free_bytes as f64
    }
}

/// The heaps of one owner. A handle: copies are the same pool.
#[derive(Clone)]
pub struct HeapPool(Arc<Pool>);

struct Pool {
    source: HeapSource,
    /// Steps that run now.
    steps: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    heaps: Vec<Heap>,
    used_by_class: Vec<(u64, u64)>,
    direct_bytes: u64,
    counts: HeapStatistics,
}

struct Heap {
    memory: HeapMemory,
    spans: FreeSpans,
}

/// A buffer of a pool, its holder's alone until it is dropped. Of a host kind it starts as zeros.
pub struct HeapBlock {
    pool: Arc<Pool>,
    memory: HeapMemory,
    /// `None`: an allocation of its own.
    place: Option<(usize, usize)>,
    bytes: usize,
}

/// As long as it lives, the pool does not grow.
pub struct GrowthPause<'a>(&'a Pool);

impl HeapPool {
    /// Makes the heaps: as large as `planned_bytes`, the sum of [`HeapPool::room`] of what will be
    /// carved, or as the settings say.
    ///
    /// # Errors
    /// [`HeapError`] naming the allocator or the setting, where the plan does not fit.
    pub fn open(source: HeapSource, planned_bytes: usize) -> Result<Self, HeapError> {
        let settings = source.settings.clone();
        let steps = AtomicUsize::new(0);
        let pool = Self(Arc::new(Pool { source, steps, state: Mutex::default() }));
        if !settings.enabled {
            return Ok(pool);
        }
        let (heap_bytes, heaps) = match settings.heap_bytes {
            None => (planned_bytes, u32::from(planned_bytes > 0)),
            Some(bytes) => (bytes, settings.heaps),
        };
        let mut state = pool.0.state();
        for _ in 0..heaps {
            pool.0.add_heap(&mut state, heap_bytes)?;
        }
        drop(state);
        let warm = settings.warm_up_bytes.iter().map(|&bytes| pool.carve("warm-up", bytes));
        let warm = warm.collect::<Result<Vec<_>, _>>().map_err(|HeapError(text)| {
            HeapError(format!("{text}; or lower heap_pool.warmup_sizes"))
        });
        // All at once, so that they are different parts of the heap; zeroing touches them.
        for mut block in warm? {
            block.touch();
        }
        Ok(pool)
    }

    /// What a buffer of `bytes` takes of a heap.
    pub const fn room(bytes: usize) -> usize {
        bytes.next_multiple_of(GRAIN)
    }

    pub fn kind(&self) -> MemoryKind {
        self.0.source.allocator.kind()
    }

    pub fn source(&self) -> &HeapSource {
        &self.0.source
    }

    /// A buffer for `what`; of a host kind it is all zeros.
    ///
    /// # Errors
    /// [`HeapError`] where no heap has room and the pool cannot grow.
    pub fn carve(&self, what: &str, bytes: usize) -> Result<HeapBlock, HeapError> {
        let pool = &self.0;
        let mut block = if bytes == 0 {
            let memory = HeapMemory { address: GRAIN, bytes: 0, is_zeroed: true };
            HeapBlock { pool: Arc::clone(pool), memory, place: None, bytes: 0 }
        } else if pool.source.settings.enabled {
            pool.take(what, bytes)?
        } else {
            pool.take_alone(what, bytes)?
        };
        if self.kind().is_host() && !block.memory.is_zeroed {
            // SAFETY: the block is part of a heap of a host kind, and nobody else has it yet.
            unsafe { heap_memory::zero(block.memory.address, bytes) };
            block.memory.is_zeroed = true;
        }
        Ok(block)
    }

    /// Taken by whoever runs a step: the pool does not grow until it is dropped.
    pub fn pause_growth(&self) -> GrowthPause<'_> {
        self.0.steps.fetch_add(1, Ordering::AcqRel);
        GrowthPause(&self.0)
    }

    pub fn statistics(&self) -> HeapStatistics {
        self.0.state().statistics(&self.0.source.settings)
    }
}

impl Drop for GrowthPause<'_> {
    fn drop(&mut self) {
        self.0.steps.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for HeapPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "heap pool of {:?}", self.0.source.allocator)
    }
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever panicked did so before it changed anything.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_heap(&self, state: &mut State, bytes: usize) -> Result<(), HeapError> {
        let allocator = self.source.allocator.as_ref();
        let memory =
            heap_memory::allocate_checked(allocator, bytes.max(GRAIN)).map_err(HeapError)?;
        state.counts.allocations_total += 1;
        state.counts.reserved_bytes += memory.bytes as u64;
        // Only what was asked for is counted on: a heap's slack is the allocator's business.
        state.heaps.push(Heap { memory, spans: FreeSpans::new(bytes) });
        Ok(())
    }

    fn take(self: &Arc<Self>, what: &str, bytes: usize) -> Result<HeapBlock, HeapError> {
        let room = bytes.checked_next_multiple_of(GRAIN);
        let room = room.ok_or_else(|| HeapError(format!("{bytes} bytes of {what} are no size")))?;
        let mut state = self.state();
        let taken = match state.take(room) {
            Some(taken) => taken,
            None => {
                self.grow(&mut state, what, room)?;
                state.take(room).expect("invariant: a heap was made for it")
            }
        };
        let (heap, offset, is_untouched) = taken;
        state.count_carved(bytes, &self.source.settings);
        let HeapMemory { address, is_zeroed, .. } = state.heaps[heap].memory;
        let memory = HeapMemory {
            address: address + offset,
            bytes: room,
            is_zeroed: is_zeroed && is_untouched,
        };
        Ok(HeapBlock { pool: Arc::clone(self), memory, place: Some((heap, offset)), bytes })
    }

    fn grow(&self, state: &mut State, what: &str, room: usize) -> Result<(), HeapError> {
        let settings = &self.source.settings;
        if settings.may_grow && self.steps.load(Ordering::Acquire) == 0 {
            return self.add_heap(state, room.max(settings.heap_bytes.unwrap_or(0)));
        }
        state.counts.exhaustions_total += 1;
        let counts = state.statistics(settings);
        let advice = match settings.heap_bytes {
            Some(_) => "raise heap_pool.heap_size_mb (or leave it out) or allow growth",
            None => "allow growth (heap_pool.allow_growth)",
        };
        let heaps = if counts.heaps == 1 { "heap" } else { "heaps" };
        let error = HeapError(format!(
            "no room for {room} bytes of {what}: {} {heaps} of {} bytes in all are used up to {} \
             bytes, and the largest free piece has {}; {advice}",
            counts.heaps, counts.reserved_bytes, counts.used_bytes, counts.largest_free_bytes
        ));
        if settings.logs_exhaustion {
            tracing::warn!(allocator = self.source.allocator.name(), %error, "a heap is exhausted");
        }
        Err(error)
    }

    fn take_alone(self: &Arc<Self>, what: &str, bytes: usize) -> Result<HeapBlock, HeapError> {
        let memory = heap_memory::allocate_checked(self.source.allocator.as_ref(), bytes);
        let mut state = self.state();
        let memory = memory.map_err(|error| {
            state.counts.exhaustions_total += 1;
            HeapError(format!("no memory for {what}: {error}"))
        })?;
        state.counts.allocations_total += 1;
        state.direct_bytes += memory.bytes as u64;
        state.count_carved(bytes, &self.source.settings);
        drop(state);
        Ok(HeapBlock { pool: Arc::clone(self), memory, place: None, bytes })
    }

    fn give_back(&self, block: &HeapBlock) {
        if block.bytes == 0 {
            return;
        }
        let mut state = self.state();
        state.count_freed(block.bytes, &self.source.settings);
        match block.place {
            Some((heap, offset)) => state.heaps[heap].spans.give_back(offset, block.memory.bytes),
            None => {
                state.direct_bytes -= block.memory.bytes as u64;
                drop(state);
                self.source.allocator.free(block.memory);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Each block holds the pool, so all have come back.
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for heap in state.heaps.drain(..) {
            self.source.allocator.free(heap.memory);
        }
    }
}

impl State {
    /// Heap, offset, and whether the bytes were never given out before.
    fn take(&mut self, room: usize) -> Option<(usize, usize, bool)> {
        self.heaps.iter_mut().enumerate().find_map(|(index, heap)| {
            let (offset, is_untouched) = heap.spans.take(room)?;
            Some((index, offset, is_untouched))
        })
    }

    fn count_carved(&mut self, bytes: usize, settings: &HeapSettings) {
        let counts = &mut self.counts;
        counts.carved_total += 1;
        counts.used_bytes += bytes as u64;
        counts.peak_used_bytes = counts.peak_used_bytes.max(counts.used_bytes);
        if settings.tracks_classes {
            self.used_by_class.resize(CLASSES, (0, 0));
            let class = &mut self.used_by_class[size_class(bytes)];
            *class = (class.0 + 1, class.1 + bytes as u64);
        }
    }

    fn count_freed(&mut self, bytes: usize, settings: &HeapSettings) {
        self.counts.freed_total += 1;
        self.counts.used_bytes -= bytes as u64;
        if settings.tracks_classes {
            let class = &mut self.used_by_class[size_class(bytes)];
            *class = (class.0 - 1, class.1 - bytes as u64);
        }
    }

    fn statistics(&self, settings: &HeapSettings) -> HeapStatistics {
        let mut counts = self.counts.clone();
        counts.heaps = self.heaps.len() as u32;
        counts.reserved_bytes += self.direct_bytes;
        let largest = self.heaps.iter().map(|heap| heap.spans.largest()).max();
        counts.largest_free_bytes = largest.unwrap_or(0) as u64;
        let mut classes = vec![ClassStatistics::default(); CLASSES];
        for (class, &(blocks, bytes)) in classes.iter_mut().zip(&self.used_by_class) {
            (class.used_blocks, class.used_bytes) = (blocks, bytes);
        }
        for heap in &self.heaps {
            heap.spans.count(&mut |class, bytes| {
                counts.free_bytes += bytes as u64;
                classes[class].free_spans += 1;
                classes[class].free_bytes += bytes as u64;
            });
        }
        if settings.tracks_classes {
            for (class, bytes) in classes.iter_mut().zip(0..) {
                class.bytes = 1 << bytes;
            }
            classes.retain(|class| class.used_blocks + class.free_spans > 0);
            counts.classes = classes;
        }
        counts
    }
}

impl HeapBlock {
    /// Of the first byte; on a device without addresses, the heap's handle plus the offset.
    pub fn address(&self) -> usize {
        self.memory.address
    }

    /// Heap (counted in the order they were made) and offset in it; `None` where the block is an
    /// allocation of its own.
    pub fn place(&self) -> Option<(usize, usize)> {
        self.place
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether it starts as zeros; always so for host kinds.
    pub fn is_zeroed(&self) -> bool {
        self.memory.is_zeroed
    }

    /// # Panics
    /// When the process cannot read this kind of memory.
    pub fn bytes(&self) -> &[u8] {
        self.assert_host();
        // SAFETY: part of a heap of a host kind, zeroed when it was carved, this block's alone:
        // whoever writes through the address borrows the block for as long.
        unsafe { heap_memory::bytes(self.memory.address, self.bytes) }
    }

    /// # Panics
    /// When the process cannot write this kind of memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.assert_host();
        // SAFETY: as above, and `&mut self` means that there is no other slice.
        unsafe { heap_memory::bytes_mut(self.memory.address, self.bytes) }
    }

    fn assert_host(&self) {
        let kind = self.pool.source.allocator.kind();
        assert!(kind.is_host(), "{} memory is not the process's to touch", kind.name());
    }

    /// Makes every page of it resident, where that is the process's business.
    fn touch(&mut self) {
        if self.pool.source.allocator.kind().is_host() {
            self.bytes_mut().fill(0);
        }
    }
}

impl Drop for HeapBlock {
    fn drop(&mut self) {
        Arc::clone(&self.pool).give_back(self);
    }
}

impl fmt::Debug for HeapBlock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes at {:?}", self.bytes, self.place)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::SystemAllocator;

    fn pool(settings: HeapSettings, planned_bytes: usize) -> HeapPool {
        let source = HeapSource { settings, allocator: Arc::new(SystemAllocator) };
        HeapPool::open(source, planned_bytes).unwrap()
    }

    #[test]
    fn buffers_come_from_heaps_made_at_load_and_go_back() {
        let pool = pool(HeapSettings::default(), 3 * HeapPool::room(1000));
        let mut first = pool.carve("first", 1000).unwrap();
        first.bytes_mut().fill(7);
        let second = pool.carve("second", 1000).unwrap();
        assert_eq!(second.address() - first.address(), 1024);
        let counts = pool.statistics();
        assert_eq!((counts.heaps, counts.allocations_total, counts.carved_total), (1, 1, 2));
        assert_eq!(
            (counts.used_bytes, counts.reserved_bytes, counts.free_bytes),
            (2000, 3072, 1024)
        );
        let class = |bytes| counts.classes.iter().find(|class| class.bytes == bytes).copied();
        assert_eq!(class(512).unwrap().used_blocks, 2);
        assert_eq!(class(1024).unwrap().free_spans, 1);
        drop(first);
        let counts = pool.statistics();
        assert!((counts.fragmentation() - 0.5).abs() < 1e-9, "two pieces of 1024");
        // What was used is zeroed again.
        assert_eq!(pool.carve("again", 1024).unwrap().bytes(), [0; 1024]);
        drop(second);
        let counts = pool.statistics();
        assert_eq!((counts.used_bytes, counts.largest_free_bytes), (0, 3072));
        assert_eq!((counts.peak_used_bytes, counts.fragmentation()), (2024, 0.0));
        assert_eq!((counts.carved_total, counts.freed_total, counts.allocations_total), (3, 3, 1));
    }

    #[test]
    fn exhaustion_refuses_one_request() {
        let pool = pool(HeapSettings { heap_bytes: Some(4096), heaps: 2, ..Default::default() }, 9);
        let held: Vec<_> = (0..2).map(|_| pool.carve("half", 4096).unwrap()).collect();
        let error = pool.carve("more", 1).unwrap_err().0;
        assert!(error.contains("no room for 256 bytes of more: 2 heaps of 8192 bytes"), "{error}");
        assert!(error.contains("heap_pool.heap_size_mb"), "{error}");
        assert_eq!(pool.statistics().exhaustions_total, 1);
        drop(held);
        assert!(pool.carve("more", 4096).is_ok());
        assert!(pool.carve("too large for a heap", 4097).is_err());
        assert!(pool.carve("nothing", 0).unwrap().is_empty());
        let error = pool.carve("too much to round up", usize::MAX).unwrap_err().0;
        assert!(error.contains("are no size"), "{error}");
    }

    #[test]
    fn what_cannot_be_warmed_up_is_refused_with_the_setting_to_lower() {
        let settings = HeapSettings { warm_up_bytes: vec![8192], ..HeapSettings::default() };
        let source = HeapSource { settings, allocator: Arc::new(SystemAllocator) };
        let error = HeapPool::open(source, 4096).unwrap_err().0;
        assert!(error.starts_with("no room for 8192 bytes of warm-up: 1 heap of 4096"), "{error}");
        assert!(error.ends_with("heap_pool.allow_growth); or lower heap_pool.warmup_sizes"));
    }

    #[test]
    fn pools_grow_between_steps_and_only_if_allowed() {
        let settings = HeapSettings {
            heap_bytes: Some(4096),
            may_grow: true,
            warm_up_bytes: vec![1024, 2048],
            ..HeapSettings::default()
        };
        let pool = pool(settings, 0);
        let held = pool.carve("first", 4096).unwrap();
        assert_eq!(held.bytes(), [0; 4096]);
        let step = pool.pause_growth();
        assert!(pool.carve("second", 10_000).is_err());
        drop(step);
        assert_eq!(pool.carve("second", 10_000).unwrap().len(), 10_000);
        let counts = pool.statistics();
        assert_eq!((counts.heaps, counts.allocations_total, counts.exhaustions_total), (2, 2, 1));
        assert_eq!(counts.reserved_bytes, 4096 + HeapPool::room(10_000) as u64);
    }

    #[test]
    fn switched_off_each_buffer_is_an_allocation() {
        let pool = pool(HeapSettings { enabled: false, ..Default::default() }, 1 << 20);
        let mut first = pool.carve("first", 1000).unwrap();
        first.bytes_mut()[999] = 1;
        let second = pool.carve("second", 5).unwrap();
        let counts = pool.statistics();
        assert_eq!((counts.heaps, counts.allocations_total, counts.used_bytes), (0, 2, 1005));
        drop((first, second));
        let counts = pool.statistics();
        assert_eq!((counts.reserved_bytes, counts.used_bytes, counts.freed_total), (0, 0, 2));
    }
}
