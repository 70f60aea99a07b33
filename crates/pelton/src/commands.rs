//! Which commands are there? One file each, one line each in this list.

mod bench;
mod chat;
mod check;
mod completions;
mod config;
mod doctor;
mod keys;
mod list;
mod man;
mod ps;
mod pull;
mod quantize;
mod rm;
mod run;
mod serve;
mod show;
mod top;

use ::config::Sources;
use anyhow::Result;
use clap::Subcommand;

use crate::logging::Log;
use crate::printing::visible;
use crate::style::{Paint, Style};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure prefill and decode speed.
    Bench(bench::BenchArguments),
    /// Talk to a model in the terminal.
    Chat(chat::ChatArguments),
    /// Load a model, try one token, and say what is wrong if anything is.
    Check(check::CheckArguments),
    /// Print a script that completes commands and flags in a shell.
    Completions(completions::CompletionsArguments),
    /// Write, check or describe the configuration file.
    Config(config::ConfigArguments),
    /// Look at this machine and the configuration, and say what to mend.
    Doctor(Box<doctor::DoctorArguments>),
    /// Make keys for a server's callers, or list them.
    Keys(keys::KeysArguments),
    /// List the models on this machine.
    #[command(visible_alias = "ls")]
    List(list::ListArguments),
    /// Print or write the manual pages.
    Man(man::ManArguments),
    /// Show the models of a running server and what they do.
    Ps(ps::PsArguments),
    /// Bring a model to this machine.
    Pull(pull::PullArguments),
    /// Make a model of fewer bits, as a GGUF file or a folder for MLX.
    Quantize(quantize::QuantizeArguments),
    /// Remove a model from this machine.
    Rm(rm::RmArguments),
    /// Answer one prompt.
    Run(run::RunArguments),
    /// Serve models over HTTP, as OpenAI's API does.
    Serve(serve::ServeArguments),
    /// Show what a model is made of and what it needs.
    Show(show::ShowArguments),
    /// Watch a running server, from second to second.
    Top(top::TopArguments),
    /// Renders chat templates for the other commands.
    #[command(hide = true)]
    TemplateWorker,
}

impl Command {
    /// Where this command's settings come from.
    pub(crate) fn sources(&self) -> Sources {
        match self {
            Self::Bench(arguments) => arguments.model.sources(Vec::new()),
            Self::Chat(arguments) => arguments.model.sources(Vec::new()),
            Self::Check(arguments) => arguments.model.sources(Vec::new()),
            Self::Doctor(arguments) => arguments.model.sources(Vec::new()),
            Self::Run(arguments) => arguments.model.sources(Vec::new()),
            Self::Serve(arguments) => arguments.model.sources(Vec::new()),
            Self::Completions(_)
            | Self::Config(_)
            | Self::Keys(_)
            | Self::List(_)
            | Self::Man(_)
            | Self::Ps(_)
            | Self::Pull(_)
            | Self::Quantize(_)
            | Self::Rm(_)
            | Self::Show(_)
            | Self::TemplateWorker
            | Self::Top(_) => Sources::of_process(None, Vec::new()),
        }
    }
}

pub(crate) fn run(command: Command, log: &Log) -> Result<()> {
    match command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Keys(arguments) => keys::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
        Command::Ps(arguments) => ps::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Quantize(arguments) => quantize::run(&arguments),
        Command::Rm(arguments) => rm::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments, log),
        Command::Show(arguments) => show::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        // Handled before logging starts.
        Command::TemplateWorker => Ok(()),
    }
}

/// An error and its causes, each once: a cause that its error already quotes is left out.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut said = error.to_string();
    let paint = Paint::stderr();
    eprintln!("{} {}", paint.paint(Style::Bad, "error:"), visible(&said));
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !said.contains(&text) {
            eprintln!("  {} {}", paint.paint(Style::Faint, "because:"), visible(&text));
        }
        said = text;
    }
}
