//! Is every way of asking for a constrained answer read, and what is wrong named?
#![allow(clippy::unwrap_used, reason = "tests")]

use messages::Constraint;
use serde_json::{Value, json};

use crate::answers::{chat, text};
use crate::client::{CHAT, TEXT, start};

fn schema(text: &str) -> Option<Constraint> {
    Some(Constraint::JsonSchema(text.into()))
}

fn format(schema: &Value) -> Value {
    json!({"response_format": {
        "type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}
    }})
}

#[tokio::test]
async fn constraints_reach_the_engine() {
    let server = start().await;
    // The order of properties is the order of the answer's: it must survive.
    let object = json!({"type": "object", "properties": {"z": {}, "a": {}}});
    let written = "{\"type\":\"object\",\"properties\":{\"z\":{},\"a\":{}}}";
    let spaced = " {\"type\": \"object\",\n\"properties\": {\"z\": {}, \"a\": {}}}";
    let choice = Constraint::Choice(["yes", "no"].map(str::to_owned).into());
    let regex = Constraint::Regex("a+".into());
    let grammar = Constraint::Grammar("start: \"a\"".into());
    for (fields, expected) in [
        (json!({}), None),
        (json!({"response_format": null, "guided_json": null}), None),
        (json!({"response_format": {"type": "text"}}), None),
        (json!({"response_format": {"type": "json_object"}}), Some(Constraint::JsonObject)),
        (format(&object), schema(written)),
        (json!({"guided_json": object}), schema(written)),
        (json!({"guided_json": spaced}), schema(written)),
        (json!({"guided_regex": "a+"}), Some(regex.clone())),
        (json!({"guided_choice": ["yes", "no"]}), Some(choice.clone())),
        (json!({"guided_grammar": "start: \"a\""}), Some(grammar.clone())),
        (json!({"structured_outputs": {"json": object}}), schema(written)),
        (json!({"structured_outputs": {"json_object": true}}), Some(Constraint::JsonObject)),
        (json!({"structured_outputs": {"regex": "a+", "json": null}}), Some(regex)),
        (json!({"structured_outputs": {"choice": ["yes", "no"]}}), Some(choice)),
        (json!({"structured_outputs": {"grammar": "start: \"a\""}}), Some(grammar)),
    ] {
        for (path, body) in
            [(CHAT, chat("a", fields.clone())), (TEXT, text(json!("a"), fields.clone()))]
        {
            let reply = server.post(path, &body).await;
            assert_eq!(reply.status, 200, "{path} {fields}: {}", reply.text());
            assert_eq!(server.service.last().params.constraint, expected, "{path} {fields}");
        }
    }
}

#[tokio::test]
async fn constraints_that_cannot_be_meant_are_a_400() {
    let server = start().await;
    let long = "a".repeat(300 << 10);
    let both = json!({"json": {}, "regex": "a"});
    for (field, fields) in [
        ("response_format", json!({"response_format": "json"})),
        ("response_format", json!({"response_format": {}})),
        ("response_format", json!({"response_format": {"type": "structural_tag"}})),
        ("response_format", json!({"response_format": {"type": "json_schema"}})),
        ("response_format", json!({"response_format": {"type": "json_object", "schema": {}}})),
        ("response_format", json!({"response_format": {"type": "text", "json_schema": {}}})),
        (
            "response_format",
            json!({"response_format": {"type": "json_schema", "json_schema": {"strict": true}}}),
        ),
        (
            "response_format",
            json!({"response_format": {"type": "json_schema", "json_schema": {"schem": {}}}}),
        ),
        ("guided_json", json!({"guided_json": {"a": long}})),
        ("guided_regex", json!({"guided_regex": 5})),
        ("guided_regex", json!({"guided_regex": "a", "guided_choice": null, "guided_json": {}})),
        ("guided_choice", json!({"guided_choice": "yes"})),
        (
            "guided_choice",
            json!({"guided_choice": ["a"], "response_format": {"type": "json_object"}}),
        ),
        ("guided_grammar", json!({"guided_grammar": ["a"]})),
        ("guided_whitespace_pattern", json!({"guided_json": {}, "guided_whitespace_pattern": "a"})),
        ("structured_outputs", json!({"structured_outputs": {}})),
        ("structured_outputs", json!({"structured_outputs": {"json_object": false}})),
        ("structured_outputs", json!({"structured_outputs": both})),
        ("structured_outputs", json!({"structured_outputs": {"structural_tag": "a"}})),
        ("ignore_eos", json!({"guided_regex": "a", "ignore_eos": true})),
        ("min_tokens", json!({"guided_regex": "a", "min_tokens": 1})),
    ] {
        for (path, body) in
            [(CHAT, chat("a", fields.clone())), (TEXT, text(json!("a"), fields.clone()))]
        {
            let reply = server.post(path, &body).await;
            let shown = format!("{path} {field}: {}", reply.text());
            assert_eq!(reply.status, 400, "{shown}");
            assert!(reply.param().starts_with(field), "{shown}");
        }
    }
    assert_eq!(server.service.live(), 0);
}
