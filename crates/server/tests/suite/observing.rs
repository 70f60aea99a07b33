//! What does an operator see of requests: metrics, the audit log, traces?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::answers::chat;
use crate::client::{CHAT, Running, options, request, start, start_with};
use crate::scripted::{MODEL, WORDS};

/// Waits for what threads of the server do in their own time.
async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The value of a line of the metrics page.
async fn metric(server: &Running, line: &str) -> f64 {
    let text = server.get("/metrics").await.text();
    let found = text.lines().find_map(|given| given.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or_else(|| panic!("{line}\n{text}"))
}

/// Names of series in a query of Prometheus.
fn series(query: &str) -> impl Iterator<Item = &str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let words = query.split(move |letter| !is_part(letter));
    words.filter(|word| word.starts_with("pelton_") || word.starts_with("vllm:"))
}

fn queries<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            let texts = ["expr", "query"].iter().filter_map(|name| fields.get(*name)?.as_str());
            found.extend(texts);
            fields.values().for_each(|below| queries(below, found));
        }
        Value::Array(items) => items.iter().for_each(|below| queries(below, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[tokio::test]
async fn every_query_of_the_dashboard_names_a_series_that_is_there() {
    let server = start().await;
    server.post(CHAT, &chat("a", json!({}))).await;
    let page = server.get("/metrics").await.text();
    let is_sample = |line: &&str| !line.starts_with('#');
    let there: BTreeSet<&str> =
        page.lines().filter(is_sample).filter_map(|line| line.split(['{', ' ']).next()).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/grafana/pelton.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut found = Vec::new();
    queries(&dashboard, &mut found);
    let asked: BTreeSet<&str> = found.iter().flat_map(|query| series(query)).collect();
    assert!(asked.len() > 40, "{asked:?}");
    let missing: Vec<_> = asked.difference(&there).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn answers_are_counted_for_their_model_and_by_their_end() {
    let server = start().await;
    server.post(CHAT, &chat("a", json!({}))).await;
    server.post(CHAT, &chat("a", json!({"max_tokens": 2}))).await;
    server.post(CHAT, &chat("!fail", json!({}))).await;
    let of = |reason: &str| {
        format!("vllm:request_success_total{{model_name=\"{MODEL}\",finished_reason=\"{reason}\"}}")
    };
    for (reason, count) in [("stop", 1.0), ("length", 1.0), ("error", 1.0), ("abort", 0.0)] {
        assert_eq!(metric(&server, &of(reason)).await, count, "{reason}");
    }
    for (name, count, sum) in [
        ("request_generation_tokens", 2.0, Some(f64::from(WORDS) + 2.0)),
        ("request_prompt_tokens", 2.0, Some(2.0)),
        ("request_params_max_tokens", 1.0, Some(2.0)),
        ("request_params_n", 3.0, Some(3.0)),
        // Each prompt of one token was found.
        ("request_prefill_kv_computed_tokens", 2.0, Some(0.0)),
        ("time_to_first_token_seconds", 3.0, None),
        ("request_prefill_time_seconds", 2.0, None),
        ("request_time_per_output_token_seconds", 2.0, None),
    ] {
        let line = |part: &str| format!("vllm:{name}_{part}{{model_name=\"{MODEL}\"}}");
        assert_eq!(metric(&server, &line("count")).await, count, "{name}");
        if let Some(sum) = sum {
            assert_eq!(metric(&server, &line("sum")).await, sum, "{name}");
        }
    }
}

async fn lines(path: &Path, count: usize) -> Vec<Value> {
    until("the audit log", async || {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let is_whole = lines.len() == count && text.ends_with('\n');
        is_whole.then(|| lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect())
    })
    .await
}

#[tokio::test]
async fn each_request_is_in_the_audit_log_without_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut options = options();
    options.audit.file = Some(path.to_str().unwrap().to_owned());
    let server = start_with(options).await;
    let body = chat("canary", json!({"user": "canary", "n": 2, "max_tokens": 3})).to_string();
    let sent = request(server.address, CHAT, &body);
    let sent = sent.replacen("\r\n", "\r\nx-request-id: mine\r\n", 1);
    assert_eq!(server.raw(sent.as_bytes()).await.unwrap().status, 200);
    server.get("/canary").await;
    server.post(CHAT, &chat("!busy canary", json!({}))).await;
    let lines = lines(&path, 3).await;
    let of = |status: u16| lines.iter().find(|line| line["status"] == status).unwrap();
    let first = of(200);
    assert_eq!((&first["id"], &first["route"]), (&json!("mine"), &json!(CHAT)));
    assert_eq!(first["model"], MODEL);
    assert_eq!((&first["answers"], &first["completion_tokens"]), (&json!(2), &json!(6)));
    assert_eq!((&first["finish"], &first["prompt_tokens"]), (&json!("length"), &json!(2)));
    assert!(first["time"].as_str().unwrap().ends_with('Z') && first["ms"].is_u64(), "{first}");
    assert!(first["first_token_ms"].as_u64() <= first["ms"].as_u64(), "{first}");
    assert_eq!((&of(404)["route"], &of(404)["model"]), (&json!("other"), &Value::Null));
    assert_eq!(of(429)["answers"], 0);
    assert!(!std::fs::read_to_string(&path).unwrap().contains("canary"));

    let body = chat("!hang", json!({}));
    let mut socket = server.connect().await;
    let sent = request(server.address, CHAT, &body.to_string());
    socket.write_all(sent.as_bytes()).await.unwrap();
    server.until_live(1).await;
    drop(socket);
    let left = &self::lines(&path, 4).await[3];
    assert_eq!((&left["status"], &left["finish"]), (&json!(499), &json!("gone")));

    let moved = folder.path().join("moved");
    std::fs::rename(&path, &moved).unwrap();
    let defaults = server::ServerOptions::default();
    server.control.take_up(&defaults.listen, &defaults.access);
    server.get("/health").await;
    until("a new file", async || path.exists().then_some(())).await;
    assert_eq!(self::lines(&path, 1).await[0]["route"], "/health");
    assert_eq!(metric(&server, "pelton_audit_lost_total").await, 0.0);
}

/// A collector of traces that takes what is sent, and its endpoint.
async fn collector() -> (String, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (taken, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let taken = taken.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                loop {
                    while let Some((length, body)) = whole_request(&bytes) {
                        let _ = taken.send(body);
                        bytes.drain(..length);
                        let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                        stream.write_all(reply).await.unwrap();
                    }
                    match stream.read_buf(&mut bytes).await {
                        Ok(0) | Err(_) => return,
                        Ok(_) => {}
                    }
                }
            });
        }
    });
    (endpoint, received)
}

/// The first request in `bytes` if all of it is there: its length and its body.
fn whole_request(bytes: &[u8]) -> Option<(usize, Value)> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap().to_lowercase();
    assert!(head.starts_with("post /v1/traces "), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).unwrap();
    let end = head_end + length.trim().parse::<usize>().unwrap();
    let body = bytes.get(head_end..end)?;
    Some((end, serde_json::from_slice(body).unwrap()))
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn traced(server: &Running, body: &Value, flags: &str) -> String {
    let header = format!("\r\ntraceparent: 00-{TRACE}-{PARENT}-{flags}\r\n");
    request(server.address, CHAT, &body.to_string()).replacen("\r\n", &header, 1)
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let attributes = span["attributes"].as_array().unwrap();
    let found = attributes.iter().find(|attribute| attribute["key"] == key);
    let value = found.unwrap_or_else(|| panic!("no {key} in {span}"))["value"].as_object();
    value.unwrap().values().next().unwrap()
}

#[tokio::test]
async fn a_request_is_a_trace_of_its_phases() {
    let (endpoint, mut received) = collector().await;
    let mut options = options();
    options.traces.endpoint = Some(endpoint);
    options.traces.service_name = "tested".to_owned();
    let server = start_with(options).await;
    let unsampled = traced(&server, &chat("a", json!({})), "00");
    assert_eq!(server.raw(unsampled.as_bytes()).await.unwrap().status, 200);
    let sampled = traced(&server, &chat("!queued canary", json!({"stream": true})), "01");
    assert_eq!(server.raw(sampled.as_bytes()).await.unwrap().status, 200);
    let export = received.recv().await.unwrap();
    assert!(!export.to_string().contains("canary"));
    let resource = &export["resourceSpans"][0];
    assert_eq!(attribute(&resource["resource"], "service.name"), "tested");
    let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POST /v1/chat/completions", "encode", "queue", "prefill", "decode"]);
    let root = &spans[0];
    assert_eq!((&root["parentSpanId"], &root["kind"]), (&json!(PARENT), &json!(2)));
    assert_eq!(attribute(root, "gen_ai.request.model"), MODEL);
    assert_eq!(attribute(root, "gen_ai.usage.output_tokens"), &WORDS.to_string());
    assert_eq!(attribute(root, "http.response.status_code"), "200");
    let time = |span: &Value, end: &str| -> u128 {
        span[format!("{end}TimeUnixNano")].as_str().unwrap().parse().unwrap()
    };
    let mut ids = BTreeSet::new();
    for span in spans {
        assert_eq!(span["traceId"], TRACE);
        assert!(ids.insert(span["spanId"].as_str().unwrap()), "{span}");
        assert_eq!(span["spanId"].as_str().unwrap().len(), 16);
        assert!(time(span, "start") <= time(span, "end"), "{span}");
        assert!(time(root, "start") <= time(span, "start"), "{span}");
        assert!(time(span, "end") <= time(root, "end"), "{span}");
    }
    for pair in spans[1..].windows(2) {
        assert_eq!(pair[0]["parentSpanId"], root["spanId"]);
        assert_eq!(time(&pair[0], "end"), time(&pair[1], "start"), "phases follow each other");
    }
    until("the count", async || {
        (metric(&server, "pelton_traces_sent_total").await >= 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_traces_and_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = options();
    options.traces.endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    drop(listener);
    let server = start_with(options).await;
    assert_eq!(server.post(CHAT, &chat("a", json!({}))).await.status, 200);
    until("the count", async || {
        (metric(&server, "pelton_traces_dropped_total").await >= 1.0).then_some(())
    })
    .await;
    assert_eq!(metric(&server, "pelton_traces_sent_total").await, 0.0);

    let mut options = crate::client::options();
    options.traces.endpoint = Some("collector:4318".to_owned());
    let error = server::bind(crate::scripted::Scripted::new(), options).await.err().unwrap();
    assert!(error.to_string().contains("collector:4318"), "{error}");
}

/// What a reply says of itself, wherever its API has it.
fn told(reply: &crate::client::Reply, is_streamed: bool) -> Vec<Value> {
    let text = reply.text();
    let objects: Vec<Value> = if is_streamed {
        let lines = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
        lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
    } else {
        vec![serde_json::from_str(&text).unwrap()]
    };
    let of = |object: &Value| {
        object.get("x_explain").or_else(|| object.get("response")?.get("x_explain")).cloned()
    };
    objects.iter().filter_map(of).collect()
}

#[tokio::test]
async fn a_reply_says_how_it_came_about_where_it_is_asked() {
    let server = start().await;
    let ask = async |path: &str, is_streamed: bool, how: &str| {
        let message = json!([{"role": "user", "content": "!queued b"}]);
        let mut body = json!({"model": MODEL, "max_tokens": 3, "stream": is_streamed});
        match path {
            "/v1/completions" | "/api/generate" => body["prompt"] = json!("!queued b"),
            "/v1/responses" => body["input"] = json!("!queued b"),
            _ => body["messages"] = message,
        }
        if path.starts_with("/api/") || path == "/v1/responses" {
            body.as_object_mut().unwrap().remove("max_tokens");
        }
        if how == "field" {
            body["x_explain"] = json!(true);
        }
        let mut sent = request(server.address, path, &body.to_string());
        if how == "header" {
            sent = sent.replacen("\r\n", "\r\nx-pelton-explain: 1\r\n", 1);
        }
        let reply = server.raw(sent.as_bytes()).await.unwrap();
        assert_eq!(reply.status, 200, "{path} {}", reply.text());
        reply
    };
    let responses = "/v1/responses";
    for path in [CHAT, "/v1/completions", responses, "/v1/messages", "/api/chat", "/api/generate"] {
        for is_streamed in [false, true] {
            let silent = ask(path, is_streamed, "not").await;
            assert!(told(&silent, is_streamed).is_empty(), "{path}");
            for how in ["field", "header"] {
                let reply = ask(path, is_streamed, how).await;
                let all = told(&reply, is_streamed);
                let [told] = &all[..] else { panic!("{path} {is_streamed} {how}: {all:?}") };
                assert_eq!(told["request_id"], reply.header("x-request-id").unwrap());
                let answer = &told["answers"][0];
                let tokens = answer["completion_tokens"].as_u64().unwrap();
                let is_whole = path.starts_with("/api/") || path == responses;
                assert_eq!(tokens, if is_whole { u64::from(WORDS) } else { 3 });
                for (name, expected) in [
                    ("model", json!(MODEL)),
                    ("cache", json!("miss")),
                    ("queue_seconds", json!(0.02)),
                    ("queue_before", json!(2)),
                    ("prompt_tokens", json!(2)),
                    ("cached_prompt_tokens", json!(crate::scripted::CACHED)),
                    ("cached_prompt_why", json!("what is cached ends there: a new turn")),
                    ("guesses_accepted", json!(2)),
                    ("guesses_rejected", json!(1)),
                ] {
                    assert_eq!(answer[name], expected, "{path} {name}");
                }
                assert!(answer["first_token_seconds"].is_f64() && answer["why"].is_string());
                assert!(reply.header("x-pelton-sharing").unwrap().starts_with("miss"));
            }
        }
    }
    let refused = server.post(CHAT, &chat("a", json!({"x_explain": "yes"}))).await;
    assert_eq!((refused.status, refused.param().as_str()), (400, "x_explain"));
}

#[tokio::test]
async fn what_other_servers_tools_probe_is_told() {
    let server = start().await;
    let health = server.get("/health").await.json();
    for path in ["/ping", "/v1/health"] {
        assert_eq!(server.get(path).await.json(), health, "{path}");
    }
    server.service.status.lock().unwrap().trouble = Some("the device is gone".to_owned());
    for path in ["/ping", "/v1/health"] {
        assert_eq!(server.get(path).await.status, 503, "{path}");
    }
    server.service.status.lock().unwrap().trouble = None;
    assert_eq!(server.get("/version").await.json(), server.get("/api/version").await.json());
    *server.service.defaults.lock().unwrap() =
        messages::SamplingParams { temperature: 0.5, top_k: 20, ..Default::default() };
    let props = server.get("/props").await.json();
    let settings = &props["default_generation_settings"];
    assert_eq!(settings["n_ctx"], crate::scripted::CONTEXT);
    assert_eq!(
        (&settings["params"]["temperature"], &settings["params"]["top_k"]),
        (&json!(0.5), &json!(20))
    );
    assert_eq!(
        (&props["model_alias"], &props["chat_template"]),
        (&json!(MODEL), &json!("{{ messages }}"))
    );
    let named = server.get(&format!("/props?model={MODEL}")).await.json();
    assert_eq!(named, props);
    assert_eq!(server.get("/props?model=other").await.status, 404);
    assert_eq!(server.get("/props?models=other").await.param(), "models");
}
