//! When is a device that keeps failing left alone?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When a device that keeps failing is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// So many failed steps within `window_seconds` end admission.
    #[schemars(range(min = 1, max = 65_536), extend("x-reload" = true))]
    pub faults_max: u32,
    /// How long a failed step counts.
    #[schemars(range(min = 1, max = 86_400), extend("x-reload" = true))]
    pub window_seconds: u64,
    /// From the end of admission until one request may try.
    #[schemars(range(min = 1, max = 86_400), extend("x-reload" = true))]
    pub pause_seconds: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        // One bad step is bad luck, five in half a minute are a device to leave alone; ten seconds
        // are about the time that a driver takes to reset one.
        Self { faults_max: 5, window_seconds: 30, pause_seconds: 10 }
    }
}
