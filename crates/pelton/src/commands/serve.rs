//! `pelton serve`: the model over HTTP, until Ctrl-C or SIGTERM.

use anyhow::Result;
use clap::Args;

use crate::settings::ModelArguments;

#[derive(Args)]
pub(crate) struct ServeArguments {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long, short)]
    port: Option<u16>,
    #[command(flatten)]
    model: ModelArguments,
}

pub(crate) fn run(arguments: &ServeArguments) -> Result<()> {
    let mut config = arguments.model.config()?;
    config.server.host = arguments.host.clone().unwrap_or(config.server.host);
    config.server.port = arguments.port.unwrap_or(config.server.port);
    anyhow::bail!("the server is being built")
}
