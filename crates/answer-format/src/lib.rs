//! What in a model's answer is thought, what is said, and what is a call of a tool?
//!
//! Families write calls in markup of their own. [`AnswerFormat`] says which it is, from the chat
//! template; [`Reader`] takes an answer as it comes and tells its [`Part`]s.
//!
//! Invariants: the parts do not depend on how the answer was cut into pieces; what looks like a
//! call and is none comes out as text, byte for byte; what is held back is what may still become
//! markup.
//!
//! Reading order: `part`, `tool`, `format` (which markup), `reader` (thoughts, text and calls, in
//! pieces), `json_call` (what most formats share), `formats` (one file each), `typed_arguments`
//! (texts as the values that a schema asks for), `grammar` (what answers are held to that must
//! call).

#![forbid(unsafe_code)]

mod format;
mod formats;
mod grammar;
mod json_call;
mod part;
mod reader;
mod tool;
mod typed_arguments;

pub use format::{AnswerFormat, CallFormat, ThoughtMarkers};
pub use grammar::CallGrammar;
pub use part::{Call, Part};
pub use reader::{Held, Reader, ReaderSetup};
pub use tool::{Tool, ToolChoice};
