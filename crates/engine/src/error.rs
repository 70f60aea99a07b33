//! Why could a model not be loaded? Every error names the file, setting or tensor at fault.

/// Loading failed; the text is for the person who asked for the model.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    File(#[from] weights::WeightsError),
    #[error(transparent)]
    Model(#[from] models::ModelError),
    #[error("the model's tokenizer cannot be used: {0}")]
    Tokenizer(#[from] tokenizer::VocabularyError),
    #[error("the model's tokenizer cannot be used: {0}")]
    Vocabulary(String),
    #[error("the model cannot be loaded: {0}")]
    Device(#[from] device::LoadError),
    #[error("the device could not be started: {0}")]
    Start(#[from] device::Fault),
    #[error(transparent)]
    Tiers(#[from] kv_tiers::TierError),
    #[error("the adapter `{name}` cannot be used: {problem}")]
    Adapter { name: String, problem: String },
    #[error("{0}")]
    Option(String),
    #[error(
        "the model needs {} bytes ({needed}), {available_bytes} are free: choose a smaller model, \
         or lower kv_cache_mb, context_tokens, kv_tiers or heap_pool", needed.peak_bytes()
    )]
    Memory { needed: crate::ModelMemory, available_bytes: u64 },
}
