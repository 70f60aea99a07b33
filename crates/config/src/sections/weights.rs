//! How do weights come into memory, and which stay there?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How weights are read at load and kept in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WeightsConfig {
    /// Keep the embedding, the output and the first `critical_layers` layers in memory whatever
    /// else needs it. Where the system's limit on locked memory forbids it, a warning says so.
    pub pin_critical_weights: bool,
    /// Layers that are critical.
    #[schemars(range(max = 65_536))]
    pub critical_layers: u32,
    /// Keep all weights in memory.
    pub pin_all_weights: bool,
    /// Weights pinned at most; absent: as many as the system allows.
    #[schemars(range(max = 16_777_216))]
    pub max_pinned_mb: Option<u64>,
    /// Threads that read tensors from disk while earlier ones are being repacked; 0: none.
    #[schemars(range(max = 64))]
    pub prefetch_threads: usize,
    /// Of the memory that steps write, how much is touched before a step comes to it: what all of
    /// them write at load, of the KV cache 64 MiB ahead of what is used.
    #[schemars(range(max = 16_777_216))]
    pub warmup_buffer_mb: u64,
    /// Look at tensors where the file is mapped; `false` reads them into a buffer first, for files
    /// that others may cut off meanwhile.
    pub use_mmap: bool,
    /// Read the model's file past the system's cache: a first start is faster where cores are few
    /// and memory holds the weights once, but the next start reads the disk again.
    pub direct_io: bool,
}

impl Default for WeightsConfig {
    fn default() -> Self {
        Self {
            pin_critical_weights: false,
            critical_layers: 4,
            pin_all_weights: false,
            max_pinned_mb: None,
            // Reading ahead cost 9 % of a warm start of 4 GB, and two threads sped up no cold one.
            prefetch_threads: 0,
            warmup_buffer_mb: 512,
            use_mmap: true,
            direct_io: false,
        }
    }
}
