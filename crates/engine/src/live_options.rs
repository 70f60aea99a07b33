//! What can a running engine be told anew, without dropping a request?

use std::time::Duration;

use sharing::SharingLimits;

use crate::{BreakerRules, PacingOptions};

/// The options that hold from now on; all others hold until the model is loaded anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveOptions {
    /// For models that share at all.
    pub sharing: SharingLimits,
    pub breaker: BreakerRules,
    /// At most as many as at the start.
    pub waiting_max: u32,
    pub queue_time_max: Option<Duration>,
    pub pacing: PacingOptions,
}
