//! `{"name": ..., "parameters": ...}`, bare or behind `<|python_tag|>`, several with `;` between:
//! Llama 3.1 to 3.3. Behind the tag also `tool.call(key="value")`, the form of built-in tools.
//!
//! Source: Meta's description of the prompt format of Llama 3.1 and 3.2. Bare JSON is a call only
//! where it names one of the tools: an answer may be JSON, too.

use super::Seen;
use super::pythonic::{Literal, call_arguments};
use crate::grammar::{Shape, Term};
use crate::json_call::{Json, begun as begun_json, calls_of, leading_value};
use crate::{Call, Tool};

pub(super) const BEGINS: &[&str] = &["<|python_tag|>"];

/// The first keys of objects that may be calls.
const KEYS: &[&str] = &["\"name\"", "\"type\"", "\"function\"", "\"parameters\"", "\"arguments\""];

pub(super) const SHAPE: Shape = Shape {
    before: &[],
    call: &[
        Term::Text("{\"name\": \""),
        Term::Name,
        Term::Text("\", \"parameters\": "),
        Term::Json,
        Term::Text("}"),
    ],
    between: Some(&[Term::Text("; ")]),
    after: &[],
};

pub(super) fn read(held: &str, tools: &[Tool], is_last: bool) -> Seen {
    let (at, inside) = match held.strip_prefix(BEGINS[0]) {
        Some(inside) => (BEGINS[0].len(), inside),
        None => (0, held),
    };
    let is_bare = at == 0;
    let start = inside.trim_start();
    let text = Seen::Text(at.max(1));
    if !is_bare && !start.is_empty() && !start.starts_with('{') {
        return built_in(inside, at);
    }
    if is_bare && !may_be_call(start) {
        return text;
    }
    match leading_value(inside) {
        Json::Open => Seen::Open,
        Json::Broken => text,
        Json::Whole(json, end) => {
            let known = |call: &Call| !is_bare || tools.iter().any(|tool| tool.name == call.name);
            match calls_of(json).filter(|calls| calls.iter().all(known)) {
                Some(calls) => {
                    let rest = inside[end..].trim_start();
                    // What separates it from the next may still come.
                    if rest.is_empty() && !is_last {
                        return Seen::Open;
                    }
                    let rest = rest.strip_prefix(';').map_or(&inside[end..], str::trim_start);
                    Seen::Calls(calls, held.len() - rest.len())
                }
                None => text,
            }
        }
    }
}

fn may_be_call(object: &str) -> bool {
    let Some(first) = object.strip_prefix('{') else { return object.is_empty() };
    let first = first.trim_start();
    KEYS.iter().any(|key| first.starts_with(key) || key.starts_with(first))
}

/// `name.call(key="value")`.
fn built_in(inside: &str, at: usize) -> Seen {
    let Some((name, rest)) = inside.trim_start().split_once(".call(") else {
        let begun = inside.trim_start();
        let may_come = begun.bytes().all(super::is_name_byte) || begun.ends_with(".call");
        return if may_come { Seen::Open } else { Seen::Text(at) };
    };
    if !super::is_name(name) {
        return Seen::Text(at);
    }
    match call_arguments(rest) {
        Literal::Open => Seen::Open,
        Literal::Broken => Seen::Text(at),
        Literal::Whole(arguments, after) => {
            let call = Call { name: name.to_owned(), arguments };
            Seen::Calls(vec![call], at + inside.len() - after.len())
        }
    }
}

pub(super) fn begun(held: &str) -> Option<(String, usize)> {
    let at = if held.starts_with(BEGINS[0]) { BEGINS[0].len() } else { 0 };
    begun_json(&held[at..]).map(|(name, begin)| (name, at + begin))
}
