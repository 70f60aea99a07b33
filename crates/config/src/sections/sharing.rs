//! What do identical requests share?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What identical requests share: running answers, and finished ones for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SharingConfig {
    /// `false`: each request is computed for itself, and nothing is remembered.
    pub enabled: bool,
    /// Requests that may read one running answer; the next computes its own.
    #[schemars(range(min = 1, max = 65_536), extend("x-reload" = true))]
    pub readers_max: u32,
    /// Answers remembered at most; 0: none.
    #[schemars(range(max = 1_048_576), extend("x-reload" = true))]
    pub answers_max: u32,
    /// Tokens of all remembered answers together.
    #[schemars(range(max = 4_294_967_296_u64), extend("x-reload" = true))]
    pub tokens_max: u64,
    /// For them and the requests that they answer.
    #[schemars(range(max = 1_048_576), extend("x-reload" = true))]
    pub memory_mb: u64,
    /// How long an answer is remembered.
    // A week: beyond it nobody knows any more what a model was asked.
    #[schemars(range(min = 1, max = 604_800), extend("x-reload" = true))]
    pub ttl_seconds: u64,
    /// A folder in which remembered answers outlast the server, a file for each model; absent: they
    /// do not. The files hold prompts and answers.
    #[schemars(extend("x-path" = "folder"))]
    pub folder: Option<String>,
}

impl Default for SharingConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            readers_max: 256,
            answers_max: 1024,
            // 40 bytes each: 40 MiB, and as much again for requests and log-probabilities.
            tokens_max: 1 << 20,
            memory_mb: 80,
            ttl_seconds: 300,
            folder: None,
        }
    }
}
