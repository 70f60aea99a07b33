//! What happens when somebody leaves: a client, a slow reader, the server itself?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::answers::{chat, text};
use crate::client::{CHAT, TEXT, options, read_reply, request, start, start_with};
use crate::scripted::MODEL;

/// The project's goal is 100 ms at the 99th percentile; two busy cores get some slack here.
const GONE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_client_that_leaves_frees_its_answers() {
    let server = start().await;
    let slow = json!({"max_tokens": 4000, "ignore_eos": true});
    for (path, body) in [(CHAT, chat("!slow", slow.clone())), (TEXT, text(json!("!slow"), slow))] {
        for stream in [true, false] {
            for choices in [1_usize, 3] {
                let mut body = body.clone();
                body["stream"] = json!(stream);
                body["n"] = json!(choices);
                let mut socket = server.connect().await;
                let sent = request(server.address, path, &body.to_string());
                socket.write_all(sent.as_bytes()).await.unwrap();
                server.until_live(choices).await;
                if stream {
                    let mut bytes = [0; 100];
                    socket.read_exact(&mut bytes).await.unwrap();
                }
                drop(socket);
                let took = server.until_idle().await;
                assert!(took < GONE, "{path} stream={stream} n={choices}: {took:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_admission_or_the_first_word_is_noticed() {
    let server = start().await;
    for switch in ["!stuck", "!hang"] {
        for stream in [true, false] {
            let mut socket = server.connect().await;
            let body = chat(switch, json!({"stream": stream})).to_string();
            socket.write_all(request(server.address, CHAT, &body).as_bytes()).await.unwrap();
            server.until_live(1).await;
            drop(socket);
            let took = server.until_idle().await;
            assert!(took < GONE, "{switch} stream={stream}: {took:?}");
        }
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_dropped() {
    let mut options = options();
    options.patience.stall = Duration::from_millis(300);
    let server = start_with(options).await;
    let mut socket = server.connect().await;
    let body = chat("!big", json!({"stream": true})).to_string();
    socket.write_all(request(server.address, CHAT, &body).as_bytes()).await.unwrap();
    server.until_live(1).await;
    let took = server.until_idle().await;
    assert!(took >= Duration::from_millis(250), "it had its time: {took:?}");
    // A reader that takes some, however slowly, keeps its answer.
    let mut socket = server.connect().await;
    socket.write_all(request(server.address, CHAT, &body).as_bytes()).await.unwrap();
    let mut bytes = vec![0; 1 << 20];
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        socket.read_exact(&mut bytes).await.unwrap();
    }
    assert_eq!(server.service.live(), 1);
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_in_the_form_of_each_api() {
    let mut options = options();
    options.patience.comment = Duration::from_millis(20);
    let server = start_with(options).await;
    let said = json!([{"role": "user", "content": "!hang"}]);
    let ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n";
    let piece = "\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":false}\n";
    for (path, body, first, again) in [
        (CHAT, json!({"messages": said, "stream": true}), ": waiting", ": waiting\n\n"),
        ("/v1/responses", json!({"input": "!hang", "stream": true}), ": waiting", ": waiting\n\n"),
        (
            "/v1/messages",
            json!({"messages": said, "max_tokens": 9, "stream": true}),
            "event: ping",
            ping,
        ),
        ("/api/chat", json!({"model": MODEL, "messages": said}), "{\"model\"", piece),
    ] {
        let mut socket = server.connect().await;
        let sent = request(server.address, path, &body.to_string());
        socket.write_all(sent.as_bytes()).await.unwrap();
        let mut text = String::new();
        let is_anthropic = path == "/v1/messages";
        while text.matches(again).count() < if is_anthropic { 20 } else { 3 } {
            let mut bytes = [0; 4096];
            let count = socket.read(&mut bytes).await.unwrap();
            assert!(count > 0, "{path}: {text}");
            text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        let (_, chunks) = text.split_once("\r\n\r\n").unwrap();
        let (_, chunk) = chunks.split_once("\r\n").unwrap();
        assert!(chunk.starts_with(first), "{path}: {chunk}");
        let before = chunk.split_once("event: message_start").map(|(pings, _)| pings);
        let pings = before.map(|pings| pings.matches("event: ping").count());
        assert_eq!(pings, is_anthropic.then_some(16), "the message begins all the same");
        drop(socket);
        // Whoever has gone is noticed by what was written to it.
        server.until_idle().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_at_once_all_end_well() {
    let server = start().await;
    let mut expected = Vec::new();
    for index in 0..200 {
        let reply = server.post(CHAT, &chat(&format!("!slow {index}"), json!({}))).await.json();
        expected.push(reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned());
        if index == 9 {
            break;
        }
    }
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..200 {
        let address = server.address;
        tasks.spawn(async move {
            let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
            let body = chat(&format!("!slow {}", index % 10), json!({"stream": true})).to_string();
            socket.write_all(request(address, CHAT, &body).as_bytes()).await.unwrap();
            (index % 10, read_reply(&mut socket).await.unwrap())
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (index, reply) = done.unwrap();
        let pieces = reply.chunks();
        let piece = |chunk: &Value| {
            chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned()
        };
        assert_eq!(pieces.iter().map(piece).collect::<String>(), expected[index]);
    }
    server.until_idle().await;
}

#[tokio::test]
async fn a_stop_lets_running_answers_finish() {
    let mut server = start().await;
    let mut running = server.connect().await;
    let mut idle = server.connect().await;
    let body = chat("!slow", json!({"stream": true, "max_tokens": 30, "ignore_eos": true}));
    let sent = request(server.address, CHAT, &body.to_string());
    running.write_all(sent.as_bytes()).await.unwrap();
    server.until_live(1).await;
    server.stop.take().unwrap().send(()).unwrap();
    assert_eq!(idle.read(&mut [0; 10]).await.unwrap(), 0, "idle connections are closed");
    for path in ["/health/ready", "/ready", "/v1/models"] {
        let late = server.get(path).await;
        assert_eq!((late.status, late.header("connection")), (503, Some("close")), "{path}");
        assert!(late.header("retry-after").is_some() && late.text().contains("stopping"));
    }
    assert_eq!(server.post(CHAT, &chat("late", json!({}))).await.status, 503);
    assert_eq!(server.get("/health").await.status, 200, "it works, it only takes nothing new");
    let reply = read_reply(&mut running).await.unwrap();
    assert_eq!(reply.chunks().len(), 31);
    server.task.await.unwrap();
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn a_stop_cuts_off_what_runs_too_long() {
    let mut options = options();
    options.listen.drain_seconds = 0;
    let mut server = start_with(options).await;
    let mut socket = server.connect().await;
    let body = chat("!hang", json!({"stream": true})).to_string();
    socket.write_all(request(server.address, CHAT, &body).as_bytes()).await.unwrap();
    let mut stuck = server.connect().await;
    let body = chat("!stuck", json!({})).to_string();
    stuck.write_all(request(server.address, CHAT, &body).as_bytes()).await.unwrap();
    server.until_live(2).await;
    let started = Instant::now();
    server.stop.take().unwrap().send(()).unwrap();
    (&mut server.task).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    let events = read_reply(&mut socket).await.unwrap().events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    let message = last["error"]["message"].as_str().unwrap();
    assert!(message.contains("the server is stopping"), "{message}");
    assert_eq!(server.service.live(), 0);
}
