//! The server name in a ClientHello, which policies and log lines may want to know.
//!
//! rustls reads it, as it would to accept the connection; what rustls does not read is not guessed at. Not for: TLS itself, which passes untouched.

use std::io;
use std::ops::RangeInclusive;

use rustls::server::Acceptor;

/// Bytes within which a ClientHello has to end; Envoy's `tls_inspector` takes as many.
pub const CLIENT_HELLO_BYTES_MAX: usize = 64 * 1024;
/// First byte of a handshake's record (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// First bytes of any record of TLS: a server may pass over others before the handshake's.
const RECORDS: RangeInclusive<u8> = 20..=24;
/// Second byte of any record since SSL 3.
const VERSION: u8 = 3;

/// What a connection begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// A ClientHello with this name, in lower case as in Envoy; empty if it has none.
    Name(Box<str>),
    /// Something else than TLS, or nothing.
    NotTls,
    /// It may be one, but cannot be read.
    Unreadable,
}

/// Reads one.
#[derive(Default)]
pub struct HelloReader {
    acceptor: Acceptor,
    /// The first two bytes.
    head: [u8; 2],
    seen: usize,
}

impl std::fmt::Debug for HelloReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("HelloReader").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl HelloReader {
    /// Looks at the next bytes. None: more have to come.
    pub fn look(&mut self, bytes: &[u8]) -> Option<Hello> {
        for (at, byte) in (self.seen.min(2)..2).zip(bytes) {
            self.head[at] = *byte;
        }
        self.seen = self.seen.saturating_add(bytes.len());
        match (self.seen, self.head) {
            (0, _) => None,
            (1, [first, _]) if first != HANDSHAKE => (!RECORDS.contains(&first)).then_some(Hello::NotTls),
            (1, _) | (_, [HANDSHAKE, VERSION]) => self.read(bytes).unwrap_or(Some(Hello::Unreadable)),
            (_, [first, VERSION]) if RECORDS.contains(&first) => Some(Hello::Unreadable),
            _ => Some(Hello::NotTls),
        }
    }

    fn read(&mut self, mut bytes: &[u8]) -> io::Result<Option<Hello>> {
        while !bytes.is_empty() {
            self.acceptor.read_tls(&mut bytes)?;
            match self.acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().unwrap_or_default().to_ascii_lowercase();
                    return Ok(Some(Hello::Name(name.into())));
                }
                Ok(None) => {}
                Err(_) => return Ok(Some(Hello::Unreadable)),
            }
        }
        Ok((self.seen > CLIENT_HELLO_BYTES_MAX).then_some(Hello::Unreadable))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// The first flight of a client that asks for a name.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// What is found when the bytes come in pieces.
    fn found(bytes: &[u8], piece: usize) -> Option<Hello> {
        let mut reader = HelloReader::default();
        bytes.chunks(piece).find_map(|piece| reader.look(piece))
    }

    #[test]
    fn the_name_is_found_however_the_bytes_come() {
        for (host, name) in [("Shop.Example", "shop.example"), ("10.0.0.1", "")] {
            let bytes = hello(host);
            for piece in [1, 7, bytes.len()] {
                assert_eq!(found(&bytes, piece), Some(Hello::Name(name.into())), "{host} by {piece}");
                assert_eq!(found(&bytes[..bytes.len() - 1], piece), None);
            }
        }
    }

    #[test]
    fn a_hello_in_several_records_is_read_as_a_whole() {
        let bytes = hello("a.example");
        let (header, message) = bytes.split_at(5);
        let mut split = Vec::new();
        for part in message.chunks(100) {
            split.extend_from_slice(&header[..3]);
            split.extend_from_slice(&u16::try_from(part.len()).unwrap().to_be_bytes());
            split.extend_from_slice(part);
        }
        assert_eq!(found(&split, split.len()), Some(Hello::Name("a.example".into())));
    }

    #[test]
    fn what_is_no_tls_is_told_by_its_first_bytes_and_a_broken_hello_is_no_name() {
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x02\x00", b"\0"] {
            assert_eq!(found(other, 1), Some(Hello::NotTls), "{other:?}");
        }
        // An alert that servers pass over, and a hello behind it.
        let behind = [b"\x15\x03\x01\x00\x02\x01\x5a".as_slice(), &hello("a.example")].concat();
        for piece in [1, behind.len()] {
            assert_eq!(found(&behind, piece), Some(Hello::Unreadable), "by {piece}");
        }
        let mut broken = hello("a.example");
        broken[5] = 2;
        assert_eq!(found(&broken, broken.len()), Some(Hello::Unreadable), "no ClientHello");
        let endless = [22, 3, 1, 0, 1, 1].repeat(CLIENT_HELLO_BYTES_MAX / 6 + 2);
        assert_eq!(found(&endless, 600), Some(Hello::Unreadable), "longer than any");
    }
}
