//! Does `/v1/messages` give what Anthropic's clients expect?
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::client::start;
use crate::scripted::{CACHED, MODEL, WORDS};

const MESSAGES: &str = "/v1/messages";

fn body(text: &str, more: Value) -> Value {
    let mut body = json!({"model": MODEL, "max_tokens": 100, "temperature": 0,
        "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Names and objects of the events of a stream.
fn events(text: &str) -> Vec<(String, Value)> {
    let parse = |event: &str| {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        (name, serde_json::from_str(data).unwrap())
    };
    text.split_terminator("\n\n").map(parse).collect()
}

#[tokio::test]
async fn whole_and_streamed_agree() {
    let server = start().await;
    let whole = server.post(MESSAGES, &body("hello there", json!({"system": "be kind"}))).await;
    assert_eq!(whole.status, 200);
    assert!(whole.header("request-id").is_some());
    let whole = whole.json();
    assert!(whole["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!((&whole["type"], &whole["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(whole["stop_reason"], "end_turn");
    let usage = json!({"input_tokens": 4 - CACHED, "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": CACHED, "output_tokens": WORDS});
    assert_eq!(whole["usage"], usage);
    let text = whole["content"][0]["text"].as_str().unwrap();

    let more = json!({"system": "be kind", "stream": true});
    let streamed = server.post(MESSAGES, &body("hello there", more)).await;
    assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
    let events = events(&streamed.text());
    assert!(events.iter().all(|(name, event)| event["type"] == name.as_str()));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..3], ["message_start", "content_block_start", "ping"]);
    let last = ["content_block_stop", "message_delta", "message_stop"];
    assert_eq!(names[names.len() - 3..], last);
    let deltas = events.iter().filter_map(|(_, event)| event["delta"]["text"].as_str());
    assert_eq!(deltas.collect::<String>(), text);
    assert_eq!(events[0].1["message"]["usage"]["input_tokens"], 4);
    let delta = &events[events.len() - 2].1;
    assert_eq!(delta["delta"], json!({"stop_reason": "end_turn", "stop_sequence": null}));
    assert_eq!(delta["usage"], usage);
}

#[tokio::test]
async fn why_it_stopped_is_told() {
    let server = start().await;
    let short = server.post(MESSAGES, &body("x", json!({"max_tokens": 2}))).await.json();
    assert_eq!(short["stop_reason"], "max_tokens");
    let text = short["content"][0]["text"].as_str().unwrap();
    let stop = text.trim().split(' ').nth(1).unwrap();
    let more = json!({"stop_sequences": [stop]});
    let stopped = server.post(MESSAGES, &body("x", more)).await.json();
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(stop))
    );
    // More than the context holds is as much as it holds.
    server.post(MESSAGES, &body("x", json!({"max_tokens": 1_000_000}))).await;
    assert_eq!(server.service.last().params.max_tokens, None);
}

#[tokio::test]
async fn refusals_have_their_form() {
    let server = start().await;
    for (more, status, kind, named) in [
        (json!({"max_tokens": null}), 400, "invalid_request_error", "max_tokens"),
        (json!({"tools": [{"name": "a b"}]}), 400, "invalid_request_error", "tools"),
        (json!({"thinking": {"type": "enabled"}}), 400, "invalid_request_error", "thinking"),
        (json!({"top_q": 1}), 400, "invalid_request_error", "top_q"),
        (json!({"model": "other"}), 404, "not_found_error", "other"),
    ] {
        let refused = server.post(MESSAGES, &body("x", more)).await;
        assert_eq!(refused.status, status, "{named}");
        let error = refused.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
        assert!(error["error"]["message"].as_str().unwrap().contains(named), "{error}");
    }
    // By which the vendor's packages know to send the whole conversation.
    let asked = json!({"thread": {"type": "create"}});
    let unthreaded = server.post(MESSAGES, &body("x", asked)).await.json();
    assert_eq!(
        unthreaded["error"]["details"],
        json!({"error_code": "thread_unsupported_request", "unsupported": ["thread"]})
    );
    let busy = server.post(MESSAGES, &body("!busy", json!({}))).await;
    assert_eq!((busy.status, &busy.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert!(busy.header("retry-after").is_some());
    let failed = server.post(MESSAGES, &body("!fail", json!({"stream": true}))).await;
    let (name, error) = events(&failed.text()).pop().unwrap();
    assert_eq!((name.as_str(), &error["error"]["type"]), ("error", &json!("api_error")));
}

#[tokio::test]
async fn models_are_listed_in_anthropics_words_too() {
    let server = start().await;
    let list = server.get("/v1/models").await.json();
    assert_eq!((&list["has_more"], &list["first_id"]), (&json!(false), &json!(MODEL)));
    assert_eq!(list["last_id"], MODEL);
    let model = &list["data"][0];
    assert_eq!((&model["type"], &model["display_name"]), (&json!("model"), &json!(MODEL)));
    assert_eq!(model["created_at"], "2023-11-14T22:13:20Z");
    assert_eq!(model["max_input_tokens"], crate::scripted::CONTEXT);
    assert_eq!(&server.get(&format!("/v1/models/{MODEL}")).await.json(), model);
}
