//! What the `pelton` program does (flags and printing), and how other programs hold it inside
//! themselves (`embedded`).

#![forbid(unsafe_code)]

mod asking;
mod commands;
pub mod embedded;
mod loading;
mod logging;
mod model_file;
mod printing;
mod served_models;
mod settings;
mod speaking;
mod style;
mod trusted_server;
mod units;
mod wrapping;

use std::process::ExitCode;

use clap::Parser;

use commands::Command;

/// Serves language models from your own machine.
#[derive(Parser)]
#[command(name = "pelton", version, about, propagate_version = true)]
#[command(allow_negative_numbers = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The program, from its arguments to its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::TemplateWorker) {
        // Before anything else starts: the child has little memory and no environment.
        return chat::worker_main();
    }
    let log = logging::start(&arguments.command);
    match commands::run(arguments.command, &log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
