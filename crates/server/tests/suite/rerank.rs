//! Does the route that ranks texts give what clients of Cohere and Jina expect?
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::json;

use crate::client::{Running, start};
use crate::scripted::MODEL;

#[tokio::test]
async fn the_best_comes_first() {
    let server = start().await;
    for path in ["/v1/rerank", "/v2/rerank", "/rerank"] {
        let body = json!({"model": MODEL, "query": "q", "return_documents": true,
            "documents": ["one", {"text": "has four words here"}, "has three words"]});
        let reply = server.post(path, &body).await.json();
        let results = reply["results"].as_array().unwrap();
        let order: Vec<_> = results.iter().map(|one| one["index"].as_u64().unwrap()).collect();
        assert_eq!(order, [1, 2, 0], "{path}");
        // Of scores 1, 0 and -2.
        for (one, score) in results.iter().zip([0.731_058_6, 0.5, 0.119_202_92]) {
            assert!((one["relevance_score"].as_f64().unwrap() - score).abs() < 1e-6, "{one}");
        }
        assert_eq!(results[0]["document"], json!({"text": "has four words here"}));
        assert_eq!(reply["model"], MODEL);
        assert_eq!(reply["usage"]["total_tokens"], 8);
    }
    let body = json!({"query": "q", "documents": ["a b", "c", "d e f"], "top_n": 2});
    let reply = server.post("/v1/rerank", &body).await.json();
    assert_eq!(reply["results"].as_array().unwrap().len(), 2);
    assert!(reply["results"][0].get("document").is_none());
}

#[tokio::test]
async fn coheres_fields_are_honored() {
    let server = start().await;
    let body = json!({"query": "q", "documents": ["a", "one two three four five"], "priority": 1,
        "max_tokens_per_doc": 2});
    let reply = server.post("/v2/rerank", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["meta"]["api_version"]["version"], "2");
    let documents = |server: &Running| -> Vec<String> {
        let requests = server.service.requests.lock().unwrap();
        let document = |request: &engine::GenerateRequest| match &request.prompt {
            engine::Prompt::Vector(engine::VectorInput::Pair(pair)) => pair.document.clone(),
            other => panic!("{other:?}"),
        };
        let mut all: Vec<String> = requests[requests.len() - 2..].iter().map(document).collect();
        all.sort();
        all
    };
    // The first two tokens behind what begins every prompt; the short one as it was.
    assert_eq!(documents(&server), [" w1 w2", "a"]);
    let fields = json!({"query": "q", "rank_fields": ["title", "body"], "documents": [
        {"title": "a", "body": "b", "other": 1}, "c"]});
    assert_eq!(server.post("/v1/rerank", &fields).await.status, 200);
    assert_eq!(documents(&server), ["a\nb", "c"]);
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = start().await;
    let many = vec!["x"; 1025];
    for (body, param) in [
        (json!({"documents": ["a"]}), "query"),
        (json!({"query": "q"}), "documents"),
        (json!({"query": "q", "documents": []}), "documents"),
        (json!({"query": "q", "documents": many}), "documents"),
        (json!({"query": "q", "documents": ["a", 1]}), "documents[1]"),
        (json!({"query": "q", "documents": ["a", {"title": "b"}]}), "documents[1]"),
        (json!({"query": "q", "documents": ["a"], "rank_fields": []}), "rank_fields"),
        (json!({"query": "q", "documents": ["a"], "truncation": true}), "truncation"),
        (json!({"query": "q", "documents": ["a"], "priority": -1}), "priority"),
        (json!({"query": "q", "documents": ["a"], "top_n": 0}), "top_n"),
        (json!({"query": "q", "documents": ["a"], "temperature": 1}), "temperature"),
    ] {
        let reply = server.post("/v1/rerank", &body).await;
        assert_eq!((reply.status, reply.param()), (400, param.to_owned()));
    }
    let busy = json!({"query": "q", "documents": ["a", "!busy"]});
    assert_eq!(server.post("/v1/rerank", &busy).await.status, 429);
    assert_eq!(server.service.live(), 0);
}
