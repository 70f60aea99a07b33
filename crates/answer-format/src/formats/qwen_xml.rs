//! `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`:
//! Qwen3-Coder, and Seed-OSS with other markers around it.
//!
//! Source: the templates of Qwen3-Coder and Seed-OSS, and the parser that comes with the former. It
//! leaves the outermost markers out at times; a value has a line of its own, but not in Seed's.

use crate::grammar::{Argument, Shape, Term};
use serde_json::Map;

use super::{Next, Seen, Split, begin_bytes, closing, is_name, next, split};
use crate::typed_arguments::{object, typed};
use crate::{Call, Tool};

pub(super) const BEGINS: &[&str] = &["<tool_call>", FUNCTION];
pub(super) const MARKERS: &[&str] = &["<tool_call>", END];
const END: &str = "</tool_call>";
const FUNCTION: &str = "<function=";
const PARAMETER: &str = "<parameter=";
pub(super) const SEED_BEGINS: &[&str] = &["<seed:tool_call>", FUNCTION];
pub(super) const SEED_MARKERS: &[&str] = &["<seed:tool_call>", SEED_END];
const SEED_END: &str = "</seed:tool_call>";

pub(super) const SHAPE: Shape = Shape {
    before: &[],
    call: &[
        Term::Marker(BEGINS[0]),
        Term::Text("\n<function="),
        Term::Name,
        Term::Text(">\n"),
        Term::Each(Argument {
            before_key: PARAMETER,
            before_value: ">\n",
            after_value: "\n</parameter>\n",
            between: "",
            has_bare_texts: true,
        }),
        Term::Text("</function>\n"),
        Term::Marker(END),
    ],
    between: Some(&[Term::Text("\n")]),
    after: &[],
};

pub(super) const SHAPE_SEED: Shape = Shape {
    call: &[
        Term::Marker(SEED_BEGINS[0]),
        Term::Text("\n<function="),
        Term::Name,
        Term::Text(">\n"),
        Term::Each(Argument {
            before_key: PARAMETER,
            before_value: ">",
            after_value: "</parameter>\n",
            between: "",
            has_bare_texts: true,
        }),
        Term::Text("</function>\n"),
        Term::Marker(SEED_END),
    ],
    ..SHAPE
};

pub(super) fn read(held: &str, tools: &[Tool], is_last: bool) -> Seen {
    read_between(held, (BEGINS, END), tools, is_last)
}

pub(super) fn read_seed(held: &str, tools: &[Tool], is_last: bool) -> Seen {
    read_between(held, (SEED_BEGINS, SEED_END), tools, is_last)
}

fn read_between(held: &str, (begins, end): (&[&str], &str), tools: &[Tool], is_last: bool) -> Seen {
    let text = Seen::Text(begin_bytes(held, begins));
    let function = match next(held.strip_prefix(begins[0]).unwrap_or(held), FUNCTION) {
        Next::Found(function) => function,
        Next::Open => return Seen::Open,
        Next::Other => return text,
    };
    let Split::Found(name, mut rest) = split(function, ">") else {
        return if function.is_empty() || is_name(function) { Seen::Open } else { text };
    };
    if !is_name(name) {
        return text;
    }
    let tool = tools.iter().find(|tool| tool.name == name);
    let mut arguments = Map::new();
    let after = loop {
        match next(rest, "</function>") {
            Next::Found(after) => break after,
            Next::Open => return Seen::Open,
            Next::Other => {}
        }
        let parameter = match next(rest, PARAMETER) {
            Next::Found(parameter) => parameter,
            Next::Open => return Seen::Open,
            Next::Other => return text,
        };
        let Split::Found(key, value) = split(parameter, ">") else { return Seen::Open };
        let Split::Found(value, after) = split(value, "</parameter>") else { return Seen::Open };
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        arguments.insert(key.to_owned(), typed(tool, key, value));
        rest = after;
    };
    let Some(bytes) = closing(after, end, is_last) else { return Seen::Open };
    let call = Call { name: name.to_owned(), arguments: object(arguments) };
    Seen::Calls(vec![call], held.len() - after.len() + bytes)
}
