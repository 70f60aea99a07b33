//! Will the tree pass? Runs `.ci/run`, and nothing beside it.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tree;

pub(super) fn run(arguments: &[String]) -> Result<()> {
    ensure!(arguments.is_empty(), "`ci` takes no arguments");
    let script = tree::root()?.join(".ci/run");
    let status = Command::new("bash").arg(&script).status().context("bash cannot be started")?;
    if !status.success() {
        bail!("{} failed ({status})", script.display());
    }
    Ok(())
}
