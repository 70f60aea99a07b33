//! Which blocks are kept on disk?
//!
//! One file a block, in a folder of its own for each model and layout (`shared_folder`): written
//! under another name, then renamed, so that a name stands for a whole record. What a crash leaves
//! behind is found at the next start (another name) or when it is read (a record that does not
//! check). The index is in memory and made from the file names; recency survives a restart as the
//! files' times. A folder that somebody removes is made again, empty.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::record::{self, HEADER_BYTES, header};
use crate::shared_folder::{SUFFIX, SharedFolder, UNFINISHED};
use crate::{BlockBuffers, BlockBytes, BlockKey, NoRoom};

pub(crate) struct Disk {
    name: BlockKey,
    folder: SharedFolder,
    block_bytes: usize,
    used: BTreeMap<BlockKey, u64>,
    order: BTreeMap<u64, BlockKey>,
    uses: u64,
    damaged: u64,
    /// Removed since they were last asked for.
    gone: Vec<BlockKey>,
}

impl Disk {
    /// Opens the folder of one model and layout, which `name` is, within `root`.
    ///
    /// # Errors
    /// Where the folder cannot be used, or another process uses it.
    pub(crate) fn open(
        root: &Path,
        name: BlockKey,
        bytes_max: u64,
        block_bytes: usize,
    ) -> io::Result<Self> {
        let mut disk = Self {
            name,
            folder: SharedFolder::open(root, &name, bytes_max)?,
            block_bytes,
            used: BTreeMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            damaged: 0,
            gone: Vec::new(),
        };
        disk.scan()?;
        Ok(disk)
    }

    /// Finds what an earlier process left.
    fn scan(&mut self) -> io::Result<()> {
        let record_bytes = self.record_bytes();
        let mut found: Vec<(SystemTime, BlockKey)> = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
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

    /// Which blocks are no longer here since this was last asked.
    pub(crate) fn take_gone(&mut self) -> Vec<BlockKey> {
        std::mem::take(&mut self.gone)
    }

    /// Keeps a block, where the budget has room for one; others are deleted for it.
    ///
    /// # Errors
    /// Where the disk does not take it; nothing is kept then.
    pub(crate) fn write(&mut self, key: BlockKey, block: &[u8]) -> io::Result<()> {
        assert_eq!(block.len(), self.block_bytes, "a block of another layout");
        if self.contains(&key) {
            return Ok(());
        }
        self.notice_loss()?;
        if !self.make_room(1)? {
            return Ok(());
        }
        let unfinished = self.folder.path().join(UNFINISHED);
        let mut file = File::create(&unfinished)?;
        file.write_all(&header(&key, block))?;
        file.write_all(block)?;
        drop(file);
        fs::rename(&unfinished, self.path(&key))?;
        self.touch(key);
        Ok(())
    }

    /// Gives up what is beyond the budget now that others may have come.
    ///
    /// # Errors
    /// Where the folders cannot be looked at.
    pub(crate) fn trim(&mut self) -> io::Result<()> {
        self.notice_loss()?;
        self.make_room(0).map(drop)
    }

    /// Begins anew where somebody removed the folder.
    fn notice_loss(&mut self) -> io::Result<()> {
        if self.folder.is_there() {
            return Ok(());
        }
        let (path, blocks) = (self.folder.path().display().to_string(), self.used.len());
        tracing::warn!(path, blocks, "the folder was removed, and is made again without them");
        self.gone.extend(std::mem::take(&mut self.used).into_keys());
        self.order.clear();
        self.folder.open_again(&self.name)?;
        // Only its lock may have gone.
        self.scan()
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
            if !self.folder.is_there() {
                // Noticed as a whole, and said once.
                let _ = self.notice_loss();
                return Ok(None);
            }
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

    /// Deletes the least recently used records until `more` fit; `false`: they never do now.
    fn make_room(&mut self, more: u64) -> io::Result<bool> {
        let record_bytes = self.record_bytes();
        let wanted = (self.used.len() as u64 + more) * record_bytes;
        let records_max = self.folder.claim(wanted)? / record_bytes;
        let is_room = records_max >= more;
        let more = if is_room { more } else { 0 };
        let shrunk = self.shrink(records_max - more.min(records_max));
        let settled = self.folder.settle((self.used.len() as u64 + more) * record_bytes);
        shrunk.and(settled).map(|()| is_room)
    }

    fn shrink(&mut self, records_max: u64) -> io::Result<()> {
        while self.used.len() as u64 > records_max {
            let Some((_, &oldest)) = self.order.first_key_value() else { break };
            self.remove(&oldest)?;
        }
        Ok(())
    }

    fn remove(&mut self, key: &BlockKey) -> io::Result<()> {
        if let Some(used) = self.used.remove(key) {
            self.order.remove(&used);
            self.gone.push(*key);
        }
        match fs::remove_file(self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &BlockKey) -> PathBuf {
        self.folder.path().join(format!("{key}{SUFFIX}"))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.used.len() as u64 * self.record_bytes()
    }

    fn record_bytes(&self) -> u64 {
        (HEADER_BYTES + self.block_bytes) as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }

    pub(crate) fn damaged(&self) -> u64 {
        self.damaged
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}
