//! Are thoughts told apart from answers, in each API's form, and bounded where that is asked?
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::client::{CHAT, start};
use crate::scripted::MODEL;

const ANSWER: &str = "!say <think>\nHm, so.\n</think>\n\nYes.";

fn body(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "max_tokens": 100,
        "messages": [{"role": "user", "content": ANSWER}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn for_ollama(more: Value) -> Value {
    let mut ask = body(more);
    ask.as_object_mut().unwrap().remove("max_tokens");
    ask
}

#[tokio::test]
async fn openai_has_them_beside_the_content() {
    let server = start().await;
    let whole = server.post(CHAT, &body(json!({}))).await.json();
    let message = &whole["choices"][0]["message"];
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("Yes."), &json!("Hm, so."))
    );
    assert_eq!(message["reasoning"], "Hm, so.");
    let details = &whole["usage"]["completion_tokens_details"];
    // Of the tokens of five characters those behind the begin marker, to the one that ends them.
    assert_eq!(details["reasoning_tokens"], 3, "{whole}");
    let chunks = server.post(CHAT, &body(json!({"stream": true}))).await.chunks();
    let joined = |name: &str| -> String {
        let text = |chunk: &Value| {
            chunk["choices"][0]["delta"][name].as_str().unwrap_or_default().to_owned()
        };
        chunks.iter().map(text).collect()
    };
    assert_eq!(
        (joined("content").as_str(), joined("reasoning_content").as_str()),
        ("Yes.", "Hm, so.")
    );
}

#[tokio::test]
async fn anthropic_has_blocks_and_signatures() {
    let server = start().await;
    let whole = server.post("/v1/messages", &body(json!({}))).await.json();
    assert_eq!(whole["content"][0]["thinking"], "Hm, so.", "{whole}");
    assert!(whole["content"][0]["signature"].is_string());
    assert_eq!(whole["content"][1]["text"], "Yes.");
    let streamed = server.post("/v1/messages", &body(json!({"stream": true}))).await.text();
    let order = ["thinking_delta", "signature_delta", "content_block_stop", "text_delta"];
    let places: Vec<usize> = order.iter().map(|name| streamed.find(name).unwrap()).collect();
    assert!(places.is_sorted(), "{streamed}");
}

#[tokio::test]
async fn ollama_has_a_field() {
    let server = start().await;
    let ask = for_ollama(json!({"stream": false, "think": true}));
    let whole = server.post("/api/chat", &ask).await.json();
    assert_eq!(whole["message"]["thinking"], "Hm, so.", "{whole}");
    assert_eq!(whole["message"]["content"], "Yes.");
    let ask = json!({"model": MODEL, "prompt": ANSWER, "stream": false});
    let whole = server.post("/api/generate", &ask).await.json();
    assert_eq!((&whole["thinking"], &whole["response"]), (&json!("Hm, so."), &json!("Yes.")));
}

#[tokio::test]
async fn settings_reach_the_template_and_the_sampler() {
    let server = start().await;
    let off = [("enable_thinking", json!(false)), ("thinking", json!(false))];
    for (path, more, expected, budget) in [
        (CHAT, json!({"reasoning_effort": "low"}), vec![("reasoning_effort", json!("low"))], None),
        (CHAT, json!({"reasoning_effort": "none"}), off.to_vec(), Some(0)),
        (CHAT, json!({"enable_thinking": false}), off.to_vec(), Some(0)),
        (CHAT, json!({"enable_thinking": false, "thinking_budget": 7}), off.to_vec(), Some(0)),
        (CHAT, json!({"thinking_budget": 0}), off.to_vec(), Some(0)),
        (CHAT, json!({"thinking_token_budget": 0}), off.to_vec(), Some(0)),
        (
            CHAT,
            json!({"chat_template_kwargs": {"thinking": false}}),
            vec![("thinking", json!(false))],
            Some(0),
        ),
        (
            CHAT,
            json!({"chat_template_kwargs": {"enable_thinking": true}, "thinking_budget": 7}),
            vec![("enable_thinking", json!(true))],
            Some(7),
        ),
        (
            "/v1/messages",
            json!({"thinking": {"type": "enabled", "budget_tokens": 9}}),
            vec![("enable_thinking", json!(true)), ("thinking", json!(true))],
            Some(9),
        ),
        ("/v1/messages", json!({"thinking": {"type": "disabled"}}), off.to_vec(), Some(0)),
        (
            "/v1/messages",
            json!({"output_config": {"effort": "high"}}),
            vec![("reasoning_effort", json!("high"))],
            None,
        ),
        ("/api/chat", json!({"think": false}), off.to_vec(), Some(0)),
    ] {
        let is_ollama = path.starts_with("/api");
        let ask = if is_ollama { for_ollama(more.clone()) } else { body(more.clone()) };
        let reply = server.post(path, &ask).await;
        assert_eq!(reply.status, 200, "{more}: {}", reply.text());
        let request = server.service.last();
        let engine::Prompt::Chat(conversation) = request.prompt else { panic!("{more}") };
        let given: Vec<(&str, Value)> =
            conversation.extra.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        assert_eq!(given, expected, "{more}");
        assert_eq!(request.params.thoughts.and_then(|thoughts| thoughts.tokens_max), budget);
    }
}

/// A template may open the thoughts all the same, so an answer of a form, too, stands behind them.
#[tokio::test]
async fn a_form_stands_behind_thoughts_that_are_not_wanted() {
    let server = start().await;
    let schema = json!({"type": "object"});
    let form = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let named = json!({"format": {"type": "json_schema", "name": "n", "schema": schema}});
    for (path, more) in [
        (CHAT, json!({"response_format": form, "enable_thinking": false})),
        (CHAT, json!({"tools": tools, "tool_choice": "required", "reasoning_effort": "none"})),
        (
            "/v1/messages",
            json!({"thinking": {"type": "disabled"},
                "output_config": {"format": {"type": "json_schema", "schema": schema}}}),
        ),
        ("/api/chat", json!({"think": false, "format": schema})),
        (
            "/v1/responses",
            json!({"input": "hello", "reasoning": {"effort": "none"}, "text": named}),
        ),
    ] {
        let ask = match path {
            "/v1/responses" => more.clone(),
            _ if path.starts_with("/api") => for_ollama(more.clone()),
            _ => body(more.clone()),
        };
        let reply = server.post(path, &ask).await;
        assert_eq!(reply.status, 200, "{more}: {}", reply.text());
        let params = server.service.last().params;
        assert!(params.constraint.is_some(), "{more}");
        let budget = params.thoughts.and_then(|thoughts| thoughts.tokens_max);
        assert_eq!(budget, Some(0), "{more}");
    }
}

#[tokio::test]
async fn tokens_are_counted_and_told() {
    let server = start().await;
    let ask = json!({"model": MODEL, "messages": [{"role": "user", "content": "a b c"}]});
    let counted = server.post("/v1/messages/count_tokens", &ask).await.json();
    assert_eq!(counted, json!({"input_tokens": 3}));
    let tokens =
        server.post("/tokenize", &json!({"prompt": "a b", "return_token_strs": true})).await;
    let expected = json!({"count": 2, "max_model_len": 4096, "tokens": [0, 1],
        "token_strs": [" w0", " w1"]});
    assert_eq!(tokens.json(), expected);
    assert_eq!(server.post("/tokenize", &ask).await.json()["count"], 3);
    let text = server.post("/detokenize", &json!({"tokens": [4, 5]})).await.json();
    assert_eq!(text, json!({"prompt": " w4 w5", "content": " w4 w5"}), "vLLM's, llama-server's");
    // The script's texts begin with one token that an empty one has, too.
    for (more, tokens) in
        [(json!({}), json!([1, 2])), (json!({"add_special": true}), json!([0, 1, 2]))]
    {
        let mut ask = json!({"content": "a b c"});
        ask.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let told = server.post("/tokenize", &ask).await.json();
        assert_eq!(told, json!({"tokens": tokens}), "{more}");
    }
    let bare = json!({"prompt": "a b", "add_special_tokens": false});
    assert_eq!(server.post("/tokenize", &bare).await.json()["tokens"], json!([1]));
    let pieces = json!({"content": "a", "with_pieces": true});
    assert_eq!(server.post("/tokenize", &pieces).await.param(), "with_pieces");
    assert_eq!(server.post("/detokenize", &json!({})).await.param(), "tokens");
}

#[tokio::test]
async fn an_answer_goes_on_with_the_last_message_where_it_is_asked_to() {
    let server = start().await;
    let turns = |last: Value| json!([{"role": "user", "content": "Count."}, last]);
    let begun = turns(json!({"role": "assistant", "content": "One, two,"}));
    let goes_on = || match server.service.last().prompt {
        engine::Prompt::Chat(conversation) => conversation.is_continued,
        other => panic!("{other:?}"),
    };
    for (path, more, expected) in [
        ("/v1/chat/completions", json!({}), false),
        ("/v1/chat/completions", json!({"continue_final_message": true}), true),
        (
            "/v1/chat/completions",
            json!({"continue_final_message": true, "add_generation_prompt": false}),
            true,
        ),
        // Anthropic's and Ollama's do without being asked.
        ("/v1/messages", json!({"max_tokens": 4}), true),
        ("/api/chat", json!({"stream": false}), true),
    ] {
        let mut body = json!({"model": MODEL, "messages": begun});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 200, "{path} {more}: {}", reply.text());
        assert_eq!(goes_on(), expected, "{path} {more}");
    }
    let call = json!({"role": "assistant", "content": "", "tool_calls": [{"id": "1",
        "type": "function", "function": {"name": "f", "arguments": "{}"}}]});
    for (messages, more, param) in [
        (begun.clone(), json!({"add_generation_prompt": true}), "add_generation_prompt"),
        (turns(json!({"role": "user", "content": "Go."})), json!({}), "continue_final_message"),
        (turns(json!({"role": "assistant", "content": ""})), json!({}), "continue_final_message"),
        (turns(call), json!({}), "continue_final_message"),
        (
            begun.clone(),
            json!({"continue_final_message": false, "add_generation_prompt": false}),
            "add_generation_prompt",
        ),
    ] {
        let mut body = json!({"messages": messages, "continue_final_message": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = server.post("/v1/chat/completions", &body).await;
        assert_eq!((reply.status, reply.param().as_str()), (400, param), "{body}");
    }
}
