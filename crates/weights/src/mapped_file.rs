//! How are the bytes of a file seen without copying them? The one unsafe island of this crate.
//!
//! A map is only as long-lived as its file: if another process truncates the file, touching the
//! lost pages raises SIGBUS, which no check of ours can prevent. Decision: whoever loads a model
//! copies or repacks all it needs and then drops the map, so the window is the load itself; the
//! length is checked again right after mapping and, with `check_length`, when loading is done.
//! A file rewritten in place (same length) shows its new bytes: wrong weights, never unsound,
//! because every offset was checked against the length and every reading of bytes is total.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::WeightsError;

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
            return Err(not_supported("a folder"));
        }
        if !kind.is_file() {
            return Err(not_supported("not a regular file"));
        }
        let file = File::open(path).map_err(io("open"))?;
        if file.metadata().map_err(io("read the length of"))?.len() == 0 {
            return Err(not_supported("an empty file: the download did not start"));
        }
        let map = map_read_only(&file).map_err(io("map"))?;
        let mapped = MappedFile { path: path.to_owned(), file, map };
        mapped.check_length()?;
        Ok(mapped)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
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

#[expect(unsafe_code, reason = "mapping a file is unsafe: others may change it meanwhile")]
fn map_read_only(file: &File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: the map is read-only and private to this crate, which only ever lends it as `&[u8]`
    // and reads it byte-wise with total decoders (no type with invalid bit patterns is made from
    // it). That others may write or truncate the file meanwhile is the risk this file's head
    // accepts and bounds: the loader drops the map when weights are repacked.
    unsafe { memmap2::Mmap::map(file) }
}
