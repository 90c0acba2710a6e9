//! First bytes, whole and cut short, and what they are.

#![expect(clippy::unwrap_used, reason = "tests")]

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::{PREFACE, Replay, SNIFF_BYTES_MAX, Sniffed, Sniffer, Wanted};

const HTTP1: Option<Sniffed> = Some(Sniffed::Http1);
const HTTP2: Option<Sniffed> = Some(Sniffed::Http2);
const NOT_HTTP: Option<Sniffed> = Some(Sniffed::NotHttp);

fn decide(bytes: &[u8]) -> Option<Sniffed> {
    Sniffer::new(Wanted::Protocol).look(bytes)
}

#[test]
fn first_bytes_decide_as_early_as_they_can() {
    let table: &[(&[u8], Option<Sniffed>)] = &[
        (b"", None),
        (b"G", None),
        (b"GET", None),
        (b"GET ", None),
        (b"GET /", HTTP1),
        (b"GET / HTTP/1.0\r\n\r\n", HTTP1),
        (b"POST /x HTTP/1.1\r\n", HTTP1),
        (b"OPTIONS * HTTP/1.1\r\n", HTTP1),
        (b"OPTIONS * HTTP/1.1\r", None),
        (b"GET http://web/ HTTP/1.1\n", HTTP1),
        (b"CONNECT web:80 HTTP/1.1\r\n", HTTP1),
        (b"PURGE /x HTTP/1.1\r\n", HTTP1),
        (b"PURGE /x HTT", None),
        (b"PRI * HTTP/2.0\r\n", None),
        (&PREFACE[..23], None),
        (PREFACE, HTTP2),
        (b"PRI * HTTP/2.0\r\n\r\nXX", NOT_HTTP),
        (b"PRIVATE /x HTTP/1.1\r\n", HTTP1),
        // TLS ClientHello
        (b"\x16", NOT_HTTP),
        (b"\x16\x03\x01\x02\x00\x01", NOT_HTTP),
        // Redis, as arrays and inline
        (b"*1\r\n$4\r\nPING\r\n", NOT_HTTP),
        (b"PING\r\n", NOT_HTTP),
        (b"SET key value\r\n", NOT_HTTP),
        // MySQL: a client's handshake response
        (b"\xb8\x00\x00\x01\x85\xa6", NOT_HTTP),
        // PostgreSQL: SSLRequest
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", NOT_HTTP),
        // memcached, SMTP, SIP, RTSP
        (b"get key\r\n", NOT_HTTP),
        (b"EHLO example.com\r\n", NOT_HTTP),
        (b"OPTIONS sip:bob@example.com SIP/2.0\r\n", NOT_HTTP),
        (b"OPTIONS * RTSP/1.0\r\n", NOT_HTTP),
        // no HTTP/0.9, no other version, no empty parts
        (b"PURGE /x\r\n", NOT_HTTP),
        (b"PURGE /x HTTP/3.0\r\n", NOT_HTTP),
        (b"PURGE  HTTP/1.1\r\n", NOT_HTTP),
        (b" GET / HTTP/1.1\r\n", NOT_HTTP),
        (b"\r\nGET / HTTP/1.1\r\n", NOT_HTTP),
        (b"PURGE /\x00 HTTP/1.1\r\n", NOT_HTTP),
    ];
    for (bytes, expected) in table {
        assert_eq!(decide(bytes), *expected, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn more_bytes_never_change_a_decision() {
    for whole in [&b"GET / HTTP/1.0\r\n\r\n"[..], PREFACE, b"PURGE /x HTTP/1.1\r\nhost: a\r\n\r\n", b"SET key value\r\n"] {
        let decisions: Vec<_> = (0..=whole.len()).map(|n_bytes| decide(&whole[..n_bytes])).collect();
        let first = decisions.iter().position(Option::is_some).unwrap();
        assert!(decisions[first..].iter().all(|decision| *decision == decisions[first]), "{}", String::from_utf8_lossy(whole));
    }
}

#[test]
fn a_version_is_known_at_the_end_of_the_line() {
    let look = |bytes: &[u8]| Sniffer::new(Wanted::Version).look(bytes);
    let table: &[(&[u8], Option<Sniffed>)] = &[
        (b"GET /", None),
        (b"GET / HTTP/1.0", None),
        (b"GET / HTTP/1.0\r", None),
        (b"GET / HTTP/1.0\r\n", Some(Sniffed::Http1_0)),
        (b"GET / HTTP/1.0\n", Some(Sniffed::Http1_0)),
        (b"PURGE /x HTTP/1.0\r\n", Some(Sniffed::Http1_0)),
        (b"GET / HTTP/1.1\r\n", HTTP1),
        (PREFACE, HTTP2),
        (b"GET / HTTP/1.2\r\n", NOT_HTTP),
        (b"GET /\r\n", NOT_HTTP),
        (b"\x16", NOT_HTTP),
    ];
    for (bytes, expected) in table {
        assert_eq!(look(bytes), *expected, "{}", String::from_utf8_lossy(bytes));
        // Piece by piece as well, though no byte is looked at twice.
        let mut sniffer = Sniffer::new(Wanted::Version);
        let found = (0..=bytes.len()).find_map(|n_bytes| sniffer.look(&bytes[..n_bytes]));
        assert_eq!(found, *expected, "{} in pieces", String::from_utf8_lossy(bytes));
    }
}

#[tokio::test]
async fn bytes_are_read_again_after_sniffing_one_by_one() {
    let (mut client, ours) = duplex(1);
    let writer = tokio::spawn(async move {
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    });
    let mut replay = Replay::new(ours);
    assert_eq!(replay.sniff(Wanted::Protocol, SNIFF_BYTES_MAX).await.unwrap(), Sniffed::Http1);
    assert_eq!(replay.ahead(), b"GET /");
    let mut whole = Vec::new();
    replay.read_to_end(&mut whole).await.unwrap();
    writer.await.unwrap();
    assert_eq!(whole, b"GET / HTTP/1.0\r\n\r\n");
}

#[tokio::test]
async fn stream_that_ends_or_goes_on_undecided_is_not_http() {
    let (mut client, ours) = duplex(64);
    client.write_all(b"GE").await.unwrap();
    drop(client);
    assert_eq!(Replay::new(ours).sniff(Wanted::Protocol, SNIFF_BYTES_MAX).await.unwrap(), Sniffed::NotHttp);

    let (mut client, ours) = duplex(64);
    client.write_all(b"ABCDEFGHIJ").await.unwrap();
    assert_eq!(Replay::new(ours).sniff(Wanted::Protocol, 8).await.unwrap(), Sniffed::NotHttp);
    drop(client);
}
