//! How is a model read faster than the system's cache takes it? Past that cache, by threads of
//! their own, into buffers that are used again, while earlier tensors are being repacked.
//!
//! Filling the cache with a file costs the processor as much as repacking it, and on a machine of
//! few cores that is what a cold start waits for. Read directly, the disk writes to the buffers
//! itself. The price is that nothing is left in the cache for the next start, and that whatever
//! was there is not used.
//!
//! Tensors are read whole, each by one thread, in the order of use, as long as what is read and not
//! taken yet keeps within a window. Where a file or a system knows no direct reads they are plain
//! ones, and nothing else changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use memmap2::MmapMut;

use crate::mapped_file::ended_before;
use crate::{ReadAheadCounts, ReadAheadSettings, WeightFile, WeightsError};

/// Direct reads begin and end at multiples of a disk's block; no disk in use has larger ones.
const ALIGNMENT: usize = 4096;
/// One request; the system makes several of it for the disk to have at once.
const REQUEST_BYTES: usize = 32 << 20;
/// Smaller buffers are used again for any tensor, larger ones are given back to the system.
const KEPT_BYTES: usize = 64 << 20;

/// Reads tensors of a model past the system's cache. Dropping it ends its threads.
#[derive(Debug)]
pub struct DirectReads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    files: Vec<(PathBuf, File)>,
    /// In the order of use.
    tensors: Vec<Tensor>,
    window_bytes: usize,
    state: Mutex<State>,
    /// Told when a tensor was read and when one was taken.
    changed: Condvar,
}

#[derive(Debug)]
struct Tensor {
    name: String,
    file: usize,
    range: Range<usize>,
}

#[derive(Debug, Default)]
struct State {
    /// The next tensor to be read.
    next: usize,
    /// All before this one are taken or were left out.
    taken_before: usize,
    ready: BTreeMap<usize, MmapMut>,
    /// Of tensors that are read or being read, and not given back.
    held_bytes: usize,
    free: Vec<MmapMut>,
    stopped: bool,
    failed: Option<(usize, io::Error)>,
    counts: ReadAheadCounts,
}

impl DirectReads {
    /// Begins to read the tensors called `names`, in this order, by at least one thread. Names of
    /// no tensor are skipped, and so are models that are no files.
    ///
    /// # Errors
    /// [`WeightsError::Io`] if a file cannot be opened once more or there are no threads.
    pub fn start(
        model: &WeightFile,
        names: impl IntoIterator<Item = String>,
        settings: ReadAheadSettings,
    ) -> Result<Self, WeightsError> {
        let mut files = Vec::new();
        for part in model.parts() {
            let Some(file) = part.reopen() else { continue };
            files.push((part.path().to_owned(), past_the_cache(file?)));
        }
        let tensors = names.into_iter().filter_map(|name| {
            let (file, range) = model.place(&name)?;
            (files.len() == model.parts().len()).then_some(Tensor { name, file, range })
        });
        let tensors = tensors.collect();
        let (state, changed) = (Mutex::default(), Condvar::new());
        let window_bytes = settings.window_bytes;
        let shared = Arc::new(Shared { files, tensors, window_bytes, state, changed });
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("pelton-read".to_owned());
            thread.spawn(move || shared.read_all())
        };
        let threads: io::Result<Vec<_>> = (0..settings.threads.max(1)).map(spawn).collect();
        let threads = threads.map_err(|reason| WeightsError::Io {
            action: "start threads to read",
            path: model.path().to_owned(),
            reason,
        })?;
        Ok(Self { shared, threads })
    }

    /// Waits until a tensor is read and shows its bytes to `take`; `false`, and nothing is shown,
    /// if it is not among the names or one behind it was taken already. Those before it that were
    /// never asked for are given up.
    ///
    /// # Errors
    /// [`WeightsError::Io`] when the disk failed, for this tensor or an earlier one.
    pub fn lend(&self, name: &str, take: impl FnOnce(&[u8])) -> Result<bool, WeightsError> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        let from = state.taken_before;
        let found = shared.tensors[from..].iter().position(|tensor| tensor.name == name);
        let Some(index) = found.map(|place| from + place) else { return Ok(false) };
        let tensor = &shared.tensors[index];
        for skipped in from..index {
            if let Some(buffer) = state.ready.remove(&skipped) {
                state.give_back(buffer, shared.tensors[skipped].range.len());
            }
        }
        state.taken_before = index;
        state.next = state.next.max(index);
        shared.changed.notify_all();
        let waited = Instant::now();
        let buffer = loop {
            if let Some(buffer) = state.ready.remove(&index) {
                break buffer;
            }
            if let Some((failed, reason)) = &state.failed {
                let path = shared.files[shared.tensors[*failed].file].0.clone();
                let reason = io::Error::new(reason.kind(), reason.to_string());
                return Err(WeightsError::Io { action: "read", path, reason });
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.taken_before = index + 1;
        state.counts.stalled += waited.elapsed();
        drop(state);
        let start = tensor.range.start % ALIGNMENT;
        take(&buffer[start..start + tensor.range.len()]);
        let mut state = shared.lock();
        state.give_back(buffer, tensor.range.len());
        shared.changed.notify_all();
        Ok(true)
    }

    pub fn counts(&self) -> ReadAheadCounts {
        self.shared.lock().counts
    }
}

impl Drop for DirectReads {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl State {
    fn give_back(&mut self, buffer: MmapMut, tensor_bytes: usize) {
        self.held_bytes -= tensor_bytes;
        if buffer.len() <= KEPT_BYTES {
            self.free.push(buffer);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn read_all(&self) {
        while let Some((index, buffer)) = self.next() {
            let read = self.read(&self.tensors[index], buffer);
            let mut state = self.lock();
            let bytes = self.tensors[index].range.len();
            match read {
                Ok(buffer) if index >= state.taken_before => {
                    state.counts.read_bytes += bytes as u64;
                    state.ready.insert(index, buffer);
                }
                // Nobody asked for it meanwhile, and nobody will.
                Ok(buffer) => state.give_back(buffer, bytes),
                Err(error) => {
                    state.failed.get_or_insert((index, error));
                    state.stopped = true;
                }
            }
            self.changed.notify_all();
        }
    }

    /// The next tensor to read and a buffer that it may use, when the window has room for it or it
    /// is the only one; `None` at the end.
    fn next(&self) -> Option<(usize, Option<MmapMut>)> {
        let mut state = self.lock();
        loop {
            let bytes = self.tensors.get(state.next)?.range.len();
            if state.stopped {
                return None;
            }
            if state.held_bytes == 0 || state.held_bytes + bytes <= self.window_bytes {
                state.next += 1;
                state.held_bytes += bytes;
                return Some((state.next - 1, state.free.pop()));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whole blocks around the tensor's bytes.
    fn read(&self, tensor: &Tensor, buffer: Option<MmapMut>) -> io::Result<MmapMut> {
        let start = tensor.range.start / ALIGNMENT * ALIGNMENT;
        let needed = tensor.range.end - start;
        let whole = needed.next_multiple_of(ALIGNMENT);
        let mut buffer = match buffer {
            Some(buffer) if buffer.len() >= whole => buffer,
            // Kept ones are of one size, so that the next tensor can use them.
            _ => large_pages(MmapMut::map_anon(whole.max(self.largest_kept()))?),
        };
        let mut done = 0;
        loop {
            let end = whole.min(done + REQUEST_BYTES);
            let offset = (start + done) as u64;
            let file = &self.files[tensor.file].1;
            match read_some_at(file, &mut buffer[done..end], offset) {
                Ok(count) if done + count >= needed => break,
                // The next read must begin with a block, too.
                Ok(count) if count >= ALIGNMENT => done += count / ALIGNMENT * ALIGNMENT,
                Ok(_) => return Err(ended_before((start + needed) as u64)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(buffer)
    }

    /// Bytes of the largest tensor whose buffer is kept.
    fn largest_kept(&self) -> usize {
        let sizes = self.tensors.iter().map(|tensor| tensor.range.len() + 2 * ALIGNMENT);
        let kept = sizes.filter(|&bytes| bytes <= KEPT_BYTES).max().unwrap_or(ALIGNMENT);
        kept.next_multiple_of(ALIGNMENT)
    }
}

/// A disk writes to few large pages with less work than to many small ones.
fn large_pages(buffer: MmapMut) -> MmapMut {
    #[cfg(target_os = "linux")]
    let _ = buffer.advise(memmap2::Advice::HugePage);
    buffer
}

/// The same file, to be read past the cache, or as it was where that cannot be had.
#[cfg(target_os = "linux")]
fn past_the_cache(file: File) -> File {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    // By its descriptor: under the path may be another file by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flag = rustix::fs::OFlags::DIRECT.bits() as i32;
    let direct = File::options().read(true).custom_flags(flag).open(path);
    // Some file systems open it and refuse to read: one block tells.
    let readable = |direct: &File| {
        let mut block = MmapMut::map_anon(ALIGNMENT)?;
        read_some_at(direct, &mut block, 0)
    };
    match direct {
        Ok(direct) if readable(&direct).is_ok() => direct,
        _ => file,
    }
}

#[cfg(not(target_os = "linux"))]
fn past_the_cache(file: File) -> File {
    file
}

#[cfg(unix)]
fn read_some_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, to, offset)
}

#[cfg(windows)]
fn read_some_at(file: &File, to: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, to, offset)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::GgufBuilder;
    use ops::quant_format::QuantFormat;

    /// Tensors of which some are larger than a request, or their place is no block's.
    fn model(folder: &tempfile::TempDir) -> (PathBuf, Vec<String>) {
        let mut builder = GgufBuilder::new();
        let mut names = Vec::new();
        for (index, columns) in [16u64, 9 << 20, 32, 1 << 20, 17 << 20].into_iter().enumerate() {
            let name = format!("tensor{index}");
            let bytes: Vec<u8> =
                (0..4 * columns as usize).map(|at| (at / 4093 + index) as u8).collect();
            builder.tensor(&name, QuantFormat::F32, &[columns], bytes);
            names.push(name);
        }
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, builder.to_bytes().unwrap()).unwrap();
        (path, names)
    }

    fn settings(threads: usize, window_bytes: usize) -> ReadAheadSettings {
        ReadAheadSettings { threads, window_bytes }
    }

    #[test]
    fn tensors_are_what_the_map_shows_whatever_the_window_and_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let (path, names) = model(&folder);
        let model = crate::open(&path).unwrap();
        for (threads, window_bytes) in [(0, 0), (1, 1 << 30), (3, 40 << 20), (3, 1 << 30)] {
            let reads =
                DirectReads::start(&model, names.clone(), settings(threads, window_bytes)).unwrap();
            let mut read = 0;
            for name in &names {
                let expected = model.tensor(name).unwrap().bytes;
                let mut seen = false;
                let lent = reads.lend(name, |bytes| seen = bytes == expected).unwrap();
                assert!(lent && seen, "{name} by {threads} threads");
                read += expected.len() as u64;
            }
            assert_eq!(reads.counts().read_bytes, read);
            assert!(!reads.lend(&names[0], |_| ()).unwrap(), "it was lent before");
            assert!(!reads.lend("no such tensor", |_| ()).unwrap());
        }
    }

    #[test]
    fn tensors_that_nobody_asks_for_are_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (path, names) = model(&folder);
        let model = crate::open(&path).unwrap();
        for _ in 0..5 {
            // A window that the first two fill.
            let reads = DirectReads::start(&model, names.clone(), settings(2, 40 << 20)).unwrap();
            for name in [&names[2], &names[4]] {
                let expected = model.tensor(name).unwrap().bytes;
                let mut seen = false;
                assert!(reads.lend(name, |bytes| seen = bytes == expected).unwrap());
                assert!(seen, "{name}");
            }
            assert_eq!(reads.shared.lock().ready.len(), 0);
        }
    }

    #[test]
    fn a_file_cut_off_is_an_error_and_not_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let (path, names) = model(&folder);
        let model = crate::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        let reads = DirectReads::start(&model, names.clone(), settings(2, 1 << 30)).unwrap();
        let error = reads.lend(&names[1], |_| ()).unwrap_err().to_string();
        assert!(error.contains("model.gguf: it ends before byte"), "{error}");
    }
}
