//! `[TOOL_CALLS][{"name": ..., "arguments": ...}]`, or `[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}`,
//! or the latter without its inner markers: Mistral's generations of tokenizers, v3 to v13.
//!
//! Source: mistral-common's instruct tokenizers, and the templates of Nemo, Small 3.2 and Devstral.

use super::hermes::read_between;
use super::{Seen, is_name, is_name_byte};
use crate::Call;
use crate::grammar::{Shape, Term};
use crate::json_call::{Json, begun as begun_json, leading_value};

pub(super) const BEGINS: &[&str] = &["[TOOL_CALLS]"];
pub(super) const MARKERS: &[&str] = &["[TOOL_CALLS]", CALL_ID, ARGS];
const CALL_ID: &str = "[CALL_ID]";
const ARGS: &str = "[ARGS]";

/// A name and where its arguments begin.
enum Head {
    Open,
    Other,
    Named(String, usize),
}

pub(super) const SHAPE: Shape = Shape {
    before: &[Term::Marker(BEGINS[0]), Term::Text("[")],
    call: super::phi::JSON_CALL,
    between: Some(&[Term::Text(", ")]),
    after: &[Term::Text("]")],
};
pub(super) const SHAPE_NAMED: Shape = Shape {
    before: &[],
    call: &[Term::Marker(BEGINS[0]), Term::Name, Term::Marker(ARGS), Term::Json],
    between: Some(&[]),
    after: &[],
};

pub(super) fn read(held: &str, is_last: bool) -> Seen {
    let at = BEGINS[0].len();
    let start = held[at..].trim_start();
    if start.starts_with(['{']) || starts_list(start) {
        return read_between(held, at, "", is_last);
    }
    match head(held) {
        Head::Open => Seen::Open,
        Head::Other => Seen::Text(at),
        Head::Named(name, begin) => match leading_value(&held[begin..]) {
            Json::Open => Seen::Open,
            Json::Whole(json, end) if json.starts_with('{') => {
                let call = Call { name, arguments: json.to_owned() };
                Seen::Calls(vec![call], begin + end)
            }
            Json::Whole(..) | Json::Broken => Seen::Text(at),
        },
    }
}

/// A list, and not the beginning of an inner marker.
fn starts_list(start: &str) -> bool {
    start.strip_prefix('[').is_some_and(|rest| !rest.starts_with(['A', 'C']))
}

fn head(held: &str) -> Head {
    let at = BEGINS[0].len();
    let rest = held[at..].trim_start();
    let name_bytes = rest.bytes().take_while(|&byte| is_name_byte(byte)).count();
    let (name, mut after) = rest.split_at(name_bytes);
    if after.is_empty() {
        return Head::Open;
    }
    if !is_name(name) {
        return Head::Other;
    }
    if let Some(id) = after.strip_prefix(CALL_ID) {
        let id_bytes = id.bytes().take_while(u8::is_ascii_alphanumeric).count();
        after = &id[id_bytes..];
        if after.is_empty() {
            return Head::Open;
        }
    }
    let arguments = after.strip_prefix(ARGS).unwrap_or(after);
    if arguments.is_empty() || ARGS.starts_with(arguments) || CALL_ID.starts_with(arguments) {
        return Head::Open;
    }
    if arguments.trim_start().starts_with('{') {
        return Head::Named(name.to_owned(), held.len() - arguments.trim_start().len());
    }
    Head::Other
}

pub(super) fn begun(held: &str) -> Option<(String, usize)> {
    let at = BEGINS[0].len();
    if let Some((name, begin)) = begun_json(&held[at..]) {
        return Some((name, at + begin));
    }
    match head(held) {
        Head::Named(name, begin) => Some((name, begin)),
        Head::Open | Head::Other => None,
    }
}
