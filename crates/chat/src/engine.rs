//! How is one template compiled and rendered the way Python's Jinja2 would, within budgets?
//!
//! Source of the surroundings (filters, functions, whitespace settings): `apply_chat_template` of
//! the Python package transformers, which templates are written against.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use crate::RenderRequest;
use crate::date_text::strftime;
use crate::markup::{self, with_escaped_sums};
use crate::protocol::{Reply, Setup};
use crate::python_methods::{call_method, strip};
use crate::python_text::{JsonStyle, json_text, str_text};
use crate::python_values::{add_generators, is_none, nothing};
use crate::request::OUTPUT_BYTES_MAX;

/// One instruction costs one unit, as do 64 bytes made: 2 million are 128 MB, or some 40,000
/// messages through an ordinary template, in about half a second.
const FUEL: u64 = 2_000_000;

/// Calls of macros within macros, blocks within blocks; real templates use 5.
const RECURSION_MAX: usize = 100;

/// Names of templates in the environment.
const DEFAULT: &str = "chat_template";
const TOOLS: &str = "tool_use";

/// Compiled templates and their constants.
pub(crate) struct Engine {
    environment: Environment<'static>,
}

/// What a template said through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl Engine {
    /// Compiles; the error is for the owner of the model file.
    pub(crate) fn new(setup: Setup) -> Result<Self, String> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(|error| error.to_string())?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_formatter(|output, _, value| {
            // Most output is plain text: no copy for it.
            match value.as_str() {
                Some(text) => output.write_str(text).map_err(Error::from),
                None => output.write_str(&str_text(value)?).map_err(Error::from),
            }
        });
        environment.set_unknown_method_callback(|_, value, method, arguments| {
            call_method(value, method, arguments)
        });
        environment.remove_global("debug");
        // Python's None cannot be looped over; templates ask before they do.
        environment
            .add_test("iterable", |value: Value| !value.is_none() && value.try_iter().is_ok());
        environment.add_test("none", |value: Value| is_none(&value));
        add_generators(&mut environment);
        environment.add_filter("tojson", to_json);
        environment.add_filter(markup::FILTER, markup::beside_safe);
        environment.add_filter("string", |value: Value| str_text(&value));
        environment.add_filter("trim", |text: String, letters: Option<String>| {
            strip(&text, letters.as_deref(), true, true).to_owned()
        });
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(text)))
        });
        environment.add_function("strftime_now", |state: &State, format: String| {
            let now = state.lookup("__now_unix_s").and_then(|value| value.as_i64()).unwrap_or(0);
            strftime(now, &format).map_err(|why| Error::new(ErrorKind::InvalidOperation, why))
        });
        for (name, token) in [("bos_token", setup.bos_token), ("eos_token", setup.eos_token)] {
            if let Some(token) = token {
                environment.add_global(name, token);
            }
        }
        for (name, token) in setup.tokens {
            environment.add_global(name, token);
        }
        for (name, source) in [(DEFAULT, Some(setup.source)), (TOOLS, setup.tools_source)] {
            let Some(source) = source else { continue };
            let source = without_generation_tags(&with_plain_newlines(&source));
            let source = with_escaped_sums(&source);
            environment.add_template_owned(name, source).map_err(|error| chain(&error))?;
        }
        Ok(Self { environment })
    }

    pub(crate) fn render(&self, request: &RenderRequest) -> Reply {
        let of_tools = || self.environment.get_template(TOOLS).ok();
        let template = request.tools.as_ref().and_then(|_| of_tools());
        let template = template.map_or_else(|| self.environment.get_template(DEFAULT), Ok);
        let outcome = template.and_then(|template| {
            let mut output = BoundedOutput(Vec::new());
            template.render_captured_to(context(request), &mut output)?;
            Ok(output.0)
        });
        match outcome.map(String::from_utf8) {
            Ok(Ok(text)) => Reply::Prompt(text),
            Ok(Err(_)) => Reply::Failed("its output is not UTF-8".to_owned()),
            Err(error) => match raised_text(&error) {
                Some(text) => Reply::Raised(text),
                None => Reply::Failed(chain(&error)),
            },
        }
    }
}

fn context(request: &RenderRequest) -> Value {
    let mut names: Vec<(String, Value)> = vec![
        ("messages".to_owned(), Value::from(Serde(&request.messages))),
        // Python passes None, and templates ask `tools is not none`.
        ("tools".to_owned(), request.tools.as_ref().map_or_else(nothing, from_json)),
        ("documents".to_owned(), nothing()),
        ("add_generation_prompt".to_owned(), Value::from(request.add_generation_prompt)),
        ("__now_unix_s".to_owned(), Value::from(request.now_unix_s)),
    ];
    names.extend(request.extra.iter().map(|(name, value)| (name.clone(), from_json(value))));
    Value::from_pairs(names)
}

fn from_json(json: &serde_json::Value) -> Value {
    Value::from(Serde(json))
}

/// Jinja reads every kind of line end as this one.
fn with_plain_newlines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Training tools mark the assistant's part with `{% generation %}`, which prints nothing itself.
/// A condition that always holds keeps the tag's whitespace behaviour.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = (&tag[2..end], &tag[end + 2..]);
        let name = inside.trim_matches(['-', '+']).trim();
        let replaced = match name {
            "generation" => inside.replace(name, "if true"),
            "endgeneration" => inside.replace(name, "endif"),
            _ => inside.to_owned(),
        };
        text.extend(["{%", &replaced, "%}"]);
        rest = after;
    }
    text + rest
}

/// Python's `json.dumps` with the arguments that transformers passes on.
fn to_json(value: Value, arguments: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let positional_ascii = arguments.first().is_some_and(Value::is_true);
    let ascii = named.get::<Option<bool>>("ensure_ascii")?.unwrap_or(positional_ascii);
    let indent = match named.get::<Option<Value>>("indent")? {
        Some(indent) if indent.is_none() => None,
        Some(indent) => match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => Some(text.to_owned()),
            (None, Some(count)) if count <= 64 => Some(" ".repeat(count)),
            (None, _) => {
                return Err(Error::new(ErrorKind::InvalidOperation, "indent is not sensible"));
            }
        },
        None => None,
    };
    let separators = named.get::<Option<Value>>("separators")?.filter(|value| !value.is_none());
    let part = |index: usize| -> Result<Option<String>, Error> {
        let Some(separators) = &separators else { return Ok(None) };
        let text = separators.get_item_by_index(index)?.as_str().map(str::to_owned);
        text.map(Some)
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "separators are two strings"))
    };
    let between = if indent.is_some() { "," } else { ", " };
    let style = JsonStyle {
        ascii,
        sort_keys: named.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        between_items: part(0)?.unwrap_or_else(|| between.to_owned()),
        after_key: part(1)?.unwrap_or_else(|| ": ".to_owned()),
        indent,
    };
    named.assert_all_used()?;
    json_text(&value, &style)
}

/// An output that refuses to grow beyond its limit.
struct BoundedOutput(Vec<u8>);

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!("its output exceeds {OUTPUT_BYTES_MAX} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raised_text(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(text)) = current.downcast_ref() {
            return Some(text.clone());
        }
        cause = current.source();
    }
    None
}

/// The error and its causes in one line.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}
