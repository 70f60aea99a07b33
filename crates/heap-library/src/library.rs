//! Opening a library, and the allocator that calls it.

use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;

use device::{HEAP_ALIGNMENT, HeapAllocator, HeapMemory, MemoryKind, SharedAllocator};
use libloading::Library;

use crate::table::{ABI_VERSION, MEMORY_ZEROED, Memory, Table};

/// The symbol that a library exports: a constant [`Table`].
const SYMBOL: &str = "pelton_allocator_v1";

/// The library cannot be used; the text names its file and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the allocator {path} cannot be used: {problem}")]
pub struct LibraryError {
    pub path: String,
    pub problem: String,
}

/// Opens the library at `path` and tries it.
///
/// # Errors
/// [`LibraryError`].
pub fn open(path: &Path) -> Result<SharedAllocator, LibraryError> {
    let problem = |problem| LibraryError { path: path.display().to_string(), problem };
    let allocator = LibraryAllocator::load(path).map_err(problem)?;
    allocator.try_out().map_err(problem)?;
    Ok(Arc::new(allocator))
}

struct LibraryAllocator {
    name: String,
    kind: MemoryKind,
    table: Table,
    /// Its code is there as long as this is.
    _library: Library,
}

// SAFETY: the header demands that both functions may be called by any thread at any time; the
// table is a copy of constants.
unsafe impl Send for LibraryAllocator {}
// SAFETY: as above.
unsafe impl Sync for LibraryAllocator {}

impl LibraryAllocator {
    fn load(path: &Path) -> Result<Self, String> {
        // A name without a folder would be looked for elsewhere.
        let path = path.canonicalize().map_err(|error| error.to_string())?;
        // SAFETY: running the library's initializers is what its operator asked for.
        let library = unsafe { Library::new(&path) }
            .map_err(|error| format!("it is no library for this machine: {error}"))?;
        // SAFETY: the symbol is only read as two words until they say what it is.
        let table = unsafe { library.get::<*const Table>(SYMBOL.as_bytes()) }
            .map_err(|_| format!("it has no symbol `{SYMBOL}`"))?;
        let table: *const Table = *table;
        let head = table.cast::<u32>();
        if head.is_null() || !table.is_aligned() {
            return Err(format!("its symbol `{SYMBOL}` is no table"));
        }
        // SAFETY: a symbol has an address of the library, aligned as checked; an exported object
        // or function is longer than two words or ends in a mapped page.
        let (version, bytes) = unsafe { (head.read(), head.add(1).read()) };
        if version != ABI_VERSION {
            return Err(format!(
                "its table is of version {version}, this program has {ABI_VERSION}"
            ));
        }
        if bytes as usize != size_of::<Table>() {
            let expected = size_of::<Table>();
            return Err(format!("its table has {bytes} bytes, version 1 has {expected}"));
        }
        // SAFETY: the table says that it is of this version and as long as that.
        let table = unsafe { table.read() };
        if table.allocate.is_none() || table.free.is_none() {
            return Err("its table lacks a function".to_owned());
        }
        if table.name.is_null() {
            return Err("its table has no name".to_owned());
        }
        // SAFETY: not null; the header demands a text that ends with 0 and stays.
        let name = unsafe { CStr::from_ptr(table.name) };
        let name = name.to_str().map_err(|_| "its name is no UTF-8".to_owned())?;
        let kind = match table.memory_kind {
            0 => MemoryKind::Host,
            1 => MemoryKind::Pinned,
            2 => MemoryKind::Unified,
            other => return Err(format!("its memory is of the unknown kind {other}")),
        };
        Ok(Self { name: name.to_owned(), kind, table, _library: library })
    }

    /// Takes a page, uses it and gives it back.
    fn try_out(&self) -> Result<(), String> {
        let memory = device::allocate_checked(self, HEAP_ALIGNMENT)?;
        let start: *mut u8 = std::ptr::with_exposed_provenance_mut(memory.address);
        for at in [0, HEAP_ALIGNMENT - 1] {
            // SAFETY: inside the page that was just given, which nobody else has.
            let (before, after) = unsafe {
                let byte = start.add(at);
                let before = byte.read_volatile();
                byte.write_volatile(0x5a);
                (before, byte.read_volatile())
            };
            if after != 0x5a || (memory.is_zeroed && before != 0) {
                self.free(memory);
                let text = "its memory does not keep what is written to it, or is not the zeros \
                            that it is said to be";
                return Err(text.to_owned());
            }
        }
        self.free(memory);
        Ok(())
    }
}

// SAFETY: what the library promises by exporting the table; the pool checks what can be checked.
unsafe impl HeapAllocator for LibraryAllocator {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> MemoryKind {
        self.kind
    }

    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String> {
        let allocate = self.table.allocate.expect("invariant: checked when it was opened");
        let mut memory = Memory { address: std::ptr::null_mut(), bytes: 0, flags: 0, reserved: 0 };
        // SAFETY: the function is the table's, called as the header says; the library is open.
        let status = unsafe {
            allocate(self.table.context, bytes as u64, HEAP_ALIGNMENT as u64, &raw mut memory)
        };
        if status != 0 {
            return Err(format!("its function answers {status}"));
        }
        Ok(HeapMemory {
            address: memory.address.expose_provenance(),
            bytes: usize::try_from(memory.bytes).unwrap_or(usize::MAX),
            is_zeroed: memory.flags & MEMORY_ZEROED != 0,
        })
    }

    fn free(&self, memory: HeapMemory) {
        let free = self.table.free.expect("invariant: checked when it was opened");
        let memory = Memory {
            address: std::ptr::with_exposed_provenance_mut(memory.address),
            bytes: memory.bytes as u64,
            flags: 0,
            reserved: 0,
        };
        // SAFETY: as above; the pool gives back once what it was given.
        unsafe { free(self.table.context, &raw const memory) };
    }
}
