//! Why can the server not start?

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Always the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the host `{host}` has no address: {source}; use an address of this machine")]
    UnknownHost { host: String, source: io::Error },
    #[error(
        "{address} can be reached from other machines and this server asks nobody for a key: \
         listen on 127.0.0.1, make keys (`pelton keys add`), or set `allow_public: true` \
         (PELTON_ALLOW_PUBLIC) if everyone who can reach it may use it"
    )]
    Public { address: SocketAddr },
    #[error(
        "port {} on {} is in use by another program: stop it, or choose another with --port",
        address.port(), address.ip()
    )]
    PortInUse { address: SocketAddr },
    #[error(
        "port {} may not be opened by this user: choose one from 1024 on", address.port()
    )]
    PortForbidden { address: SocketAddr },
    #[error("TLS cannot use {}: {problem}", path.display())]
    Tls { path: PathBuf, problem: String },
    #[error("the audit log {} cannot be opened: {source}", path.display())]
    Audit { path: PathBuf, source: io::Error },
    #[error("traces cannot be sent to `{endpoint}`: {problem}")]
    Traces { endpoint: String, problem: String },
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
}
