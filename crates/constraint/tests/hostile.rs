//! Is every text of a stranger compiled or refused, within bounds?

#![allow(clippy::unwrap_used, reason = "tests")]

mod tiny;

use constraint::ConstraintError;
use messages::Constraint;
use serde_json::{Value, json};
use tiny::grammars;

fn refused(constraint: &Constraint, part: &str) {
    let Err(error) = grammars().compile(constraint) else {
        panic!("{constraint:?} is not refused, for {part}");
    };
    let text = error.to_string();
    assert!(matches!(error, ConstraintError::Invalid { .. }), "{text}");
    assert!(text.contains(part) && text.len() < 500, "{constraint:?}: {text}");
    assert!(!text.chars().any(char::is_control), "{text}");
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let schema = |value: Value| Constraint::JsonSchema(value.to_string().into());
    for (value, part) in [
        (json!({"type": "strin"}), ""),
        (json!([]), "JSON object"),
        (json!(false), "no answer"),
        (json!({"type": "object", "x-guidance": {"lenient": true}}), "x-guidance"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"type": "string", "format": "no-such-format"}), ""),
        (json!({"$ref": "#/$defs/missing"}), ""),
        (json!({"$ref": "https://example.com/schema.json"}), ""),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), ""),
        (json!({"type": "string", "pattern": "("}), ""),
        (json!({"oneOf": [{"type": "integer"}, {"minimum": 3}]}), "anyOf"),
    ] {
        refused(&schema(value), part);
    }
    refused(&Constraint::JsonSchema("{".into()), "JSON schema");
    for text in ["", "^$", "(", "a{", "\\", "(?=a)b"] {
        refused(&Constraint::Regex(text.into()), "regular expression");
    }
    refused(&Constraint::Regex("(a".into()), "unclosed group");
    for (text, part) in [
        ("", "empty"),
        ("start: nothing", ""),
        ("root ::= a", "not defined"),
        ("start: a\na[temperature=0.5]: \"a\"", "temperature"),
        ("start: %json {\"x-guidance\": {\"lenient\": true}}", "x-guidance"),
        ("start: <|nobody|>", "`<|nobody|>` names no control token"),
        ("root ::= <|nobody|>", ""),
    ] {
        refused(&Constraint::Grammar(text.into()), part);
    }
    refused(&Constraint::Choice([].into()), "0 texts");
    refused(&Constraint::Choice([String::new()].into()), "empty");
    refused(&Constraint::Choice(vec!["a".to_owned(); 2000].into()), "2000 texts");
}

/// Each allowed an answer that a validator refuses.
#[test]
fn what_would_be_followed_only_nearly_is_refused() {
    let near = json!({"exclusiveMinimum": 0});
    let map = json!({"type": "object", "patternProperties": {"^[ab]$": {"type": "integer"}},
        "additionalProperties": false});
    let with = |name: &str, value: Value| {
        let mut schema = map.clone();
        schema[name] = value;
        schema
    };
    let mut required = with("minProperties", json!(3));
    required["required"] = json!(["a"]);
    let big = 9_007_199_254_740_993_u64;
    for (value, part) in [
        (json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.001}), "bound 0"),
        (json!({"type": "number", "exclusiveMinimum": 5, "exclusiveMaximum": 5.5}), "bound 5"),
        (json!({"type": "number", "minimum": -5.5, "exclusiveMaximum": -5}), "bound -5"),
        (json!({"type": "number", "minimum": 0, "exclusiveMinimum": true, "maximum": 0.5}), "0"),
        (json!({"type": "number", "maximum": 0.5, "allOf": [near]}), "bound 0"),
        (
            json!({"properties": {"a": {"$ref": "#/x/y", "maximum": 0.5}}, "x": {"y": near}}),
            "bound 0",
        ),
        (with("minProperties", json!(2)), "minProperties"),
        (required, "minProperties"),
        (json!({"enum": ["a", [{"b": big}]]}), "9007199254740993"),
        (json!({"const": -9_007_199_254_740_993_i64}), "more digits"),
        (json!({"const": 12_345_678_901_234_567_890_u64}), "more digits"),
        (json!({"const": 1.2e29}), "more digits"),
        (json!({"type": "integer", "minimum": big}), "minimum"),
        (json!({"type": "integer", "maximum": 9_007_199_254_740_995_u64}), "maximum"),
        (
            json!({"type": "integer", "exclusiveMinimum": 9_007_199_254_740_992_u64}),
            "exclusiveMinimum is",
        ),
        (json!({"type": "number", "maximum": u64::MAX}), "maximum"),
        (json!({"type": "integer", "minimum": 1e20}), "minimum"),
    ] {
        let value = json!({"type": "array", "items": {"anyOf": [value]}, "x": value["x"]});
        refused(&Constraint::JsonSchema(value.to_string().into()), part);
        let rules = Constraint::Calls {
            rules: "start: schema_0".into(),
            markers: [].into(),
            schemas: [value.to_string()].into(),
        };
        assert!(grammars().compile(&rules).is_err(), "{value}");
    }
}

#[test]
fn what_is_followed_exactly_is_not_refused() {
    for value in [
        json!({"type": "number", "exclusiveMinimum": 0}),
        json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
        json!({"type": "number", "exclusiveMinimum": 0.0001, "maximum": 0.001}),
        json!({"type": "number", "minimum": 0, "maximum": 0.001}),
        json!({"type": "integer", "exclusiveMinimum": 0, "maximum": 5}),
        json!({"type": "integer", "minimum": -5, "maximum": i64::MAX}),
        json!({"type": "integer", "minimum": 0, "maximum": u64::MAX}),
        json!({"type": "integer", "minimum": 0, "maximum": 9_007_199_254_740_992_u64}),
        json!({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1}),
        json!({"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"],
            "minProperties": 2}),
        json!({"enum": [1, 2.5, -0.25, 9_007_199_254_740_992_u64]}),
        json!({"properties": {"const": {"type": "string"}, "minimum": {"enum": ["a"]}}}),
        json!({"examples": [9_007_199_254_740_993_u64], "type": "integer"}),
    ] {
        let compiled = grammars().compile(&Constraint::JsonSchema(value.to_string().into()));
        compiled.unwrap_or_else(|why| panic!("{value}: {why}"));
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let long = "a".repeat(70_000);
    refused(&Constraint::Regex(long.as_str().into()), "70000 bytes");
    for (open, close) in [("(", ")"), ("[", "]")] {
        let deep = format!("{}a{}", open.repeat(5000), close.repeat(5000));
        refused(&Constraint::Regex(deep.as_str().into()), "deep");
        let rule = format!("start: {deep}");
        refused(&Constraint::Grammar(rule.into()), "deep");
    }
}

/// Each is answered at all, and the process lives: what of them the library can follow is its
/// own affair.
#[test]
fn texts_made_to_do_harm_do_none() {
    let chain: String = (0..4000).map(|rule| format!("r{rule}: r{}\n", rule + 1)).collect();
    let doubling: String = (0..40).map(|rule| format!("d{rule}: d{0} d{0}\n", rule + 1)).collect();
    let unions: Vec<Value> =
        (0..30).map(|at| json!({"anyOf": [{"minLength": at}, {"maxLength": 99 - at}]})).collect();
    let laughs: serde_json::Map<String, Value> = (0..40)
        .map(|at| {
            let next = json!({"$ref": format!("#/$defs/a{}", at + 1)});
            (format!("a{at}"), json!({"allOf": [next, next]}))
        })
        .chain([("a40".to_owned(), json!({"type": "string"}))])
        .collect();
    let texts = [
        Constraint::Regex("(a{1,1000}){1,1000}".into()),
        Constraint::Regex("((((a?){30}){30}){30}){30}".into()),
        Constraint::Regex("(.*a){20}.{500}".into()),
        Constraint::Regex("a?".repeat(8000).into()),
        Constraint::Regex("ab".repeat(8000).into()),
        Constraint::Grammar(format!("start: r0\n{chain}r4000: \"a\"").into()),
        Constraint::Grammar(format!("start: d0\n{doubling}d40: \"a\"").into()),
        Constraint::Grammar("start: start start | \"a\" | ".into()),
        Constraint::JsonSchema(json!({"allOf": unions}).to_string().into()),
        Constraint::JsonSchema(json!({"$ref": "#/$defs/a0", "$defs": laughs}).to_string().into()),
        Constraint::JsonSchema(json!({"$ref": "#"}).to_string().into()),
        Constraint::JsonSchema(
            json!({"type": "string", "maxLength": 4_000_000_000u64}).to_string().into(),
        ),
    ];
    let grammars = grammars();
    for text in texts {
        let Ok(grammar) = grammars.compile(&text) else { continue };
        let mut at = grammar.0.matcher();
        for _ in 0..50 {
            if at.allowed().is_err() {
                break;
            }
            at.advance(3 + u32::from(b'a'));
        }
    }
}
