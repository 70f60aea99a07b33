//! The `pelton` binary: flags, printing, nothing else.

#![forbid(unsafe_code)]

mod commands;
mod model_file;
mod printing;
mod served_models;
mod settings;
mod speaking;

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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::TemplateWorker) {
        // Before anything else starts: the child has little memory and no environment.
        return chat::worker_main();
    }
    start_log(&arguments.command);
    match commands::run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            commands::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Logs go to stderr: stdout is for answers and data.
fn start_log(command: &Command) {
    let default = if matches!(command, Command::Serve(_)) { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("PELTON_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .with_target(false)
        .init();
}
