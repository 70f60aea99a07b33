//! What do tests of several crates share? Tiny models, logits at every position of a text, and
//! what every device must get right (`device_cases`, `device_tensors`, `device_steps`,
//! `device_conformance`).
//!
//! Only for tests and development tools; nothing that ships depends on it.

#![forbid(unsafe_code)]

mod answered_model;
pub mod device_cases;
pub mod device_conformance;
pub mod device_steps;
pub mod device_tensors;
mod nearness;
mod positions;
mod stored_tensors;
mod test_model;
pub mod tiny_model;

pub use answered_model::AnsweredModel;
pub use nearness::{Nearness, difference};
pub use positions::{Evaluation, load, load_stream, load_tape};
pub use stored_tensors::StoredTensors;
pub use test_model::default_model;
