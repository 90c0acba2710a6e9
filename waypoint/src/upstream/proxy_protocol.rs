//! The PROXY protocol: who the client of a connection is, told to the application before anything else is.
//!
//! Not for: reading it. Source: HAProxy's `proxy-protocol.txt`, versions 1 and 2. Invariant: one header is one write of at most
//! [`HEADER_BYTES_MAX`], and names two addresses of one family, or none.

use std::net::{IpAddr, SocketAddr};

use model::transport::ProxyProtocol;
use smallvec::SmallVec;

/// The longest header of version 1, without the NUL that its specification counts.
pub const HEADER_BYTES_MAX: usize = 107;

/// §2.2 of the specification.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_LOCAL: u8 = 0x20;
const VERSION_2_PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// On whose behalf a connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proxied {
    /// The client.
    pub client: SocketAddr,
    /// Where it wanted to go, if that is an address.
    pub destination: Option<SocketAddr>,
}

/// The header of a connection to `endpoint`; without a client it is our own.
#[must_use]
pub fn header(version: ProxyProtocol, proxied: Option<Proxied>, endpoint: SocketAddr) -> SmallVec<[u8; HEADER_BYTES_MAX]> {
    let ends = proxied.map(|proxied| (canonical(proxied.client), canonical(proxied.destination.unwrap_or(endpoint))));
    let ends = ends.filter(|(client, destination)| client.is_ipv4() == destination.is_ipv4());
    match version {
        ProxyProtocol::V1 => text(ends),
        ProxyProtocol::V2 => binary(ends),
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn text(ends: Option<(SocketAddr, SocketAddr)>) -> SmallVec<[u8; HEADER_BYTES_MAX]> {
    let line = match ends {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some((client, destination)) => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {} {} {} {}\r\n", client.ip(), destination.ip(), client.port(), destination.port())
        }
    };
    SmallVec::from_slice(line.as_bytes())
}

fn binary(ends: Option<(SocketAddr, SocketAddr)>) -> SmallVec<[u8; HEADER_BYTES_MAX]> {
    let mut header = SmallVec::from_slice(&SIGNATURE);
    let Some((client, destination)) = ends else {
        header.extend_from_slice(&[VERSION_2_LOCAL, 0, 0, 0]);
        return header;
    };
    let mut addresses: SmallVec<[u8; 36]> = SmallVec::new();
    for address in [client, destination] {
        match address.ip() {
            IpAddr::V4(ip) => addresses.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => addresses.extend_from_slice(&ip.octets()),
        }
    }
    addresses.extend_from_slice(&client.port().to_be_bytes());
    addresses.extend_from_slice(&destination.port().to_be_bytes());
    let n_bytes = u16::try_from(addresses.len()).expect("two addresses and ports are 36 bytes at most");
    header.extend_from_slice(&[VERSION_2_PROXY, if client.is_ipv4() { TCP_OVER_IPV4 } else { TCP_OVER_IPV6 }]);
    header.extend_from_slice(&n_bytes.to_be_bytes());
    header.extend_from_slice(&addresses);
    header
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn proxied(client: &str, destination: Option<&str>) -> Option<Proxied> {
        Some(Proxied { client: client.parse().unwrap(), destination: destination.map(|address| address.parse().unwrap()) })
    }

    fn endpoint() -> SocketAddr {
        "192.0.2.9:8080".parse().unwrap()
    }

    fn line(proxied: Option<Proxied>) -> String {
        String::from_utf8(header(ProxyProtocol::V1, proxied, endpoint()).to_vec()).unwrap()
    }

    #[test]
    fn version_1_is_a_line() {
        assert_eq!(line(proxied("192.0.2.1:4711", Some("198.51.100.7:80"))), "PROXY TCP4 192.0.2.1 198.51.100.7 4711 80\r\n");
        assert_eq!(line(proxied("[2001:db8::1]:1", Some("[2001:db8::2]:2"))), "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n");
        assert_eq!(line(proxied("192.0.2.1:4711", None)), "PROXY TCP4 192.0.2.1 192.0.2.9 4711 8080\r\n", "it asked for a host name");
        assert_eq!(line(proxied("[::ffff:192.0.2.1]:1", Some("198.51.100.7:80"))), "PROXY TCP4 192.0.2.1 198.51.100.7 1 80\r\n");
        assert_eq!(line(proxied("[2001:db8::1]:1", Some("198.51.100.7:80"))), "PROXY UNKNOWN\r\n", "addresses of two families");
        assert_eq!(line(None), "PROXY UNKNOWN\r\n");
        let widest = "[2001:1111:2222:3333:4444:5555:6666:7777]:65535";
        assert!(line(proxied(widest, Some(widest))).len() <= HEADER_BYTES_MAX);
    }

    #[test]
    fn version_2_is_binary() {
        let bytes = header(ProxyProtocol::V2, proxied("192.0.2.1:4711", Some("198.51.100.7:80")), endpoint());
        let mut expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0aQUIT\x0a\x21\x11\x00\x0c".to_vec();
        expected.extend([192, 0, 2, 1, 198, 51, 100, 7, 0x12, 0x67, 0, 80]);
        assert_eq!(bytes.as_slice(), expected);
        let bytes = header(ProxyProtocol::V2, proxied("[2001:db8::1]:1", Some("[2001:db8::2]:2")), endpoint());
        assert_eq!((&bytes[12..16], bytes.len()), (&[0x21, 0x21, 0, 36][..], 16 + 36));
        assert_eq!(header(ProxyProtocol::V2, None, endpoint())[12..], [0x20, 0, 0, 0]);
    }
}
