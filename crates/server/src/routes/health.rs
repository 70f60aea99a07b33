//! `GET /health`: does this process work? llama-server answers at `/v1/health`, too, and SageMaker
//! asks at `/ping`.

use std::sync::Arc;

use axum::extract::Request;
use engine::{BreakerState, ModelStatus};
use serde_json::{Map, Value, json};

use super::Answer;
use super::models::state_name;
use crate::app::App;
use crate::reply::{ApiError, json_response};

/// 200 while it does, 503 with the reason when it does not (restart it then). `degraded` means
/// that some model cannot answer and another can.
pub(super) fn answer(app: Arc<App>, _: Request) -> Answer {
    Box::pin(async move {
        if let Some(trouble) = app.service.status().trouble {
            return Err(ApiError::unavailable(&trouble));
        }
        let models = app.service.model_statuses();
        let is_degraded = models.iter().any(|model| model.engine.trouble.is_some());
        let status = if is_degraded { "degraded" } else { "ok" };
        let named = |model: ModelStatus| (model.card.id.clone(), describe(&model));
        let models: Map<String, Value> = models.into_iter().map(named).collect();
        Ok(json_response(&json!({"status": status, "models": models})))
    })
}

fn describe(model: &ModelStatus) -> Value {
    let breaker = match model.engine.breaker {
        BreakerState::Closed => "closed",
        BreakerState::Open { .. } => "open",
        BreakerState::HalfOpen => "half_open",
    };
    json!({
        "state": state_name(&model.state),
        "breaker": breaker,
        "trouble": model.engine.trouble,
    })
}
