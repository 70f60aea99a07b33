//! Is a model in the system's cache, and how does it get there without anybody waiting for it?
//!
//! Reading past the cache pays where the model is not in it, and only there. Whether it is, a
//! sample tells: pages from all over its files are read on the condition that nobody waits
//! (`RWF_NOWAIT`). The system fetches those that were missing, so each look needs places of its
//! own, or it would find what the last one left. No `mincore`: of a file that belongs to somebody
//! else it says that all of it is there.
//!
//! What was read past the cache is brought into it afterwards ([`CacheFilling`]), so that the next
//! start finds it there.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::{WeightFile, WeightsError};

/// Pages looked at: the share found is within an eighth of the true one 19 times in 20.
const SAMPLED: u64 = 64;
const PAGE_BYTES: u64 = 4096;
/// Asked for at once: a few milliseconds of a fast disk, after which the others have their turn.
const BLOCK_BYTES: u64 = 8 << 20;

/// Whether at least half of a model's bytes are in the system's cache; `None` where the system or
/// the file system does not tell, or the model is no file. `chance` says which bytes are looked at.
pub fn is_mostly_cached(model: &WeightFile, chance: u64) -> Option<bool> {
    let files = files(model).ok()?;
    let total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    let stride = (total / SAMPLED).max(PAGE_BYTES);
    let mut place = chance % stride;
    let (mut start, mut sampled, mut cached) = (0, 0, 0);
    for (file, bytes) in &files {
        while place < start + bytes {
            sampled += 1;
            cached += usize::from(is_cached(file, place - start)?);
            place += stride;
        }
        start += bytes;
    }
    (sampled > 0).then_some(2 * cached >= sampled)
}

/// The model's files by descriptors of their own, and their lengths; none if it is no file.
fn files(model: &WeightFile) -> Result<Vec<(File, u64)>, WeightsError> {
    let mut files = Vec::new();
    for part in model.parts() {
        let Some(file) = part.reopen() else { return Ok(Vec::new()) };
        files.push((own_descriptor(file?), part.file_bytes()));
    }
    Ok(files)
}

/// One whose advice is not that of everybody who reads the file.
#[cfg(target_os = "linux")]
fn own_descriptor(file: File) -> File {
    use std::os::fd::AsRawFd;
    // By its descriptor: under the path may be another file by now.
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or(file)
}

#[cfg(not(target_os = "linux"))]
fn own_descriptor(file: File) -> File {
    file
}

#[cfg(target_os = "linux")]
fn is_cached(file: &File, offset: u64) -> Option<bool> {
    use rustix::io::{Errno, ReadWriteFlags};
    // Else a page that is missing brings its neighbors with it.
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random).ok()?;
    let mut byte = [0];
    let buffers = &mut [std::io::IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file, buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(1) => Some(true),
        Err(Errno::AGAIN) => Some(false),
        _ => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn is_cached(_file: &File, _offset: u64) -> Option<bool> {
    None
}

/// Brings a model's files into the system's cache, beside everything else that is done. Dropping
/// it ends that.
#[derive(Debug)]
pub struct CacheFilling {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl CacheFilling {
    /// Begins, and goes on as long as `has_room` agrees to so many bytes that are left. It takes
    /// half of the disk's time at most, and of the processor's what nobody else wants.
    ///
    /// # Errors
    /// [`WeightsError::Io`] if a file cannot be opened once more or there is no thread.
    pub fn start(
        model: &WeightFile,
        has_room: impl Fn(u64) -> bool + Send + 'static,
    ) -> Result<Self, WeightsError> {
        let files = files(model)?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("pelton-cache".to_owned());
        let thread = thread.spawn(move || {
            give_way();
            fill(&files, |left| !told.load(Ordering::Relaxed) && has_room(left));
        });
        let thread = thread.map_err(|reason| WeightsError::Io {
            action: "start a thread to read",
            path: model.path().to_owned(),
            reason,
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for CacheFilling {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// A file that cannot be read is told by whoever needs it.
fn fill(files: &[(File, u64)], goes_on: impl Fn(u64) -> bool) {
    let mut left: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    for (file, bytes) in files {
        for start in (0..*bytes).step_by(BLOCK_BYTES as usize) {
            if !goes_on(left) {
                return;
            }
            let began = Instant::now();
            let length = BLOCK_BYTES.min(bytes - start);
            if !fetch(file, start, length) {
                return;
            }
            left -= length;
            std::thread::park_timeout(began.elapsed());
        }
    }
}

/// Nobody copies the bytes: the system is asked for them, and one is waited for.
#[cfg(target_os = "linux")]
fn fetch(file: &File, start: u64, length: u64) -> bool {
    use std::num::NonZeroU64;
    let advice = rustix::fs::Advice::WillNeed;
    let asked = rustix::fs::fadvise(file, start, NonZeroU64::new(length), advice);
    let last = crate::mapped_file::read_exact_at(file, &mut [0], start + length - 1);
    asked.is_ok() && last.is_ok()
}

#[cfg(not(target_os = "linux"))]
fn fetch(_file: &File, _start: u64, _length: u64) -> bool {
    false
}

/// Everybody else goes first.
#[cfg(target_os = "linux")]
fn give_way() {
    // Linux knows priorities of threads, by the number of the thread. Refused, it changes nothing.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}

#[cfg(not(target_os = "linux"))]
fn give_way() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::GgufBuilder;
    use ops::quant_format::QuantFormat;
    use std::path::{Path, PathBuf};

    fn model(folder: &Path) -> PathBuf {
        let mut builder = GgufBuilder::new();
        builder.tensor("tensor", QuantFormat::F32, &[5 << 20], vec![1; 20 << 20]);
        let path = folder.join("model.gguf");
        std::fs::write(&path, builder.to_bytes().unwrap()).unwrap();
        path
    }

    /// Whether that can be had: a file system in memory keeps what it has, and some do not tell.
    fn forget(path: &Path) -> bool {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        is_cached(&own_descriptor(file), 3 << 20) == Some(false)
    }

    /// In memory nothing is forgotten, and some file systems do not tell: there is nothing to see.
    fn cold_model(folder: &tempfile::TempDir) -> Option<(PathBuf, WeightFile)> {
        let path = model(folder.path());
        let opened = crate::open(&path).unwrap();
        assert_ne!(is_mostly_cached(&opened, 7), Some(false), "it was just written");
        forget(&path).then_some((path, opened))
    }

    #[test]
    fn what_was_read_is_cached_and_what_was_forgotten_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let Some((path, opened)) = cold_model(&folder) else { return };
        assert_eq!(is_mostly_cached(&opened, 1 << 16), Some(false));
        // A look elsewhere does not find what the last one fetched.
        assert_eq!(is_mostly_cached(&opened, 2 << 16), Some(false));
        std::fs::read(&path).unwrap();
        assert_eq!(is_mostly_cached(&opened, 3 << 16), Some(true));
        let in_memory = WeightFile::from_bytes("model", std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(is_mostly_cached(&in_memory, 0), None);
    }

    #[test]
    fn a_model_is_brought_into_the_cache_where_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let Some((_, opened)) = cold_model(&folder) else { return };
        let wait = |mut filling: CacheFilling| filling.thread.take().unwrap().join().unwrap();
        wait(CacheFilling::start(&opened, |_| false).unwrap());
        assert_eq!(is_mostly_cached(&opened, 1 << 16), Some(false));
        // All but the last block.
        wait(CacheFilling::start(&opened, |left| left > BLOCK_BYTES).unwrap());
        assert_eq!(is_mostly_cached(&opened, 2 << 16), Some(true));
        drop(CacheFilling::start(&opened, |_| true).unwrap());
    }
}
