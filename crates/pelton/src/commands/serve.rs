//! `pelton serve`: models over HTTP, until Ctrl-C or SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use engine::Service;
use server::ServerOptions;

use crate::served_models;
use crate::settings::ModelArguments;

#[derive(Args)]
pub(crate) struct ServeArguments {
    /// The models: each a name, `org/name` on the hub or the path of a .gguf file, with `NAME=` in
    /// front if requests are to call it so; the first is loaded at once, others when asked for
    #[arg(value_name = "[NAME=]MODEL")]
    models: Vec<String>,
    /// Mebibytes for all models together [default: 90 % of what is available]
    #[arg(long)]
    memory_budget_mb: Option<u64>,
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

/// A device that hangs is not waited for longer: the process ends, which frees everything anyway.
const UNLOAD_PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn run(arguments: &ServeArguments) -> Result<()> {
    let mut config = arguments.model.config()?;
    config.server.host = arguments.host.clone().unwrap_or(config.server.host);
    config.server.port = arguments.port.unwrap_or(config.server.port);
    config.server.allow_public |= arguments.allow_public;
    config.limits.memory_budget_mb = arguments.memory_budget_mb.or(config.limits.memory_budget_mb);
    config.check()?;
    let server_options = ServerOptions::from(&config);
    let registry = Arc::new(served_models::start(&arguments.model, &arguments.models, config)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let service: Arc<dyn Service> = Arc::clone(&registry) as _;
        let server = server::bind(service, server_options).await?;
        let (default, address) = (registry.models().remove(0), server.address());
        let budget = registry.memory().budget_bytes >> 20;
        eprintln!("memory budget {budget} MiB; models are listed by GET /v1/models");
        eprintln!("serving {}: http://{address}/v1", default.id);
        server.serve(stop_signal()).await;
        anyhow::Ok(())
    })?;
    let (ended, unloaded) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(registry);
        // The main thread may have given up.
        let _ = ended.send(());
    });
    let is_unloaded = unloaded.recv_timeout(UNLOAD_PATIENCE).is_ok();
    eprintln!("stopped{}", if is_unloaded { "" } else { "; a device did not answer" });
    Ok(())
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
