//! The commands that look: at this machine, at a running server, and at the program itself.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::Value;

use crate::chatting::terminal;
use crate::running::{Home, Server, text};

#[test]
fn doctor_finds_a_good_machine_good_and_says_what_is_wrong_with_a_bad_one() {
    let home = Home::new();
    let tiny = home.tiny();
    let model = ["--model", tiny.to_str().unwrap(), "--kv-cache-mb", "1"];
    let examining = [&["doctor", "--json", "--set", "server.port=0"], &model[..]].concat();
    let output = home.command(&examining).env_remove("XDG_RUNTIME_DIR").output().unwrap();
    let beside = text(&output.stderr);
    assert!(!beside.contains("XDG_RUNTIME_DIR"), "{beside}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = |told: &Value, area: &str| {
        let found = told["findings"].as_array().unwrap().iter();
        found.clone().find(|finding| finding["area"] == area).unwrap_or(&Value::Null).clone()
    };
    for area in ["pelton", "processor", "memory", "gpu", "configuration", "port", "disk", "model"] {
        assert_ne!(finding(&told, area), Value::Null, "{area}");
    }
    for area in ["configuration", "port", "model"] {
        assert_eq!(finding(&told, area)["grade"], "good", "{told}");
    }
    assert!(finding(&told, "model")["said"].as_str().unwrap().contains("tiny"));
    assert_eq!(output.status.success(), told["problems"] == 0);
    // Every finding that is not good has a remedy.
    for finding in told["findings"].as_array().unwrap() {
        assert_eq!(finding["grade"] == "good", finding["remedy"].is_null(), "{finding}");
    }

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("server.port={}", taken.local_addr().unwrap().port());
    let output = home.run(&["doctor", "--json", "--set", &port, "--model", "/nowhere/m.gguf"]);
    assert!(!output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(finding(&told, "port")["grade"], "advice");
    assert_eq!(finding(&told, "model")["grade"], "problem");
    assert!(text(&output.stderr).contains("found"), "{output:?}");

    // The library is wrong, not the model.
    let library = home.path().join("no.so");
    std::fs::write(&library, "none").unwrap();
    let allocator = format!("heap_pool.allocator={}", library.display());
    let output = home.run(&[&examining[..], &["--set", &allocator]].concat());
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = finding(&told, "model");
    assert!(found["said"].as_str().unwrap().contains("heap_pool.allocator"), "{found}");
    assert!(found["remedy"].as_str().unwrap().starts_with("change the setting"), "{found}");

    std::fs::write(home.path().join("wrong.yaml"), "prot: 1\n").unwrap();
    let file = home.path().join("wrong.yaml");
    let arguments = ["doctor", "--config", file.to_str().unwrap(), "--set", "server.port=0"];
    let output = home.run(&arguments);
    let said = text(&output.stdout);
    assert!(said.contains("FAIL  configuration") && said.contains("prot"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
}

#[test]
fn ps_and_top_tell_what_a_server_does() {
    let home = Home::new();
    let tiny = home.tiny();
    let server = Server::start(&home, &tiny, &[]);
    let body = serde_json::json!({"prompt": "a", "max_tokens": 5, "stream": true});
    assert!(!server.stream("/completions", &body).is_empty());
    let listed = home.run(&["ps", "--json", "--url", &server.url]);
    let models: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&models[0]["id"], &models[0]["state"]), (&"tiny".into(), &"ready".into()));
    let table = text(&home.run(&["ps", "--url", &server.url]).stdout);
    assert!(table.starts_with("MODEL") && table.contains("ready"), "{table}");
    let arguments = ["top", "--json", "--count", "2", "--interval", "0.1", "--url", &server.url];
    let looks = text(&home.run(&arguments).stdout);
    let looks: Vec<Value> = looks.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(looks.len(), 2);
    assert_eq!(looks[1]["ready"], true);
    assert_eq!(looks[1]["models"][0]["id"], "tiny");
    assert_eq!(looks[1]["generated_tokens_per_second"], 0.0);
}

/// `own` is what `openssl req -x509` makes unasked: its own authority, for no address; `issued` is
/// by `authority`, for this machine.
#[test]
fn encrypted_servers_are_known_by_their_certificates_or_who_issued_them() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/program/tls");
    let home = Home::new();
    for (served, trusted, stranger) in [("own", "own", "issued"), ("issued", "authority", "own")] {
        let certificate = format!("server.tls_certificate_file={folder}/{served}.cert.pem");
        let key = format!("server.tls_key_file={folder}/{served}.key.pem");
        let server = Server::start(&home, &home.tiny(), &["--set", &certificate, "--set", &key]);
        assert!(server.url.starts_with("https://"), "{}", server.url);
        let ask = |trusted: &str| {
            let file = format!("{folder}/{trusted}.cert.pem");
            home.run(&["ps", "--url", &server.url, "--ca-file", &file])
        };
        for known in [served, trusted] {
            let output = ask(known);
            assert!(text(&output.stdout).contains("ready"), "{known}: {output:?}");
        }
        for output in [ask(stranger), home.run(&["ps", "--url", &server.url])] {
            assert!(!output.status.success(), "{served}: {output:?}");
            assert!(text(&output.stderr).contains("--ca-file"), "{output:?}");
        }
    }
    let no_pem = home.tiny();
    let output =
        home.run(&["ps", "--url", "https://127.0.0.1:1", "--ca-file", no_pem.to_str().unwrap()]);
    assert!(text(&output.stderr).contains("no certificate in"), "{output:?}");
}

#[test]
fn a_server_that_is_not_there_is_told_with_a_hint() {
    let home = Home::new();
    // A port that was free a moment ago, and that nobody else asks for by chance.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for command in ["ps", "top"] {
        let output = home.run(&[command, "--url", &free.to_string()]);
        assert!(!output.status.success());
        let said = text(&output.stderr);
        assert!(said.contains("pelton serve") && said.contains("--url"), "{said}");
    }
}

#[test]
fn top_draws_on_a_terminal_until_q_and_gives_it_back() {
    check_terminal(|keyboard, _| keyboard.write_all(b"q").unwrap());
}

#[test]
fn top_gives_the_terminal_back_when_it_is_ordered_to_end() {
    check_terminal(|_, child| {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    });
}

/// `end` ends the program while it draws.
fn check_terminal(end: fn(&mut File, &Child)) {
    let home = Home::new();
    let server = Server::start(&home, &home.tiny(), &[]);
    let (mut keyboard, theirs) = terminal();
    let before = rustix::termios::tcgetattr(&theirs).unwrap();
    let mut command = home.command(&["top", "--interval", "0.1", "--url", &server.url]);
    let twin = |end: &OwnedFd| Stdio::from(end.try_clone().unwrap());
    command.env("TERM", "xterm").env_remove("NO_COLOR");
    command.stdin(twin(&theirs)).stdout(twin(&theirs)).stderr(twin(&theirs));
    let mut child = command.spawn().unwrap();
    let heard = listen(keyboard.try_clone().unwrap());
    let screen = until(&heard, "q ends");
    assert!(screen.contains("\x1b[?1049h"), "the other screen is taken: {screen:?}");
    assert!(screen.contains("\x1b[32m\u{25cf} ready\x1b[0m"), "in color: {screen:?}");
    end(&mut keyboard, &child);
    let end = until(&heard, "\x1b[?1049l");
    assert!(end.contains("\x1b[?25h"), "the cursor is shown again: {end:?}");
    assert!(child.wait().unwrap().success());
    let after = rustix::termios::tcgetattr(&theirs).unwrap();
    assert_eq!(before.local_modes, after.local_modes);
}

/// What comes from a terminal, as it comes.
fn listen(mut terminal: File) -> Receiver<Vec<u8>> {
    let (tell, heard) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = terminal.read(&mut bytes) {
            if tell.send(bytes[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    heard
}

/// Waits until `wanted` stands on the terminal; gives all that came until then.
fn until(heard: &Receiver<Vec<u8>>, wanted: &str) -> String {
    let mut seen = Vec::new();
    loop {
        let said = String::from_utf8_lossy(&seen);
        if said.contains(wanted) {
            return said.into_owned();
        }
        let Ok(bytes) = heard.recv_timeout(Duration::from_secs(120)) else {
            panic!("{wanted:?} never came after {said:?}");
        };
        seen.extend(bytes);
    }
}

#[test]
fn shells_and_manuals_know_every_command() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = text(&home.run(&["completions", shell]).stdout);
        assert!(script.contains("doctor") && script.contains("kv-cache-mb"), "{shell}");
        assert!(!script.contains("TemplateWorker"), "{shell}");
    }
    let folder = home.path().join("man");
    let output = home.run(&["man", "--output", folder.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    for page in ["pelton.1", "pelton-serve.1", "pelton-doctor.1", "pelton-config-check.1"] {
        let page = std::fs::read_to_string(folder.join(page)).unwrap();
        assert!(page.contains(".SH NAME"), "{page}");
    }
    assert!(text(&home.run(&["man"]).stdout).contains(".TH pelton 1"));
}
