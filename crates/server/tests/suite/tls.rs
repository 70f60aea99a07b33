//! Does the server speak TLS as a client of another make does?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncReadExt;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::answers::chat;
use crate::client::{CHAT, Running, options, start_with};

/// Made for these tests by `openssl req -x509 -newkey ec -days 36500`; of no use elsewhere.
const FIRST: [&str; 2] = [include_str!("tls/first.cert.pem"), include_str!("tls/first.key.pem")];
const SECOND: [&str; 2] = [include_str!("tls/second.cert.pem"), include_str!("tls/second.key.pem")];

fn write(folder: &Path, [certificate, key]: [&str; 2]) {
    std::fs::write(folder.join("cert.pem"), certificate).unwrap();
    std::fs::write(folder.join("key.pem"), key).unwrap();
}

fn encrypted(folder: &Path) -> server::ServerOptions {
    let mut options = options();
    let path = |name: &str| Some(folder.join(name).to_str().unwrap().to_owned());
    options.listen.tls_certificate_file = path("cert.pem");
    options.listen.tls_key_file = path("key.pem");
    options
}

/// What a client that trusts one certificate only gets to hear.
async fn ask(server: &Running, trusted: &str) -> Result<String, ureq::Error> {
    let roots = RootCerts::new_with_certs(&[Certificate::from_pem(trusted.as_bytes()).unwrap()]);
    let url = format!("https://{}{CHAT}", server.address);
    let asked = tokio::task::spawn_blocking(move || {
        let tls = TlsConfig::builder().root_certs(roots).build();
        let agent: ureq::Agent = ureq::Agent::config_builder().tls_config(tls).build().into();
        let body = chat("a", json!({"stream": true})).to_string();
        let sent = agent.post(&url).content_type("application/json").send(body);
        sent?.body_mut().read_to_string()
    });
    asked.await.unwrap()
}

#[tokio::test]
async fn answers_are_encrypted_and_certificates_change_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), FIRST);
    let options = encrypted(folder.path());
    let server = start_with(options.clone()).await;
    let answer = ask(&server, FIRST[0]).await.unwrap();
    assert!(answer.trim_end().ends_with("data: [DONE]"), "{answer}");
    assert!(ask(&server, SECOND[0]).await.is_err());

    write(folder.path(), SECOND);
    server.control.take_up(&options.listen, &options.access);
    ask(&server, SECOND[0]).await.unwrap();
    assert!(ask(&server, FIRST[0]).await.is_err());

    // A key of another certificate changes nothing.
    write(folder.path(), [SECOND[0], FIRST[1]]);
    server.control.take_up(&options.listen, &options.access);
    ask(&server, SECOND[0]).await.unwrap();
}

#[tokio::test]
async fn who_speaks_no_tls_or_nothing_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), FIRST);
    let mut options = encrypted(folder.path());
    options.patience.head = Duration::from_millis(200);
    let server = start_with(options).await;
    let text = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    assert!(server.raw(text).await.is_none(), "nothing is said in the clear");
    let mut socket = server.connect().await;
    // The beginning of a hello that never ends.
    tokio::io::AsyncWriteExt::write_all(&mut socket, &[22, 3, 1, 2, 0, 1]).await.unwrap();
    let started = Instant::now();
    let mut said = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), socket.read_to_end(&mut said));
    // However it ends.
    let _ = ended.await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(190), "it had its time");
    ask(&server, FIRST[0]).await.unwrap();
}

#[tokio::test]
async fn who_is_one_too_many_hears_so_in_tls() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), FIRST);
    let mut options = encrypted(folder.path());
    options.listen.connections_max = 1;
    options.patience.head = Duration::from_secs(600);
    let server = start_with(options).await;
    let _first = server.connect().await;
    let mut second = server.connect().await;
    let mut said = Vec::new();
    second.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, [21, 3, 3, 0, 2, 2, 80], "an alert");
}

#[tokio::test]
async fn files_that_are_not_right_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = async || {
        let options = encrypted(folder.path());
        let service = crate::scripted::Scripted::new();
        server::bind(service, options).await.err().unwrap().to_string()
    };
    assert!(error().await.contains("cert.pem"));
    write(folder.path(), ["", FIRST[1]]);
    assert!(error().await.contains("no certificate"));
    write(folder.path(), [FIRST[0], "no key"]);
    assert!(error().await.contains("key.pem"));
    write(folder.path(), [SECOND[0], FIRST[1]]);
    assert!(error().await.contains("cert.pem"));
}
