//! When are guesses at the next tokens checked?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `off`, `auto` (where it pays, as measured) or `always` (every guess, to measure what it costs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SpeculationMode {
    Off,
    Auto,
    Always,
}
