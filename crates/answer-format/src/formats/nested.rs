//! Values within values, in a text that may still grow: what notations that are not JSON share.

use serde_json::{Map, Value};

/// Values within values.
const DEPTH_MAX: usize = 32;

/// Why there is no value.
pub(super) enum Stop {
    Open,
    Broken,
}

/// What was read, and what follows.
pub(super) type Parsed<'a, T> = Result<(T, &'a str), Stop>;

/// The first byte of a value that is `depth` values deep, and the text from there on.
pub(super) fn begun(text: &str, depth: usize) -> Result<(u8, &str), Stop> {
    let text = text.trim_start();
    let Some(&first) = text.as_bytes().first() else { return Err(Stop::Open) };
    if depth > DEPTH_MAX { Err(Stop::Broken) } else { Ok((first, text)) }
}

/// Items behind an opening bracket, up to the closing one.
pub(super) fn list<'a>(
    text: &'a str,
    closer: u8,
    mut item: impl FnMut(&'a str) -> Parsed<'a, Value>,
) -> Parsed<'a, Value> {
    let (mut rest, mut items) = (text[1..].trim_start(), Vec::new());
    while rest.as_bytes().first() != Some(&closer) {
        let (found, after) = item(rest)?;
        items.push(found);
        rest = separated(after, closer)?;
    }
    Ok((Value::from(items), &rest[1..]))
}

/// Keys with values behind `{`, up to `}`; `key` reads its colon, too.
pub(super) fn entries<'a>(
    text: &'a str,
    mut key: impl FnMut(&'a str) -> Parsed<'a, String>,
    mut value: impl FnMut(&'a str) -> Parsed<'a, Value>,
) -> Parsed<'a, Map<String, Value>> {
    let (mut rest, mut entries) = (text[1..].trim_start(), Map::new());
    while !rest.starts_with('}') {
        let (key, after) = key(rest)?;
        let (found, after) = value(after)?;
        entries.insert(key, found);
        rest = separated(after, b'}')?;
    }
    Ok((entries, &rest[1..]))
}

/// What follows a colon.
pub(super) fn behind_colon(text: &str) -> Result<&str, Stop> {
    let text = text.trim_start();
    if text.is_empty() {
        return Err(Stop::Open);
    }
    text.strip_prefix(':').ok_or(Stop::Broken)
}

/// What follows a comma, or begins with the closing bracket.
pub(super) fn separated(text: &str, closer: u8) -> Result<&str, Stop> {
    let text = text.trim_start();
    match text.as_bytes().first() {
        None => Err(Stop::Open),
        Some(b',') => Ok(text[1..].trim_start()),
        Some(&byte) if byte == closer => Ok(text),
        Some(_) => Err(Stop::Broken),
    }
}

/// In JSON's words and in Python's.
pub(super) fn constant(word: &str) -> Option<Value> {
    match word {
        "true" | "True" => Some(Value::Bool(true)),
        "false" | "False" => Some(Value::Bool(false)),
        "null" | "None" => Some(Value::Null),
        _ => None,
    }
}
