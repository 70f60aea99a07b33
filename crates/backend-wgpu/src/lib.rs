//! How does any GPU run a step? Kernels in WGSL, which wgpu runs on Vulkan, Metal and Direct3D.
//!
//! # Invariants
//!
//! - A token's result does not depend on what else is in the step, nor on how its row was cut
//!   into steps: every kernel has one order of sums, in all its forms.
//! - Where a device has matrix units, products are theirs and activations are kept in f16 as well;
//!   elsewhere products are in f32. So it is with attention, where heads have a size that they
//!   take. A program has one of both, for all its steps.
//! - All device memory is taken at load, as a few large buffers that a [`device::HeapPool`]
//!   carves; a step takes none. macOS kills processes that hold too much in too many pieces, and
//!   drivers move what is not used for long: so few buffers, of fixed sizes, given back at unload.
//! - What fails on the device is an error with the driver's words, not the end of the process; a
//!   lost device fails every later step.
//!
//! Read in this order: `adapters` and `gpu` (the way to a device), `memory` (its heaps), `packing`
//! (how weights lie), `kernels` (with `kernels/packed.wgsli`, `kernels/linear.wgsl`, `fragments`,
//! `spirv` and `pipeline_cache`), `lowering` (tape to passes, with `row_passes`, `experts` and
//! `carried`), `step_words`, `dispatch`, `attention`, `program` with
//! `sampling`, `copies`.

#![deny(unsafe_code)]

mod adapters;
mod attention;
mod carried;
mod copies;
mod device;
mod dispatch;
mod experts;
mod fragments;
mod gpu;
#[allow(unsafe_code, reason = "kernels, and their driver's form of them, are trusted")]
mod kernels;
mod lowering;
#[allow(unsafe_code, reason = "an allocator promises what it gives")]
mod memory;
mod packing;
mod pipeline_cache;
mod program;
mod row_passes;
mod sampling;
mod sizes;
mod spirv;
mod step_words;
mod storing;

pub use adapters::{AdapterFacts, Api, adapters};
pub use device::WgpuBackend;
pub use gpu::WgpuError;
pub use kernels::{KernelSource, every_kernel, every_kernel_of_matrix_units};
