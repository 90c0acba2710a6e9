//! Answers of applications that two readers could read differently, to a request in HTTP/1.1; and those in HTTP/2 that it must not get.

/// What an application says, whose rule the outcome is, what the client sees, and where it sees something else behind Envoy: statuses with
/// bodies, `cut` where an answer does not come to its end. The request behind it is the last.
pub struct Row {
    pub name: &'static str,
    pub source: &'static str,
    pub method: &'static str,
    pub bytes: String,
    /// The application ends its connection then.
    pub ends: bool,
    pub ours: &'static [&'static str],
    pub envoy: &'static [&'static str],
}

impl Row {
    fn asked_by_head(self) -> Self {
        Self { method: "HEAD", ..self }
    }

    fn ending(self) -> Self {
        Self { ends: true, ..self }
    }

    /// Behind Envoy 1.40 the client sees this instead.
    fn envoy(self, seen: &'static [&'static str]) -> Self {
        Self { envoy: seen, ..self }
    }
}

const GOOD: &[&str] = &["200 [ok]", "200 [ok]"];
const BAD: &[&str] = &["502", "200 [ok]"];
/// Of an answer that is cut at once its client may see nothing.
const CUT: &[&str] = &["cut"];

fn says(name: &'static str, source: &'static str, bytes: impl Into<String>, ours: &'static [&'static str]) -> Row {
    Row { name, source, method: "GET", bytes: bytes.into(), ends: false, ours, envoy: ours }
}

fn ok(name: &'static str, source: &'static str, fields: &str, ours: &'static [&'static str]) -> Row {
    says(name, source, format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"), ours)
}

pub fn rows() -> Vec<Row> {
    [framing(), chunks(), heads(), bodyless(), more()].into_iter().flatten().collect()
}

fn framing() -> Vec<Row> {
    let chunked =
        |name, source, fields: &str, ours| says(name, source, format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n2\r\nok\r\n0\r\n\r\n"), ours);
    vec![
        chunked("a length and chunked", "RFC 9112 §6.3 rule 3", "content-length: 3\r\ntransfer-encoding: chunked", BAD),
        ok("two different lengths", "RFC 9112 §6.3 rule 5", "content-length: 3\r\ncontent-length: 2", BAD),
        ok("two equal lengths", "RFC 9112 §6.3 rule 5: one, or refused", "content-length: 2\r\ncontent-length: 2", GOOD).envoy(BAD),
        ok("a list of equal lengths", "RFC 9112 §6.3 rule 5: one, or refused", "content-length: 2, 2", BAD),
        ok("a length with a sign", "RFC 9110 §8.6", "content-length: +2", BAD),
        ok("an unknown coding", "RFC 9112 §6.1", "transfer-encoding: gzip", BAD).ending(),
        chunked("chunked is not last", "RFC 9112 §6.3 rule 4: until the end; or refused", "transfer-encoding: chunked, identity", BAD)
            .ending(),
        chunked("chunked twice", "RFC 9112 §7.1", "transfer-encoding: chunked, chunked", BAD).ending(),
        ok("a body until the end", "RFC 9112 §6.3 rule 8", "x-t: 1", &["200 [ok] x-t=1", "200 [ok]"]).ending(),
        ok("a body cut short", "RFC 9112 §8", "content-length: 9", CUT).ending(),
    ]
}

fn chunks() -> Vec<Row> {
    let chunked =
        |name, source, body: &str, ours| says(name, source, format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}"), ours);
    vec![
        chunked("a chunk size that is no number", "RFC 9112 §7.1", "2\r\nok\r\nzz\r\n", CUT),
        chunked("a chunk longer than its size", "RFC 9112 §7.1", "1\r\nok\r\n0\r\n\r\n", CUT).envoy(&["200 [o]", "200 [ok]"]),
        chunked("a chunk size with a sign", "RFC 9112 §7.1", "+2\r\nok\r\n0\r\n\r\n", CUT),
        chunked("no last chunk", "RFC 9112 §8", "2\r\nok\r\n", CUT).ending(),
        chunked("a length in trailers", "RFC 9110 §6.5.1", "2\r\nok\r\n0\r\ncontent-length: 9\r\n\r\n", GOOD),
        chunked("a chunk extension", "RFC 9112 §7.1.1", "2;a=b\r\nok\r\n0\r\n\r\n", GOOD),
    ]
}

fn heads() -> Vec<Row> {
    vec![
        ok("obs-fold", "RFC 9112 §5.2: replaced, or refused", "x-t: 1\r\n 2\r\ncontent-length: 2", BAD)
            .envoy(&["200 [ok] x-t=1 2", "200 [ok]"]),
        ok("bare CR in a value", "RFC 9112 §2.2", "x-t: 1\r2\r\ncontent-length: 2", BAD).envoy(&["200 [ok] x-t=12", "200 [ok]"]),
        ok("NUL in a value", "RFC 9110 §5.5", "x-t: 1\x002\r\ncontent-length: 2", BAD),
        ok("a space before the colon", "RFC 9112 §5.1: removed, or refused", "x-t : 1\r\ncontent-length: 2", BAD),
        ok("a field without a colon", "RFC 9112 §5", "x-t\r\ncontent-length: 2", BAD),
        ok(
            "a value split by LF",
            "RFC 9112 §2.2: two fields, which all see",
            "x-t: 1\nx-t2: 2\r\ncontent-length: 2",
            &["200 [ok] x-t=1 x-t2=2", "200 [ok]"],
        ),
        ok("what connection names", "RFC 9110 §7.6.1", "connection: x-t\r\nx-t: 1\r\ncontent-length: 2", GOOD)
            .envoy(&["200 [ok] x-t=1", "200 [ok]"]),
        says("no status line", "RFC 9112 §4", "hello\r\n\r\n", BAD).ending(),
        says("a status of two digits", "RFC 9112 §4", "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok", BAD),
        says("a status of four digits", "RFC 9112 §4", "HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nok", BAD).envoy(&["2000", "200 [ok]"]),
        says("another version", "RFC 9112 §2.3", "HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok", BAD).envoy(GOOD),
    ]
}

fn bodyless() -> Vec<Row> {
    vec![
        says(
            "204 with a length",
            "RFC 9110 §15.3.5, RFC 9112 §6.3 rule 1",
            "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n",
            &["204", "200 [ok]"],
        )
        .envoy(BAD),
        says("204 with a body", "RFC 9112 §6.3 rule 1", "HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok", &["204", "200 [ok]"])
            .envoy(BAD),
        says(
            "204 in chunks",
            "RFC 9112 §6.1, §6.3 rule 1",
            "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            &["204", "200 [ok]"],
        )
        .envoy(BAD),
        says("304 with a length", "RFC 9110 §8.6", "HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n", &["304", "200 [ok]"]),
        says("304 with a body", "RFC 9112 §6.3 rule 1", "HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\nok", &["304", "200 [ok]"]),
        ok("HEAD with a body", "RFC 9112 §6.3 rule 1", "content-length: 2", &["200", "200 [ok]"]).asked_by_head(),
    ]
}

fn more() -> Vec<Row> {
    let good = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let evil = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    vec![
        says("bytes behind an answer", "RFC 9112 §9.2: no answer", format!("{good}{evil}"), GOOD),
        says("100 before an answer", "RFC 9110 §15.2", format!("HTTP/1.1 100 Continue\r\n\r\n{good}"), GOOD)
            .envoy(&["100", "200 [ok]", "200 [ok]"]),
        says("103 with a length", "RFC 9110 §15.2", format!("HTTP/1.1 103 Early Hints\r\ncontent-length: 2\r\n\r\n{good}"), GOOD)
            .envoy(BAD),
        says(
            "101 that nobody asked for",
            "RFC 9110 §15.2.2",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            BAD,
        )
        .envoy(&["101", "200 [ok]"]),
    ]
}

/// An answer in HTTP/2: its fields, its body if there is one, its trailers; and what the client sees here and behind Envoy.
pub struct Frames {
    pub name: &'static str,
    pub source: &'static str,
    pub head: &'static [(&'static str, &'static str)],
    pub body: Option<&'static str>,
    pub trailers: Option<&'static [(&'static str, &'static str)]>,
    pub ours: &'static str,
    pub envoy: &'static str,
}

pub fn frames() -> Vec<Frames> {
    let says = |name, source, head, ours| Frames { name, source, head, body: None, trailers: None, ours, envoy: ours };
    let with = |name, source, head, body, ours| Frames { body: Some(body), ..says(name, source, head, ours) };
    let ends = |name, source, trailers, ours| Frames { trailers: Some(trailers), ..with(name, source, &[(":status", "200")], "ok", ours) };
    let hop = "RFC 9113 §8.2.2";
    vec![
        with("a good answer", "RFC 9113 §8.3.2", &[(":status", "200"), ("content-length", "2")], "ok", "200 [ok]"),
        says("connection", hop, &[(":status", "200"), ("connection", "close")], "502"),
        says("transfer-encoding", hop, &[(":status", "200"), ("transfer-encoding", "chunked")], "502"),
        says("CRLF in a value", "RFC 9113 §8.2.1", &[(":status", "200"), ("x-t", "1\r\nx-t2: 2")], "502"),
        says("upper case in a name", "RFC 9113 §8.2.1", &[(":status", "200"), ("X-T", "1")], "502"),
        says("no status", "RFC 9113 §8.3.2", &[("x-t", "1")], "502"),
        says("a status of two digits", "RFC 9113 §8.3.2", &[(":status", "20")], "502"),
        Frames {
            envoy: "502",
            ..says("a pseudo-header of requests", "RFC 9113 §8.3: malformed; it is dropped", &[(":status", "200"), (":path", "/")], "200")
        },
        says("a pseudo-header behind a field", "RFC 9113 §8.3", &[("x-t", "1"), (":status", "200")], "502"),
        says("101", "RFC 9113 §8.6", &[(":status", "101")], "502"),
        says("two different lengths", "RFC 9110 §8.6", &[(":status", "200"), ("content-length", "1"), ("content-length", "2")], "502"),
        says("a length and no body", "RFC 9113 §8.1.1", &[(":status", "200"), ("content-length", "5")], "502"),
        with("a body longer than its length", "RFC 9113 §8.1.1", &[(":status", "200"), ("content-length", "1")], "ok", "cut"),
        with("a body shorter than its length", "RFC 9113 §8.1.1", &[(":status", "200"), ("content-length", "9")], "ok", "cut"),
        ends("CRLF in trailers", "RFC 9113 §8.2.1", &[("x-t", "1\r\nx-t2: 2")], "cut"),
        Frames { envoy: "cut", ..ends("a length in trailers", "RFC 9110 §6.5.1: dropped", &[("content-length", "9")], "200 [ok]") },
    ]
}
