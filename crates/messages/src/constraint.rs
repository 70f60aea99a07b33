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
    /// Calls of tools, in the markup of the model's family.
    Calls {
        /// In the notation of Lark, and our own: `marker_0`, `schema_0` and so on stand for what
        /// follows, and `free` for any text without the first marker.
        rules: Arc<str>,
        /// Texts that may be tokens of their own.
        markers: Arc<[String]>,
        /// The caller's schemas of arguments.
        schemas: Arc<[String]>,
    },
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
            Self::Calls { .. } => "call of a tool",
        }
    }

    /// Bytes of its texts.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(text) | Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
            Self::Calls { rules, markers, schemas } => {
                rules.len() + markers.iter().chain(schemas.iter()).map(String::len).sum::<usize>()
            }
        }
    }
}

/// The kind only: a schema of many kilobytes is nothing for a log.
impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of {} bytes", self.kind(), self.text_bytes())
    }
}
