//! Which commands are there? One file each, one line each in this list.

mod bench;
mod chat;
mod check;
mod config;
mod list;
mod pull;
mod rm;
mod run;
mod serve;
mod show;

use ::config::Sources;
use anyhow::Result;
use clap::Subcommand;

use crate::logging::Log;
use crate::printing::visible;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure prefill and decode speed.
    Bench(bench::BenchArguments),
    /// Talk to a model in the terminal.
    Chat(chat::ChatArguments),
    /// Load a model, try one token, and say what is wrong if anything is.
    Check(check::CheckArguments),
    /// Write, check or describe the configuration file.
    Config(config::ConfigArguments),
    /// List the models on this machine.
    #[command(visible_alias = "ls")]
    List(list::ListArguments),
    /// Bring a model to this machine.
    Pull(pull::PullArguments),
    /// Remove a model from this machine.
    Rm(rm::RmArguments),
    /// Answer one prompt.
    Run(run::RunArguments),
    /// Serve models over HTTP, as OpenAI's API does.
    Serve(serve::ServeArguments),
    /// Show what a model is made of and what it needs.
    Show(show::ShowArguments),
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
            Self::Run(arguments) => arguments.model.sources(Vec::new()),
            Self::Serve(arguments) => arguments.model.sources(Vec::new()),
            Self::Config(_)
            | Self::List(_)
            | Self::Pull(_)
            | Self::Rm(_)
            | Self::Show(_)
            | Self::TemplateWorker => Sources::of_process(None, Vec::new()),
        }
    }
}

pub(crate) fn run(command: Command, log: &Log) -> Result<()> {
    match command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Rm(arguments) => rm::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments, log),
        Command::Show(arguments) => show::run(&arguments),
        // Handled before logging starts.
        Command::TemplateWorker => Ok(()),
    }
}

/// An error and its causes, each once: a cause that its error already quotes is left out.
pub(crate) fn print_error(error: &anyhow::Error) {
    let mut said = error.to_string();
    eprintln!("error: {}", visible(&said));
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        if !said.contains(&text) {
            eprintln!("  because: {}", visible(&text));
        }
        said = text;
    }
}
