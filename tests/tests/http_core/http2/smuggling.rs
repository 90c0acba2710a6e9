//! Requests that HTTP/2 can express and HTTP/1.1 must not get, and the other way round.

use waypoint::http::Protocol;

use super::{core, h2_upstream, one_field, read, response};
use crate::frames::{Answer, answer, client, data, headers, preface};
use crate::table::OK;
use crate::wire::{Do, act, send};

const PROTOCOL_ERROR: u32 = 1;

type Fields = &'static [(&'static str, &'static str)];

const METHOD: (&str, &str) = (":method", "POST");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/");
const AUTHORITY: (&str, &str) = (":authority", "a");

/// What is to become of a request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// The stream is reset, nothing reaches the upstream.
    Reset,
    /// It is answered 400, nothing reaches the upstream.
    BadRequest,
    /// The connection is closed for it (RFC 9113 §5.4.1 allows that), nothing reaches the upstream.
    GoAway,
    /// It is cut on both sides: the upstream never sees a complete request.
    Cut,
}

/// name, source, fields, body, fate
type Line = (&'static str, &'static str, Fields, Option<&'static str>, Fate);

const REFUSED: &[Line] = &[
    ("connection", "RFC 9113 §8.2.2", &[METHOD, SCHEME, PATH, AUTHORITY, ("connection", "close")], None, Fate::Reset),
    (
        "transfer-encoding",
        "RFC 9113 §8.2.2",
        &[METHOD, SCHEME, PATH, AUTHORITY, ("transfer-encoding", "chunked")],
        Some("0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"),
        Fate::Reset,
    ),
    ("keep-alive", "RFC 9113 §8.2.2", &[METHOD, SCHEME, PATH, AUTHORITY, ("keep-alive", "1")], None, Fate::Reset),
    ("proxy-connection", "RFC 9113 §8.2.2", &[METHOD, SCHEME, PATH, AUTHORITY, ("proxy-connection", "close")], None, Fate::Reset),
    ("upgrade", "RFC 9113 §8.2.2", &[METHOD, SCHEME, PATH, AUTHORITY, ("upgrade", "websocket")], None, Fate::Reset),
    ("te other than trailers", "RFC 9113 §8.2.2", &[METHOD, SCHEME, PATH, AUTHORITY, ("te", "chunked")], None, Fate::Reset),
    ("CRLF in a value", "RFC 9113 §8.2.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("x-a", "1\r\nx-b: 2")], None, Fate::GoAway),
    ("LF in a value", "RFC 9113 §8.2.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("x-a", "1\nx-b: 2")], None, Fate::GoAway),
    ("NUL in a value", "RFC 9113 §8.2.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("x-a", "1\x002")], None, Fate::GoAway),
    ("CRLF in a name", "RFC 9113 §8.2.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("x-a: 1\r\nx-b", "2")], None, Fate::GoAway),
    ("a colon in a name", "RFC 9113 §8.2.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("x:a", "1")], None, Fate::GoAway),
    ("a space in a name", "RFC 9113 §8.2.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("x a", "1")], None, Fate::GoAway),
    ("upper case in a name", "RFC 9113 §8.2.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("X-A", "1")], None, Fate::GoAway),
    ("CRLF in the path", "RFC 9113 §8.3.1", &[METHOD, SCHEME, (":path", "/ HTTP/1.1\r\nhost: b\r\n\r\n"), AUTHORITY], None, Fate::Reset),
    ("a space in the path", "RFC 9113 §8.3.1", &[METHOD, SCHEME, (":path", "/a HTTP/1.1"), AUTHORITY], None, Fate::Reset),
    ("a space in the method", "RFC 9113 §8.3.1", &[(":method", "GET / HTTP/1.1"), SCHEME, PATH, AUTHORITY], None, Fate::GoAway),
    ("CRLF in the method", "RFC 9113 §8.3.1", &[(":method", "GET\r\n"), SCHEME, PATH, AUTHORITY], None, Fate::GoAway),
    ("CRLF in the authority", "RFC 9113 §8.3.1", &[METHOD, SCHEME, PATH, (":authority", "a\r\nx: 1")], None, Fate::Reset),
    ("user information in the authority", "RFC 9113 §8.3.1", &[METHOD, SCHEME, PATH, (":authority", "u@a")], None, Fate::BadRequest),
    ("host that differs from the authority", "RFC 9113 §8.3.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("host", "b")], None, Fate::BadRequest),
    ("two hosts", "RFC 9110 §7.2", &[METHOD, SCHEME, PATH, ("host", "a"), ("host", "b")], None, Fate::BadRequest),
    ("neither host nor authority", "RFC 9110 §7.2", &[METHOD, SCHEME, PATH], None, Fate::BadRequest),
    ("two authorities", "RFC 9113 §8.3", &[METHOD, SCHEME, PATH, AUTHORITY, (":authority", "b")], None, Fate::Reset),
    ("two paths", "RFC 9113 §8.3", &[METHOD, SCHEME, PATH, AUTHORITY, (":path", "/b")], None, Fate::Reset),
    ("no path", "RFC 9113 §8.3.1", &[METHOD, SCHEME, AUTHORITY], None, Fate::Reset),
    ("no method", "RFC 9113 §8.3.1", &[SCHEME, PATH, AUTHORITY], None, Fate::Reset),
    ("no scheme", "RFC 9113 §8.3.1", &[METHOD, PATH, AUTHORITY], None, Fate::Reset),
    ("a pseudo-header after a field", "RFC 9113 §8.3", &[METHOD, SCHEME, PATH, ("x-a", "1"), AUTHORITY], None, Fate::Reset),
    ("an unknown pseudo-header", "RFC 9113 §8.3", &[METHOD, SCHEME, PATH, AUTHORITY, (":evil", "1")], None, Fate::GoAway),
    ("a response's pseudo-header", "RFC 9113 §8.3", &[METHOD, SCHEME, PATH, AUTHORITY, (":status", "200")], None, Fate::Reset),
    (
        "two different lengths",
        "RFC 9110 §8.6",
        &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "2"), ("content-length", "3")],
        Some("ab"),
        Fate::Reset,
    ),
    ("a length with a sign", "RFC 9110 §8.6", &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "+2")], Some("ab"), Fate::Reset),
    (
        "a body shorter than its length",
        "RFC 9113 §8.1.1",
        &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "9")],
        Some("ab"),
        Fate::Cut,
    ),
    (
        "a body longer than its length",
        "RFC 9113 §8.1.1",
        &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "1")],
        Some("GET /smuggled"),
        Fate::Cut,
    ),
    ("no body but a length", "RFC 9113 §8.1.1", &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "9")], None, Fate::Cut),
    ("an escaped NUL in the path", "Envoy: 400", &[METHOD, SCHEME, (":path", "/a%00b"), AUTHORITY], None, Fate::BadRequest),
];

#[tokio::test(start_paused = true)]
async fn http2_requests_that_http1_must_not_see_are_refused() {
    let mut wrong = Vec::new();
    for (name, source, list, body, fate) in REFUSED {
        let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
        let upstream = tokio::spawn(async move {
            match upstreams.recv().await {
                Some(io) => act(io, vec![Do::Quiet]).await,
                None => crate::wire::Seen::default(),
            }
        });
        let seen = act(io, client(list, *body)).await;
        let upstream = upstream.await.unwrap().text();
        let got = answer(&seen);
        let is_right = match fate {
            Fate::Reset => got.reset == Some(PROTOCOL_ERROR) && got.status.is_none() && upstream.is_empty(),
            Fate::BadRequest => got.status == Some(400) && upstream.is_empty(),
            Fate::GoAway => got.go_away == Some(PROTOCOL_ERROR) && got.status.is_none() && upstream.is_empty(),
            Fate::Cut => {
                got.reset == Some(PROTOCOL_ERROR) && got.status != Some(200) && !upstream.contains("smuggled") && !upstream.ends_with("ab")
            }
        };
        if !is_right {
            wrong.push(format!("{name} ({source}): wanted {fate:?}, got {got:?}, upstream saw {upstream:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// name, source, fields, body, what the HTTP/1.1 upstream sees
const PASSED: &[(&str, &str, Fields, Option<&str>, &str)] = &[
    (
        "authority becomes host",
        "RFC 9113 §8.3.1",
        &[(":method", "GET"), SCHEME, PATH, AUTHORITY],
        None,
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    (
        "equal host and authority become one",
        "RFC 9113 §8.3.1",
        &[(":method", "GET"), SCHEME, PATH, AUTHORITY, ("host", "a")],
        None,
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    (
        "host alone is enough",
        "RFC 9113 §8.3.1",
        &[(":method", "GET"), SCHEME, PATH, ("host", "a")],
        None,
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    (
        "cookie crumbs become one line",
        "RFC 9113 §8.2.3",
        &[(":method", "GET"), SCHEME, PATH, AUTHORITY, ("cookie", "a=1"), ("cookie", "b=2")],
        None,
        "GET / HTTP/1.1\r\ncookie: a=1; b=2\r\nhost: a\r\n\r\n",
    ),
    (
        "a length is kept",
        "RFC 9112 §6.2",
        &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "2")],
        Some("ab"),
        "POST / HTTP/1.1\r\ncontent-length: 2\r\nhost: a\r\n\r\nab",
    ),
    (
        "no length becomes chunked",
        "RFC 9112 §6.1",
        &[METHOD, SCHEME, PATH, AUTHORITY],
        Some("ab"),
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    ),
    (
        "a GET with a body keeps it",
        "RFC 9110 §9.3.1",
        &[(":method", "GET"), SCHEME, PATH, AUTHORITY],
        Some("ab"),
        "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    ),
    (
        "a POST without a body says so",
        "RFC 9110 §8.6",
        &[METHOD, SCHEME, PATH, AUTHORITY],
        None,
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
    ),
];

#[tokio::test(start_paused = true)]
async fn http2_requests_become_http1_requests() {
    for (name, source, list, body, expected) in PASSED {
        let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
        let upstream = tokio::spawn(async move { act(upstreams.recv().await.unwrap(), vec![Do::Quiet, send(OK), Do::Quiet]).await });
        let seen = act(io, client(list, *body)).await;
        assert_eq!(upstream.await.unwrap().text(), *expected, "{name} ({source})");
        assert_eq!(answer(&seen), Answer { status: Some(200), is_ended: true, ..Answer::default() }, "{name} ({source})");
    }
}

#[tokio::test(start_paused = true)]
async fn pseudo_headers_in_trailers_go_nowhere() {
    // RFC 9113 §8.1 calls the request malformed; h2 drops them, and nothing else may.
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
    let upstream = tokio::spawn(async move { act(upstreams.recv().await.unwrap(), vec![Do::Quiet]).await });
    let head = [METHOD, SCHEME, PATH, AUTHORITY, ("trailer", "x-t")];
    let request = [preface(), headers(1, &head, false), data(1, "ab", false), headers(1, &[(":path", "/x"), ("x-t", "1")], true)];
    act(io, vec![send(request.concat()), Do::Quiet]).await;
    let seen = upstream.await.unwrap().text();
    assert!(seen.ends_with("2\r\nab\r\n0\r\nx-t: 1\r\n\r\n"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn http1_request_becomes_an_http2_one() {
    let (io, mut upstreams) = core(Protocol::Http1, Protocol::Http2);
    let request = "POST /a?b HTTP/1.1\r\nHost: web:80\r\nConnection: x-secret, keep-alive\r\nX-Secret: 1\r\nTE: gzip, trailers\r\n\
        Keep-Alive: 5\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\nCookie: a=1\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n";
    let client = tokio::spawn(act(io, vec![send(request), Do::Quiet]));
    let (request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    let (parts, mut body) = request.into_parts();
    assert_eq!(parts.uri, "http://web:80/a?b");
    let mut names: Vec<_> = parts.headers.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cookie", "te", "trailer"]);
    assert_eq!(parts.headers["te"], "trailers");
    assert_eq!(read(&mut body).await.unwrap(), (b"hi".to_vec(), Some(one_field("x-t", "1"))));
    respond.send_response(response(204), true).unwrap();
    let seen = client.await.unwrap().text();
    assert!(seen.starts_with("HTTP/1.1 204 No Content\r\n") && !seen.contains("content-length"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn http2_response_that_http1_must_not_see_is_refused() {
    // RFC 9113 §8.2.2: connection-specific fields make a response malformed.
    let settings_and_headers = |list: &[(&str, &str)]| [&preface()[24..], &headers(1, list, true)].concat();
    for list in [
        &[(":status", "200"), ("connection", "close")][..],
        &[(":status", "200"), ("transfer-encoding", "chunked")],
        &[(":status", "200"), ("x-a", "1\r\nset-cookie: b")],
        &[(":status", "200"), ("content-length", "1"), ("content-length", "2")],
        &[(":status", "200"), ("content-length", "5")],
        &[("x-a", "1")],
        &[(":status", "101")],
    ] {
        let (io, mut upstreams) = core(Protocol::Http1, Protocol::Http2);
        let client = tokio::spawn(act(io, vec![send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Do::Quiet]));
        let upstream = upstreams.recv().await.unwrap();
        act(upstream, vec![Do::Until("PRI"), Do::Quiet, send(settings_and_headers(list)), Do::Quiet]).await;
        let seen = client.await.unwrap().text();
        assert!(seen.starts_with("HTTP/1.1 502 "), "{list:?}: {seen:?}");
    }
}
