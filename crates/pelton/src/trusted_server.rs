//! Whom does a command believe that it was given a certificate for? A server that an authority in
//! the file vouches for, and the server whose own certificate is in it.
//!
//! `openssl req -x509` makes certificates that are their own authority, and rustls takes those for
//! nobody's but an authority's. Who names such a file means this certificate: it is compared byte
//! for byte, and the handshake proves that the server has its key. Its names and dates add nothing
//! to that, so a server is found under any address.

use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio_rustls::rustls;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};

/// TLS to servers of the certificates of a PEM file.
#[derive(Debug)]
pub(crate) struct TrustedServer(Arc<ClientConfig>);

impl TrustedServer {
    /// # Errors
    /// Names a file that cannot be read or has no certificate.
    pub(crate) fn of_file(file: &str) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
        let given: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|error| anyhow::anyhow!("{file} is no PEM file: {error}"))?;
        if given.is_empty() {
            bail!("there is no certificate in {file}");
        }
        let mut roots = RootCertStore::empty();
        // What cannot be an authority may still be the server's own.
        let (authorities, _) = roots.add_parsable_certificates(given.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let by_authority = (authorities > 0).then(|| {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
        });
        let by_authority = by_authority.transpose()?;
        let verifier = Verifier { given, by_authority, provider: Arc::clone(&provider) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

#[derive(Debug)]
struct Verifier {
    given: Vec<CertificateDer<'static>>,
    /// `None`: nothing in the file can be an authority.
    by_authority: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.given.contains(shown) {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(by_authority) = &self.by_authority else {
            return Err(rustls::CertificateError::UnknownIssuer.into());
        };
        by_authority.verify_server_cert(shown, between, name, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, shown, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, shown, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl<In: Transport> Connector<In> for TrustedServer {
    type Out = Either<In, Encrypted>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(socket) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(socket)));
        }
        let host = details.uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|_| ureq::Error::Tls("no name of a host"))?;
        let mut connection = ClientConnection::new(Arc::clone(&self.0), name)?;
        let current_time = Arc::clone(&details.current_time);
        let mut socket = TransportAdapter::new(socket.boxed(), current_time);
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Either::B(Encrypted { buffers, stream: StreamOwned::new(connection, socket) })))
    }
}

/// A connection behind its handshake.
pub(crate) struct Encrypted {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Encrypted").field(self.stream.sock.inner()).finish()
    }
}

impl Transport for Encrypted {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        Ok(self.stream.write_all(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let count = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
