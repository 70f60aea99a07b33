//! How many of a model's layers does a GPU take?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `auto`, `all` or a number of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "it must be `auto`, `all` or a number of layers")]
pub enum GpuLayersConfig {
    Count(u32),
    Named(NamedLayers),
}

/// As fits, or every one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NamedLayers {
    Auto,
    All,
}

impl Default for GpuLayersConfig {
    fn default() -> Self {
        Self::Named(NamedLayers::Auto)
    }
}
