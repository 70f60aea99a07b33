//! Calls of DeepSeek V3 and R1 (the arguments as a fenced block behind the name) and of V3.1 (bare
//! behind a separator).
//!
//! Source: the templates of DeepSeek-V3-0324 and V3.1.

use super::{Next, Seen, Split, begin_bytes, closing, is_name, next, split};
use crate::Call;
use crate::grammar::{Shape, Term};
use crate::json_call::{Json, leading_value};

pub(super) const BEGINS: &[&str] = &[CALLS_BEGIN, CALL_BEGIN];
pub(super) const MARKERS: &[&str] = &[CALLS_BEGIN, CALL_BEGIN, SEPARATOR, CALL_END, CALLS_END];
const CALLS_BEGIN: &str = "<｜tool▁calls▁begin｜>";
const CALL_BEGIN: &str = "<｜tool▁call▁begin｜>";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const CALL_END: &str = "<｜tool▁call▁end｜>";
const CALLS_END: &str = "<｜tool▁calls▁end｜>";
const FENCE: &str = "```";
const NAME_BYTES_MAX: usize = 300;

pub(super) const SHAPE: Shape = Shape {
    before: &[Term::Marker(CALLS_BEGIN)],
    call: &[
        Term::Marker(CALL_BEGIN),
        Term::Name,
        Term::Marker(SEPARATOR),
        Term::Json,
        Term::Marker(CALL_END),
    ],
    between: Some(&[]),
    after: &[Term::Marker(CALLS_END)],
};
pub(super) const SHAPE_FENCED: Shape = Shape {
    call: &[
        Term::Marker(CALL_BEGIN),
        Term::Text("function"),
        Term::Marker(SEPARATOR),
        Term::Name,
        Term::Text("\n```json\n"),
        Term::Json,
        Term::Text("\n```"),
        Term::Marker(CALL_END),
    ],
    between: Some(&[Term::Text("\n")]),
    ..SHAPE
};

/// One call; the next begins with a marker of its own.
pub(super) fn read(held: &str, is_last: bool) -> Seen {
    let text = Seen::Text(begin_bytes(held, BEGINS));
    let inside = match held.strip_prefix(CALLS_BEGIN) {
        None => held,
        Some(rest) => rest,
    };
    let inside = match next(inside, CALL_BEGIN) {
        Next::Found(inside) => inside,
        Next::Open => return Seen::Open,
        Next::Other => return text,
    };
    let (first, second) = match short(inside, SEPARATOR) {
        Ok(halves) => halves,
        Err(is_open) => return if is_open { Seen::Open } else { text },
    };
    let (name, arguments, is_fenced) = if second.trim_start().starts_with('{') {
        (first.trim(), second, false)
    } else {
        let (name, rest) = match short(second, FENCE) {
            Ok(halves) => halves,
            Err(is_open) => return if is_open { Seen::Open } else { text },
        };
        let Split::Found(_, rest) = split(rest, "\n") else { return Seen::Open };
        (name.trim(), rest, true)
    };
    if !is_name(name) {
        return text;
    }
    let (json, end) = match leading_value(arguments) {
        Json::Open => return Seen::Open,
        Json::Whole(json, end) if json.starts_with('{') => (json, end),
        Json::Whole(..) | Json::Broken => return text,
    };
    let mut tail = &arguments[end..];
    let fence = if is_fenced { FENCE } else { "" };
    for closer in [fence, CALL_END, CALLS_END] {
        let Some(bytes) = closing(tail, closer, is_last) else { return Seen::Open };
        tail = &tail[bytes..];
    }
    let call = Call { name: name.to_owned(), arguments: json.to_owned() };
    Seen::Calls(vec![call], held.len() - tail.len())
}

/// The halves of a text around a marker near its beginning: a name is short, and so is the word
/// before it. The error: whether the marker may still come.
fn short<'a>(text: &'a str, marker: &str) -> Result<(&'a str, &'a str), bool> {
    match split(text, marker) {
        Split::Found(first, second) if first.len() <= NAME_BYTES_MAX => Ok((first, second)),
        Split::Found(..) => Err(false),
        Split::Open => Err(text.len() <= NAME_BYTES_MAX + marker.len()),
    }
}
