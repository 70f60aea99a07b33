//! Does a pull survive what networks and hubs do, and does it never believe wrong bytes?

#![allow(clippy::unwrap_used, reason = "tests")]

mod loopback_server;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use hub::{Event, HubError, Origin, Settings, Store};
use loopback_server::{Reply, Request, Server};
use sha2::{Digest, Sha256};

const ASKED: &str = "org/name/m.gguf";
const ETAG: &str = "\"v1\"";

/// 1 MB that no shift or repetition reproduces.
fn content() -> Vec<u8> {
    (0..250_000_u32).flat_map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn settings(root: &Path, endpoint: &str) -> Settings {
    Settings {
        root: root.to_owned(),
        offline: false,
        hub_endpoint: endpoint.to_owned(),
        hub_token: None,
        hub_cache: None,
        pip_commands: Vec::new(),
    }
}

/// A well-behaved server of `content()`, ranges and checksum included.
fn serve(request: &Request) -> Reply {
    let body = content();
    let sum = format!("\"{}\"", sha256_hex(&body));
    let described = |reply: Reply| reply.with("ETag", ETAG).with("X-Linked-Etag", &sum);
    match request.range_start() {
        Some(start) if request.header("if-range").is_none_or(|etag| etag == ETAG) => {
            let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
            described(Reply::new(206, &body[start..])).with("Content-Range", &range)
        }
        _ => described(Reply::new(200, &body)),
    }
}

fn pull(root: &Path, endpoint: &str) -> Result<hub::Pulled, HubError> {
    Store::with_settings(settings(root, endpoint)).pull(ASKED, &mut |_: Event<'_>| {})
}

/// Every file below `root` that is not a lock.
fn files(root: &Path) -> Vec<String> {
    let folder = root.join("models/org/name");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.ends_with(".lock")).collect();
    names.sort();
    names
}

#[test]
fn a_pull_brings_the_whole_file_and_the_second_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(serve);
    let store = Store::with_settings(settings(folder.path(), &server.address));
    assert!(matches!(store.resolve(ASKED), Err(HubError::NotPulled { .. })));

    let mut last = (0, None);
    let mut events = Vec::new();
    let pulled = store
        .pull(ASKED, &mut |event: Event<'_>| match event {
            Event::Bytes { done_bytes, total_bytes } => last = (done_bytes, total_bytes),
            Event::Source { place, .. } => events.push(place.to_owned()),
            Event::Verifying => events.push("verifying".to_owned()),
            Event::Done { .. } => events.push("done".to_owned()),
            Event::WaitingForOther | Event::FellThrough { .. } => panic!("{event:?}"),
        })
        .unwrap();
    assert_eq!(last, (1_000_000, Some(1_000_000)));
    assert_eq!(events, ["hub org/name/m.gguf", "verifying", "done"]);
    assert_eq!(fs::read(&pulled.resolved.path).unwrap(), content());
    assert_eq!(files(folder.path()), ["m.gguf"]);
    assert_eq!(server.requests()[0].path, "/org/name/resolve/main/m.gguf");

    assert_eq!(store.pull(ASKED, &mut |_: Event<'_>| {}).unwrap().brought_from, None);
    assert_eq!(server.requests().len(), 1);
    let listed = store.list().unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].bytes), (ASKED, 1_000_000));
    assert_eq!(store.remove(ASKED).unwrap(), 1_000_000);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|request| {
        let cut = if request.range_start().is_none() { Some(300_000) } else { None };
        Reply { cut_after: cut, ..serve(request) }
    });
    let pulled = pull(folder.path(), &server.address).unwrap();
    assert_eq!(fs::read(pulled.resolved.path).unwrap(), content());
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].range_start(), Some(300_000));
    assert_eq!(requests[1].header("if-range"), Some(ETAG));
}

#[test]
fn a_pull_that_died_leaves_bytes_the_next_one_uses() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models/org/name");
    fs::create_dir_all(&models).unwrap();
    fs::write(models.join("m.gguf.partial"), &content()[..700_000]).unwrap();
    fs::write(models.join("m.gguf.partial.etag"), ETAG).unwrap();
    let server = Server::start(serve);
    let pulled = pull(folder.path(), &server.address).unwrap();
    assert_eq!(fs::read(pulled.resolved.path).unwrap(), content());
    assert_eq!(server.requests()[0].range_start(), Some(700_000));
    assert_eq!(files(folder.path()), ["m.gguf"]);
}

#[test]
fn a_new_version_on_the_server_starts_over() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models/org/name");
    fs::create_dir_all(&models).unwrap();
    fs::write(models.join("m.gguf.partial"), b"bytes of the version before").unwrap();
    fs::write(models.join("m.gguf.partial.etag"), "\"v0\"").unwrap();
    let server = Server::start(serve);
    let pulled = pull(folder.path(), &server.address).unwrap();
    assert_eq!(fs::read(pulled.resolved.path).unwrap(), content());
}

#[test]
fn a_server_that_ignores_ranges_still_gives_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models/org/name");
    fs::create_dir_all(&models).unwrap();
    fs::write(models.join("m.gguf.partial"), &content()[..700_000]).unwrap();
    fs::write(models.join("m.gguf.partial.etag"), ETAG).unwrap();
    let server = Server::start(|_| Reply::new(200, &content()));
    let pulled = pull(folder.path(), &server.address).unwrap();
    assert_eq!(fs::read(pulled.resolved.path).unwrap(), content());
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn wrong_bytes_never_get_the_final_name() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|request| {
        let mut reply = serve(request);
        reply.body[123_456] ^= 1;
        reply
    });
    let error = pull(folder.path(), &server.address).unwrap_err().to_string();
    assert!(error.contains("sha256") && error.contains(&sha256_hex(&content())), "{error}");
    assert_eq!(files(folder.path()), [""; 0]);
}

#[test]
fn a_redirect_elsewhere_loses_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let store_of_bytes = Server::start(serve);
    let target = format!("{}/blob", store_of_bytes.address);
    let hub = Server::start(move |request| match request.path.as_str() {
        "/moved" => Reply::new(302, b"").with("Location", &target),
        _ => Reply::new(307, b"").with("Location", "/moved"),
    });
    let mut settings = settings(folder.path(), &hub.address);
    settings.hub_token = Some("secret".to_owned());
    let pulled = Store::with_settings(settings).pull(ASKED, &mut |_: Event<'_>| {}).unwrap();
    assert_eq!(fs::read(pulled.resolved.path).unwrap(), content());
    let at_hub = hub.requests();
    assert_eq!(at_hub.len(), 2);
    assert!(at_hub.iter().all(|seen| seen.header("authorization") == Some("Bearer secret")));
    assert_eq!(store_of_bytes.requests().len(), 1);
    assert_eq!(store_of_bytes.requests()[0].header("authorization"), None);
}

#[test]
fn a_repository_without_a_tag_gives_its_usual_file() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|request| match request.path.as_str() {
        "/api/models/org/name/tree/main?recursive=true" => {
            let (sum, bytes) = (sha256_hex(&content()), content().len());
            let file = |path: &str| {
                let lfs = format!(r#"{{"oid":"{sum}","size":{bytes}}}"#);
                format!(r#"{{"type":"file","path":"{path}","size":{bytes},"lfs":{lfs}}}"#)
            };
            let listed = ["m-Q2_K.gguf", "m-Q4_K_M.gguf", "../x-Q8_0.gguf"].map(file).join(",");
            Reply::new(200, format!("[{listed}]").as_bytes())
        }
        _ => serve(request),
    });
    let store = Store::with_settings(settings(folder.path(), &server.address));
    let silent = &mut |_: Event<'_>| {};
    let pulled = store.pull("org/name", silent).unwrap();
    assert_eq!(pulled.resolved.name, "org/name/m-Q4_K_M.gguf");
    assert_eq!(store.resolve("org/name").unwrap(), pulled.resolved);
    let error = store.pull("org/name:Q6_K", silent).unwrap_err().to_string();
    assert!(error.contains("m-Q2_K.gguf, m-Q4_K_M.gguf"), "{error}");
    // A listing that points outside the folder is refused before any byte is asked for.
    assert!(matches!(store.pull("org/name:Q8_0", silent), Err(HubError::InvalidName { .. })));
}

#[test]
fn two_pulls_at_once_bring_the_file_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|request| {
        std::thread::sleep(Duration::from_millis(200));
        serve(request)
    });
    std::thread::scope(|scope| {
        let start = || scope.spawn(|| pull(folder.path(), &server.address).unwrap());
        let pulls = [start(), start(), start()];
        let brought = pulls.map(|pull| pull.join().unwrap().brought_from.is_some());
        assert_eq!(brought.iter().filter(|brought| **brought).count(), 1);
    });
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_hub_out_of_reach_costs_less_than_a_second() {
    let folder = tempfile::tempdir().unwrap();
    // Port 9 of this machine refuses; `.invalid` never resolves (RFC 6761).
    for endpoint in ["http://127.0.0.1:9", "https://no-such-hub.invalid"] {
        let started = Instant::now();
        let mut fell = Vec::new();
        let error = Store::with_settings(settings(folder.path(), endpoint))
            .pull("default", &mut |event: Event<'_>| {
                if let Event::FellThrough { place, .. } = event {
                    fell.push(place.to_owned());
                }
            })
            .unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(fell.len(), 2, "{fell:?}");
        let text = error.to_string();
        assert!(text.contains("cannot be reached") && text.contains("no pip"), "{text}");
    }
}

#[test]
fn offline_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(serve);
    let settings = Settings { offline: true, ..settings(folder.path(), &server.address) };
    let store = Store::with_settings(settings);
    for asked in [ASKED, "org/name", "default"] {
        let error = store.pull(asked, &mut |_: Event<'_>| {}).unwrap_err();
        assert!(matches!(error, HubError::Offline { .. }), "{error}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn files_that_are_here_already_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("hf");
    let snapshot = cache.join("models--org--name/snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("m.gguf"), b"GGUF").unwrap();
    let by_hand = folder.path().join("models");
    fs::create_dir_all(&by_hand).unwrap();
    fs::write(by_hand.join("mine.gguf"), b"GGUF").unwrap();
    let mut settings = settings(folder.path(), "http://127.0.0.1:9");
    settings.hub_cache = Some(cache);
    let store = Store::with_settings(settings);

    assert_eq!(store.resolve(ASKED).unwrap().origin, Origin::HubCache);
    assert_eq!(store.resolve("org/name").unwrap().origin, Origin::HubCache);
    assert!(matches!(store.remove(ASKED), Err(HubError::NotOurs { .. })));
    assert_eq!(store.resolve("mine").unwrap().path, by_hand.join("mine.gguf"));
    let path = by_hand.join("mine.gguf");
    assert_eq!(store.resolve(path.to_str().unwrap()).unwrap().origin, Origin::Path);
    let error = store.resolve("min").unwrap_err().to_string();
    assert!(error.contains("did you mean `mine`") && error.contains("smollm2"), "{error}");
    assert!(matches!(store.resolve("./no.gguf"), Err(HubError::NoSuchFile { .. })));

    let published = folder.path().join("published");
    fs::create_dir(&published).unwrap();
    fs::write(published.join("config.json"), b"{}").unwrap();
    let asked = published.to_str().unwrap();
    assert!(matches!(store.resolve(asked), Err(HubError::NotAModelFolder { .. })), "no weights");
    fs::write(published.join("a.safetensors"), b"123").unwrap();
    fs::write(published.join("b.safetensors"), b"45").unwrap();
    let found = store.resolve(asked).unwrap();
    assert_eq!((found.path, found.name.as_str(), found.bytes), (published, "published", 5));
    assert_eq!(found.origin, Origin::Path);
}
