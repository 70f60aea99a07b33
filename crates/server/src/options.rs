//! How does the server listen, and how patient is it?

use std::sync::Arc;
use std::time::Duration;

use crate::ModelSource;

/// Everything [`crate::bind`] needs besides the engine.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The keys of the configuration's `server` section.
    pub listen: config::ServerConfig,
    /// Those of its `access` section.
    pub access: config::AccessConfig,
    pub audit: config::AuditConfig,
    pub traces: config::TracesConfig,
    pub stored_responses: config::StoredResponsesConfig,
    /// Answers one request may ask for, prompts times `n`; at most 128.
    pub choices_max: u32,
    /// The longest that an answer may take; `None`: any time.
    pub timeout_max: Option<Duration>,
    pub patience: Patience,
    /// Who brings models that are not here; `None`: nobody.
    pub models: Option<Arc<dyn ModelSource>>,
}

/// How long the server waits for a peer.
#[derive(Clone, Debug)]
pub struct Patience {
    /// From a request's first byte to the end of its head.
    pub head: Duration,
    /// For a body, before the time its bytes earn at 1 KiB/s.
    pub body: Duration,
    /// For a reader that takes nothing.
    pub stall: Duration,
    /// Between comments (pings, empty pieces) that keep a silent stream's connection open.
    pub comment: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            // Half of the 30 s after which common proxies give up.
            comment: Duration::from_secs(15),
        }
    }
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            listen: config::ServerConfig::default(),
            access: config::AccessConfig::default(),
            audit: config::AuditConfig::default(),
            traces: config::TracesConfig::default(),
            stored_responses: config::StoredResponsesConfig::default(),
            choices_max: crate::request::CHOICES_MAX,
            timeout_max: None,
            patience: Patience::default(),
            models: None,
        }
    }
}

impl From<&config::Config> for ServerOptions {
    fn from(config: &config::Config) -> Self {
        // All answers of a request must be able to run or wait at once, or it could never start.
        let room = config.limits.sequences_max.saturating_add(config.limits.waiting_max);
        Self {
            listen: config.server.clone(),
            access: config.access.clone(),
            audit: config.audit.clone(),
            traces: config.traces.clone(),
            stored_responses: config.stored_responses.clone(),
            choices_max: room.clamp(1, crate::request::CHOICES_MAX),
            timeout_max: config.limits.timeout_max_ms.map(Duration::from_millis),
            patience: Patience::default(),
            models: None,
        }
    }
}
