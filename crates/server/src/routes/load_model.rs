//! `POST /models/load`: bring a model into memory. As llama-server's router spells it.

use std::sync::Arc;

use axum::extract::Request;

use super::Answer;
use super::models::Model;
use crate::admin;
use crate::app::App;
use crate::reply::{ApiError, json_response};
use crate::request::read_body;

/// Answers when the model is ready, or with the reason why it cannot be.
pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let name = read_name(&app, request).await?;
        Ok(json_response(&Model::from(app.service.load_model(&name).await?)))
    })
}

/// The body of an order: `{"model": name}`.
pub(super) async fn read_name(app: &Arc<App>, request: Request) -> Result<String, ApiError> {
    admin::check(&request)?;
    let body = read_body(app, request).await?;
    let mut fields = body.fields()?;
    let name = fields.string("model")?;
    fields.finish()?;
    name.ok_or_else(|| ApiError::invalid(Some("model"), "say which model, by its name"))
}
