//! An allocator of Pelton's heaps in Rust: the system's, counted.
//!
//! `rustc --edition 2024 --crate-type cdylib -O -o libcounting.so docs/allocator/counting.rs`

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

#[repr(C)]
pub struct Memory {
    address: *mut c_void,
    bytes: u64,
    flags: u32,
    reserved: u32,
}

#[repr(C)]
pub struct Table {
    abi_version: u32,
    table_bytes: u32,
    name: *const c_char,
    memory_kind: u32,
    reserved: u32,
    context: *mut c_void,
    allocate: unsafe extern "C" fn(*mut c_void, u64, u64, *mut Memory) -> c_int,
    free: unsafe extern "C" fn(*mut c_void, *const Memory),
}

// SAFETY: constants that nobody writes.
unsafe impl Sync for Table {}

static BYTES_GIVEN: AtomicU64 = AtomicU64::new(0);

/// A page: what Pelton asks for, and what `take_back` is not told.
const ALIGNMENT: usize = 4096;

unsafe extern "C" fn give(
    _context: *mut c_void,
    bytes: u64,
    alignment: u64,
    memory: *mut Memory,
) -> c_int {
    let Ok(layout) = Layout::from_size_align(bytes as usize, ALIGNMENT) else { return 1 };
    if bytes == 0 || alignment > ALIGNMENT as u64 {
        return 2;
    }
    // SAFETY: the layout has a size above 0.
    let address = unsafe { alloc(layout) };
    if address.is_null() {
        return 3;
    }
    BYTES_GIVEN.fetch_add(bytes, Ordering::Relaxed);
    let given = Memory { address: address.cast(), bytes, flags: 0, reserved: 0 };
    // SAFETY: Pelton gives a place for the answer.
    unsafe { memory.write(given) };
    0
}

unsafe extern "C" fn take_back(_context: *mut c_void, memory: *const Memory) {
    // SAFETY: Pelton says what it gives back: what `give` gave.
    let (address, bytes) = unsafe { ((*memory).address, (*memory).bytes) };
    let layout = Layout::from_size_align(bytes as usize, ALIGNMENT);
    let layout = layout.expect("invariant: it was one before");
    // SAFETY: as above, once.
    unsafe { dealloc(address.cast(), layout) };
    BYTES_GIVEN.fetch_sub(bytes, Ordering::Relaxed);
}

/// For whoever wants to know; Pelton does not ask.
#[unsafe(no_mangle)]
pub extern "C" fn counting_bytes_given() -> u64 {
    BYTES_GIVEN.load(Ordering::Relaxed)
}

#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static pelton_allocator_v1: Table = Table {
    abi_version: 1,
    table_bytes: size_of::<Table>() as u32,
    name: c"counting (Rust)".as_ptr(),
    memory_kind: 0,
    reserved: 0,
    context: std::ptr::null_mut(),
    allocate: give,
    free: take_back,
};
