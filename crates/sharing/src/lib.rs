//! Which requests are the same, and who reads whose answer?
//!
//! A repeatable request (temperature 0, or a seed) has one answer. [`Sharing`] finds requests that
//! have the same one: a request that comes while another computes it reads along
//! ([`Found::Joined`]), one that comes soon after is told what is remembered ([`Found::Known`]).
//! Nothing here computes, waits or tells the time: the caller runs the sequences, and passes
//! milliseconds since 1970 by a clock that never goes back while the process lives.
//!
//! What is exact, and why: an answer is a function of its [`Identity`], so sharing changes when
//! tokens are told and never which. `max_tokens` cuts that answer off and stop texts end it for one
//! reader, so neither is part of the identity: a reader is told a prefix of the sequence.
//!
//! Invariants, each with a test of its name here or in `simulator`:
//! - `sharing_exact`: every reader is told what its request alone would be told.
//! - `sharing_bounded`: what is remembered stays within its limits in entries, tokens and bytes.
//!
//! Reading order: `identity` (what is the same), `answer` (whom it serves), `running` (who reads
//! along), `replay_cache` (what is remembered), `sharing` (all of it), `file_format`.

#![forbid(unsafe_code)]

mod answer;
mod file_format;
mod identity;
mod replay_cache;
mod running;
mod sharing;

pub use answer::{Answer, AnswerEnd, AnswerToken, Asked, StopRule};
pub use file_format::{FileKey, FileProblem};
pub use identity::{Fingerprint, Identity, Work};
pub use replay_cache::ReplayLimits;
pub use sharing::{Counts, Found, Leaving, Sharing, SharingLimits, Told};
