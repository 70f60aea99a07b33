//! What is the library told? One text of its own for each constraint, checked before it is parsed.

use llguidance::JsonCompileOptions;
use llguidance::api::TopLevelGrammar;
use messages::Constraint;
use serde_json::{Value, json};

use crate::{gbnf, inexact, special_tokens};

/// Schemas of large public APIs have 50 KB; the library's work grows with the text.
pub(crate) const TEXT_BYTES_MAX: usize = 64 << 10;
/// Compiling an expression takes time that grows with the square of its length: below a second.
const REGEX_BYTES_MAX: usize = 16 << 10;
/// Brackets within brackets: parsers call themselves for each.
const DEPTH_MAX: usize = 100;
const CHOICES_MAX: usize = 1024;
/// Between two parts of a JSON text. The library's own pattern has no end, and small models that
/// are held to JSON like to write blanks for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// `control`: the id of a text that is a control token, and so has no bytes for a grammar.
///
/// # Errors
/// Why the text is refused.
pub(crate) fn source(
    constraint: &Constraint,
    control: &dyn Fn(&str) -> Option<u32>,
) -> Result<TopLevelGrammar, String> {
    let bytes = constraint.text_bytes();
    if bytes > TEXT_BYTES_MAX {
        return Err(format!("it has {bytes} bytes, the most is {TEXT_BYTES_MAX}"));
    }
    match constraint {
        Constraint::JsonObject => schema(json!({"type": "object"})),
        Constraint::JsonSchema(text) => {
            let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
            schema(value)
        }
        Constraint::Regex(text) => regex(text),
        Constraint::Choice(texts) => choice(texts),
        Constraint::Grammar(text) => grammar(text, control),
        Constraint::Calls { rules, markers, schemas } => calls(rules, markers, schemas, control),
    }
}

/// Our own rules, with what their names stand for.
fn calls(
    rules: &str,
    markers: &[String],
    schemas: &[String],
    control: &dyn Fn(&str) -> Option<u32>,
) -> Result<TopLevelGrammar, String> {
    let mut text = rules.to_owned();
    for (index, schema) in schemas.iter().enumerate() {
        text.push_str(&format!("\nschema_{index}: %json {}", embedded(schema)?));
    }
    for (index, marker) in markers.iter().enumerate() {
        let spelled = match control(marker) {
            Some(id) => format!("<[{id}]>"),
            None => Value::from(marker.as_str()).to_string(),
        };
        text.push_str(&format!("\nmarker_{index}: {spelled}"));
    }
    if rules.starts_with("start: (until ") {
        let first = markers.first().map_or("", String::as_str);
        text.push_str(&free_text(first, control(first).is_some()));
    }
    Ok(TopLevelGrammar::from_lark(text))
}

/// Text up to a marker and with it, and text without it.
fn free_text(marker: &str, is_control: bool) -> String {
    if is_control {
        return "\nuntil: /(?s:.*)/ marker_0\nfree: /(?s:.*)/".to_owned();
    }
    let letters: String =
        marker.chars().map(|letter| format!("\\x{{{:x}}}", u32::from(letter))).collect();
    let quoted = Value::from(marker).to_string();
    format!(
        "\nuntil[suffix={quoted}]: /(?s:.*)/\nfree: FREE\nFREE: /(?s:.*)/ & ~MARKED\n\
         MARKED: /(?s:.*){letters}(?s:.*)/"
    )
}

/// A caller's schema inside rules of our own.
fn embedded(text: &str) -> Result<String, String> {
    let mut schema: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    check_schema(&mut schema)?;
    Ok(schema.to_string())
}

fn schema(mut schema: Value) -> Result<TopLevelGrammar, String> {
    check_schema(&mut schema)?;
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// What could switch off its checks is refused, and white space is bounded.
fn check_schema(schema: &mut Value) -> Result<(), String> {
    if schema.get("x-guidance").is_some() {
        // It could switch off that unknown keywords are errors.
        return Err("the keyword `x-guidance` is not supported".to_owned());
    }
    match schema {
        Value::Bool(true) => *schema = json!({}),
        Value::Object(_) => {}
        Value::Bool(false) => return Err("`false` allows no answer".to_owned()),
        _ => return Err("a schema is a JSON object".to_owned()),
    }
    check_depth(&schema.to_string())?;
    inexact::check(schema)?;
    let options = JsonCompileOptions {
        whitespace_pattern: Some(WHITE_SPACE.to_owned()),
        ..JsonCompileOptions::default()
    };
    options.apply_to(schema);
    Ok(())
}

fn regex(text: &str) -> Result<TopLevelGrammar, String> {
    let bytes = text.len();
    if bytes > REGEX_BYTES_MAX {
        return Err(format!("it has {bytes} bytes, the most is {REGEX_BYTES_MAX}"));
    }
    check_depth(text)?;
    // The whole answer must match: anchors at its ends ask for nothing more.
    let text = text.strip_prefix('^').unwrap_or(text);
    let text = match text.strip_suffix('$') {
        Some(rest) if !ends_in_escape(rest) => rest,
        _ => text,
    };
    if ends_in_escape(text) {
        return Err("it ends in a backslash".to_owned());
    }
    if text.is_empty() {
        return Err("it matches the empty text only".to_owned());
    }
    Ok(TopLevelGrammar::from_regex(text))
}

/// Whether an odd number of backslashes stands at the end.
fn ends_in_escape(text: &str) -> bool {
    text.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1
}

fn choice(texts: &[String]) -> Result<TopLevelGrammar, String> {
    if texts.is_empty() || texts.len() > CHOICES_MAX {
        let count = texts.len();
        return Err(format!("it has {count} texts, there must be between 1 and {CHOICES_MAX}"));
    }
    if texts.iter().any(String::is_empty) {
        return Err("a text is empty".to_owned());
    }
    let literal = |text: &String| -> String {
        text.chars()
            .map(|char| match char {
                'a'..='z' | 'A'..='Z' | '0'..='9' => char.to_string(),
                _ => format!("\\x{{{:x}}}", u32::from(char)),
            })
            .collect()
    };
    let all: Vec<String> = texts.iter().map(literal).collect();
    Ok(TopLevelGrammar::from_regex(&format!("({})", all.join("|"))))
}

fn grammar(text: &str, control: &dyn Fn(&str) -> Option<u32>) -> Result<TopLevelGrammar, String> {
    check_depth(text)?;
    let without_blanks: String = text.chars().filter(|char| !char.is_whitespace()).collect();
    if without_blanks.contains("temperature=") {
        return Err("`temperature` inside a grammar is not supported".to_owned());
    }
    if without_blanks.contains("x-guidance") {
        return Err("the keyword `x-guidance` is not supported".to_owned());
    }
    if without_blanks.is_empty() {
        return Err("it is empty".to_owned());
    }
    let lark = if gbnf::is_gbnf(text) { gbnf::to_lark(text)? } else { text.to_owned() };
    Ok(TopLevelGrammar::from_lark(special_tokens::to_ids(&lark, control)?))
}

/// Counts brackets wherever they stand: it is a bound, not a parser.
fn check_depth(text: &str) -> Result<(), String> {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    if deepest <= DEPTH_MAX {
        return Ok(());
    }
    Err(format!("its brackets are {deepest} deep, the most is {DEPTH_MAX}"))
}
