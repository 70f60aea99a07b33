//! Opening a library, and the allocator that calls it.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::CStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// In the system's words, which name what is missing.
fn told(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

struct LibraryAllocator {
    name: String,
    kind: MemoryKind,
    table: Table,
    /// Heaps that were not given back yet: their starts and ends.
    given: Mutex<BTreeMap<usize, usize>>,
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
        // Opening a pipe would wait for its writer.
        if !path.is_file() {
            return Err("it is no regular file".to_owned());
        }
        // SAFETY: running the library's initializers is what its operator asked for.
        let library = unsafe { Library::new(&path) }.map_err(|error| {
            format!("the system does not open it as a library: {}", told(&error))
        })?;
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
        if name.is_empty() {
            return Err("its name is empty".to_owned());
        }
        if table.reserved != 0 {
            return Err(format!("the reserved word of its table is {}, not 0", table.reserved));
        }
        let kind = match table.memory_kind {
            0 => MemoryKind::Host,
            1 => MemoryKind::Pinned,
            2 => MemoryKind::Unified,
            other => return Err(format!("its memory is of the unknown kind {other}")),
        };
        let (name, given) = (name.to_owned(), Mutex::default());
        Ok(Self { name, kind, table, given, _library: library })
    }

    fn given(&self) -> MutexGuard<'_, BTreeMap<usize, usize>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails where another heap has some of these bytes; then they are not given back, for they
    /// are the other's.
    fn remember(&self, memory: &HeapMemory) -> Result<(), String> {
        let HeapMemory { address, bytes, .. } = *memory;
        if address == 0 {
            return Ok(());
        }
        let end = address.saturating_add(bytes);
        let mut given = self.given();
        let before = given.range(..end).next_back();
        if let Some((&start, &other)) = before.filter(|&(_, &other)| other > address) {
            return Err(format!(
                "it gave {address:#x} to {end:#x}, some of which it gave before and has not been \
                 given back: {start:#x} to {other:#x}"
            ));
        }
        given.insert(address, end);
        Ok(())
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
        let given = HeapMemory {
            address: memory.address.expose_provenance(),
            bytes: usize::try_from(memory.bytes).unwrap_or(usize::MAX),
            is_zeroed: memory.flags & MEMORY_ZEROED != 0,
        };
        self.remember(&given)?;
        if memory.flags & !MEMORY_ZEROED != 0 || memory.reserved != 0 {
            self.free(given);
            let (flags, reserved) = (memory.flags, memory.reserved);
            return Err(format!("it sets flags {flags:#x} and {reserved} in the reserved word"));
        }
        Ok(given)
    }

    fn free(&self, memory: HeapMemory) {
        let start = memory.address;
        let free = self.table.free.expect("invariant: checked when it was opened");
        let memory = Memory {
            address: std::ptr::with_exposed_provenance_mut(memory.address),
            bytes: memory.bytes as u64,
            flags: 0,
            reserved: 0,
        };
        self.given().remove(&start);
        // SAFETY: as above; the pool gives back once what it was given.
        unsafe { free(self.table.context, &raw const memory) };
    }
}
