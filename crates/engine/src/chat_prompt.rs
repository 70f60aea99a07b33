//! How do messages become a prompt? By the model's own template, rendered in another process.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use answer_format::AnswerFormat;
use chat::{ChatError, Conversation, RenderRequest, TemplateLimits, TemplateSetup, TemplateWorker};
use messages::{Refusal, TokenId};
use tokenizer::Tokenizer;
use weights::{Array, Value, WeightFile};

use crate::EngineError;
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
    /// The control tokens that a reader of answers must see.
    pub(crate) markup_ids: Arc<[TokenId]>,
}

/// What templates a model has, and what they may name.
pub(crate) struct Templates<'a> {
    pub(crate) default: Option<&'a str>,
    tools: Option<&'a str>,
    tokens: Vec<(String, String)>,
}

impl<'a> Templates<'a> {
    /// Those of the file, or the one that is given in their place.
    pub(crate) fn of(file: &'a WeightFile, given: Option<&'a str>) -> Result<Self, EngineError> {
        let stored = |key: &str| file.metadata().optional::<&str>(key);
        let (default, tools) = match given {
            Some(given) => (Some(given), None),
            None => {
                (stored("tokenizer.chat_template")?, stored("tokenizer.chat_template.tool_use")?)
            }
        };
        let mut tokens = Vec::new();
        if let Some(Value::Array(named)) = file.metadata().get("pelton.template_tokens")
            && let Array::Strings(named) = &**named
        {
            // Names and texts by turns.
            let text = |index| Some(String::from_utf8_lossy(named.get(index)?).into_owned());
            let pairs =
                (0..named.len()).step_by(2).map(|name| Some((text(name)?, text(name + 1)?)));
            tokens.extend(pairs.flatten());
        }
        Ok(Self { default, tools, tokens })
    }

    /// The one that knows how calls are written.
    pub(crate) fn telling_calls(&self) -> Option<&'a str> {
        self.tools.or(self.default)
    }
}

/// Stands where a last message ends that is gone on with. The message itself would not do: a
/// template may trim it, and its words may be in the markup, as `end` is in `<|im_end|>`.
const CUT: &str = "[pelton: the answer goes on here]";

impl ChatPrompt {
    pub(crate) fn new(
        templates: Templates<'_>,
        program: Option<&TemplateProgram>,
        clock: Clock,
        (tokenizer, format): (&Tokenizer, AnswerFormat),
    ) -> Self {
        let worker = Self::spawn(templates, program, tokenizer);
        if let Err(error) = &worker {
            tracing::warn!(%error, "this model serves text completions only");
        }
        let id = |text: &str| tokenizer.token_id(text).filter(|&id| tokenizer.is_control(id));
        let markup_ids = format.control_texts().into_iter().filter_map(id).collect();
        Self { worker, clock, markup_ids }
    }

    fn spawn(
        templates: Templates<'_>,
        program: Option<&TemplateProgram>,
        tokenizer: &Tokenizer,
    ) -> Result<TemplateWorker, ChatError> {
        let Templates { default, tools, tokens } = templates;
        let source = default.ok_or(ChatError::NoTemplate)?.to_owned();
        let tools_source = tools.map(str::to_owned);
        let program = program
            .ok_or_else(|| ChatError::CannotStart { why: "none was configured".to_owned() })?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments);
        let ids = tokenizer.special_ids();
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).map(str::to_owned);
        let (bos_token, eos_token) = (text(ids.bos), text(ids.eos));
        let limits = TemplateLimits::default();
        let setup = TemplateSetup { source, tools_source, bos_token, eos_token, tokens, limits };
        TemplateWorker::spawn(command, setup)
    }

    pub(crate) fn render(&self, mut conversation: Conversation) -> Result<String, Refusal> {
        if !conversation.is_continued {
            return self.render_whole(conversation);
        }
        if let Some(last) = conversation.messages.last_mut() {
            last.content.get_or_insert_default().push_str(CUT);
        }
        let mut text = self.render_whole(conversation)?;
        let Some(end) = text.rfind(CUT) else {
            let text = "the model's template does not show the last message as it is, so there is \
                        nothing to go on with: end with a message of the user";
            return Err(Refusal::invalid("messages", text));
        };
        text.truncate(end);
        Ok(text)
    }

    fn render_whole(&self, conversation: Conversation) -> Result<String, Refusal> {
        let worker = self.worker.as_ref().map_err(|error| Refusal::from(error.clone()))?;
        let as_texts = conversation.with_arguments_as_texts();
        let in_turns = conversation.with_system_in_turns();
        let rendered = worker.render(&self.request(conversation));
        let other = match &rendered {
            // Most templates print arguments as JSON; some join them to texts, which fails for
            // objects.
            Err(ChatError::RenderFailed { .. }) => as_texts,
            // Most let the system speak at any time, some at the beginning only.
            Err(ChatError::Raised { .. }) => in_turns,
            _ => None,
        };
        match other {
            Some(other) => Ok(worker.render(&self.request(other))?),
            None => Ok(rendered?),
        }
    }

    fn request(&self, conversation: Conversation) -> RenderRequest {
        let Conversation { messages, tools, extra, shows_markup: _, is_continued } = conversation;
        let now_unix_s = self.clock.now_unix_s();
        let add_generation_prompt = !is_continued;
        RenderRequest { messages, tools, extra, add_generation_prompt, now_unix_s }
    }
}
