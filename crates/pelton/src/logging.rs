//! What is logged? What `log` in the configuration says, and a running server can be told anew.
//!
//! Logs go to stderr: stdout is for answers and data.

use anyhow::{Context, Result};
use config::Config;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::commands::Command;

#[derive(Clone)]
pub(crate) struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    default: &'static str,
}

/// Starts to log. A configuration that is wrong is told by the command that reads it.
pub(crate) fn start(command: &Command) -> Log {
    let default = if matches!(command, Command::Serve(_)) { "info" } else { "warn" };
    let loaded = command.sources().load().ok();
    let asked = loaded.and_then(|loaded| loaded.config.log);
    let filter = asked.and_then(|text| EnvFilter::try_new(text).ok());
    let (filter, handle) = reload::Layer::new(filter.unwrap_or_else(|| EnvFilter::new(default)));
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(color).with_target(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
    Log { filter: handle, default }
}

impl Log {
    /// Logs from now on what the configuration says.
    pub(crate) fn take_up(&self, config: &Config) -> Result<()> {
        let filter = filter(config)?.unwrap_or_else(|| EnvFilter::new(self.default));
        self.filter.reload(filter).context("the log has ended")
    }
}

/// # Errors
/// When `log` is no filter.
pub(crate) fn check(config: &Config) -> Result<()> {
    filter(config).map(|_| ())
}

fn filter(config: &Config) -> Result<Option<EnvFilter>> {
    let Some(text) = &config.log else { return Ok(None) };
    let help = || format!("`log` is `{text}`, it must be as `info` or `warn,engine=debug`");
    EnvFilter::try_new(text).map(Some).with_context(help)
}
