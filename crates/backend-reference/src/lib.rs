//! What should every other backend give? Runs a tape with the scalar references of `ops`: slow,
//! obvious, always right.
//!
//! Weights are decoded to f32 at load, keys and values stay f32. One thread, no cleverness.

#![forbid(unsafe_code)]

mod program;
mod states;

use device::{Backend, Capacity, LoadError, MemorySetting, MemoryUse, Program, Tape, WeightSource};

/// The oracle.
pub struct ReferenceBackend;

impl Backend for ReferenceBackend {
    fn name(&self) -> &str {
        "reference"
    }

    fn follows_grammars(&self) -> bool {
        true
    }

    fn without_effect(&self) -> &'static [(MemorySetting, &'static str)] {
        &[
            (MemorySetting::WarmUpSizes, "it has no heaps"),
            (MemorySetting::Allocator, "it has no heaps"),
            (MemorySetting::Pinning, "it decodes weights into ordinary memory"),
            (MemorySetting::PackedStore, "it has no layout of its own"),
        ]
    }

    fn copies_states(&self) -> bool {
        true
    }

    fn load(
        &self,
        tape: Tape,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Program>, LoadError> {
        Ok(Box::new(program::ReferenceProgram::load(tape, weights, capacity)?))
    }

    fn memory(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<MemoryUse, LoadError> {
        program::ReferenceProgram::planned_memory(tape, weights, capacity)
    }
}
