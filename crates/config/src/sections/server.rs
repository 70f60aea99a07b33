//! Where does the server listen, and whom does it answer?

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the server listens and whom it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// A name or an address.
    pub host: String,
    /// 0: any free port.
    pub port: u16,
    /// Accept an address that other machines can reach.
    pub allow_public: bool,
    /// Host names, besides this machine's own, under which the server may be asked.
    #[schemars(extend("x-reload" = true))]
    pub allowed_hosts: Vec<String>,
    /// Web origins (`https://example.com`) whose pages may call the server.
    #[schemars(extend("x-reload" = true))]
    pub allowed_origins: Vec<String>,
    /// A PEM file with the server's certificate and those between it and a known authority; it is
    /// read again at SIGHUP, as is the key. Absent: no TLS.
    #[schemars(extend("x-path" = "file", "x-reload" = true))]
    pub tls_certificate_file: Option<String>,
    /// A PEM file with the certificate's private key.
    #[schemars(extend("x-path" = "file", "x-reload" = true))]
    pub tls_key_file: Option<String>,
    /// Longest request body.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub request_body_bytes_max: usize,
    /// Longest request line plus headers.
    // Below 8 KiB hyper cannot read a head at all; above 1 MiB a head is an attack.
    #[schemars(range(min = 8192, max = 1_048_576), extend("x-reload" = true))]
    pub request_head_bytes_max: usize,
    /// Connections open at once.
    #[schemars(range(min = 1, max = 1_048_576), extend("x-reload" = true))]
    pub connections_max: usize,
    /// How long a connection may stay open without a request.
    #[schemars(range(min = 1, max = 86_400), extend("x-reload" = true))]
    pub keep_alive_seconds: u64,
    /// How long running answers may take to finish after a stop is asked for; then 5 seconds and
    /// once more as long are for writing to disk what outlasts the process.
    #[schemars(range(max = 86_400), extend("x-reload" = true))]
    pub drain_seconds: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            allow_public: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            tls_certificate_file: None,
            tls_key_file: None,
            // A context of 1,000,000 tokens is about 4 MB of text; JSON escapes can double it.
            request_body_bytes_max: 10 << 20,
            // Browsers and proxies send at most 8 to 16 KiB.
            request_head_bytes_max: 32 << 10,
            // Idle ones cost about 10 KiB each: 40 MiB in all.
            connections_max: 4096,
            // Longer than the pools of common clients keep theirs, so that they close first.
            keep_alive_seconds: 75,
            drain_seconds: 30,
        }
    }
}
