//! Where do heaps come from, and who may touch a piece of one? The one place of this crate that
//! turns addresses into bytes.
//!
//! An allocator gives whole heaps, rarely and large; [`crate::HeapPool`] carves them. What an
//! allocator gives is checked here before anybody uses it: a heap that is missing, misaligned or
//! too small is an error with the allocator's name.

use std::alloc::Layout;
use std::fmt;
use std::sync::Arc;

/// What a heap starts at: a page, and so every register and cache line.
pub const HEAP_ALIGNMENT: usize = 4096;

/// Who can read and write a heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Ordinary memory of the process.
    Host,
    /// Memory of the process that a device copies from and to by itself.
    Pinned,
    /// Memory that the process and the device use at the same addresses.
    Unified,
    /// Memory of a device; addresses mean nothing to the process.
    Device,
}

impl MemoryKind {
    /// Whether the process may read and write it.
    pub fn is_host(self) -> bool {
        match self {
            Self::Host | Self::Pinned | Self::Unified => true,
            Self::Device => false,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Pinned => "pinned",
            Self::Unified => "unified",
            Self::Device => "device",
        }
    }
}

/// Memory as an allocator gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapMemory {
    /// Of the first byte; on a device without addresses, a handle.
    pub address: usize,
    /// At least as many as were asked for.
    pub bytes: usize,
    /// All bytes are 0, and need not be written to be so.
    pub is_zeroed: bool,
}

/// Where heaps come from. Asked when a model is loaded and when a pool grows, never in a step.
///
/// # Safety
/// What [`HeapAllocator::allocate`] gives belongs to the caller alone until it is freed: `bytes`
/// bytes from `address` on, readable and writable by the process where the kind says so.
/// `is_zeroed` is true only if they are.
pub unsafe trait HeapAllocator: Send + Sync {
    /// As errors and statistics call it.
    fn name(&self) -> &str;

    fn kind(&self) -> MemoryKind;

    /// At least `bytes` bytes (not 0) at a multiple of [`HEAP_ALIGNMENT`].
    ///
    /// # Errors
    /// A text that says what is missing.
    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String>;

    /// Takes back what [`HeapAllocator::allocate`] gave, once.
    fn free(&self, memory: HeapMemory);
}

/// An allocator that pools share.
pub type SharedAllocator = Arc<dyn HeapAllocator>;

impl fmt::Debug for dyn HeapAllocator {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "allocator {} of {} memory", self.name(), self.kind().name())
    }
}

/// The allocator of the Rust runtime: for hosts without anything better, and for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemAllocator;

impl SystemAllocator {
    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, HEAP_ALIGNMENT).ok()
    }
}

// SAFETY: what `alloc_zeroed` gives is the caller's alone, has the layout's size and alignment and
// is all zeros.
unsafe impl HeapAllocator for SystemAllocator {
    fn name(&self) -> &str {
        "system"
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::Host
    }

    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String> {
        assert!(bytes > 0, "a heap has bytes");
        let layout = Self::layout(bytes).ok_or("more than an address space")?;
        // SAFETY: the layout has a size above 0.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        if start.is_null() {
            return Err("the system has none".to_owned());
        }
        Ok(HeapMemory { address: start.expose_provenance(), bytes, is_zeroed: true })
    }

    fn free(&self, memory: HeapMemory) {
        let layout = Self::layout(memory.bytes).expect("invariant: it was a layout before");
        let start = std::ptr::with_exposed_provenance_mut(memory.address);
        // SAFETY: given by `allocate` with this layout, and given back once by its contract.
        unsafe { std::alloc::dealloc(start, layout) };
    }
}

/// Asks for a heap and checks what comes.
///
/// # Errors
/// A text that names the allocator and what was wrong; what it gave has been given back.
pub fn allocate_checked(allocator: &dyn HeapAllocator, bytes: usize) -> Result<HeapMemory, String> {
    let name = allocator.name();
    let memory = allocator
        .allocate(bytes)
        .map_err(|text| format!("allocator `{name}` has no {bytes} bytes: {text}"))?;
    let HeapMemory { address, bytes: given, .. } = memory;
    if address == 0 {
        return Err(format!("allocator `{name}` gave no address for {bytes} bytes"));
    }
    let is_aligned = !allocator.kind().is_host() || address.is_multiple_of(HEAP_ALIGNMENT);
    let ends = address.checked_add(given).is_some();
    if is_aligned && ends && given >= bytes {
        return Ok(memory);
    }
    allocator.free(memory);
    Err(if is_aligned {
        format!("allocator `{name}` gave {given} bytes where {bytes} were asked for")
    } else {
        format!("allocator `{name}` gave address {address:#x}, no multiple of {HEAP_ALIGNMENT}")
    })
}

/// Sets `bytes` bytes of a heap of a host kind to 0.
///
/// # Safety
/// They are part of a heap that [`allocate_checked`] gave, and nobody else uses them.
pub(crate) unsafe fn zero(address: usize, bytes: usize) {
    let start: *mut u8 = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the caller's promise.
    unsafe { start.write_bytes(0, bytes) };
}

/// Bytes of a heap of a host kind.
///
/// # Safety
/// As for [`zero`], for as long as the slice lives; and they have been written before.
pub(crate) unsafe fn bytes<'a>(address: usize, bytes: usize) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), bytes) }
}

/// As [`bytes`], to write to.
///
/// # Safety
/// As for [`bytes`]; there is no other slice of them.
pub(crate) unsafe fn bytes_mut<'a>(address: usize, bytes: usize) -> &'a mut [u8] {
    let start = std::ptr::with_exposed_provenance_mut(address);
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(start, bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it was told to.
    struct Giving(Result<HeapMemory, String>);

    // SAFETY: nobody touches what it gives: every test ends in an error.
    unsafe impl HeapAllocator for Giving {
        fn name(&self) -> &str {
            "odd"
        }

        fn kind(&self) -> MemoryKind {
            MemoryKind::Host
        }

        fn allocate(&self, _bytes: usize) -> Result<HeapMemory, String> {
            self.0.clone()
        }

        fn free(&self, _memory: HeapMemory) {}
    }

    #[test]
    fn what_an_allocator_gives_is_checked() {
        let given = |address, bytes| Ok(HeapMemory { address, bytes, is_zeroed: true });
        for (memory, expected) in [
            (given(0, 8192), "allocator `odd` gave no address for 8192 bytes"),
            (given(4096, 8191), "allocator `odd` gave 8191 bytes where 8192 were asked for"),
            (given(4096, usize::MAX), "bytes where 8192 were asked for"),
            (given(4096 + 64, 8192), "gave address 0x1040, no multiple of 4096"),
            (Err("sold out".to_owned()), "allocator `odd` has no 8192 bytes: sold out"),
        ] {
            let error = allocate_checked(&Giving(memory), 8192).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
