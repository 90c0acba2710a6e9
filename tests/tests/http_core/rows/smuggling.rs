//! Requests that two readers could read differently, HTTP/1.1 to HTTP/1.1.

use crate::table::Want::{Ended, Has, Lacks, Nothing, Requests, Statuses};
use crate::table::{Row, row};
use crate::wire::{Do, send};

pub fn rows() -> Vec<Row> {
    [lengths(), codings(), chunks(), heads(), hosts(), targets(), hop_by_hop()].into_iter().flatten().collect()
}

fn post(name: &'static str, source: &'static str, fields: &str, body: &str) -> Row {
    row(name, source).request(format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}"))
}

fn get(name: &'static str, source: &'static str, head: &str) -> Row {
    row(name, source).request(format!("{head}\r\n\r\n"))
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

fn lengths() -> Vec<Row> {
    vec![
        post("two different lengths", "RFC 9112 §6.3 rule 5", "content-length: 2\r\ncontent-length: 3", "abc").refused(&[400]),
        post("two equal lengths become one", "RFC 9112 §6.3 rule 5", "content-length: 2\r\ncontent-length: 2", "ab")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("content-length: 2\r\n"), Lacks("content-length: 2\r\ncontent-length"), Requests(1)]),
        post("a list of equal lengths", "RFC 9112 §6.3 rule 5: may be refused", "content-length: 2, 2", "ab").refused(&[400]),
        post("a list of different lengths", "RFC 9112 §6.3 rule 5", "content-length: 2, 3", "ab").refused(&[400]),
        post("a length with a sign", "RFC 9110 §8.6", "content-length: +2", "ab").refused(&[400]),
        post("a negative length", "RFC 9110 §8.6", "content-length: -2", "ab").refused(&[400]),
        post("a hexadecimal length", "RFC 9110 §8.6", "content-length: 0x2", "ab").refused(&[400]),
        post("a length with a space inside", "RFC 9110 §8.6", "content-length: 1 2", "ab").refused(&[400]),
        post("an empty length", "RFC 9110 §8.6", "content-length:", "ab").refused(&[400]),
        post("a length beyond 64 bits", "RFC 9110 §8.6", "content-length: 99999999999999999999", "ab").refused(&[400]),
        post("bytes beyond the length are the next request", "RFC 9112 §6.3", "content-length: 2", &format!("ab{SMUGGLED}"))
            .client_sees([Statuses(&[200, 200])])
            .upstream_sees([Requests(2)]),
    ]
}

fn codings() -> Vec<Row> {
    let after_te = format!("0\r\n\r\n{SMUGGLED}");
    vec![
        post(
            "a length and chunked: one reading, and close",
            "RFC 9112 §6.3 rule 3",
            "content-length: 6\r\ntransfer-encoding: chunked",
            &after_te,
        )
        .client_sees([Ended])
        .upstream_sees([Lacks("content-length"), Lacks("smuggled")]),
        post(
            "chunked and a length: one reading, and close",
            "RFC 9112 §6.3 rule 3",
            "transfer-encoding: chunked\r\ncontent-length: 6",
            &after_te,
        )
        .client_sees([Ended])
        .upstream_sees([Lacks("content-length"), Lacks("smuggled")]),
        post("transfer-encoding: identity", "RFC 9112 §6.3 rule 4", "transfer-encoding: identity", "").refused(&[400]),
        post("chunked is not last", "RFC 9112 §6.3 rule 4", "transfer-encoding: chunked, identity", "").refused(&[400]),
        post("a coding before chunked", "RFC 9112 §6.1: 501; Envoy", "transfer-encoding: gzip, chunked", "0\r\n\r\n").refused(&[501]),
        post("chunked twice in one line", "RFC 9112 §6.1, §7.1", "transfer-encoding: chunked, chunked", "0\r\n\r\n").refused(&[501]),
        post("chunked twice in two lines", "RFC 9112 §6.1, §7.1", "transfer-encoding: chunked\r\ntransfer-encoding: chunked", "0\r\n\r\n")
            .refused(&[501]),
        post("a coding that only looks like chunked", "RFC 9112 §7", "transfer-encoding: xchunked", "0\r\n\r\n").refused(&[400]),
        post("chunked in quotes", "RFC 9112 §7", "transfer-encoding: \"chunked\"", "0\r\n\r\n").refused(&[400]),
        post("chunked after a vertical tab", "RFC 9110 §5.5", "transfer-encoding: \x0bchunked", "0\r\n\r\n").refused(&[400]),
        row("transfer-encoding in HTTP/1.0", "RFC 9112 §6.1")
            .request("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
            .refused(&[400]),
    ]
}

fn chunks() -> Vec<Row> {
    let chunked = |name, source, body| {
        post(name, source, "transfer-encoding: chunked", body)
            .client_sees([Statuses(&[400]), Ended])
            .upstream_sees([Lacks("\r\n0\r\n"), Lacks("smuggled")])
    };
    vec![
        chunked("a chunk size that is no number", "RFC 9112 §7.1", "zz\r\nabc\r\n0\r\n\r\n"),
        chunked("a chunk size with a sign", "RFC 9112 §7.1", "+3\r\nabc\r\n0\r\n\r\n"),
        chunked("a negative chunk size", "RFC 9112 §7.1", "-1\r\nabc\r\n0\r\n\r\n"),
        chunked("a chunk size with 0x", "RFC 9112 §7.1", "0x3\r\nabc\r\n0\r\n\r\n"),
        chunked("a chunk size beyond 64 bits", "RFC 9112 §7.1", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        chunked("a chunk size ended by LF", "RFC 9112 §7.1", "3\nabc\r\n0\r\n\r\n"),
        chunked("a chunk size ended by CR alone", "RFC 9112 §7.1", "3\rxabc\r\n0\r\n\r\n"),
        chunked("a chunk longer than its size", "RFC 9112 §7.1", "3\r\nabcd\r\n0\r\n\r\n"),
        chunked("a chunk ended by LF", "RFC 9112 §7.1", "3\r\nabc\n0\r\n\r\n"),
        chunked("a chunk extension with LF", "RFC 9112 §7.1.1", "3;a=\n\r\nabc\r\n0\r\n\r\n"),
    ]
}

fn heads() -> Vec<Row> {
    vec![
        get("obs-fold", "RFC 9112 §5.2", "GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\n 2").refused(&[400]),
        get("obs-fold before the first field", "RFC 9112 §2.2", "GET / HTTP/1.1\r\n x: 1\r\nhost: a").refused(&[400]),
        get("bare CR in a value", "RFC 9112 §2.2", "GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r2").refused(&[400]),
        get("bare CR in the request line", "RFC 9112 §2.2", "GET /\r HTTP/1.1\r\nhost: a").refused(&[400]),
        get("NUL in a value", "RFC 9110 §5.5", "GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\x002").refused(&[400]),
        get("space before the colon", "RFC 9112 §5.1", "GET / HTTP/1.1\r\nhost: a\r\ncontent-length : 0").refused(&[400]),
        get("a tab in a name", "RFC 9110 §5.1", "GET / HTTP/1.1\r\nhost: a\r\nx\ta: 1").refused(&[400]),
        get("a name with a byte above ASCII", "RFC 9110 §5.1", "GET / HTTP/1.1\r\nhost: a\r\nx\u{e9}: 1").refused(&[400]),
        get("an empty name", "RFC 9110 §5.1", "GET / HTTP/1.1\r\nhost: a\r\n: 1").refused(&[400]),
        get("a field without a colon", "RFC 9112 §5", "GET / HTTP/1.1\r\nhost: a\r\nx-a").refused(&[400]),
        row("a head with bare LF is re-written with CRLF or refused", "RFC 9112 §2.2: may be recognised")
            .request("GET / HTTP/1.1\nhost: a\nx-a: 1\n\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("get / http/1.1\r\nhost: a\r\nx-a: 1\r\n\r\n"), Requests(1)]),
        row("a value split by bare LF becomes two fields, each seen", "RFC 9112 §2.2")
            .request("GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\nx-b: 2\r\n\r\n")
            .upstream_sees([Has("x-a: 1\r\nx-b: 2\r\n"), Requests(1)]),
        get(
            "two requests split by bare LF are not one",
            "RFC 9112 §2.2",
            "GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\n\nGET /b HTTP/1.1\r\nhost: a",
        )
        .upstream_sees([Requests(2)]),
        get("an unknown version", "RFC 9112 §2.3: 505 or 400", "GET / HTTP/1.2\r\nhost: a").refused(&[400]),
        get("HTTP/2 in an HTTP/1 request line", "RFC 9112 §2.3", "GET / HTTP/2.0\r\nhost: a").refused(&[400]),
        get("no version", "RFC 9112 §3: no HTTP/0.9", "GET /").refused(&[400]),
        get("two spaces in the request line", "RFC 9112 §3", "GET  / HTTP/1.1\r\nhost: a").refused(&[400]),
        get("a method with a separator", "RFC 9110 §9.1", "GE(T / HTTP/1.1\r\nhost: a").refused(&[400]),
        row("an empty line before a request is skipped", "RFC 9112 §2.2")
            .request("\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Requests(1)]),
        row("half a head is no request", "RFC 9112 §8")
            .client(vec![send("GET / HTTP/1.1\r\nhost: a\r\n"), Do::Fin, Do::Quiet])
            .client_sees([Ended])
            .upstream_sees([Nothing]),
    ]
}

fn hosts() -> Vec<Row> {
    vec![
        get("no host", "RFC 9112 §3.2", "GET / HTTP/1.1\r\nx-a: 1").refused(&[400]),
        get("two hosts", "RFC 9112 §3.2", "GET / HTTP/1.1\r\nhost: a\r\nhost: b").refused(&[400]),
        get("two equal hosts", "RFC 9112 §3.2", "GET / HTTP/1.1\r\nhost: a\r\nhost: a").refused(&[400]),
        get("a list of hosts", "RFC 9112 §3.2", "GET / HTTP/1.1\r\nhost: a, b").refused(&[400]),
        get("an empty host", "RFC 9110 §4.2.1", "GET / HTTP/1.1\r\nhost:").refused(&[400]),
        get("a host with user information", "RFC 9110 §4.2.4", "GET / HTTP/1.1\r\nhost: b@a").refused(&[400]),
        get("a host with a path", "RFC 9110 §7.2", "GET / HTTP/1.1\r\nhost: a/b").refused(&[400]),
        get("a host that differs from the target is ignored", "RFC 9112 §3.2.2", "GET http://b/ HTTP/1.1\r\nhost: a")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("host: b\r\n"), Lacks("host: a")]),
    ]
}

fn targets() -> Vec<Row> {
    vec![
        get("a space in the target", "RFC 9112 §3.2", "GET /a b HTTP/1.1\r\nhost: a").refused(&[400]),
        get("a target without a slash", "RFC 9112 §3.2", "GET a HTTP/1.1\r\nhost: a").refused(&[400]),
        get("an asterisk with GET", "RFC 9112 §3.2.4", "GET * HTTP/1.1\r\nhost: a").refused(&[400]),
        get("dots that would leave the root", "RFC 3986 §5.2.4", "GET /../a HTTP/1.1\r\nhost: a")
            .upstream_sees([Has("get /a http/1.1\r\n")]),
        get("escaped dots that would leave the root", "RFC 3986 §6.2.2", "GET /%2e%2e/a HTTP/1.1\r\nhost: a")
            .upstream_sees([Has("get /a http/1.1\r\n")]),
        get("dots with parameters", "Envoy 1.40", "GET /a/..;x/b HTTP/1.1\r\nhost: a").upstream_sees([Has("get /b http/1.1\r\n")]),
        get("an escaped NUL in the target", "Envoy: 400", "GET /a%00b HTTP/1.1\r\nhost: a").refused(&[400]),
        get("NUL in the target", "RFC 9112 §3.2", "GET /a\x00b HTTP/1.1\r\nhost: a").refused(&[400]),
    ]
}

fn hop_by_hop() -> Vec<Row> {
    vec![
        get("fields that connection names are removed", "RFC 9110 §7.6.1", "GET / HTTP/1.1\r\nhost: a\r\nconnection: x-secret\r\nx-secret: 1")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Lacks("x-secret"), Lacks("connection")]),
        get(
            "fields that connection must not name stay",
            "RFC 9110 §7.6.1: not end-to-end fields",
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, host, x-forwarded-for, authorization\r\nx-forwarded-for: 10.0.0.1\r\nauthorization: x",
        )
        .upstream_sees([Has("host: a"), Has("x-forwarded-for: 10.0.0.1"), Has("authorization: x")]),
        get("proxy-connection and keep-alive are removed", "RFC 9110 §7.6.1", "GET / HTTP/1.1\r\nhost: a\r\nproxy-connection: keep-alive\r\nkeep-alive: 5")
            .upstream_sees([Lacks("proxy-connection"), Lacks("keep-alive")]),
        get("te keeps only trailers", "RFC 9110 §10.1.4", "GET / HTTP/1.1\r\nhost: a\r\nte: gzip, trailers").upstream_sees([Has("te: trailers\r\n"), Lacks("gzip")]),
        get("te without trailers is removed", "RFC 9110 §10.1.4", "GET / HTTP/1.1\r\nhost: a\r\nte: gzip").upstream_sees([Lacks("te: ")]),
    ]
}
