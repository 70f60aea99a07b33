//! Which questions does the server answer? One line for each endpoint.

mod chat_completions;
mod completions;
mod embeddings;
mod health;
mod load_model;
mod messages;
mod metrics;
mod model;
pub(crate) mod models;
mod ollama_answers;
mod ollama_embeddings;
mod ollama_models;
mod ollama_pull;
mod openapi;
mod props;
mod ready;
mod rerank;
mod responses;
mod tokenize;
mod unload_model;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Uri;
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post};

use crate::app::{App, Shared};
use crate::pages;
use crate::reply::{ApiError, Dialect};
use crate::visit::Visit;

/// Every route, in the order of its path.
const ROUTES: &[Route] = &[
    Route { method: Method::Get, path: "/", handler: pages::chat },
    Route { method: Method::Post, path: "/api/chat", handler: ollama_answers::chat },
    Route { method: Method::Post, path: "/api/embed", handler: ollama_embeddings::embed },
    Route { method: Method::Post, path: "/api/embeddings", handler: ollama_embeddings::one },
    Route { method: Method::Post, path: "/api/generate", handler: ollama_answers::generate },
    Route { method: Method::Get, path: "/api/ps", handler: ollama_models::ps },
    Route { method: Method::Post, path: "/api/pull", handler: ollama_pull::answer },
    Route { method: Method::Post, path: "/api/show", handler: ollama_models::show },
    Route { method: Method::Get, path: "/api/tags", handler: ollama_models::tags },
    Route { method: Method::Get, path: "/api/version", handler: ollama_models::version },
    Route { method: Method::Get, path: "/dashboard", handler: pages::dashboard },
    Route { method: Method::Post, path: "/detokenize", handler: tokenize::detokenize },
    Route { method: Method::Get, path: "/health", handler: health::answer },
    Route { method: Method::Get, path: "/health/ready", handler: ready::answer },
    Route { method: Method::Get, path: "/metrics", handler: metrics::answer },
    Route { method: Method::Post, path: "/models/load", handler: load_model::answer },
    Route { method: Method::Post, path: "/models/unload", handler: unload_model::answer },
    Route { method: Method::Get, path: "/openapi.json", handler: openapi::answer },
    Route { method: Method::Get, path: "/pages/{name}", handler: pages::asset },
    Route { method: Method::Get, path: "/ping", handler: health::answer },
    Route { method: Method::Get, path: "/props", handler: props::answer },
    Route { method: Method::Get, path: "/ready", handler: ready::answer },
    Route { method: Method::Post, path: "/rerank", handler: rerank::answer },
    Route { method: Method::Post, path: "/tokenize", handler: tokenize::tokenize },
    Route { method: Method::Post, path: "/v1/chat/completions", handler: chat_completions::answer },
    Route { method: Method::Post, path: "/v1/completions", handler: completions::answer },
    Route { method: Method::Post, path: "/v1/embeddings", handler: embeddings::answer },
    Route { method: Method::Get, path: "/v1/health", handler: health::answer },
    Route { method: Method::Post, path: "/v1/messages", handler: messages::answer },
    Route { method: Method::Post, path: COUNT_TOKENS, handler: messages::count_tokens },
    Route { method: Method::Get, path: "/v1/models", handler: models::answer },
    Route { method: Method::Get, path: "/v1/models/{*id}", handler: model::answer },
    Route { method: Method::Post, path: "/v1/rerank", handler: rerank::answer },
    Route { method: Method::Post, path: "/v1/responses", handler: responses::create },
    Route { method: Method::Delete, path: "/v1/responses/{id}", handler: responses::remove },
    Route { method: Method::Get, path: "/v1/responses/{id}", handler: responses::retrieve },
    Route { method: Method::Get, path: INPUT_ITEMS, handler: responses::input_items },
    Route { method: Method::Post, path: "/v2/rerank", handler: rerank::answer },
    Route { method: Method::Get, path: "/version", handler: ollama_models::version },
];
const COUNT_TOKENS: &str = "/v1/messages/count_tokens";
const INPUT_ITEMS: &str = "/v1/responses/{id}/input_items";

struct Route {
    method: Method,
    path: &'static str,
    handler: Handler,
}

#[derive(Clone, Copy)]
enum Method {
    Delete,
    Get,
    Post,
}

/// What a handler gives back: a boxed future, so that the table can hold plain functions.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Response, ApiError>> + Send>>;
type Handler = fn(Arc<App>, Request) -> Answer;

/// The line of the table that a path belongs to, for the log and the metrics; `other`: none.
pub(crate) fn route_of(path: &str) -> &'static str {
    let leads_to = |route: &&Route| match route.path.split_once('{') {
        None => route.path == path,
        Some((before, _)) => path.len() > before.len() && path.starts_with(before),
    };
    ROUTES.iter().find(leads_to).map_or("other", |route| route.path)
}

/// Every route as method and path.
pub fn route_names() -> Vec<(&'static str, &'static str)> {
    let name = |method| match method {
        Method::Delete => "DELETE",
        Method::Get => "GET",
        Method::Post => "POST",
    };
    ROUTES.iter().map(|route| (name(route.method), route.path)).collect()
}

pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, method_router(route, shared));
    }
    router
        .fallback(|uri: Uri| async move { refuse(unknown_route(uri.path()), &uri) })
        .method_not_allowed_fallback(
            |uri: Uri| async move { refuse(ApiError::wrong_method(), &uri) },
        )
}

/// What clients of other servers look for and do not find here, by the beginning of its path, and
/// what to do instead.
const ABSENT: &[(&str, &str)] = &[
    ("/api/blobs", "models are files of this machine: see `pelton serve --help`"),
    ("/api/copy", "a model has a second name when it is served by it: `pelton serve NAME=FILE`"),
    ("/api/create", "models are files of this machine: see `pelton quantize` and `pelton serve`"),
    ("/api/delete", "a model is taken from the disk by `pelton rm`"),
    ("/api/push", "models are brought to this machine only, by POST /api/pull"),
    ("/apply-template", "POST /tokenize with `messages` gives what the template makes of them"),
    ("/classify", NO_CLASSES),
    ("/completion", COMPLETIONS),
    ("/embedding", "ask POST /v1/embeddings"),
    ("/generate", COMPLETIONS),
    ("/infill", COMPLETIONS),
    ("/invocations", "ask POST /v1/chat/completions"),
    ("/is_sleeping", "GET /v1/models tells the state of each model"),
    ("/load", LOAD),
    ("/lora-adapters", ADAPTERS),
    ("/pooling", "ask POST /v1/embeddings, or POST /v1/rerank"),
    ("/reset_prefix_cache", "a request with `x-pelton-sharing: off` uses no cache"),
    ("/score", "ask POST /v1/rerank"),
    ("/server_info", LOAD),
    ("/sleep", "a model leaves the memory by POST /models/unload"),
    ("/slots", LOAD),
    ("/v1/audio", "models here read and write text only"),
    ("/v1/batches", BATCHES),
    ("/v1/files", "send texts in the messages"),
    ("/v1/images", "models here read and write text only"),
    ("/v1/load_lora_adapter", ADAPTERS),
    ("/v1/messages/batches", BATCHES),
    ("/v1/moderations", "ask a model by POST /v1/chat/completions"),
    ("/v1/score", "ask POST /v1/rerank"),
    ("/v1/unload_lora_adapter", ADAPTERS),
    ("/wake_up", "a model comes into the memory by POST /models/load"),
];
const ADAPTERS: &str = "adapters are named when the server starts: `pelton serve --adapter \
                        NAME=FOLDER`; GET /v1/models lists them";
const BATCHES: &str = "send the requests themselves, with `priority` `low` if they may wait";
const COMPLETIONS: &str = "ask POST /v1/completions, or POST /v1/chat/completions";
const LOAD: &str = "GET /v1/models tells what runs and waits, and GET /metrics counts it";
const NO_CLASSES: &str = "models here give text, vectors and scores: ask POST /v1/chat/completions \
                          with `structured_outputs: {choice: [...]}`";

pub(crate) fn unknown_route(path: &str) -> ApiError {
    let is_below = |start: &str| {
        path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some(near) = near_route(path) {
        return ApiError::unknown_route(&format!("did you mean {near}?"));
    }
    let found = ABSENT.iter().find(|(start, _)| is_below(start));
    let hint = found.map_or("GET /openapi.json lists what there is", |(_, hint)| hint);
    ApiError::unknown_route(hint)
}

/// The route that a client asks which was told a base URL with too little or too much at its end.
fn near_route(path: &str) -> Option<&'static str> {
    let path = path.trim_end_matches('/');
    let end = path.strip_prefix("/v1").unwrap_or(path);
    let is_it = |route: &&str| *route == end || route.strip_prefix("/v1") == Some(end);
    ROUTES.iter().map(|route| route.path).find(is_it)
}

fn refuse(error: ApiError, uri: &Uri) -> Response {
    error.into_response(Dialect::of(uri.path()))
}

fn method_router(route: &'static Route, shared: &Arc<Shared>) -> MethodRouter {
    let shared = Arc::clone(shared);
    let handler = move |request: Request| {
        let app = App::new(Arc::clone(&shared), Visit::of(&request), route.path);
        let answer = (route.handler)(Arc::new(app), request);
        async move {
            let dialect = Dialect::of(route.path);
            answer.await.unwrap_or_else(|error| error.into_response(dialect))
        }
    };
    match route.method {
        Method::Delete => delete(handler),
        Method::Get => get(handler),
        Method::Post => post(handler),
    }
}
