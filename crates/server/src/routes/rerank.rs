//! `POST /v1/rerank`, `/v2/rerank` and `/rerank`: which of these texts answer the query best? In
//! the form that Cohere and Jina share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use engine::{Prompt, TextPair, VectorInput};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    Object(BTreeMap<String, Value>),
}

#[derive(Serialize)]
struct Ranking<'a> {
    id: String,
    model: &'a str,
    results: Vec<Ranked>,
    usage: Usage,
    meta: Meta,
}

/// What Cohere's clients read of a reply.
#[derive(Serialize)]
struct Meta {
    api_version: ApiVersion,
    tokens: Tokens,
}

#[derive(Serialize)]
struct ApiVersion {
    version: &'static str,
}

#[derive(Serialize)]
struct Tokens {
    input_tokens: u64,
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
        let most = fields.integer("max_tokens_per_doc", 1..=i64::from(u32::MAX))?;
        // What does not fit is refused, and never cut unasked.
        fields.neutral("truncation", &["false"])?;
        let top = fields.integer("top_n", 1..=i64::from(u32::MAX))?;
        let top = top.and_then(|top| usize::try_from(top).ok()).unwrap_or(usize::MAX);
        let returns = fields.boolean("return_documents")?.unwrap_or(false);
        let instruction = fields.string("instruction")?;
        fields.label("user");
        if fields.peek("priority")?.is_some_and(|priority| priority.is_u64()) {
            // Cohere's number, which orders requests of one account there.
            fields.label("priority");
        }
        let (urgency, _) = read_urgency(&mut fields, app.bounds(started))?;
        let namespace = headers.namespace(&mut fields)?;
        fields.finish()?;
        drop(body);
        let documents = match most {
            None => documents,
            Some(most) => shorten(&app, &card.id, documents, most as usize).await?,
        };
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
            meta: Meta {
                api_version: ApiVersion { version: "2" },
                tokens: Tokens { input_tokens: tokens },
            },
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
    let names = fields.typed::<Vec<String>>("rank_fields")?;
    let names = names.unwrap_or_else(|| vec!["text".to_owned()]);
    if names.is_empty() {
        return Err(ApiError::invalid(Some("rank_fields"), "rank_fields names no field"));
    }
    let read = |(index, document)| match document {
        WireDocument::Text(text) => Ok(text),
        WireDocument::Object(object) => {
            let texts: Option<Vec<&str>> =
                names.iter().map(|name| object.get(name).and_then(Value::as_str)).collect();
            texts.map(|texts| texts.join("\n")).ok_or_else(|| {
                let place = format!("documents[{index}]");
                let text = format!("{place} lacks a text that is to be ranked");
                ApiError::invalid(Some(&place), text)
            })
        }
    };
    documents.into_iter().enumerate().map(read).collect()
}

/// The first tokens of each, where it has more than it may have.
async fn shorten(
    app: &App,
    model: &str,
    documents: Vec<String>,
    tokens_max: usize,
) -> Result<Vec<String>, ApiError> {
    // What begins every prompt is no part of a document.
    let frame = app.service.encode(model, Prompt::Text(String::new())).await?.ids.len();
    let mut shortened = Vec::with_capacity(documents.len());
    for document in documents {
        // A token has a byte at the least.
        if document.len() <= tokens_max {
            shortened.push(document);
            continue;
        }
        let prompt = Prompt::Text(document.clone());
        let mut ids = app.service.encode(model, prompt).await?.ids.split_off(frame);
        if ids.len() > tokens_max {
            ids.truncate(tokens_max);
            shortened.push(app.service.decode(model, ids).await?);
        } else {
            shortened.push(document);
        }
    }
    Ok(shortened)
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
