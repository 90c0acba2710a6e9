//! Requests in HTTP/1.1 that two readers could read differently. `^` is the path of a row, by which its requests are told from others.

use super::Fate::{self, Ends, Reads, Refused, Unasked};

/// What a client sends, whose rule the outcome is, what becomes of it here, and where Envoy does otherwise.
pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    pub bytes: String,
    pub ours: Fate,
    pub envoy: Option<Fate>,
}

fn row(name: &'static str, source: &'static str, bytes: impl Into<String>, ours: Fate) -> Row {
    Row { name, source, bytes: bytes.into(), ours, envoy: None }
}

fn get(name: &'static str, source: &'static str, fields: &str, ours: Fate) -> Row {
    row(name, source, format!("GET ^/ HTTP/1.1\r\n{fields}\r\n\r\n"), ours)
}

fn post(name: &'static str, source: &'static str, (fields, body): (&str, &str), ours: Fate) -> Row {
    row(name, source, format!("POST ^/ HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}"), ours)
}

impl Row {
    /// Envoy 1.40 does this instead.
    fn envoy(self, fate: Fate) -> Self {
        Self { envoy: Some(fate), ..self }
    }
}

pub fn rows() -> Vec<Row> {
    [lengths(), codings(), chunks(), heads(), hosts(), targets(), hops(), trailers()].into_iter().flatten().collect()
}

const BAD: Fate = Refused(400);
const PLAIN: Fate = Reads(&["GET / a"]);
const SMUGGLED: &str = "GET ^/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

fn lengths() -> Vec<Row> {
    let length = "RFC 9110 §8.6";
    vec![
        post("two different lengths", "RFC 9112 §6.3 rule 5", ("content-length: 2\r\ncontent-length: 3", "abc"), BAD),
        post(
            "two equal lengths",
            "RFC 9112 §6.3 rule 5: one, or refused",
            ("content-length: 2\r\ncontent-length: 2", "ab"),
            Reads(&["POST / a [ab]"]),
        )
        .envoy(BAD),
        post("a list of equal lengths", "RFC 9112 §6.3 rule 5: one, or refused", ("content-length: 2, 2", "ab"), BAD),
        post("a list of different lengths", "RFC 9112 §6.3 rule 5", ("content-length: 2, 3", "abc"), BAD),
        post("a length with a sign", length, ("content-length: +2", "ab"), BAD),
        post("a negative length", length, ("content-length: -2", "ab"), BAD),
        post("a hexadecimal length", length, ("content-length: 0x2", "ab"), BAD),
        post("a length with a space inside", length, ("content-length: 1 2", "ab"), BAD),
        post("an empty length", length, ("content-length:", ""), BAD),
        post("a length beyond 64 bits", length, ("content-length: 99999999999999999999", "ab"), BAD),
        post(
            "bytes beyond the length",
            "RFC 9112 §6.3: the next request",
            ("content-length: 2", &format!("ab{SMUGGLED}")),
            Reads(&["POST / a [ab]", "GET /smuggled a"]),
        ),
        row(
            "a GET with a body",
            "RFC 9110 §9.3.1: it is there",
            "GET ^/ HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab",
            Reads(&["GET / a [ab]"]),
        ),
    ]
}

fn codings() -> Vec<Row> {
    let last = "RFC 9112 §6.3 rule 4";
    vec![
        post(
            "a length and chunked",
            "RFC 9112 §6.3 rule 3: the coding, then the end; or refused",
            ("content-length: 6\r\ntransfer-encoding: chunked", &format!("0\r\n\r\n{SMUGGLED}")),
            Ends(&["POST / a"]),
        )
        .envoy(BAD),
        post(
            "chunked and a length",
            "RFC 9112 §6.3 rule 3: the coding, then the end; or refused",
            ("transfer-encoding: chunked\r\ncontent-length: 6", &format!("0\r\n\r\n{SMUGGLED}")),
            Ends(&["POST / a"]),
        )
        .envoy(BAD),
        post("identity", last, ("transfer-encoding: identity", ""), BAD).envoy(Refused(501)),
        post("chunked is not last", last, ("transfer-encoding: chunked, identity", "0\r\n\r\n"), BAD).envoy(Refused(501)),
        post("chunked in one of two lines", last, ("transfer-encoding: chunked\r\ntransfer-encoding: identity", "0\r\n\r\n"), BAD)
            .envoy(Refused(501)),
        post("a coding before chunked", "RFC 9112 §6.1: 501", ("transfer-encoding: gzip, chunked", "0\r\n\r\n"), Refused(501)),
        post("chunked twice", "RFC 9112 §7.1", ("transfer-encoding: chunked, chunked", "0\r\n\r\n"), Refused(501)),
        post(
            "chunked twice, in two lines",
            "RFC 9112 §7.1",
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
            Refused(501),
        ),
        post("what only looks like chunked", "RFC 9112 §7", ("transfer-encoding: xchunked", "0\r\n\r\n"), BAD).envoy(Refused(501)),
        post("chunked in quotes", "RFC 9112 §7", ("transfer-encoding: \"chunked\"", "0\r\n\r\n"), BAD).envoy(Refused(501)),
        post("chunked after a vertical tab", "RFC 9110 §5.5", ("transfer-encoding: \x0bchunked", "0\r\n\r\n"), BAD),
        post("an empty coding", "RFC 9112 §6.1", ("transfer-encoding:", ""), BAD).envoy(Refused(501)),
        post(
            "chunked in capitals",
            "RFC 9112 §7: names of codings have no case",
            ("transfer-encoding: CHUNKED", "2\r\nab\r\n0\r\n\r\n"),
            Reads(&["POST / a [ab]"]),
        ),
        row("chunked in HTTP/1.0", "RFC 9112 §6.1", "POST ^/ HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", BAD)
            .envoy(Refused(426)),
    ]
}

fn chunks() -> Vec<Row> {
    let chunked = |name, source, body: &str, ours| post(name, source, ("transfer-encoding: chunked", body), ours);
    vec![
        chunked("a chunk size that is no number", "RFC 9112 §7.1", "zz\r\nabc\r\n0\r\n\r\n", BAD),
        chunked("a chunk size with a sign", "RFC 9112 §7.1", "+3\r\nabc\r\n0\r\n\r\n", BAD),
        chunked("a negative chunk size", "RFC 9112 §7.1", "-1\r\nabc\r\n0\r\n\r\n", BAD),
        chunked("a chunk size with 0x", "RFC 9112 §7.1", "0x3\r\nabc\r\n0\r\n\r\n", BAD),
        chunked("no chunk size", "RFC 9112 §7.1", "\r\nabc\r\n0\r\n\r\n", BAD),
        chunked("a chunk size beyond 64 bits", "RFC 9112 §7.1", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n", BAD),
        chunked("a chunk size ended by LF", "RFC 9112 §7.1", "3\nabc\r\n0\r\n\r\n", BAD),
        chunked("a chunk size ended by CR", "RFC 9112 §7.1", "3\rxabc\r\n0\r\n\r\n", BAD),
        chunked("a chunk longer than its size", "RFC 9112 §7.1", "3\r\nabcd\r\n0\r\n\r\n", BAD).envoy(Reads(&["POST / a [abc]"])),
        chunked("a chunk ended by LF", "RFC 9112 §7.1", "3\r\nabc\n0\r\n\r\n", BAD).envoy(Reads(&["POST / a [abc]"])),
        chunked("a chunk extension", "RFC 9112 §7.1.1: ignored", "3;a=b;c=\"d\"\r\nabc\r\n0\r\n\r\n", Reads(&["POST / a [abc]"])),
        chunked("a chunk extension with LF", "RFC 9112 §7.1.1", "3;a=\n\r\nabc\r\n0\r\n\r\n", BAD),
        chunked("a last chunk of many zeros", "RFC 9112 §7.1", "3\r\nabc\r\n000\r\n\r\n", Reads(&["POST / a [abc]"])),
        chunked(
            "a chunk size with a space behind",
            "RFC 9112 §7.1.1: BWS before an extension",
            "3 ;a\r\nabc\r\n0\r\n\r\n",
            Reads(&["POST / a [abc]"]),
        ),
    ]
}

fn heads() -> Vec<Row> {
    vec![
        get("obs-fold", "RFC 9112 §5.2", "host: a\r\nx-t: 1\r\n 2", BAD).envoy(Reads(&["GET / a x-t=1 2"])),
        row("obs-fold before the first field", "RFC 9112 §2.2", "GET ^/ HTTP/1.1\r\n x: 1\r\nhost: a\r\n\r\n", BAD),
        get("bare CR in a value", "RFC 9112 §2.2", "host: a\r\nx-t: 1\r2", BAD).envoy(Reads(&["GET / a x-t=12"])),
        row("bare CR in the request line", "RFC 9112 §2.2", "GET ^/\r HTTP/1.1\r\nhost: a\r\n\r\n", BAD).envoy(PLAIN),
        get("NUL in a value", "RFC 9110 §5.5", "host: a\r\nx-t: 1\x002", BAD),
        get("a space before the colon", "RFC 9112 §5.1", "host: a\r\ncontent-length : 0", BAD),
        get("a tab in a name", "RFC 9110 §5.1", "host: a\r\nx\tt: 1", BAD),
        get("a name with a byte above ASCII", "RFC 9110 §5.1", "host: a\r\nx\u{e9}: 1", BAD),
        get("an empty name", "RFC 9110 §5.1", "host: a\r\n: 1", BAD),
        get("a field without a colon", "RFC 9112 §5", "host: a\r\nx-t", BAD),
        row("lines ended by LF", "RFC 9112 §2.2: may be recognised", "GET ^/ HTTP/1.1\nhost: a\nx-t: 1\n\n", Reads(&["GET / a x-t=1"])),
        get(
            "a value split by LF",
            "RFC 9112 §2.2: two fields, which all see",
            "host: a\r\nx-t: 1\nx-t2: 2",
            Reads(&["GET / a x-t=1 x-t2=2"]),
        ),
        row("an unknown minor version", "RFC 9112 §2.3", "GET ^/ HTTP/1.2\r\nhost: a\r\n\r\n", BAD).envoy(Refused(426)),
        row("HTTP/2 in a request line", "RFC 9112 §2.3", "GET ^/ HTTP/2.0\r\nhost: a\r\n\r\n", BAD).envoy(Refused(426)),
        row("no version", "RFC 9112 §3", "GET ^/\r\n\r\n", BAD).envoy(Refused(426)),
        row("two spaces in the request line", "RFC 9112 §3", "GET  ^/ HTTP/1.1\r\nhost: a\r\n\r\n", BAD).envoy(PLAIN),
        row("a method with a separator", "RFC 9110 §9.1", "GE(T ^/ HTTP/1.1\r\nhost: a\r\n\r\n", BAD),
        row("an empty line before a request", "RFC 9112 §2.2: ignored", "\r\nGET ^/ HTTP/1.1\r\nhost: a\r\n\r\n", PLAIN),
    ]
}

fn hosts() -> Vec<Row> {
    let one = "RFC 9112 §3.2";
    vec![
        get("no host", one, "x-t: 1", BAD),
        get("two hosts", one, "host: a\r\nhost: b", BAD).envoy(Reads(&["GET / a,b"])),
        get("two equal hosts", one, "host: a\r\nhost: a", BAD).envoy(Reads(&["GET / a,a"])),
        get("a list of hosts", one, "host: a, b", BAD),
        get("an empty host", "RFC 9110 §4.2.1", "host:", BAD).envoy(Reads(&["GET / "])),
        get("a host with user information", "RFC 9110 §4.2.4", "host: b@a", BAD).envoy(Reads(&["GET / b@a"])),
        get("a host with a path", "RFC 9110 §7.2", "host: a/b", BAD),
        get("a host with a space", "RFC 9110 §7.2", "host: a b", BAD),
        get("a host with a port that is none", "RFC 9110 §7.2", "host: a:b", BAD).envoy(Reads(&["GET / a:b"])),
        row(
            "an absolute target and another host",
            "RFC 9112 §3.2.2: the target's",
            "GET http://b^/ HTTP/1.1\r\nhost: a\r\n\r\n",
            Reads(&["GET / b"]),
        ),
        row("an absolute target and no host", one, "GET http://b^/ HTTP/1.1\r\n\r\n", BAD).envoy(Reads(&["GET / b"])),
    ]
}

fn targets() -> Vec<Row> {
    let target = "RFC 9112 §3.2";
    vec![
        row("a space in the target", target, "GET ^/ b HTTP/1.1\r\nhost: a\r\n\r\n", BAD),
        row("a target without a slash", target, "GET a^ HTTP/1.1\r\nhost: a\r\n\r\n", BAD),
        row("an asterisk with GET", "RFC 9112 §3.2.4", "GET * HTTP/1.1\r\nhost: a\r\n\r\n", BAD),
        row("NUL in the target", target, "GET ^/a\x00b HTTP/1.1\r\nhost: a\r\n\r\n", BAD),
        row("an escaped NUL in the target", "Envoy", "GET ^/a%00b HTTP/1.1\r\nhost: a\r\n\r\n", BAD),
        row("CONNECT inside a tunnel", "RFC 9110 §9.3.6", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", Refused(405)).envoy(Refused(404)),
    ]
}

fn hops() -> Vec<Row> {
    let hop = "RFC 9110 §7.6.1";
    vec![
        get("what connection names", hop, "host: a\r\nconnection: x-t\r\nx-t: 1", PLAIN),
        get("what connection must not name", hop, "host: a\r\nconnection: host, x-forwarded-proto", PLAIN).envoy(BAD),
        get(
            "an upgrade to h2c",
            "RFC 9113 §3.1: none",
            "host: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__",
            PLAIN,
        ),
        post(
            "an upgrade with a body",
            "RFC 9110 §7.8: refused by who does not upgrade",
            ("connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 2", "ab"),
            Reads(&["POST / a [ab]"]),
        )
        .envoy(Unasked),
        post(
            "an expectation that is none",
            "RFC 9110 §10.1.1: 417, or ignored",
            ("expect: 200-ok\r\ncontent-length: 2", "ab"),
            Reads(&["POST / a [ab]"]),
        ),
    ]
}

fn trailers() -> Vec<Row> {
    let trailer = |name, source, fields: &str, ours| {
        post(
            name,
            source,
            (
                "trailer: content-length, transfer-encoding, host, x-t\r\ntransfer-encoding: chunked",
                &format!("2\r\nab\r\n0\r\n{fields}\r\n\r\n"),
            ),
            ours,
        )
    };
    vec![
        trailer("a length in trailers", "RFC 9110 §6.5.1", "content-length: 9", Reads(&["POST / a [ab]"])),
        trailer("a coding in trailers", "RFC 9110 §6.5.1", "transfer-encoding: gzip", Reads(&["POST / a [ab]"])),
        trailer("a host in trailers", "RFC 9110 §6.5.1", "host: b", Reads(&["POST / a [ab]"])),
        trailer("obs-fold in trailers", "RFC 9112 §5.2", "x-t: 1\r\n 2", BAD).envoy(Reads(&["POST / a [ab]"])),
        trailer("a space before the colon in trailers", "RFC 9112 §5.1", "x-t : 1", BAD),
    ]
}
