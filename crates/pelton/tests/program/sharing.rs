//! Identical requests over HTTP: computed once, told to each.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::running::{Home, Server};

fn metric(server: &Server, name: &str) -> f64 {
    let page = server.get("/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}: {page}")).parse().unwrap()
}

fn body(tokens: u32) -> Value {
    json!({
        "model": "default", "stream": true, "temperature": 0, "max_tokens": tokens,
        "stream_options": {"include_usage": true}, "ignore_eos": true,
        // Usage counts the guesses that were right, which a replayed answer has none of.
        "speculation": false,
        "messages": [{"role": "user", "content": "Tell me about the sea."}],
    })
}

/// A stream without what names the one request: its id and the second of its arrival.
fn nameless(events: &[String]) -> Vec<String> {
    let nameless = |event: &String| match serde_json::from_str::<Value>(event) {
        Ok(mut chunk) => {
            chunk["id"] = json!(null);
            chunk["created"] = json!(null);
            // A prompt that was computed for another stream counts as cached.
            if let Some(details) = chunk.pointer_mut("/usage/prompt_tokens_details") {
                *details = json!(null);
            }
            chunk.to_string()
        }
        Err(_) => event.clone(),
    };
    events.iter().map(nameless).collect()
}

fn prompt_tokens(events: &[String]) -> f64 {
    let chunk: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    chunk["usage"]["prompt_tokens"].as_f64().unwrap()
}

#[test]
fn a_hundred_identical_streams_are_computed_once() {
    const TOKENS: u32 = 40;
    let home = Home::new();
    let alone = {
        let server = Server::start(&home, &home.tiny(), &["--no-sharing"]);
        nameless(&server.stream("/chat/completions", &body(TOKENS)))
    };
    // The third step takes long enough for all to arrive.
    let server = Server::start(&home, &home.tiny(), &["--failpoints", "hang:1500@2"]);
    let streams: Vec<Vec<String>> = std::thread::scope(|scope| {
        let ask = || server.stream("/chat/completions", &body(TOKENS));
        let streams: Vec<_> = (0..100).map(|_| scope.spawn(ask)).collect();
        streams.into_iter().map(|stream| stream.join().unwrap()).collect()
    });
    for stream in &streams {
        assert_eq!(nameless(stream), alone, "byte for byte");
    }
    // Counts are published a moment after what they count.
    let deadline = Instant::now() + Duration::from_secs(20);
    while metric(&server, "pelton_sequences_running") > 0.0 {
        assert!(Instant::now() < deadline, "the sequence never ended");
    }
    assert_eq!(metric(&server, "pelton_requests_total"), 100.0);
    assert_eq!(metric(&server, "pelton_prompt_tokens_total"), prompt_tokens(&streams[0]));
    assert_eq!(metric(&server, "pelton_generation_tokens_total"), f64::from(TOKENS));
    let positions = prompt_tokens(&streams[0]) + f64::from(TOKENS);
    assert!(metric(&server, "pelton_computed_tokens_total") <= positions);
    // A step a token, one more that was in flight when the last token came; the prompt's first.
    assert!(metric(&server, "pelton_steps_total") <= f64::from(TOKENS + 2));
    assert_eq!(metric(&server, "pelton_sharing_misses_total"), 1.0);
    let joins = metric(&server, "pelton_sharing_joins_total");
    let hits = metric(&server, "pelton_sharing_hits_total");
    assert_eq!(joins + hits, 99.0);
    assert!(joins > 0.0, "some arrived while it ran");
    assert_eq!(metric(&server, "pelton_sharing_tokens_total"), f64::from(99 * TOKENS));
    assert_eq!(metric(&server, "pelton_sharing_replay_entries"), 1.0);
}

#[test]
fn a_reply_explains_itself_when_asked() {
    let home = Home::new();
    let server = Server::start(&home, &home.tiny(), &[]);
    let explain = |change: Value, headers: &[(&str, &str)]| {
        let mut body = body(4);
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let mut request = ureq::post(&format!("{}/chat/completions", server.url))
            .content_type("application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.send(body.to_string()).unwrap();
        let explanation = response.headers().get("x-pelton-sharing").cloned();
        response.body_mut().as_reader().read_to_end(&mut Vec::new()).unwrap();
        explanation.map(|value| value.to_str().unwrap().to_owned())
    };
    let asking = ("x-pelton-explain", "1");
    assert_eq!(explain(json!({}), &[]), None);
    let hit = explain(json!({}), &[asking]).unwrap();
    assert!(hit.starts_with("hit: answered "), "{hit}");
    for (change, headers, expected) in [
        (
            json!({"temperature": 0.7}),
            &[][..],
            "miss: not repeatable: temperature 0.7 without a seed",
        ),
        (json!({}), &[("x-pelton-sharing", "off")], "miss: the request asks for no sharing"),
        (json!({}), &[("cache-control", "no-store")], "miss: the request asks for no sharing"),
        (json!({}), &[("cache-control", "no-cache")], "miss: the request asks to be computed anew"),
        (json!({"cache_salt": "x"}), &[], "miss: no identical request runs or is remembered"),
        (json!({}), &[("x-pelton-cache-salt", "x")], "hit: answered 0."),
        (json!({"max_tokens": 9}), &[], "miss: 4 tokens are remembered, 9 are asked for"),
        (json!({"stop": ["never said"], "max_tokens": 3}), &[], "hit: answered 0."),
    ] {
        let headers = [headers, &[asking]].concat();
        let explanation = explain(change, &headers).unwrap();
        assert!(explanation.starts_with(expected), "{expected}: {explanation}");
    }
}

#[cfg(unix)]
#[test]
fn answers_are_kept_over_a_restart() {
    let home = Home::new();
    let config = home.path().join("kept.yaml");
    let folder = home.path().join("answers");
    std::fs::write(&config, format!("sharing: {{folder: {:?}}}\n", folder.to_str().unwrap()))
        .unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let mut server = Server::start(&home, &home.tiny(), &arguments);
    let before = nameless(&server.stream("/chat/completions", &body(12)));
    let id = server.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
    let server = Server::start(&home, &home.tiny(), &arguments);
    assert_eq!(nameless(&server.stream("/chat/completions", &body(12))), before);
    assert_eq!(metric(&server, "pelton_steps_total"), 0.0);
    assert_eq!(metric(&server, "pelton_sharing_hits_total"), 1.0);
}
