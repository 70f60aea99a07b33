//! `POST /v1/embeddings`: where do these texts lie?

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::ModelCard;
use serde::Serialize;

use super::Answer;
use crate::app::App;
use crate::reply::{ApiError, json_response};
use crate::request::{Fields, SharingHeaders, read_body, read_inputs, read_urgency};
use crate::vectors::{Asked, unit_length, vectors};

/// OpenAI's bound.
pub(super) const INPUTS_MAX: usize = 2048;

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Embedding>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Values,
}

/// As numbers, or their bytes in f32, the lowest first, in base 64.
#[derive(Serialize)]
#[serde(untagged)]
enum Values {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let inputs = read_inputs(&mut fields, INPUTS_MAX, false)?;
        let in_base64 = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                let text = "encoding_format must be `float` or `base64`";
                return Err(ApiError::invalid(Some("encoding_format"), text));
            }
        };
        let dimensions = read_dimensions(&mut fields, &card)?;
        for name in ["user", "safety_identifier"] {
            fields.label(name);
        }
        let (urgency, _) = read_urgency(&mut fields, app.bounds(started))?;
        let namespace = headers.namespace(&mut fields)?;
        fields.finish()?;
        drop(body);
        let asked = Asked { namespace, sharing: headers.mode, urgency };
        let found = vectors(&app, &card, &asked, inputs).await?;
        let tokens = found.iter().map(|vector| vector.tokens).sum();
        let embedding = |(index, mut values): (usize, Vec<f32>)| {
            shorten(&mut values, dimensions);
            let embedding = if in_base64 {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Values::Base64(STANDARD.encode(bytes))
            } else {
                Values::Numbers(values)
            };
            Embedding { object: "embedding", index, embedding }
        };
        let values = found.into_iter().map(|vector| vector.values);
        Ok(json_response(&List {
            object: "list",
            data: values.enumerate().map(embedding).collect(),
            model: &card.id,
            usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        }))
    })
}

/// How many values are wanted of each vector; `None`: all.
pub(super) fn read_dimensions(
    fields: &mut Fields<'_>,
    card: &ModelCard,
) -> Result<Option<usize>, ApiError> {
    let most = i64::from(card.vector_width.unwrap_or(u32::MAX));
    let asked = fields.integer("dimensions", 1..=most)?;
    Ok(asked.map(|count| usize::try_from(count).unwrap_or(usize::MAX)))
}

/// The first values, of length 1 again: what models trained for it mean by fewer dimensions
/// (<https://arxiv.org/abs/2205.13147>).
pub(super) fn shorten(values: &mut Vec<f32>, dimensions: Option<usize>) {
    values.truncate(dimensions.unwrap_or(values.len()));
    unit_length(values);
}
