//! Does every answer that the masks allow belong to the constraint?

#![allow(clippy::unwrap_used, reason = "tests")]

mod tiny;

use std::collections::BTreeSet;

use messages::Constraint;
use ops::constraint::Matcher;
use serde_json::{Value, json};
use tiny::{bytes_of, grammars};

fn allowed(matcher: &mut dyn Matcher) -> Vec<u32> {
    let words = matcher.allowed().unwrap();
    (0..words.len() as u32 * 32)
        .filter(|token| words[*token as usize / 32] >> (token % 32) & 1 == 1)
        .collect()
}

/// As texts; the ends as `$`.
fn spelled(matcher: &mut dyn Matcher) -> BTreeSet<String> {
    let spell = |&token: &u32| match token {
        0 | 1 => "$".to_owned(),
        _ => String::from_utf8_lossy(&bytes_of(token)).into_owned(),
    };
    allowed(matcher).iter().map(spell).collect()
}

fn spell(matcher: &mut dyn Matcher, text: &str) {
    text.bytes().for_each(|byte| matcher.advance(3 + u32::from(byte)));
}

fn matcher(constraint: &Constraint) -> Box<dyn Matcher> {
    grammars().compile(constraint).unwrap().0.matcher()
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn masks_are_what_may_come_next() {
    let choice = Constraint::Choice(["abcd".to_owned(), "ax/".to_owned(), "a".to_owned()].into());
    let mut at = matcher(&choice);
    assert_eq!(spelled(at.as_mut()), set(&["a", "ab", "abc"]));
    spell(at.as_mut(), "a");
    assert_eq!(spelled(at.as_mut()), set(&["b", "x", "$"]));
    spell(at.as_mut(), "x");
    assert_eq!(spelled(at.as_mut()), set(&["/"]));
    spell(at.as_mut(), "/");
    // Both ends, whatever comes after them, and nothing else.
    for token in [None, Some(1), Some(7)] {
        token.into_iter().for_each(|token| at.advance(token));
        assert_eq!(allowed(at.as_mut()), [0, 1]);
    }
    let mut at = matcher(&Constraint::Regex("^[12]{2}\\$?$".into()));
    assert_eq!(spelled(at.as_mut()), set(&["1", "2", "12"]));
    at.advance(259 + 5);
    assert_eq!(spelled(at.as_mut()).len(), 1, "the dollar is text or the end");
    assert_eq!(allowed(at.as_mut()), [0, 1, 3 + u32::from(b'$')]);
    let mut at = matcher(&Constraint::Grammar("start: \"yes\" | word\nword: /t/ \"r\"".into()));
    assert_eq!(spelled(at.as_mut()), set(&["y", "yes", "t", "tr"]));
    let mut at = matcher(&Constraint::JsonObject);
    assert_eq!(spelled(at.as_mut()), set(&["{", "{\""]));
}

#[test]
fn what_breaks_the_grammar_is_told_at_the_next_mask() {
    let mut at = matcher(&Constraint::Regex("[12]+".into()));
    spell(at.as_mut(), "1x");
    assert!(at.allowed().is_err_and(|text| !text.is_empty()));
    spell(at.as_mut(), "1");
    assert!(at.allowed().is_err(), "and it stays an error");
}

#[test]
fn sequences_of_one_grammar_do_not_feel_each_other() {
    let grammars = grammars();
    let constraint = Constraint::Regex("ab*c".into());
    let [first, second] = [(); 2].map(|()| grammars.compile(&constraint).unwrap());
    assert_eq!(first, second, "it is remembered");
    let (mut one, mut other) = (first.0.matcher(), second.0.matcher());
    spell(one.as_mut(), "abb");
    assert_eq!(spelled(other.as_mut()), set(&["a", "ab", "abc"]));
    assert_eq!(spelled(one.as_mut()), set(&["b", "c"]));
}

/// Schemas whose answers are of bounded length.
fn schemas() -> Vec<Value> {
    let text = json!({"type": "string", "maxLength": 5});
    let small = json!({"type": "integer", "minimum": -3, "maximum": 120});
    vec![
        json!({"type": "boolean"}),
        json!({"enum": ["true", true, 12, null, {"a": [1]}]}),
        json!({"const": "a \u{fc} \"quoted\" \\ text"}),
        small.clone(),
        text.clone(),
        json!({"type": "string", "pattern": "^[a-c]{2,4}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "array", "items": small, "minItems": 1, "maxItems": 3}),
        json!({"anyOf": [{"type": "null"}, {"type": "boolean"}, text]}),
        json!({
            "type": "object", "properties": {"a": text, "b": small},
            "required": ["a", "b"], "additionalProperties": false
        }),
        json!({
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#/$defs/s"}},
            "required": ["b"], "additionalProperties": false, "$defs": {"s": text}
        }),
        json!({
            "type": "object", "additionalProperties": false, "required": ["list"],
            "properties": {"list": {"type": "array", "maxItems": 2, "items": {
                "type": "object", "properties": {"yes": {"type": "boolean"}},
                "required": ["yes"], "additionalProperties": false
            }}}
        }),
    ]
}

/// Whether a value is of a schema, for the keywords used here.
fn is_valid(schema: &Value, value: &Value, root: &Value) -> bool {
    let number = |key: &str| schema[key].as_i64();
    let length = |given: usize, low: &str, high: &str| {
        number(low).is_none_or(|low| given as i64 >= low)
            && number(high).is_none_or(|high| given as i64 <= high)
    };
    if let Some(name) = schema["$ref"].as_str() {
        return is_valid(root.pointer(&name[1..]).unwrap(), value, root);
    }
    if let Some(all) = schema["anyOf"].as_array() {
        return all.iter().any(|one| is_valid(one, value, root));
    }
    if schema.get("const").is_some_and(|only| only != value)
        || schema["enum"].as_array().is_some_and(|all| !all.contains(value))
    {
        return false;
    }
    match schema["type"].as_str() {
        None => true,
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.as_f64().is_some_and(|whole| {
            // `-0` is one.
            whole.fract() == 0.0
                && number("minimum").is_none_or(|low| whole >= low as f64)
                && number("maximum").is_none_or(|high| whole <= high as f64)
        }),
        Some("string") => value.as_str().is_some_and(|text| {
            let inside = |text: &str| (2..=4).contains(&text.len()) && !text.contains(|c| c > 'c');
            length(text.chars().count(), "minLength", "maxLength")
                && (schema.get("pattern").is_none() || inside(text))
                && (schema.get("format").is_none() || text.split('-').count() == 3)
        }),
        Some("array") => value.as_array().is_some_and(|items| {
            length(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| is_valid(&schema["items"], item, root))
        }),
        Some("object") => value.as_object().is_some_and(|fields| {
            let required = schema["required"].as_array().unwrap();
            let of = |(name, field): (&String, &Value)| {
                schema["properties"].get(name).is_some_and(|inner| is_valid(inner, field, root))
            };
            required.iter().all(|name| fields.contains_key(name.as_str().unwrap()))
                && fields.iter().all(of)
        }),
        Some(other) => panic!("{other} is not checked here"),
    }
}

/// Any way through the masks, by chance, ends in a text of the schema.
#[test]
fn every_walk_through_the_masks_is_valid() {
    let grammars = grammars();
    for schema in schemas() {
        let constraint = Constraint::JsonSchema(schema.to_string().into());
        let compiled = grammars.compile(&constraint).unwrap();
        let mut texts = BTreeSet::new();
        for seed in 0..20 {
            let (mut at, mut answer) = (compiled.0.matcher(), Vec::new());
            for step in 0.. {
                assert!(step < 5000, "{schema} has no end");
                let tokens = allowed(at.as_mut());
                let place = ops::sample_rows::uniform(seed, step) * tokens.len() as f64;
                let token = tokens[place as usize];
                assert!(token != 2, "no text");
                if token < 2 {
                    break;
                }
                answer.extend(bytes_of(token));
                at.advance(token);
            }
            let text = String::from_utf8(answer).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(is_valid(&schema, &value, &schema), "{text} for {schema}");
            texts.insert(text);
        }
        assert!(texts.len() > 1 || schema.get("const").is_some(), "{schema}: {texts:?}");
    }
}
