//! What might a sequence say next, and does checking a guess pay?
//!
//! Checking a guess costs one more token in a step and saves a step when it is right. So two
//! questions are asked before each plan: how likely are the next guesses right (each [`Proposer`]
//! says), and how many of them are worth the time their check takes ([`StepCosts`], as measured).
//! A sequence whose guesses do not pay gets none.
//!
//! Nothing here decides what an answer says: a wrong guess is found by the step that checks it.
//!
//! No clock: times are arguments. No tensors, no threads, no scheduler.
//!
//! Reading order: `speculator` (what the engine calls), `proposer` (who guesses), `prompt_lookup`
//! and `lookups` (guessing from the sequence's own text), `trust` and `step_costs` (what pays).

#![forbid(unsafe_code)]

mod lookups;
mod prompt_lookup;
mod proposer;
mod speculator;
mod step_costs;
mod trust;

pub use lookups::Lookups;
pub use prompt_lookup::PromptLookup;
pub use proposer::{GUESSES_MAX, Proposer};
pub use speculator::{Next, Speculator, When};
pub use step_costs::StepCosts;
pub use trust::Trust;
