//! Which further models are served?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::PoolingConfig;

/// A model besides the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FurtherModelConfig {
    /// The name that requests use; absent: as in `model`.
    #[serde(default)]
    pub name: Option<String>,
    /// A catalogue name, `org/name` on the hub, or the path of a file.
    pub model: String,
    /// Longest sequence; absent: as long as the model and the memory allow.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub context_tokens: Option<u32>,
    /// What it gives: `none`, `mean`, `last` or `rank`, as `model.pooling`; absent: what its files
    /// say.
    #[serde(default)]
    pub pooling: Option<PoolingConfig>,
    /// Adapters of it, each `NAME=FOLDER`.
    #[serde(default)]
    pub adapters: Vec<String>,
    /// For keys and values; absent: as `limits.kv_cache_mb`.
    #[serde(default)]
    #[schemars(range(min = 1, max = 16_777_216))]
    pub kv_cache_mb: Option<u64>,
    /// Never unload it to make room, nor for being idle.
    #[serde(default)]
    pub pinned: bool,
    /// Load it at start, not at its first request.
    #[serde(default)]
    pub preload: bool,
    /// Unload it after so long without a request; absent: only to make room.
    // A year.
    #[serde(default)]
    #[schemars(range(min = 1, max = 525_600))]
    pub idle_minutes: Option<u64>,
}
