//! What does a template get to see, and within which limits?

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{ChatError, Message};

/// A template and what stays the same for all its conversations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateSetup {
    /// Jinja, as in the model's file.
    pub source: String,
    /// The template for conversations with tools, where the model has one of its own for them.
    pub tools_source: Option<String>,
    /// Text of the model's first token, where it has one.
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
    /// Texts of further tokens by the names that templates know them by, as `unk_token`.
    pub tokens: Vec<(String, String)>,
    pub limits: TemplateLimits,
}

/// Ceilings; the defaults leave real templates a factor of 20 and more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateLimits {
    /// Wall time of one render.
    pub deadline: Duration,
    /// Child processes, and so renders, at a time.
    pub workers_max: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        // A render takes well under a millisecond; two seconds is a machine under heavy load.
        Self { deadline: Duration::from_secs(2), workers_max: 2 }
    }
}

/// One conversation to render.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RenderRequest {
    pub messages: Vec<Message>,
    /// OpenAI's list of tools; templates print it.
    #[serde(default)]
    pub tools: Option<serde_json::Value>,
    /// End with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// The caller's own variables, as `enable_thinking`.
    #[serde(default)]
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// The time that `strftime_now` tells, seconds since 1970, shown in UTC.
    pub now_unix_s: i64,
}

/// The largest published template has 20 KB.
pub(crate) const TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// A million tokens of English are about 4 MB.
pub(crate) const CONVERSATION_BYTES_MAX: usize = 8 << 20;
/// The conversation, and what a template adds around it.
pub(crate) const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Names that a caller's variables must not hide: those the server sets and the engine's own.
const RESERVED_NAMES: [&str; 12] = [
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "dict",
    "range",
    "loop",
    "self",
];

impl RenderRequest {
    pub(crate) fn check_names(&self) -> Result<(), ChatError> {
        match self.extra.keys().find(|name| RESERVED_NAMES.contains(&name.as_str())) {
            Some(name) => Err(ChatError::ReservedName { name: name.clone() }),
            None => Ok(()),
        }
    }
}
