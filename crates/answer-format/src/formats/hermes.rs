//! `<tool_call>{"name": ..., "arguments": ...}</tool_call>`: Hermes, Qwen 2 and 3, SmolLM3.
//!
//! Source: the templates of Qwen3 and Hermes 2 Pro.

use super::{Seen, closing};
use crate::grammar::{Shape, Term};
use crate::json_call::{Json, begun as begun_json, calls_of, leading_value};

pub(super) const BEGINS: &[&str] = &["<tool_call>"];
pub(super) const MARKERS: &[&str] = &["<tool_call>", "</tool_call>"];

pub(super) const SHAPE: Shape = Shape {
    before: &[],
    call: &[
        Term::Marker(MARKERS[0]),
        Term::Text("\n{\"name\": \""),
        Term::Name,
        Term::Text("\", \"arguments\": "),
        Term::Json,
        Term::Text("}\n"),
        Term::Marker(MARKERS[1]),
    ],
    between: Some(&[Term::Text("\n")]),
    after: &[],
};

pub(super) fn read(held: &str, is_last: bool) -> Seen {
    read_between(held, MARKERS[0].len(), MARKERS[1], is_last)
}

/// Reads JSON calls from `at` to a closing marker.
pub(super) fn read_between(held: &str, at: usize, closer: &str, is_last: bool) -> Seen {
    let inside = &held[at..];
    match leading_value(inside) {
        Json::Open => Seen::Open,
        Json::Broken => Seen::Text(at.max(1)),
        Json::Whole(json, end) => {
            match (calls_of(json), closing(&inside[end..], closer, is_last)) {
                (None, _) => Seen::Text(at.max(1)),
                (Some(_), None) => Seen::Open,
                (Some(calls), Some(more)) => Seen::Calls(calls, at + end + more),
            }
        }
    }
}

pub(super) fn begun(held: &str) -> Option<(String, usize)> {
    begun_behind(held, MARKERS[0].len())
}

pub(super) fn begun_behind(held: &str, at: usize) -> Option<(String, usize)> {
    begun_json(&held[at..]).map(|(name, begin)| (name, at + begin))
}
