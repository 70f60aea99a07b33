//! `GET /v1/models/{id}`: is this model here? Ids may hold slashes.

use std::sync::Arc;

use axum::RequestExt;
use axum::extract::{Path, Request};

use super::Answer;
use super::models::{Model, statuses};
use crate::app::App;
use crate::reply::{ApiError, json_response};

pub(super) fn answer(app: Arc<App>, mut request: Request) -> Answer {
    Box::pin(async move {
        let id = request.extract_parts::<Path<String>>().await;
        let Path(id) = id.map_err(|_| ApiError::invalid(None, "the path is not UTF-8"))?;
        let card = app.pick_model(Some(&id))?;
        let status = statuses(&app).into_iter().find(|status| status.card.id == card.id);
        // It may have gone since.
        let status = status.ok_or_else(|| ApiError::unavailable("the model has just gone"))?;
        Ok(json_response(&Model::from(status)))
    })
}
