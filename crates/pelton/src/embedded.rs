//! Pelton inside another program: models and all routes of the server, without a port. What `pelton
//! serve` reads (the configuration file, the environment) holds here too.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use engine::Service;
use server::{InProcess, InProcessReply, ServerOptions};
use tokio::runtime::Runtime;

use crate::served_models::{self, ServedModels};
use crate::settings::ModelArguments;

/// What is wanted.
#[derive(Debug)]
pub struct EmbeddedOptions {
    /// A model's name, `org/name` on the hub or a path; `None`: as the configuration says.
    pub model: Option<String>,
    /// Keys of the configuration and their values in YAML, over those of file and environment.
    pub keys: Vec<(String, String)>,
    /// The `pelton` program: its children render chat templates, within limits that hold for a
    /// process only.
    pub program: PathBuf,
}

/// A running engine. Dropped, it unloads its models.
pub struct Embedded {
    routes: InProcess,
    runtime: Arc<Runtime>,
    models: ServedModels,
}

impl Embedded {
    /// Loads the model, which takes as long as with `pelton serve`.
    ///
    /// # Errors
    /// When a key or its value is wrong, or the model cannot be found or loaded.
    pub fn open(options: EmbeddedOptions) -> Result<Self> {
        let program = options.program;
        ensure!(program.is_file(), "there is no pelton program at {}", program.display());
        let arguments = ModelArguments {
            model: options.model,
            program: Some(program),
            ..ModelArguments::default()
        };
        let config = arguments.load(options.keys)?.config;
        let server_options = ServerOptions::from(&config);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let models = served_models::start(&arguments, &[], config, false)?;
        let service: Arc<dyn Service> = Arc::clone(&models.registry) as _;
        let routes = {
            let _inside = runtime.enter();
            InProcess::new(service, server_options)?
        };
        Ok(Self { routes, runtime: Arc::new(runtime), models })
    }

    /// The name of the model that was loaded first.
    ///
    /// # Errors
    /// When it is gone.
    pub fn model(&self) -> Result<String> {
        let cards = self.models.registry.models();
        Ok(cards.into_iter().next().context("no model is offered")?.id)
    }

    /// Asks as over HTTP and waits for the reply's head; `body` is JSON, or nothing.
    ///
    /// # Errors
    /// When method or path are none; whatever else is wrong is in the reply.
    pub fn ask(&self, method: &str, path: &str, body: Vec<u8>) -> Result<EmbeddedReply> {
        let reply = self.runtime.block_on(self.routes.ask(method, path, body));
        let reply = reply.map_err(anyhow::Error::msg)?;
        Ok(EmbeddedReply { reply, runtime: Arc::clone(&self.runtime) })
    }
}

/// A reply. Dropped before its end, it ends what is still being computed for it.
pub struct EmbeddedReply {
    reply: InProcessReply,
    runtime: Arc<Runtime>,
}

impl EmbeddedReply {
    /// As of HTTP.
    pub fn status(&self) -> u16 {
        self.reply.status()
    }

    /// Waits for the next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// When the answer broke off.
    pub fn read(&mut self) -> Result<Option<Vec<u8>>> {
        self.runtime.block_on(self.reply.next()).map_err(|error| anyhow!(error))
    }
}
