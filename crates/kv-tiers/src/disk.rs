//! Which blocks are kept on disk?
//!
//! One file a block, in a folder of its own for each model and layout: written under another name,
//! then renamed, so that a name stands for a whole record. What a crash leaves behind is found at
//! the next start (another name) or when it is read (a record that does not check). The index is in
//! memory and made from the file names; recency survives a restart as the files' times.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::record::{self, HEADER_BYTES, header};
use crate::{BlockBuffers, BlockBytes, BlockKey, NoRoom};

const SUFFIX: &str = ".block";
const UNFINISHED: &str = "unfinished";

pub(crate) struct Disk {
    folder: PathBuf,
    records_max: usize,
    block_bytes: usize,
    used: BTreeMap<BlockKey, u64>,
    order: BTreeMap<u64, BlockKey>,
    uses: u64,
    damaged: u64,
    /// Locked as long as this is open.
    _lock: File,
}

impl Disk {
    /// Opens the folder of one model and layout, making it if need be.
    ///
    /// # Errors
    /// Where the folder cannot be used, or another process uses it.
    pub(crate) fn open(folder: PathBuf, bytes_max: u64, block_bytes: usize) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let lock = File::options().create(true).append(true).open(folder.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it")
            }
        })?;
        let record_bytes = (HEADER_BYTES + block_bytes) as u64;
        let mut disk = Self {
            records_max: usize::try_from(bytes_max / record_bytes).unwrap_or(usize::MAX),
            folder,
            block_bytes,
            used: BTreeMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            damaged: 0,
            _lock: lock,
        };
        disk.scan(record_bytes)?;
        Ok(disk)
    }

    /// Finds what an earlier process left.
    fn scan(&mut self, record_bytes: u64) -> io::Result<()> {
        let mut found: Vec<(SystemTime, BlockKey)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let (name, metadata) = (entry.file_name(), entry.metadata()?);
            let key = name.to_str().and_then(|name| BlockKey::parse(name.strip_suffix(SUFFIX)?));
            match key.filter(|_| metadata.len() == record_bytes) {
                Some(key) => found.push((metadata.modified()?, key)),
                None if name == "lock" => {}
                // Ours by its name, and not whole.
                None if name == UNFINISHED || key.is_some() => fs::remove_file(entry.path())?,
                None => tracing::warn!(path = %entry.path().display(), "a file that is not ours"),
            }
        }
        found.sort();
        found.into_iter().for_each(|(_, key)| self.touch(key));
        self.make_room(0).map(drop)
    }

    pub(crate) fn contains(&self, key: &BlockKey) -> bool {
        self.used.contains_key(key)
    }

    pub(crate) fn keys(&self) -> BTreeSet<BlockKey> {
        self.used.keys().copied().collect()
    }

    /// Keeps a block; returns those that were deleted for it.
    ///
    /// # Errors
    /// Where the disk does not take it; nothing is kept then.
    pub(crate) fn write(&mut self, key: BlockKey, block: &[u8]) -> io::Result<Vec<BlockKey>> {
        assert_eq!(block.len(), self.block_bytes, "a block of another layout");
        if self.records_max == 0 || self.contains(&key) {
            return Ok(Vec::new());
        }
        let removed = self.make_room(1)?;
        let unfinished = self.folder.join(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(&header(&key, block))?;
        file.write_all(block)?;
        drop(file);
        fs::rename(&unfinished, self.path(&key))?;
        self.touch(key);
        Ok(removed)
    }

    /// The block, if it is here and whole. A damaged one is deleted.
    ///
    /// # Errors
    /// Where there is no room to read it into; it stays.
    pub(crate) fn read(
        &mut self,
        key: &BlockKey,
        buffers: &dyn BlockBuffers,
    ) -> Result<Option<BlockBytes>, NoRoom> {
        if !self.contains(key) {
            return Ok(None);
        }
        let path = self.path(key);
        let read = |block: &mut [u8]| record::read(&mut File::open(&path)?, key, block);
        let mut fill = |block: &mut [u8]| read(block).unwrap_or(false);
        let Some(block) = buffers.fill(&mut fill)? else {
            self.damaged += 1;
            tracing::warn!(%key, "a cached block is damaged and is deleted");
            let _ = self.remove(key);
            return Ok(None);
        };
        self.touch(*key);
        if let Ok(file) = File::options().append(true).open(self.path(key)) {
            // Only the order after a restart depends on it.
            let _ = file.set_modified(SystemTime::now());
        }
        Ok(Some(block))
    }

    fn touch(&mut self, key: BlockKey) {
        self.uses += 1;
        if let Some(before) = self.used.insert(key, self.uses) {
            self.order.remove(&before);
        }
        self.order.insert(self.uses, key);
    }

    /// Deletes the least recently used records until `more` fit.
    fn make_room(&mut self, more: usize) -> io::Result<Vec<BlockKey>> {
        let mut removed = Vec::new();
        while self.used.len() + more > self.records_max {
            let Some((_, &oldest)) = self.order.first_key_value() else { break };
            self.remove(&oldest)?;
            removed.push(oldest);
        }
        Ok(removed)
    }

    fn remove(&mut self, key: &BlockKey) -> io::Result<()> {
        if let Some(used) = self.used.remove(key) {
            self.order.remove(&used);
        }
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &BlockKey) -> PathBuf {
        self.folder.join(format!("{key}{SUFFIX}"))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.used.len() as u64 * (HEADER_BYTES + self.block_bytes) as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }

    pub(crate) fn damaged(&self) -> u64 {
        self.damaged
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}
