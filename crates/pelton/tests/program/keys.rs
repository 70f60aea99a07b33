//! `pelton keys`, and a server that asks for them.

use serde_json::Value;

use crate::running::{Home, Server, text};

/// The status of a request with this key.
fn status(server: &Server, key: &str) -> u16 {
    let url = format!("{}/models", server.url);
    let request = ureq::get(&url).header("authorization", format!("Bearer {key}"));
    let answered = request.config().http_status_as_error(false).build().call();
    answered.unwrap().status().as_u16()
}

#[test]
fn a_key_is_shown_once_stored_hashed_and_asked_for() {
    let home = Home::new();
    let file = home.path().join("keys.yaml");
    let file = file.to_str().unwrap();
    let add = |name: &str, more: &[&str]| {
        home.run(&[&["keys", "add", name, "--file", file], more].concat())
    };
    let made = add("alice", &["--tokens-per-day", "1000", "--priority", "high"]);
    assert!(made.status.success(), "{made:?}");
    let key = text(&made.stdout).trim().to_owned();
    assert!(key.starts_with("sk-pelton-") && key.len() == 74, "{key}");
    let stored = std::fs::read_to_string(file).unwrap();
    assert!(!stored.contains(&key[10..]) && stored.contains("tokens_per_day: 1000"), "{stored}");
    assert!(!add("alice", &[]).status.success(), "a name is there once");
    let set = format!("access.keys_file={file}");
    let listed = home.run(&["keys", "list", "--json", "--set", &set]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["priority"]), (&"alice".into(), &"high".into()));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let printed = text(&home.run(&["keys", "add", "bob"]).stdout);
    assert!(printed.contains("- name: bob\n  sha256: \""), "{printed}");

    let server = Server::start(&home, &home.tiny(), &["--set", &set]);
    assert_eq!((status(&server, &key), status(&server, "sk-pelton-0")), (200, 401));
    let second = text(&add("bob", &[]).stdout).trim().to_owned();
    assert_eq!(status(&server, &second), 401);
    #[cfg(unix)]
    {
        let id = server.child.id().to_string();
        let signal = std::process::Command::new("kill").args(["-HUP", &id]).status();
        assert!(signal.unwrap().success());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while status(&server, &second) != 200 {
            assert!(std::time::Instant::now() < deadline, "{}", server.said());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(status(&server, &key), 200);
    }
    assert!(!server.said().contains(&key), "{}", server.said());
}

const CERTIFICATE: &str = include_str!("../../../server/tests/suite/tls/first.cert.pem");
const SECRET: &str = include_str!("../../../server/tests/suite/tls/first.key.pem");

#[test]
fn commands_that_look_show_a_key_and_know_a_certificate() {
    let home = Home::new();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (certificate, secret, keys) = (path("cert.pem"), path("key.pem"), path("keys.yaml"));
    std::fs::write(&certificate, CERTIFICATE).unwrap();
    std::fs::write(&secret, SECRET).unwrap();
    let key = text(&home.run(&["keys", "add", "alice", "--file", &keys]).stdout);
    let key = key.trim();
    let sets = [
        format!("access.keys_file={keys}"),
        format!("server.tls_certificate_file={certificate}"),
        format!("server.tls_key_file={secret}"),
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set.as_str()]).collect();
    let server = Server::start(&home, &home.tiny(), &sets);
    assert!(server.url.starts_with("https://"), "{}", server.url);
    let look = |command: &[&str], more: &[&str]| {
        home.run(&[command, &["--json", "--url", &server.url], more].concat())
    };
    for command in [&["ps"][..], &["top", "--count", "1", "--interval", "0.1"]] {
        let seen = look(command, &["--ca-file", &certificate, "--key", key]);
        assert!(seen.status.success(), "{command:?}: {seen:?}");
        let told: Value = serde_json::from_slice(&seen.stdout).unwrap();
        assert!(told.is_array() || told.is_object(), "{told}");
        for (more, hint) in [
            (&["--ca-file", certificate.as_str()][..], "asks for an API key"),
            (&["--ca-file", certificate.as_str(), "--key", "sk-pelton-0"], "asks for an API key"),
            (&["--key", key], "--ca-file"),
            (&["--ca-file", secret.as_str(), "--key", key], "no certificate"),
        ] {
            let refused = look(command, more);
            assert!(!refused.status.success(), "{command:?} {more:?}");
            assert!(text(&refused.stderr).contains(hint), "{more:?}: {refused:?}");
        }
    }
}
