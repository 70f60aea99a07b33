//! What do all requests of one server share?

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use config::ServerConfig;
use engine::{ModelCard, Service};
use tokio::sync::Semaphore;

use crate::ServerOptions;
use crate::hosts::Hosts;
use crate::metrics::Metrics;
use crate::reply::ApiError;
use crate::stored_responses::StoredResponses;

/// The engine and what surrounds it.
pub(crate) struct App {
    pub(crate) service: Arc<dyn Service>,
    pub(crate) options: ServerOptions,
    live: RwLock<Arc<Live>>,
    pub(crate) metrics: Metrics,
    pub(crate) responses: StoredResponses,
    /// Bytes of request bodies that may be held at once.
    pub(crate) body_bytes: Semaphore,
    is_draining: AtomicBool,
    names: Names,
}

/// What a running server can be told anew. The other keys of the section hold from its start.
pub(crate) struct Live {
    pub(crate) hosts: Hosts,
    pub(crate) listen: ServerConfig,
}

impl Live {
    pub(crate) fn new(listen: &ServerConfig, is_loopback: bool) -> Self {
        Self { hosts: Hosts::new(listen, is_loopback), listen: listen.clone() }
    }
}

/// Bodies of everyday size for every sequence, and always several of the largest.
const BODY_BYTES_TOTAL: usize = 64 << 20;

impl App {
    pub(crate) fn new(service: Arc<dyn Service>, options: ServerOptions, live: Live) -> Self {
        let body_bytes = BODY_BYTES_TOTAL.max(options.listen.request_body_bytes_max * 4);
        Self {
            service,
            options,
            live: RwLock::new(Arc::new(live)),
            metrics: Metrics::new(),
            responses: StoredResponses::default(),
            body_bytes: Semaphore::new(body_bytes.min(Semaphore::MAX_PERMITS)),
            is_draining: AtomicBool::new(false),
            names: Names { keys: RandomState::new(), count: AtomicU64::new(0) },
        }
    }

    /// What holds now: to be asked for anew by each request and connection.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn take_up(&self, live: Live) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }

    /// From now on nothing new is answered.
    pub(crate) fn start_draining(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// A fresh name that nobody can guess from another: `prefix` and 32 hex digits.
    pub(crate) fn fresh_name(&self, prefix: &str) -> String {
        let count = self.names.count.fetch_add(1, Ordering::Relaxed);
        let high = self.names.keys.hash_one((count, 0_u8));
        let low = self.names.keys.hash_one((count, 1_u8));
        format!("{prefix}{high:016x}{low:016x}")
    }

    /// The model a request names; none and `default` are the first.
    pub(crate) fn pick_model(&self, name: Option<&str>) -> Result<ModelCard, ApiError> {
        let models = self.service.models();
        let found = match name {
            None | Some("default") => models.first(),
            Some(name) => {
                let first = models.first().map(|card| card.id.as_str());
                models.iter().find(|card| card.id == name || is_adapter(card, name, first))
            }
        };
        if let Some(card) = found {
            return Ok(card.clone());
        }
        let ids: Vec<String> = models.iter().map(|card| format!("`{}`", card.id)).collect();
        match name {
            Some(name) if !models.is_empty() => Err(ApiError::unknown_model(name, &ids.join(", "))),
            _ => Err(ApiError::unavailable("no model is loaded")),
        }
    }
}

/// Whether a name is `model:adapter` of this adapter.
fn is_adapter(card: &ModelCard, name: &str, first: Option<&str>) -> bool {
    let Some(base) = card.base.as_deref() else { return false };
    let behind = |model: &str| name.strip_prefix(model)?.strip_prefix(':');
    let of_first = || behind("default").filter(|_| first == Some(base));
    behind(base).or_else(of_first) == Some(&card.id)
}

struct Names {
    keys: RandomState,
    count: AtomicU64,
}

/// Seconds since 1970; 0 where the clock is set before.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
