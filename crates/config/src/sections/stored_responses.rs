//! How much is kept of what `/v1/responses` answered?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Responses that can be gone on with or asked for again: in memory, until a restart. The oldest
/// go first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoredResponsesConfig {
    /// How many; 0: none are kept.
    #[schemars(range(max = 1_048_576))]
    pub entries_max: u32,
    /// What they take together.
    #[schemars(range(max = 1_048_576))]
    pub size_mb: u64,
    /// How long each is kept.
    #[schemars(range(min = 1, max = 31_536_000))]
    pub age_max_seconds: u64,
}

impl Default for StoredResponsesConfig {
    fn default() -> Self {
        Self { entries_max: 1024, size_mb: 64, age_max_seconds: 24 * 60 * 60 }
    }
}
