//! `GET /ready`, `GET /health/ready`: should requests be sent here now?

use std::sync::Arc;

use axum::extract::Request;
use serde_json::json;

use super::Answer;
use crate::app::App;
use crate::reply::{ApiError, json_response};

/// 200 once models answer, 503 before, whenever the engine is in trouble, and once the server is
/// stopping.
pub(super) fn answer(app: Arc<App>, _: Request) -> Answer {
    Box::pin(async move {
        if app.is_draining() {
            return Err(ApiError::stopping());
        }
        let status = app.service.status();
        if status.ready {
            return Ok(json_response(&json!({"status": "ready"})));
        }
        Err(ApiError::unavailable(status.trouble.as_deref().unwrap_or("the model is loading")))
    })
}
