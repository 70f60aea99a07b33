//! What do all requests of one server share, and what does one of them see of it?

use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use config::ServerConfig;
use engine::{ModelCard, Service};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::access::Access;
use crate::audit::AuditLog;
use crate::caller_service::CallerService;
use crate::hosts::Hosts;
use crate::metrics::Metrics;
use crate::reply::ApiError;
use crate::request::{Bounds, SharingHeaders};
use crate::stored_responses::StoredResponses;
use crate::trace_context::TraceContext;
use crate::traces::Traces;
use crate::visit::{Departure, Visit};
use crate::{ServerError, ServerOptions};

/// The engine and what surrounds it.
pub(crate) struct Shared {
    pub(crate) engine: Arc<dyn Service>,
    pub(crate) options: ServerOptions,
    live: RwLock<Arc<Live>>,
    pub(crate) metrics: Metrics,
    pub(crate) responses: StoredResponses,
    pub(crate) outside: Outside,
    /// Bytes of request bodies that may be held at once.
    pub(crate) body_bytes: Semaphore,
    /// Whether a model is being brought here.
    pub(crate) pulls: Arc<Semaphore>,
    is_draining: AtomicBool,
    names: Names,
}

/// Who is told of each request that has ended; nobody of these is ever waited for.
#[derive(Default)]
pub(crate) struct Outside {
    pub(crate) audit: Option<AuditLog>,
    pub(crate) traces: Option<Traces>,
}

impl Outside {
    pub(crate) fn open(options: &ServerOptions) -> Result<Self, ServerError> {
        let (audit, traces) = (AuditLog::open(&options.audit)?, Traces::start(&options.traces)?);
        Ok(Self { audit, traces })
    }

    pub(crate) fn tell(&self, departure: &Departure) {
        if let Some(audit) = &self.audit {
            audit.write(departure);
        }
        if let Some(traces) = &self.traces {
            traces.send(departure);
        }
    }
}

/// What a running server can be told anew. The other keys of the section hold from its start.
pub(crate) struct Live {
    pub(crate) hosts: Hosts,
    pub(crate) access: Access,
    /// `None`: connections are not encrypted.
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) listen: ServerConfig,
}

impl Live {
    /// # Errors
    /// [`ServerError::Tls`] when the files of TLS are not right.
    pub(crate) fn new(
        listen: &ServerConfig,
        is_loopback: bool,
        access: Access,
    ) -> Result<Self, ServerError> {
        let tls = crate::tls::acceptor(listen)?;
        let hosts = Hosts::new(listen, is_loopback);
        Ok(Self { hosts, access, tls, listen: listen.clone() })
    }
}

/// Bodies of everyday size for every sequence, and always several of the largest.
const BODY_BYTES_TOTAL: usize = 64 << 20;

impl Shared {
    pub(crate) fn new(
        engine: Arc<dyn Service>,
        options: ServerOptions,
        live: Live,
        outside: Outside,
    ) -> Self {
        let responses = StoredResponses::new(&options.stored_responses);
        let body_bytes = BODY_BYTES_TOTAL.max(options.listen.request_body_bytes_max * 4);
        Self {
            engine,
            options,
            live: RwLock::new(Arc::new(live)),
            metrics: Metrics::default(),
            responses,
            outside,
            body_bytes: Semaphore::new(body_bytes.min(Semaphore::MAX_PERMITS)),
            pulls: Arc::new(Semaphore::new(1)),
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
        format!("{prefix}{:032x}", self.fresh_number())
    }

    fn fresh_number(&self) -> u128 {
        let count = self.names.count.fetch_add(1, Ordering::Relaxed);
        let half = |index: u8| u128::from(self.names.keys.hash_one((count, index)));
        (half(0) << 64) | half(1)
    }

    /// The trace that a request says it belongs to, or one of its own.
    pub(crate) fn trace_context(&self, headers: &HeaderMap) -> TraceContext {
        let number = self.fresh_number();
        let own = number as u64;
        let Some(traces) = &self.outside.traces else {
            return TraceContext { trace: number, parent: None, own, is_sampled: false };
        };
        TraceContext::read(headers, own).unwrap_or_else(|| {
            let trace = self.fresh_number().max(1);
            TraceContext { trace, parent: None, own, is_sampled: traces.samples(trace) }
        })
    }
}

/// The server as one request sees it: with the models of its caller.
pub(crate) struct App {
    shared: Arc<Shared>,
    pub(crate) service: Arc<dyn Service>,
    pub(crate) visit: Arc<Visit>,
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl App {
    /// `route`: the line of the table that is answered.
    pub(crate) fn new(shared: Arc<Shared>, visit: Arc<Visit>, route: &'static str) -> Self {
        let service = CallerService::new(Arc::clone(&shared), Arc::clone(&visit), route);
        Self { shared, service: Arc::new(service), visit }
    }

    /// What bounds a request that came at `started`.
    pub(crate) fn bounds(&self, started: Instant) -> Bounds {
        let (priority, priority_max) = self.visit.caller.priorities();
        Bounds {
            choices_max: self.options.choices_max,
            started,
            timeout_max: self.options.timeout_max,
            priority,
            priority_max,
        }
    }

    /// Whose request it is: as its key says, where there are keys, else as its headers tell.
    pub(crate) fn tenant<'a>(&'a self, headers: &'a SharingHeaders) -> &'a str {
        self.visit.caller.tenant().unwrap_or_else(|| headers.tenant())
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
        let all = self.engine.models();
        let named = name.filter(|name| all.iter().any(|card| card.id == *name));
        if named.is_some() || (models.is_empty() && !all.is_empty()) {
            return Err(ApiError::forbidden_model(named.or(name).unwrap_or("default")));
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
