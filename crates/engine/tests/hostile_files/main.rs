//! Does a damaged model file ever do more than be refused or answer badly? Thousands of seeded
//! damages of tiny models, each through the whole load and a first token.

#![allow(clippy::unwrap_used, reason = "tests")]

mod folders;
mod gguf;
mod trying;
