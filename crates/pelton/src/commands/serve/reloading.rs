//! What does a running server take up from its configuration? At SIGHUP all of it is read and
//! checked; then the keys that are marked for it hold, and no request is dropped. A configuration
//! that is wrong changes nothing.

use std::sync::Arc;

use anyhow::Result;
use config::{Loaded, Sources};
use server::ServerControl;

use crate::logging::{self, Log};
use crate::served_models::ServedModels;

/// The signals that ask for it.
pub(super) struct Hangups {
    #[cfg(unix)]
    signals: tokio::signal::unix::Signal,
}

impl Hangups {
    #[cfg(unix)]
    pub(super) fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { signals: signal(SignalKind::hangup())? })
    }

    #[cfg(not(unix))]
    pub(super) fn listen() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        if self.signals.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        std::future::pending::<()>().await;
    }
}

pub(super) struct Reloading {
    sources: Sources,
    /// What holds now.
    held: Loaded,
    log: Log,
    server: ServerControl,
    models: Arc<ServedModels>,
    /// Queues were made for so many, and never hold more.
    waiting_at_start: u32,
}

impl Reloading {
    pub(super) fn new(
        sources: Sources,
        held: Loaded,
        log: Log,
        server: ServerControl,
        models: Arc<ServedModels>,
    ) -> Self {
        let waiting_at_start = held.config.limits.waiting_max;
        Self { sources, held, log, server, models, waiting_at_start }
    }

    /// Reads the configuration at each signal.
    pub(super) async fn at(mut self, mut hangups: Hangups) {
        loop {
            hangups.next().await;
            // Off the threads that serve connections: files are read, and models may be fetched.
            let reloaded = tokio::task::spawn_blocking(move || {
                self.reload();
                self
            });
            match reloaded.await {
                Ok(same) => self = same,
                Err(_) => return,
            }
        }
    }

    fn reload(&mut self) {
        match self.read() {
            Ok(next) => self.take_up(next),
            Err(error) => {
                eprintln!("the configuration was read again and is wrong; nothing was changed");
                crate::commands::print_error(&error);
            }
        }
    }

    fn read(&self) -> Result<Loaded> {
        let next = self.sources.load()?.with_keys_file()?;
        logging::check(&next.config)?;
        Ok(next)
    }

    fn take_up(&mut self, mut next: Loaded) {
        let mut restart = Vec::new();
        if !next.config.models.starts_with(&self.held.config.models) {
            restart.push("models".to_owned());
            next.keep("models", &self.held);
        }
        let known = self.held.config.models.len();
        let changes = self.held.take_up(&next);
        restart.extend(changes.restart);
        let config = &self.held.config;
        if let Err(error) = self.log.take_up(config) {
            crate::commands::print_error(&error);
        }
        self.server.take_up(&config.server, &config.access);
        self.models.take_up(config);
        for model in &config.models[known..] {
            if let Err(error) = self.models.add(model) {
                crate::commands::print_error(&error.context(format!("no model `{}`", model.model)));
            }
        }
        let list = |keys: &[String]| match keys {
            [] => "nothing".to_owned(),
            keys => keys.join(", "),
        };
        eprintln!("the configuration was read again; changed: {}", list(&changes.taken_up));
        let (waiting, most) = (config.limits.waiting_max, self.waiting_at_start);
        if waiting > most && changes.taken_up.iter().any(|key| key == "limits.waiting_max") {
            eprintln!(
                "limits.waiting_max is {most} until the next start: queues were made for as many, \
                 and {waiting} holds from then on"
            );
        }
        if !restart.is_empty() {
            eprintln!("these changed too and hold from the next start: {}", list(&restart));
        }
    }
}
