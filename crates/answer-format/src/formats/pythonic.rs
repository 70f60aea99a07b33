//! `[name(key=value), ...]`, bare or in a fence of `tool_code`: Gemma 3 as its makers prompt it,
//! Llama 4 and others that were taught Python. Calls on lines of their own, between
//! `<function_calls>` and its end: OLMo 3.
//!
//! Source: Google's description of function calling with Gemma, and the literals of Python's
//! grammar, of which JSON's are read, too.

use crate::grammar::{Argument, Shape, Term};
use serde_json::{Map, Number, Value};

use super::nested::{Parsed, Stop, begun, behind_colon, constant, entries, list, separated};
use super::{Seen, begin_bytes, closing, is_name_byte};
use crate::typed_arguments::object;
use crate::{Call, Tool};

pub(super) const BEGINS: &[&str] = &[FENCE, "<|python_start|>"];
pub(super) const MARKERS: &[&str] = &["<|python_start|>", "<|python_end|>"];
pub(super) const LINES_BEGINS: &[&str] = &["<function_calls>"];
pub(super) const LINES_MARKERS: &[&str] = &[LINES_BEGINS[0], LINES_END];
const LINES_END: &str = "</function_calls>";
const FENCE: &str = "```tool_code";

/// Arguments in brackets, as the text of a JSON object, and what follows.
pub(super) enum Literal<'a> {
    Open,
    Broken,
    Whole(String, &'a str),
}

pub(super) const SHAPE: Shape = Shape {
    before: &[Term::Text("[")],
    call: &[
        Term::Name,
        Term::Text("("),
        Term::Each(Argument {
            before_key: "",
            before_value: "=",
            after_value: "",
            between: ", ",
            has_bare_texts: false,
        }),
        Term::Text(")"),
    ],
    between: Some(&[Term::Text(", ")]),
    after: &[Term::Text("]")],
};

pub(super) const SHAPE_LINES: Shape = Shape {
    before: &[Term::Marker(LINES_BEGINS[0])],
    between: Some(&[Term::Text("\n")]),
    after: &[Term::Marker(LINES_END)],
    ..SHAPE
};

pub(super) fn read(held: &str, tools: &[Tool], is_last: bool) -> Seen {
    let marker = BEGINS.iter().find(|begin| held.starts_with(**begin));
    let at = marker.map_or(0, |begin| begin.len());
    let text = Seen::Text(begin_bytes(held, BEGINS));
    let (calls, tail) = match calls(&held[at..]) {
        Err(Stop::Open) => return Seen::Open,
        Err(Stop::Broken) => return text,
        Ok(found) => found,
    };
    let is_known = |call: &Call| tools.iter().any(|tool| tool.name == call.name);
    // A list of a text may look the same; a marker says that calls are meant.
    if at == 0 && !calls.iter().all(is_known) {
        return text;
    }
    let closer = match marker {
        Some(&FENCE) => "```",
        Some(_) => MARKERS[1],
        None => "",
    };
    match closing(tail, closer, is_last) {
        Some(more) => Seen::Calls(calls, held.len() - tail.len() + more),
        None => Seen::Open,
    }
}

/// Calls one behind the other up to the closing marker, which may be left out at the end.
pub(super) fn read_lines(held: &str, is_last: bool) -> Seen {
    let text = Seen::Text(LINES_BEGINS[0].len());
    let (mut rest, mut calls) = (held[LINES_BEGINS[0].len()..].trim_start(), Vec::new());
    loop {
        let after = rest.strip_prefix(LINES_END);
        if after.is_some() || rest.is_empty() && is_last {
            let tail = after.unwrap_or(rest);
            return if calls.is_empty() {
                text
            } else {
                Seen::Calls(calls, held.len() - tail.len())
            };
        }
        if LINES_END.starts_with(rest) {
            return Seen::Open;
        }
        match call(rest) {
            Ok((found, after)) => {
                calls.push(found);
                rest = after.trim_start();
            }
            Err(Stop::Open) => return Seen::Open,
            Err(Stop::Broken) => return text,
        }
    }
}

/// A list of calls, or one.
fn calls(text: &str) -> Parsed<'_, Vec<Call>> {
    let start = text.trim_start();
    let Some(mut rest) = start.strip_prefix('[') else {
        let (call, rest) = call(start)?;
        return Ok((vec![call], rest));
    };
    let mut calls = Vec::new();
    loop {
        let (call, after) = call(rest.trim_start())?;
        calls.push(call);
        let after = after.trim_start();
        match after.as_bytes().first() {
            None => return Err(Stop::Open),
            Some(b',') => rest = &after[1..],
            Some(b']') => return Ok((calls, &after[1..])),
            Some(_) => return Err(Stop::Broken),
        }
    }
}

fn call(text: &str) -> Parsed<'_, Call> {
    let name_bytes = text.bytes().take_while(|&byte| is_name_byte(byte)).count();
    let (name, rest) = text.split_at(name_bytes);
    if rest.is_empty() {
        return Err(Stop::Open);
    }
    let is_named = name.starts_with(|first: char| first.is_alphabetic() || first == '_');
    let Some(inside) = rest.strip_prefix('(').filter(|_| is_named) else {
        return Err(Stop::Broken);
    };
    let (arguments, rest) = keywords(inside)?;
    Ok((Call { name: name.to_owned(), arguments: object(arguments) }, rest))
}

pub(super) fn call_arguments(text: &str) -> Literal<'_> {
    match keywords(text) {
        Ok((arguments, rest)) => Literal::Whole(object(arguments), rest),
        Err(Stop::Open) => Literal::Open,
        Err(Stop::Broken) => Literal::Broken,
    }
}

/// `key=value, ...)`.
fn keywords(text: &str) -> Parsed<'_, Map<String, Value>> {
    let (mut rest, mut arguments) = (text.trim_start(), Map::new());
    loop {
        if let Some(after) = rest.strip_prefix(')') {
            return Ok((arguments, after));
        }
        let key_bytes =
            rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        let (key, after) = rest.split_at(key_bytes);
        let after = after.trim_start();
        if after.is_empty() {
            return Err(Stop::Open);
        }
        let after = after.strip_prefix('=').filter(|_| !key.is_empty()).ok_or(Stop::Broken)?;
        let (found, after) = value(after, 0)?;
        arguments.insert(key.to_owned(), found);
        rest = separated(after, b')')?;
    }
}

fn value(text: &str, depth: usize) -> Parsed<'_, Value> {
    let (first, text) = begun(text, depth)?;
    match first {
        b'\'' | b'"' => quoted(text).map(|(text, rest)| (Value::from(text), rest)),
        b'[' => list(text, b']', |text| value(text, depth + 1)),
        b'(' => list(text, b')', |text| value(text, depth + 1)),
        b'{' => dictionary(text, depth),
        b'-' | b'0'..=b'9' => number(text),
        _ => word(text),
    }
}

fn dictionary(text: &str, depth: usize) -> Parsed<'_, Value> {
    let key = |text| match value(text, depth + 1)? {
        (Value::String(key), after) => Ok((key, behind_colon(after)?)),
        _ => Err(Stop::Broken),
    };
    let (entries, rest) = entries(text, key, |text| value(text, depth + 1))?;
    Ok((Value::Object(entries), rest))
}

fn number(text: &str) -> Parsed<'_, Value> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
    let bytes = text.bytes().take_while(is_part).count();
    let (digits, rest) = text.split_at(bytes);
    if rest.is_empty() {
        return Err(Stop::Open);
    }
    let number: Number = serde_json::from_str(digits).map_err(|_| Stop::Broken)?;
    Ok((Value::from(number), rest))
}

fn word(text: &str) -> Parsed<'_, Value> {
    let bytes = text.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (word, rest) = text.split_at(bytes);
    if rest.is_empty() {
        return Err(Stop::Open);
    }
    let value = constant(word).ok_or(Stop::Broken)?;
    Ok((value, rest))
}

/// A text in quotes of either kind, in three of them, too.
fn quoted(text: &str) -> Parsed<'_, String> {
    let quote = &text[..1];
    let triple = quote.repeat(3);
    // Two quotes are an empty text unless a third follows.
    if text.len() < 3 && text[1..].bytes().all(|byte| byte == quote.as_bytes()[0]) {
        return Err(Stop::Open);
    }
    let closer = if text.starts_with(&triple) { triple.as_str() } else { quote };
    let mut rest = &text[closer.len()..];
    let mut content = String::new();
    loop {
        if let Some(after) = rest.strip_prefix(closer) {
            return Ok((content, after));
        }
        let mut letters = rest.chars();
        match letters.next() {
            None => return Err(Stop::Open),
            Some('\\') => rest = escape(letters.as_str(), &mut content)?,
            Some(letter) => {
                content.push(letter);
                rest = letters.as_str();
            }
        }
    }
}

/// What follows a backslash.
fn escape<'a>(text: &'a str, content: &mut String) -> Result<&'a str, Stop> {
    let mut letters = text.chars();
    let letter = letters.next().ok_or(Stop::Open)?;
    let rest = letters.as_str();
    match letter {
        'n' => content.push('\n'),
        't' => content.push('\t'),
        'r' => content.push('\r'),
        '\n' => {}
        'x' | 'u' => {
            let digits = if letter == 'x' { 2 } else { 4 };
            let code = rest.get(..digits).ok_or(Stop::Open)?;
            let code = u32::from_str_radix(code, 16).map_err(|_| Stop::Broken)?;
            content.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            return Ok(&rest[digits..]);
        }
        '\\' | '\'' | '"' => content.push(letter),
        other => content.extend(['\\', other]),
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_become_json() {
        for (text, expected) in [
            ("a=1, b='x')", r#"{"a":1,"b":"x"}"#),
            ("a=\"it's\", b=-1.5e3)", r#"{"a":"it's","b":-1500.0}"#),
            ("a=[1, (2,), {'k': None}], b=True)", r#"{"a":[1,[2],{"k":null}],"b":true}"#),
            ("a='''two\n\"lines\"''', b='')", r#"{"a":"two\n\"lines\"","b":""}"#),
            (r"a='\n\x41\u00e9\q')", r#"{"a":"\nAé\\q"}"#),
            (")", "{}"),
        ] {
            let Literal::Whole(found, "") = call_arguments(text) else { panic!("{text}") };
            assert_eq!(found, expected, "{text}");
        }
        for broken in ["1)", "a=b)", "a=1 b=2)", "a=[1}", "a={1: 2})", "a=1x)"] {
            assert!(matches!(call_arguments(broken), Literal::Broken), "{broken}");
        }
        let deep = format!("a={}", "[".repeat(1000));
        assert!(matches!(call_arguments(&deep), Literal::Broken));
    }
}
