//! Who may order models about? Programs on this machine, until there are keys to tell people apart.

use axum::extract::Request;
use axum::http::HeaderMap;
use tokio::net::TcpStream;

use crate::hosts;
use crate::reply::ApiError;

/// The other end of a request's connection.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    is_local: bool,
}

impl Peer {
    pub(crate) fn of(stream: &TcpStream) -> Self {
        let address = stream.peer_addr();
        Self { is_local: address.is_ok_and(|peer| peer.ip().to_canonical().is_loopback()) }
    }
}

/// Headers with which a proxy says for whom it asks: then the peer is not the one who asks.
const FORWARDED: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// Lets a request of this machine pass.
///
/// # Errors
/// 403 when it comes from elsewhere, through a proxy, or under another machine's name.
pub(crate) fn check(request: &Request) -> Result<(), ApiError> {
    let is_local = request.extensions().get::<Peer>().is_some_and(|peer| peer.is_local);
    let headers = request.headers();
    let is_forwarded = FORWARDED.iter().any(|name| headers.contains_key(*name));
    if is_local && !is_forwarded && is_asked_by_own_name(headers) {
        return Ok(());
    }
    Err(ApiError::not_local())
}

/// A name that was allowed may be public; one that no page can have is not.
fn is_asked_by_own_name(headers: &HeaderMap) -> bool {
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    host.is_none_or(hosts::names_this_machine)
}
