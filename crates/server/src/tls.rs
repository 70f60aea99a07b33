//! How does the server speak TLS? By rustls, with the certificate and key of two PEM files.
//!
//! TLS 1.2 and 1.3, HTTP/1.1 only. The stream below keeps its time limits: a handshake must be over
//! within the time that a head may take.

use std::path::Path;
use std::sync::Arc;

use config::ServerConfig;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::ServerError;

/// `None`: the configuration names no files.
///
/// # Errors
/// [`ServerError::Tls`] naming the file at fault.
pub(crate) fn acceptor(listen: &ServerConfig) -> Result<Option<TlsAcceptor>, ServerError> {
    let (certificates, key) = match (&listen.tls_certificate_file, &listen.tls_key_file) {
        (None, None) => return Ok(None),
        (Some(certificates), Some(key)) => (certificates, key),
        (Some(path), None) | (None, Some(path)) => {
            let problem = "tls_certificate_file and tls_key_file belong together: name both";
            return Err(wrong(path, problem));
        }
    };
    let chain = CertificateDer::pem_file_iter(Path::new(certificates))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(certificates, error))?;
    if chain.is_empty() {
        return Err(wrong(certificates, "there is no certificate in it"));
    }
    let secret = PrivateKeyDer::from_pem_file(Path::new(key)).map_err(|error| wrong(key, error))?;
    // Named, and not the process' default: that there is one does not depend on who else links
    // rustls.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(certificates, error))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| wrong(certificates, error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

fn wrong(path: &str, problem: impl ToString) -> ServerError {
    ServerError::Tls { path: path.into(), problem: problem.to_string() }
}
