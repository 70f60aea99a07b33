//! How does an NVIDIA GPU serve as a backend? Opened by number; loads tapes as any other.

use std::sync::Arc;

use device::{
    Backend, BlitSettings, Capacity, Ceilings, HeapSettings, LoadError, MemorySetting, MemoryUse,
    Program, SharedAllocator, Tape, WeightSource,
};

use ops::kv_format::KvFormat;

use crate::driver::CudaError;
use crate::gpu::Gpu;
use crate::heaps::HeapOptions;
use crate::lowering::{Plan, with_halves};
use crate::memory;
use crate::program::{CudaProgram, Resources};

/// One GPU.
pub struct CudaBackend {
    gpu: Arc<Gpu>,
    resources: Resources,
    memory_max: Option<u64>,
}

impl CudaBackend {
    /// Opens the device of this number, as `nvidia-smi` lists them.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, one that is too old, no such device, or one that is too old.
    pub fn open(ordinal: u32) -> Result<Self, CudaError> {
        let (heaps, copies) = (HeapOptions::default(), BlitSettings::default());
        let resources = Resources { kv_format: KvFormat::F16, heaps, copies };
        Ok(Self { gpu: Gpu::open(ordinal)?, resources, memory_max: None })
    }

    /// The same with all memory of its programs out of heaps like these; `host` gives those of the
    /// process, in place of pinned ones of the driver.
    #[must_use]
    pub fn with_heaps(mut self, settings: HeapSettings, host: Option<SharedAllocator>) -> Self {
        self.resources.heaps = HeapOptions { settings, host };
        self
    }

    /// The same with models that take no more than so many bytes of the card each.
    #[must_use]
    pub fn with_memory_max(self, memory_max: Option<u64>) -> Self {
        Self { memory_max, ..self }
    }

    /// The same with keys and values kept in `format`.
    ///
    /// # Errors
    /// [`CudaError::KvFormat`] for one that no kernel reads.
    pub fn with_kv_format(mut self, format: KvFormat) -> Result<Self, CudaError> {
        match format {
            KvFormat::F16 | KvFormat::Int8 => self.resources.kv_format = format,
            KvFormat::Bf16 | KvFormat::Int16 => return Err(CudaError::KvFormat(format.name())),
        }
        Ok(self)
    }

    /// The same with weights copied in this way.
    #[must_use]
    pub fn with_copies(mut self, settings: BlitSettings) -> Self {
        self.resources.copies = settings;
        self
    }

    /// The GPU's own name.
    pub fn device_name(&self) -> &str {
        &self.gpu.name
    }

    /// Loads a model to see where its time goes; for development.
    ///
    /// # Errors
    /// As [`Backend::load`].
    pub fn load_profiled(
        &self,
        tape: Tape,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Profiled, LoadError> {
        Ok(Profiled(CudaProgram::load(&self.gpu, &self.resources, tape, weights, capacity)?))
    }
}

/// A program whose passes can be timed one by one.
pub struct Profiled(CudaProgram);

impl Profiled {
    /// The program itself.
    pub fn program(&mut self) -> &mut dyn Program {
        &mut self.0
    }

    /// Seconds that the passes of each kind took together, were the step like the last one, of
    /// `tokens` at most 64.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    pub fn seconds(&self, tokens: u32, repeats: u32) -> Result<Vec<(String, f64)>, CudaError> {
        self.0.profile(tokens, repeats)
    }
}

impl Profiled {
    /// Items of the last layer of experts in the last step: for few tokens, how many of its experts
    /// were chosen. `None`: the model has none.
    ///
    /// # Errors
    /// [`CudaError`] when the device failed.
    pub fn expert_items(&self) -> Result<Option<u32>, CudaError> {
        self.0.expert_items()
    }
}

impl CudaBackend {
    /// Whether there are kernels for all of a tape, and forms for all its weights; needs no device.
    ///
    /// # Errors
    /// [`LoadError`] naming what there is none for.
    pub fn check(tape: &Tape, weights: &dyn WeightSource) -> Result<(), LoadError> {
        Plan::new(&with_halves(tape), weights, KvFormat::F16).map(drop)
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &str {
        "cuda"
    }

    fn load(
        &self,
        tape: Tape,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Program>, LoadError> {
        Ok(Box::new(CudaProgram::load(&self.gpu, &self.resources, tape, weights, capacity)?))
    }

    fn memory(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<MemoryUse, LoadError> {
        let tape = with_halves(tape);
        let plan = Plan::new(&tape, weights, self.resources.kv_format)?;
        Ok(memory::memory_use(&tape, &plan, capacity, &self.resources.copies))
    }

    fn follows_grammars(&self) -> bool {
        true
    }

    fn without_effect(&self) -> &'static [(MemorySetting, &'static str)] {
        &[
            (MemorySetting::WarmUpSizes, "its heaps are written whole when they are made"),
            (MemorySetting::Pinning, "memory of the card is never paged out"),
            (MemorySetting::PackedStore, "weights are laid out for the card at each load"),
        ]
    }

    /// 16 for each multiprocessor: a matrix of 4,096 rows is then 4 items of 128 rows and tokens
    /// for each pair, and launches and ragged ends are a few percent. 2,048 where there are 132.
    fn step_tokens_best(&self) -> u32 {
        step_tokens_best(self.gpu.multiprocessors)
    }

    fn own_memory(&self) -> Option<u64> {
        let free = self.gpu.free_bytes().ok().map(|bytes| bytes as u64);
        free.into_iter().chain(self.memory_max).min()
    }

    fn read_bytes_per_second(&self) -> Option<f64> {
        Some(self.gpu.memory_bytes_per_second).filter(|rate| *rate > 0.0)
    }

    fn ceilings(&self, _read_bytes: usize) -> Option<Ceilings> {
        None
    }
}

fn step_tokens_best(multiprocessors: u32) -> u32 {
    let most = (16 * multiprocessors).clamp(256, 2048);
    1 << most.ilog2()
}

#[cfg(test)]
mod tests {
    use super::step_tokens_best;

    #[test]
    fn larger_devices_take_longer_steps_up_to_a_bound() {
        // RTX 3050, RTX 3090, A100, H100, H200, B200 and one that nobody has.
        for (multiprocessors, tokens) in
            [(1, 256), (20, 256), (82, 1024), (108, 1024), (132, 2048), (148, 2048), (9999, 2048)]
        {
            assert_eq!(step_tokens_best(multiprocessors), tokens, "{multiprocessors}");
        }
    }
}
