//! `/v1/responses`: OpenAI's newer form of the same question, with answers that the server keeps.

mod writer;

use std::sync::Arc;
use std::time::Instant;

use axum::RequestExt;
use axum::extract::{Path, Request};
use engine::Prompt;
use serde_json::{Map, Value, json};

use super::Answer;
use crate::answers::Answers;
use crate::app::App;
use crate::reply::{ApiError, json_response, respond};
use crate::request::{SharingHeaders, read_body, read_response_fields};
use crate::stored_responses::Stored;
use writer::{Keep, Writer};

pub(super) fn create(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let started = Instant::now();
        let headers = SharingHeaders::read(request.headers())?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let bounds = app.bounds(started);
        let tenant = app.tenant(&headers).to_owned();
        let find_item = |id: &str| app.responses.find_item(&tenant, id, Instant::now());
        let mut read = read_response_fields(&mut fields, &card, &headers, bounds, &find_item)?;
        let explains = headers.explains(&mut fields)?;
        fields.finish()?;
        drop(body);
        read.dialog.hold(&mut read.asked, &card)?;
        read.asked.params.validate(card.vocabulary_size)?;
        let mut messages = Vec::new();
        if let Some(id) = &read.previous {
            let before = find(&app, &tenant, id, "previous_response_id")?;
            messages.extend_from_slice(&before.messages);
        }
        messages.append(&mut read.messages);
        let mut echo: Map<String, Value> =
            read.echo.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        echo.insert("instructions".to_owned(), json!(read.instructions));
        echo.insert("previous_response_id".to_owned(), json!(read.previous));
        let (input, said) = (read.input, messages.clone());
        let keep = read.is_stored.then_some(Keep { tenant, input, messages: said });
        let writer = Writer::new(&app, &card, (echo, read.call_forms), keep);
        if let Some(instructions) = &read.instructions {
            messages.insert(0, chat::Message::new("system", instructions));
        }
        let conversation = read.dialog.conversation(messages, &card);
        let setup = read.dialog.reader(&card, &read.asked);
        let stream = read.asked.stream;
        let requests = read.asked.into_requests(&card.id, vec![Prompt::Chat(conversation)]);
        let answers = Answers::admit(&app, requests, Some(&setup)).await?;
        respond(&app, answers, writer, (stream.is_on(), explains)).await
    })
}

/// `GET /v1/responses/{id}`.
pub(super) fn retrieve(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let (tenant, id) = named(&app, request).await?;
        Ok(json_response(&find(&app, &tenant, &id, "response_id")?.response))
    })
}

/// `GET /v1/responses/{id}/input_items`.
pub(super) fn input_items(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let (tenant, id) = named(&app, request).await?;
        let stored = find(&app, &tenant, &id, "response_id")?;
        let number = |(index, item): (usize, &Value)| {
            let mut item = item.clone();
            if let Some(object) = item.as_object_mut() {
                object.entry("id").or_insert_with(|| json!(format!("item_{index}")));
                object.entry("type").or_insert_with(|| json!("message"));
            }
            item
        };
        let data: Vec<Value> = stored.input.iter().enumerate().map(number).collect();
        let id = |item: Option<&Value>| item.map(|item| item["id"].clone());
        let (first, last) = (id(data.first()), id(data.last()));
        Ok(json_response(&json!({"object": "list", "data": data, "first_id": first,
            "last_id": last, "has_more": false})))
    })
}

/// `DELETE /v1/responses/{id}`.
pub(super) fn remove(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let (tenant, id) = named(&app, request).await?;
        if !app.responses.remove(&tenant, &id) {
            return Err(ApiError::unknown_response(&id, "response_id"));
        }
        Ok(json_response(&json!({"id": id, "object": "response", "deleted": true})))
    })
}

/// Whose response is asked for, and which.
async fn named(app: &App, mut request: Request) -> Result<(String, String), ApiError> {
    let headers = SharingHeaders::read(request.headers())?;
    let id = request.extract_parts::<Path<String>>().await;
    let Path(id) = id.map_err(|_| ApiError::invalid(None, "the path is not UTF-8"))?;
    Ok((app.tenant(&headers).to_owned(), id))
}

fn find(app: &App, tenant: &str, id: &str, field: &str) -> Result<Arc<Stored>, ApiError> {
    let found = app.responses.find(tenant, id, Instant::now());
    found.ok_or_else(|| ApiError::unknown_response(id, field))
}
