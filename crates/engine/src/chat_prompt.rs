//! How do messages become a prompt? By the model's own template, rendered in another process.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use chat::{ChatError, RenderRequest, TemplateLimits, TemplateSetup, TemplateWorker};
use messages::Refusal;
use tokenizer::Tokenizer;

use crate::failpoints::Clock;

/// The program that renders templates: it must run `chat::worker_main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateProgram {
    pub path: PathBuf,
    pub arguments: Vec<OsString>,
}

/// A model's template, or why it has none that works. A model without one still completes text.
pub(crate) struct ChatPrompt {
    worker: Result<TemplateWorker, ChatError>,
    clock: Clock,
}

impl ChatPrompt {
    pub(crate) fn new(
        template: Option<&str>,
        program: Option<&TemplateProgram>,
        clock: Clock,
        tokenizer: &Tokenizer,
    ) -> Self {
        let worker = Self::spawn(template, program, tokenizer);
        if let Err(error) = &worker {
            tracing::warn!(%error, "this model serves text completions only");
        }
        Self { worker, clock }
    }

    fn spawn(
        template: Option<&str>,
        program: Option<&TemplateProgram>,
        tokenizer: &Tokenizer,
    ) -> Result<TemplateWorker, ChatError> {
        let source = template.ok_or(ChatError::NoTemplate)?.to_owned();
        let program = program
            .ok_or_else(|| ChatError::CannotStart { why: "none was configured".to_owned() })?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments);
        let ids = tokenizer.special_ids();
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map(str::to_owned);
        let (bos_token, eos_token) = (text(ids.bos), text(ids.eos));
        let limits = TemplateLimits::default();
        TemplateWorker::spawn(command, TemplateSetup { source, bos_token, eos_token, limits })
    }

    pub(crate) fn render(&self, messages: Vec<chat::Message>) -> Result<String, Refusal> {
        let worker = self.worker.as_ref().map_err(|error| Refusal::from(error.clone()))?;
        let request = RenderRequest {
            messages,
            add_generation_prompt: true,
            now_unix_s: self.clock.now_unix_s(),
            ..RenderRequest::default()
        };
        Ok(worker.render(&request)?)
    }
}
