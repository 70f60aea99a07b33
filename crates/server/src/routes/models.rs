//! `GET /v1/models`: which models can be asked?

use std::sync::Arc;

use axum::extract::Request;
use engine::ModelCard;
use serde::Serialize;

use super::Answer;
use crate::app::App;
use crate::reply::json_response;

/// A model as OpenAI shows it, with vLLM's `max_model_len`.
#[derive(Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    max_model_len: u32,
}

impl From<ModelCard> for Model {
    fn from(card: ModelCard) -> Self {
        Self {
            id: card.id,
            object: "model",
            created: card.created,
            owned_by: "pelton",
            max_model_len: card.context_tokens_max,
        }
    }
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

pub(super) fn answer(app: Arc<App>, _: Request) -> Answer {
    Box::pin(async move {
        let data = app.service.models().into_iter().map(Model::from).collect();
        Ok(json_response(&List { object: "list", data }))
    })
}
