//! Does the serving core hold in worlds nobody thought of? Builds and runs the simulator, in
//! release.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::tree;

pub(super) fn run(arguments: &[String]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["run", "--quiet", "--release", "-p", "simulator", "--example", "simulate", "--"])
        .args(arguments)
        .current_dir(tree::root()?)
        .status()
        .context("cargo cannot be started")?;
    if !status.success() {
        bail!("the simulator found something ({status})");
    }
    Ok(())
}
