//! `pelton chat`: a conversation with history and line editing. Ctrl-C ends the answer, not the
//! program.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::loading;
use crate::printing::{self, say};
use crate::settings::ModelArguments;
use crate::speaking::{self, Ending, SamplingArguments};

#[derive(Args)]
pub(crate) struct ChatArguments {
    /// Instructions that come before the conversation
    #[arg(long)]
    system: Option<String>,
    #[command(flatten)]
    pub(super) model: ModelArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
}

const HELP: &str = "\
/clear        forget the conversation
/system TEXT  forget it and begin with these instructions
/help         this list
/exit         leave; Ctrl-D does too
A line that ends in \\ goes on; three double quotes begin and end a text of several lines.
Ctrl-C stops an answer.";

/// What the person typed.
enum Turn {
    Say(String),
    Clear(Option<String>),
    Help,
    Unknown(String),
    Exit,
}

pub(crate) fn run(arguments: &ChatArguments) -> Result<()> {
    let config = arguments.model.config()?;
    let options = arguments.model.engine_options(&config)?;
    let engine = loading::load(&options)?;
    let runtime = speaking::runtime()?;
    let mut editor = DefaultEditor::new()?;
    let history = history_file();
    if let Some(path) = &history {
        // None yet, at the first start.
        let _ = editor.load_history(path);
    }
    speaking::remark(&format!("{} - /help for help, Ctrl-D to leave", options.model_id));
    let mut messages = opening(arguments.system.as_deref());
    loop {
        let turn = read_turn(&mut editor)?;
        if let Some(path) = &history {
            // Written after every turn, so that a closed terminal loses nothing.
            let _ = editor.save_history(path);
        }
        match turn {
            Turn::Exit => return Ok(()),
            Turn::Help => say!("{HELP}"),
            Turn::Unknown(name) => say!("there is no {name}; /help lists what there is"),
            Turn::Clear(system) => {
                let system = system.as_deref().or(arguments.system.as_deref());
                messages = opening(system);
                speaking::remark("forgotten");
            }
            Turn::Say(text) => {
                messages.push(chat::Message::new("user", &text));
                let params = arguments.sampling.params();
                let conversation = messages.clone();
                let answering = speaking::answer(&engine, conversation, params, printing::piece);
                match runtime.block_on(answering) {
                    Ok(answer) => {
                        say!("");
                        speaking::remark(&answer.statistics());
                        if answer.ending == Ending::Interrupted && answer.text.is_empty() {
                            messages.pop();
                        } else {
                            messages.push(chat::Message::new("assistant", &answer.text));
                        }
                    }
                    Err(error) => {
                        messages.pop();
                        super::print_error(&error);
                        eprintln!("hint: /clear begins a new conversation");
                    }
                }
            }
        }
    }
}

fn opening(system: Option<&str>) -> Vec<chat::Message> {
    system.map(|text| chat::Message::new("system", text)).into_iter().collect()
}

fn read_turn(editor: &mut DefaultEditor) -> Result<Turn> {
    loop {
        let text = match read_text(editor) {
            Ok(text) => text,
            // Ctrl-C at the prompt drops what was typed.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(Turn::Exit),
            Err(error) => return Err(error.into()),
        };
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        editor.add_history_entry(text)?;
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        return Ok(match word {
            "/exit" | "/quit" | "/bye" => Turn::Exit,
            "/help" | "/?" => Turn::Help,
            "/clear" => Turn::Clear(None),
            "/system" => Turn::Clear(Some(rest.trim().to_owned())),
            word if word.starts_with('/') && !word[1..].contains('/') => {
                Turn::Unknown(word.to_owned())
            }
            _ => Turn::Say(text.to_owned()),
        });
    }
}

/// One text: a line, lines joined by a closing backslash, or all between two `"""`.
fn read_text(editor: &mut DefaultEditor) -> Result<String, ReadlineError> {
    const FENCE: &str = "\"\"\"";
    let mut line = editor.readline(">>> ")?;
    if let Some(first) = line.trim_start().strip_prefix(FENCE) {
        let mut text = first.to_owned();
        while !text.trim_end().ends_with(FENCE) {
            text.push('\n');
            text.push_str(&editor.readline("... ")?);
        }
        let end = text.trim_end().len() - FENCE.len();
        text.truncate(end);
        return Ok(text);
    }
    while let Some(kept) = line.strip_suffix('\\') {
        line = format!("{kept}\n{}", editor.readline("... ")?);
    }
    Ok(line)
}

fn history_file() -> Option<PathBuf> {
    let folder = hub::Store::open_default().ok()?.models_folder();
    Some(folder.parent()?.join("chat_history"))
}
