//! Under which names may the server be asked, and by which pages?
//!
//! A page of any site can send requests to 127.0.0.1, and by rebinding its own name to 127.0.0.1
//! it can read the answers (CVE-2024-28224). Its requests carry its own name in `Host`, so a server
//! bound to loopback answers only to names of this machine.

use std::net::{IpAddr, Ipv6Addr};

use axum::http::{HeaderMap, Uri, Version, header};

use crate::reply::ApiError;

pub(crate) struct Hosts {
    /// Lower case.
    allowed: Vec<String>,
    /// Answer to every name: the server is public and no list was given.
    any: bool,
    origins: Vec<String>,
}

impl Hosts {
    pub(crate) fn new(listen: &config::ServerConfig, is_loopback: bool) -> Self {
        let mut allowed: Vec<String> =
            listen.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        let any = !is_loopback && allowed.is_empty();
        allowed.push(listen.host.to_ascii_lowercase());
        let origins = listen.allowed_origins.iter().map(|text| text.to_ascii_lowercase()).collect();
        Self { allowed, any, origins }
    }

    /// Whether the request is addressed to this machine.
    pub(crate) fn check(
        &self,
        version: Version,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), ApiError> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(ApiError::invalid(None, "the request has more than one Host header"));
        }
        if host.is_none() && version == Version::HTTP_11 {
            return Err(ApiError::invalid(None, "the request has no Host header"));
        }
        let named = host.map(|host| host.to_str().unwrap_or(""));
        let authority = uri.authority().map(axum::http::uri::Authority::as_str);
        for name in named.into_iter().chain(authority) {
            if !self.allows(name) {
                return Err(ApiError::foreign_host());
            }
        }
        Ok(())
    }

    fn allows(&self, host: &str) -> bool {
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host).to_ascii_lowercase();
        let name = without_port(&host);
        self.any || is_own_name(name) || self.allowed.iter().any(|known| known == name)
    }

    /// The origin to name in `access-control-allow-origin`, if the asking page may read answers.
    pub(crate) fn allowed_origin(&self, headers: &HeaderMap) -> Option<axum::http::HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        let text = origin.to_str().ok()?.to_ascii_lowercase();
        self.origins.contains(&text).then(|| origin.clone())
    }
}

/// `[::1]:80` gives `::1`; an empty text where the brackets do not close.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(address, _)| address);
    }
    host.split_once(':').map_or(host, |(name, _)| name).trim_end_matches('.')
}

/// Whether a `Host` is one of the names that always mean this machine.
pub(crate) fn names_this_machine(host: &str) -> bool {
    is_own_name(without_port(&host.to_ascii_lowercase()))
}

fn is_own_name(name: &str) -> bool {
    if let Ok(address) = name.parse::<IpAddr>() {
        return match address {
            IpAddr::V4(address) => address.is_loopback(),
            IpAddr::V6(address) => address == Ipv6Addr::LOCALHOST,
        };
    }
    // RFC 6761: names under `localhost` are loopback.
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass() {
        let listen = config::ServerConfig {
            allowed_hosts: vec!["Models.Example".to_owned()],
            ..config::ServerConfig::default()
        };
        let hosts = Hosts::new(&listen, true);
        for host in [
            "localhost",
            "localhost:8080",
            "LOCALHOST.",
            "127.0.0.1",
            "127.8.0.1:1",
            "[::1]",
            "[::1]:8080",
            "app.localhost:3",
            "models.example:80",
        ] {
            assert!(hosts.allows(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "[::1",
            "0.0.0.0",
            "localhost@evil.example",
            "models.example.evil",
            "[::2]:80",
        ] {
            assert!(!hosts.allows(host), "{host}");
        }
    }

    #[test]
    fn a_public_server_answers_to_any_name_unless_told() {
        let mut listen = config::ServerConfig::default();
        assert!(Hosts::new(&listen, false).allows("anything.example"));
        listen.allowed_hosts.push("models.example".to_owned());
        let hosts = Hosts::new(&listen, false);
        assert!(!hosts.allows("anything.example"));
        assert!(hosts.allows("models.example"));
    }
}
