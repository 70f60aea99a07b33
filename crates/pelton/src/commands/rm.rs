//! `pelton rm`: removes a model from this machine.

use anyhow::Result;
use clap::Args;
use hub::Store;

#[derive(Args)]
pub(crate) struct RmArguments {
    /// A name as `pelton list` prints it
    model: String,
}

pub(crate) fn run(arguments: &RmArguments) -> Result<()> {
    let freed = Store::open_default()?.remove(&arguments.model)?;
    eprintln!("removed {}: {:.1} MB are free again", arguments.model, freed as f64 / 1e6);
    Ok(())
}
