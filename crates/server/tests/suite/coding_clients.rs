//! Are the requests that coding tools send understood, in all of their fields?
//!
//! The bodies under `clients/` have the fields of requests that Claude Code (2.1.197) and Codex
//! (0.171) send today, in their places and types, with words of ours.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};

use crate::client::{Running, start};
use crate::scripted::MODEL;

const CLAUDE_CODE: &str = include_str!("clients/claude-code.json");
const CODEX: &str = include_str!("clients/codex.json");

/// A body that asks this server's model, which answers with `said`.
fn asked(body: &str, place: &str, said: &str) -> Value {
    let mut body: Value = serde_json::from_str(body).unwrap();
    body["model"] = json!(MODEL);
    let list = body[place].as_array_mut().unwrap();
    list.push(json!({"role": "user", "content": format!("!say {said}")}));
    body
}

fn conversation(server: &Running) -> chat::Conversation {
    match server.service.last().prompt {
        engine::Prompt::Chat(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

fn names(conversation: &chat::Conversation) -> Vec<String> {
    let tools = conversation.tools.as_ref().unwrap().as_array().unwrap();
    tools.iter().map(|tool| tool["function"]["name"].as_str().unwrap().to_owned()).collect()
}

fn roles(conversation: &chat::Conversation) -> Vec<&str> {
    conversation.messages.iter().map(|message| message.role.as_str()).collect()
}

fn events(text: &str) -> Vec<Value> {
    let data = |event: &str| serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap();
    text.split_terminator("\n\n").map(data).collect()
}

#[tokio::test]
async fn claude_code_is_understood() {
    let server = start().await;
    let call = "<tool_call>{\"name\": \"mcp__git__log\", \"arguments\": {}}</tool_call>";
    let body = asked(CLAUDE_CODE, "messages", call);
    let reply = server.post("/v1/messages?beta=true", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let told = events(&reply.text());
    let block = told.iter().find(|event| event["content_block"]["type"] == "tool_use").unwrap();
    assert_eq!(block["content_block"]["name"], "mcp__git__log");
    let heard = conversation(&server);
    assert_eq!(roles(&heard), ["system", "user", "system", "assistant", "tool", "user"]);
    assert_eq!(heard.messages[3].reasoning_content.as_deref(), Some("I look for a tool."));
    let result = heard.messages[4].content.as_deref().unwrap();
    assert!(result.contains("mcp__git__log"), "{result}");
    // What a result refers to is loaded; what none does waits, and the search of the web is the
    // vendor's.
    assert_eq!(names(&heard), ["Read", "ToolSearch", "mcp__git__log"]);
    assert_eq!(heard.extra["reasoning_effort"], "high");

    let mut counted = body.clone();
    for name in ["max_tokens", "stream", "temperature"] {
        counted.as_object_mut().unwrap().remove(name);
    }
    assert_eq!(server.post("/v1/messages/count_tokens", &counted).await.status, 200);

    let mut turns = body.clone();
    turns["context_management"]["edits"][0]["keep"] = Value::Null;
    turns["messages"].as_array_mut().unwrap().insert(0, json!({"role": "user", "content": "Hi"}));
    let earlier = json!({"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello."}]});
    turns["messages"].as_array_mut().unwrap().insert(1, earlier);
    assert_eq!(server.post("/v1/messages", &turns).await.status, 200);
    let thoughts: Vec<String> =
        conversation(&server).messages.into_iter().filter_map(|m| m.reasoning_content).collect();
    assert_eq!(thoughts, ["I look for a tool."]);

    let mut forced = body.clone();
    forced["tool_choice"] = json!({"type": "tool", "name": "web_search"});
    let refused = server.post("/v1/messages", &forced).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("web_search"), "{}", refused.text());
    let mut searched = body;
    searched["tools"][1] = json!({"type": "tool_search_tool_regex_20251119", "name": "find"});
    assert_eq!(server.post("/v1/messages", &searched).await.status, 200);
    // Nobody here would find them: all are told.
    assert_eq!(names(&conversation(&server)), ["Read", "mcp__git__log", "mcp__git__push"]);
}

#[tokio::test]
async fn codex_is_understood() {
    let server = start().await;
    let said = "<tool_call>{\"name\": \"apply_patch\", \"arguments\": {\"input\": \"*** a\\n\"}}\
                </tool_call><tool_call>{\"name\": \"mcp__git.log\", \"arguments\": {}}</tool_call>";
    let body = asked(CODEX, "input", said);
    let reply = server.post("/v1/responses", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let told = events(&reply.text());
    let of = |kind: &str| told.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    assert_eq!(of("response.custom_tool_call_input.delta")[0]["delta"], "*** a\n");
    assert_eq!(of("response.custom_tool_call_input.done")[0]["input"], "*** a\n");
    let done: Vec<&Value> =
        of("response.output_item.done").into_iter().map(|event| &event["item"]).collect();
    assert_eq!(
        (&done[0]["type"], &done[0]["name"]),
        (&json!("custom_tool_call"), &json!("apply_patch"))
    );
    assert_eq!(done[0]["input"], "*** a\n");
    assert_eq!(
        (&done[1]["type"], &done[1]["namespace"], &done[1]["name"]),
        (&json!("function_call"), &json!("mcp__git"), &json!("log"))
    );
    let last = &told.last().unwrap()["response"];
    assert_eq!(
        (&last["text"]["verbosity"], last["tools"].as_array().unwrap().len()),
        (&json!("low"), 3)
    );
    assert_eq!(last["output"][0], *done[0]);

    let heard = conversation(&server);
    // The model's template knows no developer.
    assert_eq!(roles(&heard)[..3], ["system", "system", "user"]);
    assert_eq!(names(&heard), ["exec_command", "apply_patch", "mcp__git.log"]);
    assert_eq!(
        heard.messages[0].content.as_deref(),
        Some("You help with the code of this folder.")
    );
    let said: Vec<String> = heard
        .messages
        .iter()
        .filter_map(|message| message.tool_calls.as_ref())
        .map(|calls| calls[0]["function"]["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(said, ["exec_command", "mcp__git.log", "apply_patch"]);

    let mut forced = body;
    forced["tool_choice"] = json!({"type": "web_search"});
    let refused = server.post("/v1/responses", &forced).await;
    assert_eq!((refused.status, refused.param().as_str()), (400, "tool_choice"));
}

#[tokio::test]
async fn a_stored_call_with_a_text_goes_on_and_is_referred_to() {
    let server = start().await;
    let mut body = asked(
        CODEX,
        "input",
        "<tool_call>{\"name\": \"apply_patch\", \"arguments\": \
                         {\"input\": \"x\"}}</tool_call>",
    );
    body["store"] = json!(true);
    body["stream"] = json!(false);
    let first = server.post("/v1/responses", &body).await.json();
    let item = &first["output"][0];
    let result = json!({"type": "custom_tool_call_output", "call_id": item["call_id"],
        "output": "done"});
    let calls = |server: &Running| -> Vec<Value> {
        let messages = conversation(server).messages;
        messages.into_iter().filter_map(|message| message.tool_calls).collect()
    };
    let on = json!({"model": MODEL, "previous_response_id": first["id"], "input": [result]});
    assert_eq!(server.post("/v1/responses", &on).await.status, 200);
    let continued = calls(&server).pop().unwrap();
    assert_eq!(
        continued[0]["function"],
        json!({"name": "apply_patch", "arguments": {"input": "x"}})
    );
    let reference = json!({"type": "item_reference", "id": item["id"]});
    let again = json!({"model": MODEL, "input": [reference, result]});
    let reply = server.post("/v1/responses", &again).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(calls(&server), [continued]);
    let unknown = json!({"model": MODEL, "input": [{"type": "item_reference", "id": "msg_x"}]});
    assert_eq!(server.post("/v1/responses", &unknown).await.param(), "input[0].id");
}
