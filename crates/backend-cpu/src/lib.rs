//! How does the CPU run a step? Packed weights, a team of threads, and kernels for each operation.
//!
//! # The shape of a step
//!
//! One `Team::run` per step; inside, every member calls the same kernels with the same arguments
//! (SPMD). Each kernel shares its work among the members as tasks of phases, and a phase begins
//! when the tasks of the one before are done, so results of one are inputs of the next.
//!
//! ```text
//! let team = Team::new(Team::default_threads())?;            // the caller is member 0
//! let isa = Isa::detect();                                   // or Isa::forced("avx2")
//! let pool = HeapPool::open(HeapSource { settings, allocator }, planned)?;
//! let arena = Arena::carve(&pool, "weights", sum of Arena::piece_bytes(..))?;
//! let source = MatrixSource { format, rows, cols, bytes };   // as in the model file
//! let matrix = PackedMatrix::pack(&source, arena.take(bytes)?, &team)?;
//! team.run(&|worker| unsafe {
//!     rms_norm::row_pass(worker, isa, &RowPass { input, picks, norm, output, quantized });
//!     linear::linear(worker, isa, &LinearInput { quantized, rows }, &[q, k, v]);
//!     rotary::rotary_append(worker, isa, &RotaryAppend { .. });
//!     paged_attention::paged_attention(worker, isa, &PagedAttention { .. });
//!     rms_norm::row_pass(..);                                    // quantize only: norm: None
//!     linear::linear(.., &[Linear { finish: Finish::Add, .. }]);
//!     rms_norm::row_pass(..);
//!     linear::linear(.., &[Linear { finish: Finish::Gated { up, .. }, .. }]);
//! });
//! ```
//!
//! - Activations are `Rows` (shared f32 `[tokens, width]`, a view with a stride; `columns` and
//!   `first` cut it) and `QuantizedView` (integers of 8 or 15 bits, from `QuantizedRows::view`).
//! - `PackedMatrix::wants_quantized` says which of the two a matrix reads; `decode_row` reads one
//!   row (the embedding table); `Worker::share` and `Worker::for_each` share such loops.
//! - `rms_norm::row_pass` gathers (`picks`), norms and quantizes in one pass.
//! - Keys and values: `CacheShape` and `CacheView` in `kv_cache`, zeroed blocks
//!   `[block][kv_head][keys | values | scales]`; `rotary::rotary_table` once a step,
//!   `AttentionPlan::build` once a step (outside `run`), both used by all layers.
//!
//! # Invariants
//!
//! - A row's result depends on its own inputs only: not on the batch, the threads or the
//!   instruction set (bit-identical; tests compare all sets this machine has).
//! - After load nothing here allocates per step.
//!
//! Read in this order: `team`, `rows`, `packed`, `vector`, `kernels/linear`, then the rest.

#![deny(unsafe_code)]
#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over lanes, tokens or rows of several arrays at once"
)]

#[allow(unsafe_code, reason = "intrinsics, behind a proof that the processor has them")]
pub mod arch;
#[allow(unsafe_code, reason = "loops of instructions whose presence was established")]
pub mod ceilings;
mod device;
#[allow(unsafe_code, reason = "kernels over a member's own work space")]
mod integer_attention;
#[allow(unsafe_code, reason = "kernels over rows of their callers")]
mod integers;
#[allow(unsafe_code, reason = "members of a team write disjoint parts of shared rows")]
pub mod kernels;
#[allow(unsafe_code, reason = "views of blocks that a team shares")]
pub mod kv_cache;
#[allow(unsafe_code, reason = "maps and unmaps large pages")]
pub mod memory;
mod memory_plan;
#[allow(unsafe_code, reason = "fills memory that is its thread's alone")]
mod moving;
#[allow(unsafe_code, reason = "members of a team pack disjoint row blocks")]
pub mod packed;
mod packed_cache;
#[allow(unsafe_code, reason = "kernels over rows of their callers")]
mod packing;
#[allow(unsafe_code, reason = "asks the system to keep pages in memory")]
mod pinning;
#[allow(unsafe_code, reason = "calls kernels with the program's own buffers")]
mod program;
#[allow(unsafe_code, reason = "calls kernels with the program's own buffers")]
mod row_ops;
#[allow(unsafe_code, reason = "views of memory that a team shares")]
pub mod rows;
#[allow(unsafe_code, reason = "views of what slots carry, shared by a team")]
mod states;
mod step;
mod stored;
#[allow(unsafe_code, reason = "lends a job to threads for the time of a run")]
pub mod team;
#[allow(unsafe_code, reason = "kernels over rows of their callers")]
mod unpacked;
#[allow(unsafe_code, reason = "the operations that instruction sets implement")]
mod vector;
#[allow(unsafe_code, reason = "asks the system to make pages before they are written")]
mod warming;

pub use arch::Isa;
pub use device::{CpuBackend, OpenError};
pub use memory::{Arena, ArenaPiece, FloatTable, LargeBuffer, PageAllocator};
pub use packed::{MatrixSource, PackError, PackedMatrix};
pub use rows::{QuantizedRows, QuantizedView, Rows};
pub use team::{Team, Worker};
