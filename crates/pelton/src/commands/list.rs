//! `pelton list`: the models on this machine, and those that can be had by name.

use anyhow::Result;
use clap::Args;
use hub::Store;

use crate::printing::say;

#[derive(Args)]
pub(crate) struct ListArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &ListArguments) -> Result<()> {
    let models = Store::open_default()?.list()?;
    if arguments.json {
        let rows: Vec<_> = models
            .iter()
            .map(|model| {
                serde_json::json!({"name": model.name, "path": model.path, "bytes": model.bytes})
            })
            .collect();
        say!("{:#}", serde_json::Value::from(rows));
        return Ok(());
    }
    if models.is_empty() {
        eprintln!("no models here yet; `pelton pull smollm2` brings the default one");
    }
    let width = models.iter().map(|model| model.name.chars().count()).max().unwrap_or(0);
    for model in &models {
        let megabytes = model.bytes as f64 / 1e6;
        say!("{:width$}  {megabytes:9.1} MB  {}", model.name, model.path.display());
    }
    let here = |name: &str| models.iter().any(|model| model.name == name);
    let missing = hub::catalogue().iter().filter(|entry| !here(entry.name));
    for entry in missing {
        eprintln!("{:width$}  can be pulled", entry.name);
    }
    Ok(())
}
