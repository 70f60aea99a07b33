//! `GET /v1/models`: which models can be asked?

use std::sync::Arc;

use axum::extract::Request;
use engine::{ModelCard, ModelMemory, ModelState, ModelStatus};
use serde::Serialize;

use super::Answer;
use crate::app::App;
use crate::reply::{json_response, utc};

/// A model as OpenAI and Anthropic show it, with vLLM's `max_model_len`, and what an operator wants
/// to know.
#[derive(Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Anthropic's word for `object`.
    #[serde(rename = "type")]
    kind: &'static str,
    display_name: String,
    created_at: String,
    max_input_tokens: u32,
    /// The model that it is an adapter of.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    max_model_len: u32,
    /// `unloaded`, `loading`, `ready`, `unloading` or `failed`.
    state: &'static str,
    /// Why it has failed, or what is wrong with its device.
    #[serde(skip_serializing_if = "Option::is_none")]
    state_reason: Option<String>,
    pinned: bool,
    memory: Memory,
    /// Requests that are using it, and requests that wait until it is loaded.
    requests: u32,
    requests_waiting_for_load: u32,
    queue: Queue,
}

/// Who may run and who waits for that, now.
#[derive(Serialize)]
struct Queue {
    running: u32,
    /// As many as memory, latency and settings allow at once.
    running_limit: u32,
    waiting: u32,
    /// What one would wait that came now, in seconds; null while that is not known.
    newcomer_seconds: Option<f64>,
}

/// In bytes.
#[derive(Serialize)]
struct Memory {
    estimate: Parts,
    /// Null unless it is ready.
    used: Option<Parts>,
}

#[derive(Serialize)]
struct Parts {
    total: u64,
    weights: u64,
    kv_cache: u64,
    activations: u64,
    tokenizer: u64,
    kv_tiers: u64,
    heap_reserve: u64,
}

impl From<ModelMemory> for Parts {
    fn from(memory: ModelMemory) -> Self {
        Self {
            total: memory.resident_bytes(),
            weights: memory.weights_bytes(),
            kv_cache: memory.kv_bytes(),
            activations: memory.activations_bytes(),
            tokenizer: memory.tokenizer_bytes(),
            kv_tiers: memory.tiers_bytes(),
            heap_reserve: memory.heap_reserve_bytes(),
        }
    }
}

pub(crate) fn state_name(state: &ModelState) -> &'static str {
    match state {
        ModelState::Unloaded => "unloaded",
        ModelState::Loading => "loading",
        ModelState::Ready => "ready",
        ModelState::Unloading => "unloading",
        ModelState::Failed { .. } => "failed",
    }
}

impl From<ModelStatus> for Model {
    fn from(status: ModelStatus) -> Self {
        let state = state_name(&status.state);
        let state_reason = match status.state {
            ModelState::Failed { why } => Some(why),
            ModelState::Ready => status.engine.trouble,
            ModelState::Unloaded | ModelState::Loading | ModelState::Unloading => None,
        };
        let display_name = status.card.id.clone();
        Self {
            id: status.card.id,
            object: "model",
            created: status.card.created,
            owned_by: "pelton",
            kind: "model",
            display_name,
            created_at: utc(status.card.created),
            max_input_tokens: status.card.context_tokens_max,
            parent: status.card.base,
            max_model_len: status.card.context_tokens_max,
            state,
            state_reason,
            pinned: status.is_pinned,
            memory: Memory {
                estimate: status.memory_estimate.into(),
                used: status.memory_used.map(Parts::from),
            },
            requests: status.leases,
            requests_waiting_for_load: status.waiting,
            queue: Queue {
                running: status.engine.sequences_running,
                running_limit: status.engine.queue.running_limit,
                waiting: status.engine.queue.length,
                newcomer_seconds: status.engine.queue.newcomer_wait.map(|wait| wait.as_secs_f64()),
            },
        }
    }
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
    /// Of Anthropic's pages: this is the only one.
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

/// Of every model, each with its adapters behind it, which are as it is.
pub(super) fn statuses(app: &App) -> Vec<ModelStatus> {
    let cards = app.service.models();
    let mut all = Vec::with_capacity(cards.len());
    for status in app.service.model_statuses() {
        let is_own = |card: &&ModelCard| card.base.as_ref() == Some(&status.card.id);
        let adapters: Vec<_> = cards
            .iter()
            .filter(is_own)
            .map(|card| ModelStatus { card: card.clone(), ..status.clone() })
            .collect();
        all.push(status);
        all.extend(adapters);
    }
    all
}

pub(super) fn answer(app: Arc<App>, _: Request) -> Answer {
    Box::pin(async move {
        let data: Vec<Model> = statuses(&app).into_iter().map(Model::from).collect();
        let id = |model: Option<&Model>| model.map(|model| model.id.clone());
        let (first_id, last_id) = (id(data.first()), id(data.last()));
        Ok(json_response(&List { object: "list", data, has_more: false, first_id, last_id }))
    })
}
