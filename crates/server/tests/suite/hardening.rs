//! Does the server keep strangers, giants and dawdlers out?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing_subscriber::fmt::MakeWriter;

use crate::answers::chat;
use crate::client::{CHAT, TEXT, options, read_reply, request, start, start_with};
use crate::scripted::{MODEL, Scripted};

const ROUTES: &[(&str, &str)] = &[
    ("GET", "/"),
    ("POST", "/api/chat"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
    ("POST", "/api/generate"),
    ("GET", "/api/ps"),
    ("POST", "/api/pull"),
    ("POST", "/api/show"),
    ("GET", "/api/tags"),
    ("GET", "/api/version"),
    ("GET", "/dashboard"),
    ("POST", "/detokenize"),
    ("GET", "/health"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("GET", "/openapi.json"),
    ("GET", "/pages/{name}"),
    ("GET", "/ping"),
    ("GET", "/props"),
    ("GET", "/ready"),
    ("POST", "/rerank"),
    ("POST", "/tokenize"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/health"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{*id}"),
    ("POST", "/v1/rerank"),
    ("POST", "/v1/responses"),
    ("DELETE", "/v1/responses/{id}"),
    ("GET", "/v1/responses/{id}"),
    ("GET", "/v1/responses/{id}/input_items"),
    ("POST", "/v2/rerank"),
    ("GET", "/version"),
];

#[tokio::test]
async fn ollamas_clients_need_not_say_that_they_send_json_and_pages_must() {
    let server = start().await;
    let body = json!({"model": MODEL, "prompt": "a", "stream": false}).to_string();
    let post = async |path: &str, head: &str| {
        let length = body.len();
        let head = format!("host: localhost\r\n{head}content-length: {length}");
        let text = format!("POST {path} HTTP/1.1\r\n{head}\r\n\r\n{body}");
        server.raw(text.as_bytes()).await.unwrap().status
    };
    for head in ["", "content-type: application/x-www-form-urlencoded\r\n"] {
        assert_eq!(post("/api/generate", head).await, 200, "{head}");
        assert_eq!(post(TEXT, head).await, 415, "{head}");
        for page in ["referer: http://evil.example/\r\n", "sec-fetch-site: cross-site\r\n"] {
            let status = post("/api/generate", &format!("{head}{page}")).await;
            assert!([403, 415].contains(&status), "{head}{page}: {status}");
        }
        let status = post("/api/generate", &format!("{head}origin: http://localhost\r\n")).await;
        assert!([403, 415].contains(&status), "{head}: {status}");
    }
}

#[tokio::test]
async fn who_looks_for_what_is_elsewhere_is_told_what_to_do() {
    let server = start().await;
    for (method, path, hint) in [
        ("DELETE", "/api/delete", "pelton rm"),
        ("POST", "/api/copy", "pelton serve"),
        ("POST", "/api/create", "pelton quantize"),
        ("GET", "/api/blobs/sha256:0", "pelton serve"),
        ("POST", "/v1/audio/transcriptions", "text only"),
        ("POST", "/v1/files", "in the messages"),
        ("GET", "/v1/audiobooks", "GET /openapi.json"),
        ("POST", "/v1/load_lora_adapter", "--adapter"),
        ("GET", "/slots", "GET /v1/models"),
        ("POST", "/completion", "POST /v1/completions"),
        // A base URL with too little or too much at its end.
        ("POST", "/chat/completions", "did you mean /v1/chat/completions?"),
        ("GET", "/v1/v1/models", "did you mean /v1/models?"),
        ("POST", "/v1/api/chat", "did you mean /api/chat?"),
        ("GET", "/health/", "did you mean /health?"),
    ] {
        let text = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let reply = server.raw(text.as_bytes()).await.unwrap();
        assert_eq!(reply.status, 404, "{path}");
        assert!(reply.text().contains(hint), "{path}: {}", reply.text());
    }
}

#[tokio::test]
async fn every_route_is_in_the_table_and_answers() {
    let server = start().await;
    let names = server::route_names();
    assert_eq!(names, ROUTES);
    for (method, path) in names {
        let path = path.replace("{*id}", "default").replace("{name}", "chat.js");
        let path = path.replace("{id}", "default");
        let send = async |method: &str, path: &str| {
            let text = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            server.raw(text.as_bytes()).await.unwrap()
        };
        let expected = match method {
            // Nothing is stored.
            _ if path.contains("/responses/") => 404,
            "GET" => 200,
            // Ollama's clients do not say what they send.
            _ if path.starts_with("/api/") => 400,
            _ => 415,
        };
        assert_eq!(send(method, &path).await.status, expected, "{method} {path}");
        let wrong = send("PUT", &path).await;
        assert_eq!(wrong.status, 405, "{path}");
        assert!(wrong.header("allow").unwrap().contains(method), "{path}");
        let error = &wrong.json()["error"];
        assert_eq!(error.is_string(), path.starts_with("/api/"), "{path}: Ollama's is a text");
        assert_eq!(error["message"].is_string(), !path.starts_with("/api/"), "{path}");
        for near in [format!("/{path}"), format!("{path}/x/../"), path.to_uppercase()] {
            // Ids of models may hold slashes, and the root has no other case.
            if !path.starts_with("/v1/models") && near != path {
                assert_eq!(send(method, &near).await.status, 404, "{near}");
            }
        }
    }
    let unknown = server.get("/nothing").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"]["message"].is_string());
}

#[tokio::test]
async fn only_hosts_of_this_machine_are_answered() {
    let server = start().await;
    let ask = async |head: &str| {
        server.raw(format!("GET {head}\r\n\r\n").as_bytes()).await.unwrap().status
    };
    assert_eq!(ask("/health HTTP/1.1\r\nhost: localhost:1").await, 200);
    assert_eq!(ask("/health HTTP/1.1\r\nhost: [::1]").await, 200);
    assert_eq!(ask("/health HTTP/1.0").await, 200, "no browser sends this");
    assert_eq!(ask("/health HTTP/1.1\r\nhost: evil.example").await, 403);
    assert_eq!(ask("/health HTTP/1.1\r\nhost: 127.0.0.1.evil.example").await, 403);
    assert_eq!(ask("http://evil.example/health HTTP/1.1\r\nhost: localhost").await, 403);
    assert_eq!(ask("/health HTTP/1.1").await, 400);
    assert_eq!(ask("/health HTTP/1.1\r\nhost: localhost\r\nhost: localhost").await, 400);
}

/// Some of what OpenAI's and Anthropic's clients for browsers send.
const VENDORS_HEADERS: &str = "anthropic-dangerous-direct-browser-access,anthropic-version,\
    authorization,content-type,openai-organization,x-stainless-arch,x-stainless-retry-count";

#[tokio::test]
async fn pages_of_other_sites_cannot_read_answers() {
    let mut options = options();
    options.listen.allowed_origins = vec!["https://friend.example".to_owned()];
    let server = start_with(options).await;
    for (origin, is_friend) in [("https://friend.example", true), ("https://evil.example", false)] {
        let get = format!("GET /health HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\r\n");
        let reply = server.raw(get.as_bytes()).await.unwrap();
        let expected = is_friend.then_some(origin);
        assert_eq!(reply.header("access-control-allow-origin"), expected);
        assert!(reply.header("access-control-allow-credentials").is_none());
        let preflight = format!(
            "OPTIONS {CHAT} HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\
             access-control-request-method: POST\r\n\
             access-control-request-headers: {VENDORS_HEADERS}\r\n\r\n"
        );
        let reply = server.raw(preflight.as_bytes()).await.unwrap();
        assert_eq!(reply.status, if is_friend { 204 } else { 405 });
        assert_eq!(reply.header("access-control-allow-origin"), expected);
        assert_eq!(reply.header("access-control-allow-methods").is_some(), is_friend);
        let allowed = reply.header("access-control-allow-headers");
        assert_eq!(allowed, is_friend.then_some(VENDORS_HEADERS));
    }
    let body = chat("a", json!({})).to_string();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
        let sent = request(server.address, CHAT, &body).replace("application/json", kind);
        assert_eq!(server.raw(sent.as_bytes()).await.unwrap().status, 415, "{kind}");
    }
    let sent = request(server.address, CHAT, &body)
        .replace("application/json", "Application/JSON; charset=utf-8");
    assert_eq!(server.raw(sent.as_bytes()).await.unwrap().status, 200);
    assert_eq!(server.service.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn giants_are_refused() {
    let mut options = options();
    options.listen.request_body_bytes_max = 10_000;
    let server = start_with(options).await;
    let body = chat(&"x".repeat(20_000), json!({})).to_string();
    let reply = server.post_text(CHAT, &body).await;
    assert_eq!(reply.status, 413);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("10000"));
    let mut chunked = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    chunked.push_str(&format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    assert_eq!(server.raw(chunked.as_bytes()).await.unwrap().status, 413);
    let declared = request(server.address, TEXT, "").replace("length: 0", "length: 9999999999999");
    assert_eq!(server.raw(declared.as_bytes()).await.unwrap().status, 413);
    let head = |extra: &str| format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{extra}\r\n");
    let long = head(&format!("x: {}\r\n", "y".repeat(64 << 10)));
    assert_eq!(server.raw(long.as_bytes()).await.unwrap().status, 431);
    let many = head(&"x: y\r\n".repeat(200));
    assert_eq!(server.raw(many.as_bytes()).await.unwrap().status, 431);
    let more = "x".repeat(server::ServerOptions::default().listen.request_head_bytes_max);
    let more = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx-more: {more}\r\n\r\n");
    assert_eq!(server.raw(more.as_bytes()).await.unwrap().status, 431, "a little too much");
    assert_eq!(server.get(&format!("/{}", "x".repeat(10_000))).await.status, 414);
    assert_eq!(server.get("/health").await.status, 200);
    assert!(server.service.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn malformed_http_never_kills_the_server() {
    let server = start().await;
    let mut cases: Vec<Vec<u8>> = [
        "\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: localhost\r\n bad: fold\r\n\r\n",
        "GET / HTTP/1.1\r\nhost localhost\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        "POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
        "OPTIONS * HTTP/1.1\r\n\r\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect();
    let good = request(server.address, CHAT, &chat("a", json!({})).to_string()).into_bytes();
    for index in 0..good.len() {
        let mut bytes = good.clone();
        bytes[index] ^= 1 << (index % 8);
        cases.push(bytes);
    }
    for bytes in cases {
        let mut socket = server.connect().await;
        socket.write_all(&bytes).await.unwrap();
        socket.shutdown().await.unwrap();
        let mut reply = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut reply));
        // A reset instead of an answer is fine; silence is not.
        let _ = read.await.expect("the server answers or closes");
        assert!(!reply.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(server.get("/health").await.status, 200);
    server.until_idle().await;
}

#[tokio::test]
async fn dawdlers_are_cut_off() {
    let mut options = options();
    options.patience.head = Duration::from_millis(200);
    options.patience.body = Duration::from_millis(200);
    options.listen.keep_alive_seconds = 1;
    let server = start_with(options).await;
    let mut head = server.connect().await;
    head.write_all(b"GET /health HTTP/1.1\r\n").await.unwrap();
    let started = std::time::Instant::now();
    assert_eq!(head.read(&mut [0; 10]).await.unwrap_or(0), 0);
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());

    let mut body = server.connect().await;
    let sent = request(server.address, CHAT, "").replace("length: 0", "length: 100");
    body.write_all(sent.as_bytes()).await.unwrap();
    assert_eq!(read_reply(&mut body).await.unwrap().status, 408);

    // An idle connection lives longer than a slow head, and can be used again.
    let mut idle = server.connect().await;
    for _ in 0..2 {
        idle.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(read_reply(&mut idle).await.unwrap().status, 200);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let started = std::time::Instant::now();
    assert_eq!(idle.read(&mut [0; 10]).await.unwrap(), 0);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_used_connection_is_idle_as_long_as_an_unused_one() {
    let mut options = options();
    options.listen.keep_alive_seconds = 1;
    options.patience.head = Duration::from_secs(3600);
    let server = start_with(options).await;
    let mut used = server.connect().await;
    used.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(read_reply(&mut used).await.unwrap().status, 200);
    let ended = tokio::time::timeout(Duration::from_secs(600), async { used.read(&mut [0]).await });
    assert_eq!(ended.await.expect("it ends by itself").unwrap(), 0);
}

#[tokio::test]
async fn connections_are_counted() {
    let mut options = options();
    options.listen.connections_max = 2;
    let server = start_with(options).await;
    let (first, _second) = (server.connect().await, server.connect().await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut third = server.connect().await;
    assert_eq!(read_reply(&mut third).await.unwrap().status, 503);
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn request_ids_are_echoed_when_sane() {
    let server = start().await;
    let long = "x".repeat(129);
    for (id, is_sane) in [("abc-1.2:3_4", true), ("a b", false), ("a\"b", false), (&long, false)] {
        let sent = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx-request-id: {id}\r\n\r\n");
        let reply = server.raw(sent.as_bytes()).await.unwrap();
        let given = reply.header("x-request-id").unwrap();
        assert_eq!(given == id, is_sane, "{id}");
    }
    let fresh = |reply: crate::client::Reply| reply.header("x-request-id").unwrap().to_owned();
    assert_ne!(fresh(server.get("/health").await), fresh(server.get("/health").await));
}

#[tokio::test]
async fn a_port_that_cannot_be_had_is_explained() {
    let server = start().await;
    let mut taken = options();
    taken.listen.port = server.address.port();
    let error = server::bind(Scripted::new(), taken).await.err().unwrap().to_string();
    assert!(error.contains(&server.address.port().to_string()), "{error}");
    assert!(error.contains("in use") && error.contains("--port"), "{error}");

    let mut public = options();
    public.listen.host = "0.0.0.0".to_owned();
    let error = server::bind(Scripted::new(), public.clone()).await.err().unwrap().to_string();
    assert!(error.contains("allow_public"), "{error}");
    public.listen.allow_public = true;
    assert!(server::bind(Scripted::new(), public).await.is_ok());

    let mut nowhere = options();
    nowhere.listen.host = "no-such-host.invalid".to_owned();
    let error = server::bind(Scripted::new(), nowhere).await.err().unwrap().to_string();
    assert!(error.contains("no-such-host.invalid"), "{error}");
}

/// A log that a test can read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn nothing_a_user_sends_is_logged() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    // The runtime of this test has one thread, which the server's tasks share.
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = start().await;
    let fields = json!({"user": "canary", "stop": "canary", "model": "canary", "canary": 1});
    server.post(CHAT, &chat("canary", fields)).await;
    server.post(CHAT, &chat("canary", json!({"user": "canary", "stop": "canary"}))).await;
    server.post(CHAT, &chat("!fail canary", json!({}))).await;
    server.post(CHAT, &chat("!panic canary", json!({}))).await;
    server.get("/canary?canary").await;
    let sent = "CANARY /health HTTP/1.1\r\nhost: canary\r\nauthorization: canary\r\n\
                x-request-id: canary\u{7f}\r\n\r\n";
    server.raw(sent.as_bytes()).await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("request") && text.contains("route=\"/v1/chat/completions\""), "{text}");
    assert!(!text.to_lowercase().contains("canary"), "{text}");
    assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)), "{text}");
}

#[tokio::test]
async fn models_are_ordered_about_from_this_machine_only() {
    let server = start().await;
    let order = async |path: &str, head: &str, model: &str| {
        let body = json!({ "model": model }).to_string();
        let text = format!(
            "POST {path} HTTP/1.1\r\n{head}content-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        server.raw(text.as_bytes()).await.unwrap()
    };
    let local = "host: localhost:1\r\n";
    let unloaded = order("/models/unload", local, MODEL).await;
    assert_eq!(unloaded.json()["state"], "unloaded", "{}", unloaded.text());
    assert_eq!(server.get("/v1/models").await.json()["data"][0]["state"], "unloaded");
    assert_eq!(order("/models/load", local, MODEL).await.json()["state"], "ready");
    assert_eq!(order("/models/load", local, "other").await.status, 404);
    for head in [
        "host: localhost\r\nx-forwarded-for: 10.0.0.1\r\n",
        "host: localhost\r\nforwarded: for=10.0.0.1\r\n",
        "host: localhost\r\nvia: 1.1 proxy\r\n",
        "host: evil.example\r\n",
    ] {
        assert_eq!(order("/models/unload", head, MODEL).await.status, 403, "{head}");
    }
    let mut options = options();
    options.listen.allowed_hosts = vec!["models.example".to_owned()];
    let named = start_with(options).await;
    let body = json!({ "model": MODEL }).to_string();
    let text = format!(
        "POST /models/unload HTTP/1.1\r\nhost: models.example\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let refused = named.raw(text.as_bytes()).await.unwrap();
    assert_eq!(refused.status, 403, "a name that pages may have");
    assert!(refused.text().contains("this machine"), "{}", refused.text());
    assert_eq!(server.get("/v1/models").await.json()["data"][0]["state"], "ready");
}

#[tokio::test]
async fn a_compressed_body_is_said_to_be_one() {
    let server = start().await;
    let body = chat("a", json!({})).to_string();
    for (encoding, status) in [("gzip", 415), ("br", 415), ("identity", 200), ("Identity", 200)] {
        let sent = request(server.address, CHAT, &body);
        let head = format!("\r\ncontent-encoding: {encoding}\r\n");
        let reply = server.raw(sent.replacen("\r\n", &head, 1).as_bytes()).await.unwrap();
        assert_eq!(reply.status, status, "{encoding}: {}", reply.text());
        assert_eq!(reply.text().contains("compressed"), status == 415, "{encoding}");
    }
}
