//! Can the heaps come from somewhere else? From a shared library that exports a table of
//! functions, `pelton_allocator_v1`, as `include/pelton_allocator.h` describes it.
//!
//! A library is code of whoever configured it, and runs with all rights of this process. What can
//! be checked of it is checked when it is opened: that it is a library, has the table, of this
//! version and size, with a name, a known kind of memory and both functions, and that it can give a
//! page and take it back. What it gives later is checked by the pool that asked. Reading order:
//! `table` (the layout), `library`.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "calls functions of a library that the operator named")]
mod library;
mod table;

pub use library::{LibraryError, open};
pub use table::{ABI_VERSION, MEMORY_ZEROED, Memory, Table};
