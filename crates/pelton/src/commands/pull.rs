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
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &PullArguments) -> Result<()> {
    let store = Store::open_default()?;
    let pulled = model_file::pull(&store, &arguments.model)?;
    let (file, from) = (&pulled.resolved, &pulled.brought_from);
    if from.is_none() {
        eprintln!("it is here already");
    }
    if arguments.json {
        let object = serde_json::json!({
            "name": file.name,
            "path": file.path,
            "brought_from": from.as_ref().map(ToString::to_string),
        });
        say!("{object:#}");
    } else {
        say!("{}", file.path.display());
    }
    Ok(())
}
