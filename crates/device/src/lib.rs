//! How is work handed to a device? As data: a [`Tape`] once, a [`StepInputs`] each step.
//!
//! A [`Backend`] turns a tape and its weights into a [`Program`]; the [`CommandRing`] runs the
//! program on its own thread with several steps in flight. All memory of a device comes from a
//! [`HeapPool`], whose heaps a [`HeapAllocator`] gives; what moves between a device and elsewhere
//! goes through the lanes of a [`BlitQueue`]. Reading order: `tape`, `step`, `state_log`,
//! `program`, `packed_store`, `ring`, `lost_slots`, `heap_memory`, `free_spans`, `heap_pool`,
//! `staging`, `blit_queue`, `kernel_cache`, `trace`, `failpoints`.

#![deny(unsafe_code)]

mod blit_queue;
mod failpoints;
mod free_spans;
#[allow(unsafe_code, reason = "allocators promise what they give; addresses become bytes")]
mod heap_memory;
#[allow(unsafe_code, reason = "a block's bytes are its holder's alone")]
mod heap_pool;
pub mod kernel_cache;
mod lost_slots;
mod packed_store;
mod pinning;
mod program;
mod ring;
mod staging;
mod state_log;
mod step;
mod tape;
mod trace;

pub use blit_queue::{BlitEvent, BlitQueue, BlitSettings, BlitStatistics, OwnCopies};
pub use failpoints::{FailPlan, FailPlanError, Failing, Gate};
pub use free_spans::GRAIN;
pub use heap_memory::{
    HEAP_ALIGNMENT, HeapAllocator, HeapMemory, MemoryKind, SharedAllocator, SystemAllocator,
    allocate_checked,
};
pub use heap_pool::{
    ClassStatistics, GrowthPause, HeapBlock, HeapError, HeapPool, HeapSettings, HeapSource,
    HeapStatistics,
};
pub use packed_store::{Digest, PIECE_ALIGNMENT, PackedBytes, PackedKey, PackedStore};
pub use pinning::Pinning;
pub use program::{
    Backend, BlockCopier, BlockForm, BlockLease, Ceilings, DeviceMemory, Fault, LoadError,
    MemorySetting, MemoryUse, PartClock, Program, StoredBytes, WeightShape, WeightSource,
    WeightView,
};
pub use ring::{CommandRing, Completion, RING_DEPTH_DEFAULT, RingSettings, RingStatistics};
pub use staging::{StagingBuffer, StagingRing, StagingStatistics};
pub use state_log::StateLog;
pub use step::{
    BlockCopy, Capacity, HostBytes, RowInput, SampleOutput, SampledRow, SlotReset, StateCopy,
    StepInputs, StepOutputs, TokenInput,
};
pub use tape::{ActivationSpec, RowPart, Rows, Segment, StateShape, Tape, WeightSpec};
pub use trace::{Span, Trace, Track};
