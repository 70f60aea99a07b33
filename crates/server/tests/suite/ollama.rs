//! Do the routes under `/api` give what Ollama's clients expect?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use messages::{Constraint, Refusal, RefusalKind};
use serde_json::{Value, json};
use server::{ModelSource, PullStep, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{Reply, options, request, start, start_with};
use crate::scripted::{MODEL, WORDS};

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";

fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": text}],
        "options": {"temperature": 0}});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"));
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn whole_and_streamed_agree() {
    let server = start().await;
    let whole = server.post(CHAT, &chat("hello there", json!({"stream": false}))).await.json();
    let text = whole["message"]["content"].as_str().unwrap();
    assert_eq!((&whole["done"], &whole["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!((&whole["prompt_eval_count"], &whole["eval_count"]), (&json!(2), &json!(WORDS)));
    assert!(whole["total_duration"].as_u64() >= whole["eval_duration"].as_u64());

    // Lines are Ollama's default.
    let chunks = lines(&server.post(CHAT, &chat("hello there", json!({}))).await);
    let streamed = chunks.iter().map(|chunk| chunk["message"]["content"].as_str().unwrap());
    assert_eq!(streamed.collect::<String>(), text);
    let (last, before) = chunks.split_last().unwrap();
    assert!(before.iter().all(|chunk| chunk["done"] == false && chunk["model"] == MODEL));
    assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &json!(WORDS)));
    let time = last["created_at"].as_str().unwrap();
    assert!(time.len() == 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");

    let body = json!({"model": format!("{MODEL}:latest"), "prompt": "hello there",
        "options": {"temperature": 0, "num_predict": 3, "num_ctx": 2048}, "keep_alive": "5m"});
    let chunks = lines(&server.post(GENERATE, &body).await);
    let text: String = chunks.iter().map(|chunk| chunk["response"].as_str().unwrap()).collect();
    assert_eq!(text.split_whitespace().count(), 3);
    assert_eq!(chunks.last().unwrap()["done_reason"], "length");
}

#[tokio::test]
async fn options_are_read_and_refused() {
    let server = start().await;
    let options = json!({"options": {"temperature": 0.5, "seed": 7, "stop": "x", "top_k": 3,
        "repeat_penalty": 1.5, "num_predict": -1}});
    server.post(CHAT, &chat("x", options)).await;
    let asked = server.service.last();
    let params = asked.params;
    assert_eq!((params.temperature, params.seed, params.top_k), (0.5, Some(7), 3));
    assert_eq!((params.repetition_penalty, params.max_tokens), (1.5, None));
    assert_eq!(asked.stop, ["x"]);
    let plain = json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}]});
    server.post(CHAT, &plain).await;
    let params = server.service.last().params;
    assert_eq!((params.temperature, params.top_k, params.top_p), (0.8, 40, 0.9));
    // As in Go, where null is no text.
    let null = json!({"messages": [{"role": "user", "content": null}, {"role": "user"}]});
    assert_eq!(server.post(CHAT, &chat("x", null)).await.status, 200);
    for (more, status, named) in [
        (json!({"options": {"temprature": 1}}), 400, "temperature"),
        (json!({"options": {"mirostat": 2}}), 400, "mirostat"),
        (json!({"format": "xml"}), 400, "format"),
        (json!({"format": ["json"]}), 400, "format"),
        (json!({"tools": [{"type": "function"}]}), 400, "tools"),
        (json!({"messages": [{"role": "user", "content": "", "images": ["eA=="]}]}), 400, "images"),
        (json!({"model": "other"}), 404, "other"),
    ] {
        let refused = server.post(CHAT, &chat("x", more)).await;
        assert_eq!(refused.status, status, "{named}");
        let error = refused.json();
        assert!(error["error"].as_str().unwrap().contains(named), "{error}");
    }
    let failed = server.post(CHAT, &chat("!fail", json!({}))).await;
    assert!(lines(&failed).last().unwrap()["error"].is_string());
}

#[tokio::test]
async fn formats_hold_answers() {
    let server = start().await;
    let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}}});
    for (format, expected) in [
        (json!(""), None),
        (json!("json"), Some(Constraint::JsonObject)),
        (schema.clone(), Some(Constraint::JsonSchema(schema.to_string().into()))),
    ] {
        let reply = server.post(CHAT, &chat("x", json!({"format": format}))).await;
        assert_eq!(reply.status, 200);
        assert_eq!(server.service.last().params.constraint, expected);
    }
}

#[tokio::test]
async fn logprobs_come_beside_the_text_of_both_forms() {
    let server = start().await;
    let options = json!({"temperature": 0, "num_predict": 3});
    let scored = json!({"logprobs": true, "top_logprobs": 2, "options": options});
    for (path, asked) in [(CHAT, json!({})), (GENERATE, json!({"prompt": "hello there"}))] {
        let mut body = if path == CHAT { chat("hello there", asked) } else { asked };
        body["model"] = json!(MODEL);
        let plain = server.post(path, &body).await;
        assert!(lines(&plain).iter().all(|line| line.get("logprobs").is_none()), "{path}");
        body.as_object_mut().unwrap().extend(scored.as_object().unwrap().clone());
        let chunks = lines(&server.post(path, &body).await);
        let of_chunk = |chunk: &Value| chunk.get("logprobs")?.as_array().cloned();
        let streamed: Vec<Value> = chunks.iter().filter_map(of_chunk).flatten().collect();
        assert_eq!(streamed.len(), 3, "{path}: one of each token");
        assert_eq!(chunks.last().unwrap().get("logprobs"), None, "{path}: each is told once");
        body["stream"] = json!(false);
        let whole = server.post(path, &body).await.json();
        assert_eq!(whole["logprobs"], json!(streamed), "{path}");
        let spelled = |score: &Value| score["token"].as_str().unwrap().to_owned();
        let told = if path == CHAT { &whole["message"]["content"] } else { &whole["response"] };
        assert_eq!(streamed.iter().map(spelled).collect::<String>(), told.as_str().unwrap());
        assert_eq!(streamed[0]["top_logprobs"].as_array().unwrap().len(), 2);
    }
    let refused = server.post(CHAT, &chat("x", json!({"top_logprobs": 2}))).await;
    assert_eq!(refused.status, 400, "alternatives of nothing");
}

#[tokio::test]
async fn models_are_listed_loaded_and_unloaded() {
    let server = start().await;
    let tags = server.get("/api/tags").await.json();
    assert_eq!(tags["models"][0]["name"], MODEL);
    let shown = server.post("/api/show", &json!({"model": MODEL})).await.json();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    assert_eq!(shown["details"]["family"], "llama");
    assert_eq!((&shown["details"]["format"], &shown["license"]), (&json!("gguf"), &json!("mit")));
    assert_eq!(shown["details"]["quantization_level"], "Q4_1");
    assert_eq!(
        (&shown["template"], &shown["parameters"]),
        (&json!("{{ messages }}"), &json!("num_ctx 4096"))
    );
    assert_eq!(shown["model_info"]["general.architecture"], "llama");
    assert_eq!(shown["model_info"]["llama.context_length"], 4096);
    let running = server.get("/api/ps").await.json();
    assert!(running["models"][0]["expires_at"].as_str().unwrap() > "2300", "it stays");
    assert!(server.get("/api/version").await.json()["version"].is_string());
    assert_eq!(server.get("/api/ps").await.json()["models"].as_array().unwrap().len(), 1);
    let left = json!({"model": MODEL, "keep_alive": 0});
    assert_eq!(server.post(GENERATE, &left).await.json()["done_reason"], "unload");
    assert_eq!(server.get("/api/ps").await.json()["models"], json!([]));
    let load = server.post(CHAT, &json!({"model": MODEL})).await.json();
    assert_eq!((&load["done"], &load["done_reason"]), (&json!(true), &json!("load")));
    assert_eq!(server.get("/api/ps").await.json()["models"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_no_model_can_is_refused() {
    let server = start().await;
    for wrong in [json!("banana"), json!("5x"), json!(true)] {
        let refused = server.post(CHAT, &chat("x", json!({"keep_alive": wrong}))).await;
        assert_eq!(refused.status, 400, "{wrong}");
        assert!(refused.json()["error"].as_str().unwrap().contains("keep_alive"));
    }
    for time in [json!("5m"), json!(-1), json!("1h30m"), json!(300)] {
        let reply =
            server.post(CHAT, &chat("x", json!({"keep_alive": time, "stream": false}))).await;
        assert_eq!(reply.status, 200, "{time}");
    }
    *server.service.answer_format.lock().unwrap() = engine::AnswerFormat::default();
    let refused = server.post(CHAT, &chat("x", json!({"think": true}))).await;
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains("does not support thinking"));
    assert_eq!(server.post(CHAT, &chat("x", json!({"think": false}))).await.status, 200);
    let shown = server.post("/api/show", &json!({"model": MODEL})).await.json();
    assert_eq!(shown["capabilities"], json!(["completion"]));
}

/// A shelf of models, of which one is heavy: it comes when it is let go.
#[derive(Debug, Default)]
struct Shelf {
    heavy: Mutex<Option<Receiver<()>>>,
}

impl ModelSource for Shelf {
    fn pull(&self, name: &str, tell: &mut dyn FnMut(PullStep)) -> Result<Option<String>, Refusal> {
        match name {
            "here" => return Ok(None),
            "absent" => return Err(Refusal::new(RefusalKind::UnknownModel, "no such model")),
            _ => tell(PullStep::From("the shelf".to_owned())),
        }
        if name == "heavy" {
            let gate = self.heavy.lock().unwrap().take().unwrap();
            gate.recv().unwrap();
        }
        if name == "torn" {
            return Err(Refusal::new(RefusalKind::Unavailable, "it is torn"));
        }
        tell(PullStep::Bytes { done: 3, total: Some(3) });
        tell(PullStep::Verifying);
        Ok(Some(MODEL.to_owned()))
    }
}

#[tokio::test]
async fn models_are_pulled_and_told_of_line_by_line() {
    let (open, gate) = std::sync::mpsc::channel();
    let shelf = Shelf { heavy: Mutex::new(Some(gate)) };
    let server = start_with(ServerOptions { models: Some(Arc::new(shelf)), ..options() }).await;
    let pull = async |model: &str, is_streamed: bool| {
        let body = json!({"model": model, "stream": is_streamed});
        server.post("/api/pull", &body).await
    };
    let statuses = |reply: &Reply| -> Vec<String> {
        let status = |line: &Value| match &line["error"] {
            Value::Null => line["status"].as_str().unwrap().to_owned(),
            error => format!("error: {}", error.as_str().unwrap()),
        };
        lines(reply).iter().map(status).collect()
    };
    let told = pull("new", true).await;
    let expected = ["pulling from the shelf", "pulling", "verifying sha256 digest", "success"];
    assert_eq!(statuses(&told), expected);
    assert_eq!((&lines(&told)[1]["completed"], &lines(&told)[1]["total"]), (&json!(3), &json!(3)));
    for name in ["here", MODEL, &format!("{MODEL}:latest")] {
        assert_eq!(statuses(&pull(name, true).await), ["success"], "{name}");
    }
    assert_eq!(pull(MODEL, false).await.json(), json!({"status": "success"}));
    assert_eq!(pull("new", false).await.json(), json!({"status": "success"}));
    // What cannot begin has a status; what breaks on the way ends with a line.
    for is_streamed in [false, true] {
        let absent = pull("absent", is_streamed).await;
        assert_eq!((absent.status, absent.json()["error"].as_str()), (404, Some("no such model")));
    }
    let torn = pull("torn", true).await;
    assert_eq!(statuses(&torn), ["pulling from the shelf", "error: it is torn"]);
    assert_eq!(pull("torn", false).await.status, 503);
    // One at a time, and whoever asked for it may leave.
    let mut waiting = server.connect().await;
    let body = json!({"model": "heavy"}).to_string();
    waiting.write_all(request(server.address, "/api/pull", &body).as_bytes()).await.unwrap();
    let mut first = [0; 12];
    waiting.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    drop(waiting);
    assert_eq!(pull("new", false).await.status, 429);
    open.send(()).unwrap();
    while pull("new", false).await.status == 429 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn nobody_pulls_who_may_not() {
    let server = start().await;
    let none = server.post("/api/pull", &json!({"model": "new"})).await;
    assert_eq!(none.status, 400, "this one was given no source");
    let shelf = Arc::new(Shelf::default());
    let server = start_with(ServerOptions { models: Some(shelf), ..options() }).await;
    let body = json!({"model": "new"}).to_string();
    let own = request(server.address, "/api/pull", &body);
    let forwarded = own.replacen("\r\n", "\r\nx-forwarded-for: 10.0.0.1\r\n", 1);
    assert_eq!(server.raw(forwarded.as_bytes()).await.unwrap().status, 403);
    let missing = server.post("/api/pull", &json!({})).await;
    assert_eq!((missing.status, missing.json()["error"].is_string()), (400, true));
}
