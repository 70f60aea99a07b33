//! `POST /api/embed` and the older `POST /api/embeddings`: vectors in Ollama's form.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use engine::{ModelCard, Prompt, VectorInput};
use serde_json::json;

use super::Answer;
use super::embeddings::{INPUTS_MAX, read_dimensions, shorten};
use crate::app::App;
use crate::reply::{ApiError, json_response};
use crate::request::{
    Fields, SharingHeaders, asks_to_leave, read_body, read_inputs, read_ollama_model,
    read_ollama_options, read_urgency,
};
use crate::vectors::{Asked, vectors};

pub(super) fn embed(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(read_ollama_model(&mut fields)?.as_deref())?;
        // Ollama's default: what is too long is cut.
        let cuts = fields.boolean("truncate")?.unwrap_or(true);
        let inputs = read_inputs(&mut fields, INPUTS_MAX, cuts)?;
        let dimensions = read_dimensions(&mut fields, &card)?;
        let asked = read_rest(&app, fields, &card, &headers, started)?;
        drop(body);
        let found = vectors(&app, &card, &asked, inputs).await?;
        let tokens: u64 = found.iter().map(|vector| vector.tokens).sum();
        let mut embeddings: Vec<Vec<f32>> = found.into_iter().map(|vector| vector.values).collect();
        embeddings.iter_mut().for_each(|values| shorten(values, dimensions));
        let total = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(json_response(&json!({
            "model": card.id,
            "embeddings": embeddings,
            "total_duration": total,
            "load_duration": 0,
            "prompt_eval_count": tokens,
        })))
    })
}

/// One text, whose vector is given as the model made it.
pub(super) fn one(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(read_ollama_model(&mut fields)?.as_deref())?;
        let text = fields.string("prompt")?.unwrap_or_default();
        if text.is_empty() {
            return Err(ApiError::invalid(Some("prompt"), "prompt is missing: send a text"));
        }
        let asked = read_rest(&app, fields, &card, &headers, started)?;
        drop(body);
        let prompt = Prompt::Vector(VectorInput::Text { text, cuts: true });
        let found = vectors(&app, &card, &asked, vec![prompt]).await?;
        let embedding = found.into_iter().next().map(|vector| vector.values);
        Ok(json_response(&json!({"embedding": embedding})))
    })
}

fn read_rest(
    app: &App,
    mut fields: Fields<'_>,
    card: &ModelCard,
    headers: &SharingHeaders,
    started: Instant,
) -> Result<Asked, ApiError> {
    // They ask for nothing that a vector depends on.
    read_ollama_options(&mut fields, card)?;
    if asks_to_leave(&mut fields)? {
        let text = "keep_alive 0 is for /api/generate without a prompt, which unloads a model";
        return Err(ApiError::unsupported("keep_alive", text));
    }
    let (urgency, _) = read_urgency(&mut fields, app.bounds(started))?;
    let namespace = headers.namespace(&mut fields)?;
    fields.finish()?;
    Ok(Asked { namespace, sharing: headers.mode, urgency })
}
