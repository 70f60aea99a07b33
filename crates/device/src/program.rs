//! What must a backend provide? Loading a tape with its weights, and running one step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ops::WeightId;
use ops::quant_format::QuantFormat;

use crate::{Capacity, HeapPool, OwnCopies, PackedStore, Pinning, StepInputs, StepOutputs, Tape};

/// A kind of device. Made once; loads any number of models.
pub trait Backend {
    /// As in `--device`; of several devices, which and what of a model is where.
    fn name(&self) -> &str;

    /// Builds everything a model needs; nothing is allocated after it.
    ///
    /// # Errors
    /// [`LoadError`] for an op, format or shape the backend lacks, or memory that is not there.
    fn load(
        &self,
        tape: Tape,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Program>, LoadError>;

    /// What [`Backend::load`] would take, without taking it: the `memory` of the program it would
    /// give, and what is needed only on the way there.
    ///
    /// # Errors
    /// As [`Backend::load`], as far as the tensor table tells.
    fn memory(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<MemoryUse, LoadError>;

    /// The same of each of its devices, where it is several: each has heaps of its own.
    ///
    /// # Errors
    /// As [`Backend::memory`].
    fn memory_of_each(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<Vec<DeviceMemory>, LoadError> {
        let used = self.memory(tape, weights, capacity)?;
        Ok(vec![DeviceMemory { used, is_own: self.own_memory().is_some() }])
    }

    /// Whether its programs sample what a grammar allows; elsewhere a constrained request must be
    /// refused.
    fn follows_grammars(&self) -> bool {
        false
    }

    /// Whether its programs copy states in and out ([`Program::state_bytes`]).
    fn copies_states(&self) -> bool {
        false
    }

    /// Tokens of a step with which it reads prompts fastest, near enough; larger ones would only
    /// make others wait.
    fn step_tokens_best(&self) -> u32 {
        256
    }

    /// Settings about its memory that it can do nothing about, and why. Who asks for one is told so
    /// when a model is loaded.
    fn without_effect(&self) -> &'static [(MemorySetting, &'static str)] {
        &[]
    }

    /// Bytes that the device has left, where it has memory of its own; `None`: it is the machine's.
    fn own_memory(&self) -> Option<u64> {
        None
    }

    /// The order in which [`Backend::load`] asks for weights, so that they can be read ahead.
    fn load_order(&self, tape: &Tape) -> Vec<WeightId> {
        (0..tape.weights.len() as u32).map(WeightId).collect()
    }

    /// How fast it reads its memory, about: measured in milliseconds, or known of its kind. `None`
    /// where nobody knows.
    fn read_bytes_per_second(&self) -> Option<f64> {
        None
    }

    /// Measures what this device can do at best, reading a set of `read_bytes`; takes seconds.
    /// `None` where nobody wrote such loops, or there is no memory for the set.
    fn ceilings(&self, _read_bytes: usize) -> Option<Ceilings> {
        None
    }
}

/// A setting that only some devices have a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemorySetting {
    /// `HeapSettings::warm_up_bytes`.
    WarmUpSizes,
    /// Heaps from a library.
    Allocator,
    /// What [`WeightSource::pinning`] asks for.
    Pinning,
    /// [`WeightSource::packed_store`].
    PackedStore,
}

/// What a device could do at best: the roofs that a model's speed is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// The set that was read, over and over.
    pub read_set_bytes: u64,
    pub read_bytes_per_second: f64,
    /// Multiply-adds in f32, counted as two operations each, as below.
    pub float_ops_per_second: f64,
    /// 8-bit integer dot products; `None` where the device has no such instruction.
    pub integer_ops_per_second: Option<f64>,
    /// bfloat16 dot products; `None` where the device has no such instruction.
    pub bfloat_ops_per_second: Option<f64>,
}

/// Where a backend gets weights from, by the names in the tape.
pub trait WeightSource: Sync {
    /// # Errors
    /// [`LoadError`] naming the tensor when it is missing or its shape differs.
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError>;

    /// What whoever gave the model calls this tensor, for errors.
    fn own_name(&self, name: &str) -> String {
        name.to_owned()
    }

    /// What is known of a tensor without a look at its bytes, which may have to be made first.
    ///
    /// # Errors
    /// As [`WeightSource::weight`].
    fn shape(&self, name: &str) -> Result<WeightShape, LoadError> {
        let WeightView { format, rows, cols, bytes } = self.weight(name)?;
        Ok(WeightShape { format, rows, cols, bytes: bytes.len() })
    }

    /// Lends a tensor to `take`, which reads it once: it is in memory by then, and may be gone
    /// from there afterwards.
    ///
    /// # Errors
    /// As [`WeightSource::weight`], and when the disk fails.
    fn lend(&self, name: &str, take: &mut dyn FnMut(WeightView<'_>)) -> Result<(), LoadError> {
        take(self.weight(name)?);
        Ok(())
    }

    /// A stored tensor for as long as it is needed, for a backend that packs it behind steps;
    /// `None`: it is only lent.
    fn lasting(&self, _name: &str) -> Option<Arc<dyn StoredBytes>> {
        None
    }

    /// Who decides which weights are pinned; `None`: none are.
    fn pinning(&self) -> Option<&dyn Pinning> {
        None
    }

    /// Where the backend's own form of these weights may be kept, if anywhere.
    fn packed_store(&self) -> Option<&dyn PackedStore> {
        None
    }
}

/// A stored tensor: `rows` rows of `cols` elements, each row a whole number of blocks.
#[derive(Clone, Copy)]
pub struct WeightView<'a> {
    pub format: QuantFormat,
    pub rows: usize,
    pub cols: usize,
    pub bytes: &'a [u8],
}

/// A stored tensor's bytes, for as long as this lives.
pub trait StoredBytes: Send + Sync {
    fn bytes(&self) -> &[u8];

    /// They will hardly be read again and need not be in memory.
    fn release(&self);

    /// Whether somebody waits to change them: they must not be read much longer.
    fn are_wanted(&self) -> bool;
}

/// A stored tensor without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightShape {
    pub format: QuantFormat,
    pub rows: usize,
    pub cols: usize,
    /// How many it is long.
    pub bytes: usize,
}

/// A model on a device, ready to run steps. Steps run one after another.
pub trait Program: Send {
    /// Runs one step, or a segment of one: reads `inputs`, replaces the contents of `outputs`.
    ///
    /// # Errors
    /// [`Fault`] when the device failed; sequences of the step must then be given up.
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault>;

    /// How this program keeps the keys and values of one block, over all layers.
    fn block_form(&self) -> BlockForm;

    /// Copies a block out, into `bytes` of the form's length.
    fn read_block(&mut self, block: u32, bytes: &mut [u8]);

    /// Copies what [`Program::read_block`] of the same form gave back into a block.
    fn write_block(&mut self, block: u32, bytes: &[u8]);

    /// How long a state is that a sequence carries and that can be copied in and out (see
    /// [`crate::BlockCopy`]); `None` where sequences carry nothing, or it stays on the device.
    fn state_bytes(&self) -> Option<usize> {
        None
    }

    /// Copies of the state in a place what is from the byte at `offset` on, and zeros behind its
    /// end; for programs whose states have a length.
    fn read_state(&mut self, _place: u32, _offset: usize, _bytes: &mut [u8]) {
        unreachable!("invariant: states of this program are not copied")
    }

    /// The same copies, for threads beside the one that runs steps. `None` where only that one
    /// may copy.
    fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
        None
    }

    fn memory(&self) -> MemoryUse;

    /// Begins to touch, beside the steps, up to `bytes` of what steps will write, in the order in
    /// which they will: so that no step is the first to touch it and waits for the system.
    fn warm(&mut self, _bytes: u64) {}

    /// Whether steps before the first request save that one more than they delay it.
    fn gains_from_first_steps(&self) -> bool {
        true
    }

    /// Where its memory is from; more than one where there are several kinds of it.
    fn heap_pools(&self) -> Vec<HeapPool> {
        Vec::new()
    }

    /// What it copies itself, besides blocks.
    fn own_copies(&self) -> OwnCopies {
        OwnCopies::default()
    }

    /// How long each of its parts has run, where it is on several devices.
    fn clocks(&self) -> Vec<PartClock> {
        Vec::new()
    }
}

/// What one device of several does of a model, and how long it has; copies of it count together.
#[derive(Clone, Debug)]
pub struct PartClock {
    name: String,
    layers: u32,
    nanoseconds: Arc<AtomicU64>,
}

impl PartClock {
    pub fn new(name: String, layers: u32) -> Self {
        Self { name, layers, nanoseconds: Arc::default() }
    }

    /// The device's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// That it has.
    pub fn layers(&self) -> u32 {
        self.layers
    }

    /// A step of its part took so long.
    pub fn add(&self, time: Duration) {
        // Centuries fit.
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// As if it had not run yet.
    pub fn reset(&self) {
        self.nanoseconds.store(0, Ordering::Relaxed);
    }

    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }
}

/// Copies blocks while other blocks are computed with. Each call has finished when it returns; a
/// device with copy streams waits for its own.
pub trait BlockCopier: Send + Sync {
    /// As [`Program::read_block`].
    fn read_block(&self, lease: &BlockLease, bytes: &mut [u8]);

    /// As [`Program::write_block`].
    fn write_block(&self, lease: &BlockLease, bytes: &[u8]);
}

/// A block is its holder's alone: no step in flight names it, and there is one lease of it at a
/// time. Made by the queue of copies, which the ring asks only then.
#[derive(Debug)]
pub struct BlockLease {
    pub(crate) block: u32,
}

impl BlockLease {
    pub fn block(&self) -> u32 {
        self.block
    }
}

/// What a block's bytes are; blocks of equal forms can be exchanged, across restarts too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockForm {
    /// Element type, order of dimensions and their sizes.
    pub name: String,
    pub bytes: usize,
}

/// Bytes held by a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    /// Whatever a step writes besides keys and values.
    pub activations_bytes: u64,
    /// Held while loading, gone afterwards.
    pub staging_bytes: u64,
    /// What of the former three is in the machine's memory although the device has its own.
    pub host_bytes: u64,
}

/// Bytes of what one device holds of a model.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    pub used: MemoryUse,
    /// Whether they are the device's, or the machine's.
    pub is_own: bool,
}

/// The model cannot be loaded here; the text names the tensor, op or limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// The device failed while running a step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);
