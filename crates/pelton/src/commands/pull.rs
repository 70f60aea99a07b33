//! `pelton pull`: brings a model here, once.

use anyhow::Result;
use clap::Args;
use hub::Store;

use crate::model_file;
use crate::printing::say;

#[derive(Args)]
pub(crate) struct PullArguments {
    /// A name of the catalogue, `org/name`, or `org/name/file.gguf`
    model: String,
}

pub(crate) fn run(arguments: &PullArguments) -> Result<()> {
    let store = Store::open_default()?;
    let pulled = model_file::pull(&store, &arguments.model)?;
    if pulled.brought_from.is_none() {
        eprintln!("it is here already");
    }
    say!("{}", pulled.resolved.path.display());
    Ok(())
}
