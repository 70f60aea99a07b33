//! Where do traces of requests go?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// OpenTelemetry traces: the wait, the reading and the writing of each request as spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TracesConfig {
    /// Of a collector's OTLP over HTTP, as in `http://127.0.0.1:4318/v1/traces`; absent: none.
    pub endpoint: Option<String>,
    /// What the spans say they come from.
    pub service_name: String,
    /// Of the requests whose `traceparent` does not decide it.
    #[schemars(range(max = 100))]
    pub sample_percent: u32,
    /// Requests that may wait for the collector; more are dropped and counted.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub queue_max: u32,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            service_name: "pelton".to_owned(),
            sample_percent: 100,
            // About 500 bytes each.
            queue_max: 8192,
        }
    }
}
