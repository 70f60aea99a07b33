//! `GET /props`, in llama-server's shape: how long is the context of a model, and how does it
//! sample where a request does not say?
//!
//! Of llama-server's fields those that have a true value here: there are no slots, but so many run
//! at once, and no path of a file is told to who asks.

use std::sync::Arc;

use axum::extract::Request;
use serde_json::json;

use super::Answer;
use super::models::statuses;
use crate::app::App;
use crate::reply::{ApiError, json_response, system_fingerprint};
use crate::request::Query;

/// Of the model that the query names, as llama-server has it where it serves several.
pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let mut query = Query::parse(request.uri())?;
        let card = app.pick_model(query.take("model"))?;
        query.finish()?;
        let status = statuses(&app).into_iter().find(|status| status.card.id == card.id);
        let status = status.ok_or_else(|| ApiError::unavailable("the model has just left"))?;
        let defaults = &card.defaults;
        Ok(json_response(&json!({
            "default_generation_settings": {
                "n_ctx": card.context_tokens_max,
                "params": {
                    "temperature": defaults.temperature,
                    "top_k": defaults.top_k,
                    "top_p": defaults.top_p,
                    "min_p": defaults.min_p,
                    "repeat_penalty": defaults.repetition_penalty,
                    "presence_penalty": defaults.presence_penalty,
                    "frequency_penalty": defaults.frequency_penalty,
                },
            },
            "total_slots": status.engine.queue.running_limit,
            "model_alias": card.id,
            "chat_template": card.origin.template.as_deref().unwrap_or_default(),
            "modalities": {"vision": false, "audio": false},
            "build_info": system_fingerprint(&card),
        })))
    })
}
