//! Where are keys and values kept that the device has no room for?

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where keys and values are kept that the device has no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KvTiersConfig {
    /// Memory for them, of each model that is loaded; 0: none.
    pub ram_bytes: u64,
    /// Disk for them: for all that is in `disk_path`, of which models that are loaded at once have
    /// equal parts; 0: none.
    pub disk_bytes: u64,
    /// The folder for it. What is in it survives a restart; what no loaded model uses makes room,
    /// the longest unused first.
    #[schemars(extend("x-path" = "folder"))]
    pub disk_path: Option<PathBuf>,
}
