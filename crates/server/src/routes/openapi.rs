//! `GET /openapi.json`: what can be asked here, and with which fields?
//!
//! Nothing of it is written twice: each endpoint is asked with an example of its requests, reads it
//! as it reads all, and tells which fields it looked for and what they may be, instead of
//! answering. A field without which the example is refused is a required one.

use std::sync::{Arc, PoisonError};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Extensions, header};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{Answer, Handler, Method, ROUTES, Route};
use crate::app::App;
use crate::reply::{Dialect, json_response};
use crate::request::{Description, KnownField};

/// Paths and what they are for; for those with a body examples, which together show all its fields.
const PATHS: &[(&str, &str, &[&str])] = &[
    ("/", "The page to chat", &[]),
    ("/api/chat", "Ollama: the next turn of a conversation", &[OLLAMA_CHAT]),
    ("/api/embed", "Ollama: vectors of texts", &[INPUT]),
    ("/api/embeddings", "Ollama, older: the vector of a text", &[PROMPT]),
    ("/api/generate", "Ollama: the answer to a prompt", &[PROMPT]),
    ("/api/ps", "Ollama: models in memory", &[]),
    ("/api/pull", "Ollama: bring a model here", &["{\"model\":\"default\"}"]),
    ("/api/show", "Ollama: what a model is", &["{\"model\":\"default\"}"]),
    ("/api/tags", "Ollama: all models", &[]),
    ("/api/version", "Ollama: the version", &[]),
    ("/dashboard", "The page to watch the server", &[]),
    ("/detokenize", "The text of tokens", &["{\"tokens\":[1]}"]),
    ("/health", "Whether it is healthy", &[]),
    ("/health/ready", "Whether it takes requests", &[]),
    ("/metrics", "Counters for Prometheus", &[]),
    ("/models/load", "Bring a model into memory", &["{\"model\":\"default\"}"]),
    ("/models/unload", "Take a model out of memory", &["{\"model\":\"default\"}"]),
    ("/openapi.json", "This document", &[]),
    ("/pages/{name}", "A file of the pages", &[]),
    ("/ping", "Whether it is healthy, by SageMaker's path", &[]),
    ("/props", "llama-server: the context and sampling of a model", &[]),
    ("/ready", "Whether it takes requests", &[]),
    ("/rerank", "How well texts answer a query", &[RERANK]),
    ("/tokenize", "The tokens of a text or a conversation", &[PROMPT, CHAT, CONTENT]),
    ("/v1/chat/completions", "The next turn of a conversation", &[CHAT]),
    ("/v1/completions", "The continuation of a text", &[PROMPT]),
    ("/v1/embeddings", "Vectors of texts", &[INPUT]),
    ("/v1/health", "Whether it is healthy, by llama-server's path", &[]),
    ("/v1/messages", "Anthropic: the next turn of a conversation", &[MESSAGES]),
    ("/v1/messages/count_tokens", "Anthropic: how long a conversation is", &[CHAT]),
    ("/v1/models", "All models", &[]),
    ("/v1/models/{*id}", "One model", &[]),
    ("/v1/rerank", "How well texts answer a query", &[RERANK]),
    ("/v1/responses", "A response, which is kept", &[INPUT]),
    ("/v1/responses/{id}", "A response that was kept", &[]),
    ("/v1/responses/{id}/input_items", "What it was asked with", &[]),
    ("/v2/rerank", "How well texts answer a query", &[RERANK]),
    ("/version", "The version, by vLLM's path", &[]),
];
const CHAT: &str = r#"{"messages":[{"role":"user","content":"Hello"}]}"#;
const CONTENT: &str = r#"{"content":"Hello"}"#;
const INPUT: &str = r#"{"input":"Hello"}"#;
const MESSAGES: &str = r#"{"max_tokens":8,"messages":[{"role":"user","content":"Hello"}]}"#;
const OLLAMA_CHAT: &str = r#"{"model":"default","messages":[{"role":"user","content":"Hello"}]}"#;
const PROMPT: &str = r#"{"model":"default","prompt":"Hello"}"#;
const RERANK: &str = r#"{"query":"Hello","documents":["Hello"]}"#;

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let asker = Asker { app, extensions: request.extensions().clone() };
        let settings = SchemaSettings::draft2020_12();
        let mut shapes = settings
            .with(|settings| settings.definitions_path = "/components/schemas".into())
            .into_generator();
        let mut paths = Map::new();
        for route in ROUTES {
            let method = match route.method {
                Method::Delete => "delete",
                Method::Get => "get",
                Method::Post => "post",
            };
            let operation = operation(&asker, route, &mut shapes).await;
            let path = route.path.replace("{*", "{");
            paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
        }
        let mut schemas = shapes.take_definitions(true);
        for dialect in [Dialect::Anthropic, Dialect::Ollama, Dialect::OpenAi] {
            schemas.insert(error_name(dialect).to_owned(), error_schema(dialect));
        }
        Ok(json_response(&json!({
            "openapi": "3.1.0",
            "info": {"title": "Pelton", "version": env!("CARGO_PKG_VERSION")},
            "security": [{}, {"bearer": []}, {"x-api-key": []}],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        })))
    })
}

async fn operation(asker: &Asker, route: &Route, shapes: &mut SchemaGenerator) -> Value {
    let about = PATHS.iter().find(|(path, ..)| *path == route.path);
    let &(path, summary, examples) = about.unwrap_or(&(route.path, "", &[]));
    let error = json!({"$ref": format!("#/components/schemas/{}", error_name(Dialect::of(path)))});
    let mut operation = json!({
        "summary": summary,
        "responses": {
            "200": {"description": "The answer", "content": answer_content(path)},
            "default": {"description": "What is wrong, whose fault it is and what to do",
                "content": {"application/json": {"schema": error}}},
        },
    });
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str| {
        json!({"name": name.trim_start_matches('*'), "in": "path", "required": true,
            "schema": {"type": "string", "minLength": 1}})
    };
    let parameters: Vec<Value> = names.map(parameter).collect();
    if !parameters.is_empty() {
        operation["parameters"] = Value::from(parameters);
    }
    if !matches!(route.method, Method::Post) {
        return operation;
    }
    if let Some(schema) = asker.body(route.handler, examples, shapes).await {
        let examples: Map<String, Value> = examples
            .iter()
            .enumerate()
            .map(|(index, text)| (format!("example{index}"), json!({"value": parsed(text)})))
            .collect();
        operation["requestBody"] = json!({"required": true,
            "content": {"application/json": {"schema": schema, "examples": examples}}});
    }
    operation
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// Asks endpoints what they read.
struct Asker {
    app: Arc<App>,
    /// Whose request is answered: who may not give an order is not told how to.
    extensions: Extensions,
}

impl Asker {
    /// The schema of an endpoint's body; `None`: this caller may not ask it.
    async fn body(
        &self,
        handler: Handler,
        examples: &[&str],
        shapes: &mut SchemaGenerator,
    ) -> Option<Value> {
        let mut properties = Map::new();
        let mut required: Option<Vec<String>> = None;
        for text in examples {
            let Value::Object(example) = parsed(text) else { return None };
            for field in self.fields(handler, &example).await? {
                let schema = || field.kind.schema(shapes);
                properties.entry(field.name).or_insert_with(schema);
            }
            let mut needed = Vec::new();
            for name in example.keys() {
                let mut without = example.clone();
                without.remove(name);
                if self.fields(handler, &without).await.is_none() {
                    needed.push(name.clone());
                }
            }
            // Where examples differ in what they need, either will do.
            required = Some(match required {
                None => needed,
                Some(before) => before.into_iter().filter(|name| needed.contains(name)).collect(),
            });
        }
        Some(json!({"type": "object", "properties": properties,
            "required": required.unwrap_or_default(), "additionalProperties": false}))
    }

    /// What an endpoint looks for in a body like this; `None`: it refuses it.
    async fn fields(
        &self,
        handler: Handler,
        example: &Map<String, Value>,
    ) -> Option<Vec<KnownField>> {
        let body = Body::from(Value::from(example.clone()).to_string());
        let mut request = Request::new(body);
        *request.extensions_mut() = self.extensions.clone();
        let description = Description::default();
        request.extensions_mut().insert(description.clone());
        let json = header::HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        // It ends as a refusal, when all is read.
        let _ = handler(Arc::clone(&self.app), request).await;
        description.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn answer_content(path: &str) -> Value {
    let object = json!({"schema": {"type": "object"}});
    let text = json!({"schema": {"type": "string"}});
    match path {
        "/" | "/dashboard" => json!({"text/html": text}),
        "/metrics" => json!({"text/plain": text}),
        "/pages/{name}" => {
            json!({"text/css": text, "text/javascript": text, "image/svg+xml": text})
        }
        "/v1/chat/completions" | "/v1/completions" | "/v1/messages" | "/v1/responses" => {
            json!({"application/json": object, "text/event-stream": text})
        }
        "/api/chat" | "/api/generate" | "/api/pull" => {
            json!({"application/json": object, "application/x-ndjson": text})
        }
        _ => json!({"application/json": object}),
    }
}

fn error_name(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Anthropic => "AnthropicError",
        Dialect::Ollama => "OllamaError",
        Dialect::OpenAi => "OpenAiError",
    }
}

fn error_schema(dialect: Dialect) -> Value {
    let (text, absent) = (json!({"type": "string"}), json!({"type": ["string", "null"]}));
    match dialect {
        Dialect::Ollama => json!({"type": "object", "required": ["error"],
            "properties": {"error": text}}),
        Dialect::Anthropic => json!({"type": "object", "required": ["type", "error"],
            "properties": {"type": {"const": "error"}, "error": {"type": "object",
                "required": ["type", "message"],
                "properties": {"type": text, "message": text}}}}),
        Dialect::OpenAi => json!({"type": "object", "required": ["error"],
            "properties": {"error": {"type": "object", "required": ["message", "type"],
                "properties": {"message": text, "type": text, "param": absent,
                    "code": absent}}}}),
    }
}
