//! How large are the engine's queues and pools?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sizes of the engine's queues and pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Answers generated at once, at most; fewer where memory or the pace of streams ask for it.
    #[schemars(range(min = 1, max = 65_536))]
    pub sequences_max: u32,
    /// Requests that may wait; further ones are refused as busy. A running server takes up any
    /// number up to that at its start.
    #[schemars(range(min = 1, max = 65_536), extend("x-reload" = true))]
    pub waiting_max: u32,
    /// A request that would wait longer for its answer to begin, or has, or has for its model to be
    /// loaded, is refused as busy. Reading a long prompt counts up to half of it.
    #[schemars(range(min = 1, max = 86_400), extend("x-reload" = true))]
    pub queue_seconds_max: u64,
    /// Tokens computed in one step; absent: 256, and by CUDA up to 2048, 16 for each
    /// multiprocessor.
    #[schemars(range(min = 1, max = 65_536))]
    pub step_tokens_max: Option<u32>,
    /// Time between the tokens of a running answer that prompts being read beside it keep to, as
    /// measured; 0: prompts are read as fast as steps allow.
    #[schemars(range(min = 0, max = 3_600_000), extend("x-reload" = true))]
    pub itl_target_ms: u64,
    /// By how much one such prompt may slow running answers down at most; several may do so by the
    /// root of their number times that.
    #[schemars(range(min = 1, max = 10_000), extend("x-reload" = true))]
    pub slowdown_percent: u32,
    /// The longest that an answer may take, from its request on; absent: any time. A request may
    /// ask for less (`timeout_ms`).
    #[schemars(range(min = 1, max = 86_400_000))]
    pub timeout_max_ms: Option<u64>,
    /// For keys and values of each model; absent: 1024.
    // 16 TiB: more than any machine's memory, far from overflowing when turned to bytes.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub kv_cache_mb: Option<u64>,
    /// For all models together; absent: 90 % of what is available at start, and what models have in
    /// the own memory of GPUs.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub memory_budget_mb: Option<u64>,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            sequences_max: 32,
            waiting_max: 256,
            // Half of what common clients wait at most: they still hear of the refusal.
            queue_seconds_max: 30,
            step_tokens_max: None,
            // Faster than anyone reads.
            itl_target_ms: 100,
            // Keeps the slowest of a hundred tokens below twice the usual time.
            slowdown_percent: 80,
            timeout_max_ms: None,
            kv_cache_mb: None,
            memory_budget_mb: None,
        }
    }
}
