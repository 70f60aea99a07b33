//! How are steps handed to a device?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How steps are handed to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CommandRingConfig {
    /// Steps planned and not read; 1 plans none ahead, which is for measuring only.
    #[schemars(range(min = 1, max = 4))]
    pub ring_size: u32,
    /// A step that takes longer has hung, unless it is less than ten times the slowest that
    /// finished, or twice one that came back after it was given up; 0: wait for ever. Time in which
    /// the whole process stands still does not count.
    #[schemars(range(min = 0, max = 86_400_000))]
    pub timeout_ms: u64,
}

impl Default for CommandRingConfig {
    fn default() -> Self {
        // A prompt's step of a 70B model takes a processor minutes.
        Self { ring_size: 2, timeout_ms: 120_000 }
    }
}
