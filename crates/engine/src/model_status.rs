//! What does an operator see of a model? Its state, its memory, and what it has done.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use messages::Refusal;

use crate::{EngineStatus, ModelCard, ModelMemory};

/// Where a model is between the disk and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// The next request loads it.
    Unloaded,
    Loading,
    Ready,
    Unloading,
    /// It could not be loaded; requests are refused until this is forgotten.
    Failed {
        why: String,
    },
}

/// One model of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelStatus {
    pub card: ModelCard,
    pub state: ModelState,
    /// Never unloaded but by order.
    pub is_pinned: bool,
    /// Worked out before it is loaded.
    pub memory_estimate: ModelMemory,
    /// What it takes; `None` unless it is ready.
    pub memory_used: Option<ModelMemory>,
    /// After which time it is unloaded for being idle, if nobody asks it; `None`: never.
    pub idle_left: Option<Duration>,
    /// Requests that keep it in memory.
    pub leases: u32,
    /// Requests that wait for it to be loaded.
    pub waiting: u32,
    pub loads_total: u64,
    pub load_failures_total: u64,
    /// The latest load took so long.
    pub load_time: Duration,
    /// Its engine's, and the counters of its engines before.
    pub engine: EngineStatus,
}

impl ModelStatus {
    /// Of a model that is there for as long as the service.
    pub fn always_ready(card: ModelCard, memory: ModelMemory, engine: EngineStatus) -> Self {
        Self {
            card,
            state: ModelState::Ready,
            is_pinned: true,
            memory_estimate: memory,
            memory_used: Some(memory),
            idle_left: None,
            leases: 0,
            waiting: 0,
            loads_total: 1,
            load_failures_total: 0,
            load_time: Duration::ZERO,
            engine,
        }
    }
}

/// Ready when an order about a model is carried out, with what it is then.
pub type ModelFuture<'a> = Pin<Box<dyn Future<Output = Result<ModelStatus, Refusal>> + Send + 'a>>;
