//! Which tier has a block, and who moves it?
//!
//! The index and the memory tier are behind a lock that is held for moments only. One thread owns
//! the disk: it writes what falls out of memory and reads what is asked for, reads first. Both its
//! queues are bounded: a block that finds no place in them is dropped and counted, for a cache may
//! forget.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::disk::Disk;
use crate::ram::Ram;
use crate::{BlockBuffers, BlockBytes, BlockKey};

/// Blocks on their way to disk: a second of a fast disk's writing is plenty of slack.
const WRITE_QUEUE_BYTES: usize = 64 << 20;
/// Blocks read for requests that have not taken them yet.
const LOADED_BYTES_MAX: u64 = 256 << 20;
/// How soon a model makes room for others that have come to the same folder.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// Requests waiting for a read.
const LOADS_MAX: usize = 64;

/// Budgets; 0 bytes turn a tier off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TierSettings {
    /// Of each model.
    pub ram_bytes: u64,
    /// Of all that is in `disk_path`.
    pub disk_bytes: u64,
    /// A folder with one for each model and layout; needed where `disk_bytes` is not 0.
    pub disk_path: Option<PathBuf>,
}

/// The tiers cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    #[error("kv_tiers.disk_bytes is set, kv_tiers.disk_path is not: say where")]
    NoPath,
    #[error("kv_tiers.disk_path: {path} cannot be used: {error}")]
    Folder { path: String, error: io::Error },
    #[error("no thread to copy blocks with: {0}")]
    Thread(io::Error),
}

/// What the tiers hold and have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierCounts {
    pub ram_bytes: u64,
    pub ram_blocks: u64,
    pub disk_bytes: u64,
    pub disk_blocks: u64,
    /// Blocks given to requests.
    pub loaded_blocks_total: u64,
    /// Blocks forgotten because the disk was too slow.
    pub dropped_blocks_total: u64,
    /// Records that were torn or changed.
    pub damaged_blocks_total: u64,
    /// Reads and writes that the disk refused.
    pub disk_errors_total: u64,
}

/// Memory and disk tiers of one model. Dropping it writes what is queued and ends its thread.
pub struct Tiers {
    shared: Arc<Shared>,
    writes: Option<Sender<(BlockKey, BlockBytes)>>,
    loads: Option<Sender<Load>>,
    worker: Option<JoinHandle<()>>,
    block_bytes: usize,
    has_disk: bool,
}

struct Shared {
    state: Mutex<State>,
    /// A block has left the queue for the disk.
    written: Condvar,
    loaded_bytes: AtomicU64,
}

struct State {
    ram: Ram,
    /// Queued for the disk.
    writing: BTreeMap<BlockKey, BlockBytes>,
    on_disk: BTreeSet<BlockKey>,
    /// Counts down what is to be written before the end.
    unsaved: Option<Arc<AtomicU64>>,
    counts: TierCounts,
    /// Of one block, a moving mean; `None` before the first.
    read_seconds: Option<f64>,
}

struct Load {
    keys: Vec<BlockKey>,
    then: Box<dyn FnOnce(Loaded) + Send>,
}

/// Consecutive blocks, in memory until this is dropped.
#[derive(Default)]
pub struct Loaded {
    pub blocks: Vec<BlockBytes>,
    _reserved: Option<Reserved>,
}

/// A part of [`LOADED_BYTES_MAX`].
struct Reserved {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.loaded_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Tiers {
    /// Opens the tiers for blocks of `block_bytes` of the model and layout `name`, read from disk
    /// into `buffers`; what an earlier process left on disk is there.
    ///
    /// # Errors
    /// [`TierError`] naming the setting and what is wrong with it.
    pub fn open(
        settings: &TierSettings,
        name: BlockKey,
        block_bytes: usize,
        buffers: Arc<dyn BlockBuffers>,
    ) -> Result<Self, TierError> {
        let disk = match (settings.disk_bytes, &settings.disk_path) {
            (0, _) => None,
            (_, None) => return Err(TierError::NoPath),
            (bytes, Some(path)) => {
                let disk = Disk::open(path, name, bytes, block_bytes);
                let path = path.display().to_string();
                Some(disk.map_err(|error| TierError::Folder { path, error })?)
            }
        };
        let mut state = State {
            ram: Ram::new(settings.ram_bytes),
            writing: BTreeMap::new(),
            on_disk: disk.as_ref().map(Disk::keys).unwrap_or_default(),
            unsaved: None,
            counts: TierCounts::default(),
            read_seconds: None,
        };
        let has_disk = disk.is_some();
        if let Some(disk) = &disk {
            state.count_disk(disk);
        }
        let (state, loaded_bytes) = (Mutex::new(state), AtomicU64::new(0));
        let shared = Arc::new(Shared { state, written: Condvar::new(), loaded_bytes });
        let (writes, write_queue) = bounded((WRITE_QUEUE_BYTES / block_bytes.max(1)).max(1));
        let (loads, load_queue) = bounded(LOADS_MAX);
        let worker = Worker { shared: Arc::clone(&shared), disk, buffers, is_failing: false };
        let worker = std::thread::Builder::new()
            .name("pelton-copy".to_owned())
            .spawn(move || worker.run(&load_queue, &write_queue))
            .map_err(TierError::Thread)?;
        let (writes, loads) = (Some(writes), Some(loads));
        Ok(Self { shared, writes, loads, worker: Some(worker), block_bytes, has_disk })
    }

    pub fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    pub fn has_disk(&self) -> bool {
        self.has_disk
    }

    /// Takes a block to disk, and waits where the disk is slower.
    pub fn save(&self, key: BlockKey, bytes: BlockBytes) {
        assert_eq!((*bytes).as_ref().len(), self.block_bytes, "a block of another layout");
        let mut state = self.shared.state();
        if let Some(writes) = self.writes.as_ref().filter(|_| self.has_disk)
            && !state.on_disk.contains(&key)
        {
            state.writing.insert(key, Arc::clone(&bytes));
            drop(state);
            // The worker ends only after this.
            let _ = writes.send((key, bytes));
        }
    }

    /// Adds to `left` the blocks that are in memory and yet to be written, and has it counted down
    /// by one with each that is.
    pub fn count_down(&self, left: &Arc<AtomicU64>) {
        let mut state = self.shared.state();
        let in_memory = (state.ram.len() + state.writing.len()) as u64;
        left.fetch_add(in_memory, Ordering::AcqRel);
        state.unsaved = Some(Arc::clone(left));
    }

    /// Waits until a queued block has been dealt with; `false`: none is queued.
    pub fn wait_for_write(&self) -> bool {
        let state = self.shared.state();
        let queued = state.writing.len();
        let is_unchanged = |state: &mut State| queued > 0 && state.writing.len() >= queued;
        let waited = self.shared.written.wait_while(state, is_unchanged);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        queued > 0
    }

    /// Whether the block is in some tier.
    pub fn contains(&self, key: &BlockKey) -> bool {
        self.shared.state().contains(key)
    }

    /// Takes a block that the device gave up: into memory, or to disk where there is no memory for
    /// it. Never waits for the disk.
    pub fn keep(&self, key: BlockKey, bytes: BlockBytes) {
        assert_eq!((*bytes).as_ref().len(), self.block_bytes, "a block of another layout");
        let mut state = self.shared.state();
        if state.contains(&key) {
            return;
        }
        let spilled = state.ram.insert(key, bytes);
        self.spill(&mut state, spilled);
        state.count_ram();
    }

    /// Forgets the block that memory has had longest unused, where there is no disk to take it: its
    /// buffer is for a newer one. `false`: there is none, or it goes to disk when its turn comes.
    pub fn forget_oldest(&self) -> bool {
        let mut state = self.shared.state();
        let is_forgotten = !self.has_disk && state.ram.forget_oldest();
        state.count_ram();
        is_forgotten
    }

    /// Hands blocks that memory has no room for to the disk.
    fn spill(&self, state: &mut State, blocks: Vec<(BlockKey, BlockBytes)>) {
        let Some(writes) = self.writes.as_ref().filter(|_| self.has_disk) else { return };
        for (key, bytes) in blocks {
            if state.on_disk.contains(&key) {
                continue;
            }
            if writes.try_send((key, Arc::clone(&bytes))).is_ok() {
                state.writing.insert(key, bytes);
            } else {
                state.counts.dropped_blocks_total += 1;
            }
        }
    }

    /// How many leading blocks of `keys` are here, and how long reading them takes by what reading
    /// took so far: `None` before the first.
    pub fn find(&self, keys: &[BlockKey]) -> (usize, Option<Duration>) {
        let state = self.shared.state();
        let count = keys.iter().take_while(|key| state.contains(key)).count();
        let read = |key: &&BlockKey| !state.ram.contains(key) && !state.writing.contains_key(key);
        let reads = keys[..count].iter().filter(read).count();
        let seconds = match (reads, state.read_seconds) {
            (0, _) => Some(0.0),
            (_, each) => each.map(|each| each * reads as f64),
        };
        (count, seconds.map(Duration::from_secs_f64))
    }

    /// The leading blocks of `keys` that are in memory: nothing is read, nobody waits.
    pub fn in_memory(&self, keys: &[BlockKey]) -> Loaded {
        let mut state = self.shared.state();
        let mut blocks = Vec::new();
        for key in keys {
            let queued = state.writing.get(key).cloned();
            let Some(block) = state.ram.get(key).or(queued) else { break };
            blocks.push(block);
        }
        Loaded { blocks, _reserved: None }
    }

    /// Reads the leading blocks of `keys` that are here and hands them to `then`, on the thread
    /// that reads. Gives `then` back where too much is being read already.
    ///
    /// # Errors
    /// `then`, uncalled.
    pub fn load<F: FnOnce(Loaded) + Send + 'static>(
        &self,
        keys: Vec<BlockKey>,
        then: F,
    ) -> Result<(), F> {
        let loads = self.loads.as_ref().expect("invariant: open until dropped");
        // Only this thread sends, so what has room now still has it below.
        if loads.is_full() {
            return Err(then);
        }
        let bytes = keys.len() as u64 * self.block_bytes as u64;
        let reserve = |before: u64| {
            let after = before + bytes;
            (after <= LOADED_BYTES_MAX).then_some(after)
        };
        let loaded = &self.shared.loaded_bytes;
        if loaded.fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve).is_err() {
            return Err(then);
        }
        let reserved = Reserved { shared: Arc::clone(&self.shared), bytes };
        let then = Box::new(move |loaded: Loaded| {
            then(Loaded { _reserved: Some(reserved), ..loaded });
        });
        let sent = loads.try_send(Load { keys, then });
        assert!(sent.is_ok(), "the queue of loads had room");
        Ok(())
    }

    pub fn counts(&self) -> TierCounts {
        self.shared.state().counts
    }
}

impl Drop for Tiers {
    /// What is only in memory goes to disk, as far as its budget allows: it survives a restart.
    fn drop(&mut self) {
        if self.has_disk
            && let Some(writes) = self.writes.take()
        {
            let blocks = self.shared.state().ram.drain();
            for block in blocks {
                // Waits: nobody plans steps any more.
                if writes.send(block).is_err() {
                    break;
                }
            }
        }
        drop(self.writes.take());
        drop(self.loads.take());
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic between lock and unlock leaves at worst a count behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn contains(&self, key: &BlockKey) -> bool {
        self.ram.contains(key) || self.writing.contains_key(key) || self.on_disk.contains(key)
    }

    fn count_saved(&self) {
        if let Some(left) = &self.unsaved {
            let one_less = |left: u64| left.checked_sub(1);
            // 0 stays 0.
            let _ = left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
        }
    }

    fn count_ram(&mut self) {
        self.counts.ram_bytes = self.ram.bytes();
        self.counts.ram_blocks = self.ram.len() as u64;
    }

    /// What is no longer on disk, and what is.
    fn take_up(&mut self, disk: &mut Disk) {
        for key in disk.take_gone() {
            self.on_disk.remove(&key);
        }
        self.count_disk(disk);
    }

    fn count_disk(&mut self, disk: &Disk) {
        self.counts.disk_bytes = disk.bytes();
        self.counts.disk_blocks = disk.len() as u64;
        self.counts.damaged_blocks_total = disk.damaged();
    }
}

/// The thread that moves blocks.
struct Worker {
    shared: Arc<Shared>,
    disk: Option<Disk>,
    buffers: Arc<dyn BlockBuffers>,
    /// The last access to the disk failed, and that was said.
    is_failing: bool,
}

impl Worker {
    fn run(mut self, loads: &Receiver<Load>, writes: &Receiver<(BlockKey, BlockBytes)>) {
        let rest = if self.disk.is_some() { TRIM_EVERY } else { Duration::from_secs(3600) };
        let mut trimmed = Instant::now();
        loop {
            if trimmed.elapsed() >= rest {
                self.trim();
                trimmed = Instant::now();
            }
            // Reads first: a request waits for them.
            if let Ok(load) = loads.try_recv() {
                self.load(load);
                continue;
            }
            select! {
                recv(loads) -> load => match load {
                    Ok(load) => self.load(load),
                    Err(_) => break,
                },
                recv(writes) -> write => match write {
                    Ok((key, bytes)) => self.write(key, &bytes),
                    Err(_) => break,
                },
                default(rest) => {}
            }
        }
        // Both queues are closed together; what is in them is still done.
        loads.iter().for_each(|load| self.load(load));
        writes.iter().for_each(|(key, bytes)| self.write(key, &bytes));
    }

    fn trim(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        let error = disk.trim().err();
        self.shared.state().take_up(disk);
        if error.is_some() {
            self.count_failure("the folder's blocks cannot be counted", error);
        }
    }

    fn write(&mut self, key: BlockKey, bytes: &BlockBytes) {
        let Some(disk) = &mut self.disk else { return };
        let error = disk.write(key, (**bytes).as_ref()).err();
        let mut state = self.shared.state();
        state.writing.remove(&key);
        state.take_up(disk);
        if disk.contains(&key) {
            state.on_disk.insert(key);
            state.count_saved();
        } else if error.is_none() {
            state.counts.dropped_blocks_total += 1;
        }
        drop(state);
        self.shared.written.notify_all();
        self.count_failure("a block is not kept", error);
    }

    /// Of failures in a row the first is said.
    fn count_failure(&mut self, what: &str, error: Option<io::Error>) {
        let Some(disk) = &self.disk else { return };
        let has_failed = std::mem::replace(&mut self.is_failing, error.is_some());
        let Some(error) = error else { return };
        self.shared.state().counts.disk_errors_total += 1;
        if !has_failed {
            let folder = disk.folder().display().to_string();
            tracing::warn!(folder, %error, "{what}; further failures are counted only");
        }
    }

    fn load(&mut self, load: Load) {
        let mut blocks = Vec::with_capacity(load.keys.len());
        for key in &load.keys {
            let Some(block) = self.read(key) else { break };
            blocks.push(block);
        }
        self.shared.state().counts.loaded_blocks_total += blocks.len() as u64;
        (load.then)(Loaded { blocks, _reserved: None });
    }

    fn read(&mut self, key: &BlockKey) -> Option<BlockBytes> {
        {
            let mut state = self.shared.state();
            let queued = state.writing.get(key).cloned();
            if let Some(block) = state.ram.get(key).or(queued) {
                return Some(block);
            }
        }
        let disk = self.disk.as_mut()?;
        let start = Instant::now();
        // Where there is no room the block stays where it is, and is computed this time.
        let block = disk.read(key, self.buffers.as_ref()).ok()?;
        let seconds = start.elapsed().as_secs_f64();
        let mut state = self.shared.state();
        if block.is_some() {
            // The last ten or so count.
            let mean = state.read_seconds.unwrap_or(seconds);
            state.read_seconds = Some(mean + (seconds - mean) / 10.0);
        }
        state.take_up(disk);
        block
    }
}
