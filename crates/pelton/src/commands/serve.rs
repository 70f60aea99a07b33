//! `pelton serve`: models over HTTP, until Ctrl-C or SIGTERM; SIGHUP reads the configuration anew.

mod reloading;
mod unloading;

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use engine::Service;
use server::ServerOptions;

use self::reloading::{Hangups, Reloading};
use crate::logging::Log;
use crate::model_file::PullToStore;
use crate::served_models;
use crate::settings::ModelArguments;
use crate::speaking::remark;

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
    /// Listen on an address that other machines can reach although there are no keys: anyone may
    /// ask
    #[arg(long)]
    allow_public: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

impl ServeArguments {
    /// The keys that the flags of this command set.
    fn keys(&self) -> Vec<(String, String)> {
        let own = [
            ("server.host", self.host.clone()),
            ("server.port", self.port.map(|port| port.to_string())),
            ("server.allow_public", self.allow_public.then(|| "true".to_owned())),
            ("limits.memory_budget_mb", self.memory_budget_mb.map(|size| size.to_string())),
        ];
        own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

pub(crate) fn run(arguments: &ServeArguments, log: &Log) -> Result<()> {
    let loaded = arguments.model.load(arguments.keys())?.with_keys_file()?;
    loaded.without_effect().iter().for_each(|text| remark(text));
    let sources = arguments.model.sources(arguments.keys());
    let server_options = ServerOptions {
        models: Some(Arc::new(PullToStore)),
        ..ServerOptions::from(&loaded.config)
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Before the models: a signal while they are loaded is to wait, not to end the process.
    let hangups = runtime.block_on(async { Hangups::listen() })?;
    // Before the models, too: a port that is in use is to be told of at once.
    let reserved = runtime.block_on(server::reserve(server_options))?;
    let config = loaded.config.clone();
    let models = served_models::start(&arguments.model, &arguments.models, config, true)?;
    let models = Arc::new(models);
    let drain_time = runtime.block_on(async {
        let service: Arc<dyn Service> = Arc::clone(&models.registry) as _;
        let server = reserved.answer_with(service)?;
        let (default, address) = (models.registry.models().remove(0), server.address());
        let budget = models.registry.memory().budget_bytes >> 20;
        eprintln!("memory budget {budget} MiB; models are listed by GET /v1/models");
        let scheme = server.scheme();
        eprintln!("serving {}: {scheme}://{address}/v1", default.id);
        eprintln!("in a browser: {scheme}://{address}, and {scheme}://{address}/dashboard");
        let control = server.control();
        let (log, of_models) = (log.clone(), Arc::clone(&models));
        let reloading = Reloading::new(sources, loaded, log, control.clone(), of_models);
        let reloads = tokio::spawn(reloading.at(hangups));
        server.serve(stop_signal()).await;
        reloads.abort();
        let _ = reloads.await;
        anyhow::Ok(control.drain_time())
    })?;
    let saving = models.save_progress();
    let ending = unloading::unload(models, &saving, drain_time);
    eprintln!("stopped{ending}");
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
