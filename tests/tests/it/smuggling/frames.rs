//! Requests in HTTP/2 that HTTP/1.1 must not get. `^` is the path of a row, by which its requests are told from others.

use super::FrameFate::{self, Closed, Reads, Refused, Reset};

type Fields = &'static [(&'static str, &'static str)];

/// What a client sends, whose rule the outcome is, and what becomes of it here and in Envoy.
pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    pub head: Vec<(&'static str, &'static str)>,
    pub body: Option<&'static str>,
    pub trailers: Option<Fields>,
    pub ours: FrameFate,
    pub envoy: FrameFate,
}

impl Row {
    fn body(self, body: &'static str) -> Self {
        Self { body: Some(body), ..self }
    }

    fn trailers(self, trailers: Fields) -> Self {
        Self { trailers: Some(trailers), ..self }
    }

    /// Envoy 1.40 does this instead.
    fn envoy(self, fate: FrameFate) -> Self {
        Self { envoy: fate, ..self }
    }
}

const METHOD: (&str, &str) = (":method", "POST");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "^/");
const AUTHORITY: (&str, &str) = (":authority", "a");

/// A request with these fields behind what every request has.
fn with(name: &'static str, source: &'static str, fields: Fields, ours: FrameFate) -> Row {
    row(name, source, &[&[METHOD, SCHEME, PATH, AUTHORITY], fields].concat(), ours)
}

fn row(name: &'static str, source: &'static str, head: &[(&'static str, &'static str)], ours: FrameFate) -> Row {
    // Envoy closes the connection for nearly all.
    let envoy = if matches!(ours, Reads(_)) { ours } else { Closed };
    Row { name, source, head: head.to_vec(), body: None, trailers: None, ours, envoy }
}

pub fn rows() -> Vec<Row> {
    [hops(), texts(), pseudo_headers(), lengths(), trailers()].into_iter().flatten().collect()
}

fn hops() -> Vec<Row> {
    let hop = "RFC 9113 §8.2.2";
    vec![
        with("connection", hop, &[("connection", "close")], Reset),
        with("transfer-encoding", hop, &[("transfer-encoding", "chunked")], Reset).body("0\r\n\r\nGET ^/smuggled HTTP/1.1\r\n\r\n"),
        with("keep-alive", hop, &[("keep-alive", "1")], Reset),
        with("proxy-connection", hop, &[("proxy-connection", "close")], Reset),
        with("upgrade", hop, &[("upgrade", "websocket")], Reset),
        with("te other than trailers", hop, &[("te", "chunked")], Reset),
        with("te with trailers", hop, &[("te", "trailers")], Reads(&["POST / a"])),
    ]
}

fn texts() -> Vec<Row> {
    let (value, name) = ("RFC 9113 §8.2.1: no such value", "RFC 9113 §8.2.1: no such name");
    vec![
        with("CRLF in a value", value, &[("x-t", "1\r\nx-t2: 2")], Closed),
        with("LF in a value", value, &[("x-t", "1\nx-t2: 2")], Closed),
        with("CR in a value", value, &[("x-t", "1\r2")], Closed),
        with("NUL in a value", value, &[("x-t", "1\x002")], Closed),
        with("CRLF in a name", name, &[("x-t: 1\r\nx-t2", "2")], Closed),
        with("a colon in a name", name, &[("x:t", "1")], Closed),
        with("a space in a name", name, &[("x t", "1")], Closed),
        with("upper case in a name", name, &[("X-T", "1")], Closed),
        with("an empty name", name, &[("", "1")], Closed),
    ]
}

fn pseudo_headers() -> Vec<Row> {
    let (form, set) = ("RFC 9113 §8.3.1", "RFC 9113 §8.3");
    vec![
        row("CRLF in the path", form, &[METHOD, SCHEME, (":path", "^/ HTTP/1.1\r\nhost: b\r\n\r\n"), AUTHORITY], Reset),
        row("a space in the path", form, &[METHOD, SCHEME, (":path", "^/a HTTP/1.1"), AUTHORITY], Reset),
        row("a path without a slash", form, &[METHOD, SCHEME, (":path", "a^"), AUTHORITY], Reset),
        row("an absolute path", form, &[METHOD, SCHEME, (":path", "http://b^/"), AUTHORITY], Reset),
        row("an empty path", form, &[METHOD, SCHEME, (":path", ""), AUTHORITY], Reset),
        row("an escaped NUL in the path", "Envoy", &[METHOD, SCHEME, (":path", "^/a%00b"), AUTHORITY], Refused(400)).envoy(Refused(400)),
        row("a space in the method", form, &[(":method", "GET / HTTP/1.1"), SCHEME, PATH, AUTHORITY], Closed),
        row("CRLF in the method", form, &[(":method", "GET\r\n"), SCHEME, PATH, AUTHORITY], Closed),
        row("CRLF in the authority", form, &[METHOD, SCHEME, PATH, (":authority", "a\r\nx-t: 1")], Reset),
        row("user information in the authority", form, &[METHOD, SCHEME, PATH, (":authority", "u@a")], Refused(400)),
        row("a path in the authority", form, &[METHOD, SCHEME, PATH, (":authority", "a/b")], Reset),
        row("an empty authority", "RFC 9110 §7.2", &[METHOD, SCHEME, PATH, (":authority", "")], Reset),
        row("host and authority that differ", form, &[METHOD, SCHEME, PATH, AUTHORITY, ("host", "b")], Refused(400))
            .envoy(Reads(&["POST / a"])),
        row("host and authority alike", form, &[METHOD, SCHEME, PATH, AUTHORITY, ("host", "a")], Reads(&["POST / a"])),
        row("two hosts", form, &[METHOD, SCHEME, PATH, AUTHORITY, ("host", "a"), ("host", "a")], Refused(400)),
        row("host alone", form, &[METHOD, SCHEME, PATH, ("host", "a")], Reads(&["POST / a"])),
        row("neither host nor authority", "RFC 9110 §7.2", &[METHOD, SCHEME, PATH], Refused(400)),
        row("two authorities", set, &[METHOD, SCHEME, PATH, AUTHORITY, (":authority", "b")], Reset),
        row("two paths", set, &[METHOD, SCHEME, PATH, AUTHORITY, (":path", "^/b")], Reset),
        row("no path", form, &[METHOD, SCHEME, AUTHORITY], Reset),
        row("no method", form, &[SCHEME, PATH, AUTHORITY], Reset),
        row("no scheme", form, &[METHOD, PATH, AUTHORITY], Reset),
        row("a scheme that is none", form, &[METHOD, (":scheme", "ht tp"), PATH, AUTHORITY], Reset),
        row("a pseudo-header behind a field", set, &[METHOD, SCHEME, PATH, ("x-t", "1"), AUTHORITY], Reset),
        row("an unknown pseudo-header", set, &[METHOD, SCHEME, PATH, AUTHORITY, (":evil", "1")], Closed),
        row("the pseudo-header of an answer", set, &[METHOD, SCHEME, PATH, AUTHORITY, (":status", "200")], Reset),
        row("CONNECT with a path", "RFC 9113 §8.5", &[(":method", "CONNECT"), SCHEME, PATH, AUTHORITY], Reset),
        row("CONNECT", "RFC 9113 §8.5", &[(":method", "CONNECT"), AUTHORITY], Refused(405)).envoy(Refused(404)),
        row(
            "an extended CONNECT without leave",
            "RFC 8441 §3",
            &[(":method", "CONNECT"), SCHEME, PATH, AUTHORITY, (":protocol", "websocket")],
            Reset,
        ),
        row("a protocol without CONNECT", "RFC 8441 §4", &[METHOD, SCHEME, PATH, AUTHORITY, (":protocol", "websocket")], Reset),
    ]
}

fn lengths() -> Vec<Row> {
    vec![
        with("two different lengths", "RFC 9110 §8.6", &[("content-length", "2"), ("content-length", "3")], Reset).body("ab"),
        with("a length with a sign", "RFC 9110 §8.6", &[("content-length", "+2")], Reset).body("ab"),
        with("a body shorter than its length", "RFC 9113 §8.1.1", &[("content-length", "9")], Reset).body("ab").envoy(Reset),
        with("a body longer than its length", "RFC 9113 §8.1.1", &[("content-length", "1")], Reset).body("aGET /smuggled").envoy(Reset),
        with("a length and no body", "RFC 9113 §8.1.1", &[("content-length", "9")], Reset),
        with("a body as long as its length", "RFC 9113 §8.1.1", &[("content-length", "2")], Reads(&["POST / a [ab]"])).body("ab"),
        with("a body without a length", "RFC 9112 §6.1: chunked", &[], Reads(&["POST / a [ab]"])).body("ab"),
        with(
            "cookies in pieces",
            "RFC 9113 §8.2.3: one line",
            &[("cookie", "a=1"), ("cookie", "b=2")],
            Reads(&["POST / a cookie=a=1; b=2"]),
        ),
    ]
}

fn trailers() -> Vec<Row> {
    let with_trailers = |name, source, trailers, ours| {
        with(name, source, &[("trailer", "x-t, content-length, transfer-encoding, host")], ours).body("ab").trailers(trailers)
    };
    vec![
        with_trailers("a length in trailers", "RFC 9110 §6.5.1", &[("content-length", "9")], Reads(&["POST / a [ab]"])).envoy(Closed),
        with_trailers("a host in trailers", "RFC 9110 §6.5.1", &[("host", "b")], Reads(&["POST / a [ab]"])),
        with_trailers("CRLF in trailers", "RFC 9113 §8.2.1", &[("x-t", "1\r\nx-t2: 2")], Closed),
        with_trailers("a coding in trailers", "RFC 9113 §8.2.2", &[("transfer-encoding", "chunked")], Reset),
        with_trailers(
            "a pseudo-header in trailers",
            "RFC 9113 §8.1: malformed; it is dropped",
            &[(":path", "^/b")],
            Reads(&["POST / a [ab]"]),
        )
        .envoy(Closed),
    ]
}
