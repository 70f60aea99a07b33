//! How does a model run that one device has no room for? Its first layers on one device, the others
//! on another: the tape is cut between two layers, and each step goes through both parts.
//!
//! Keys, values and states are where their layers are. What crosses is the rows of the step's
//! tokens, of those activations that the second part reads and the first has written: in most
//! models the residual stream alone. The parts take turns; neither computes while the other does.
//! Reading order: `cut`, `backend`, `program`.

#![forbid(unsafe_code)]

mod backend;
mod cut;
mod program;

pub use backend::SplitBackend;
pub use cut::{cut, places};
