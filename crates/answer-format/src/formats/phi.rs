//! `<|tool_call|>[{"name": ..., "arguments": ...}]<|/tool_call|>`, or `functools[...]`: Phi-4.
//!
//! Source: the model card and tokenizer of Phi-4-mini-instruct.

use super::hermes::{begun_behind, read_between};
use super::{Seen, begin_bytes};
use crate::grammar::{Shape, Term};

pub(super) const BEGINS: &[&str] = &["<|tool_call|>", FUNCTOOLS];
pub(super) const MARKERS: &[&str] = &["<|tool_call|>", "<|/tool_call|>"];
const FUNCTOOLS: &str = "functools[";

/// Where the JSON begins, whose bracket belongs to one of the markers.
fn json_at(held: &str) -> usize {
    let bytes = begin_bytes(held, BEGINS);
    if held.starts_with(FUNCTOOLS) { bytes - 1 } else { bytes }
}

pub(super) const SHAPE: Shape = Shape {
    before: &[Term::Marker(MARKERS[0]), Term::Text("[")],
    call: JSON_CALL,
    between: Some(&[Term::Text(", ")]),
    after: &[Term::Text("]"), Term::Marker(MARKERS[1])],
};
/// A call as most models write it.
pub(super) const JSON_CALL: &[Term] = &[
    Term::Text("{\"name\": \""),
    Term::Name,
    Term::Text("\", \"arguments\": "),
    Term::Json,
    Term::Text("}"),
];

pub(super) fn read(held: &str, is_last: bool) -> Seen {
    let at = json_at(held);
    if held.starts_with(FUNCTOOLS) {
        return read_between(held, at, "", is_last);
    }
    read_between(held, at, MARKERS[1], is_last)
}

pub(super) fn begun(held: &str) -> Option<(String, usize)> {
    begun_behind(held, json_at(held))
}
