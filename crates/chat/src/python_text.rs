//! How does Python write a value: `str(x)`, `repr(x)`, `json.dumps(x)`?
//!
//! Every writer stops at a size and a depth: a list that holds itself 60 times over is small in
//! memory and endless on paper.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::python_values::{is_generator, is_none};
use crate::request::OUTPUT_BYTES_MAX;

/// Deeper than any tool's schema; shallow enough for the smallest stack.
const DEPTH_MAX: usize = 128;

/// The arguments of `json.dumps`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JsonStyle {
    /// Write everything beyond ASCII as `\uXXXX`.
    pub(crate) ascii: bool,
    pub(crate) sort_keys: bool,
    pub(crate) between_items: String,
    pub(crate) after_key: String,
    /// One level's worth; `None` is all on one line.
    pub(crate) indent: Option<String>,
}

/// `str(value)`, and nothing for an undefined one.
pub(crate) fn str_text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => {
            let mut text = Bounded(String::new());
            write_repr(&mut text, value, 0)?;
            Ok(text.0)
        }
    }
}

/// `json.dumps(value, ...)`.
pub(crate) fn json_text(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut text = Bounded(String::new());
    write_json(&mut text, value, style, 0)?;
    Ok(text.0)
}

struct Bounded(String);

impl Bounded {
    fn push(&mut self, text: &str) -> Result<(), Error> {
        if self.0.len() + text.len() > OUTPUT_BYTES_MAX {
            return Err(too_long());
        }
        self.0.push_str(text);
        Ok(())
    }
}

pub(crate) fn too_long() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a text exceeds {OUTPUT_BYTES_MAX} bytes"))
}

fn check_depth(depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        let text = format!("a value is nested more than {DEPTH_MAX} deep");
        return Err(Error::new(ErrorKind::InvalidOperation, text));
    }
    Ok(())
}

fn write_repr(text: &mut Bounded, value: &Value, depth: usize) -> Result<(), Error> {
    check_depth(depth)?;
    match value.kind() {
        ValueKind::Undefined => text.push("Undefined"),
        ValueKind::None => text.push("None"),
        ValueKind::Bool => text.push(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => text.push(&number(value, ["nan", "inf", "-inf"])),
        ValueKind::String => text.push(&quoted(value.as_str().unwrap_or_default())),
        ValueKind::Map => {
            text.push("{")?;
            for (index, key) in value.try_iter()?.enumerate() {
                text.push(if index > 0 { ", " } else { "" })?;
                write_repr(text, &key, depth + 1)?;
                text.push(": ")?;
                write_repr(text, &value.get_item(&key)?, depth + 1)?;
            }
            text.push("}")
        }
        ValueKind::Iterable if is_generator(value) => text.push(&value.to_string()),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            text.push(open)?;
            for (index, item) in value.try_iter()?.enumerate() {
                text.push(if index > 0 { ", " } else { "" })?;
                write_repr(text, &item, depth + 1)?;
            }
            text.push(if value.is_tuple() && value.len() == Some(1) { "," } else { "" })?;
            text.push(close)
        }
        _ => text.push(&value.to_string()),
    }
}

/// Python's choice of quotes and escapes for the printable and the control characters.
fn quoted(content: &str) -> String {
    let quote = if content.contains('\'') && !content.contains('"') { '"' } else { '\'' };
    let mut text = String::from(quote);
    for letter in content.chars() {
        let _ = match letter {
            '\\' => write!(text, "\\\\"),
            '\n' => write!(text, "\\n"),
            '\r' => write!(text, "\\r"),
            '\t' => write!(text, "\\t"),
            _ if letter == quote => write!(text, "\\{letter}"),
            '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => {
                write!(text, "\\x{:02x}", u32::from(letter))
            }
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{feff}' => {
                write!(text, "\\u{:04x}", u32::from(letter))
            }
            _ => write!(text, "{letter}"),
        };
    }
    text.push(quote);
    text
}

/// Python's shortest form: exponents from 1e16 up and below 1e-4.
fn number(value: &Value, special: [&str; 3]) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(number) = f64::try_from(value.clone()) else { return value.to_string() };
    if number.is_nan() {
        return special[0].to_owned();
    }
    if number.is_infinite() {
        return special[if number > 0.0 { 1 } else { 2 }].to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    format!("{number:?}")
}

fn write_json(
    text: &mut Bounded,
    value: &Value,
    style: &JsonStyle,
    depth: usize,
) -> Result<(), Error> {
    check_depth(depth)?;
    if is_none(value) {
        return text.push("null");
    }
    if is_generator(value) {
        let why = "a generator cannot be written as JSON";
        return Err(Error::new(ErrorKind::InvalidOperation, why));
    }
    match value.kind() {
        ValueKind::None => text.push("null"),
        ValueKind::Bool => text.push(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push(&number(value, ["NaN", "Infinity", "-Infinity"])),
        ValueKind::String => write_json_string(text, value.as_str().unwrap_or_default(), style),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            text.push("{")?;
            for (index, key) in keys.iter().enumerate() {
                start_item(text, style, index, depth + 1)?;
                let name = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::None => "null".to_owned(),
                    ValueKind::Bool => key.is_true().to_string(),
                    _ => number(key, ["NaN", "Infinity", "-Infinity"]),
                };
                write_json_string(text, &name, style)?;
                text.push(&style.after_key)?;
                write_json(text, &value.get_item(key)?, style, depth + 1)?;
            }
            end_items(text, style, keys.len(), depth)?;
            text.push("}")
        }
        ValueKind::Seq | ValueKind::Iterable => {
            text.push("[")?;
            let mut count = 0;
            for item in value.try_iter()? {
                start_item(text, style, count, depth + 1)?;
                write_json(text, &item, style, depth + 1)?;
                count += 1;
            }
            end_items(text, style, count, depth)?;
            text.push("]")
        }
        kind => {
            let why = format!("a value of type {kind} cannot be written as JSON");
            Err(Error::new(ErrorKind::InvalidOperation, why))
        }
    }
}

fn start_item(
    text: &mut Bounded,
    style: &JsonStyle,
    index: usize,
    depth: usize,
) -> Result<(), Error> {
    text.push(if index > 0 { &style.between_items } else { "" })?;
    new_line(text, style, depth)
}

fn end_items(
    text: &mut Bounded,
    style: &JsonStyle,
    count: usize,
    depth: usize,
) -> Result<(), Error> {
    if count == 0 { Ok(()) } else { new_line(text, style, depth) }
}

fn new_line(text: &mut Bounded, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    let Some(indent) = &style.indent else { return Ok(()) };
    text.push("\n")?;
    (0..depth).try_for_each(|_| text.push(indent))
}

fn write_json_string(text: &mut Bounded, content: &str, style: &JsonStyle) -> Result<(), Error> {
    let mut escaped = String::with_capacity(content.len() + 2);
    escaped.push('"');
    for letter in content.chars() {
        match letter {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\u{8}' => escaped.push_str("\\b"),
            '\u{c}' => escaped.push_str("\\f"),
            '\0'..='\x1f' => escaped.push_str(&format!("\\u{:04x}", u32::from(letter))),
            _ if style.ascii && !(' '..='~').contains(&letter) => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
            _ => escaped.push(letter),
        }
    }
    escaped.push('"');
    text.push(&escaped)
}
