//! Which tokens may come next, for an answer to be JSON of a schema, a match of a regular
//! expression, one of some texts, or a sentence of a grammar?
//!
//! [`Grammars`] compiles constraints for one vocabulary and remembers the latest; a compiled one
//! gives every sequence a matcher of its own. Parser, lexer and masks are the library's
//! (<https://github.com/guidance-ai/llguidance>); the bounds on what strangers may ask are ours.
//!
//! Invariants: what cannot be followed is refused, never left out; a sequence's masks depend on
//! its constraint and its tokens and on nothing else.
//!
//! Reading order: `sources` (what the library is told), `inexact` (what it is not told), `gbnf`
//! (grammars in another notation), `special_tokens` (tokens that those name), `grammars`
//! (compiling, within bounds), `follower` (one sequence), `numbers` (which come to an end),
//! `thinking` (from when on).

#![forbid(unsafe_code)]

mod follower;
mod gbnf;
mod grammars;
mod inexact;
mod numbers;
mod sources;
mod special_tokens;
mod thinking;

pub use grammars::{ConstraintError, Grammars};
