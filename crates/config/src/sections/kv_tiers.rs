//! Where are keys and values kept that the device has no room for?

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where keys and values are kept that the device has no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KvTiersConfig {
    /// Memory for them; 0: none.
    pub ram_bytes: u64,
    /// Disk for them, for each model; 0: none.
    pub disk_bytes: u64,
    /// The folder for it. What is in it survives a restart.
    #[schemars(extend("x-path" = "folder"))]
    pub disk_path: Option<PathBuf>,
}
