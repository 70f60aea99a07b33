//! `pelton rm`: removes a model from this machine.

use anyhow::Result;
use clap::Args;
use hub::Store;

use crate::printing::say;

#[derive(Args)]
pub(crate) struct RmArguments {
    /// A name as `pelton list` prints it
    model: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &RmArguments) -> Result<()> {
    let freed = Store::open_default()?.remove(&arguments.model)?;
    if arguments.json {
        let object = serde_json::json!({"name": arguments.model, "freed_bytes": freed});
        say!("{object:#}");
    } else {
        eprintln!("removed {}: {:.1} MB are free again", arguments.model, freed as f64 / 1e6);
    }
    Ok(())
}
