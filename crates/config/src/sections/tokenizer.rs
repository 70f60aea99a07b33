//! How are prompts encoded?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How prompts become tokens, beside the steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Threads that share one long text; absent: as many as the process may use. Tokens are the
    /// same with any number.
    #[schemars(range(min = 1, max = 256))]
    pub num_threads: Option<usize>,
    /// A text is shared in parts of no fewer bytes.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub min_chunk_size: usize,
    /// For the tokens of words seen before, at most, for each thread that encodes; 0: none. It is
    /// taken as words come, and all of it counts as memory of the model.
    #[schemars(range(max = 1_048_576))]
    pub cache_kb: usize,
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        // A millisecond of work, twenty times what starting a thread takes.
        Self { num_threads: None, min_chunk_size: 64 << 10, cache_kb: 512 }
    }
}
