//! Ordinary exchanges: what an unmodified client and upstream do all day.

use super::Want::{Connections, Ended, Has, Is, Lacks, Nothing, Open, Requests, Statuses};
use super::{Do, OK, Row, row, send};

const GET: &str = "GET /p?q=1 HTTP/1.1\r\nhost: a\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ndate: Tue, 01 Jan 2019 00:00:00 GMT\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";

/// All of them.
#[must_use]
pub fn rows() -> Vec<Row> {
    [plain(), expectations(), bodyless(), old_versions(), connections(), upgrades(), limits()].into_iter().flatten().collect()
}

fn plain() -> Vec<Row> {
    vec![
        row("a GET passes with its fields", "RFC 9110 §7.6")
            .request("GET /p?q=1 HTTP/1.1\r\nhost: a\r\nX-FoO: 1\r\nzeta: 1\r\nalpha: 2\r\nte: trailers\r\n\r\n")
            .client_sees([Statuses(&[200]), Has("\r\n\r\nok"), Open])
            .upstream_sees([Is("GET /p?q=1 HTTP/1.1\r\nhost: a\r\nX-FoO: 1\r\nzeta: 1\r\nalpha: 2\r\nte: trailers\r\n\r\n".into())]),
        row("date, server and reason of the upstream are kept", "RFC 9110 §6.6.1: a proxy does not replace a Date")
            .request(GET)
            .answer("HTTP/1.1 200 Fine\r\ndate: Tue, 01 Jan 2019 00:00:00 GMT\r\nserver: up\r\ncontent-length: 2\r\n\r\nok")
            .client_sees([Has("200 fine"), Has("date: tue, 01 jan 2019"), Has("server: up")]),
        row("a missing date is added", "RFC 9110 §6.6.1: a recipient with a clock may add it; Envoy does")
            .request(GET)
            .answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .client_sees([Statuses(&[200]), Has("\r\ndate: ")]),
        row("nothing is added to a response", "RFC 9112 §9.3: keep-alive is the default and needs no field")
            .request(GET)
            .client_sees([Is(OK.into())]),
        row("values keep bytes above ASCII", "RFC 9110 §5.5: obs-text is opaque")
            .request(b"GET / HTTP/1.1\r\nhost: a\r\nx-name: caf\xc3\xa9\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("x-name: caf\u{e9}")]),
        row("cookies and repeated fields keep their lines", "RFC 9110 §5.3")
            .request("GET / HTTP/1.1\r\nhost: a\r\nx-a: 1\r\nx-a: 2\r\ncookie: a=1; b=2\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("x-a: 1\r\nx-a: 2\r\n"), Has("cookie: a=1; b=2\r\n")]),
        row("two set-cookie stay two", "RFC 6265 §3")
            .request(GET)
            .answer("HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nset-cookie: b=2\r\ncontent-length: 0\r\n\r\n")
            .client_sees([Has("set-cookie: a=1\r\n"), Has("set-cookie: b=2\r\n")]),
        row("OPTIONS * passes", "RFC 9112 §3.2.4")
            .request("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("options * http/1.1\r\n")]),
        row("an absolute target becomes origin form", "RFC 9112 §3.2.2")
            .request("GET http://a/x HTTP/1.1\r\nhost: a\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("get /x http/1.1\r\n"), Has("host: a\r\n")]),
        row("an unknown method passes", "RFC 9110 §9.1")
            .request("PURGE /x HTTP/1.1\r\nhost: a\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("purge /x http/1.1\r\n")]),
        row("dot segments are resolved, %2F and // stay", "RFC 3986 §6.2.2; istiod's BASE normalisation")
            .request("GET /a/../b//%2Fc/%2e%2e/d?../e HTTP/1.1\r\nhost: a\r\n\r\n")
            .upstream_sees([Has("get /b//d?../e http/1.1\r\n")]),
    ]
}

fn expectations() -> Vec<Row> {
    let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    let upstream_continues = vec![Do::Until("\r\n\r\n"), send("HTTP/1.1 100 Continue\r\n\r\n"), Do::Until("ab"), send(OK), Do::Quiet];
    vec![
        row("100 Continue comes from the upstream", "RFC 9110 §10.1.1; Envoy with proxy_100_continue")
            .client(vec![send(head), Do::Until("100"), send("ab"), Do::Quiet])
            .upstream(upstream_continues)
            .client_sees([Statuses(&[100, 200]), Open])
            .upstream_sees([Has("expect: 100-continue"), Has("\r\n\r\nab")]),
        row("417 instead of 100, and the connection closes", "RFC 9110 §10.1.1")
            .client(vec![send(head), Do::Quiet])
            .upstream(vec![Do::Until("\r\n\r\n"), send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno"), Do::Quiet])
            .client_sees([Statuses(&[417]), Has("connection: close"), Has("\r\n\r\nno"), Ended])
            .upstream_sees([Has("expect: 100-continue"), Ended]),
        row("a client that does not wait for 100 is served", "RFC 9110 §10.1.1: it may go on after a while")
            .client(vec![send(head), send("ab"), Do::Quiet])
            .upstream(vec![Do::Until("ab"), send(OK), Do::Quiet])
            .client_sees([Has("http/1.1 200 ok")])
            .upstream_sees([Has("\r\n\r\nab")]),
        row("103 does no harm", "RFC 9110 §15.2: a proxy may drop it")
            .request(GET)
            .answer(
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ndate: Tue, 01 Jan 2019 00:00:00 GMT\r\ncontent-length: 2\r\n\r\nok",
            )
            .client_sees([Has("http/1.1 200 ok"), Has("\r\n\r\nok"), Open]),
    ]
}

fn bodyless() -> Vec<Row> {
    vec![
        row("HEAD keeps content-length and has no body", "RFC 9110 §9.3.2")
            .request("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
            .answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
            .client_sees([Statuses(&[200]), Has("content-length: 10"), Open]),
        row("204 has no length and no body", "RFC 9110 §8.6").request(GET).answer("HTTP/1.1 204 No Content\r\n\r\n").client_sees([
            Statuses(&[204]),
            Lacks("content-length"),
            Lacks("transfer-encoding"),
            Open,
        ]),
        row("204 with a length loses it", "RFC 9110 §8.6: MUST NOT send")
            .request(GET)
            .answer("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")
            .client_sees([Statuses(&[204]), Lacks("content-length"), Open]),
        row("304 keeps its length and has no body", "RFC 9110 §8.6, §15.4.5; Envoy")
            .request(GET)
            .answer("HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\netag: \"x\"\r\n\r\n")
            .client_sees([Statuses(&[304]), Has("content-length: 10"), Has("etag: \"x\""), Open]),
        row("a POST without a body says so", "RFC 9110 §8.6")
            .request("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Has("content-length: 0"), Lacks("transfer-encoding")]),
    ]
}

fn old_versions() -> Vec<Row> {
    vec![
        row("HTTP/1.0 client gets a chunked body framed by close", "RFC 9112 §6.1: no transfer-encoding to 1.0")
            .request("GET / HTTP/1.0\r\nhost: a\r\n\r\n")
            .answer(CHUNKED)
            .client_sees([Statuses(&[200]), Lacks("transfer-encoding"), Has("\r\n\r\nok"), Ended])
            .upstream_sees([Has("get / http/1.1\r\n")]),
        // Shorter than HTTP/2's preface as well, so it is seen for what it is early.
        row("HTTP/1.0 request without a host", "Envoy without default_host_for_http_10")
            .request("GET / HTTP/1.0\r\n\r\n")
            .client_sees([Statuses(&[400]), Ended])
            .upstream_sees([Requests(0)]),
        row("HTTP/1.0 keep-alive is kept", "RFC 9112 §9.3")
            .request("GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n")
            .client_sees([Statuses(&[200]), Has("connection: keep-alive"), Open]),
        row("a body framed by close ends cleanly", "RFC 9112 §6.3 rule 8")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send("HTTP/1.1 200 OK\r\n\r\nall of it"), Do::Fin, Do::Quiet])
            .client_sees([Statuses(&[200]), Has("all of it"), Has("\r\n0\r\n\r\n"), Open]),
        row("an HTTP/1.0 upstream", "RFC 9112 §6.3")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"), Do::Fin, Do::Quiet])
            .client_sees([Statuses(&[200]), Has("http/1.1 200"), Has("\r\n\r\nok"), Open]),
    ]
}

fn connections() -> Vec<Row> {
    let twice = [GET, GET].concat();
    vec![
        row("two pipelined requests in one write", "RFC 9112 §9.3.2")
            .request(twice.clone())
            .client_sees([Statuses(&[200, 200]), Open])
            .upstream_sees([Requests(2), Connections(1)]),
        row("a request that arrives while one is in flight", "RFC 9112 §9.3.2")
            .client(vec![send(GET), send(GET), Do::Quiet])
            .upstream(vec![Do::Until("\r\n\r\n"), Do::Quiet, send(OK), Do::Until("\r\n\r\n"), send(OK), Do::Quiet])
            .client_sees([Statuses(&[200, 200])])
            .upstream_sees([Requests(2)]),
        row("an upstream connection is used again", "RFC 9112 §9.3")
            .client(vec![send(GET), Do::Until("ok"), send(GET), Do::Until("ok"), send(GET), Do::Quiet])
            .client_sees([Statuses(&[200, 200, 200])])
            .upstream_sees([Requests(3), Connections(1)]),
        row("an upstream connection that ended while idle is replaced", "RFC 9112 §9.3.1: nothing was sent")
            .client(vec![send(GET), Do::Until("ok"), send(GET), Do::Quiet])
            .upstreams(vec![vec![Do::Until("\r\n\r\n"), send(OK), Do::Gone], vec![Do::Until("\r\n\r\n"), send(OK), Do::Quiet]])
            .client_sees([Statuses(&[200, 200])])
            .upstream_sees([Requests(2), Connections(2)]),
        row("a connection that the upstream closes is not used again", "RFC 9112 §9.6")
            .client(vec![send(GET), Do::Until("ok"), send(GET), Do::Quiet])
            .answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
            .client_sees([Statuses(&[200, 200]), Lacks("connection: close"), Open])
            .upstream_sees([Requests(2), Lacks("connection:"), Connections(2)]),
        row("a client that asks to close is closed", "RFC 9112 §9.6")
            .request("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .client_sees([Statuses(&[200]), Has("connection: close"), Ended])
            .upstream_sees([Lacks("connection:")]),
        row("a client that half-closes after its request is answered", "RFC 9112 §9.6 allows half-close")
            .client(vec![send(GET), Do::Fin, Do::Quiet])
            .client_sees([Statuses(&[200]), Has("ok"), Ended]),
        row("a client that half-closes while it waits is answered", "RFC 9112 §9.6 allows half-close")
            .client(vec![send(GET), Do::Fin, Do::Quiet])
            .upstream(vec![Do::Until("\r\n\r\n"), Do::Quiet, send(OK), Do::Quiet])
            .client_sees([Statuses(&[200]), Has("ok"), Ended]),
        row("a client that half-closes after its body is answered", "RFC 9112 §9.6 allows half-close")
            .client(vec![send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab"), Do::Fin, Do::Quiet])
            .upstream(vec![Do::Until("ab"), Do::Quiet, send(OK), Do::Quiet])
            .client_sees([Statuses(&[200]), Has("ok"), Ended]),
        row("an upstream that says nothing is no clean answer", "RFC 9110 §15.6.3")
            .request(GET)
            .upstreams(vec![vec![Do::Until("\r\n\r\n"), Do::Gone]])
            .client_sees([Statuses(&[502])])
            .upstream_sees([Requests(1), Connections(1)]),
        row("an upstream that talks nonsense is a 502", "RFC 9110 §15.6.3")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send("SSH-2.0-OpenSSH_9.6\r\n\r\n"), Do::Quiet])
            .client_sees([Statuses(&[502])]),
    ]
}

fn upgrades() -> Vec<Row> {
    let ask = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n";
    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\nHELLO";
    vec![
        row("a WebSocket passes both ways and half-closes", "RFC 9110 §7.8, RFC 6455")
            .client(vec![send(ask), Do::Until("HELLO"), send("PING"), Do::Until("PONG"), Do::Fin, Do::Quiet])
            .upstream(vec![Do::Until("\r\n\r\n"), send(switch), Do::Until("PING"), send("PONG"), Do::Quiet, send("BYE"), Do::Fin])
            .client_sees([Statuses(&[101]), Has("connection: upgrade"), Has("upgrade: websocket"), Has("hellopongbye"), Ended])
            .upstream_sees([Has("connection: upgrade"), Has("upgrade: websocket"), Has("sec-websocket-key: x"), Has("ping"), Ended]),
        row("an upgrade that is refused is an ordinary answer", "RFC 9110 §7.8").request(ask).client_sees([Statuses(&[200]), Has("ok")]),
        row("an upgrade to h2c is ignored", "RFC 9113 §3.1; Envoy removes it")
            .request("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAA\r\n\r\n")
            .client_sees([Statuses(&[200])])
            .upstream_sees([Lacks("upgrade"), Lacks("http2-settings")]),
        row("a 101 that nobody asked for is a 502", "RFC 9110 §15.2.2")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send(switch), Do::Quiet])
            .client_sees([Statuses(&[502]), Lacks("hello")]),
        row("a CONNECT is refused", "RFC 9110 §9.3.6: 405 if not supported")
            .request("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n")
            .refused(&[405]),
    ]
}

fn limits() -> Vec<Row> {
    let field = |n_bytes: usize| format!("GET / HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n", "v".repeat(n_bytes));
    let fields = |n_fields: usize| format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: 1\r\n".repeat(n_fields - 1));
    vec![
        row("a field of 32 KiB passes", "Envoy accepts heads of 60 KiB").request(field(32 * 1024)).client_sees([Statuses(&[200])]),
        row("a head of 100 KiB is refused", "RFC 6585 §5; Envoy's limit is 60 KiB")
            .request(field(100 * 1024))
            .client_sees([Statuses(&[431]), Ended])
            .upstream_sees([Nothing]),
        row("100 fields pass", "Envoy's limit").request(fields(100)).client_sees([Statuses(&[200])]),
        row("101 fields are refused", "RFC 6585 §5; Envoy's limit is 100").request(fields(101)).refused(&[431]),
        row("a target of 9 KB passes", "RFC 9112 §3: at least 8000 octets")
            .request(format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "p".repeat(9000)))
            .client_sees([Statuses(&[200])]),
    ]
}
