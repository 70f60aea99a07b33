//! Does the responses API tell, keep and go on with answers as OpenAI's clients expect?
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::client::{Running, read_reply, start};
use crate::scripted::MODEL;
use tokio::io::AsyncWriteExt;

const PATH: &str = "/v1/responses";
const ANSWER: &str = "!say <think>Hm.</think>Let me see.<tool_call>{\"name\": \"weather\", \
                      \"arguments\": {\"city\": \"Bern\"}}</tool_call>";

fn body(input: &str, more: Value) -> Value {
    let tools = json!([{"type": "function", "name": "weather", "strict": false,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]);
    let mut body = json!({"model": MODEL, "input": input, "tools": tools});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The same without what is fresh in each.
fn without_ids(mut response: Value) -> Value {
    for name in ["id", "created_at"] {
        response.as_object_mut().unwrap().remove(name);
    }
    for item in response["output"].as_array_mut().unwrap() {
        for name in ["id", "call_id"] {
            item.as_object_mut().unwrap().remove(name);
        }
    }
    response
}

fn events(text: &str) -> Vec<Value> {
    text.split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap())
        .collect()
}

#[tokio::test]
async fn whole_and_streamed_agree() {
    let server = start().await;
    let whole = server.post(PATH, &body(ANSWER, json!({}))).await.json();
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("completed")));
    let kinds: Vec<&str> =
        whole["output"].as_array().unwrap().iter().map(|i| i["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call"], "{whole}");
    assert_eq!(whole["output"][1]["content"][0]["text"], "Let me see.");
    assert_eq!(whole["output"][2]["arguments"], "{\"city\": \"Bern\"}");
    assert!(whole["usage"]["output_tokens_details"]["reasoning_tokens"].is_number());

    let text = server.post(PATH, &body(ANSWER, json!({"stream": true}))).await.text();
    let events = events(&text);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let mut names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    names.dedup();
    let of_text = |kind: &str| {
        let name = |end: &str| format!("response.{kind}.{end}");
        vec![
            "response.output_item.added".to_owned(),
            "response.content_part.added".to_owned(),
            name("delta"),
            name("done"),
            "response.content_part.done".to_owned(),
            "response.output_item.done".to_owned(),
        ]
    };
    let call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ];
    let mut expected = vec!["response.created".to_owned(), "response.in_progress".to_owned()];
    expected.extend(of_text("reasoning_text"));
    expected.extend(of_text("output_text"));
    expected.extend(call.map(str::to_owned));
    expected.push("response.completed".to_owned());
    assert_eq!(names, expected);
    let last = events.last().unwrap()["response"].clone();
    assert_eq!(without_ids(last), without_ids(whole));
}

fn conversation(server: &Running) -> Vec<chat::Message> {
    match server.service.last().prompt {
        engine::Prompt::Chat(conversation) => conversation.messages,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_conversation_goes_on() {
    let server = start().await;
    let first = server.post(PATH, &body(ANSWER, json!({"instructions": "Be kind."}))).await.json();
    assert_eq!(conversation(&server)[0].content.as_deref(), Some("Be kind."));
    let call_id = first["output"][2]["call_id"].clone();
    let input = json!([{"type": "function_call_output", "call_id": call_id, "output": "sunny"}]);
    let more = json!({"input": input, "previous_response_id": first["id"]});
    let second = server.post(PATH, &body("", more)).await.json();
    assert_eq!(second["previous_response_id"], first["id"]);
    let told = conversation(&server);
    let roles: Vec<&str> = told.iter().map(|message| message.role.as_str()).collect();
    // Instructions hold for one response only.
    assert_eq!(roles, ["user", "assistant", "tool"]);
    assert_eq!(told[1].tool_calls.as_ref().unwrap()[0]["id"], call_id);
    assert_eq!(told[1].reasoning_content.as_deref(), Some("Hm."));
    assert_eq!(told[2].tool_call_id.as_deref(), call_id.as_str());

    let id = first["id"].as_str().unwrap();
    let path = format!("{PATH}/{id}");
    assert_eq!(server.get(&path).await.json(), first);
    let items = server.get(&format!("{path}/input_items")).await.json();
    assert_eq!(items["data"][0]["content"][0]["text"], ANSWER);
    assert_eq!(remove(&server, &path).await["deleted"], true);
    assert_eq!(server.get(&path).await.status, 404);
    let again = json!({"previous_response_id": id});
    let gone = server.post(PATH, &body("x", again)).await;
    assert_eq!((gone.status, gone.param().as_str()), (404, "previous_response_id"));
}

async fn remove(server: &Running, path: &str) -> Value {
    let mut stream = server.connect().await;
    let head = format!("DELETE {path} HTTP/1.1\r\nhost: {}\r\n\r\n", server.address);
    stream.write_all(head.as_bytes()).await.unwrap();
    read_reply(&mut stream).await.unwrap().json()
}

#[tokio::test]
async fn others_do_not_find_it_and_nothing_is_kept_unasked() {
    let server = start().await;
    let kept = server.post(PATH, &body("hello", json!({}))).await.json();
    let path = format!("{PATH}/{}", kept["id"].as_str().unwrap());
    let other = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer other\r\n\r\n",
        server.address
    );
    assert_eq!(server.raw(other.as_bytes()).await.unwrap().status, 404);
    assert_eq!(server.get(&path).await.status, 200);
    let unkept = server.post(PATH, &body("hello", json!({"store": false}))).await.json();
    assert_eq!(unkept["store"], false);
    let path = format!("{PATH}/{}", unkept["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.status, 404);
}

#[tokio::test]
async fn items_come_in_pages_and_no_parameter_is_passed_over() {
    let server = start().await;
    let input: Vec<Value> =
        (0..3).map(|n| json!({"id": format!("in_{n}"), "role": "user", "content": "x"})).collect();
    let kept = server.post(PATH, &body("", json!({"input": input}))).await.json();
    let path = format!("{PATH}/{}", kept["id"].as_str().unwrap());
    let page = async |query: &str| {
        let page = server.get(&format!("{path}/input_items{query}")).await.json();
        let ids = page["data"].as_array().unwrap().iter();
        let ids: Vec<String> = ids.map(|item| item["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!((&page["first_id"], &page["last_id"]), (&json!(ids[0]), &json!(ids.last())));
        (ids.join(" "), page["has_more"] == true)
    };
    assert_eq!(page("").await, ("in_2 in_1 in_0".to_owned(), false));
    assert_eq!(page("?order=asc&limit=2").await, ("in_0 in_1".to_owned(), true));
    assert_eq!(page("?limit=1&after=in_2").await, ("in_1".to_owned(), true));
    for (path, param) in [
        (format!("{path}/input_items?limit=0"), "limit"),
        (format!("{path}/input_items?order=up"), "order"),
        (format!("{path}/input_items?after=in_9"), "after"),
        (format!("{path}/input_items?foo=1"), "foo"),
        (format!("{path}?stream=true"), "stream"),
        (format!("{path}?include[]=x"), "include[]"),
    ] {
        let refused = server.get(&path).await;
        assert_eq!((refused.status, refused.param().as_str()), (400, param), "{path}");
    }
    assert_eq!(server.get(&format!("{path}?stream=false")).await.status, 200);
}

#[tokio::test]
async fn scores_of_tokens_come_with_the_text_and_with_its_pieces() {
    let server = start().await;
    let asked = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2,
        "max_output_tokens": 3, "temperature": 0});
    let whole = server.post(PATH, &body("hello", asked.clone())).await.json();
    assert_eq!(whole["top_logprobs"], 2);
    let part = &whole["output"][0]["content"][0];
    let scores = part["logprobs"].as_array().unwrap();
    let spelled = scores.iter().map(|score| score["token"].as_str().unwrap());
    assert_eq!((scores.len(), spelled.collect::<String>().as_str()), (3, text_of(part)));
    assert_eq!(scores[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let mut streamed = asked;
    streamed["stream"] = json!(true);
    let told = server.post(PATH, &body("hello", streamed)).await.text();
    let of = |kind: &str| -> Vec<Value> {
        let all = events(&told).into_iter().filter(|event| event["type"] == kind);
        all.flat_map(|event| event["logprobs"].as_array().unwrap().clone()).collect()
    };
    assert_eq!(of("response.output_text.delta"), *scores);
    assert_eq!(of("response.output_text.done"), *scores);
    let plain = server.post(PATH, &body("hello", json!({}))).await.json();
    assert_eq!(plain["output"][0]["content"][0]["logprobs"], json!([]));
}

fn text_of(part: &Value) -> &str {
    part["text"].as_str().unwrap()
}

#[tokio::test]
async fn settings_are_read_and_repeated() {
    let server = start().await;
    let format = json!({"type": "json_schema", "name": "x", "schema": {"type": "object"}});
    let more = json!({"tools": [], "text": {"format": format}, "temperature": 0.5, "seed": 3,
        "max_output_tokens": 2, "reasoning": {"effort": "low", "summary": "auto"},
        "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content"]});
    let response = server.post(PATH, &body("hello", more)).await.json();
    assert_eq!(
        (&response["status"], &response["temperature"]),
        (&json!("incomplete"), &json!(0.5))
    );
    assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(response["text"]["format"], format);
    assert_eq!(response["metadata"], json!({"a": "b"}));
    let params = server.service.last().params;
    assert_eq!((params.max_tokens, params.seed), (Some(2), Some(3)));
    assert!(params.constraint.is_some());
    for (more, param) in [
        (json!({"input": null}), "input"),
        (json!({"tools": [{"type": "local_shell"}]}), "tools[0].type"),
        (json!({"text": {"verbosity": "none"}}), "text"),
        (json!({"text": {"format": {"type": "xml"}}}), "text"),
        (json!({"background": true}), "background"),
        (json!({"include": ["web_search_call.results"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
        (json!({"temprature": 1}), "temprature"),
    ] {
        let refused = server.post(PATH, &body("x", more.clone())).await;
        assert_eq!((refused.status, refused.param().as_str()), (400, param), "{more}");
    }
    let failed = server.post(PATH, &body("!fail", json!({"stream": true}))).await.text();
    let last = events(&failed).pop().unwrap();
    assert_eq!(last["type"], "error");
}
