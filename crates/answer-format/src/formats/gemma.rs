//! `<|tool_call>call:name{key:<|"|>text<|"|>,key:1}<tool_call|>`: Gemma 4.
//!
//! Source: the template of gemma-4-31B-it. Keys stand bare and texts between tokens of their own,
//! within lists and objects, too. An answer that is held to calls has its arguments as JSON, for
//! that is what schemas speak of; both are read, and mixed.

use serde_json::{Map, Number, Value};

use super::nested::{self, Parsed, Stop, begun, behind_colon, constant, list};
use super::{Next, Seen, closing, is_name, next};
use crate::Call;
use crate::grammar::{Shape, Term};
use crate::json_call::{Json, leading_value};
use crate::typed_arguments::object;

pub(super) const BEGINS: &[&str] = &["<|tool_call>"];
pub(super) const MARKERS: &[&str] = &["<|tool_call>", END, QUOTE];
const END: &str = "<tool_call|>";
const QUOTE: &str = "<|\"|>";

pub(super) const SHAPE: Shape = Shape {
    before: &[],
    call: &[
        Term::Marker(BEGINS[0]),
        Term::Text("call:"),
        Term::Name,
        Term::Json,
        Term::Marker(END),
    ],
    between: Some(&[]),
    after: &[],
};

pub(super) fn read(held: &str, is_last: bool) -> Seen {
    let text = Seen::Text(BEGINS[0].len());
    let (call, tail) = match call(&held[BEGINS[0].len()..]) {
        Ok(found) => found,
        Err(Stop::Open) => return Seen::Open,
        Err(Stop::Broken) => return text,
    };
    match closing(tail, END, is_last) {
        Some(more) => Seen::Calls(vec![call], held.len() - tail.len() + more),
        None => Seen::Open,
    }
}

fn call(text: &str) -> Parsed<'_, Call> {
    let inside = match next(text, "call:") {
        Next::Found(inside) => inside,
        Next::Open => return Err(Stop::Open),
        Next::Other => return Err(Stop::Broken),
    };
    let Some(name_end) = inside.find('{') else {
        let so_far = inside.trim();
        let may_come = so_far.is_empty() || is_name(so_far);
        return Err(if may_come { Stop::Open } else { Stop::Broken });
    };
    let name = inside[..name_end].trim();
    if !is_name(name) {
        return Err(Stop::Broken);
    }
    let (arguments, rest) = entries(&inside[name_end..], 0)?;
    Ok((Call { name: name.to_owned(), arguments: object(arguments) }, rest))
}

/// `{key:value,...}`.
fn entries(text: &str, depth: usize) -> Parsed<'_, Map<String, Value>> {
    nested::entries(text, key, |text| value(text, depth + 1))
}

/// A key and what follows its colon.
fn key(text: &str) -> Parsed<'_, String> {
    if text.starts_with(['"', '<']) {
        let (key, after) = quoted(text)?;
        return Ok((key, behind_colon(after)?));
    }
    match text.find([':', '}', ',']) {
        None => Err(Stop::Open),
        Some(end) if end > 0 && text[end..].starts_with(':') => {
            Ok((text[..end].trim_end().to_owned(), &text[end + 1..]))
        }
        Some(_) => Err(Stop::Broken),
    }
}

fn value(text: &str, depth: usize) -> Parsed<'_, Value> {
    let (first, text) = begun(text, depth)?;
    match first {
        b'"' | b'<' => quoted(text).map(|(text, rest)| (Value::from(text), rest)),
        b'{' => entries(text, depth).map(|(entries, rest)| (Value::Object(entries), rest)),
        b'[' => list(text, b']', |text| value(text, depth + 1)),
        _ => word(text),
    }
}

/// A number, or `true`, `false`, `null`; Python's words for them, too.
fn word(text: &str) -> Parsed<'_, Value> {
    let Some(end) = text.find([',', '}', ']']) else { return Err(Stop::Open) };
    let word = text[..end].trim_end();
    let number = || serde_json::from_str::<Number>(word).ok().map(Value::from);
    let value = constant(word).or_else(number).ok_or(Stop::Broken)?;
    Ok((value, &text[end..]))
}

/// A text between the tokens for it, which stands as it is, or one of JSON.
fn quoted(text: &str) -> Parsed<'_, String> {
    if let Some(inside) = text.strip_prefix(QUOTE) {
        let (content, rest) = inside.split_once(QUOTE).ok_or(Stop::Open)?;
        return Ok((content.to_owned(), rest));
    }
    if !text.starts_with('"') {
        return Err(if QUOTE.starts_with(text) { Stop::Open } else { Stop::Broken });
    }
    match leading_value(text) {
        Json::Open => Err(Stop::Open),
        Json::Broken => Err(Stop::Broken),
        Json::Whole(json, end) => {
            let content = serde_json::from_str(json).map_err(|_| Stop::Broken)?;
            Ok((content, &text[end..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_within_values_are_bounded() {
        for opening in ["[", "{a:"] {
            let deep = format!("call:f{{a:{}", opening.repeat(1000));
            assert!(matches!(call(&deep), Err(Stop::Broken)), "{opening}");
        }
    }
}
