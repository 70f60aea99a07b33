//! How is the table laid out? As in `include/pelton_allocator.h`; a test compiles both.

use std::ffi::{c_char, c_int, c_void};

/// The version that this program speaks.
pub const ABI_VERSION: u32 = 1;

/// In [`Memory::flags`]: all bytes are 0.
pub const MEMORY_ZEROED: u32 = 1;

/// `struct pelton_memory`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Memory {
    pub address: *mut c_void,
    pub bytes: u64,
    pub flags: u32,
    pub reserved: u32,
}

/// `struct pelton_allocator_table`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Table {
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// Bytes of this table.
    pub table_bytes: u32,
    /// UTF-8, ends with 0.
    pub name: *const c_char,
    /// 0 host, 1 pinned, 2 unified.
    pub memory_kind: u32,
    pub reserved: u32,
    /// Given to both functions.
    pub context: *mut c_void,
    /// 0 when `memory` was filled; anything else when there is no such memory.
    pub allocate: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            bytes: u64,
            alignment: u64,
            memory: *mut Memory,
        ) -> c_int,
    >,
    pub free: Option<unsafe extern "C" fn(context: *mut c_void, memory: *const Memory)>,
}

const _: () = assert!(size_of::<Memory>() == 24 && size_of::<Table>() == 48, "as in the header");
