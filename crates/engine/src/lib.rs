//! Where requests meet tensors: admission, the step loop, settlement. The only crate that sees both
//! columns; it knows no HTTP and no JSON.
//!
//! Reading order, along a request: `service` (the face), `intake` (text to ids), `step_loop` (the
//! one thread that plans), `executor` (a plan to a device's step and back), `readers` (who is told
//! what a sequence says), `outbox` and `outlet` (ids to text); beside it `waiting` (who has a
//! place, with the `limiter` that decides how many there are), `pacing` (how fast prompts are
//! read), `guessing` (with a `draft_model`), `loading` (with `weight_manager`), `backends`,
//! `resources` and `roofline`, and around each step `guarded` (`turns` among models, the
//! `breaker`). Around all of it `registry`: which models are in memory.

#![forbid(unsafe_code)]

mod adapters;
mod answers_file;
mod available_memory;
mod backends;
mod block_tiers;
mod breaker;
mod chat_prompt;
mod draft_loading;
mod draft_model;
mod engine;
mod error;
mod executor;
mod failpoints;
mod fit;
mod guarded;
mod guessing;
mod intake;
mod intake_lanes;
mod limiter;
mod live_options;
mod load_progress;
mod loading;
mod model_identity;
mod model_memory;
mod model_origin;
mod model_status;
mod offload;
mod outbox;
mod outlet;
mod pacing;
mod packed_store;
mod page_faults;
mod readers;
mod registry;
mod residency;
mod resources;
mod roofline;
mod save_progress;
mod self_test;
mod service;
mod statistics;
mod step_loop;
mod step_sizes;
mod step_watch;
mod stop_text;
mod tensors;
mod turns;
mod vector_texts;
mod vocabulary;
mod waiting;
mod weight_manager;

pub use adapters::AdapterOptions;
pub use answer_format::{AnswerFormat, CallFormat};
pub use available_memory::available_memory;
pub use backend_wgpu::AdapterFacts;
pub use backends::{DEVICES, adapters, is_device_name, probe_device};
pub use breaker::{BreakerRules, BreakerState};
pub use chat_prompt::TemplateProgram;
pub use device::{
    BlitSettings, BlitStatistics, Ceilings, ClassStatistics, Gate, HeapSettings, HeapStatistics,
    RING_DEPTH_DEFAULT, RingSettings, RingStatistics, SharedAllocator, Span, StagingStatistics,
    Trace, Track,
};
pub use engine::Engine;
pub use error::EngineError;
pub use failpoints::Failpoints;
pub use fit::{ContextNeed, DeviceFit, FileFacts, FormatShare, PROGRAM_BYTES, TensorFacts, fits};
pub use kv_tiers::{TierCounts, TierSettings};
pub use live_options::LiveOptions;
pub use load_progress::LoadProgress;
pub use loading::{EngineOptions, KV_BYTES_DEFAULT, ModelPlan, ModelSummary, Speculation, inspect};
pub use model_memory::ModelMemory;
pub use model_origin::ModelOrigin;
pub use model_status::{ModelFuture, ModelState, ModelStatus};
pub use models::{Output, ScoreHead};
pub use offload::{CpuMoeLayers, GpuLayers, LayerSplit};
pub use ops::pool_rows::Pooling;
pub use pacing::PacingOptions;
pub use page_faults::{PageFaults, page_faults};
pub use readers::SharingOptions;
pub use registry::{MEMORY_SHARE_PERCENT, ModelEntry, Registry, RegistryMemory, RegistryOptions};
pub use resources::{PartStatus, ResourceStatus, open_allocator};
pub use roofline::{Bound, Roofline, StepWork, ceilings};
pub use save_progress::SaveProgress;
pub use self_test::{SelfCheck, SelfTest, self_test};
pub use service::{
    Deadline, DecodeFuture, Delta, DeltaLogprob, DeltaSource, DeltaToken, EncodeFuture,
    EncodedPrompt, End, EngineStatus, GenerateFuture, GenerateRequest, Generation, ModelCard,
    PrefixCacheStatus, Prompt, QueueReport, QueueStatus, ScoredToken, Service, SharingStatus,
    SpeculationStatus, StartFuture, TextPair, Urgency, VectorInput,
};
pub use sharing::{ReplayLimits, SharingLimits};
pub use statistics::SystemStatistics;
pub use step_sizes::{STEP_TOKEN_BOUNDS, StepSizes};
pub use tokenizer::{EncodeCounts, EncodeSettings};
pub use vocabulary::read_tokenizer;
pub use weight_manager::{DirectIo, WeightOptions, WeightStatus};
