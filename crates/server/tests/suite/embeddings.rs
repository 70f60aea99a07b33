//! Do the routes for vectors give what clients of OpenAI and Ollama expect?
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::client::{Running, start};
use crate::scripted::MODEL;

const OPENAI: &str = "/v1/embeddings";

/// 3, -4 and 12, of length 1.
const UNIT: [f64; 3] = [3.0 / 13.0, -4.0 / 13.0, 12.0 / 13.0];

fn assert_close(values: &Value, expected: &[f64]) {
    let values: Vec<f64> =
        values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    assert_eq!(values.len(), expected.len());
    let far = values.iter().zip(expected).any(|(a, b)| (a - b).abs() > 1e-6);
    assert!(!far, "{values:?} is not {expected:?}");
}

async fn ask(server: &Running, path: &str, more: Value) -> crate::client::Reply {
    let mut body = json!({"model": MODEL});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.post(path, &body).await
}

#[tokio::test]
async fn every_shape_of_input_is_answered_in_order() {
    let server = start().await;
    for (input, tokens) in [
        (json!("two words"), vec![2]),
        (json!(["one", "and two more"]), vec![1, 3]),
        (json!([5, 6, 7, 8]), vec![4]),
        (json!([[5], [6, 7]]), vec![1, 2]),
    ] {
        let reply = ask(&server, OPENAI, json!({"input": input})).await.json();
        let data = reply["data"].as_array().unwrap();
        assert_eq!(data.len(), tokens.len());
        for (index, one) in data.iter().enumerate() {
            assert_eq!((&one["object"], &one["index"]), (&json!("embedding"), &json!(index)));
            assert_close(&one["embedding"], &UNIT);
        }
        let sum: u64 = tokens.iter().sum();
        assert_eq!(reply["usage"], json!({"prompt_tokens": sum, "total_tokens": sum}));
        assert_eq!((&reply["object"], &reply["model"]), (&json!("list"), &json!(MODEL)));
    }
}

#[tokio::test]
async fn more_inputs_than_run_at_once_are_all_answered() {
    let server = start().await;
    let input: Vec<String> = (0..1000).map(|index| format!("text {index}")).collect();
    let reply = ask(&server, OPENAI, json!({"input": input})).await.json();
    assert_eq!(reply["data"].as_array().unwrap().len(), 1000);
    assert_eq!(reply["usage"]["prompt_tokens"], 2000);
    assert_eq!(server.service.live(), 0);
}

#[tokio::test]
async fn bytes_in_base_64_are_those_of_the_numbers() {
    let server = start().await;
    let more = json!({"input": "x", "encoding_format": "base64", "dimensions": 2, "user": "me"});
    let reply = ask(&server, OPENAI, more).await.json();
    // 0.6 and -0.8: shortened, and of length 1 again.
    assert_eq!(reply["data"][0]["embedding"], "mpkZP83MTL8=");
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = start().await;
    for (more, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ["a", ""]}), "input"),
        (json!({"input": [[1], []]}), "input"),
        (json!({"input": vec!["x"; 2049]}), "input"),
        (json!({"input": "x", "encoding_format": "int8"}), "encoding_format"),
        (json!({"input": "x", "dimensions": 0}), "dimensions"),
        (json!({"input": "x", "temperature": 1}), "temperature"),
    ] {
        let reply = ask(&server, OPENAI, more.clone()).await;
        assert_eq!((reply.status, reply.param()), (400, param.to_owned()), "{more}");
    }
    assert_eq!(ask(&server, OPENAI, json!({"input": ["x", "!busy"]})).await.status, 429);
    assert_eq!(ask(&server, OPENAI, json!({"input": "!fail"})).await.status, 500);
    assert_eq!(ask(&server, OPENAI, json!({"input": "!silent"})).await.status, 500);
    assert_eq!(server.service.live(), 0);
}

#[tokio::test]
async fn ollama_knows_a_new_route_and_an_old_one() {
    let server = start().await;
    let reply = ask(&server, "/api/embed", json!({"input": ["a", "b c"]})).await.json();
    assert_eq!(reply["prompt_eval_count"], 3);
    let embeddings = reply["embeddings"].as_array().unwrap();
    embeddings.iter().for_each(|values| assert_close(values, &UNIT));
    assert_eq!(embeddings.len(), 2);
    let more = json!({"prompt": "a b", "options": {"num_ctx": 512}, "keep_alive": "5m"});
    let reply = ask(&server, "/api/embeddings", more).await.json();
    assert_close(&reply["embedding"], &[6.0, -8.0, 24.0]);
    assert_eq!(ask(&server, "/api/embeddings", json!({"prompt": ""})).await.status, 400);
    let more = json!({"input": "a", "keep_alive": 0});
    assert_eq!(ask(&server, "/api/embed", more).await.status, 400);
}
