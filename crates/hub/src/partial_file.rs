//! How does a file grow on disk so that an interrupted pull can go on, and a wrong one never
//! takes its final name?
//!
//! The bytes go to `<name>.partial`; beside it `<name>.partial.etag` says which version of the
//! remote file they belong to. The checksum runs over every byte, those found on disk included.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::FetchError;
use crate::{Checksum, HubError};

/// What is known of the bytes before they arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Expected {
    pub(crate) bytes: Option<u64>,
    pub(crate) sha256: Option<Checksum>,
}

/// A file on its way in.
pub(crate) struct PartialFile {
    file: File,
    path: PathBuf,
    final_path: PathBuf,
    hasher: Sha256,
    done_bytes: u64,
    pub(crate) expected: Expected,
}

impl PartialFile {
    /// Opens what an earlier pull left, or an empty file, and hashes what is there.
    pub(crate) fn open(final_path: &Path, expected: Expected) -> Result<Self, HubError> {
        let path = with_suffix(final_path, ".partial");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(HubError::io("open", &path))?;
        let mut hasher = Sha256::new();
        let mut done_bytes = 0;
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = file.read(&mut block).map_err(HubError::io("read", &path))?;
            if count == 0 {
                break;
            }
            hasher.update(&block[..count]);
            done_bytes += count as u64;
        }
        let final_path = final_path.to_owned();
        let mut partial = Self { file, path, final_path, hasher, done_bytes, expected };
        if expected.bytes.is_some_and(|bytes| done_bytes > bytes) {
            partial.restart()?;
        }
        Ok(partial)
    }

    pub(crate) fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.expected.bytes == Some(self.done_bytes)
    }

    /// Forgets every byte.
    pub(crate) fn restart(&mut self) -> Result<(), HubError> {
        let failed = HubError::io("truncate", &self.path);
        self.file.set_len(0).map_err(&failed)?;
        self.file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        self.hasher = Sha256::new();
        self.done_bytes = 0;
        self.forget_etag()
    }

    /// Adds bytes; more than expected is the source's fault.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        let done_bytes = self.done_bytes + bytes.len() as u64;
        if let Some(expected) = self.expected.bytes.filter(|expected| done_bytes > *expected) {
            return Err(FetchError::Source(format!("sends more than the {expected} bytes due")));
        }
        self.file.write_all(bytes).map_err(HubError::io("write", &self.path))?;
        self.hasher.update(bytes);
        self.done_bytes = done_bytes;
        Ok(())
    }

    /// Which version of the remote file the bytes so far belong to.
    pub(crate) fn etag(&self) -> Option<String> {
        fs::read_to_string(self.etag_path()).ok().filter(|etag| !etag.is_empty())
    }

    pub(crate) fn set_etag(&self, etag: &str) -> Result<(), HubError> {
        let path = self.etag_path();
        fs::write(&path, etag).map_err(HubError::io("write", &path))
    }

    /// Checks size and checksum, then gives the file its final name.
    ///
    /// # Errors
    /// A mismatch deletes the bytes: nobody can use them, and resuming would keep the fault.
    pub(crate) fn finish(mut self) -> Result<PathBuf, FetchError> {
        let wrong_size = self.expected.bytes.filter(|bytes| *bytes != self.done_bytes);
        if let Some(expected) = wrong_size {
            return Err(FetchError::Source(format!(
                "gave {} of {expected} bytes; what arrived is kept",
                self.done_bytes
            )));
        }
        let found = Checksum(std::mem::take(&mut self.hasher).finalize().into());
        if let Some(expected) = self.expected.sha256.filter(|expected| *expected != found) {
            let _ = fs::remove_file(&self.path);
            let _ = self.forget_etag();
            return Err(FetchError::Source(format!(
                "gave wrong bytes: sha256 is {found}, should be {expected}; they were deleted"
            )));
        }
        self.file.sync_all().map_err(HubError::io("write", &self.path))?;
        fs::rename(&self.path, &self.final_path)
            .map_err(HubError::io("rename", &self.final_path))?;
        self.forget_etag()?;
        Ok(self.final_path)
    }

    fn etag_path(&self) -> PathBuf {
        with_suffix(&self.path, ".etag")
    }

    fn forget_etag(&self) -> Result<(), HubError> {
        let path = self.etag_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(HubError::io("delete", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// 256 KiB: a disk and a hash both run at full speed, and a progress bar still moves smoothly.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;

pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    // SHA-256 of "hello world", from FIPS 180-4's reference implementations.
    const HELLO: &str = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";

    fn expected() -> Expected {
        Expected { bytes: Some(11), sha256: Checksum::parse(HELLO) }
    }

    #[test]
    fn bytes_of_two_runs_make_one_verified_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        PartialFile::open(&path, expected()).unwrap().append(b"hello").unwrap();
        let mut partial = PartialFile::open(&path, expected()).unwrap();
        assert_eq!(partial.done_bytes(), 5);
        partial.append(b" world").unwrap();
        assert!(partial.is_whole());
        assert_eq!(partial.finish().unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"hello world");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn wrong_bytes_are_deleted_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let mut partial = PartialFile::open(&path, expected()).unwrap();
        partial.append(b"hello_world").unwrap();
        let error = partial.finish().unwrap_err();
        assert!(matches!(error, FetchError::Source(why) if why.contains(HELLO)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn too_many_bytes_are_refused_before_they_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut partial = PartialFile::open(&folder.path().join("m"), expected()).unwrap();
        assert!(matches!(partial.append(&[0; 12]), Err(FetchError::Source(_))));
        assert_eq!(partial.done_bytes(), 0);
    }
}
