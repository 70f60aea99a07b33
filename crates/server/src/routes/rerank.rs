//! `POST /v1/rerank`, `/v2/rerank` and `/rerank`: which of these texts answer the query best? In
//! the form that Cohere and Jina share.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use engine::{Prompt, TextPair, VectorInput};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Answer;
use crate::app::App;
use crate::reply::{ApiError, json_response};
use crate::request::{Fields, SharingHeaders, read_body, read_urgency};
use crate::vectors::{Asked, vectors};

/// As many as Jina takes.
const DOCUMENTS_MAX: usize = 1024;

/// A document, as itself or as an object.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "it must be a text, or an object with a text")]
enum WireDocument {
    Text(String),
    Object { text: String },
}

#[derive(Serialize)]
struct Ranking<'a> {
    id: String,
    model: &'a str,
    results: Vec<Ranked>,
    usage: Usage,
}

#[derive(Serialize)]
struct Ranked {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

#[derive(Serialize)]
struct Document {
    text: String,
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
        let query = fields.string("query")?.filter(|text| !text.is_empty());
        let missing = || ApiError::invalid(Some("query"), "query is missing: send a text");
        let query = query.ok_or_else(missing)?;
        let documents = read_documents(&mut fields)?;
        let top = fields.integer("top_n", 1..=i64::from(u32::MAX))?;
        let top = top.and_then(|top| usize::try_from(top).ok()).unwrap_or(usize::MAX);
        let returns = fields.boolean("return_documents")?.unwrap_or(false);
        let instruction = fields.string("instruction")?;
        fields.label("user");
        let (urgency, _) = read_urgency(&mut fields, app.bounds(started))?;
        let namespace = headers.namespace(&mut fields)?;
        fields.finish()?;
        drop(body);
        let asked = Asked { namespace, sharing: headers.mode, urgency };
        let prompt = |document: &String| {
            let (query, document) = (query.clone(), document.clone());
            let instruction = instruction.clone();
            Prompt::Vector(VectorInput::Pair(TextPair { query, document, instruction }))
        };
        let prompts = documents.iter().map(prompt).collect();
        let found = vectors(&app, &card, &asked, prompts).await?;
        let tokens = found.iter().map(|vector| vector.tokens).sum();
        let mut results: Vec<Ranked> = (0..)
            .zip(&found)
            .map(|(index, scores)| Ranked {
                index,
                relevance_score: relevance(&scores.values),
                document: returns.then(|| Document { text: documents[index].clone() }),
            })
            .collect();
        // Equal ones in the order in which they came.
        results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
        results.truncate(top);
        Ok(json_response(&Ranking {
            id: app.fresh_name("rerank-"),
            model: &card.id,
            results,
            usage: Usage { prompt_tokens: tokens, total_tokens: tokens },
        }))
    })
}

fn read_documents(fields: &mut Fields<'_>) -> Result<Vec<String>, ApiError> {
    let documents = fields.typed::<Vec<WireDocument>>("documents")?.unwrap_or_default();
    if documents.is_empty() || documents.len() > DOCUMENTS_MAX {
        let count = documents.len();
        let text = format!("there are {count} documents, there must be 1 to {DOCUMENTS_MAX}");
        return Err(ApiError::invalid(Some("documents"), text));
    }
    let text = |document| match document {
        WireDocument::Text(text) | WireDocument::Object { text } => text,
    };
    Ok(documents.into_iter().map(text).collect())
}

/// From 0 to 1: of one score its sigmoid, of a yes and a no how likely the yes is.
fn relevance(scores: &[f32]) -> f32 {
    let score = match scores {
        [score] => *score,
        [yes, no, ..] => yes - no,
        [] => f32::NEG_INFINITY,
    };
    1.0 / (1.0 + (-score).exp())
}
