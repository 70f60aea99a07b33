//! Is what the masks allow valid, by the instances of JSON-Schema-Test-Suite?
//!
//! `schemas.json` is every fourth group of the suite's draft 2020-12
//! (<https://github.com/json-schema-org/JSON-Schema-Test-Suite>, MIT license, copyright 2012 Julian
//! Berman), written by `tools/schemas/check.py --sample`, which asks all of it with a whole
//! vocabulary.

#![allow(clippy::unwrap_used, reason = "tests")]

mod tiny;

use messages::Constraint;
use ops::constraint::Matcher;
use serde_json::Value;
use tiny::grammars;

/// Whether the masks let this text be written, token by token, and be an answer.
fn accepts(matcher: &mut dyn Matcher, text: &str) -> bool {
    let is_allowed =
        |words: &[u32], token: u32| words[token as usize / 32] >> (token % 32) & 1 == 1;
    for byte in text.bytes() {
        let token = 3 + u32::from(byte);
        match matcher.allowed() {
            Ok(words) if is_allowed(words, token) => matcher.advance(token),
            _ => return false,
        }
    }
    matcher.allowed().is_ok_and(|words| is_allowed(words, 0))
}

#[test]
fn no_instance_that_a_public_suite_calls_invalid_can_be_written() {
    let groups: Vec<Value> = serde_json::from_str(include_str!("schemas.json")).unwrap();
    let grammars = grammars();
    let (mut followed, mut valid, mut written) = (0, 0, 0);
    for group in &groups {
        let constraint = Constraint::JsonSchema(group["schema"].to_string().into());
        // What cannot be followed is refused: an answer has its constraint or there is none.
        let Ok(grammar) = grammars.compile(&constraint) else { continue };
        followed += 1;
        for test in group["tests"].as_array().unwrap() {
            let text = test["data"].to_string();
            let accepted = accepts(&mut *grammar.0.matcher(), &text);
            let is_valid = test["valid"].as_bool().unwrap();
            assert!(is_valid || !accepted, "{} {}: {text}", group["file"], group["description"]);
            valid += u32::from(is_valid);
            written += u32::from(accepted);
        }
    }
    assert_eq!(groups.len(), 92);
    // Not more: an object's fields come in the order of the schema, `1.0` is no integer...
    assert_eq!((followed, valid, written), (39, 84, 79));
}
