//! Do the endpoints give what OpenAI's clients expect?
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use engine::QueueStatus;
use serde_json::{Value, json};

use crate::client::{CHAT, TEXT, request, start};
use crate::scripted::{CACHED, MODEL, WORDS};

pub(crate) fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}], "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

pub(crate) fn text(prompt: Value, more: Value) -> Value {
    let mut body = json!({"prompt": prompt, "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Joins the contents of a stream by choice; checks what holds for every chunk.
fn joined(chunks: &[Value], choices: usize) -> Vec<(String, Vec<String>)> {
    let mut all = vec![(String::new(), Vec::new()); choices];
    for chunk in chunks {
        for name in ["id", "object", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[name], chunks[0][name]);
        }
        for choice in chunk["choices"].as_array().unwrap() {
            let (text, reasons) = &mut all[choice["index"].as_u64().unwrap() as usize];
            let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            text.push_str(piece.unwrap_or(""));
            reasons.extend(choice["finish_reason"].as_str().map(str::to_owned));
        }
    }
    all
}

#[tokio::test]
async fn chat_whole_and_streamed_agree() {
    let server = start().await;
    let whole = server.post(CHAT, &chat("hello there", json!({}))).await;
    assert_eq!(whole.status, 200);
    assert_eq!(whole.header("content-type"), Some("application/json"));
    let whole = whole.json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], MODEL);
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["logprobs"], Value::Null);
    let details = json!({"reasoning_tokens": 0, "accepted_prediction_tokens": 2,
            "rejected_prediction_tokens": 1});
    let usage = json!({
        "prompt_tokens": 2, "completion_tokens": WORDS, "total_tokens": 2 + WORDS,
        "prompt_tokens_details": {"cached_tokens": CACHED},
        "completion_tokens_details": details,
    });
    assert_eq!(whole["usage"], usage);

    let streamed = server.post(CHAT, &chat("hello there", json!({"stream": true}))).await;
    assert_eq!(streamed.header("content-type"), Some("text/event-stream"));
    let chunks = streamed.chunks();
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    let expected = choice["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(joined(&chunks, 1), [(expected, vec!["stop".to_owned()])]);
    assert_eq!(server.service.live(), 0);
}

#[tokio::test]
async fn usage_is_streamed_when_asked_for() {
    let server = start().await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 3});
    for (path, body) in [(CHAT, chat("a", more.clone())), (TEXT, text(json!("a"), more))] {
        let mut chunks = server.post(path, &body).await.chunks();
        let last = chunks.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        let details = json!({"reasoning_tokens": 0, "accepted_prediction_tokens": 2,
            "rejected_prediction_tokens": 1});
        let usage = json!({
            "prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": CACHED},
            "completion_tokens_details": details,
        });
        assert_eq!(last["usage"], usage);
        assert!(chunks.iter().all(|chunk| chunk["usage"] == Value::Null));
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_some()));
        assert_eq!(joined(&chunks, 1)[0].1, ["length"]);
    }
}

#[tokio::test]
async fn n_answers_come_with_their_index() {
    let server = start().await;
    let more = json!({"n": 5, "seed": 7, "temperature": 1});
    let whole = server.post(CHAT, &chat("a", more)).await.json();
    let texts: Vec<&str> = whole["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| choice["message"]["content"].as_str().unwrap())
        .collect();
    assert_eq!(texts.len(), 5);
    assert!(texts.iter().enumerate().all(|(index, text)| !texts[..index].contains(text)));
    assert_eq!(whole["usage"]["prompt_tokens"], 1);
    assert_eq!(whole["usage"]["completion_tokens"], 5 * WORDS);

    let more = json!({"n": 5, "seed": 7, "temperature": 1, "stream": true});
    let chunks = server.post(CHAT, &chat("a", more)).await.chunks();
    let roles = chunks[..5].iter().map(|chunk| &chunk["choices"][0]);
    let roles: Vec<_> = roles.map(|choice| (&choice["index"], &choice["delta"]["role"])).collect();
    let expected: Vec<Value> = (0..5).map(Value::from).collect();
    let assistant = Value::from("assistant");
    assert_eq!(roles, expected.iter().map(|index| (index, &assistant)).collect::<Vec<_>>());
    let streamed = joined(&chunks, 5);
    for (index, (text, reasons)) in streamed.iter().enumerate() {
        assert_eq!((text.as_str(), reasons.len()), (texts[index], 1));
    }
}

#[tokio::test]
async fn several_prompts_come_in_order() {
    let server = start().await;
    let alone = |prompt: Value| text(prompt, json!({"max_tokens": 4}));
    let mut expected = Vec::new();
    for prompt in [json!("one"), json!("two")] {
        let reply = server.post(TEXT, &alone(prompt)).await.json();
        let text = reply["choices"][0]["text"].as_str().unwrap().to_owned();
        expected.extend([text.clone(), text]);
    }
    let body = text(json!(["one", "two"]), json!({"max_tokens": 4, "n": 2}));
    let whole = server.post(TEXT, &body).await.json();
    assert_eq!(whole["object"], "text_completion");
    let texts: Vec<&str> =
        whole["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, expected);
    assert_eq!(whole["usage"]["prompt_tokens"], 2);
    let ids = server.post(TEXT, &alone(json!([5, 6]))).await.json();
    assert_eq!(ids["usage"]["prompt_tokens"], 2);
    assert_eq!(server.service.last().prompt, engine::Prompt::Tokens(vec![5, 6]));
    let lists = server.post(TEXT, &alone(json!([[5, 6], [7]]))).await.json();
    assert_eq!(lists["choices"].as_array().unwrap().len(), 2);
    let default = server.post(TEXT, &text(json!("a"), json!({"ignore_eos": true}))).await.json();
    assert_eq!(default["usage"]["completion_tokens"], 16, "OpenAI's default");
}

#[tokio::test]
async fn echo_puts_the_prompt_first() {
    let server = start().await;
    let plain = server.post(TEXT, &text(json!("abc"), json!({}))).await.json();
    let expected = format!("abc{}", plain["choices"][0]["text"].as_str().unwrap());
    let body = text(json!("abc"), json!({"echo": true}));
    let echoed = server.post(TEXT, &body).await.json();
    assert_eq!(echoed["choices"][0]["text"], expected);
    let body = text(json!("abc"), json!({"echo": true, "stream": true}));
    let chunks = server.post(TEXT, &body).await.chunks();
    assert_eq!(joined(&chunks, 1)[0].0, expected);
    for more in
        [json!({"echo": true, "logprobs": 1}), json!({"best_of": 2}), json!({"suffix": "x"})]
    {
        assert_eq!(server.post(TEXT, &text(json!("abc"), more)).await.status, 400);
    }
}

#[tokio::test]
async fn logprobs_come_in_both_forms() {
    let server = start().await;
    let more = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3});
    let whole = server.post(CHAT, &chat("a", more)).await.json();
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 3);
    let tokens: String = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], tokens);
    assert_eq!(content[0]["logprob"], -0.5);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let bytes: Vec<u8> = serde_json::from_value(content[0]["bytes"].clone()).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), content[0]["token"].as_str().unwrap());

    let more = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3, "stream": true});
    let chunks = server.post(CHAT, &chat("a", more)).await.chunks();
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(streamed, content);

    let body = text(json!("a"), json!({"logprobs": 1, "max_tokens": 2}));
    let logprobs = server.post(TEXT, &body).await.json()["choices"][0]["logprobs"].clone();
    let first = logprobs["tokens"][0].as_str().unwrap();
    assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.5]));
    assert_eq!(logprobs["text_offset"], json!([0, first.chars().count()]));
    assert_eq!(logprobs["top_logprobs"][0][first], -0.5);
}

#[tokio::test]
async fn stop_texts_end_the_answer() {
    let server = start().await;
    let full = server.post(CHAT, &chat("a", json!({}))).await.json();
    let full = full["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let words: Vec<&str> = full.split(' ').collect();
    for stop in [json!(words[4]), json!(["never", words[4]])] {
        let reply = server.post(CHAT, &chat("a", json!({"stop": stop}))).await.json();
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
        assert_eq!(reply["choices"][0]["stop_reason"], words[4]);
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(text, full.split_once(words[4]).unwrap().0);
    }
}

#[tokio::test]
async fn every_field_reaches_the_engine() {
    let server = start().await;
    let body = chat(
        "a",
        json!({
            "model": "default", "temperature": 0.5, "top_p": 0.25, "top_k": 7, "min_p": 0.125,
            "seed": -1, "stop": ["x", "y"], "include_stop_str_in_output": true, "max_tokens": 9,
            "min_tokens": 2, "presence_penalty": -0.5, "frequency_penalty": 1.5,
            "repetition_penalty": 1.25, "logit_bias": {"3": -1, "12": 2.5}, "logprobs": true,
            "top_logprobs": 4, "ignore_eos": true, "stop_token_ids": [8, 9],
            "user": "u", "metadata": {"a": "b"}, "store": false, "tools": [], "tool_choice": "none",
            "response_format": {"type": "text"}, "service_tier": "auto", "functions": null,
            "parallel_tool_calls": true, "reasoning_effort": null, "n": 1,
            "speculation": false, "priority": "high", "timeout_ms": 60_000,
        }),
    );
    let reply = server.post(CHAT, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let last = server.service.last();
    let expected = messages::SamplingParams {
        temperature: 0.5,
        top_k: 7,
        top_p: 0.25,
        min_p: 0.125,
        repetition_penalty: 1.25,
        presence_penalty: -0.5,
        frequency_penalty: 1.5,
        logit_bias: last.params.logit_bias.clone(),
        seed: Some(u64::MAX),
        logprobs: Some(4),
        max_tokens: Some(9),
        min_tokens: 2,
        ignore_eos: true,
        stop_token_ids: vec![8, 9],
        speculation: Some(false),
        constraint: None,
        thoughts: None,
    };
    assert_eq!(last.params, expected);
    let mut biases = last.params.logit_bias;
    biases.sort_by_key(|(token, _)| *token);
    assert_eq!(biases, [(3, -1.0), (12, 2.5)]);
    assert_eq!((last.stop.len(), last.include_stop), (2, true));
    assert_eq!(last.model, MODEL);
    assert_eq!(last.urgency.priority, messages::Priority::High);
    let deadline = last.urgency.deadline.unwrap();
    assert_eq!(deadline.after, Duration::from_secs(60));
    let left = deadline.at - std::time::Instant::now();
    assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(30), "{left:?}");

    let plain = json!({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 3});
    assert_eq!(server.post(CHAT, &plain).await.status, 200);
    let default = messages::SamplingParams { max_tokens: Some(3), ..Default::default() };
    assert_eq!(server.service.last().params, default);
    assert_eq!(server.service.last().urgency, engine::Urgency::default());
}

#[tokio::test]
async fn service_tiers_are_priorities_and_told_where_asked_for() {
    use messages::Priority;
    let server = start().await;
    for (fields, priority, told) in [
        (json!({}), Priority::Normal, Value::Null),
        (json!({"priority": "low"}), Priority::Low, Value::Null),
        (json!({"service_tier": null}), Priority::Normal, Value::Null),
        (json!({"service_tier": "auto"}), Priority::Normal, json!("default")),
        (json!({"service_tier": "default"}), Priority::Normal, json!("default")),
        (json!({"service_tier": "flex"}), Priority::Low, json!("flex")),
        (json!({"service_tier": "priority"}), Priority::High, json!("priority")),
        (json!({"service_tier": "auto", "priority": "high"}), Priority::High, json!("priority")),
        (json!({"service_tier": "flex", "priority": "low"}), Priority::Low, json!("flex")),
    ] {
        for (path, whole) in
            [(CHAT, chat("a", fields.clone())), (TEXT, text(json!("a"), fields.clone()))]
        {
            let reply = server.post(path, &whole).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            assert_eq!(server.service.last().urgency.priority, priority, "{fields}");
            assert_eq!(reply.json()["service_tier"], told, "{fields}");
            let mut streamed = whole;
            streamed["stream"] = json!(true);
            let events = server.post(path, &streamed).await.events();
            let first: Value = serde_json::from_str(&events[0]).unwrap();
            assert_eq!(first["service_tier"], told, "{fields}");
        }
    }
    let torn = chat("a", json!({"service_tier": "flex", "priority": "high"}));
    let reply = server.post(CHAT, &torn).await;
    assert_eq!((reply.status, reply.param().as_str()), (400, "service_tier"));
}

#[tokio::test]
async fn a_late_answer_is_a_504_that_is_not_tried_again() {
    let server = start().await;
    let whole = server.post(CHAT, &chat("!deadline", json!({}))).await;
    assert_eq!(whole.status, 504);
    assert_eq!(whole.json()["error"]["code"], "deadline_exceeded");
    assert_eq!(whole.header("x-should-retry"), Some("false"));
    assert!(whole.text().contains("7 ms"), "{}", whole.text());
    for (path, body) in [
        (CHAT, chat("!deadline", json!({"stream": true}))),
        (TEXT, text(json!("!deadline"), json!({"stream": true}))),
    ] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 200);
        let events = reply.events();
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], "deadline_exceeded");
    }
    server.until_idle().await;
}

#[tokio::test]
async fn the_server_bounds_how_long_an_answer_may_take() {
    let mut options = crate::client::options();
    options.timeout_max = Some(Duration::from_secs(5));
    let server = crate::client::start_with(options).await;
    assert_eq!(server.post(CHAT, &chat("a", json!({}))).await.status, 200);
    let deadline = server.service.last().urgency.deadline.unwrap();
    assert_eq!(deadline.after, Duration::from_secs(5));
    let more = server.post(CHAT, &chat("a", json!({"timeout_ms": 5001}))).await;
    assert_eq!((more.status, more.param().as_str()), (400, "timeout_ms"));
    assert!(more.text().contains("5000"), "{}", more.text());
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let server = start().await;
    let list = server.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], MODEL);
    for path in ["/v1/models/scripted/words", "/v1/models/scripted%2Fwords", "/v1/models/default"] {
        assert_eq!(server.get(path).await.json()["id"], MODEL, "{path}");
    }
    let missing = server.get("/v1/models/other").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["error"]["code"], "model_not_found");
    assert!(missing.json()["error"]["message"].as_str().unwrap().contains(MODEL));
    let body = chat("a", json!({"model": "gpt-4"}));
    assert_eq!(server.post(CHAT, &body).await.status, 404);
    assert_eq!(server.post(CHAT, &chat("a", json!({"model": MODEL}))).await.status, 200);
}

#[tokio::test]
async fn health_and_readiness_follow_the_engine() {
    let server = start().await;
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 200);
    server.service.status.lock().unwrap().ready = false;
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/ready").await.status, 503);
    server.service.status.lock().unwrap().trouble = Some("no progress for 5 s".to_owned());
    let health = server.get("/health").await;
    assert_eq!(health.status, 503);
    assert!(health.text().contains("no progress for 5 s"));
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let server = start().await;
    server.post(CHAT, &chat("a", json!({}))).await;
    server.post(CHAT, &chat("!fail", json!({}))).await;
    server.get("/secret-canary").await;
    let reply = server.get("/metrics").await;
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = reply.text();
    for line in [
        "pelton_http_responses_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "pelton_http_responses_total{route=\"/v1/chat/completions\",status=\"500\"} 1",
        "pelton_http_responses_total{route=\"other\",status=\"404\"} 1",
        "pelton_time_to_first_token_seconds_count 2",
        "pelton_e2e_request_latency_seconds_count 1",
        "pelton_answers_failed_total 1",
        "pelton_ready 1",
        "vllm:num_requests_running{model_name=\"scripted/words\"} 0",
    ] {
        assert!(text.lines().any(|given| given == line), "{line}\n{text}");
    }
    assert!(!text.contains("canary"));
}

#[tokio::test]
async fn a_refusal_midway_is_the_callers_fault() {
    let server = start().await;
    let body = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "!unfit"}]});
    for path in [CHAT, "/v1/messages"] {
        let whole = server.post(path, &body).await;
        assert_eq!(whole.status, 400, "{path}: {}", whole.text());
        assert_eq!(whole.json()["error"]["type"], "invalid_request_error", "{path}");
    }
    let streamed = server.post(CHAT, &chat("!unfit", json!({"stream": true}))).await;
    let events = streamed.events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["message"], "too much", "{last}");
    let ask = json!({"input": "!unfit", "stream": true});
    let text = server.post("/v1/responses", &ask).await.text();
    assert!(text.contains("\"code\":\"invalid_prompt\""), "{text}");
    let metrics = server.get("/metrics").await.text();
    assert!(metrics.contains("pelton_answers_failed_total 0"), "no machine failed");
}

#[tokio::test]
async fn a_failure_midway_is_an_error_event() {
    let server = start().await;
    for switch in ["!fail", "!silent"] {
        let whole = server.post(CHAT, &chat(switch, json!({}))).await;
        assert_eq!(whole.status, 500);
        assert_eq!(whole.json()["error"]["code"], "engine_failed");
        for (path, body) in [
            (CHAT, chat(switch, json!({"stream": true}))),
            (TEXT, text(json!(switch), json!({"stream": true}))),
        ] {
            let reply = server.post(path, &body).await;
            assert_eq!(reply.status, 200);
            let events = reply.events();
            let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
            assert_eq!(last["error"]["type"], "server_error");
            assert!(!events.iter().any(|event| event == "[DONE]"));
        }
    }
    server.until_idle().await;
}

#[tokio::test]
async fn who_asks_is_told_of_its_wait() {
    let server = start().await;
    for stream in [true, false] {
        let body = chat("!queued", json!({"stream": stream, "n": 2})).to_string();
        let asked = request(server.address, CHAT, &body);
        let silent = server.raw(asked.as_bytes()).await.unwrap();
        assert_eq!((silent.status, silent.header("x-pelton-queue")), (200, None));
        let asked = asked.replacen("\r\n", "\r\nx-pelton-explain: 1\r\n", 1);
        let told = server.raw(asked.as_bytes()).await.unwrap();
        let each = "waited 0.020 s, 2 before it";
        assert_eq!(told.header("x-pelton-queue"), Some(format!("{each}; {each}").as_str()));
    }
    let metrics = server.get("/metrics").await.text();
    assert!(metrics.contains("pelton_request_queue_seconds_count 8"), "{metrics}");
    let late = server.post(CHAT, &chat("!late", json!({"stream": true}))).await;
    assert_eq!((late.status, late.header("retry-after")), (429, Some("7")));
}

#[tokio::test]
async fn the_list_of_models_shows_the_queue() {
    let server = start().await;
    server.service.status.lock().unwrap().queue = QueueStatus {
        running_limit: 4,
        length: 3,
        newcomer_wait: Some(Duration::from_millis(1500)),
        ..QueueStatus::default()
    };
    let models = server.get("/v1/models").await.json();
    let queue = json!({"running": 0, "running_limit": 4, "waiting": 3, "newcomer_seconds": 1.5});
    assert_eq!(models["data"][0]["queue"], queue);
    let metrics = server.get("/metrics").await.text();
    assert!(metrics.contains(&format!("pelton_model_queue_length{{model=\"{MODEL}\"}} 3")));
}

#[tokio::test]
async fn refusals_have_their_status() {
    let server = start().await;
    for (switch, status, retry) in [
        ("!busy", 429, true),
        ("!unavailable", 503, true),
        ("!invalid", 400, false),
        ("!late", 429, true),
    ] {
        for stream in [true, false] {
            let reply = server.post(CHAT, &chat(switch, json!({"n": 3, "stream": stream}))).await;
            assert_eq!(reply.status, status);
            assert_eq!(reply.header("retry-after").is_some(), retry);
            assert!(reply.json()["error"]["message"].is_string());
        }
    }
    let panicked = server.post(CHAT, &chat("!panic", json!({}))).await;
    assert_eq!(panicked.status, 500);
    assert_eq!(panicked.json()["error"]["type"], "server_error");
    assert_eq!(server.get("/health").await.status, 200);
    server.until_idle().await;
}
