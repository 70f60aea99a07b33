//! `pelton serve`: the model over HTTP, until Ctrl-C or SIGTERM.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use engine::{Engine, Service};
use server::ServerOptions;

use crate::settings::ModelArguments;

#[derive(Args)]
pub(crate) struct ServeArguments {
    /// Address to listen on [default: 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8080]
    #[arg(long, short)]
    port: Option<u16>,
    /// Listen on an address that other machines can reach; there are no keys yet, so anyone may ask
    #[arg(long)]
    allow_public: bool,
    #[command(flatten)]
    model: ModelArguments,
}

pub(crate) fn run(arguments: &ServeArguments) -> Result<()> {
    let mut config = arguments.model.config()?;
    config.server.host = arguments.host.clone().unwrap_or(config.server.host);
    config.server.port = arguments.port.unwrap_or(config.server.port);
    config.server.allow_public |= arguments.allow_public;
    config.check()?;
    let options = arguments.model.engine_options(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let engine = Engine::load(&options)?;
        let card = engine.models().remove(0);
        let server = server::bind(Arc::new(engine), ServerOptions::from(&config)).await?;
        let address = server.address();
        eprintln!(
            "{} on {}, {} tokens of context: http://{address}/v1",
            card.id, card.device, card.context_tokens_max
        );
        server.serve(stop_signal()).await;
        eprintln!("stopped");
        Ok(())
    })
}

/// Ready at Ctrl-C or SIGTERM. A second one ends the process at once.
async fn stop_signal() {
    wait_for_signal().await;
    eprintln!("stopping: running answers may finish; again to stop at once");
    tokio::spawn(async {
        wait_for_signal().await;
        std::process::exit(130);
    });
}

#[cfg(unix)]
async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(not(unix))]
async fn wait_for_signal() {
    let _ = tokio::signal::ctrl_c().await;
}
