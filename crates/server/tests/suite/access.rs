//! Who may ask, for what, and how much, where there are keys?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use messages::Priority;
use serde_json::{Value, json};
use server::{NewKey, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::answers::chat;
use crate::client::{CHAT, Reply, Running, options, request, start_with};
use crate::scripted::{MODEL, OTHER, Scripted, WORDS};

/// A key's entry in the configuration, and the key.
fn key(name: &str, fields: Value) -> (config::KeyConfig, String) {
    let new = NewKey::draw().unwrap();
    let mut object = json!({"name": name, "sha256": new.digest()});
    object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    (serde_json::from_value(object).unwrap(), new.to_string())
}

fn with_keys(keys: &[&config::KeyConfig]) -> ServerOptions {
    let mut options = options();
    options.access.keys = keys.iter().map(|key| (*key).clone()).collect();
    options
}

/// A server with one key.
async fn start_with_key(fields: Value) -> (Running, String) {
    let (entry, key) = key("alice", fields);
    let server = start_with(with_keys(&[&entry])).await;
    server.service.has_other.store(true, Ordering::SeqCst);
    (server, format!("authorization: Bearer {key}\r\n"))
}

async fn send(server: &Running, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let text = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    server.raw(text.as_bytes()).await.unwrap()
}

async fn ask(server: &Running, headers: &str, fields: Value) -> Reply {
    send(server, "POST", CHAT, headers, &chat("a", fields).to_string()).await
}

#[test]
fn keys_close_all() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(every_path_but_those_of_health_needs_a_key());
}

async fn every_path_but_those_of_health_needs_a_key() {
    let (server, header) = start_with_key(json!({})).await;
    let health = ["/health", "/health/ready", "/ping", "/ready", "/v1/health"];
    let open = [&["/", "/dashboard", "/pages/chat.js"], &health[..]].concat();
    for (method, path) in server::route_names() {
        let path = path.replace("{*id}", "default").replace("{name}", "chat.js");
        let path = path.replace("{id}", "resp_1");
        let path = path.as_str();
        for headers in ["", "authorization: Bearer sk-pelton-0\r\n", "x-api-key: x\r\n"] {
            let reply = send(&server, method, path, headers, "{}").await;
            if open.contains(&path) {
                assert_eq!(reply.status, 200, "{path}");
                continue;
            }
            assert_eq!(reply.status, 401, "{method} {path} {headers}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            let (body, error) = (reply.json(), reply.json()["error"].clone());
            match path {
                "/v1/messages" | "/v1/messages/count_tokens" => {
                    assert_eq!(body["type"], "error");
                    assert_eq!(error["type"], "authentication_error");
                }
                _ if path.starts_with("/api/") => assert!(error.is_string(), "{path}"),
                _ => assert_eq!(error["code"], "invalid_api_key", "{path}"),
            }
        }
        assert_ne!(send(&server, method, path, &header, "{}").await.status, 401, "{path}");
        for near in [format!("/{path}"), format!("{path}/"), path.to_uppercase()] {
            if !open.contains(&near.as_str()) && !near.starts_with("/pages/") {
                assert_eq!(send(&server, method, &near, "", "{}").await.status, 401, "{near}");
            }
        }
        if !open.contains(&path) {
            for method in ["DELETE", "OPTIONS"] {
                assert_eq!(send(&server, method, path, "", "").await.status, 401, "{path}");
            }
            // A reply to HEAD has the length of a body that does not come.
            let mut socket = server.connect().await;
            let head = format!("HEAD {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            let mut status = [0; 12];
            socket.read_exact(&mut status).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 401", "{path}");
        }
    }
    assert!(server.service.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn metrics_are_open_where_a_setting_says_so() {
    let (entry, _) = key("alice", json!({}));
    let mut options = with_keys(&[&entry]);
    options.access.open_metrics = true;
    let server = start_with(options).await;
    assert_eq!(server.get("/metrics").await.status, 200);
    assert_eq!(server.get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn a_key_uses_its_own_models_only() {
    let (server, header) = start_with_key(json!({"models": [OTHER]})).await;
    let listed = send(&server, "GET", "/v1/models", &header, "").await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed["data"][0]["id"], OTHER);
    let tags = send(&server, "GET", "/api/tags", &header, "").await.json();
    assert_eq!(tags["models"].as_array().unwrap().len(), 1);
    let one = send(&server, "GET", &format!("/v1/models/{MODEL}"), &header, "").await;
    assert_eq!(one.status, 403);
    let refused = ask(&server, &header, json!({"model": MODEL})).await;
    assert_eq!((refused.status, refused.param().as_str()), (403, "model"));
    let message = json!({"model": MODEL, "max_tokens": 1, "messages":
        [{"role": "user", "content": "a"}]});
    let refused = send(&server, "POST", "/v1/messages", &header, &message.to_string()).await;
    assert_eq!(refused.json()["error"]["type"], "permission_error");
    assert!(server.service.requests.lock().unwrap().is_empty());
    assert_eq!(ask(&server, &header, json!({"model": "default"})).await.status, 200);
    assert_eq!(server.service.last().model, OTHER, "the first of its own");
    assert_eq!(ask(&server, &header, json!({"model": "third"})).await.status, 404);

    let (server, header) = start_with_key(json!({"models": ["gone"]})).await;
    assert_eq!(ask(&server, &header, json!({"model": "default"})).await.status, 403);
    let unknown = ask(&server, &header, json!({"model": "nope"})).await;
    assert!(unknown.status == 403 && unknown.text().contains("`nope`"), "{}", unknown.text());
    let metrics = send(&server, "GET", "/metrics", &header, "").await.text();
    assert!(!metrics.contains(MODEL), "{metrics}");
}

#[tokio::test]
async fn no_question_reaches_a_model_that_the_key_may_not_use() {
    let (server, header) = start_with_key(json!({"models": [OTHER]})).await;
    let said = json!([{"role": "user", "content": "a"}]);
    let texts = json!({"query": "a", "documents": ["a"], "input": "a", "prompt": "a"});
    for (method, path) in server::route_names() {
        let is_question = path.starts_with("/v1/")
            || path.ends_with("rerank")
            || path.ends_with("tokenize")
            || path.starts_with("/api/");
        if method != "POST" || !is_question {
            continue;
        }
        let mut body = json!({"model": MODEL, "messages": said, "max_tokens": 1});
        let object = body.as_object_mut().unwrap();
        object.insert("tokens".to_owned(), json!([1]));
        object.extend(texts.as_object().unwrap().clone());
        let reply = send(&server, "POST", path, &header, &body.to_string()).await;
        assert_eq!(reply.status, 403, "{path}: {}", reply.text());
    }
    assert!(server.service.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_response_is_kept_for_the_tenant_of_its_key() {
    let (first, first_key) = key("first", json!({"tenant": "team"}));
    let (second, second_key) = key("second", json!({"tenant": "team"}));
    let (other, other_key) = key("other", json!({}));
    let server = start_with(with_keys(&[&first, &second, &other])).await;
    let body = json!({"input": "a"}).to_string();
    let of = |key: &str| format!("authorization: Bearer {key}\r\n");
    let made = send(&server, "POST", "/v1/responses", &of(&first_key), &body).await.json();
    let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
    let next = json!({"input": "b", "previous_response_id": made["id"]}).to_string();
    for (key, expected) in [(&second_key, 200), (&other_key, 404)] {
        let items = format!("{path}/input_items");
        for path in [&path, &items] {
            assert_eq!(send(&server, "GET", path, &of(key), "").await.status, expected);
        }
        let goes_on = send(&server, "POST", "/v1/responses", &of(key), &next).await;
        assert_eq!(goes_on.status == 200, expected == 200, "{}", goes_on.text());
    }
    assert_eq!(send(&server, "DELETE", &path, &of(&other_key), "").await.status, 404);
    assert_eq!(send(&server, "DELETE", &path, &of(&second_key), "").await.status, 200);
    assert_eq!(send(&server, "GET", &path, &of(&first_key), "").await.status, 404);
}

#[tokio::test]
async fn requests_a_minute_are_counted_and_told() {
    let (server, header) = start_with_key(json!({"requests_per_minute": 2})).await;
    for left in ["1", "0"] {
        let reply = ask(&server, &header, json!({})).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some(left));
        assert!(reply.header("x-ratelimit-reset-requests").unwrap().ends_with("ms"));
        assert!(reply.header("x-ratelimit-limit-tokens").is_none());
    }
    let listed = send(&server, "GET", "/v1/models", &header, "").await;
    assert_eq!(listed.status, 200, "what needs no model is not counted");
    for path in [CHAT, "/v1/messages", "/api/chat"] {
        // Refused before the body is looked at.
        let refused = send(&server, "POST", path, &header, "{}").await;
        assert_eq!(refused.status, 429, "{path}");
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=30).contains(&seconds), "{seconds}");
        assert_eq!(refused.header("x-ratelimit-remaining-requests"), Some("0"));
        assert!(refused.text().contains("2 requests a minute"), "{}", refused.text());
    }
}

#[tokio::test]
async fn tokens_are_counted_as_they_are_read_and_written() {
    let used = 1 + u64::from(WORDS);
    let (server, header) = start_with_key(json!({"tokens_per_day": 2 * used})).await;
    assert_eq!(ask(&server, &header, json!({})).await.status, 200);
    let second = ask(&server, &header, json!({"stream": true})).await;
    let told = (second.status, second.header("x-ratelimit-remaining-tokens").unwrap());
    assert_eq!(told, (200, (used - 1).to_string().as_str()), "its prompt is read");
    let refused = ask(&server, &header, json!({})).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert_eq!(refused.header("x-ratelimit-remaining-tokens"), Some("0"));
    assert_eq!(refused.header("x-ratelimit-limit-tokens"), Some("26"));
}

#[tokio::test]
async fn requests_at_once_end_with_their_answers() {
    let (server, header) = start_with_key(json!({"concurrent_max": 1})).await;
    let body = chat("!hang", json!({"stream": true})).to_string();
    let sent = request(server.address, CHAT, &body).replacen("\r\n", &format!("\r\n{header}"), 1);
    let mut socket = server.connect().await;
    socket.write_all(sent.as_bytes()).await.unwrap();
    server.until_live(1).await;
    assert_eq!(ask(&server, &header, json!({})).await.status, 429);
    drop(socket);
    let deadline = Instant::now() + Duration::from_secs(60);
    while ask(&server, &header, json!({})).await.status != 200 {
        assert!(Instant::now() < deadline, "its place never came back");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_key_decides_urgency_and_tenant() {
    let (server, header) = start_with_key(json!({"priority": "low", "tenant": "team"})).await;
    assert_eq!(ask(&server, &header, json!({})).await.status, 200);
    let last = server.service.last();
    assert_eq!((last.urgency.priority, last.namespace.tenant.as_str()), (Priority::Low, "team"));
    for fields in [json!({"priority": "high"}), json!({"service_tier": "priority"})] {
        let refused = ask(&server, &header, fields.clone()).await;
        assert_eq!(refused.status, 403, "{fields}");
        assert_eq!(refused.param(), *fields.as_object().unwrap().keys().next().unwrap());
    }
    let (server, header) = start_with_key(json!({"priority": "high"})).await;
    assert_eq!(ask(&server, &header, json!({})).await.status, 200);
    let last = server.service.last();
    assert_eq!((last.urgency.priority, last.namespace.tenant.as_str()), (Priority::High, "alice"));
    assert_eq!(ask(&server, &header, json!({"priority": "low"})).await.status, 200);
    assert_eq!(server.service.last().urgency.priority, Priority::Low);
}

#[tokio::test]
async fn models_are_ordered_about_by_keys_that_may() {
    let order = json!({"model": MODEL}).to_string();
    for (fields, expected) in [(json!({"admin": true}), 200), (json!({}), 403)] {
        let (server, header) = start_with_key(fields).await;
        let headers = format!("{header}x-forwarded-for: 10.0.0.1\r\n");
        let reply = send(&server, "POST", "/models/unload", &headers, &order).await;
        assert_eq!(reply.status, expected, "{}", reply.text());
    }
    let (server, header) = start_with_key(json!({"admin": true, "models": [OTHER]})).await;
    assert_eq!(send(&server, "POST", "/models/unload", &header, &order).await.status, 404);
}

#[tokio::test]
async fn keys_come_and_go_while_the_server_runs() {
    let (first, first_key) = key("first", json!({"requests_per_minute": 1}));
    let (second, second_key) = key("second", json!({}));
    let server = start_with(with_keys(&[&first])).await;
    let status =
        async |key: &str| ask(&server, &format!("x-api-key: {key}\r\n"), json!({})).await.status;
    let tell = |keys: &[&config::KeyConfig]| {
        let options = with_keys(keys);
        server.control.take_up(&options.listen, &options.access);
    };
    assert_eq!((status(&first_key).await, status(&second_key).await), (200, 401));
    tell(&[&first, &second]);
    assert_eq!((status(&first_key).await, status(&second_key).await), (429, 200));
    tell(&[&second]);
    assert_eq!((status(&first_key).await, status(&second_key).await), (401, 200));
}

#[tokio::test]
async fn a_public_address_needs_keys() {
    let (entry, _) = key("alice", json!({}));
    let mut options = with_keys(&[&entry]);
    options.listen.host = "0.0.0.0".to_owned();
    assert!(server::bind(Scripted::new(), options).await.is_ok());
}
