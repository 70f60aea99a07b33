//! How do messages become a prompt? By the model's own template, rendered in another process.

use std::path::PathBuf;

use messages::Refusal;
use tokenizer::Tokenizer;

use crate::EngineError;

pub(crate) struct ChatPrompt;

impl ChatPrompt {
    pub(crate) fn new(
        _template: Option<&str>,
        _worker: Option<PathBuf>,
        _tokenizer: &Tokenizer,
    ) -> Result<Self, EngineError> {
        Ok(Self)
    }

    pub(crate) fn render(&self, _messages: &[chat::Message]) -> Result<String, Refusal> {
        Err(Refusal::invalid("messages", "chat is being built"))
    }
}
