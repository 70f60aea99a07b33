//! The server as its clients and its operator see it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::tiny_model::CHAT_TEMPLATE;

use crate::running::{Home, Server};

/// The default model where it is here, else the tiny one: the promise is the same.
fn model(home: &Home) -> PathBuf {
    testkit::default_model().unwrap_or_else(|| {
        eprintln!("the default model is not here; using a tiny one");
        home.tiny()
    })
}

fn chat(index: usize, tokens: u32) -> Value {
    let subjects = ["the sea", "a clock", "bread", "the number seven", "rain", "a fox"];
    let question = format!("Tell me about {} ({index}).", subjects[index % subjects.len()]);
    json!({
        "model": "default", "stream": true, "temperature": 0, "max_tokens": tokens,
        "messages": [{"role": "user", "content": question}],
    })
}

/// The text of a streamed chat, which must have ended properly.
fn text_of(events: &[String]) -> String {
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
    let mut text = String::new();
    let mut finished = false;
    for event in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(event).unwrap();
        let choice = &chunk["choices"][0];
        text.push_str(choice["delta"]["content"].as_str().unwrap_or(""));
        finished |= choice["finish_reason"].is_string();
    }
    assert!(finished, "{events:?}");
    text
}

#[test]
fn concurrent_chats_equal_the_same_chats_alone() {
    let home = Home::new();
    // Each is to be computed, also those that were computed alone before.
    let server = Server::start(&home, &model(&home), &["--no-sharing"]);
    let ask = |index| text_of(&server.stream("/chat/completions", &chat(index, 24)));
    let alone: Vec<String> = (0..32).map(ask).collect();
    assert!(alone.iter().all(|text| !text.is_empty()));
    let together: Vec<String> = std::thread::scope(|scope| {
        let streams: Vec<_> = (0..32).map(|index| scope.spawn(move || ask(index))).collect();
        streams.into_iter().map(|stream| stream.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn a_client_that_goes_away_frees_its_sequence() {
    let home = Home::new();
    let server = Server::start(&home, &home.tiny(), &["--failpoints", "hang:300@20"]);
    let body = chat(0, 200).to_string();
    let address = server.url.trim_start_matches("http://").trim_end_matches("/v1");
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    // The first tokens are out and the slow step is running.
    stream.read_exact(&mut [0; 400]).unwrap();
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let metrics = server.get("/metrics");
        let cancelled = metrics.lines().any(|line| {
            line.starts_with("pelton_requests_cancelled_total") && line.ends_with(" 1")
        });
        let idle = metrics.lines().any(|line| {
            line.starts_with("vllm:num_requests_running") && line.trim_end().ends_with(" 0")
        });
        if cancelled && idle {
            return;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until an answer is being generated.
#[cfg(unix)]
fn until_running(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_running = |line: &str| {
        line.starts_with("vllm:num_requests_running") && line.trim_end().ends_with(" 1")
    };
    while !server.get("/metrics").lines().any(is_running) {
        assert!(Instant::now() < deadline, "the request never ran");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn sigterm_lets_running_answers_finish() {
    let home = Home::new();
    let mut server = Server::start(&home, &home.tiny(), &["--failpoints", "hang:2000@5"]);
    let url = server.url.clone();
    let id = server.child.id().to_string();
    let streamed = std::thread::scope(|scope| {
        let stream = scope.spawn(|| server.stream("/chat/completions", &chat(1, 50)));
        until_running(&server);
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(200));
        assert!(ureq::get(&format!("{url}/models")).call().is_err(), "no new connections");
        stream.join().unwrap()
    });
    assert!(!text_of(&streamed).is_empty());
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn a_conversation_reads_only_its_new_turn() {
    let Some(model) = testkit::default_model() else {
        eprintln!("skipped: a tiny model has no room for ten turns");
        return;
    };
    let home = Home::new();
    let server = Server::start(&home, &model, &["--threads", "2"]);
    let mut messages = vec![json!({"role": "system", "content": "Answer in a few words."})];
    let (mut read_before, mut answers) = (0, 0);
    for turn in 0..10 {
        messages.push(json!({"role": "user", "content": format!("Say {turn} again.")}));
        let body = json!({
            "model": "default", "stream": true, "temperature": 0, "max_tokens": 6,
            "messages": messages, "stream_options": {"include_usage": true},
        });
        let events = server.stream("/chat/completions", &body);
        let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
        let number = |path: &str| usage.pointer(path).and_then(Value::as_u64).unwrap();
        let read = number("/usage/prompt_tokens");
        let cached = number("/usage/prompt_tokens_details/cached_tokens");
        // What was computed in the last turn is cached, but for a part of a block of 32 tokens and
        // the markup that only the template writes after an answer.
        if turn > 0 {
            assert!(cached + 32 + 6 > read_before, "turn {turn}: {cached} of {read_before} before");
        }
        read_before = read;
        let is_text = |event: &String| !event.contains("prompt_tokens");
        let text = text_of(&events.into_iter().filter(is_text).collect::<Vec<_>>());
        answers += text.len();
        messages.push(json!({"role": "assistant", "content": text}));
    }
    assert!(answers > 0, "the answers are part of the prompts");
    let metrics = server.get("/metrics");
    assert!(metrics.contains("vllm:prefix_cache_hits_total"), "{metrics}");
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let url = format!("{}{path}", server.url.trim_end_matches("/v1"));
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let mut response =
        agent.post(&url).content_type("application/json").send(body.to_string()).unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), serde_json::from_str(&text).unwrap())
}

fn state_of(server: &Server, name: &str) -> Value {
    serde_json::from_str(&server.get(&format!("/v1/models/{name}"))).unwrap()
}

#[test]
fn several_models_are_loaded_on_demand_and_unloaded_by_order() {
    let home = Home::new();
    let stored = home.path().join("models");
    std::fs::create_dir_all(&stored).unwrap();
    for path in [stored.join("found.gguf"), home.path().join("second.gguf")] {
        std::fs::copy(home.tiny(), path).unwrap();
    }
    let second = format!("b={}", home.path().join("second.gguf").display());
    let tiny = home.tiny();
    let server = Server::start_with(&home, &[tiny.to_str().unwrap(), &second]);
    assert_eq!(state_of(&server, "tiny")["state"], "ready");
    let planned = state_of(&server, "b");
    assert_eq!((&planned["state"], &planned["memory"]["used"]), (&json!("unloaded"), &Value::Null));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !server.get("/v1/models").contains("\"found\"") {
        assert!(Instant::now() < deadline, "the store's model never appeared");
        std::thread::sleep(Duration::from_millis(20));
    }
    for name in ["b", "found"] {
        let mut body = chat(1, 5);
        body["model"] = json!(name);
        assert!(!text_of(&server.stream("/chat/completions", &body)).is_empty());
        let model = state_of(&server, name);
        assert_eq!(model["state"], "ready");
        assert_eq!(model["memory"]["used"]["total"], model["memory"]["estimate"]["total"]);
    }
    let (status, unloaded) = post(&server, "/models/unload", &json!({"model": "b"}));
    assert_eq!((status, &unloaded["state"]), (200, &json!("unloaded")), "{unloaded}");
    let (status, loaded) = post(&server, "/models/load", &json!({"model": "b"}));
    assert_eq!((status, &loaded["state"]), (200, &json!("ready")), "{loaded}");
    assert!(server.get("/metrics").contains("pelton_model_loads_total{model=\"b\"} 2"));
    assert_eq!(post(&server, "/models/load", &json!({"model": "c"})).0, 404);
}

#[test]
fn what_is_to_be_preloaded_is_there_when_the_port_opens() {
    let home = Home::new();
    let config = home.path().join("own.yaml");
    let tiny = home.tiny();
    let (tiny, config_path) = (tiny.to_str().unwrap(), config.to_str().unwrap());
    let named =
        |name: &str, preload: bool| format!("{{name: {name}, model: {tiny}, preload: {preload}}}");
    let models = format!("models: [{}, {}]\n", named("early", true), named("late", false));
    std::fs::write(&config, models).unwrap();
    let server = Server::start_with(&home, &[tiny, "--config", config_path]);
    let states = ["early", "late"].map(|name| state_of(&server, name)["state"].clone());
    assert_eq!(states, [json!("ready"), json!("unloaded")]);
    assert!(server.get("/metrics").contains("pelton_model_loads_total{model=\"early\"} 1"));
}

/// A server whose drain is short, with an answer that would take long.
#[cfg(unix)]
fn slow_server(home: &Home, drain_seconds: u32, hang_ms: u32) -> Server {
    let config = home.path().join("short.yaml");
    std::fs::write(&config, format!("server: {{drain_seconds: {drain_seconds}}}\n")).unwrap();
    let hangs: Vec<String> = (5..200).map(|step| format!("hang:{hang_ms}@{step}")).collect();
    let (tiny, plan) = (home.tiny(), hangs.join(","));
    Server::start_with(
        home,
        &[tiny.to_str().unwrap(), "--config", config.to_str().unwrap(), "--failpoints", &plan],
    )
}

#[cfg(unix)]
#[test]
fn what_outlasts_the_drain_ends_with_an_error() {
    let home = Home::new();
    let mut server = slow_server(&home, 1, 300);
    let id = server.child.id().to_string();
    let url = server.url.trim_end_matches("/v1").to_owned();
    let started = Instant::now();
    let events = std::thread::scope(|scope| {
        let stream = scope.spawn(|| server.stream("/chat/completions", &chat(1, 190)));
        until_running(&server);
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(200));
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let ready = agent.get(&format!("{url}/health/ready")).call().unwrap();
        assert_eq!(ready.status().as_u16(), 503);
        stream.join().unwrap()
    });
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    let message = last["error"]["message"].as_str().unwrap();
    assert!(message.contains("the server is stopping"), "{message}");
    assert!(server.child.wait().unwrap().success());
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// The files of a folder whose names end so.
#[cfg(unix)]
fn files(folder: &std::path::Path, end: &str) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    inside.filter(|path| path.to_str().unwrap().ends_with(end)).collect()
}

/// A disk that takes nothing: a pipe that nobody reads, where a block is to be written.
#[cfg(unix)]
#[test]
fn what_a_disk_did_not_take_at_the_end_is_said() {
    let home = Home::new();
    let (tiers, answers) = (home.path().join("tiers"), home.path().join("answers"));
    let config = home.path().join("tiers.yaml");
    let text = format!(
        "server: {{drain_seconds: 1}}\nkv_tiers: {{disk_bytes: 100000000, disk_path: {}}}\n\
         sharing: {{folder: {}}}\n",
        tiers.display(),
        answers.display()
    );
    std::fs::write(&config, text).unwrap();
    let (tiny, config) = (home.tiny(), config.display().to_string());
    let start = || Server::start_with(&home, &[tiny.to_str().unwrap(), "--config", &config]);
    let stop = |mut server: Server| {
        let id = server.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert!(server.child.wait().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !server.said().contains("stopped") {
            assert!(Instant::now() < deadline, "it never says so: {}", server.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        server.said()
    };
    let server = start();
    let expected = text_of(&server.stream("/chat/completions", &chat(1, 100)));
    let is_folder = |path: &PathBuf| path.is_dir();
    let own = files(&tiers, "").into_iter().find(is_folder).unwrap();
    let pipe = own.join("unfinished");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let said = stop(server);
    let why = "stopped; the disk was too slow: after 6 s ";
    assert!(said.contains(why) && said.contains(" blocks of kv_tiers were not written"), "{said}");
    assert!(files(&own, ".block").is_empty(), "what is not whole does not count");
    assert_eq!(files(&answers, ".answers").len(), 1, "they are written first");

    let server = start();
    let again = text_of(&server.stream("/chat/completions", &chat(1, 100)));
    assert_eq!(again, expected);
    assert!(server.get("/metrics").contains("pelton_sharing_hits_total 1"), "it was remembered");
    let _ = text_of(&server.stream("/chat/completions", &chat(2, 100)));
    let said = stop(server);
    assert!(said.contains("stopped\n"), "{said}");
    assert!(!files(&own, ".block").is_empty(), "this disk takes them");
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_at_once() {
    let home = Home::new();
    let mut server = slow_server(&home, 60, 300);
    let id = server.child.id().to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The connection breaks off.
            let _ = ureq::post(&format!("{}/chat/completions", server.url))
                .content_type("application/json")
                .send(chat(1, 190).to_string())
                .map(|mut response| response.body_mut().read_to_string());
        });
        until_running(&server);
        for _ in 0..2 {
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    let started = Instant::now();
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_is_wrong_with_the_address_is_said_before_a_model_is_read() {
    let home = Home::new();
    let broken = home.path().join("broken.gguf");
    std::fs::write(&broken, "this is no model").unwrap();
    let broken = broken.to_str().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (more, expected) in [
        (&["--port", &port][..], "in use"),
        (&["--port", "0", "--host", "0.0.0.0"][..], "key"),
        (&["--port", "0"][..], "broken.gguf"),
    ] {
        let output = home.run(&[&["serve", "--model", broken], more].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{expected}: {said}");
        assert_eq!(said.contains("broken.gguf"), expected == "broken.gguf", "{said}");
    }
}

/// A whole context in use takes as much memory as `pelton show` says.
#[cfg(target_os = "linux")]
#[test]
fn show_says_how_much_memory_serving_takes() {
    const CONTEXT: u64 = 2048;
    let Some(model) = testkit::default_model() else {
        eprintln!("skipped: the default model is not here, and a tiny one takes next to nothing");
        return;
    };
    let home = Home::new();
    let shown = home.run(&["show", model.to_str().unwrap(), "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let devices = shown["devices"].as_array().unwrap();
    let cpu = devices.iter().find(|device| device["device"] == "cpu").unwrap();
    let needs = cpu["needs"].as_array().unwrap();
    let need = needs.iter().find(|need| need["context_tokens"] == CONTEXT).unwrap();
    let context = CONTEXT.to_string();
    let arguments =
        ["--device", "cpu", "--threads", "2", "--sequences-max", "1", "--context-tokens", &context];
    let server = Server::start(&home, &model, &arguments);
    let prompt: Vec<u64> = (0..CONTEXT - 8).map(|place| 10 + 7 * place % 200).collect();
    let body = json!({"model": "default", "prompt": prompt, "max_tokens": 8, "temperature": 0,
        "ignore_eos": true, "stream": true});
    let events = server.stream("/completions", &body);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "{events:?}");
    let status = format!("/proc/{}/status", server.child.id());
    let status = std::fs::read_to_string(status).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: f64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    let (said, found) = (need["resident_bytes"].as_f64().unwrap(), 1024.0 * resident);
    eprintln!("said {said} bytes, found {found}");
    assert!((found - said).abs() <= 0.08 * said, "said {said} bytes, found {found}");
}

#[test]
fn a_template_that_lets_the_system_speak_first_only_hears_it_in_a_users_turn() {
    let home = Home::new();
    let template = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
        {{ raise_exception('first only') }}{% endif %}{{ m.role ~ ':' ~ m.content }}{% endfor %}";
    let (old, mut bytes) = (CHAT_TEMPLATE.as_bytes(), std::fs::read(home.tiny()).unwrap());
    // As long as the other, for the file says how long it is.
    let padded = format!("{template}{{#{:1$}#}}", "", old.len() - template.len() - 4);
    let at = bytes.windows(old.len()).position(|found| found == old).unwrap();
    bytes[at..at + old.len()].copy_from_slice(padded.as_bytes());
    std::fs::write(home.tiny(), bytes).unwrap();
    let server = Server::start(&home, &home.tiny(), &[]);
    let post = |path: &str, body: Value| -> Value {
        let request = ureq::post(format!("{}{path}", server.url.trim_end_matches("/v1")));
        let mut reply = request.content_type("application/json").send(body.to_string()).unwrap();
        serde_json::from_str(&reply.body_mut().read_to_string().unwrap()).unwrap()
    };
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let turns = [turn("developer", "a"), turn("user", "b"), turn("system", "c")];
    let read = post("/tokenize", json!({"messages": turns}));
    let text = post("/detokenize", json!({"tokens": read["tokens"]}));
    let heard = "system:auser:b\n\n<system-reminder>\nc\n</system-reminder>";
    assert_eq!(text["prompt"], heard);
}

/// Whose name of the field is told, where an error of that API has one.
#[test]
fn what_is_too_long_is_named_as_each_api_names_it() {
    let home = Home::new();
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../engine/golden");
    let named = |name: &str, path: PathBuf| format!("{name}={}", path.display());
    let models = [
        named("tiny", home.tiny()),
        named("vectors", golden.join("embeddings/bert_first.gguf")),
        named("ranker", golden.join("rerankers/bert")),
    ];
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let server = Server::start_with(&home, &models);
    let long = "many words ".repeat(3000);
    let said = json!([{"role": "user", "content": long}]);
    let ids = vec![5; 3000];
    let most = state_of(&server, "tiny")["max_model_len"].as_u64().unwrap();
    let (embed, rank) = (json!("vectors"), json!("ranker"));
    let asked = [
        ("/v1/chat/completions", json!({"messages": said}), "messages"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": most}),
            "max_tokens",
        ),
        ("/v1/completions", json!({"prompt": long}), "prompt"),
        ("/v1/completions", json!({"prompt": ids}), "prompt"),
        ("/v1/completions", json!({"prompt": ["a", long], "stream": true}), "prompt"),
        ("/v1/responses", json!({"input": long}), "input"),
        ("/v1/responses", json!({"input": said, "stream": true}), "input"),
        (
            "/v1/responses",
            json!({"input": "a", "max_output_tokens": most - 1}),
            "max_output_tokens",
        ),
        ("/v1/embeddings", json!({"input": long, "model": embed}), "input"),
        ("/v1/embeddings", json!({"input": [ids], "model": embed}), "input"),
        ("/rerank", json!({"query": "a", "documents": [long], "model": rank}), "documents"),
        ("/v1/rerank", json!({"query": "a", "documents": [long], "model": rank}), "documents"),
        ("/v2/rerank", json!({"query": "a", "documents": [long], "model": rank}), "documents"),
        ("/v1/messages", json!({"messages": said, "max_tokens": 5}), ""),
        ("/api/chat", json!({"model": "tiny", "messages": said}), ""),
        ("/api/generate", json!({"model": "tiny", "prompt": long}), ""),
        ("/api/embed", json!({"model": embed, "input": long, "truncate": false}), ""),
    ];
    for (path, body, field) in &asked {
        let (status, reply) = post(&server, path, body);
        assert_eq!(status, 400, "{path}: {reply}");
        let error = &reply["error"];
        assert_eq!(error["param"].as_str().unwrap_or_default(), *field, "{path}: {reply}");
        let text = error.as_str().or(error["message"].as_str()).unwrap();
        let says = ["too long", "exceed context", " tokens, this model reads 1 to "];
        assert!(says.iter().any(|says| text.contains(says)), "{path}: {text}");
    }
    // Which others there are: what reads no prompt, counts one of any length, or cuts it.
    let bound = [
        "/api/embeddings",
        "/api/pull",
        "/api/show",
        "/detokenize",
        "/tokenize",
        "/v1/messages/count_tokens",
    ];
    let document: Value = serde_json::from_str(&server.get("/openapi.json")).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let is_known = asked.iter().any(|(asked, ..)| asked == path)
            || bound.contains(&path.as_str())
            || path.starts_with("/models/");
        assert!(methods.get("post").is_none() || is_known, "{path} is not asked");
    }
}

/// As Transformers cuts it with `continue_final_message`, but that white space at the end stays in
/// templates that trim messages, too.
#[test]
fn a_prompt_ends_where_the_last_message_does_that_is_gone_on_with() {
    let home = Home::new();
    let server = Server::start(&home, &home.tiny(), &[]);
    // Words of the markup are no end of it, and white space at its end stays.
    for begun in ["The end", "im_end ", "One,\n"] {
        let messages = json!([{"role": "user", "content": "Hi."},
            {"role": "assistant", "content": begun}]);
        let ask = json!({"messages": messages, "continue_final_message": true});
        let tokens = post(&server, "/tokenize", &ask).1["tokens"].clone();
        let (_, told) = post(&server, "/detokenize", &json!({"tokens": tokens}));
        let prompt = told["prompt"].as_str().unwrap();
        assert!(prompt.ends_with(&format!("<|im_start|>assistant\n{begun}")), "{prompt}");
        let more = json!({"messages": messages, "continue_final_message": true, "max_tokens": 3});
        let (status, reply) = post(&server, "/v1/chat/completions", &more);
        let count = tokens.as_array().unwrap().len();
        assert_eq!((status, &reply["usage"]["prompt_tokens"]), (200, &json!(count)), "{reply}");
    }
}
