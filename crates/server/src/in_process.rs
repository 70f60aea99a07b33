//! How does a program ask that holds the server in itself? The same routes behind the same gate,
//! without a socket.

use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use engine::Service;
use hyper::body::Body as _;

use crate::access::Access;
use crate::admin::Peer;
use crate::app::{Live, Outside, Shared};
use crate::timed_stream::Phase;
use crate::{ServerError, ServerOptions, gate, routes};

/// Routes without a port.
pub struct InProcess {
    app: Arc<Shared>,
    router: Router,
}

impl InProcess {
    /// Nobody else can ask, so keys, certificates and origins of `options` are for others.
    ///
    /// # Errors
    /// [`ServerError`] when the audit log or the traces of `options` cannot be written.
    pub fn new(service: Arc<dyn Service>, options: ServerOptions) -> Result<Self, ServerError> {
        let body_bytes_max = options.listen.request_body_bytes_max;
        let listen = config::ServerConfig {
            request_body_bytes_max: body_bytes_max,
            ..config::ServerConfig::default()
        };
        let access = config::AccessConfig::default();
        let options = ServerOptions { listen, access, ..options };
        let access = Access::new(&options.access, &Access::default());
        let live = Live::new(&options.listen, true, access)?;
        let outside = Outside::open(&options)?;
        let app = Arc::new(Shared::new(service, options, live, outside));
        let router = routes::router(&app);
        Ok(Self { app, router })
    }

    /// Asks as `method path` with a body of JSON (or none) over HTTP would.
    ///
    /// # Errors
    /// When method or path are none; whatever else is wrong is in the reply.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<InProcessReply, String> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .extension(Peer::own_process())
            .body(Body::from(body))
            .map_err(|error| format!("`{method} {path}` is no request: {error}"))?;
        let (app, router) = (Arc::clone(&self.app), self.router.clone());
        let response = match gate::answer(app, router, Arc::new(Phase::new()), request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        Ok(InProcessReply { status: response.status().as_u16(), body: response.into_body() })
    }
}

/// A reply whose body comes as it is made; dropped, it ends what is still being computed for it.
pub struct InProcessReply {
    status: u16,
    body: Body,
}

impl InProcessReply {
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// When the answer broke off.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            let frame =
                std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            match frame.await {
                None => return Ok(None),
                Some(Err(error)) => return Err(said(&error)),
                // Trailers say nothing that a reader of the body needs.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data.to_vec()));
                    }
                }
            }
        }
    }
}

fn said(error: &dyn Display) -> String {
    format!("the answer broke off: {error}")
}
