//! Which commands are there? One file each, one line each in this list.

mod bench;
mod chat;
mod check;
mod list;
mod pull;
mod rm;
mod run;
mod serve;
mod show;

use anyhow::Result;
use clap::Subcommand;

use crate::printing::visible;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure prefill and decode speed.
    Bench(bench::BenchArguments),
    /// Talk to a model in the terminal.
    Chat(chat::ChatArguments),
    /// Load a model, try one token, and say what is wrong if anything is.
    Check(check::CheckArguments),
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

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Chat(arguments) => chat::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Rm(arguments) => rm::run(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
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
