//! How do the folders of several models, layouts and processes stay within one budget?
//!
//! Each is a folder of the shared one, and locked as long as somebody uses it. In its lock stands
//! how many bytes it may have, written before they are: a crash leaves a number that is too high
//! at worst. Who wants more takes the lock of the shared folder, adds up what the others have,
//! and removes folders that nobody uses, those used longest ago first, where it has to. Of those
//! in use each may have an equal part.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::BlockKey;

const LOCK: &str = "lock";
pub(crate) const SUFFIX: &str = ".block";
pub(crate) const UNFINISHED: &str = "unfinished";

/// A folder in use, within the shared one. Free again when it is dropped.
pub(crate) struct SharedFolder {
    root: PathBuf,
    /// Held while bytes are counted.
    root_lock: File,
    own: PathBuf,
    /// Locked as long as this is open.
    own_lock: File,
    bytes_max: u64,
    noted: Option<u64>,
}

/// A folder of somebody else, or of nobody now.
struct Other {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
    /// Locked by us; `None`: somebody uses it.
    idle: Option<File>,
}

impl SharedFolder {
    /// Takes the folder `name` of `root`, making both if need be.
    ///
    /// # Errors
    /// Where they cannot be used, or another process uses it.
    pub(crate) fn open(root: &Path, name: &BlockKey, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let root_lock = open_lock(root)?;
        root_lock.lock()?;
        let own = root.join(name.to_string());
        fs::create_dir_all(&own)?;
        let own_lock = open_lock(&own)?;
        own_lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it")
            }
        })?;
        root_lock.unlock()?;
        let (root, noted) = (root.to_owned(), None);
        Ok(Self { root, root_lock, own, own_lock, bytes_max, noted })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.own
    }

    /// Whether it is still there: somebody may have removed it.
    pub(crate) fn is_there(&self) -> bool {
        self.own.join(LOCK).exists()
    }

    /// Takes it anew after it was removed.
    pub(crate) fn open_again(&mut self, name: &BlockKey) -> io::Result<()> {
        *self = Self::open(&self.root, name, self.bytes_max)?;
        Ok(())
    }

    /// How many bytes this folder may have at most; folders that nobody uses make room for
    /// `wanted`. Nobody else counts until [`SharedFolder::settle`].
    ///
    /// # Errors
    /// Where the folders cannot be looked at; nothing is to be settled then.
    pub(crate) fn claim(&mut self, wanted: u64) -> io::Result<u64> {
        self.root_lock.lock()?;
        let claimed = self.claim_locked(wanted);
        if claimed.is_err() {
            self.root_lock.unlock()?;
        }
        claimed
    }

    fn claim_locked(&self, wanted: u64) -> io::Result<u64> {
        let mut others = self.others()?;
        let users = 1 + others.iter().filter(|other| other.idle.is_none()).count() as u64;
        let part = self.bytes_max / users;
        let wanted = wanted.min(part);
        // The one used longest ago is the last.
        others.sort_by_key(|other| std::cmp::Reverse(other.used));
        let mut theirs: u64 = others.iter().map(|other| other.bytes).sum();
        while wanted + theirs > self.bytes_max {
            let Some(oldest) = others.iter().rposition(|other| other.idle.is_some()) else { break };
            let other = others.remove(oldest);
            remove(&other)?;
            theirs -= other.bytes;
        }
        Ok(part.min(self.bytes_max.saturating_sub(theirs)))
    }

    /// Says how many bytes are here or about to be.
    ///
    /// # Errors
    /// Where that cannot be written.
    pub(crate) fn settle(&mut self, bytes: u64) -> io::Result<()> {
        let is_new = self.noted != Some(bytes);
        let noted = if is_new { note(&mut self.own_lock, bytes) } else { Ok(()) };
        self.noted = noted.is_ok().then_some(bytes);
        self.root_lock.unlock()?;
        noted
    }

    fn others(&self) -> io::Result<Vec<Other>> {
        let mut others = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let is_one = name.to_str().and_then(BlockKey::parse).is_some();
            let path = entry.path();
            if is_one && path != self.own && path.is_dir() {
                others.push(Other::look(path)?);
            }
        }
        Ok(others)
    }
}

impl Other {
    fn look(path: PathBuf) -> io::Result<Self> {
        let mut lock = open_lock(&path)?;
        let used = lock.metadata()?.modified()?;
        let is_idle = match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(error),
        };
        let mut text = String::new();
        // What is no number is that of an earlier version, or of a crash.
        let noted = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
        let bytes = match noted {
            Some(bytes) => bytes,
            None => {
                let bytes = count(&path)?;
                if is_idle {
                    note(&mut lock, bytes)?;
                    lock.set_modified(used)?;
                }
                bytes
            }
        };
        Ok(Self { path, bytes, used, idle: is_idle.then_some(lock) })
    }
}

fn open_lock(folder: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(folder.join(LOCK))
}

/// Of one width, so that nothing of an earlier number is left.
fn note(lock: &mut File, bytes: u64) -> io::Result<()> {
    lock.seek(SeekFrom::Start(0))?;
    lock.write_all(format!("{bytes:020}\n").as_bytes())
}

fn is_ours(name: &str) -> bool {
    let key = name.strip_suffix(SUFFIX).and_then(BlockKey::parse);
    key.is_some() || name == UNFINISHED
}

fn records(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_ours) {
            found.push(entry);
        }
    }
    Ok(found)
}

fn count(folder: &Path) -> io::Result<u64> {
    records(folder)?.iter().try_fold(0, |sum, entry| Ok(sum + entry.metadata()?.len()))
}

/// Removes what is ours of a folder that nobody uses, and the folder if nothing else is in it.
fn remove(other: &Other) -> io::Result<()> {
    let path = &other.path;
    tracing::info!(folder = %path.display(), bytes = other.bytes, "unused blocks make room");
    for entry in records(path)? {
        fs::remove_file(entry.path())?;
    }
    fs::remove_file(path.join(LOCK))?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}
