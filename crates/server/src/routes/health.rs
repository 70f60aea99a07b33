//! `GET /health`: does this process work?

use std::sync::Arc;

use axum::extract::Request;
use serde_json::json;

use super::Answer;
use crate::app::App;
use crate::reply::{ApiError, json_response};

/// 200 while it does, 503 with the reason when it does not (restart it then).
pub(super) fn answer(app: Arc<App>, _: Request) -> Answer {
    Box::pin(async move {
        match app.service.status().trouble {
            None => Ok(json_response(&json!({"status": "ok"}))),
            Some(trouble) => Err(ApiError::unavailable(&trouble)),
        }
    })
}
