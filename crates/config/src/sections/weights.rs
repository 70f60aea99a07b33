//! How do weights come into memory, and which stay there?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How weights are read at load and kept in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WeightsConfig {
    /// Keep the embedding, the output and the first `critical_layers` layers in memory whatever
    /// else needs it. Where the system's limit on locked memory forbids it, a warning says so. On
    /// the CPU; weights on a GPU are where its driver keeps them.
    pub pin_critical_weights: bool,
    /// Layers that are critical.
    #[schemars(range(max = 65_536))]
    pub critical_layers: u32,
    /// Keep all weights in memory; on the CPU, too.
    pub pin_all_weights: bool,
    /// Weights of each model pinned at most; absent: as many as the system allows.
    #[schemars(range(max = 16_777_216))]
    pub max_pinned_mb: Option<u64>,
    /// Threads that read tensors from disk while earlier ones are being repacked; 0: none.
    #[schemars(range(max = 64))]
    pub prefetch_threads: usize,
    /// Of the memory that steps write, how much is touched before a step comes to it: what all of
    /// them write at load, of the KV cache 64 MiB ahead of what is used. On the CPU; memory of a
    /// GPU is there once its heaps are.
    #[schemars(range(max = 16_777_216))]
    pub warmup_buffer_mb: u64,
    /// Look at tensors where the file is mapped; `false` reads them into a buffer first, for files
    /// that others may cut off meanwhile.
    pub use_mmap: bool,
    /// Read the model's files past the system's cache, which few cores do much faster: `true`,
    /// `false`, or `auto`, where less than half of a model of 256 MiB or more is in that cache and
    /// there is memory for the buffers. With `auto` the files are brought into the cache behind
    /// the load, while half of the memory that is left has room for them, for the next start.
    /// Linux only.
    pub direct_io: DirectIo,
}

/// `auto`, `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "it must be `auto`, `true` or `false`")]
pub enum DirectIo {
    Set(bool),
    Chosen(Auto),
}

/// As it pays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    Auto,
}

impl DirectIo {
    /// `None`: as it pays.
    pub fn set(self) -> Option<bool> {
        match self {
            Self::Set(set) => Some(set),
            Self::Chosen(Auto::Auto) => None,
        }
    }
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
            direct_io: DirectIo::Chosen(Auto::Auto),
        }
    }
}
