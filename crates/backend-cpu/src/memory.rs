//! Where do packed weights and activations live? In buffers of a heap pool, whose heaps are
//! zeroed memory on large pages.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use device::{
    HEAP_ALIGNMENT, HeapAllocator, HeapBlock, HeapError, HeapMemory, HeapPool, HeapSettings,
    HeapSource, MemoryKind,
};

use crate::Team;

/// The granularity of large pages on x86-64 and most ARM servers.
const LARGE_PAGE_BYTES: usize = 2 << 20;
/// One cache line, one AVX-512 register.
const ALIGNMENT: usize = 64;

/// The system's pages as heaps: on large pages where a heap is that big, and taken by the machine
/// only as they are touched.
#[derive(Clone, Copy, Debug, Default)]
pub struct PageAllocator;

#[cfg(unix)]
impl PageAllocator {
    /// What is mapped for a heap of `bytes`.
    fn mapped_bytes(bytes: usize) -> usize {
        bytes.next_multiple_of(HEAP_ALIGNMENT)
    }

    /// `bytes` whole pages from a multiple of `alignment` on.
    fn map(bytes: usize, alignment: usize) -> std::io::Result<*mut u8> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
        let slack = alignment - HEAP_ALIGNMENT;
        let whole = bytes.checked_add(slack).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new private mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), whole, protection, flags) }?;
        let head = address.cast::<u8>().align_offset(alignment);
        // SAFETY: `head` <= `slack`, so the start and the end lie inside the mapping.
        let (start, end) = unsafe {
            let start = address.cast::<u8>().add(head);
            (start, start.add(bytes))
        };
        // What is around the aligned part goes back. Where it stays, only address space is lost.
        for (from, length) in [(address, head), (end.cast(), slack - head)] {
            if length > 0 {
                // SAFETY: whole pages of the mapping made above that nobody uses.
                let _ = unsafe { munmap(from, length) };
            }
        }
        Ok(start)
    }
}

// SAFETY: a heap is a private mapping of its own, zeroed by the kernel, until it is unmapped.
#[cfg(unix)]
unsafe impl HeapAllocator for PageAllocator {
    fn name(&self) -> &str {
        "pages"
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::Host
    }

    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String> {
        let is_large = bytes >= LARGE_PAGE_BYTES;
        let alignment = if is_large { LARGE_PAGE_BYTES } else { HEAP_ALIGNMENT };
        let mapped = Self::mapped_bytes(bytes);
        let start = Self::map(mapped, alignment).map_err(|error| error.to_string())?;
        #[cfg(target_os = "linux")]
        if is_large {
            // SAFETY: the range is the mapping made above. Failure only costs speed.
            let _ = unsafe {
                rustix::mm::madvise(start.cast(), mapped, rustix::mm::Advice::LinuxHugepage)
            };
        }
        Ok(HeapMemory { address: start.expose_provenance(), bytes, is_zeroed: true })
    }

    fn free(&self, memory: HeapMemory) {
        let start = std::ptr::with_exposed_provenance_mut(memory.address);
        // SAFETY: mapped by `allocate`, whose caller gives it back once, when nobody uses it.
        let _ = unsafe { rustix::mm::munmap(start, Self::mapped_bytes(memory.bytes)) };
    }
}

// SAFETY: the allocator asked keeps the same promises.
#[cfg(not(unix))]
unsafe impl HeapAllocator for PageAllocator {
    fn name(&self) -> &str {
        "pages"
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::Host
    }

    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String> {
        device::SystemAllocator.allocate(bytes)
    }

    fn free(&self, memory: HeapMemory) {
        device::SystemAllocator.free(memory);
    }
}

/// A buffer of a heap pool whose bytes a team shares: zeroed at first, aligned to 64 bytes.
#[derive(Debug)]
pub struct LargeBuffer {
    block: HeapBlock,
}

impl LargeBuffer {
    /// `bytes` zeroed bytes of `pool`.
    ///
    /// # Errors
    /// When the pool has no room for `what`.
    pub fn carve(pool: &HeapPool, what: &str, bytes: usize) -> Result<Self, HeapError> {
        Ok(Self { block: pool.carve(what, bytes)? })
    }

    /// `bytes` zeroed bytes of the system, outside of every pool: for measuring and tests.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn zeroed(bytes: usize) -> std::io::Result<Self> {
        let pool = alone().map_err(std::io::Error::other)?;
        Self::carve(&pool, "a buffer", bytes).map_err(std::io::Error::other)
    }

    pub fn len(&self) -> usize {
        self.block.len()
    }

    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// The first byte. Reads and writes through it are the caller's to order.
    pub fn pointer(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.block.address())
    }

    /// All of it, for whoever has it alone.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // Views made from the pointer borrow the buffer, so none is in use.
        self.block.bytes_mut()
    }
}

/// Values in f32 that are written once, at load.
#[derive(Debug)]
pub struct FloatTable {
    buffer: LargeBuffer,
    used: usize,
}

impl FloatTable {
    /// Room for `count` values.
    ///
    /// # Errors
    /// When the pool has no room for `what`.
    pub fn carve(pool: &HeapPool, what: &str, count: usize) -> Result<Self, HeapError> {
        Ok(Self { buffer: LargeBuffer::carve(pool, what, 4 * count)?, used: 0 })
    }

    /// Lets `fill` write the next `count` values; says where they are.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn add(&mut self, count: usize, fill: impl FnOnce(&mut [f32])) -> Range<usize> {
        let range = self.used..self.used + count;
        assert!(4 * range.end <= self.buffer.len(), "the table was made for all of its values");
        // SAFETY: inside the buffer, which starts zeroed and at a multiple of 64; `&mut self`.
        fill(unsafe {
            let start = self.buffer.pointer().cast::<f32>().add(range.start);
            std::slice::from_raw_parts_mut(start, count)
        });
        self.used = range.end;
        range
    }

    /// Values that were added.
    ///
    /// # Panics
    /// If they were not.
    pub fn get(&self, range: Range<usize>) -> &[f32] {
        assert!(range.start <= range.end && range.end <= self.used, "values of this table");
        // SAFETY: inside the buffer and initialized; written through `&mut self` only.
        unsafe {
            let start = self.buffer.pointer().cast::<f32>().add(range.start);
            std::slice::from_raw_parts(start, range.len())
        }
    }
}

/// A pool of which every buffer is a mapping of its own.
fn alone() -> Result<HeapPool, HeapError> {
    let settings = HeapSettings { enabled: false, ..HeapSettings::default() };
    HeapPool::open(HeapSource { settings, allocator: Arc::new(PageAllocator) }, 0)
}

/// One large buffer handed out in pieces, so that hundreds of matrices share large pages.
pub struct Arena {
    buffer: Arc<LargeBuffer>,
    used: AtomicUsize,
}

/// A piece of an arena that belongs to one owner.
pub struct ArenaPiece {
    buffer: Arc<LargeBuffer>,
    offset: usize,
    bytes: usize,
}

impl Arena {
    /// # Errors
    /// When the pool has no room for `what`.
    pub fn carve(pool: &HeapPool, what: &str, bytes: usize) -> Result<Self, HeapError> {
        let buffer = Arc::new(LargeBuffer::carve(pool, what, bytes)?);
        Ok(Self { buffer, used: AtomicUsize::new(0) })
    }

    /// An arena of the system's memory, outside of every pool: for tests.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        Ok(Self { buffer: Arc::new(LargeBuffer::zeroed(bytes)?), used: AtomicUsize::new(0) })
    }

    /// The space a piece takes, its alignment included: sum these to size an arena.
    pub const fn piece_bytes(bytes: usize) -> usize {
        bytes.next_multiple_of(ALIGNMENT)
    }

    /// The next `bytes` bytes, aligned to 64, or `None` when the arena is used up.
    pub fn take(&self, bytes: usize) -> Option<ArenaPiece> {
        let step = Self::piece_bytes(bytes);
        let fits = |used: usize| {
            used.checked_add(step)
                .filter(|end| *end <= self.buffer.len().next_multiple_of(ALIGNMENT))
        };
        let claimed = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        let offset = claimed.ok()?;
        Some(ArenaPiece { buffer: Arc::clone(&self.buffer), offset, bytes })
    }

    /// Fills the whole arena in chunks of `chunk_bytes` (the last may be shorter), each by one
    /// member of `team`, before anything is taken from it.
    ///
    /// # Panics
    /// If a piece was taken already, or `chunk_bytes` is 0.
    pub fn fill(
        &mut self,
        chunk_bytes: usize,
        team: &Team,
        fill: &(dyn Fn(usize, &mut [u8]) + Sync),
    ) {
        let buffer =
            Arc::get_mut(&mut self.buffer).expect("invariant: filled before a piece is taken");
        let (bytes, buffer) = (buffer.len(), &*buffer);
        team.run(&|worker| {
            worker.for_each(bytes.div_ceil(chunk_bytes), |index| {
                let start = index * chunk_bytes;
                let length = chunk_bytes.min(bytes - start);
                // SAFETY: inside the buffer; nobody else has it (`get_mut`), and each index is
                // given to one member only, so chunks are disjoint.
                let chunk =
                    unsafe { std::slice::from_raw_parts_mut(buffer.pointer().add(start), length) };
                fill(index, chunk);
            });
        });
    }

    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl ArenaPiece {
    /// A piece with a buffer of its own.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn alone(bytes: usize) -> std::io::Result<Self> {
        Ok(Self { buffer: Arc::new(LargeBuffer::zeroed(bytes)?), offset: 0, bytes })
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// `bytes` of it from `start` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn part(&self, start: usize, bytes: usize) -> Self {
        assert!(start + bytes <= self.bytes, "bytes {start}+{bytes} of {}", self.bytes);
        Self { buffer: Arc::clone(&self.buffer), offset: self.offset + start, bytes }
    }

    /// The first byte. Reads and writes through it are the caller's to order.
    pub fn pointer(&self) -> *mut u8 {
        // SAFETY: `offset` was inside the buffer when the piece was taken.
        unsafe { self.buffer.pointer().add(self.offset) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn pieces_are_aligned_disjoint_and_bounded() {
        let arena = Arena::new(3 << 20).unwrap();
        let first = arena.take(100).unwrap();
        let second = arena.take(1 << 20).unwrap();
        assert_eq!(first.pointer() as usize % LARGE_PAGE_BYTES, 0);
        assert_eq!(second.pointer() as usize - first.pointer() as usize, 128);
        assert!(arena.take(2 << 20).is_none());
        assert!(arena.take((2 << 20) - 128).is_some());
        assert_eq!(arena.used_bytes(), 3 << 20);
        assert!(ArenaPiece::alone(0).unwrap().is_empty());
    }
}
