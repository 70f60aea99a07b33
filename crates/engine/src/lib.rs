//! Where requests meet tensors: admission, the step loop, settlement. The only crate that sees both
//! columns; it knows no HTTP and no JSON.

#![forbid(unsafe_code)]

mod service;

pub use service::{
    Delta, DeltaLogprob, DeltaSource, DeltaToken, End, EngineStatus, GenerateFuture,
    GenerateRequest, Generation, ModelCard, Prompt, ScoredToken, Service,
};
