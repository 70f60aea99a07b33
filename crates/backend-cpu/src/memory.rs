//! Where do packed weights and activations live? Zeroed, page-aligned memory on large pages.

use crate::Team;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The granularity of large pages on x86-64 and most ARM servers.
const LARGE_PAGE_BYTES: usize = 2 << 20;
/// One cache line, one AVX-512 register.
const ALIGNMENT: usize = 64;

/// A zeroed allocation, aligned to 64 bytes at least and to a large page where it is that big.
pub struct LargeBuffer {
    start: NonNull<u8>,
    bytes: usize,
    release: Release,
}

enum Release {
    #[cfg(unix)]
    Unmap {
        address: *mut core::ffi::c_void,
        bytes: usize,
    },
    #[cfg(not(unix))]
    Dealloc(std::alloc::Layout),
    Nothing,
}

// SAFETY: the buffer is plain bytes; every access goes through references or views whose users
// answer for races.
unsafe impl Send for LargeBuffer {}
// SAFETY: as above; `&LargeBuffer` gives no access to the bytes except through unsafe views.
unsafe impl Sync for LargeBuffer {}

impl LargeBuffer {
    /// `bytes` zeroed bytes.
    ///
    /// # Errors
    /// When the system has no such memory.
    #[cfg(unix)]
    pub fn zeroed(bytes: usize) -> std::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        if bytes == 0 {
            return Ok(Self::empty());
        }
        // One large page more, so that the start can be moved to a large-page boundary.
        let slack = if bytes >= LARGE_PAGE_BYTES { LARGE_PAGE_BYTES } else { 0 };
        let mapped = bytes.next_multiple_of(4096) + slack;
        // SAFETY: a new private mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let shift = if slack == 0 { 0 } else { address.cast::<u8>().align_offset(slack) };
        // SAFETY: `shift` < `slack`, so the result lies inside the mapping.
        let start = unsafe { address.cast::<u8>().add(shift) };
        #[cfg(target_os = "linux")]
        if slack != 0 {
            // SAFETY: the range is inside the mapping made above. Failure only costs speed.
            let _ = unsafe {
                rustix::mm::madvise(start.cast(), bytes, rustix::mm::Advice::LinuxHugepage)
            };
        }
        let start = NonNull::new(start).expect("invariant: a mapping is never at address 0");
        Ok(Self { start, bytes, release: Release::Unmap { address, bytes: mapped } })
    }

    /// `bytes` zeroed bytes.
    ///
    /// # Errors
    /// When the system has no such memory.
    #[cfg(not(unix))]
    pub fn zeroed(bytes: usize) -> std::io::Result<Self> {
        if bytes == 0 {
            return Ok(Self::empty());
        }
        let layout = std::alloc::Layout::from_size_align(bytes, 4096)
            .map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        // SAFETY: the layout has a size above 0.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes, release: Release::Dealloc(layout) })
    }

    fn empty() -> Self {
        let start = NonNull::<Line>::dangling().cast();
        Self { start, bytes: 0, release: Release::Nothing }
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The first byte. Reads and writes through it are the caller's to order.
    pub fn pointer(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// All of it, for whoever has it alone.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` has `bytes` initialized bytes (zeroed when allocated), and `&mut self`
        // means that no view made from the pointer is in use: views borrow the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

/// Gives an empty buffer the alignment of the others.
#[repr(align(64))]
struct Line;

impl Drop for LargeBuffer {
    fn drop(&mut self) {
        match self.release {
            #[cfg(unix)]
            Release::Unmap { address, bytes } => {
                // SAFETY: the mapping was made by `zeroed` and nothing borrowed outlives `self`.
                let _ = unsafe { rustix::mm::munmap(address, bytes) };
            }
            #[cfg(not(unix))]
            Release::Dealloc(layout) => {
                // SAFETY: allocated by `zeroed` with this layout.
                unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) };
            }
            Release::Nothing => {}
        }
    }
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
