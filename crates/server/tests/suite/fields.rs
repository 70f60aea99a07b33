//! Is every field bounded, and is what is wrong named?
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::answers::{chat, text};
use crate::client::{CHAT, Running, TEXT, start};
use crate::scripted::CONTEXT;

/// Field, smallest and largest value that is accepted, and whether it must be whole.
const NUMBERS: &[(&str, f64, f64, bool)] = &[
    ("temperature", 0.0, 2.0, false),
    ("top_p", 0.001, 1.0, false),
    ("min_p", 0.0, 1.0, false),
    ("presence_penalty", -2.0, 2.0, false),
    ("frequency_penalty", -2.0, 2.0, false),
    ("repetition_penalty", 0.125, 10.0, false),
    ("top_k", -1.0, 4_294_967_295.0, true),
    ("seed", -9_007_199_254_740_992.0, 9_007_199_254_740_992.0, true),
    ("max_tokens", 1.0, CONTEXT as f64, true),
    ("min_tokens", 0.0, CONTEXT as f64, true),
    ("n", 1.0, 128.0, true),
];

async fn expect(server: &Running, path: &str, body: &Value, allowed: bool, field: &str) {
    let reply = server.post(path, body).await;
    let shown = format!("{path} {field} {} -> {}", body[field], reply.text());
    if allowed {
        assert_eq!(reply.status, 200, "{shown}");
        return;
    }
    assert_eq!(reply.status, 400, "{shown}");
    let error = &reply.json()["error"];
    assert_eq!(error["type"], "invalid_request_error", "{shown}");
    assert!(error["param"].as_str().unwrap_or("").starts_with(field), "{shown}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(field), "{shown}");
    assert!(message.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown}");
}

async fn matrix(server: &Running, path: &str, base: &Value, numbers: &[(&str, f64, f64, bool)]) {
    for &(field, low, high, whole) in numbers {
        let step = if whole { 1.0 } else { 0.001 };
        let mut cases = vec![(json!("1"), false), (json!(true), false), (Value::Null, true)];
        cases.extend([(json!([]), false), (json!({}), false), (json!(""), false)]);
        for value in [-1.0, 0.0, 1.0, 1.5, low, high, low - step, high + step, 1e308, -1e308] {
            let is_allowed = value >= low && value <= high && (!whole || value == value.trunc());
            let value =
                if whole && value.abs() < 1e16 { json!(value as i64) } else { json!(value) };
            cases.push((
                if value == json!(1) && !is_allowed { json!(1.5) } else { value },
                is_allowed,
            ));
        }
        for (value, is_allowed) in cases {
            // Beyond 2^53 a seed may still be an exact integer.
            if field == "seed" && value.as_i64().is_some() {
                continue;
            }
            let is_allowed =
                is_allowed && !(whole && value.as_f64().is_some_and(|v| v != v.trunc()));
            let mut body = base.clone();
            body[field] = value;
            expect(server, path, &body, is_allowed, field).await;
        }
    }
}

#[tokio::test]
async fn every_number_is_bounded_or_named() {
    let server = start().await;
    let chat_base = chat("a", json!({}));
    matrix(&server, CHAT, &chat_base, NUMBERS).await;
    matrix(&server, TEXT, &text(json!("a"), json!({})), NUMBERS).await;
    let max = &[("max_completion_tokens", 1.0, f64::from(CONTEXT), true)];
    matrix(&server, CHAT, &chat_base, max).await;
    let top = &[("top_logprobs", 0.0, 20.0, true)];
    matrix(&server, CHAT, &chat("a", json!({"logprobs": true})), top).await;
    matrix(&server, TEXT, &text(json!("a"), json!({})), &[("logprobs", 0.0, 20.0, true)]).await;
    for seed in [i64::MIN, i64::MAX] {
        let body = chat("a", json!({"seed": seed}));
        assert_eq!(server.post(CHAT, &body).await.status, 200);
        assert_eq!(server.service.last().params.seed, Some(seed.cast_unsigned()));
    }
    server.until_idle().await;
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = start().await;
    let long_stop = "x".repeat(1025);
    let many_ids: Vec<u32> = (0..129).collect();
    let biases: serde_json::Map<String, Value> =
        (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    for (field, value) in [
        ("logprobs", json!(1)),
        ("top_logprobs", json!(1)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("stop", json!("")),
        ("stop", json!([1])),
        ("stop", json!(vec!["a"; 17])),
        ("stop", json!(long_stop)),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", json!([1000])),
        ("stop_token_ids", json!(many_ids)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"1": 101})),
        ("logit_bias", json!({"1": 1e308})),
        ("logit_bias", json!({"1": null})),
        ("logit_bias", json!({"1000": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!([1])),
        ("logit_bias", Value::Object(biases)),
        ("ignore_eos", json!(1)),
        ("model", json!(5)),
        ("tools", json!([{"type": "function", "function": {"name": "a b"}}])),
        ("tool_choice", json!("required")),
        ("response_format", json!({"type": "xml"})),
        ("functions", json!({})),
        ("audio", json!({})),
        ("modalities", json!(["text", "audio"])),
        ("store", json!(true)),
        ("service_tier", json!("scale")),
        ("service_tier", json!(1)),
        ("priority", json!("urgent")),
        ("priority", json!(1)),
        ("timeout_ms", json!(0)),
        ("timeout_ms", json!(86_400_001)),
        ("skip_special_tokens", json!(false)),
        ("temprature", json!(1)),
        ("max_tokens\u{1b}[31m", json!(1)),
    ] {
        let mut body = chat("a", json!({}));
        body[field] = value;
        let plain =
            if field.is_ascii() && !field.contains('\u{1b}') { field } else { "max_tokens" };
        expect(&server, CHAT, &body, false, plain).await;
    }
    let both = chat("a", json!({"max_tokens": 2, "max_completion_tokens": 3}));
    assert_eq!(server.post(CHAT, &both).await.param(), "max_completion_tokens");
    let min = chat("a", json!({"max_tokens": 2, "min_tokens": 3}));
    assert_eq!(server.post(CHAT, &min).await.param(), "min_tokens");
    let options = json!({"stream": true, "stream_options": {"include_usages": true}});
    let param = server.post(CHAT, &chat("a", options)).await.param();
    assert!(param.starts_with("stream_options"), "{param}");
    let many = text(json!(vec!["a"; 65]), json!({"n": 2}));
    assert_eq!(server.post(TEXT, &many).await.param(), "n");
    let copies = text(json!("a".repeat(2 << 20)), json!({"n": 128}));
    assert_eq!(server.post(TEXT, &copies).await.param(), "n");
    assert_eq!(server.post(TEXT, &json!({})).await.param(), "prompt");
    assert_eq!(server.post(CHAT, &json!({})).await.param(), "messages");
    let neighbour = server.post(CHAT, &chat("a", json!({"temprature": 1}))).await.text();
    assert!(neighbour.contains("did you mean `temperature`?"), "{neighbour}");
    assert_eq!(server.service.live(), 0);
}

#[tokio::test]
async fn malformed_json_is_a_400() {
    let server = start().await;
    let deep = format!("{{\"messages\": {}", "[".repeat(50_000));
    let deep_objects = "{\"a\":".repeat(50_000);
    let good = chat("a", json!({})).to_string();
    let mut bodies: Vec<String> =
        ["", "null", "[]", "{", "{\"a\"}", "\u{feff}{}", "{}{}", "{'a':1}"]
            .iter()
            .map(|text| (*text).to_owned())
            .collect();
    bodies.extend([deep, deep_objects, "{\"messages\":\"\\ud800\"}".to_owned()]);
    bodies.extend((0..good.len()).map(|end| good[..end].to_owned()));
    for body in bodies {
        let reply = server.post_text(CHAT, &body).await;
        assert_eq!(reply.status, 400, "{body:.60}");
        assert!(reply.json()["error"]["message"].is_string());
    }
    let mut bytes = crate::client::request(server.address, CHAT, "{\"user\":\"??\"}").into_bytes();
    let at = bytes.len() - 4;
    bytes[at..at + 2].copy_from_slice(b"\xff\xfe");
    assert_eq!(server.raw(&bytes).await.unwrap().status, 400);
}

#[tokio::test]
async fn what_a_request_leaves_out_is_as_the_model_has_it() {
    let server = start().await;
    let own = messages::SamplingParams { temperature: 0.6, top_k: 20, ..Default::default() };
    *server.service.defaults.lock().unwrap() = own;
    server.post(TEXT, &json!({"prompt": "x", "top_p": 0.5})).await;
    let params = server.service.last().params;
    assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, 20, 0.5));
    server.post(TEXT, &json!({"prompt": "x", "temperature": 0, "top_k": 0})).await;
    let params = server.service.last().params;
    assert_eq!((params.temperature, params.top_k), (0.0, 0));
}
