//! Which parts does an answer have, told as soon as they are certain?
//!
//! White space around thoughts and calls belongs to the markup and is left out. Calls are told when
//! they are complete and right; only where a grammar holds the answer, and so nothing can go wrong
//! any more, their arguments are told as they come. What is cut off of such a call is no text.

use crate::formats::Seen;
use crate::formats::harmony::HarmonyReader;
use crate::json_call::{Json, leading_value};
use crate::{AnswerFormat, CallFormat, Part, ThoughtMarkers, Tool};

/// What a reader must know of the request.
#[derive(Clone, Debug)]
pub struct ReaderSetup {
    pub format: AnswerFormat,
    /// Empty: calls are not looked for.
    pub tools: Vec<Tool>,
    pub held: Held,
}

/// What a grammar holds an answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing: what looks like a call may be none.
    No,
    /// What begins like a call is one. `is_cut`: a stop text may end the answer within it, so that
    /// it is told only when it is complete.
    MayCall { is_cut: bool },
    /// Calls, and nothing but thoughts before them.
    OnlyCalls,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Reader {
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Harmony(HarmonyReader),
    Marked(MarkedReader),
}

impl Reader {
    /// `prompt_end`: the last characters of the prompt, which may have opened the thoughts.
    pub fn new(setup: ReaderSetup, prompt_end: &str) -> Self {
        if setup.format.calls == CallFormat::Harmony {
            return Self { inner: Inner::Harmony(HarmonyReader::new(&setup)) };
        }
        Self { inner: Inner::Marked(MarkedReader::new(setup, prompt_end)) }
    }

    /// Takes more of the answer.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        match &mut self.inner {
            Inner::Harmony(reader) => reader.push(text, &mut parts),
            Inner::Marked(reader) => reader.push(text, &mut parts),
        }
        parts
    }

    /// The end of the answer: what was held back.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        match &mut self.inner {
            Inner::Harmony(reader) => reader.finish(&mut parts),
            Inner::Marked(reader) => reader.finish(&mut parts),
        }
        parts
    }

    /// Whether the answer's next token is a thought, as far as one can tell.
    pub fn is_thinking(&self) -> bool {
        match &self.inner {
            Inner::Harmony(reader) => reader.is_thinking(),
            Inner::Marked(reader) => reader.is_thinking(),
        }
    }
}

impl ThoughtMarkers {
    /// Whether a prompt that ends so has opened the thoughts and not closed them.
    pub fn are_opened_by(self, prompt_end: &str) -> bool {
        prompt_end.trim_end().ends_with(self.begin)
    }
}

/// Bytes at the end of a text that may become one of these markers.
pub(crate) fn tail(text: &str, markers: &[&str]) -> usize {
    let of_one = |marker: &&str| {
        let longest = text.len().min(marker.len() - 1);
        let begins =
            |&count: &usize| marker.is_char_boundary(count) && text.ends_with(&marker[..count]);
        (1..=longest).rev().find(begins).unwrap_or(0)
    };
    markers.iter().map(of_one).max().unwrap_or(0)
}

/// Held calls are read again when more comes: always while they are short, and then where a piece
/// may end them.
const READ_ALWAYS_BYTES: usize = 4096;

#[derive(Debug)]
struct MarkedReader {
    setup: ReaderSetup,
    held: String,
    state: State,
    /// White space that comes now is left out.
    skips_white: bool,
    /// What comes now may be a call without a marker.
    may_be_bare: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// Thoughts may begin.
    Start,
    Thought,
    Text,
    /// `held` has so many bytes of white space, and then what may be a call.
    Call {
        lead: usize,
        told: Option<Told>,
    },
}

/// What has been told of a call that is still being written: how many bytes of its arguments,
/// which begin `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    at: usize,
    bytes: usize,
}

impl MarkedReader {
    fn new(setup: ReaderSetup, prompt_end: &str) -> Self {
        let state = match setup.format.thoughts {
            Some(markers) if markers.are_opened_by(prompt_end) => State::Thought,
            Some(_) => State::Start,
            None => State::Text,
        };
        let skips_white = state == State::Thought;
        Self { setup, held: String::new(), state, skips_white, may_be_bare: true }
    }

    fn is_thinking(&self) -> bool {
        self.state == State::Thought
    }

    fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.held.push_str(text);
        let is_call = matches!(self.state, State::Call { told: None, .. });
        let may_end = text.contains(['}', ']', '>', ')', '`', ';']);
        if is_call && self.held.len() > READ_ALWAYS_BYTES && !may_end {
            return;
        }
        while self.step(false, parts) {}
    }

    fn finish(&mut self, parts: &mut Vec<Part>) {
        while self.step(true, parts) {}
    }

    /// Goes on as far as it is certain what comes next. `false`: more must come first.
    fn step(&mut self, is_last: bool, parts: &mut Vec<Part>) -> bool {
        if self.skips_white {
            self.held.drain(..self.held.len() - self.held.trim_start().len());
            self.skips_white = self.held.is_empty();
        }
        if self.held.is_empty() {
            return false;
        }
        match self.state {
            State::Start => self.start(is_last),
            State::Thought => self.thought(is_last, parts),
            State::Text => self.text(is_last, parts),
            State::Call { lead, told } => self.call(lead, told, is_last, parts),
        }
    }

    fn start(&mut self, is_last: bool) -> bool {
        let markers = self.setup.format.thoughts;
        let (begin, title) = markers.map_or(("", ""), |markers| (markers.begin, markers.title));
        let rest = self.held.trim_start();
        if let Some(after) = rest.strip_prefix(begin) {
            if title.starts_with(after) && after.len() < title.len() && !is_last {
                return false;
            }
            let after = after.strip_prefix(title).unwrap_or(after);
            self.held.drain(..self.held.len() - after.len());
            (self.state, self.skips_white) = (State::Thought, true);
        } else if begin.starts_with(rest) && !is_last {
            return false;
        } else {
            self.state = State::Text;
        }
        true
    }

    fn thought(&mut self, is_last: bool, parts: &mut Vec<Part>) -> bool {
        let end = self.setup.format.thoughts.map_or("", |markers| markers.end);
        if let Some(at) = self.held.find(end) {
            push_thought(self.held[..at].trim_end(), parts);
            self.held.drain(..at + end.len());
            (self.state, self.skips_white) = (State::Text, true);
            return true;
        }
        let held_back = if is_last { 0 } else { tail(&self.held, &[end]) };
        let certain = self.held[..self.held.len() - held_back].trim_end();
        push_thought(certain, parts);
        let certain = certain.len();
        self.held.drain(..certain);
        false
    }

    fn text(&mut self, is_last: bool, parts: &mut Vec<Part>) -> bool {
        if self.setup.tools.is_empty() {
            push_text(&std::mem::take(&mut self.held), parts);
            return false;
        }
        if is_last && self.setup.held == Held::OnlyCalls {
            // The beginning of a marker.
            self.held.clear();
            return false;
        }
        let format = self.setup.format.calls;
        let start = self.held.trim_start();
        let lead = self.held.len() - start.len();
        if self.may_be_bare && format.may_be_bare(start, &self.setup.tools) {
            self.state = State::Call { lead, told: None };
            return true;
        }
        let begins = format.begins();
        let found = begins.iter().filter_map(|begin| self.held.find(begin)).min();
        let held_back = if is_last { 0 } else { tail(&self.held, begins) };
        let end = found.unwrap_or(self.held.len() - held_back);
        let mut certain = self.held[..end].trim_end().len();
        if found.is_none() && is_last {
            certain = end;
        }
        push_text(&self.held[..certain], parts);
        self.may_be_bare &= certain == 0;
        self.held.drain(..certain);
        if found.is_some() {
            self.state = State::Call { lead: end - certain, told: None };
        }
        found.is_some()
    }

    fn call(
        &mut self,
        lead: usize,
        told: Option<Told>,
        is_last: bool,
        parts: &mut Vec<Part>,
    ) -> bool {
        let format = self.setup.format.calls;
        match format.read(&self.held[lead..], &self.setup.tools, is_last) {
            Seen::Open => {
                if !matches!(self.setup.held, Held::No | Held::MayCall { is_cut: true }) {
                    self.tell(lead, told, parts);
                }
                false
            }
            Seen::Calls(calls, bytes) => {
                for (index, call) in calls.into_iter().enumerate() {
                    match told.filter(|_| index == 0) {
                        None => {
                            parts.push(Part::CallName(call.name));
                            push_arguments(&call.arguments, parts);
                        }
                        Some(told) => {
                            push_arguments(call.arguments.get(told.bytes..).unwrap_or(""), parts);
                        }
                    }
                }
                self.held.drain(..lead + bytes);
                (self.state, self.skips_white, self.may_be_bare) = (State::Text, true, true);
                true
            }
            // Cut off: what was told stays told, and the rest is nothing.
            Seen::Text(_) if told.is_some() || is_last && self.was_call(lead) => {
                self.held.clear();
                self.state = State::Text;
                false
            }
            Seen::Text(bytes) => {
                push_text(&self.held[..lead + bytes], parts);
                self.held.drain(..lead + bytes);
                (self.state, self.may_be_bare) = (State::Text, false);
                true
            }
        }
    }

    /// Whether what is held, and will not be more, is the beginning of a call and no text.
    fn was_call(&self, lead: usize) -> bool {
        let begins = self.setup.format.calls.begins();
        match self.setup.held {
            Held::No => false,
            Held::MayCall { .. } => begins.iter().any(|begin| self.held[lead..].starts_with(begin)),
            Held::OnlyCalls => true,
        }
    }

    /// Tells what is new of the arguments of the call that is being written.
    fn tell(&mut self, lead: usize, told: Option<Told>, parts: &mut Vec<Part>) {
        let call = &self.held[lead..];
        let mut told = match told {
            Some(told) => told,
            None => {
                let Some((name, at)) = self.setup.format.calls.begun(call) else { return };
                parts.push(Part::CallName(name));
                Told { at, bytes: 0 }
            }
        };
        let arguments = &call[told.at..];
        let end = match leading_value(arguments) {
            Json::Whole(_, end) => end,
            Json::Open | Json::Broken => arguments.len(),
        };
        if end > told.bytes {
            push_arguments(&arguments[told.bytes..end], parts);
            told.bytes = end;
        }
        self.state = State::Call { lead, told: Some(told) };
    }
}

fn push_thought(text: &str, parts: &mut Vec<Part>) {
    if !text.is_empty() {
        parts.push(Part::Thought(text.to_owned()));
    }
}

fn push_text(text: &str, parts: &mut Vec<Part>) {
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

fn push_arguments(text: &str, parts: &mut Vec<Part>) {
    if !text.is_empty() {
        parts.push(Part::CallArguments(text.to_owned()));
    }
}
