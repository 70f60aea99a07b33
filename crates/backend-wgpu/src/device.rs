//! How does an adapter serve as a backend? Opened by interface and number; loads tapes.

use std::sync::Arc;

use device::{
    Backend, Capacity, HeapSettings, LoadError, MemorySetting, MemoryUse, Program, Tape,
    WeightSource,
};

use crate::adapters::{AdapterFacts, Api};
use crate::gpu::{Gpu, WgpuError};
use crate::kernels::Pipelines;
use crate::lowering::Plan;
use crate::program::WgpuProgram;
use crate::sizes::{self, Bounds};

/// `maxStorageBufferBindingSize` at least, <https://www.w3.org/TR/webgpu/#limits>.
const LEAST_BINDING_BYTES: u64 = 128 << 20;

/// One adapter's device.
pub struct WgpuBackend {
    gpu: Arc<Gpu>,
    pipelines: Arc<Pipelines>,
    heaps: HeapSettings,
    binding_bytes: u64,
    api: Api,
    memory_max: Option<u64>,
}

impl WgpuBackend {
    /// Opens the adapter of this number, as [`crate::adapters`] lists them.
    ///
    /// # Errors
    /// [`WgpuError`]: there is none, or it lacks what every kernel needs.
    pub fn open(api: Api, ordinal: u32) -> Result<Self, WgpuError> {
        let gpu = Gpu::open(api, ordinal)?;
        let pipelines = Arc::new(Pipelines::new(&gpu, gpu.facts.has_matrix_units));
        let binding_bytes = gpu.limits.max_storage_buffer_binding_size;
        Ok(Self {
            gpu,
            pipelines,
            heaps: HeapSettings::default(),
            binding_bytes,
            api,
            memory_max: None,
        })
    }

    /// The same with all memory of its programs out of heaps like these.
    #[must_use]
    pub fn with_heaps(self, heaps: HeapSettings) -> Self {
        Self { heaps, ..self }
    }

    /// The same with models that take no more than so many bytes of the device each: wgpu does not
    /// tell how many it has.
    #[must_use]
    pub fn with_memory_max(self, memory_max: Option<u64>) -> Self {
        Self { memory_max, ..self }
    }

    /// The same as a device that binds no more at once; for tests of what is split.
    #[must_use]
    pub fn with_binding_bytes(self, bytes: u64) -> Self {
        Self { binding_bytes: self.binding_bytes.min(bytes), ..self }
    }

    /// The same with the kernels of devices that have no matrix units; for tests of those.
    #[must_use]
    pub fn without_matrix_units(self) -> Self {
        let pipelines = Arc::new(Pipelines::new(&self.gpu, false));
        Self { pipelines, ..self }
    }

    /// The same with kernels that bring weights to matrix units by way of workgroup memory; for
    /// tests that compare both.
    #[must_use]
    pub fn without_fragments(self) -> Self {
        let mut pipelines = Pipelines::new(&self.gpu, self.pipelines.has_units);
        pipelines.has_fragments = false;
        pipelines.attends_by_units = self.pipelines.attends_by_units;
        Self { pipelines: Arc::new(pipelines), ..self }
    }

    /// The same without matrix units, but with the kernel that attends by them: what units do is
    /// done by way of workgroup memory. For tests where no device has any.
    #[must_use]
    pub fn with_emulated_attention(self) -> Self {
        let mut pipelines = Pipelines::new(&self.gpu, false);
        pipelines.attends_by_units = true;
        Self { pipelines: Arc::new(pipelines), ..self }
    }

    /// The same with the kernels that attend in f32; for tests and measurements of both.
    #[must_use]
    pub fn without_units_in_attention(self) -> Self {
        let mut pipelines = Pipelines::new(&self.gpu, self.pipelines.has_units);
        pipelines.has_fragments = self.pipelines.has_fragments;
        pipelines.attends_by_units = false;
        Self { pipelines: Arc::new(pipelines), ..self }
    }

    /// Whether attention is by matrix units there.
    pub fn attends_by_units(&self) -> bool {
        self.pipelines.attends_by_units
    }

    /// Whether matrices are put together out of lanes' own words there.
    pub fn has_fragments(&self) -> bool {
        self.pipelines.has_fragments
    }

    /// Whether there are kernels for all of a tape, and forms for all its weights, on a device that
    /// binds as little at once as every one can; needs no device.
    ///
    /// # Errors
    /// [`LoadError`] naming what there is none for.
    pub fn check(
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<(), LoadError> {
        let bounds = Bounds {
            binding_bytes: LEAST_BINDING_BYTES,
            has_units: false,
            has_fragments: false,
            attends_by_units: false,
        };
        Plan::new(tape, weights, capacity, bounds).map(drop)
    }

    /// Takes the device away from its programs, as a driver that resets does; for tests.
    pub fn lose(&self) {
        self.gpu.device.destroy();
    }

    /// What the adapter says of itself.
    pub fn facts(&self) -> &AdapterFacts {
        &self.gpu.facts
    }

    fn plan(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<Plan, LoadError> {
        let Pipelines { has_units, has_fragments, attends_by_units, .. } = *self.pipelines;
        let binding_bytes = self.binding_bytes;
        let bounds = Bounds { binding_bytes, has_units, has_fragments, attends_by_units };
        Plan::new(tape, weights, capacity, bounds)
    }
}

impl Backend for WgpuBackend {
    fn name(&self) -> &str {
        self.api.name()
    }

    fn load(
        &self,
        tape: Tape,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Program>, LoadError> {
        let plan = self.plan(&tape, weights, &capacity)?;
        let pipelines = &self.pipelines;
        let program =
            WgpuProgram::load(&self.gpu, pipelines, &self.heaps, plan, tape, weights, capacity)?;
        Ok(Box::new(program))
    }

    fn memory(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<MemoryUse, LoadError> {
        Ok(sizes::memory_use(tape, &self.plan(tape, weights, capacity)?, capacity))
    }

    fn follows_grammars(&self) -> bool {
        true
    }

    fn without_effect(&self) -> &'static [(MemorySetting, &'static str)] {
        &[
            (MemorySetting::WarmUpSizes, "its heaps are written whole by its driver"),
            (MemorySetting::Allocator, "its heaps are its driver's"),
            (MemorySetting::Pinning, "its driver decides what stays in its memory"),
            (MemorySetting::PackedStore, "weights are laid out for the device at each load"),
        ]
    }

    fn copies_states(&self) -> bool {
        true
    }

    fn own_memory(&self) -> Option<u64> {
        self.memory_max
    }
}
