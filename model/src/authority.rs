//! What a CONNECT asks for: `IP:port`, `[IPv6]:port` or `host:port` (HBONE across networks).
//!
//! Not for: `Host` headers of requests inside the tunnel, whose port is optional.
//! Invariant: the port is never missing; a host is lower case and has no trailing dot.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use thiserror::Error;

/// Longest host name that DNS knows (RFC 1035 §2.3.4).
const HOST_BYTES_MAX: usize = 253;

/// The target of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address: a service's virtual IP, or a pod's.
    Address(SocketAddr),
    /// A service's host name; only sent across networks.
    Host {
        /// Lower case, without a trailing dot.
        host: Box<str>,
        /// The service's port.
        port: u16,
    },
}

/// Why an `:authority` is not a CONNECT target.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AuthorityError {
    /// RFC 9113 §8.5 wants a port; so does ztunnel.
    #[error("{0:?} has no port")]
    Port(String),
    /// Neither an address nor a host name.
    #[error("{0:?} is neither an address nor a host name")]
    Host(String),
}

impl Authority {
    /// Reads the `:authority` of a CONNECT.
    ///
    /// # Errors
    /// A missing or unreadable port, user information, or a host that DNS could not hold.
    pub fn parse(text: &str) -> Result<Self, AuthorityError> {
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AuthorityError::Port(text.to_owned()))?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(|| AuthorityError::Port(text.to_owned()))?;
        let refused = || AuthorityError::Host(text.to_owned());
        if let Some(bracketed) = host.strip_prefix('[') {
            let address: Ipv6Addr = bracketed.strip_suffix(']').and_then(|inner| inner.parse().ok()).ok_or_else(refused)?;
            return Ok(Self::Address(SocketAddr::new(IpAddr::V6(address).to_canonical(), port)));
        }
        if let Ok(address) = host.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Address(SocketAddr::new(IpAddr::V4(address), port)));
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let readable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'*');
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(readable) {
            return Err(refused());
        }
        Ok(Self::Host { host: host.to_ascii_lowercase().into(), port })
    }

    /// The port asked for.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }

    /// The address, unless a host name was given.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Host { .. } => None,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Host { host, port } => write!(formatter, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_host_names_are_told_apart() {
        assert_eq!(Authority::parse("10.96.1.1:80"), Ok(Authority::Address("10.96.1.1:80".parse().expect("address"))));
        assert_eq!(Authority::parse("[::1]:80"), Ok(Authority::Address("[::1]:80".parse().expect("address"))));
        let host = Authority::parse("Web.Shop.svc.cluster.local.:80").expect("host");
        assert_eq!(host.to_string(), "web.shop.svc.cluster.local:80");
    }

    #[test]
    fn a_mapped_ipv4_address_is_the_ipv4_address() {
        assert_eq!(Authority::parse("[::ffff:10.0.0.1]:80"), Authority::parse("10.0.0.1:80"));
    }

    #[test]
    fn what_names_no_target_is_refused() {
        for text in ["", "10.0.0.1", "web", "web:", "web:0", "web:+1", "web:65536", ":80", "u@web:80", "[::1:80", "::1:80", "a b:80"] {
            assert!(Authority::parse(text).is_err(), "{text:?}");
        }
    }
}
