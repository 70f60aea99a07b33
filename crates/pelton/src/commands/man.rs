//! `pelton man`: the manual pages of all commands, as `man` reads them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};

use crate::printing::{self, say};

#[derive(Args)]
pub(crate) struct ManArguments {
    /// Write a page for each command into this folder [default: print the first page]
    #[arg(long, short, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

pub(crate) fn run(arguments: &ManArguments) -> Result<()> {
    let command = crate::Arguments::command();
    let Some(folder) = &arguments.output else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        printing::painted(&String::from_utf8(page)?);
        return Ok(());
    };
    let shown = folder.display();
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {shown}"))?;
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("cannot write into {shown}"))?;
    say!("wrote the pages into {shown}; `man -l {shown}/pelton.1` shows the first");
    Ok(())
}
