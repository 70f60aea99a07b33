//! How does an NVIDIA GPU run a step? Packed weights, kernels in CUDA C++, recorded launches.
//!
//! The driver is opened at run time: a program with this crate starts on machines without one.
//!
//! # Invariants
//!
//! - A token's result does not depend on what else is in the step, nor on how its row was cut
//!   into steps: every kernel has one order of sums, in all its forms.
//! - All memory is carved from pools at load; a step takes none.
//! - What fails on the device is an error with the driver's words, not the end of the process.
//!
//! Read in this order: `kernels/prelude.cuh` and `kernels/linear.cu`, `packing` (how weights
//! lie), `lowering` (tape to passes), `memory`, `heaps`,
//! `uploads` and `weights`, `step_inputs`, `program`, `copies`; then what only some
//! models or requests need: `experts`, `latents`,
//! `row_passes`, `each`, `adapters`, `states`, `grammars`. `driver`, `gpu` and `images` are the
//! way to the device.

#![deny(unsafe_code)]

mod adapters;
mod arguments;
mod copies;
mod device;
#[allow(unsafe_code, reason = "the driver's functions, from its library")]
mod driver;
mod each;
mod experts;
#[allow(unsafe_code, reason = "calls the driver with live handles and buffers")]
mod gpu;
mod grammars;
#[allow(unsafe_code, reason = "allocators promise what they give")]
mod heaps;
#[allow(unsafe_code, reason = "calls the run-time compiler")]
mod images;
mod kernels;
mod latents;
mod lowering;
mod memory;
mod packing;
#[allow(unsafe_code, reason = "launches kernels over the program's own heaps")]
mod program;
mod row_passes;
mod slots;
mod states;
mod step_inputs;
mod uploads;
mod variants;
mod weights;

pub use device::{CudaBackend, Profiled};
pub use driver::CudaError;
