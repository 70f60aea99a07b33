//! Which texts may an answer be?

use std::fmt;
use std::sync::Arc;

/// A language that an answer must belong to as a whole. Texts are the caller's, not yet parsed.
#[derive(Clone, PartialEq, Eq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON of this schema, which is JSON itself.
    JsonSchema(Arc<str>),
    /// What this regular expression matches from end to end.
    Regex(Arc<str>),
    /// One of these texts.
    Choice(Arc<[String]>),
    /// A grammar in the notation of Lark.
    Grammar(Arc<str>),
}

impl Constraint {
    /// As refusals name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject => "JSON object",
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Choice(_) => "choice",
            Self::Grammar(_) => "grammar",
        }
    }

    /// Bytes of its texts.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(text) | Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }
}

/// The kind only: a schema of many kilobytes is nothing for a log.
impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} bytes", self.kind(), self.text_bytes())
    }
}
