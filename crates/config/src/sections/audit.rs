//! Where is it written who asked, and when?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A line of JSON for each request, without what was asked or answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditConfig {
    /// The file, opened anew at SIGHUP; absent: nothing is written.
    pub file: Option<String>,
    /// Beyond this size the file becomes `FILE.1` and a new one begins; 0: never.
    #[schemars(range(max = 1_048_576))]
    pub rotate_mb: u64,
    /// Older files that are kept.
    #[schemars(range(min = 1, max = 1000))]
    pub old_files_max: u32,
}

impl Default for AuditConfig {
    fn default() -> Self {
        // About 250,000 requests a file.
        Self { file: None, rotate_mb: 64, old_files_max: 8 }
    }
}
