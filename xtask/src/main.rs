//! What can a developer ask of the tree? `cargo xtask VERB`; without a verb, the list of them.
//!
//! Reading order: `commands` (the verbs), `checks` (what `tidy` looks at), `tree` (the files),
//! `rust_source` (which bytes of a file are code).

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line program talks on its standard output")]

mod checks;
mod commands;
mod rust_source;
mod tree;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match commands::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
