//! Why was no prompt made, and whose fault is it: the caller's, the model file's, the machine's?

use messages::{Refusal, RefusalKind};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    #[error("chat completions need a template and this model has none; pass --chat-template")]
    NoTemplate,
    #[error("there is no built-in template `{asked}`; there are: {known}")]
    UnknownBuiltin { asked: String, known: String },
    #[error("the model's chat template has {bytes} bytes, at most {bytes_max} are accepted")]
    TemplateTooLarge { bytes: usize, bytes_max: usize },
    #[error("the conversation has {bytes} bytes, at most {bytes_max} are accepted")]
    ConversationTooLarge { bytes: usize, bytes_max: usize },
    #[error("`{name}` is set by the server and cannot be a template argument")]
    ReservedName { name: String },
    /// The template's own `raise_exception`: it tells the caller what it does not accept.
    #[error("the model's chat template refuses this conversation: {text}")]
    Raised { text: String },
    #[error("the model's chat template is not valid: {why}")]
    InvalidTemplate { why: String },
    #[error("the model's chat template failed on this conversation: {why}")]
    RenderFailed { why: String },
    #[error("the model's chat template did not end within {deadline_ms} ms and was stopped")]
    TooSlow { deadline_ms: u128 },
    #[error("the model's chat template took too much memory or crashed, and was stopped")]
    WorkerDied,
    #[error("every template worker is busy; try again")]
    Busy,
    #[error("the template worker cannot be started: {why}")]
    CannotStart { why: String },
}

impl From<ChatError> for Refusal {
    fn from(error: ChatError) -> Self {
        let message = error.to_string();
        match error {
            ChatError::ReservedName { .. } => Self::invalid("chat_template_kwargs", message),
            ChatError::Busy => Self::new(RefusalKind::Busy, message),
            ChatError::CannotStart { .. } => Self::new(RefusalKind::Unavailable, message),
            ChatError::NoTemplate
            | ChatError::UnknownBuiltin { .. }
            | ChatError::TemplateTooLarge { .. }
            | ChatError::ConversationTooLarge { .. }
            | ChatError::Raised { .. }
            | ChatError::InvalidTemplate { .. }
            | ChatError::RenderFailed { .. }
            | ChatError::TooSlow { .. }
            | ChatError::WorkerDied => Self::invalid("messages", message),
        }
    }
}
