//! A name on the first line and its arguments, a JSON object, from the next: GLM-4 and the models
//! of 0414.
//!
//! Source: the templates of GLM-4-9B-0414 and GLM-4-9B-chat, which print an earlier call as
//! `<|assistant|>name`, a new line, and the arguments. No marker says that a call is meant, so it
//! is one only where it names one of the tools; an answer has one call.

use super::{Seen, begin_bytes};
use crate::grammar::{Shape, Term};
use crate::json_call::{Json, leading_value};
use crate::{Call, Tool};

pub(super) const SHAPE: Shape = Shape {
    before: &[],
    call: &[Term::Name, Term::Text("\n"), Term::Json],
    between: None,
    after: &[],
};

/// What a text is that begins with a tool's name, or may come to.
enum Head<'a> {
    Open,
    Other,
    /// The arguments begin there.
    Named(&'a str, usize),
}

pub(super) fn may_be_call(text: &str, tools: &[Tool]) -> bool {
    !matches!(head(text, tools.iter().map(|tool| tool.name.as_str())), Head::Other)
}

pub(super) fn read(held: &str, tools: &[Tool]) -> Seen {
    let text = Seen::Text(begin_bytes(held, &[]));
    let (name, at) = match head(held, tools.iter().map(|tool| tool.name.as_str())) {
        Head::Open => return Seen::Open,
        Head::Other => return text,
        Head::Named(name, at) => (name.to_owned(), at),
    };
    match leading_value(&held[at..]) {
        Json::Open => Seen::Open,
        Json::Broken => text,
        Json::Whole(json, end) => {
            Seen::Calls(vec![Call { name, arguments: json.to_owned() }], at + end)
        }
    }
}

/// Of an answer that is held to a call, whose first line is a tool's name.
pub(super) fn begun(held: &str) -> Option<(String, usize)> {
    let (name, _) = held.split_once('\n')?;
    match head(held, [name.trim_end()].into_iter()) {
        Head::Named(name, at) => Some((name.to_owned(), at)),
        Head::Open | Head::Other => None,
    }
}

fn head<'a>(text: &'a str, mut names: impl Iterator<Item = &'a str>) -> Head<'a> {
    let Some((line, rest)) = text.split_once('\n') else {
        let so_far = text.trim_end();
        let may_come = |name: &str| name == so_far || name.starts_with(text);
        return if names.any(may_come) { Head::Open } else { Head::Other };
    };
    let name = line.trim_end();
    if !names.any(|known| known == name) {
        return Head::Other;
    }
    let arguments = rest.trim_start();
    match arguments.as_bytes().first() {
        None => Head::Open,
        Some(b'{') => Head::Named(name, text.len() - arguments.len()),
        Some(_) => Head::Other,
    }
}
