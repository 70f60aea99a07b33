//! How do a model's weights come into memory, and which of them stay there? Read ahead in the order
//! of use, let go of once repacked, pinned as far as asked for and allowed, and counted.
//!
//! One manager is one load. Reading ahead begins with the first matrix that is really read, so a
//! start from the repack cache reads nothing of the model file but its vectors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use device::{LoadError, Pinning, WeightView};
use weights::{
    CacheFilling, DirectReads, ReadAhead, ReadAheadCounts, ReadAheadSettings, TensorShape,
    TensorView, WeightFile,
};

use crate::available_memory::available_memory;
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
    pub direct_io: DirectIo,
    /// Models of so many bytes and more, in the system's cache, are packed behind the first steps,
    /// which do with what the files hold; smaller ones before they count as loaded.
    pub pack_behind_bytes_min: u64,
}

/// Whether files are read past the system's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectIo {
    /// Where it pays; then the next start finds them in the cache all the same.
    Auto,
    On,
    Off,
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
            direct_io: DirectIo::Auto,
            pack_behind_bytes_min: 1 << 30,
        }
    }
}

/// Read before it is asked for: enough for the largest matrix of common models to be on its way
/// while another is packed, little next to any machine that holds such a model.
const WINDOW_BYTES: usize = 512 << 20;
/// Smaller models are there in a moment, however they are read.
const AUTO_BYTES_MIN: u64 = 256 << 20;
/// Two tensors on their way keep a disk busy while buffers change hands.
const DIRECT_THREADS_MIN: usize = 2;

impl WeightOptions {
    /// With what pays in place of [`DirectIo::Auto`].
    pub(crate) fn settled(self, file: &WeightFile) -> Self {
        let bytes = file.parts().iter().map(weights::FilePart::file_bytes).sum();
        let chance = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let cached = || weights::is_mostly_cached(file, u64::from(chance.subsec_nanos()));
        Self { direct_io: self.direct_io.settled(bytes, cached), ..self }
    }

    fn is_direct(&self) -> bool {
        self.direct_io == DirectIo::On
    }

    fn read_ahead(&self) -> ReadAheadSettings {
        let least = if self.is_direct() { DIRECT_THREADS_MIN } else { 0 };
        let threads = self.prefetch_threads.max(least);
        ReadAheadSettings { threads, window_bytes: WINDOW_BYTES }
    }

    /// Whether repacked weights may be used where the file they were kept in is mapped, until they
    /// are copied. What is to be pinned is copied first.
    pub(crate) fn in_place(&self) -> bool {
        self.use_mmap && !self.pin_all_weights && !self.pin_critical_weights
    }

    /// Whether weights that are in the system's cache are packed behind the first steps.
    pub(crate) fn packs_behind_steps(&self, file: &WeightFile) -> bool {
        let is_large = file.file_bytes() >= self.pack_behind_bytes_min;
        is_large && self.in_place() && !self.is_direct()
    }

    /// Held while a model is loaded, besides what its device takes.
    pub(crate) fn staging_bytes(&self, file: &WeightFile) -> u64 {
        let is_copied =
            |name: &str| !self.use_mmap || file.shape(name).is_ok_and(|shape| !shape.is_stored);
        let copied = file.tensors().filter(|tensor| is_copied(tensor.name()));
        let copied = copied.filter_map(weights::TensorInfo::bytes).max().unwrap_or(0);
        let all = || file.tensors().filter_map(weights::TensorInfo::bytes);
        let ahead = match self.is_direct() {
            true => all().sum::<u64>().min(all().max().unwrap_or(0).max(WINDOW_BYTES as u64)),
            false => self.read_ahead().staging_bytes() as u64,
        };
        ahead + copied
    }
}

impl DirectIo {
    /// Of files of `bytes` together; nobody is asked what is in the cache where it does not matter.
    fn settled(self, bytes: u64, is_cached: impl FnOnce() -> Option<bool>) -> Self {
        match self {
            Self::Auto if bytes >= AUTO_BYTES_MIN && is_cached() == Some(false) => Self::On,
            Self::Auto => Self::Off,
            set => set,
        }
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

/// Weights on their device. Dropping it ends what is done for the next start.
pub(crate) struct LoadedWeights {
    pub(crate) status: WeightStatus,
    pub(crate) _filling: Option<CacheFilling>,
}

pub(crate) struct WeightManager<'a> {
    options: WeightOptions,
    file: &'a WeightFile,
    /// The tape's tensors, in the order in which they are asked for.
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
    /// The system said no to so many bytes: it is asked again for fewer only.
    too_many: Option<u64>,
}

impl<'a> WeightManager<'a> {
    pub(crate) fn new(
        options: WeightOptions,
        file: &'a WeightFile,
        names: impl Iterator<Item = String>,
        progress: Option<Arc<LoadProgress>>,
    ) -> Self {
        // A tensor that holds several weights is read once.
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
        let count = || self.count(size);
        match self.ahead(rows > 1)? {
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

    /// A tensor of so many bytes was handed over.
    pub(crate) fn count(&self, bytes: usize) {
        self.progress.iter().for_each(|progress| progress.add(bytes as u64));
    }

    /// Whoever reads ahead, begun with the first matrix; `None`: nobody does.
    fn ahead(&self, is_matrix: bool) -> Result<Option<Ahead>, LoadError> {
        let settings = self.options.read_ahead();
        let mut ahead = lock(&self.ahead);
        if ahead.is_none() && settings.threads > 0 && is_matrix {
            let order = self.order.iter().cloned();
            let started = match self.options.is_direct() {
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

    /// Begins to bring the files into the system's cache for the next start, if they were read past
    /// it because that paid. Without a thread for it nothing is lost but the next start's time.
    pub(crate) fn fill_cache(&self, asked: DirectIo) -> Option<CacheFilling> {
        let is_direct = matches!(&*lock(&self.ahead), Some(Ahead::Direct(_)));
        if asked != DirectIo::Auto || !is_direct {
            return None;
        }
        let has_room = |left| available_memory().is_some_and(|free| free / 2 > left);
        CacheFilling::start(self.file, has_room).ok()
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
        if !fits || pins.too_many.is_some_and(|most| bytes >= most) {
            pins.refused += 1;
            return false;
        }
        true
    }

    fn pinned(&self, bytes: u64) {
        lock(&self.pins).bytes += bytes;
    }

    fn refused(&self, name: &str, bytes: u64, reason: &std::io::Error) {
        let mut pins = lock(&self.pins);
        pins.refused += 1;
        // Of all of them one line.
        if pins.too_many.replace(bytes).is_some() {
            return;
        }
        tracing::warn!(
            "the {bytes} bytes of {name} cannot be pinned after {}: {reason}; the model works \
             without, and what is smaller is tried. Raise the limit on locked memory \
             (`ulimit -l`, LimitMEMLOCK= of a systemd unit, --ulimit memlock=-1 of a container), \
             or lower weights.max_pinned_mb",
            pins.bytes
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_past_the_cache_where_they_are_large_and_not_in_it() {
        use DirectIo::{Auto, Off, On};
        for (asked, bytes, cached, settled) in [
            (Auto, AUTO_BYTES_MIN, Some(false), On),
            (Auto, AUTO_BYTES_MIN, Some(true), Off),
            (Auto, AUTO_BYTES_MIN, None, Off),
            (On, 1, Some(true), On),
            (Off, AUTO_BYTES_MIN, Some(false), Off),
        ] {
            assert_eq!(asked.settled(bytes, || cached), settled, "{asked:?} {bytes} {cached:?}");
        }
        let unasked = || -> Option<bool> { unreachable!("a small model is not looked at") };
        assert_eq!(Auto.settled(AUTO_BYTES_MIN - 1, unasked), Off);
    }
}
