//! Do calls of tools reach clients of each API in its form, whole and streamed?
#![allow(clippy::unwrap_used, reason = "tests")]

use messages::Constraint;
use serde_json::{Value, json};

use crate::client::{CHAT, Running, start};
use crate::scripted::MODEL;

const ANSWER: &str = "!say Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                      {\"city\": \"Bern\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"stop\"}\n\
                      </tool_call>";

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([
        {"type": "function", "function": {"name": "weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "stop", "description": "Stops."}},
    ])
}

fn body(text: &str, more: Value) -> Value {
    let mut body = json!({"model": MODEL, "tools": tools(), "max_tokens": 100,
        "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn openai_calls_are_the_same_whole_and_streamed() {
    let server = start().await;
    let whole = server.post(CHAT, &body(ANSWER, json!({}))).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["content"], "Let me see.");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    let ids: Vec<&str> = calls.iter().map(|call| call["id"].as_str().unwrap()).collect();
    assert!(ids.iter().all(|id| id.starts_with("call_")) && ids[0] != ids[1]);
    assert!(calls.iter().all(|call| call["type"] == "function"));
    assert_eq!(
        calls[0]["function"],
        json!({"name": "weather", "arguments": "{\"city\": \"Bern\"}"})
    );
    assert_eq!(calls[1]["function"], json!({"name": "stop", "arguments": "{}"}));

    let chunks = server.post(CHAT, &body(ANSWER, json!({"stream": true}))).await.chunks();
    let mut streamed: Vec<Value> = Vec::new();
    for delta in chunks.iter().filter_map(|chunk| {
        chunk["choices"][0]["delta"]["tool_calls"].as_array().map(|list| &list[0])
    }) {
        let index = delta["index"].as_u64().unwrap() as usize;
        if index == streamed.len() {
            assert!(delta["id"].is_string() && delta["type"] == "function");
            streamed.push(delta["function"].clone());
            continue;
        }
        assert!(delta["id"].is_null() && index + 1 == streamed.len());
        let before = streamed[index]["arguments"].as_str().unwrap().to_owned();
        let more = delta["function"]["arguments"].as_str().unwrap();
        streamed[index]["arguments"] = json!(before + more);
    }
    let functions: Vec<&Value> = calls.iter().map(|call| &call["function"]).collect();
    assert_eq!(streamed.iter().collect::<Vec<_>>(), functions);
    let text = |chunk: &Value| {
        chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(chunks.iter().map(text).collect::<String>(), "Let me see.");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_call_alone_has_no_content() {
    let server = start().await;
    let answer = "!say <tool_call>{\"name\": \"stop\"}</tool_call>";
    let whole = server.post(CHAT, &body(answer, json!({}))).await.json();
    assert_eq!(whole["choices"][0]["message"]["content"], Value::Null);
    let none = server.post(CHAT, &body(answer, json!({"tool_choice": "none"}))).await.json();
    let message = &none["choices"][0]["message"];
    assert_eq!(message["content"], answer.strip_prefix("!say ").unwrap());
    assert_eq!(none["choices"][0]["finish_reason"], "stop");
    assert!(conversation(&server).tools.is_none(), "no tools are told of that may not be called");
}

fn conversation(server: &Running) -> chat::Conversation {
    match server.service.last().prompt {
        engine::Prompt::Chat(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_must_call_is_held_to_it() {
    let server = start().await;
    for (more, is_held) in [
        (json!({}), false),
        (json!({"tool_choice": "required"}), true),
        (json!({"tool_choice": {"type": "function", "function": {"name": "stop"}}}), true),
        (json!({"response_format": {"type": "json_object"}}), true),
    ] {
        let reply = server.post(CHAT, &body("hello", more.clone())).await;
        assert_eq!(reply.status, 200, "{more}: {}", reply.text());
        let params = server.service.last().params;
        assert_eq!(matches!(params.constraint, Some(Constraint::Calls { .. })), is_held, "{more}");
        assert_eq!(params.thoughts.is_some(), is_held, "thoughts come before it: {more}");
        assert_eq!(conversation(&server).tools.unwrap(), tools_as_templates_see_them());
    }
    let both = json!({"tool_choice": "required", "response_format": {"type": "json_object"}});
    let refused = server.post(CHAT, &body("hello", both)).await;
    assert_eq!((refused.status, refused.param().as_str()), (400, "tool_choice"));
}

fn tools_as_templates_see_them() -> Value {
    let mut listed = tools();
    listed[1]["function"]["parameters"] = json!({"type": "object", "properties": {}});
    listed
}

#[tokio::test]
async fn a_template_without_tools_is_told_in_words() {
    let server = start().await;
    *server.service.answer_format.lock().unwrap() = engine::AnswerFormat::default();
    let whole = server.post(CHAT, &body(ANSWER, json!({}))).await.json();
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    let conversation = conversation(&server);
    assert!(conversation.tools.is_none());
    assert_eq!(conversation.messages[0].role, "system");
    assert!(conversation.messages[0].content.as_ref().unwrap().contains("\"name\":\"weather\""));
}

fn anthropic(text: &str, more: Value) -> Value {
    let tools = json!([{"name": "weather", "input_schema": {"type": "object"}},
        {"name": "stop", "input_schema": {"type": "object"}}]);
    let mut more = more;
    more["tools"] = tools;
    body(text, more)
}

#[tokio::test]
async fn anthropic_calls_are_blocks() {
    let server = start().await;
    let whole = server.post("/v1/messages", &anthropic(ANSWER, json!({}))).await.json();
    assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
    let kinds: Vec<&str> =
        whole["content"].as_array().unwrap().iter().map(|b| b["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["text", "tool_use", "tool_use"]);
    assert_eq!(whole["content"][1]["input"], json!({"city": "Bern"}));
    assert!(whole["content"][1]["id"].as_str().unwrap().starts_with("toolu_"));

    let more = json!({"stream": true});
    let text = server.post("/v1/messages", &anthropic(ANSWER, more)).await.text();
    let events: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap())
        .collect();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    let starts = of("content_block_start");
    assert_eq!((starts.len(), of("content_block_stop").len()), (3, 3));
    assert_eq!(starts[1]["content_block"]["name"], "weather");
    let json: String = of("content_block_delta")
        .iter()
        .filter(|event| event["index"] == 1)
        .map(|event| event["delta"]["partial_json"].as_str().unwrap())
        .collect();
    assert_eq!(json, "{\"city\": \"Bern\"}");
    assert_eq!(of("message_delta")[0]["delta"]["stop_reason"], "tool_use");
    let form = json!({"format": {"type": "json_schema", "schema": {"type": "object"}}});
    let mut ask = anthropic("hello", json!({"output_config": form}));
    ask.as_object_mut().unwrap().remove("tools");
    server.post("/v1/messages", &ask).await;
    let constraint = server.service.last().params.constraint;
    assert!(matches!(constraint, Some(Constraint::JsonSchema(_))));
    for (choice, is_held) in [("auto", false), ("any", true)] {
        let more = json!({"tool_choice": {"type": choice}});
        server.post("/v1/messages", &anthropic("hello", more)).await;
        assert_eq!(server.service.last().params.constraint.is_some(), is_held, "{choice}");
    }
}

fn events(text: &str) -> Vec<Value> {
    let event = |event: &str| serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap();
    text.split_terminator("\n\n").map(event).collect()
}

#[tokio::test]
async fn anthropic_blocks_have_one_order_whole_and_streamed() {
    let server = start().await;
    let answer = "!say One.\n<tool_call>{\"name\": \"stop\"}</tool_call>\nTwo.\n\
                  <tool_call>{\"name\": \"weather\"}</tool_call>";
    let whole = server.post("/v1/messages", &anthropic(answer, json!({}))).await.json();
    let shown = |block: &Value| match block["type"].as_str().unwrap() {
        "text" => block["text"].clone(),
        _ => block["name"].clone(),
    };
    let blocks: Vec<Value> = whole["content"].as_array().unwrap().iter().map(shown).collect();
    assert_eq!(blocks, ["One.", "stop", "Two.", "weather"], "{whole}");
    let streamed = server.post("/v1/messages", &anthropic(answer, json!({"stream": true}))).await;
    let kinds: Vec<Value> = events(&streamed.text())
        .iter()
        .filter(|event| event["type"] == "content_block_start")
        .map(|event| event["content_block"]["type"].clone())
        .collect();
    assert_eq!(kinds, ["text", "tool_use", "text", "tool_use"]);
}

/// The second call is cut off by the end of the tokens, before and within its arguments.
#[tokio::test]
async fn a_call_that_is_cut_off_is_no_text() {
    let server = start().await;
    let first = "!say <tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>\n";
    for rest in ["<tool_c", "<tool_call>\n{\"na", "<tool_call>\n{\"name\": \"stop\", \"arg"] {
        let answer = format!("{first}{rest}");
        let must = json!({"tool_choice": "required"});
        let whole = server.post(CHAT, &body(&answer, must)).await.json();
        let message = &whole["choices"][0]["message"];
        assert_eq!(message["content"], Value::Null, "{whole}");
        assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1, "{whole}");
        let any = json!({"tool_choice": {"type": "any"}});
        let whole = server.post("/v1/messages", &anthropic(&answer, any.clone())).await.json();
        assert_eq!(whole["content"].as_array().unwrap().len(), 1, "{whole}");
        assert_eq!(whole["content"][0]["name"], "stop");
        let mut any = any;
        any["stream"] = json!(true);
        let streamed = server.post("/v1/messages", &anthropic(&answer, any)).await.text();
        assert!(!streamed.contains("text_delta"), "{streamed}");
    }
    let mut ask = body(
        &format!(
            "{first}{}",
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": \
        {\"ci"
        ),
        json!({"stream": false, "tool_choice": "required"}),
    );
    let whole = server.post(CHAT, &ask).await.json();
    let calls = &whole["choices"][0]["message"]["tool_calls"];
    assert_eq!(calls[1]["function"]["arguments"], "{\"ci", "as far as it came: {whole}");
    ask.as_object_mut().unwrap().retain(|name, _| name != "max_tokens" && name != "tool_choice");
    let whole = server.post("/api/chat", &ask).await.json();
    assert_eq!(whole["message"]["tool_calls"].as_array().unwrap().len(), 1, "{whole}");
}

#[tokio::test]
async fn stop_texts_do_not_end_a_call_that_must_come() {
    let server = start().await;
    let named = json!({"type": "function", "function": {"name": "stop"}});
    for (choice, is_kept) in [("auto".into(), true), ("required".into(), false), (named, false)] {
        let more = json!({"tool_choice": choice, "stop": ["city"], "stop_token_ids": [5]});
        let reply = server.post(CHAT, &body("hello", more)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let request = server.service.last();
        assert_eq!(request.stop.is_empty(), !is_kept, "{choice}");
        assert_eq!(request.params.stop_token_ids.is_empty(), !is_kept, "{choice}");
    }
    let more = json!({"tool_choice": {"type": "any"}, "stop_sequences": ["city"]});
    server.post("/v1/messages", &anthropic("hello", more)).await;
    assert!(server.service.last().stop.is_empty());
    let functions = json!([{"name": "f"}]);
    let ask = json!({"model": MODEL, "functions": functions, "function_call": {"name": "f"},
        "stop": "}", "messages": [{"role": "user", "content": "hello"}]});
    server.post(CHAT, &ask).await;
    assert!(server.service.last().stop.is_empty());
}

#[tokio::test]
async fn arguments_of_tools_are_objects_in_every_api() {
    let server = start().await;
    let schema = json!({"type": "string"});
    let flat = json!([{"type": "function", "name": "f", "parameters": schema}]);
    let functions = json!([{"name": "f", "parameters": schema}]);
    for (path, ask) in [
        (CHAT, json!({"tools": [{"type": "function", "function": functions[0]}]})),
        (CHAT, json!({"functions": functions})),
        (
            "/v1/messages",
            json!({"max_tokens": 9, "tools": [{"name": "f", "input_schema": schema}]}),
        ),
        ("/v1/responses", json!({"input": "hello", "tools": flat})),
    ] {
        let mut ask = ask;
        if path != "/v1/responses" {
            ask["messages"] = json!([{"role": "user", "content": "hello"}]);
        }
        let reply = server.post(path, &ask).await;
        assert_eq!(reply.status, 400, "{path}: {}", reply.text());
        assert!(reply.text().contains("must be of type"), "{path}: {}", reply.text());
    }
}

#[tokio::test]
async fn ollama_calls_are_objects() {
    let server = start().await;
    let mut ask = body(ANSWER, json!({"stream": false}));
    ask.as_object_mut().unwrap().remove("max_tokens");
    let whole = server.post("/api/chat", &ask).await.json();
    let calls = json!([{"function": {"name": "weather", "arguments": {"city": "Bern"}}},
        {"function": {"name": "stop", "arguments": {}}}]);
    assert_eq!(whole["message"]["tool_calls"], calls, "{whole}");
    ask["stream"] = json!(true);
    let lines = server.post("/api/chat", &ask).await.text();
    let streamed: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .flat_map(|line| line["message"]["tool_calls"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(json!(streamed), calls);
}

#[tokio::test]
async fn earlier_calls_and_results_reach_the_template() {
    let server = start().await;
    let call = json!({"id": "call_1", "type": "function",
        "function": {"name": "weather", "arguments": "{\"city\": \"Bern\"}"}});
    let messages = json!([{"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]);
    let reply = server.post(CHAT, &body("", json!({"messages": messages}))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let told = conversation(&server).messages;
    let calls = told[1].tool_calls.as_ref().unwrap();
    assert_eq!(calls[0]["function"]["arguments"], json!({"city": "Bern"}));
    assert_eq!((told[2].role.as_str(), told[2].content.as_deref()), ("tool", Some("sunny")));
}

#[tokio::test]
async fn the_older_functions_are_tools() {
    let server = start().await;
    let answer = "!say <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n\
                  </tool_call>";
    let functions: Vec<Value> =
        tools().as_array().unwrap().iter().map(|tool| tool["function"].clone()).collect();
    let ask = async |more: Value| {
        let mut body = body(answer, json!({}));
        body.as_object_mut().unwrap().remove("tools");
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post(CHAT, &body).await
    };
    let called = json!({"name": "weather", "arguments": "{\"city\": \"Bern\"}"});
    let whole = ask(json!({"functions": functions})).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "function_call", "{whole}");
    assert_eq!(choice["message"]["function_call"], called);
    assert!(choice["message"]["tool_calls"].is_null());
    let chunks = ask(json!({"functions": functions, "stream": true})).await.chunks();
    let deltas: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["function_call"])
        .filter(|call| call.is_object())
        .collect();
    let arguments: String = deltas.iter().filter_map(|call| call["arguments"].as_str()).collect();
    assert_eq!(json!({"name": deltas[0]["name"], "arguments": arguments}), called);
    let reason = chunks.iter().find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
    assert_eq!(reason, Some("function_call"));

    let silent = ask(json!({"functions": functions, "function_call": "none"})).await.json();
    assert_eq!(silent["choices"][0]["finish_reason"], "stop");
    ask(json!({"functions": functions, "function_call": {"name": "weather"}})).await.json();
    assert!(server.service.last().params.constraint.is_some(), "it must call");
    let turns = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "function_call": called},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]);
    let went_on = ask(json!({"functions": functions, "messages": turns})).await;
    assert_eq!(went_on.status, 200, "{}", went_on.text());
    for (more, param) in [
        (json!({"functions": functions, "tools": tools()}), "functions"),
        (json!({"function_call": {"name": "weather"}}), "function_call"),
        (json!({"functions": functions, "function_call": "required"}), "function_call"),
        (json!({"functions": functions, "function_call": {"name": "x"}}), "tool_choice"),
        (json!({"functions": [{}]}), "functions[0]"),
    ] {
        let reply = ask(more.clone()).await;
        assert_eq!((reply.status, reply.param().as_str()), (400, param), "{more}");
    }
}
