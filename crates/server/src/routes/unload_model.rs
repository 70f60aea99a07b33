//! `POST /models/unload`: take a model out of memory. As llama-server's router spells it.

use std::sync::Arc;

use axum::extract::Request;

use super::Answer;
use super::load_model::read_name;
use super::models::Model;
use crate::app::App;
use crate::reply::json_response;

/// Answers when its memory is given back. A model that answers requests is not unloaded (409).
pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let name = read_name(&app, request).await?;
        Ok(json_response(&Model::from(app.service.unload_model(&name).await?)))
    })
}
