//! `/api/tags`, `/api/ps`, `/api/show`, `/api/version`: which models are here, in Ollama's form.

use std::sync::Arc;

use axum::extract::Request;
use engine::{ModelState, ModelStatus};
use serde::Serialize;
use serde_json::json;

use super::Answer;
use super::models::statuses;
use crate::app::App;
use crate::reply::{ApiError, json_response, utc};
use crate::request::{read_body, read_ollama_model};

/// A model as `/api/tags` and `/api/ps` list it.
#[derive(Serialize)]
struct Listed {
    name: String,
    model: String,
    modified_at: String,
    /// Bytes of weights.
    size: u64,
    /// Models are known by their names here: there is none.
    digest: &'static str,
    details: Details,
    #[serde(flatten)]
    running: Option<Running>,
}

#[derive(Serialize)]
struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: &'static str,
    families: Vec<&'static str>,
    parameter_size: String,
    quantization_level: &'static str,
}

/// What is told of a model in memory besides.
#[derive(Serialize)]
struct Running {
    context_length: u32,
    size_vram: u64,
}

fn details(status: &ModelStatus) -> Details {
    Details {
        parent_model: "",
        format: "",
        family: "",
        families: Vec::new(),
        parameter_size: parameter_size(status.card.parameters),
        quantization_level: "",
    }
}

/// `134.5M`, `8.0B`, as Ollama writes it.
fn parameter_size(count: u64) -> String {
    let count = count as f64;
    match count {
        1e9.. => format!("{:.1}B", count / 1e9),
        1e6.. => format!("{:.1}M", count / 1e6),
        _ => format!("{:.1}K", count / 1e3),
    }
}

fn listed(status: &ModelStatus, running: Option<Running>) -> Listed {
    let memory = status.memory_used.unwrap_or(status.memory_estimate);
    Listed {
        name: status.card.id.clone(),
        model: status.card.id.clone(),
        modified_at: utc(status.card.created),
        size: memory.weights_bytes(),
        digest: "",
        details: details(status),
        running,
    }
}

pub(super) fn tags(app: Arc<App>, _: Request) -> Answer {
    Box::pin(async move {
        let models: Vec<Listed> =
            statuses(&app).iter().map(|status| listed(status, None)).collect();
        Ok(json_response(&json!({"models": models})))
    })
}

pub(super) fn ps(app: Arc<App>, _: Request) -> Answer {
    Box::pin(async move {
        let statuses = app.service.model_statuses();
        let is_ready = |status: &&ModelStatus| status.state == ModelState::Ready;
        let list = |status: &ModelStatus| {
            let in_gpu = status.card.device != "cpu" && status.card.device != "reference";
            let total = status.memory_used.map_or(0, |memory| memory.resident_bytes());
            let size_vram = if in_gpu { total } else { 0 };
            let context_length = status.card.context_tokens_max;
            listed(status, Some(Running { context_length, size_vram }))
        };
        let models: Vec<Listed> = statuses.iter().filter(is_ready).map(list).collect();
        Ok(json_response(&json!({"models": models})))
    })
}

pub(super) fn show(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(read_ollama_model(&mut fields)?.as_deref())?;
        fields.label("verbose");
        fields.finish()?;
        let statuses = statuses(&app);
        let status = statuses.iter().find(|status| status.card.id == card.id);
        let status = status.ok_or_else(|| ApiError::unavailable("the model has just left"))?;
        Ok(json_response(&json!({
            "modified_at": utc(card.created),
            "details": details(status),
            "model_info": {
                "general.parameter_count": card.parameters,
                "general.context_length": card.context_tokens_max,
                "general.vocabulary_size": card.vocabulary_size,
            },
            "capabilities": [if card.vector_width.is_some() { "embedding" } else { "completion" }],
        })))
    })
}

pub(super) fn version(_: Arc<App>, _: Request) -> Answer {
    Box::pin(async move { Ok(json_response(&json!({"version": env!("CARGO_PKG_VERSION")}))) })
}
