//! Who may order models about? Keys that may, and programs on this machine where there are no keys.

use axum::extract::Request;
use axum::http::HeaderMap;
use tokio::net::TcpStream;

use crate::hosts;
use crate::reply::ApiError;
use crate::visit::Visit;

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

    /// The program that holds the server inside itself.
    pub(crate) fn own_process() -> Self {
        Self { is_local: true }
    }
}

/// Headers with which a proxy says for whom it asks: then the peer is not the one who asks.
const FORWARDED: [&str; 4] = ["forwarded", "via", "x-forwarded-for", "x-real-ip"];

/// Lets a request pass whose key may, or without keys one of this machine.
///
/// # Errors
/// 403 when its key may not, or when it comes from elsewhere, through a proxy, or under another
/// machine's name.
pub(crate) fn check(request: &Request) -> Result<(), ApiError> {
    match Visit::of(request).caller.is_admin() {
        Some(true) => return Ok(()),
        Some(false) => return Err(ApiError::no_admin()),
        None => {}
    }
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
