//! What does a client see on the wire? A few lines of HTTP/1.1 over a real socket.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::scripted::Scripted;

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const TEXT: &str = "/v1/completions";

/// A running server, stopped when dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) service: Arc<Scripted>,
    pub(crate) control: server::ServerControl,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

pub(crate) fn options() -> server::ServerOptions {
    let mut options = server::ServerOptions::default();
    options.listen.port = 0;
    options
}

pub(crate) async fn start() -> Running {
    start_with(options()).await
}

pub(crate) async fn start_with(options: server::ServerOptions) -> Running {
    let service = Scripted::new();
    let server = server::bind(service.clone(), options).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    let (address, control) = (server.address(), server.control());
    let task = tokio::spawn(server.serve(async {
        let _ = stopped.await;
    }));
    Running { address, service, control, stop: Some(stop), task }
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (given, value) = line.split_once(':')?;
            given.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }

    pub(crate) fn param(&self) -> String {
        self.json()["error"]["param"].as_str().unwrap_or("").to_owned()
    }

    /// The `data:` values of an event stream; checks the framing.
    pub(crate) fn events(&self) -> Vec<String> {
        let text = self.text();
        assert!(text.ends_with("\n\n"), "the last event is closed");
        let blocks =
            text.trim_end_matches('\n').split("\n\n").filter(|block| !block.starts_with(':'));
        blocks.map(|block| block.strip_prefix("data: ").unwrap().to_owned()).collect()
    }

    /// The chunks of a stream that ends well.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().unwrap(), "[DONE]");
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Running {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads one reply, whatever its status.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Option<Reply> {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.ok()?;
        read_reply(&mut stream).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        let text =
            format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        self.raw(text.as_bytes()).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, &body.to_string()).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: &str) -> Reply {
        self.raw(request(self.address, path, body).as_bytes()).await.unwrap()
    }

    /// Waits until no generation is left; panics after 5 s. Gives the time it took.
    pub(crate) async fn until_idle(&self) -> Duration {
        let started = Instant::now();
        while self.service.live() > 0 {
            assert!(started.elapsed() < Duration::from_secs(5), "{} left", self.service.live());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        started.elapsed()
    }

    pub(crate) async fn until_live(&self, count: usize) {
        let started = Instant::now();
        while self.service.live() != count {
            assert!(started.elapsed() < Duration::from_secs(5), "{} live", self.service.live());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(crate) fn request(address: SocketAddr, path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads one response to its end; `None` when the connection ends before.
pub(crate) async fn read_reply(stream: &mut TcpStream) -> Option<Reply> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = find(&bytes, b"\r\n\r\n") {
            break at;
        }
        more(stream, &mut bytes).await?;
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
    let mut rest = bytes[head_end + 4..].to_vec();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut reply = Reply { status, head, body: Vec::new() };
    if reply.header("transfer-encoding") == Some("chunked") {
        loop {
            let line_end = loop {
                match find(&rest, b"\r\n") {
                    Some(at) => break at,
                    None => more(stream, &mut rest).await?,
                }
            };
            let size = std::str::from_utf8(&rest[..line_end]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            while rest.len() < line_end + 4 + size {
                more(stream, &mut rest).await?;
            }
            if size == 0 {
                return Some(reply);
            }
            reply.body.extend_from_slice(&rest[line_end + 2..line_end + 2 + size]);
            rest.drain(..line_end + 4 + size);
        }
    }
    let length: usize = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
    while rest.len() < length {
        more(stream, &mut rest).await?;
    }
    reply.body = rest;
    Some(reply)
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

async fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 16 << 10];
    let count = stream.read(&mut buffer).await.ok()?;
    bytes.extend_from_slice(&buffer[..count]);
    (count > 0).then_some(())
}
