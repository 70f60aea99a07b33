//! How is the memory of a model's device got and divided?

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the memory of a model's device is got and divided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HeapPoolConfig {
    /// Off: each buffer is an allocation of its own, and the sizes below mean nothing.
    pub enabled: bool,
    /// Of each heap; absent: one heap, as large as what the model needs.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub heap_size_mb: Option<u64>,
    /// Heaps made when a model is loaded, where `heap_size_mb` is given. All of them count as
    /// memory of the model, used or not.
    #[schemars(range(min = 1, max = 1024))]
    pub num_heaps: u32,
    /// Bytes of buffers that are carved, touched and given back at load, so that first uses are not
    /// slow. On the CPU; heaps of a GPU are written whole at load.
    #[schemars(inner(range(min = 1, max = 17_592_186_044_416_u64)))]
    pub warmup_sizes: Vec<u64>,
    /// Whether further heaps may be made between steps, where none has room.
    pub allow_growth: bool,
    /// Count buffers and free pieces by size.
    pub track_statistics: bool,
    /// Say in the log when no heap has room.
    pub log_exhaustion: bool,
    /// A shared library that heaps come from (docs/allocator.md), on a CUDA device those in the
    /// process; absent: the device's own memory. Not for devices of wgpu.
    #[schemars(extend("x-path" = "file"))]
    pub allocator: Option<PathBuf>,
}

impl Default for HeapPoolConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            heap_size_mb: None,
            num_heaps: 1,
            warmup_sizes: Vec::new(),
            allow_growth: false,
            track_statistics: true,
            log_exhaustion: true,
            allocator: None,
        }
    }
}
