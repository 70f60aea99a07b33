//! `/api/tags`, `/api/ps`, `/api/show`, `/api/version`: which models are here, in Ollama's form.

use std::sync::Arc;

use axum::extract::Request;
use engine::{ModelCard, ModelState, ModelStatus};
use serde::Serialize;
use serde_json::json;

use super::Answer;
use super::models::statuses;
use crate::app::{App, unix_seconds};
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
    parent_model: String,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: &'static str,
}

/// What is told of a model in memory besides.
#[derive(Serialize)]
struct Running {
    context_length: u32,
    size_vram: u64,
    expires_at: String,
}

/// Ollama's longest time: what a model is kept for that never leaves.
const FOREVER_SECONDS: u64 = i64::MAX as u64 / 1_000_000_000;

fn details(status: &ModelStatus) -> Details {
    let origin = &status.card.origin;
    Details {
        parent_model: status.card.base.clone().unwrap_or_default(),
        format: origin.format,
        family: origin.architecture.clone(),
        families: vec![origin.architecture.clone()],
        parameter_size: parameter_size(status.card.parameters),
        quantization_level: origin.quantization,
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
            let left = status.idle_left.map_or(FOREVER_SECONDS, |left| left.as_secs());
            let expires_at = utc(unix_seconds().saturating_add(left));
            listed(status, Some(Running { context_length, size_vram, expires_at }))
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
        let origin = &card.origin;
        let context = card.context_tokens_max;
        let mut info = json!({
            "general.architecture": origin.architecture,
            "general.parameter_count": card.parameters,
            "general.context_length": context,
            "general.vocabulary_size": card.vocabulary_size,
        });
        // Where Ollama's clients look for it.
        info[format!("{}.context_length", origin.architecture)] = json!(context);
        Ok(json_response(&json!({
            "modified_at": utc(card.created),
            "details": details(status),
            "license": origin.license.as_deref().unwrap_or_default(),
            "parameters": format!("num_ctx {context}"),
            "template": origin.template.as_deref().unwrap_or_default(),
            "model_info": info,
            "capabilities": capabilities(&card),
        })))
    })
}

/// In Ollama's words.
fn capabilities(card: &ModelCard) -> Vec<&'static str> {
    if card.vector_width.is_some() {
        return vec!["embedding"];
    }
    let format = card.answer_format;
    let more = [("tools", format.template_knows_tools), ("thinking", format.thoughts.is_some())];
    let known = more.into_iter().filter(|(_, is_known)| *is_known).map(|(name, _)| name);
    std::iter::once("completion").chain(known).collect()
}

pub(super) fn version(_: Arc<App>, _: Request) -> Answer {
    Box::pin(async move { Ok(json_response(&json!({"version": env!("CARGO_PKG_VERSION")}))) })
}
