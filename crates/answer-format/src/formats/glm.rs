//! `<tool_call>name` and pairs of `<arg_key>` and `<arg_value>`: GLM-4.5 and later.
//!
//! Source: the template of GLM-4.6. A value is JSON, but for texts, which stand as they are.

use crate::grammar::{Argument, Shape, Term};
use serde_json::Map;

use super::{Next, Seen, Split, is_name, next, split};
use crate::typed_arguments::{object, typed};
use crate::{Call, Tool};

pub(super) const BEGINS: &[&str] = &["<tool_call>"];
pub(super) const MARKERS: &[&str] =
    &["<tool_call>", END, KEY, "</arg_key>", "<arg_value>", "</arg_value>"];
const END: &str = "</tool_call>";
const KEY: &str = "<arg_key>";

pub(super) const SHAPE: Shape = Shape {
    before: &[],
    call: &[
        Term::Marker(BEGINS[0]),
        Term::Name,
        Term::Text("\n"),
        Term::Each(Argument {
            before_key: "<arg_key>",
            before_value: "</arg_key>\n<arg_value>",
            after_value: "</arg_value>\n",
            between: "",
            has_bare_texts: true,
        }),
        Term::Marker(END),
    ],
    between: Some(&[Term::Text("\n")]),
    after: &[],
};

pub(super) fn read(held: &str, tools: &[Tool]) -> Seen {
    let text = Seen::Text(BEGINS[0].len());
    let inside = &held[BEGINS[0].len()..];
    let Some(name_end) = inside.find('<') else {
        let so_far = inside.trim();
        return if so_far.is_empty() || is_name(so_far) { Seen::Open } else { text };
    };
    let name = inside[..name_end].trim();
    if !is_name(name) {
        return text;
    }
    let tool = tools.iter().find(|tool| tool.name == name);
    let (mut rest, mut arguments) = (&inside[name_end..], Map::new());
    loop {
        match next(rest, END) {
            Next::Found(after) => {
                let call = Call { name: name.to_owned(), arguments: object(arguments) };
                return Seen::Calls(vec![call], held.len() - after.len());
            }
            Next::Open => return Seen::Open,
            Next::Other => {}
        }
        let key = match next(rest, KEY) {
            Next::Found(key) => key,
            Next::Open => return Seen::Open,
            Next::Other => return text,
        };
        let Split::Found(key, after) = split(key, "</arg_key>") else { return Seen::Open };
        let value = match next(after, "<arg_value>") {
            Next::Found(value) => value,
            Next::Open => return Seen::Open,
            Next::Other => return text,
        };
        let Split::Found(value, after) = split(value, "</arg_value>") else { return Seen::Open };
        let key = key.trim();
        arguments.insert(key.to_owned(), typed(tool, key, value));
        rest = after;
    }
}
