//! What does each operation mean? Formulas, shape rules and scalar references; no device, no speed.
//!
//! [`Op`] is the closed list of operations a model is made of. Every variant has a module with its
//! formula and a reference over plain `f32` slices: the oracle that each backend is compared with.
//! Slices are row-major; shapes stand in comments as `[tokens, width]`.

#![forbid(unsafe_code)]

pub mod activate;
pub mod blend;
pub mod causal_conv;
pub mod constraint;
pub mod copy_columns;
pub mod embed;
pub mod experts;
pub mod gated_delta;
pub mod gated_linear;
pub mod gated_norm;
pub mod head_linear;
pub mod kv_format;
pub mod layer_norm;
pub mod linear;
pub mod low_rank;
pub mod norm_heads;
mod op;
mod operands;
pub mod paged_attention;
pub mod pool_rows;
pub mod quant_format;
pub mod rms_norm;
pub mod rotary;
pub mod sample_rows;
pub mod select_rows;
pub mod sigmoid_gate;
pub mod soft_cap;

pub use op::{
    ActivationId, Carried, DeltaInputs, EmbedBy, HeadColumns, HeadNorms, LinearPart, Op, RotaryId,
    Target, WeightId,
};
pub use operands::Operand;
