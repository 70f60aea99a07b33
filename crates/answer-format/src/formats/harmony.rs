//! GPT-OSS's channels: `<|channel|>analysis<|message|>` thinks, `final` answers, and `commentary
//! to=functions.name` calls.
//!
//! Source: OpenAI's description of the harmony response format. A prompt ends in
//! `<|start|>assistant`, so an answer begins within a header.

use crate::grammar::{Shape, Term};
use crate::json_call::{Json, leading_value};
use crate::reader::tail;
use crate::{Held, Part, ReaderSetup};

pub(super) const MARKERS: &[&str] =
    &[START, CHANNEL, MESSAGE, "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"];
const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
/// What ends a message's text.
const ENDS: &[&str] = &["<|end|>", "<|call|>", "<|return|>", START, CHANNEL];
pub(super) const SHAPE: Shape = Shape {
    before: &[Term::Analysis],
    call: &[
        Term::Marker(CHANNEL),
        Term::Text("commentary to=functions."),
        Term::Name,
        Term::Text(" "),
        Term::Marker("<|constrain|>"),
        Term::Text("json"),
        Term::Marker(MESSAGE),
        Term::Json,
    ],
    between: None,
    after: &[],
};
/// With what a header may begin: the prompt has written its start, or a message has just ended.
const STARTS: &[&str] = &[CHANNEL, START, " to=", "assistant", "<|end|>", "<|call|>", "<|return|>"];
/// A role, a channel, a recipient and a kind of content.
const HEADER_BYTES_MAX: usize = 512;

/// What a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Body {
    Thought,
    Text,
    /// A call of this function: its header, and its arguments so far.
    Call(String, String, String),
}

/// Reads an answer in channels.
#[derive(Debug, Default)]
pub(crate) struct HarmonyReader {
    held: String,
    /// `None`: within a header.
    body: Option<Body>,
    has_tools: bool,
    /// The answer is nothing but calls, and thoughts before them.
    only_calls: bool,
    has_said: bool,
}

impl HarmonyReader {
    pub(crate) fn new(setup: &ReaderSetup) -> Self {
        let only_calls = setup.held == Held::OnlyCalls;
        Self { has_tools: !setup.tools.is_empty(), only_calls, ..Self::default() }
    }

    /// Whether the model thinks or may begin to.
    pub(crate) fn is_thinking(&self) -> bool {
        matches!(self.body, Some(Body::Thought)) || (self.body.is_none() && !self.has_said)
    }

    pub(crate) fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.held.push_str(text);
        while self.step(false, parts) {}
    }

    pub(crate) fn finish(&mut self, parts: &mut Vec<Part>) {
        if self.only_calls && self.body.is_none() {
            // A header that was cut off.
            return;
        }
        while self.step(true, parts) {}
        if let Some(Body::Call(header, name, arguments)) = self.body.take() {
            let before = parts.len();
            end_call(header, name, arguments, parts);
            if self.only_calls && matches!(parts.get(before), Some(Part::Text(_))) {
                parts.truncate(before);
            }
        }
    }

    /// `false`: more must come first.
    fn step(&mut self, is_last: bool, parts: &mut Vec<Part>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        if self.body.is_none() { self.header(is_last, parts) } else { self.text(is_last, parts) }
    }

    fn header(&mut self, is_last: bool, parts: &mut Vec<Part>) -> bool {
        let start = self.held.as_str();
        if let Some(at) = start.find(MESSAGE).filter(|&at| at <= HEADER_BYTES_MAX) {
            let header = self.held[..at].to_owned();
            self.held.drain(..at + MESSAGE.len());
            self.body = Some(self.body_of(&header));
            return true;
        }
        let may_be =
            STARTS.iter().any(|begin| begin.starts_with(start) || start.starts_with(begin));
        let may_come = start.len() <= HEADER_BYTES_MAX + MESSAGE.len() && !is_last;
        if may_be && may_come {
            return false;
        }
        // An answer without channels, or a header that never ended.
        self.body = Some(Body::Text);
        self.has_said = true;
        let first = start.chars().next().map_or(0, char::len_utf8);
        parts.push(Part::Text(self.held.drain(..first).collect()));
        true
    }

    fn body_of(&self, header: &str) -> Body {
        let recipient = header.split_once("to=").map(|(_, rest)| {
            rest.split(|letter: char| letter.is_whitespace() || letter == '<').next()
        });
        let name = recipient.flatten().and_then(|to| to.strip_prefix("functions."));
        let channel = header.split_once(CHANNEL).map_or("", |(_, channel)| channel);
        match name {
            Some(name) if self.has_tools && super::is_name(name) => {
                Body::Call(format!("{header}{MESSAGE}"), name.to_owned(), String::new())
            }
            _ if channel.starts_with("analysis") => Body::Thought,
            _ => Body::Text,
        }
    }

    fn text(&mut self, is_last: bool, parts: &mut Vec<Part>) -> bool {
        let found = ENDS.iter().filter_map(|end| Some((self.held.find(end)?, *end)));
        let Some((at, end)) = found.min_by_key(|&(at, _)| at) else {
            let held_back = if is_last { 0 } else { tail(&self.held, ENDS) };
            let text = self.held[..self.held.len() - held_back].to_owned();
            self.held.drain(..text.len());
            self.say(text, parts);
            return false;
        };
        let text = self.held[..at].to_owned();
        // The beginning of a header stays for it.
        let drained = if end == CHANNEL { at } else { at + end.len() };
        self.held.drain(..drained);
        self.say(text, parts);
        if let Some(Body::Call(header, name, arguments)) = self.body.take() {
            end_call(header, name, arguments, parts);
            self.has_said = true;
        }
        true
    }

    fn say(&mut self, text: String, parts: &mut Vec<Part>) {
        if text.is_empty() {
            return;
        }
        match &mut self.body {
            Some(Body::Thought) => parts.push(Part::Thought(text)),
            Some(Body::Call(_, _, arguments)) => arguments.push_str(&text),
            Some(Body::Text) | None => {
                self.has_said = true;
                parts.push(Part::Text(text));
            }
        }
    }
}

fn end_call(header: String, name: String, arguments: String, parts: &mut Vec<Part>) {
    let json = match leading_value(&arguments) {
        Json::Whole(json, end) if json.starts_with('{') && arguments[end..].trim().is_empty() => {
            json.to_owned()
        }
        _ if arguments.trim().is_empty() => "{}".to_owned(),
        _ => return parts.push(Part::Text(header + &arguments)),
    };
    parts.extend([Part::CallName(name), Part::CallArguments(json)]);
}
