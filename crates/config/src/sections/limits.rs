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
    /// A request that would wait longer for its answer to begin, or has, is refused as busy.
    #[schemars(range(min = 1, max = 86_400), extend("x-reload" = true))]
    pub queue_seconds_max: u64,
    /// Tokens computed in one step.
    #[schemars(range(min = 1, max = 65_536))]
    pub step_tokens_max: u32,
    /// For keys and values of each model; absent: 1024.
    // 16 TiB: more than any machine's memory, far from overflowing when turned to bytes.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub kv_cache_mb: Option<u64>,
    /// For all models together; absent: 90 % of what is available at start.
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
            step_tokens_max: 256,
            kv_cache_mb: None,
            memory_budget_mb: None,
        }
    }
}
