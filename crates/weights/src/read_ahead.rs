//! How are tensors in memory before they are asked for? Threads of their own read the files in the
//! order of use, while earlier tensors are being repacked.
//!
//! They read into a buffer that nobody looks at: what counts is that the pages are then in the
//! system's cache, where the map finds them without waiting. Large blocks, because a disk is as
//! fast as the requests are long and many; plain reads and no `madvise`, because they do the same
//! whatever read-ahead the system is set to, and because a disk that fails gives an error here
//! where a map would end the process.
//!
//! Reading keeps within a window before the tensor that was asked for last, so that a model larger
//! than the memory is not read in vain.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::mapped_file::read_exact_at;
use crate::{WeightFile, WeightsError};

/// One request to the disk. Measured on a virtual disk with two threads: 2.6 GB/s with 1 MiB, 3.4
/// with 8 MiB.
const BLOCK_BYTES: usize = 8 << 20;

/// How far and by how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAheadSettings {
    /// 0: nothing is read ahead.
    pub threads: usize,
    /// Bytes read before they are asked for, at most.
    pub window_bytes: usize,
}

impl ReadAheadSettings {
    /// What the threads hold.
    pub fn staging_bytes(&self) -> usize {
        self.threads * BLOCK_BYTES
    }
}

/// What reading ahead did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadAheadCounts {
    pub read_bytes: u64,
    /// How long the asker waited for tensors that were not there yet.
    pub stalled: Duration,
}

/// Reads tensors of a model ahead. Dropping it ends its threads.
#[derive(Debug)]
pub struct ReadAhead {
    shared: Arc<Shared>,
    /// Name of each tensor and the end of its blocks, in the order of use.
    ends: Vec<(String, usize)>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    files: Vec<(PathBuf, File)>,
    blocks: Vec<Block>,
    window_bytes: usize,
    state: Mutex<State>,
    /// Told when blocks were read and when the window moved.
    changed: Condvar,
}

#[derive(Debug)]
struct Block {
    part: usize,
    start: u64,
    bytes: usize,
    /// Of all blocks before it.
    bytes_before: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The next block to be read.
    next: usize,
    /// Which blocks are read.
    done: Vec<bool>,
    /// All blocks before this one are read.
    done_before: usize,
    /// The window begins behind so many bytes: where the tensor ends that was asked for last.
    asked_bytes: usize,
    stopped: bool,
    failed: Option<io::Error>,
    counts: ReadAheadCounts,
}

impl ReadAhead {
    /// Begins to read the tensors called `names`, in this order. Names of no tensor are skipped,
    /// and so are models that are no files.
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
            files.push((part.path().to_owned(), file?));
        }
        let (mut blocks, mut ends, mut total) = (Vec::new(), Vec::new(), 0);
        for name in names {
            let Some((part, range)) = model.place(&name) else { continue };
            if files.len() != model.parts().len() {
                continue;
            }
            for start in range.clone().step_by(BLOCK_BYTES) {
                let bytes = BLOCK_BYTES.min(range.end - start);
                blocks.push(Block { part, start: start as u64, bytes, bytes_before: total });
                total += bytes;
            }
            ends.push((name, blocks.len()));
        }
        let state = State { done: vec![false; blocks.len()], ..State::default() };
        let window_bytes = settings.window_bytes.max(BLOCK_BYTES);
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { files, blocks, window_bytes, state, changed });
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("pelton-read".to_owned());
            thread.spawn(move || shared.read_all())
        };
        let threads: io::Result<Vec<_>> = (0..settings.threads).map(spawn).collect();
        let threads = threads.map_err(|reason| WeightsError::Io {
            action: "start threads to read",
            path: model.path().to_owned(),
            reason,
        })?;
        Ok(Self { shared, ends, threads })
    }

    /// Waits until a tensor is read. One that is not among the names is not waited for.
    ///
    /// # Errors
    /// [`WeightsError::Io`] when the disk failed, for this tensor or an earlier one.
    pub fn wait(&self, name: &str) -> Result<(), WeightsError> {
        let Some(at) = self.ends.iter().position(|(known, _)| known == name) else {
            return Ok(());
        };
        if self.threads.is_empty() {
            return Ok(());
        }
        let end = self.ends[at].1;
        let last = &self.shared.blocks[end - 1];
        let mut state = self.shared.lock();
        state.asked_bytes = state.asked_bytes.max(last.bytes_before + last.bytes);
        self.shared.changed.notify_all();
        let waited = Instant::now();
        while state.done_before < end && state.failed.is_none() {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.counts.stalled += waited.elapsed();
        match &state.failed {
            None => Ok(()),
            Some(reason) => {
                let block = state.done_before.min(self.shared.blocks.len() - 1);
                let path = self.shared.files[self.shared.blocks[block].part].0.clone();
                let reason = io::Error::new(reason.kind(), reason.to_string());
                Err(WeightsError::Io { action: "read", path, reason })
            }
        }
    }

    pub fn counts(&self) -> ReadAheadCounts {
        self.shared.lock().counts
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does.
    fn read_all(&self) {
        // Not of the heap, which would keep it when the load is over.
        let largest = self.blocks.iter().map(|block| block.bytes).max().unwrap_or(0);
        let mut buffer = memmap2::MmapMut::map_anon(largest.max(1));
        while let Some(index) = self.next() {
            let block = &self.blocks[index];
            let read = match &mut buffer {
                Ok(buffer) => read_exact_at(
                    &self.files[block.part].1,
                    &mut buffer[..block.bytes],
                    block.start,
                ),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            let mut state = self.lock();
            match read {
                Ok(()) => {
                    state.done[index] = true;
                    state.counts.read_bytes += block.bytes as u64;
                    while state.done.get(state.done_before) == Some(&true) {
                        state.done_before += 1;
                    }
                }
                Err(error) => {
                    state.failed = Some(error);
                    state.stopped = true;
                }
            }
            self.changed.notify_all();
        }
    }

    /// The next block to read, when the window has reached it; `None` at the end.
    fn next(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let block = self.blocks.get(state.next)?;
            if state.stopped {
                return None;
            }
            if block.bytes_before + block.bytes <= state.asked_bytes + self.window_bytes {
                state.next += 1;
                return Some(state.next - 1);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::GgufBuilder;
    use ops::quant_format::QuantFormat;

    /// Three tensors, of which the second takes several blocks.
    fn model(folder: &tempfile::TempDir) -> (PathBuf, Vec<String>) {
        let mut builder = GgufBuilder::new();
        let mut names = Vec::new();
        for (index, columns) in [16u64, 5 << 20, 32].into_iter().enumerate() {
            let name = format!("tensor{index}");
            let bytes = vec![index as u8; 4 * columns as usize];
            builder.tensor(&name, QuantFormat::F32, &[columns], bytes);
            names.push(name);
        }
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, builder.to_bytes().unwrap()).unwrap();
        (path, names)
    }

    #[test]
    fn every_tensor_is_read_whatever_the_window_and_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let (path, names) = model(&folder);
        let model = crate::open(&path).unwrap();
        for threads in [0, 1, 3] {
            for window_bytes in [0, 1 << 30] {
                let settings = ReadAheadSettings { threads, window_bytes };
                let ahead = ReadAhead::start(&model, names.clone(), settings).unwrap();
                for name in &names {
                    ahead.wait(name).unwrap();
                    model.release(name);
                    let index = name.as_bytes()[6] - b'0';
                    assert!(model.tensor(name).unwrap().bytes.iter().all(|byte| *byte == index));
                }
                ahead.wait("no such tensor").unwrap();
                let read = if threads == 0 { 0 } else { 4 * (16 + (5 << 20) + 32) };
                assert_eq!(ahead.counts().read_bytes, read);
            }
        }
    }

    #[test]
    fn no_more_than_the_window_is_read_before_it_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (path, names) = model(&folder);
        let model = crate::open(&path).unwrap();
        let settings = ReadAheadSettings { threads: 2, window_bytes: 0 };
        let ahead = ReadAhead::start(&model, names.clone(), settings).unwrap();
        ahead.wait(&names[0]).unwrap();
        // One block more at the most: the smallest window.
        assert!(ahead.counts().read_bytes <= 64 + BLOCK_BYTES as u64);
    }

    #[test]
    fn a_file_cut_off_is_an_error_and_not_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let (path, names) = model(&folder);
        let model = crate::open(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let settings = ReadAheadSettings { threads: 2, window_bytes: 1 << 30 };
        let ahead = ReadAhead::start(&model, names.clone(), settings).unwrap();
        let error = ahead.wait(&names[1]).unwrap_err().to_string();
        assert!(error.contains("model.gguf: it ends before byte"), "{error}");
    }
}
