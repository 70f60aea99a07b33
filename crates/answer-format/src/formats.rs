//! How does each format write calls? What all must answer, and who answers for which.

mod deepseek;
mod gemma;
mod glm;
mod glm_lines;
pub(crate) mod harmony;
mod hermes;
mod llama;
mod mistral;
mod nested;
mod phi;
mod pythonic;
mod qwen_xml;

use crate::grammar::Shape;
use crate::{Call, CallFormat, Tool};

/// What stands at the beginning of a text that may be a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// More must come to tell.
    Open,
    /// These calls, in so many bytes.
    Calls(Vec<Call>, usize),
    /// No call: so many bytes are text, at least one.
    Text(usize),
}

impl CallFormat {
    /// Texts with which a call begins, anywhere in an answer.
    pub(crate) fn begins(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeek | Self::DeepSeekFenced => deepseek::BEGINS,
            Self::Gemma => gemma::BEGINS,
            Self::Glm => glm::BEGINS,
            Self::GlmLines | Self::Harmony => &[],
            Self::Hermes => hermes::BEGINS,
            Self::Llama => llama::BEGINS,
            Self::Mistral | Self::MistralNamed => mistral::BEGINS,
            Self::Olmo => pythonic::LINES_BEGINS,
            Self::Phi => phi::BEGINS,
            Self::Pythonic => pythonic::BEGINS,
            Self::QwenXml => qwen_xml::BEGINS,
            Self::Seed => qwen_xml::SEED_BEGINS,
        }
    }

    /// Whether an answer that begins so may be a call without any marker.
    pub(crate) fn may_be_bare(self, text: &str, tools: &[Tool]) -> bool {
        match self {
            Self::GlmLines => glm_lines::may_be_call(text, tools),
            Self::Llama => text.starts_with('{'),
            Self::Pythonic => text.starts_with('['),
            Self::DeepSeek
            | Self::DeepSeekFenced
            | Self::Gemma
            | Self::Glm
            | Self::Harmony
            | Self::Hermes
            | Self::Mistral
            | Self::MistralNamed
            | Self::Olmo
            | Self::Phi
            | Self::QwenXml
            | Self::Seed => false,
        }
    }

    /// Reads what begins with one of [`CallFormat::begins`], or may be bare. The verdict on a text
    /// stays when more of it comes, but for [`Seen::Open`]. `is_last`: nothing more comes.
    pub(crate) fn read(self, held: &str, tools: &[Tool], is_last: bool) -> Seen {
        let seen = match self {
            Self::DeepSeek | Self::DeepSeekFenced => deepseek::read(held, is_last),
            Self::Gemma => gemma::read(held, is_last),
            Self::Glm => glm::read(held, tools),
            Self::GlmLines => glm_lines::read(held, tools),
            Self::Harmony => Seen::Text(held.len()),
            Self::Hermes => hermes::read(held, is_last),
            Self::Llama => llama::read(held, tools, is_last),
            Self::Mistral | Self::MistralNamed => mistral::read(held, is_last),
            Self::Olmo => pythonic::read_lines(held, is_last),
            Self::Phi => phi::read(held, is_last),
            Self::Pythonic => pythonic::read(held, tools, is_last),
            Self::QwenXml => qwen_xml::read(held, tools, is_last),
            Self::Seed => qwen_xml::read_seed(held, tools, is_last),
        };
        match seen {
            Seen::Open if is_last => Seen::Text(begin_bytes(held, self.begins())),
            seen => seen,
        }
    }

    /// The name of the call that is being written, once its arguments have begun, and where they
    /// do. Formats whose arguments are no JSON tell calls as a whole.
    pub(crate) fn begun(self, held: &str) -> Option<(String, usize)> {
        match self {
            Self::GlmLines => glm_lines::begun(held),
            Self::Hermes => hermes::begun(held),
            Self::Llama => llama::begun(held),
            Self::Mistral | Self::MistralNamed => mistral::begun(held),
            Self::Phi => phi::begun(held),
            Self::DeepSeek
            | Self::DeepSeekFenced
            | Self::Gemma
            | Self::Glm
            | Self::Harmony
            | Self::Olmo
            | Self::Pythonic
            | Self::QwenXml
            | Self::Seed => None,
        }
    }

    /// How calls are written, for a grammar.
    pub(crate) fn shape(self) -> Shape {
        match self {
            Self::DeepSeek => deepseek::SHAPE,
            Self::DeepSeekFenced => deepseek::SHAPE_FENCED,
            Self::Gemma => gemma::SHAPE,
            Self::Glm => glm::SHAPE,
            Self::GlmLines => glm_lines::SHAPE,
            Self::Harmony => harmony::SHAPE,
            Self::Hermes => hermes::SHAPE,
            Self::Llama => llama::SHAPE,
            Self::Mistral => mistral::SHAPE,
            Self::MistralNamed => mistral::SHAPE_NAMED,
            Self::Olmo => pythonic::SHAPE_LINES,
            Self::Phi => phi::SHAPE,
            Self::Pythonic => pythonic::SHAPE,
            Self::QwenXml => qwen_xml::SHAPE,
            Self::Seed => qwen_xml::SHAPE_SEED,
        }
    }

    pub(crate) fn control_texts(self) -> &'static [&'static str] {
        match self {
            Self::DeepSeek | Self::DeepSeekFenced => deepseek::MARKERS,
            Self::Gemma => gemma::MARKERS,
            Self::Glm => glm::MARKERS,
            Self::GlmLines => &[],
            Self::Harmony => harmony::MARKERS,
            Self::Hermes => hermes::MARKERS,
            Self::Llama => llama::BEGINS,
            Self::Mistral | Self::MistralNamed => mistral::MARKERS,
            Self::Olmo => pythonic::LINES_MARKERS,
            Self::Phi => phi::MARKERS,
            Self::Pythonic => pythonic::MARKERS,
            Self::QwenXml => qwen_xml::MARKERS,
            Self::Seed => qwen_xml::SEED_MARKERS,
        }
    }
}

/// Bytes of the marker at the beginning of a text; without one, of its first character.
pub(crate) fn begin_bytes(held: &str, begins: &[&str]) -> usize {
    let marker = begins.iter().find(|begin| held.starts_with(**begin)).map(|begin| begin.len());
    marker.unwrap_or_else(|| held.chars().next().map_or(0, char::len_utf8))
}

/// Bytes up to the end of a closing marker, with white space before it; 0 where something else
/// follows, for some models leave it out. `None`: more must come to tell.
pub(crate) fn closing(tail: &str, closer: &str, is_last: bool) -> Option<usize> {
    let rest = tail.trim_start();
    if rest.starts_with(closer) {
        return Some(tail.len() - rest.len() + closer.len());
    }
    if closer.starts_with(rest) && !is_last { None } else { Some(0) }
}

/// The text before a marker and the text behind it.
pub(crate) enum Split<'a> {
    Found(&'a str, &'a str),
    /// The marker may still come.
    Open,
}

pub(crate) fn split<'a>(text: &'a str, marker: &str) -> Split<'a> {
    match text.split_once(marker) {
        Some((before, after)) => Split::Found(before, after),
        None => Split::Open,
    }
}

/// What follows a text that must come next, behind white space.
pub(crate) enum Next<'a> {
    Found(&'a str),
    Open,
    Other,
}

pub(crate) fn next<'a>(text: &'a str, expected: &str) -> Next<'a> {
    let rest = text.trim_start();
    match rest.strip_prefix(expected) {
        Some(after) => Next::Found(after),
        None if expected.starts_with(rest) => Next::Open,
        None => Next::Other,
    }
}

/// Whether a text is a function's name, as all APIs allow it.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 256 && text.bytes().all(is_name_byte)
}

pub(crate) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b'/')
}
