//! How is work handed to a device? As data: a [`Tape`] once, a [`StepInputs`] each step.
//!
//! A [`Backend`] turns a tape and its weights into a [`Program`]; the [`CommandRing`] runs the
//! program on its own thread with several steps in flight. Reading order: `tape`, `step`,
//! `program`, `packed_store`, `ring`, `failpoints`.

#![forbid(unsafe_code)]

mod failpoints;
mod packed_store;
mod program;
mod ring;
mod step;
mod tape;

pub use failpoints::{FailPlan, FailPlanError, Failing};
pub use packed_store::{Digest, PIECE_ALIGNMENT, PackedBytes, PackedKey, PackedStore};
pub use program::{
    Backend, BlockForm, Ceilings, Fault, LoadError, MemoryUse, Program, WeightSource, WeightView,
};
pub use ring::{CommandRing, Completion};
pub use step::{
    BlockCopy, Capacity, RowInput, SampleOutput, SampledRow, SlotReset, StepInputs, StepOutputs,
    TokenInput,
};
pub use tape::{ActivationSpec, Rows, Tape, WeightSpec};
