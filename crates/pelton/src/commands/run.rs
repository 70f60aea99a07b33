//! `pelton run`: one prompt, one streamed answer, one line of statistics.

use std::io::{IsTerminal, Read};

use anyhow::{Result, ensure};
use clap::Args;

use crate::loading;
use crate::printing::{self, say};
use crate::settings::ModelArguments;
use crate::speaking::{self, SamplingArguments};

#[derive(Args)]
pub(crate) struct RunArguments {
    /// What to answer; read from stdin when it is absent or `-`
    prompt: Option<String>,
    /// Instructions that come before the prompt
    #[arg(long)]
    system: Option<String>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
}

/// More than any model's context holds.
const STDIN_BYTES_MAX: u64 = 8 << 20;

pub(crate) fn run(arguments: &RunArguments) -> Result<()> {
    let prompt = prompt(arguments.prompt.as_deref())?;
    let config = arguments.model.config()?;
    let options = arguments.model.engine_options(&config)?;
    let engine = loading::load(&options)?;
    let mut messages = Vec::new();
    if let Some(system) = &arguments.system {
        messages.push(chat::Message::new("system", system));
    }
    messages.push(chat::Message::new("user", &prompt));
    let params = arguments.sampling.params();
    let json = arguments.json;
    let show = |text: &str| {
        if !json {
            printing::piece(text);
        }
    };
    let answer =
        speaking::runtime()?.block_on(speaking::answer(&engine, messages, params, show))?;
    if json {
        let object = serde_json::json!({
            "model": options.model_id,
            "text": answer.text,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "first_token_seconds": answer.first_token.as_secs_f64(),
            "tokens_per_second": answer.decode_rate(),
        });
        say!("{object:#}");
        return Ok(());
    }
    say!("");
    speaking::remark(&answer.statistics());
    Ok(())
}

fn prompt(given: Option<&str>) -> Result<String> {
    match given {
        Some(prompt) if prompt != "-" => Ok(prompt.to_owned()),
        _ => {
            let input = std::io::stdin();
            let help = "give a prompt: pelton run \"Why is the sky blue?\"; for a conversation, \
                        pelton chat";
            ensure!(given == Some("-") || !input.is_terminal(), help);
            let mut text = String::new();
            input.take(STDIN_BYTES_MAX + 1).read_to_string(&mut text)?;
            let fits = text.len() as u64 <= STDIN_BYTES_MAX;
            ensure!(fits, "the prompt on stdin has more than {STDIN_BYTES_MAX} bytes");
            ensure!(!text.trim().is_empty(), "the prompt on stdin is empty");
            Ok(text)
        }
    }
}
