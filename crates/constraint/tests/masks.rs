//! Does every answer that the masks allow belong to the constraint?

#![allow(clippy::unwrap_used, reason = "tests")]

mod tiny;

use std::collections::BTreeSet;

use messages::{Constraint, Thoughts};
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
        2 => "<s>".to_owned(),
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

/// Whether the masks let a text pass, byte by byte, up to an end.
fn accepts(constraint: &Constraint, text: &str) -> bool {
    let mut at = matcher(constraint);
    let passes = text.bytes().all(|byte| {
        let token = 3 + u32::from(byte);
        let may = allowed(at.as_mut()).contains(&token);
        at.advance(token);
        may
    });
    passes && allowed(at.as_mut()).contains(&0)
}

#[test]
fn control_tokens_are_named_in_grammars() {
    let mut at = matcher(&Constraint::Grammar("start: \"a\" <s> /<s>|b/".into()));
    spell(at.as_mut(), "a");
    assert_eq!(allowed(at.as_mut()), [2]);
    at.advance(2);
    assert_eq!(spelled(at.as_mut()), set(&["<", "b"]));
}

#[test]
fn many_properties_may_be_left_out() {
    let properties: serde_json::Map<String, Value> =
        (0..1200).map(|index| (format!("p{index}"), json!({"type": "integer"}))).collect();
    let schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    let mut at = matcher(&Constraint::JsonSchema(schema.to_string().into()));
    for letter in "{\"p7\":1,\"p1199\":2}".chars() {
        let letter = letter.to_string();
        assert!(spelled(at.as_mut()).contains(&letter), "{letter}");
        spell(at.as_mut(), &letter);
    }
    assert_eq!(spelled(at.as_mut()), set(&["$"]));
}

#[test]
fn grammars_of_llama_cpp_are_followed() {
    // The first two are of llama.cpp's own.
    let arithmetic = r#"root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*"#;
    let json = r#"# A JSON text.
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Blanks that have an end.
ws ::= | " " | "\n" [ \t]{0,20}"#;
    let odd = "root ::= a-b \".\" . [\\u00e4x-]\r\na-b ::= \"\" | [^a-y] |\n \"q\\x41\"{2, 3}\n";
    for (grammar, right, wrong) in [
        (
            arithmetic,
            &["x=1\n", "x +12*( a_1 -3) = y\n\n", "a=1\nb=2\n"][..],
            &["x=\n", "=1\n", "x=1", "X=1\n", "1a=1\n"][..],
        ),
        (
            json,
            &["{}", r#"{"a": [1, -2.5e3, "\u00e9\n"], "b": {"c": null}} "#, "{\n\t\"a\":true}"],
            &["[]", "{a:1}", r#"{"a": 01}"#, r#"{"a": "\x"}"#, r#"{"a": tru}"#],
        ),
        (odd, &[".\u{fc}x", "z..-", "qAqA.\n\u{e4}"], &["a.xx", "qA..x", ".xb", ".x", ""]),
    ] {
        let constraint = Constraint::Grammar(grammar.into());
        for (texts, expected) in [(right, true), (wrong, false)] {
            for text in texts {
                assert_eq!(accepts(&constraint, text), expected, "{text:?} of {grammar}");
            }
        }
    }
    for (wrong, named) in [
        ("root ::= b", "`b` is not defined"),
        ("a ::= \"x\"", "no rule `root`"),
        ("root ::= \"a", "no end"),
        ("root ::= [a", "no end"),
        ("root ::= []", "empty"),
        ("root ::= [z-a]", "backwards"),
        ("root ::= (\"a\"", "`)`"),
        ("root ::= \"a\"{x}", "{least,most}"),
        ("root ::= <think>", "a text, a class"),
        ("root ::= \"a\"\nroot ::= \"b\"", "twice"),
        ("root ::= \"\\q\"", "\\q"),
        ("root ::= \"a\" ]", "at `]`"),
    ] {
        let refused = grammars().compile(&Constraint::Grammar(wrong.into()));
        let told = refused.unwrap_err().to_string();
        assert!(told.contains(named), "{wrong}: {told}");
    }
}

#[test]
fn numbers_of_json_come_to_an_end() {
    let digits = |matcher: &mut dyn Matcher| -> usize {
        let all = spelled(matcher);
        all.iter().filter(|text| text.as_bytes()[0].is_ascii_digit()).count()
    };
    let number = Constraint::JsonSchema(json!({"type": "number"}).to_string().into());
    let mut at = matcher(&number);
    spell(at.as_mut(), &"7".repeat(79));
    assert_eq!(digits(at.as_mut()), 11, "every digit, and the word of two");
    spell(at.as_mut(), "7");
    assert_eq!(spelled(at.as_mut()), set(&["$", ".", "E", "e"]));
    for (text, allowed) in [(".", 11), ("5", 0), ("e", 0), ("-", 11), ("3", 0)] {
        spell(at.as_mut(), text);
        assert_eq!(digits(at.as_mut()), allowed, "behind `{text}`: where nothing else may come");
    }
    assert_eq!(spelled(at.as_mut()), set(&["$"]));
    // Each number counts for itself, and texts may be of digits.
    let mut at = matcher(&Constraint::JsonObject);
    spell(at.as_mut(), "{\"a\":1,\"\\\"");
    for text in ["9", "\":[", "1", ",", "-0.", "4", ",\"", "2"] {
        let times = if text.as_bytes()[0].is_ascii_digit() { 70 } else { 1 };
        spell(at.as_mut(), &text.repeat(times));
    }
    spell(at.as_mut(), &"2".repeat(400));
    assert_eq!(digits(at.as_mut()), 11, "in a text");
    // Elsewhere the caller's own words hold.
    let mut at = matcher(&Constraint::Regex("[0-9]+".into()));
    spell(at.as_mut(), &"1".repeat(200));
    assert_eq!(digits(at.as_mut()), 11);
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

fn calls(rules: &str, markers: &[&str], schema: &str) -> Constraint {
    let markers: Vec<String> = markers.iter().map(|&marker| marker.to_owned()).collect();
    Constraint::Calls {
        rules: rules.into(),
        markers: markers.into(),
        schemas: [schema.to_owned()].into(),
    }
}

#[test]
fn markers_are_tokens_or_texts() {
    // `<s>` is a control token of this vocabulary, `<b>` is none.
    let schema = r#"{"enum": [true]}"#;
    let constraint = calls("start: marker_0 \"a\" schema_0 marker_1", &["<s>", "<b>"], schema);
    let mut at = matcher(&constraint);
    assert_eq!(allowed(at.as_mut()), [2], "nothing but the token");
    at.advance(2);
    spell(at.as_mut(), "atrue<b");
    assert_eq!(spelled(at.as_mut()), set(&[">"]));
    spell(at.as_mut(), ">");
    assert_eq!(spelled(at.as_mut()), set(&["$"]));
    let guidance = r#"{"x-guidance": {"lenient": true}}"#;
    assert!(grammars().compile(&calls("start: schema_0", &[], guidance)).is_err());
}

#[test]
fn text_is_free_until_a_marker() {
    for (marker, ids) in
        [("<s>", vec![2]), ("<b>", "<b>".bytes().map(|b| 3 + u32::from(b)).collect())]
    {
        let rules = "start: (until \"yes\"){0,2} free";
        let mut at = matcher(&calls(rules, &[marker], "{}"));
        spell(at.as_mut(), "any <b text <");
        assert!(spelled(at.as_mut()).is_superset(&set(&["$", "x", "yes", "<"])), "{marker}");
        spell(at.as_mut(), " ");
        ids.iter().for_each(|&id| at.advance(id));
        assert_eq!(spelled(at.as_mut()), set(&["y", "yes"]), "{marker}");
        spell(at.as_mut(), "yes");
        assert!(spelled(at.as_mut()).is_superset(&set(&["$", "x", "yes"])), "{marker}");
    }
}

fn thoughts(tokens_max: Option<u32>) -> Thoughts {
    Thoughts {
        begin: "<s>".into(),
        end: "12".into(),
        close: "ab12".into(),
        tokens_max,
        is_always: false,
    }
}

fn behind(thoughts: &Thoughts, prompt: &str, inner: Option<&Constraint>) -> Box<dyn Matcher> {
    let grammars = grammars();
    let inner = inner.map(|constraint| grammars.compile(constraint).unwrap());
    grammars.behind_thoughts(thoughts, prompt, inner).unwrap().0.matcher()
}

#[test]
fn a_constraint_holds_once_the_model_has_thought() {
    let choice = Constraint::Choice(["yes".to_owned()].into());
    // Opened by the prompt: anything goes but the end.
    let mut at = behind(&thoughts(None), "says <s>\n", Some(&choice));
    let mask = allowed(at.as_mut());
    assert!(!mask.contains(&0) && !mask.contains(&1) && mask.contains(&2));
    // The marker may be cut anywhere, or come with more.
    spell(at.as_mut(), "hm 1");
    assert!(allowed(at.as_mut()).len() > 200);
    spell(at.as_mut(), "2");
    assert_eq!(spelled(at.as_mut()), set(&["y", "yes"]));
    // The model may begin to think, or answer at once.
    let mut at = behind(&thoughts(None), "says", Some(&choice));
    let mask = allowed(at.as_mut());
    assert!(mask.contains(&2), "{mask:?}");
    assert_eq!(mask.len(), 3, "the marker and two ways to answer");
    spell(at.as_mut(), "y");
    assert_eq!(spelled(at.as_mut()), set(&["e"]));
    let mut at = behind(&thoughts(None), "says", Some(&choice));
    at.advance(2);
    assert!(allowed(at.as_mut()).len() > 200);
}

/// Nothing may come but the closing text, as the tokenizer spells it: never more tokens than bytes.
fn assert_forced(at: &mut dyn Matcher) {
    let mut forced = Vec::new();
    while forced.len() < 4 {
        let mask = allowed(at);
        let [token] = mask[..] else { panic!("{mask:?} behind {forced:?}") };
        forced.extend(bytes_of(token));
        at.advance(token);
    }
    assert_eq!(forced, b"ab12");
}

#[test]
fn without_a_budget_thoughts_end_before_they_begin() {
    let choice = Constraint::Choice(["yes".to_owned()].into());
    let none = thoughts(Some(0));
    // Opened by the prompt, whatever was asked of its template.
    let mut at = behind(&none, "user says<s>\n", Some(&choice));
    assert_forced(at.as_mut());
    assert_eq!(spelled(at.as_mut()), set(&["y", "yes"]));
    let mut at = behind(&none, "<s>", None);
    assert_forced(at.as_mut());
    assert!(allowed(at.as_mut()).len() > 200);
    // Not opened: the answer comes at once.
    let mut at = behind(&none, "user says", Some(&choice));
    assert_eq!(spelled(at.as_mut()), set(&["y", "yes"]));
    // Who may say anything may begin to think, and ends at once.
    let mut at = behind(&none, "user says", None);
    assert!(allowed(at.as_mut()).contains(&2));
    at.advance(2);
    assert_forced(at.as_mut());
    // Ended by the prompt.
    let grammars = grammars();
    assert!(grammars.behind_thoughts(&none, "<s>\n\n12\n\n", None).is_none());
    let inner = grammars.compile(&choice).unwrap();
    let same = grammars.behind_thoughts(&none, "<s>\n\n12\n\n", Some(inner.clone())).unwrap();
    assert!(std::sync::Arc::ptr_eq(&same.0, &inner.0));
}

#[test]
fn a_budget_ends_thoughts_by_force() {
    for inner in [None, Some(Constraint::Choice(["yes".to_owned()].into()))] {
        let mut at = behind(&thoughts(Some(2)), "<s>", inner.as_ref());
        spell(at.as_mut(), "x");
        assert!(allowed(at.as_mut()).len() > 200);
        spell(at.as_mut(), "y");
        assert_forced(at.as_mut());
        match inner {
            None => assert!(allowed(at.as_mut()).len() > 200),
            Some(_) => assert_eq!(spelled(at.as_mut()), set(&["y", "yes"])),
        }
    }
    // Who stops in time is not forced.
    let mut at = behind(&thoughts(Some(9)), "<s>", None);
    spell(at.as_mut(), "12 and more than nine tokens");
    assert!(allowed(at.as_mut()).len() > 200);
}
