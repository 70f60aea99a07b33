//! How does a model run that one device has no room for? Its first layers on one device, the others
//! on another; or of some layers the experts alone. The tape is cut at each border, and each step
//! goes to and fro between both parts.
//!
//! Keys, values and states are where their layers are. What crosses is the rows of the step's
//! tokens, of those activations that one part reads and the other has written: between layers in
//! most models the residual stream alone. The parts take turns; neither computes while the other
//! does.
//! Reading order: `cut`, `backend`, `program`.

#![forbid(unsafe_code)]

mod backend;
mod cut;
mod program;

pub use backend::SplitBackend;
pub use cut::{Share, cut, layers_with_experts, places};
