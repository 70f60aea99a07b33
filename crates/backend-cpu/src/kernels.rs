//! What can the team compute? One file an operation; all are SPMD: every member calls the same
//! function with the same arguments in the same order, and each function is one or more phases of
//! the team. A member that was away comes late through phases that are over: outside tasks nothing
//! may read what tasks write.

pub(crate) mod causal_conv;
pub mod experts;
pub(crate) mod gated_delta;
pub mod gated_linear;
pub mod linear;
pub mod paged_attention;
pub mod rms_norm;
pub mod rotary;
pub mod soft_cap;
