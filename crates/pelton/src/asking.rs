//! What does a running server say? HTTP for the commands that look at one.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use config::Sources;
use serde_json::Value;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector as _, TcpConnector};

use crate::trusted_server::TrustedServer;

/// Which server a command looks at.
#[derive(Args)]
pub(crate) struct ServerArguments {
    /// The server's address [default: as the configuration says, else http://127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The API key to show it, if it asks for one
    #[arg(long, env = "PELTON_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// PEM file with the certificate of the server, or of who issued it, where no known authority
    /// did [default: the configuration's own]
    #[arg(long, value_name = "FILE", env = "PELTON_CA_FILE")]
    ca_file: Option<String>,
}

pub(crate) struct Asked {
    agent: ureq::Agent,
    pub(crate) url: String,
    key: Option<String>,
}

/// A server on the same machine or network answers such questions at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// The counters of hundreds of models are smaller.
const REPLY_BYTES_MAX: u64 = 16 << 20;

impl ServerArguments {
    pub(crate) fn open(&self) -> Result<Asked> {
        let (url, own) = match &self.url {
            Some(url) if url.contains("://") => (url.clone(), None),
            Some(address) => (format!("http://{address}"), None),
            None => configured()?,
        };
        let settings = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            // What is asked for is a machine by its name: no proxy needs to know.
            .proxy(None)
            .build();
        let agent = match self.ca_file.as_ref().or(own.as_ref()) {
            Some(file) => {
                let connector =
                    ().chain(TcpConnector::default()).chain(TrustedServer::of_file(file)?);
                ureq::Agent::with_parts(settings, connector, DefaultResolver::default())
            }
            None => settings.into(),
        };
        let url = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Asked { agent, url, key: self.key.clone() })
    }
}

/// Where a server of this configuration listens, and the file of its certificate.
fn configured() -> Result<(String, Option<String>)> {
    let server = Sources::of_process(None, Vec::new()).load()?.config.server;
    // Any address of this machine is meant: it is asked by the nearest.
    let host = match server.host.trim_start_matches('[').trim_end_matches(']') {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let scheme = if server.tls_certificate_file.is_some() { "https" } else { "http" };
    Ok((format!("{scheme}://{host}:{}", server.port), server.tls_certificate_file))
}

impl Asked {
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        let url = format!("{}{path}", self.url);
        let mut request = self.agent.get(&url);
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|error| self.unreachable(&error))?;
        let body = response.body_mut().with_config().limit(REPLY_BYTES_MAX);
        let text = body.read_to_string().map_err(|error| self.unreachable(&error))?;
        match response.status().as_u16() {
            200 => Ok(text),
            401 => bail!(
                "{} asks for an API key: give it with --key, or in the variable PELTON_API_KEY",
                self.url
            ),
            404 => bail!("there is no {path} at {}: is it a server of Pelton?", self.url),
            status => bail!("{url} answered with status {status}: {}", said(&text)),
        }
    }

    pub(crate) fn json(&self, path: &str) -> Result<Value> {
        let text = self.text(path)?;
        serde_json::from_str(&text)
            .map_err(|_| anyhow::anyhow!("{} speaks no JSON: is it a server of Pelton?", self.url))
    }

    /// What the server knows of each of its models.
    pub(crate) fn models(&self) -> Result<Vec<Value>> {
        match self.json("/v1/models")?["data"].take() {
            Value::Array(models) => Ok(models),
            _ => bail!("{} lists no models: is it a server of Pelton?", self.url),
        }
    }

    fn unreachable(&self, error: &ureq::Error) -> anyhow::Error {
        if let ureq::Error::Io(inner) = error
            && inner.get_ref().is_some_and(|inner| inner.is::<tokio_rustls::rustls::Error>())
        {
            return anyhow::anyhow!(
                "the server at {} shows a certificate that nothing known here vouches for \
                 ({inner}): if it is yours, name its certificate with --ca-file",
                self.url
            );
        }
        anyhow::anyhow!(
            "no server answers at {}: start one with `pelton serve`, or say where it is with \
             --url ({error})",
            self.url
        )
    }
}

/// The text of an error object, or of whatever came.
fn said(text: &str) -> String {
    const CHARS_MAX: usize = 300;
    let object: Option<Value> = serde_json::from_str(text).ok();
    let message = object.as_ref().and_then(|object| object["error"]["message"].as_str());
    message.unwrap_or(text).chars().take(CHARS_MAX).collect()
}
