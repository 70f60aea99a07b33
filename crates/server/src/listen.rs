//! How do connections come in, and how do they end?

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use engine::Service;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::access::Access;
use crate::admin::Peer;
use crate::app::{Live, Outside, Shared};
use crate::timed_stream::{Phase, TimedStream};
use crate::{ServerError, ServerOptions, gate, routes};

/// A server that holds its port and does not answer yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<Shared>,
    router: Router,
}

/// Listens and answers until `shutdown` is ready and the answers then running have ended.
///
/// # Errors
/// See [`bind`].
pub async fn serve(
    service: Arc<dyn Service>,
    options: ServerOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    bind(service, options).await?.serve(shutdown).await;
    Ok(())
}

/// Takes the port.
///
/// # Errors
/// [`ServerError`] when the host has no address, the port cannot be had, or the address is public
/// and that was not asked for.
pub async fn bind(
    service: Arc<dyn Service>,
    options: ServerOptions,
) -> Result<Server, ServerError> {
    reserve(options).await?.answer_with(service)
}

/// An address that is taken, and where nobody is listened to yet.
pub struct Reserved {
    socket: TcpSocket,
    options: ServerOptions,
    live: Live,
    outside: Outside,
}

/// Takes the address and looks at everything that needs no model, so that what is wrong is said
/// before models are loaded.
///
/// # Errors
/// As [`bind`].
pub async fn reserve(options: ServerOptions) -> Result<Reserved, ServerError> {
    let listen = &options.listen;
    let wanted = resolve(&listen.host, listen.port).await?;
    let is_loopback = wanted.ip().is_loopback();
    let access = Access::new(&options.access, &Access::default());
    if !is_loopback && !listen.allow_public && !access.has_keys() {
        return Err(ServerError::Public { address: wanted });
    }
    let socket = open(wanted).map_err(|source| refused(wanted, source))?;
    let live = Live::new(listen, is_loopback, access)?;
    let outside = Outside::open(&options)?;
    Ok(Reserved { socket, options, live, outside })
}

impl Reserved {
    /// Begins to listen; from within a runtime.
    ///
    /// # Errors
    /// Where somebody else listens there by now.
    pub fn answer_with(self, service: Arc<dyn Service>) -> Result<Server, ServerError> {
        let Self { socket, options, live, outside } = self;
        let unspecified = SocketAddr::from(([0, 0, 0, 0], options.listen.port));
        let address = socket.local_addr().map_err(|source| refused(unspecified, source))?;
        let listener = socket.listen(BACKLOG).map_err(|source| refused(address, source))?;
        let app = Arc::new(Shared::new(service, options, live, outside));
        let router = routes::router(&app);
        Ok(Server { listener, address, app, router })
    }
}

fn refused(address: SocketAddr, source: io::Error) -> ServerError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ServerError::PortInUse { address },
        io::ErrorKind::PermissionDenied => ServerError::PortForbidden { address },
        _ => ServerError::Listen { address, source },
    }
}

async fn resolve(host: &str, port: u16) -> Result<SocketAddr, ServerError> {
    let failed = |source| ServerError::UnknownHost { host: host.to_owned(), source };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut addresses = lookup_host((bare, port)).await.map_err(failed)?.collect::<Vec<_>>();
    // `localhost` is often ::1 first, while clients and documents say 127.0.0.1.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.first().copied().ok_or_else(|| failed(io::Error::other("the name has no address")))
}

/// What the system holds for a reader that does not read; Linux doubles it for its own accounts.
const SEND_BUFFER_BYTES: u32 = 64 << 10;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

fn open(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted server takes its port back while old connections still close.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(address)?;
    Ok(socket)
}

/// After a failed accept (usually no file descriptors left): wait for some to close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Tells a running server what holds from now on.
#[derive(Clone)]
pub struct ServerControl {
    app: Arc<Shared>,
    is_loopback: bool,
}

impl ServerControl {
    /// How long running answers may take to finish after a stop, as it is now.
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.app.live().listen.drain_seconds)
    }

    /// Takes up the keys of the sections `server` and `access` that are marked for it; the others
    /// keep what they were at the start. Running requests and open connections go on as they began.
    pub fn take_up(&self, listen: &config::ServerConfig, access: &config::AccessConfig) {
        // The address stays, and whom it is open to.
        let started = &self.app.options.listen;
        let listen = config::ServerConfig {
            host: started.host.clone(),
            port: started.port,
            allow_public: started.allow_public,
            request_body_bytes_max: started.request_body_bytes_max,
            ..listen.clone()
        };
        let access = Access::new(access, &self.app.live().access);
        if !self.is_loopback && !listen.allow_public && !access.has_keys() {
            tracing::error!("the last key is gone: none of the new configuration's keys is used");
            return;
        }
        match Live::new(&listen, self.is_loopback, access) {
            Ok(live) => self.app.take_up(live),
            Err(error) => {
                tracing::error!(%error, "the server goes on as it was");
                return;
            }
        }
        if let Some(audit) = &self.app.outside.audit {
            audit.reopen();
        }
    }
}

impl Server {
    /// For as long as the server runs.
    pub fn control(&self) -> ServerControl {
        let is_loopback = self.address.ip().is_loopback();
        ServerControl { app: Arc::clone(&self.app), is_loopback }
    }

    /// `https`, or `http` where no certificate is configured.
    pub fn scheme(&self) -> &'static str {
        if self.app.live().tls.is_some() { "https" } else { "http" }
    }

    /// Where the server listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown` is ready, then lets running answers finish within
    /// `drain_seconds`; what runs longer is cut off. Meanwhile newcomers get 503, so that whoever
    /// balances load sees that this server is leaving.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, app, router, .. } = self;
        let (stop, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if connections.len() >= app.live().listen.connections_max => {
                    turn_away(&stream, app.live().tls.is_some());
                }
                Ok((stream, _)) => {
                    let task = answer(stream, Arc::clone(&app), router.clone(), stopped.clone());
                    connections.spawn(task);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        app.start_draining();
        // Connections may all have ended; then nobody listens.
        let _ = stop.send(true);
        tokio::select! {
            () = drain(&app, &mut connections) => {}
            never = tell_late_comers(&listener, &app, &router) => match never {},
        }
    }
}

/// Waits for the running answers, for a while.
async fn drain(app: &Shared, connections: &mut JoinSet<()>) {
    let patience = Duration::from_secs(app.live().listen.drain_seconds);
    if timeout(patience, all_ended(connections)).await.is_ok() {
        return;
    }
    tracing::warn!(count = connections.len(), "cutting off answers that still run");
    app.engine.stop();
    // Streams end with the reason, if their readers take it.
    if timeout(LAST_WORDS, all_ended(connections)).await.is_err() {
        connections.shutdown().await;
    }
}

async fn all_ended(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

/// For the last events of cut off streams: they are small, a reader who reads has them in no time.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// While running answers finish, says to everybody who comes that the server is stopping.
async fn tell_late_comers(
    listener: &TcpListener,
    app: &Arc<Shared>,
    router: &Router,
) -> Infallible {
    let (_stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if connections.len() >= app.live().listen.connections_max => {
                turn_away(&stream, app.live().tls.is_some());
            }
            Ok((stream, _)) => {
                let task = answer(stream, Arc::clone(app), router.clone(), stopped.clone());
                connections.spawn(task);
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Says busy without a task: a short text always fits a fresh socket's buffer.
fn turn_away(stream: &TcpStream, is_encrypted: bool) {
    const REPLY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
        content-length: 0\r\nconnection: close\r\n\r\n";
    // Before any keys are agreed on TLS can say only that (RFC 8446, 6.2): a fatal internal_error.
    const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 80];
    tracing::warn!("turned a connection away: as many as allowed are open");
    // The peer may be gone already.
    let _ = stream.try_write(if is_encrypted { ALERT } else { REPLY });
}

/// Serves one connection to its end.
async fn answer(
    stream: TcpStream,
    app: Arc<Shared>,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    // Without it a small event would wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let phase = Arc::new(Phase::new());
    let peer = Peer::of(&stream);
    let live = app.live();
    let keep_alive = Duration::from_secs(live.listen.keep_alive_seconds);
    let stream =
        TimedStream::new(stream, Arc::clone(&phase), keep_alive, app.options.patience.clone());
    match &live.tls {
        None => converse(stream, (app, router, phase), peer, &mut stopped).await,
        Some(tls) => {
            let encrypted = tokio::select! {
                encrypted = tls.accept(stream) => encrypted,
                () = until_stopped(&mut stopped) => return,
            };
            match encrypted {
                Ok(stream) => converse(stream, (app, router, phase), peer, &mut stopped).await,
                Err(error) => tracing::debug!(%error, "no TLS came about"),
            }
        }
    }
}

/// Answers the requests of one connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    (app, router, phase): (Arc<Shared>, Router, Arc<Phase>),
    peer: Peer,
    stopped: &mut watch::Receiver<bool>,
) {
    let head_bytes_max = app.live().listen.request_head_bytes_max;
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        gate::answer(Arc::clone(&app), router.clone(), Arc::clone(&phase), request)
    });
    let connection = http1::Builder::new()
        .max_buf_size(head_bytes_max)
        // Time limits are the stream's, which knows an idle connection from a slow one.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = until_stopped(stopped) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Peers leave mid-answer and send garbage: their business, not an operator's.
        tracing::debug!(%error, "connection ended early");
    }
}

/// An error would mean that the server was dropped, which stops its connections as well.
async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
