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
        ("start: <|eot|>", ""),
    ] {
        refused(&Constraint::Grammar(text.into()), part);
    }
    refused(&Constraint::Choice([].into()), "0 texts");
    refused(&Constraint::Choice([String::new()].into()), "empty");
    refused(&Constraint::Choice(vec!["a".to_owned(); 2000].into()), "2000 texts");
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
