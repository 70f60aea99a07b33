//! What crosses from one stage of a request to the next? Every struct that does is defined here.
//!
//! Data and its audits only: no policy, no serialization, no device. Reading order follows a
//! request: what is asked ([`SamplingParams`]), what is planned ([`StepPlan`]), what came of it
//! ([`StepResult`], [`TokenEvent`]), and what went wrong ([`Refusal`], [`Fault`]).

#![forbid(unsafe_code)]

mod cache_namespace;
mod cached_prompt;
mod constraint;
mod errors;
mod ids;
mod limits;
mod priority;
mod sampling_params;
mod sharing;
mod step_plan;
mod step_result;

pub use cache_namespace::CacheNamespace;
pub use cached_prompt::{CachedEnd, CachedPrompt};
pub use constraint::Constraint;
pub use errors::{Fault, Refusal, RefusalKind};
pub use ids::{BlockIndex, SequenceId, SlotIndex, StateIndex, StepIndex, SubscriberId, TokenId};
pub use limits::Limits;
pub use priority::Priority;
pub use sampling_params::{SamplingParams, Thoughts};
pub use sharing::{SharingMode, SharingOutcome, SharingReport};
pub use step_plan::{PlanRow, StateMove, StepPlan, Stream, TokenSource};
pub use step_result::{
    FinishReason, ProposalCounts, SampledToken, StepResult, TokenEvent, TokenLogprob,
};
