//! Does the OpenAPI document say what the endpoints read?
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::client::{Running, start};
use crate::scripted::CONTEXT;

async fn document(server: &Running) -> Value {
    let reply = server.get("/openapi.json").await;
    assert_eq!(reply.status, 200);
    reply.json()
}

fn body<'a>(document: &'a Value, path: &str) -> &'a Value {
    &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
}

#[tokio::test]
async fn each_endpoint_tells_its_fields_and_does_nothing_else() {
    let server = start().await;
    let document = document(&server).await;
    for (method, path) in server::route_names() {
        let path = path.replace("{*", "{");
        let operation = &document["paths"][&path][method.to_lowercase()];
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{path}");
        if method == "POST" {
            let schema = body(&document, &path);
            assert!(schema["properties"].as_object().is_some_and(|all| !all.is_empty()), "{path}");
            assert!(schema["additionalProperties"] == false, "{path}");
        }
    }
    assert!(server.service.requests.lock().unwrap().is_empty());
    let models = server.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["state"], "ready", "no order was followed");
}

#[tokio::test]
async fn what_it_says_is_what_is_read() {
    let server = start().await;
    let document = document(&server).await;
    let chat = body(&document, "/v1/chat/completions");
    assert_eq!(chat["required"], json!(["messages"]));
    let fields = &chat["properties"];
    assert_eq!(fields["max_tokens"]["maximum"], CONTEXT);
    assert_eq!(fields["stream"]["type"], json!(["boolean", "null"]));
    assert_eq!(fields["store"]["enum"], json!([false, null]));
    for name in ["tools", "tool_choice", "response_format", "x_explain", "reasoning_effort"] {
        assert!(fields[name].is_object(), "{name}");
    }
    let name = fields["messages"]["anyOf"][0]["items"]["$ref"].as_str().unwrap();
    let message = &document["components"]["schemas"][name.rsplit('/').next().unwrap()];
    assert!(message["properties"]["tool_call_id"].is_object(), "{name}: {message}");
    assert_eq!(message["required"], json!(["role"]));
    let tokenize = body(&document, "/tokenize");
    assert_eq!(tokenize["required"], json!([]), "a prompt, or messages");
    assert!(tokenize["properties"]["messages"].is_object());
    assert_eq!(
        body(&document, "/v1/messages")["required"],
        json!(["max_tokens", "messages"]),
        "of Anthropic's"
    );
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}
