//! How do a model's weights come into memory, and which of them stay there? Read ahead in the order
//! of use, let go of once repacked, pinned as far as asked for and allowed, and counted.
//!
//! One manager is one load. Reading ahead begins with the first tensor that is really read, so a
//! start from the repack cache reads nothing of the model file.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device::{LoadError, Pinning, Tape, WeightView};
use weights::{
    DirectReads, ReadAhead, ReadAheadCounts, ReadAheadSettings, TensorShape, TensorView, WeightFile,
};

use crate::load_progress::LoadProgress;
use crate::page_faults::{PageFaults, page_faults};

/// How weights are read and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightOptions {
    /// Keep the weights of the first `critical_layers` layers, of the embedding and of the output
    /// in memory whatever else needs it.
    pub pin_critical_weights: bool,
    pub critical_layers: u32,
    /// The same for all weights.
    pub pin_all_weights: bool,
    /// Bytes pinned at most; `None`: as many as the system allows.
    pub pinned_bytes_max: Option<u64>,
    /// Threads that read tensors before they are asked for; 0: none.
    pub prefetch_threads: usize,
    /// Of what steps write, touched before they come to it; 0: nothing.
    pub warmup_bytes: u64,
    /// Look at tensors where the file is mapped; else they are read into a buffer first, which a
    /// file that is cut off meanwhile cannot turn into a crash.
    pub use_mmap: bool,
    /// Read past the system's cache, which few cores do faster and which leaves nothing there for
    /// the next start.
    pub direct_io: bool,
}

impl Default for WeightOptions {
    fn default() -> Self {
        Self {
            pin_critical_weights: false,
            critical_layers: 4,
            pin_all_weights: false,
            pinned_bytes_max: None,
            // Reading ahead cost 9 % of a warm start of 4 GB, and two threads sped up no cold one.
            prefetch_threads: 0,
            warmup_bytes: 512 << 20,
            use_mmap: true,
            direct_io: false,
        }
    }
}

/// Read before it is asked for: enough for the largest matrix of common models to be on its way
/// while another is packed, little next to any machine that holds such a model.
const WINDOW_BYTES: usize = 512 << 20;
/// Two tensors on their way keep a disk busy while buffers change hands.
const DIRECT_THREADS_MIN: usize = 2;

impl WeightOptions {
    fn read_ahead(&self) -> ReadAheadSettings {
        let least = if self.direct_io { DIRECT_THREADS_MIN } else { 0 };
        let threads = self.prefetch_threads.max(least);
        ReadAheadSettings { threads, window_bytes: WINDOW_BYTES }
    }

    /// Whether repacked weights may be used where the file they were kept in is mapped, until they
    /// are copied. What is to be pinned is copied first.
    pub(crate) fn in_place(&self) -> bool {
        self.use_mmap && !self.pin_all_weights && !self.pin_critical_weights
    }

    /// Held while a model is loaded, besides what its device takes.
    pub(crate) fn staging_bytes(&self, file: &WeightFile) -> u64 {
        let is_copied =
            |name: &str| !self.use_mmap || file.shape(name).is_ok_and(|shape| !shape.is_stored);
        let copied = file.tensors().filter(|tensor| is_copied(tensor.name()));
        let copied = copied.filter_map(weights::TensorInfo::bytes).max().unwrap_or(0);
        let all = || file.tensors().filter_map(weights::TensorInfo::bytes);
        let ahead = match self.direct_io {
            true => all().sum::<u64>().min(all().max().unwrap_or(0).max(WINDOW_BYTES as u64)),
            false => self.read_ahead().staging_bytes() as u64,
        };
        ahead + copied
    }
}

/// How a model's weights were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WeightStatus {
    pub load_seconds: f64,
    /// Read by the threads that read ahead.
    pub prefetched_bytes: u64,
    /// Packing waited so long for them.
    pub stalled_seconds: f64,
    pub pinned_bytes: u64,
    /// Tensors that should have been pinned and were not.
    pub pins_refused: u64,
    /// Of the whole process, while the model was loaded: pages made, and pages read from disk.
    pub minor_faults: u64,
    pub major_faults: u64,
}

impl WeightStatus {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            load_seconds,
            prefetched_bytes,
            stalled_seconds,
            pinned_bytes,
            pins_refused,
            minor_faults,
            major_faults,
        } = other;
        self.load_seconds += load_seconds;
        self.prefetched_bytes += prefetched_bytes;
        self.stalled_seconds += stalled_seconds;
        self.pinned_bytes += pinned_bytes;
        self.pins_refused += pins_refused;
        self.minor_faults += minor_faults;
        self.major_faults += major_faults;
    }
}

pub(crate) struct WeightManager<'a> {
    options: WeightOptions,
    file: &'a WeightFile,
    /// The tape's tensors, in its order.
    order: Vec<String>,
    /// Begun with the first tensor that is read.
    ahead: Mutex<Option<Ahead>>,
    /// The tensor that is lent, where the map is not to be looked at or no file holds it as one.
    copied: Mutex<Vec<u8>>,
    pins: Mutex<Pins>,
    started: Instant,
    faults: PageFaults,
    progress: Option<Arc<LoadProgress>>,
}

/// Threads that read tensors before they are asked for.
#[derive(Clone)]
enum Ahead {
    /// Into the system's cache.
    Cached(Arc<ReadAhead>),
    /// Into buffers.
    Direct(Arc<DirectReads>),
}

impl Ahead {
    fn counts(&self) -> ReadAheadCounts {
        match self {
            Self::Cached(ahead) => ahead.counts(),
            Self::Direct(reads) => reads.counts(),
        }
    }
}

#[derive(Default)]
struct Pins {
    bytes: u64,
    refused: u64,
    /// The system said no: it is not asked again.
    ended: bool,
}

impl<'a> WeightManager<'a> {
    pub(crate) fn new(
        options: WeightOptions,
        file: &'a WeightFile,
        tape: &Tape,
        progress: Option<Arc<LoadProgress>>,
    ) -> Self {
        // A tensor that holds several weights is read once.
        let names = tape.weights.iter().map(|weight| weight.name.clone());
        // Adapters are in memory already.
        let mut order: Vec<String> = names.filter(|name| file.contains(name)).collect();
        order.dedup();
        if let Some(progress) = &progress {
            // A tensor that is missing is told by who asks for it.
            let shapes = order.iter().filter_map(|name| file.shape(name).ok());
            progress.expect(shapes.map(|shape| shape.bytes as u64).sum());
        }
        Self {
            progress,
            options,
            file,
            order,
            ahead: Mutex::default(),
            copied: Mutex::default(),
            pins: Mutex::default(),
            started: Instant::now(),
            faults: page_faults(),
        }
    }

    /// Lends a tensor that is in memory by then, and lets go of it.
    pub(crate) fn lend(
        &self,
        name: &str,
        take: &mut dyn FnMut(WeightView<'_>),
    ) -> Result<(), LoadError> {
        let wrong = |error: weights::WeightsError| LoadError(error.to_string());
        let shape = self.file.shape(name).map_err(wrong)?;
        let TensorShape { format, rows, cols, is_stored, bytes: size, .. } = shape;
        let count = || self.progress.iter().for_each(|progress| progress.add(size as u64));
        match self.ahead()? {
            Some(Ahead::Cached(ahead)) => ahead.wait(name).map_err(wrong)?,
            Some(Ahead::Direct(reads)) => {
                let show = |bytes: &[u8]| take(WeightView { format, rows, cols, bytes });
                if reads.lend(name, show).map_err(wrong)? {
                    count();
                    return Ok(());
                }
            }
            None => {}
        }
        if self.options.use_mmap && is_stored {
            let TensorView { bytes, .. } = self.file.tensor(name).map_err(wrong)?;
            take(WeightView { format, rows, cols, bytes });
            self.file.release(name);
            count();
            return Ok(());
        }
        let mut copied = lock(&self.copied);
        self.file.read_into(name, &mut copied).map_err(wrong)?;
        take(WeightView { format, rows, cols, bytes: &copied });
        count();
        Ok(())
    }

    /// Whoever reads ahead, begun with the first call; `None`: nobody does.
    fn ahead(&self) -> Result<Option<Ahead>, LoadError> {
        let settings = self.options.read_ahead();
        let mut ahead = lock(&self.ahead);
        if ahead.is_none() && settings.threads > 0 {
            let order = self.order.iter().cloned();
            let started = match self.options.direct_io {
                true => {
                    DirectReads::start(self.file, order, settings).map(Arc::new).map(Ahead::Direct)
                }
                false => {
                    ReadAhead::start(self.file, order, settings).map(Arc::new).map(Ahead::Cached)
                }
            };
            *ahead = Some(started.map_err(|error| LoadError(error.to_string()))?);
        }
        Ok(ahead.clone())
    }

    /// What this load was like, once it is over.
    pub(crate) fn status(&self) -> WeightStatus {
        let read = lock(&self.ahead).as_ref().map(|ahead| ahead.counts()).unwrap_or_default();
        let pins = lock(&self.pins);
        let faults = page_faults();
        WeightStatus {
            load_seconds: self.started.elapsed().as_secs_f64(),
            prefetched_bytes: read.read_bytes,
            stalled_seconds: Duration::as_secs_f64(&read.stalled),
            pinned_bytes: pins.bytes,
            pins_refused: pins.refused,
            minor_faults: faults.minor.saturating_sub(self.faults.minor),
            major_faults: faults.major.saturating_sub(self.faults.major),
        }
    }

    /// Embedding, output, and the first layers; the names are those of GGUF, which tapes use.
    fn is_critical(&self, name: &str) -> bool {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
        match layer.and_then(|number| number.parse::<u32>().ok()) {
            Some(layer) => layer < self.options.critical_layers,
            None => true,
        }
    }
}

impl Pinning for WeightManager<'_> {
    fn wants(&self, name: &str, bytes: u64) -> bool {
        let WeightOptions { pin_all_weights, pin_critical_weights, pinned_bytes_max, .. } =
            self.options;
        if !(pin_all_weights || pin_critical_weights && self.is_critical(name)) {
            return false;
        }
        let mut pins = lock(&self.pins);
        let fits = pinned_bytes_max.is_none_or(|most| pins.bytes + bytes <= most);
        if pins.ended || !fits {
            pins.refused += 1;
            return false;
        }
        true
    }

    fn pinned(&self, bytes: u64) {
        lock(&self.pins).bytes += bytes;
    }

    fn refused(&self, name: &str, reason: &std::io::Error) {
        let mut pins = lock(&self.pins);
        pins.refused += 1;
        pins.ended = true;
        tracing::warn!(
            "{name} and what follows it cannot be pinned after {} bytes: {reason}; the model works \
             without. Raise the limit on locked memory (`ulimit -l`, LimitMEMLOCK= of a systemd \
             unit, --ulimit memlock=-1 of a container), or lower weights.max_pinned_mb",
            pins.bytes
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
