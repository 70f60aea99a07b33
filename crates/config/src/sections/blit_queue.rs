//! How are blocks of keys and values copied beside steps?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How blocks of keys and values are copied beside steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BlitQueueConfig {
    /// Off: a step does its own copies, before anything else.
    pub enabled: bool,
    /// Copies at once, each on a thread of its own.
    #[schemars(range(min = 1, max = 64))]
    pub max_concurrent_ops: u32,
    /// Buffers for what is on its way to and from disk, at most; used only with
    /// `kv_tiers.disk_bytes`.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub staging_buffer_size_mb: u64,
}

impl Default for BlitQueueConfig {
    fn default() -> Self {
        // A prompt of 11,000 tokens of a 135M model on its way from disk.
        Self { enabled: true, max_concurrent_ops: 2, staging_buffer_size_mb: 256 }
    }
}
