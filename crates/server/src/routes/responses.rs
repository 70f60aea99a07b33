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
use crate::request::{Query, SharingHeaders, read_body, read_response_fields};
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
        let uri = request.uri().clone();
        let mut query = Query::parse(&uri)?;
        if query.take("stream").is_some_and(|value| value != "false") {
            let text = "a stored response is not streamed again: leave `stream` out";
            return Err(ApiError::unsupported("stream", text));
        }
        query.finish()?;
        let (tenant, id) = named(&app, request).await?;
        Ok(json_response(&find(&app, &tenant, &id, "response_id")?.response))
    })
}

/// OpenAI's bounds of a page.
const PAGE_ITEMS: usize = 20;
const PAGE_ITEMS_MAX: usize = 100;

/// `GET /v1/responses/{id}/input_items`: the latest first, a page at a time.
pub(super) fn input_items(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let uri = request.uri().clone();
        let page = Page::read(Query::parse(&uri)?)?;
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
        let mut items: Vec<Value> = stored.input.iter().enumerate().map(number).collect();
        if !page.is_ascending {
            items.reverse();
        }
        if let Some(after) = page.after {
            let Some(place) = items.iter().position(|item| item["id"] == after) else {
                let text = "`after` names no item of this response";
                return Err(ApiError::invalid(Some("after"), text));
            };
            items.drain(..=place);
        }
        let has_more = items.len() > page.limit;
        items.truncate(page.limit);
        let id = |item: Option<&Value>| item.map(|item| item["id"].clone());
        let (first, last) = (id(items.first()), id(items.last()));
        Ok(json_response(&json!({"object": "list", "data": items, "first_id": first,
            "last_id": last, "has_more": has_more})))
    })
}

/// Which items of a list are asked for.
struct Page<'a> {
    is_ascending: bool,
    after: Option<&'a str>,
    limit: usize,
}

impl<'a> Page<'a> {
    fn read(mut query: Query<'a>) -> Result<Self, ApiError> {
        let refuse = |name, text: &str| Err(ApiError::invalid(Some(name), text));
        let is_ascending = match query.take("order") {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return refuse("order", "order must be `asc` or `desc`"),
        };
        let limit = match query.take("limit").map(str::parse) {
            None => PAGE_ITEMS,
            Some(Ok(limit @ 1..=PAGE_ITEMS_MAX)) => limit,
            Some(_) => {
                let text = format!("limit must be a whole number from 1 to {PAGE_ITEMS_MAX}");
                return refuse("limit", &text);
            }
        };
        let after = query.take("after");
        query.finish()?;
        Ok(Self { is_ascending, after, limit })
    }
}

/// `DELETE /v1/responses/{id}`.
pub(super) fn remove(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let uri = request.uri().clone();
        Query::parse(&uri)?.finish()?;
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
