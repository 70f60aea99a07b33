//! `pelton config`, `--set`, and a running server that is told to read its configuration again.

use serde_json::Value;

use crate::running::{Home, text};

#[test]
fn config_init_writes_a_file_that_checks_and_is_never_overwritten() {
    let home = Home::new();
    let path = home.path().join("own.yaml");
    let path = path.to_str().unwrap();
    let init = ["config", "init", "--output", path];
    assert!(home.run(&init).status.success());
    let checked = home.run(&["config", "check", path]);
    assert!(checked.status.success(), "{checked:?}");
    std::fs::write(path, "threads: 1\n").unwrap();
    let again = home.run(&init);
    assert!(!again.status.success() && text(&again.stderr).contains("--force"), "{again:?}");
    assert_eq!(std::fs::read_to_string(path).unwrap(), "threads: 1\n");
    assert!(home.run(&[&init[..], &["--force"]].concat()).status.success());
    let printed = home.run(&["config", "init", "--output", "-"]);
    assert_eq!(text(&printed.stdout), std::fs::read_to_string(path).unwrap());
}

#[test]
fn config_check_says_what_holds_and_where_it_came_from() {
    let home = Home::new();
    let path = home.path().join("own.yaml");
    std::fs::write(&path, "threads: 1\nlimits: {waiting_max: 5}\n").unwrap();
    let arguments = ["config", "check", path.to_str().unwrap(), "--json"];
    let more = ["--set", "server.port=9", "--kv-cache-mb", "64"];
    let output = home
        .command(&[&arguments[..], &more].concat())
        .env("PELTON_DEVICE", "cpu")
        .output()
        .unwrap();
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |key: &str| {
        let setting = &object["settings"][key];
        format!("{} from {}", setting["value"], setting["from"].as_str().unwrap())
    };
    assert_eq!(of("threads"), "1 from file, line 1");
    assert_eq!(of("limits.waiting_max"), "5 from file, line 2");
    assert_eq!(of("device"), "\"cpu\" from environment, PELTON_DEVICE");
    assert_eq!(of("server.port"), "9 from flag");
    assert_eq!(of("limits.kv_cache_mb"), "64 from flag");
    assert_eq!(of("prefix_cache"), "true from default");
    assert_eq!(object["without_effect"], serde_json::json!([]));
    let vain = home.run(&["config", "check", "--set", "weights.max_pinned_mb=4"]);
    assert!(vain.status.success(), "{vain:?}");
    assert!(text(&vain.stdout).contains("`weights.max_pinned_mb` has no effect"), "{vain:?}");
}

#[test]
fn config_check_names_what_is_wrong() {
    let home = Home::new();
    let path = home.path().join("own.yaml");
    for (file, named) in [
        ("limits: {wating_max: 5}\n", "`waiting_max`"),
        ("limits: {waiting_max: 0}\n", "1 to 65536"),
        ("model: {name: /nowhere/a.gguf}\n", "/nowhere/a.gguf"),
        ("device: abacus\n", "reference"),
        ("log: 'a=b=c'\n", "`log`"),
        ("kv_tiers: {disk_bytes: 1, disk_path: own.yaml/below}\n", "kv_tiers.disk_path"),
    ] {
        std::fs::write(&path, file).unwrap();
        let mut command = home.command(&["config", "check", "own.yaml"]);
        let output = command.current_dir(home.path()).output().unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{file}: {said}");
    }
    let mut command = home.command(&["config", "check"]);
    let output = command.env("PELTON_THREDS", "1").output().unwrap();
    let said = text(&output.stderr);
    assert!(!output.status.success() && said.contains("PELTON_THREADS"), "{said}");
}

#[test]
fn config_schema_prints_the_draft_and_every_section() {
    let home = Home::new();
    let output = home.run(&["config", "schema"]);
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let waiting = &schema["properties"]["limits"]["properties"]["waiting_max"];
    assert_eq!((&waiting["default"], &waiting["maximum"]), (&256.into(), &65_536.into()));
}

#[cfg(unix)]
mod signals {
    use std::process::Command;
    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;
    use crate::running::Server;

    fn hang_up(server: &Server) {
        let id = server.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    }

    /// What a page of this origin is allowed, or not.
    fn allows(server: &Server, origin: &str) -> bool {
        let url = format!("{}/models", server.url);
        let response = ureq::get(&url).header("origin", origin).call().unwrap();
        response.headers().contains_key("access-control-allow-origin")
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what} never happened");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_hangup_takes_up_what_it_can_and_drops_no_answer() {
        let home = Home::new();
        let config = home.path().join("own.yaml");
        let write = |text: &str| std::fs::write(&config, text).unwrap();
        write("sharing: {answers_max: 10}\n");
        let flags = ["--config", config.to_str().unwrap(), "--failpoints", "hang:6000@12"];
        let server = Server::start(&home, &home.tiny(), &flags);
        let second = format!("models: [{{name: second, model: {}}}]\n", home.tiny().display());
        let chat = |content: &str, tokens: u32| {
            json!({
                "model": "default", "stream": true, "temperature": 0, "max_tokens": tokens,
                "messages": [{"role": "user", "content": content}],
            })
        };
        let ended = std::thread::scope(|scope| {
            // It is in the middle of its slow step while the configuration changes.
            let running = scope.spawn(|| server.stream("/chat/completions", &chat("a", 40)));
            std::thread::sleep(Duration::from_millis(300));
            write(&format!(
                "server: {{allowed_origins: ['https://new.example']}}\nthreads: 1\n\
                 sharing: {{answers_max: 0}}\n{second}"
            ));
            hang_up(&server);
            until("the new origin", || allows(&server, "https://new.example"));
            assert!(!running.is_finished(), "the answer was to outlast the change");
            running.join().unwrap()
        });
        assert_eq!(ended.last().map(String::as_str), Some("[DONE]"));
        let said = server.said();
        assert!(
            said.contains("changed: models, server.allowed_origins, sharing.answers_max"),
            "{said}"
        );
        assert!(said.contains("hold from the next start: threads"), "{said}");
        until("the second model", || server.get("/v1/models").contains("\"second\""));
        // Nothing is remembered any more.
        let hits = || {
            let metrics = server.get("/metrics");
            let line = metrics.lines().find(|line| line.starts_with("pelton_sharing_hits_total"));
            line.unwrap().to_owned()
        };
        server.stream("/chat/completions", &chat("b", 4));
        server.stream("/chat/completions", &chat("b", 4));
        assert!(hits().ends_with(" 0"), "{}", hits());
        write(&format!("sharing: {{answers_max: 10}}\n{second}"));
        hang_up(&server);
        until("the old origins", || !allows(&server, "https://new.example"));
        until("a remembered answer", || {
            server.stream("/chat/completions", &chat("b", 4));
            // Counters are told a moment after the answer: the next one may have been counted, too.
            !hits().ends_with(" 0")
        });
    }

    #[test]
    fn a_wrong_file_changes_nothing() {
        let home = Home::new();
        let config = home.path().join("own.yaml");
        std::fs::write(&config, "server: {allowed_origins: ['https://old.example']}\n").unwrap();
        let flags = ["--config", config.to_str().unwrap()];
        let server = Server::start(&home, &home.tiny(), &flags);
        assert!(allows(&server, "https://old.example"));
        let wrong = "server: {allowed_origins: ['https://new.example']}\nlimits: {waiting: 1}\n";
        std::fs::write(&config, wrong).unwrap();
        hang_up(&server);
        until("the error", || server.said().contains("nothing was changed"));
        until("the reason", || server.said().contains("`waiting_max`"));
        assert!(allows(&server, "https://old.example"));
        assert!(!allows(&server, "https://new.example"));
        // Right, and less than it says: queues are as long as they were made.
        std::fs::write(&config, "limits: {waiting_max: 400}\n").unwrap();
        hang_up(&server);
        until("the bound", || {
            server.said().contains("limits.waiting_max is 256 until the next start")
        });
    }
}
