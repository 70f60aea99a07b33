//! How are the bytes of a file seen without copying them? The one unsafe island of this crate.
//!
//! A map is only as long-lived as its file: if another process truncates the file, touching the
//! lost pages raises SIGBUS, which no check of ours can prevent. Decision: whoever loads a model
//! copies or repacks all it needs and then drops the map, so the window is the load itself; the
//! length is checked again right after mapping and, with `check_length`, when loading is done.
//! Linux can keep others from it for as long (`hold`): who wants to write then waits, or is told
//! to come again.
//! A file rewritten in place (same length) shows its new bytes: wrong weights, never unsound,
//! because every offset was checked against the length and every reading of bytes is total.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::WeightsError;

/// The largest page of the common systems; a multiple of all others.
const PAGE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    file: File,
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps a regular file that is not empty.
    pub(crate) fn open(path: &Path) -> Result<Self, WeightsError> {
        let io = |action: &'static str| {
            move |reason| WeightsError::Io { action, path: path.to_owned(), reason }
        };
        let not_supported = |found: &str| WeightsError::NotSupported {
            path: path.to_owned(),
            found: found.to_owned(),
        };
        // Before opening: opening a named pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(io("open"))?;
        if kind.is_dir() {
            return Err(not_supported("a folder without config.json"));
        }
        if !kind.is_file() {
            return Err(not_supported("not a regular file"));
        }
        let file = File::open(path).map_err(io("open"))?;
        if file.metadata().map_err(io("read the length of"))?.len() == 0 {
            return Err(not_supported("an empty file: the download did not start"));
        }
        let map = map::read_only(&file).map_err(io("map"))?;
        let mapped = MappedFile { path: path.to_owned(), file, map };
        mapped.check_length()?;
        Ok(mapped)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps others from writing to the file and from cutting it off until this is dropped, or for
    /// as long as the system lets us (`/proc/sys/fs/lease-break-time`). False where that cannot be
    /// had: of somebody else's file, of one that is being written, on other systems.
    pub(crate) fn hold(&self) -> bool {
        map::hold(&self.file)
    }

    /// Whether somebody waits to write to a file that is held: the system soon lets them.
    pub(crate) fn is_wanted(&self) -> bool {
        map::is_wanted(&self.file)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file itself, opened once more, for whoever reads it beside the map.
    pub(crate) fn reopen(&self) -> Result<File, WeightsError> {
        self.file.try_clone().map_err(|reason| WeightsError::Io {
            action: "open",
            path: self.path.clone(),
            reason,
        })
    }

    /// Fills `to` from the file, past the map.
    pub(crate) fn read_at(&self, to: &mut [u8], offset: u64) -> Result<(), WeightsError> {
        read_exact_at(&self.file, to, offset).map_err(|reason| WeightsError::Io {
            action: "read",
            path: self.path.clone(),
            reason,
        })
    }

    /// Lets go of the pages of bytes that will not be read again soon, so that what was repacked
    /// is not in this process's memory twice.
    pub(crate) fn release(&self, range: std::ops::Range<usize>) {
        // Pages at the ends may hold neighbors, too.
        let start = range.start.next_multiple_of(PAGE_BYTES_MAX);
        let end = range.end / PAGE_BYTES_MAX * PAGE_BYTES_MAX;
        if start < end {
            map::release(&self.map, start..end);
        }
    }

    /// Has the pages of bytes made that will be read next, all at once: much less work than one
    /// fault for each few of them. What cannot be read is found out by whoever reads it.
    pub(crate) fn fetch(&self, range: std::ops::Range<usize>) {
        map::fetch(&self.map, range);
    }

    /// Has the system begin to read what it does not have of these bytes, and waits for nothing. A
    /// map alone has it read a little more than what is looked at.
    pub(crate) fn expect(&self, range: std::ops::Range<usize>) {
        let end = range.end.min(self.map.len());
        if range.start < end {
            map::expect(&self.file, range.start..end);
        }
    }

    /// Is the file still as long as the map?
    pub(crate) fn check_length(&self) -> Result<(), WeightsError> {
        let (path, opened_bytes) = (self.path.clone(), self.map.len() as u64);
        match self.file.metadata() {
            Ok(metadata) if metadata.len() == opened_bytes => Ok(()),
            Ok(metadata) => {
                Err(WeightsError::Changed { path, opened_bytes, now_bytes: metadata.len() })
            }
            Err(reason) => Err(WeightsError::Io { action: "read the length of", path, reason }),
        }
    }
}

/// Fills `to`; a file that ends before is told as what it most likely is.
pub(crate) fn read_exact_at(file: &File, to: &mut [u8], offset: u64) -> std::io::Result<()> {
    read_whole_at(file, to, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ended_before(offset + to.len() as u64),
        _ => error,
    })
}

/// Of a file that was longer when it was opened.
pub(crate) fn ended_before(byte: u64) -> std::io::Error {
    let text = format!("it ends before byte {byte} now: was it cut off or replaced meanwhile?");
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, text)
}

#[cfg(unix)]
fn read_whole_at(file: &File, to: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, to, offset)
}

#[cfg(windows)]
fn read_whole_at(file: &File, to: &mut [u8], offset: u64) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    let mut done = 0;
    while done < to.len() {
        match file.seek_read(&mut to[done..], offset + done as u64)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// Has the processor fetch what lies a page behind these bytes: it does not look beyond a page by
/// itself, and whoever reads much in order would wait at each.
#[inline(always)]
pub(crate) fn fetch_ahead(bytes: &[u8; 64]) {
    map::fetch_ahead(bytes);
}

#[expect(unsafe_code, reason = "mapping a file is unsafe: others may change it meanwhile")]
mod map {
    use std::fs::File;
    use std::ops::Range;

    pub(super) fn read_only(file: &File) -> std::io::Result<memmap2::Mmap> {
        // SAFETY: the map is read-only and private to this crate, which only ever lends it as
        // `&[u8]` and reads it byte-wise with total decoders (no type with invalid bit patterns is
        // made from it). That others may write or truncate the file meanwhile is the risk this
        // file's head accepts and bounds: the loader drops the map when weights are repacked.
        unsafe { memmap2::Mmap::map(file) }
    }

    // `rustix` has no call for leases: `fcntl(2)`.
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    use std::{ffi::c_int, os::fd::AsRawFd};
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    unsafe extern "C" {
        fn fcntl(descriptor: c_int, command: c_int, ...) -> c_int;
    }

    /// Whether the lease on a file is about to be taken away: asked for, it is none then.
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(super) fn is_wanted(file: &File) -> bool {
        const F_GETLEASE: c_int = 1025;
        const F_UNLCK: c_int = 2;
        // SAFETY: the command touches no memory of ours; the descriptor is open.
        unsafe { fcntl(file.as_raw_fd(), F_GETLEASE) == F_UNLCK }
    }

    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    pub(super) fn is_wanted(_file: &File) -> bool {
        false
    }

    /// Takes a read lease: openings to write and truncations wait until it is given up, which the
    /// last descriptor's end does.
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub(super) fn hold(file: &File) -> bool {
        const F_SETSIG: c_int = 10;
        const F_SETLEASE: c_int = 1024;
        const F_RDLCK: c_int = 0;
        // What who holds it is told by, ignored unless asked for; the usual one ends the process.
        const SIGURG: c_int = 23;
        let file = file.as_raw_fd();
        // SAFETY: both commands take a number and touch no memory of ours; the descriptor is open.
        unsafe { fcntl(file, F_SETSIG, SIGURG) == 0 && fcntl(file, F_SETLEASE, F_RDLCK) == 0 }
    }

    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    pub(super) fn hold(_file: &File) -> bool {
        false
    }

    /// Takes whole pages inside `range` out of this process's memory. They are still pages of the
    /// file, and come back when they are read again.
    #[cfg(unix)]
    pub(super) fn release(map: &memmap2::Mmap, range: Range<usize>) {
        use memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the advice loses what was written to private pages; this map is a shared one of
        // a file that nobody can write through, so whoever still holds a slice of it reads the
        // same bytes from the file again. Where the system refuses, pages only stay.
        let _ = unsafe { map.unchecked_advise_range(DontNeed, range.start, range.len()) };
    }

    /// Before Linux 5.14, and elsewhere, pages are made as they are read.
    #[cfg(target_os = "linux")]
    pub(super) fn fetch(map: &memmap2::Mmap, range: Range<usize>) {
        let _ = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
    }

    #[cfg(target_os = "linux")]
    pub(super) fn expect(file: &File, range: Range<usize>) {
        let length = std::num::NonZeroU64::new(range.len() as u64);
        let advice = rustix::fs::Advice::WillNeed;
        let _ = rustix::fs::fadvise(file, range.start as u64, length, advice);
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn expect(_file: &File, _range: Range<usize>) {}

    #[cfg(not(target_os = "linux"))]
    pub(super) fn fetch(_map: &memmap2::Mmap, _range: Range<usize>) {}

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn fetch_ahead(bytes: &[u8; 64]) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const PAGE_BYTES: usize = 4096;
        let ahead = bytes.as_ptr().wrapping_add(PAGE_BYTES).cast();
        // SAFETY: a hint, which reads nothing: any address may be given.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead) };
    }

    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    pub(super) fn fetch_ahead(_bytes: &[u8; 64]) {}

    #[cfg(not(unix))]
    pub(super) fn release(_map: &memmap2::Mmap, _range: Range<usize>) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    #[test]
    fn a_file_that_is_held_is_not_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 10_000]).unwrap();
        let writer = || {
            let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            File::options().write(true).custom_flags(flags).open(&path)
        };
        let mapped = MappedFile::open(&path).unwrap();
        let open = writer().unwrap();
        assert!(!mapped.hold(), "somebody may be writing");
        drop(open);
        // Not every file system knows how.
        if mapped.hold() {
            assert!(!mapped.is_wanted(), "nobody wants to write yet");
            assert_eq!(writer().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
            assert!(mapped.is_wanted(), "somebody waits");
            let again = mapped.reopen().unwrap();
            drop(mapped);
            assert_eq!(writer().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
            drop(again);
        }
        writer().unwrap().set_len(5).unwrap();
    }
}
