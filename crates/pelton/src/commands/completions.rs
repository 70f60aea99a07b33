//! `pelton completions`: lets a shell complete commands and flags.

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::printing;

#[derive(Args)]
pub(crate) struct CompletionsArguments {
    /// The shell; its script goes to stdout
    shell: Shell,
}

pub(crate) fn run(arguments: &CompletionsArguments) -> Result<()> {
    let mut script = Vec::new();
    let mut command = crate::Arguments::command();
    clap_complete::generate(arguments.shell, &mut command, "pelton", &mut script);
    printing::painted(&String::from_utf8(script)?);
    Ok(())
}
