//! Bodies: how they are framed, flow, carry trailers, and fail.

use super::Want::{Ended, Has, Lacks, Open, Statuses};
use super::{Do, OK, Row, row, send};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// All of them.
#[must_use]
pub fn rows() -> Vec<Row> {
    [framed(), trailers(), duplex(), cut(), bad_responses()].into_iter().flatten().collect()
}

fn framed() -> Vec<Row> {
    vec![
        row("a chunked request stays chunked", "RFC 9112 §7.1")
            .request("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n")
            .client_sees([Statuses(&[200]), Open])
            .upstream_sees([
                Has("transfer-encoding: chunked"),
                Has("abc"),
                Has("de"),
                Has("0\r\n\r\n"),
                Lacks("content-length"),
                Lacks(";x=1"),
            ]),
        row("a chunked GET keeps its body", "RFC 9110 §9.3.1: content of a GET has no meaning, but is there")
            .request("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            .client_sees([Statuses(&[200]), Open])
            .upstream_sees([Has("transfer-encoding: chunked"), Has("3\r\nabc\r\n0\r\n\r\n")]),
        row("a GET with a length keeps its body", "RFC 9110 §9.3.1")
            .request("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab")
            .client_sees([Statuses(&[200]), Open])
            .upstream_sees([Has("content-length: 2"), Has("\r\n\r\nab")]),
        row("a chunked response stays chunked", "RFC 9112 §7.1")
            .request(GET)
            .answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
            .client_sees([Statuses(&[200]), Has("transfer-encoding: chunked"), Has("2\r\nok\r\n0\r\n\r\n"), Open]),
    ]
}

fn trailers() -> Vec<Row> {
    let chunked = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 42\r\n\r\n";
    vec![
        row("trailers of a request", "RFC 9110 §6.5.1; carried, unlike Envoy's default")
            .request(
                "POST / HTTP/1.1\r\nhost: a\r\ntrailer: x-t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n",
            )
            .client_sees([Statuses(&[200]), Open])
            .upstream_sees([Has("trailer: x-t"), Has("0\r\nx-t: 1\r\n\r\n")]),
        row("trailers of a response, to a client that takes them", "RFC 9110 §6.5.1, §10.1.4")
            .request("GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n")
            .answer(chunked)
            .client_sees([Statuses(&[200]), Has("trailer: x-sum"), Has("0\r\nx-sum: 42\r\n\r\n"), Open]),
        row("trailers of a response, to a client that does not", "RFC 9110 §6.5.1: they may be dropped")
            .request(GET)
            .answer(chunked)
            .client_sees([Statuses(&[200]), Has("2\r\nok\r\n0\r\n\r\n"), Lacks("x-sum: 42"), Open]),
        row("a trailer that frames is dropped", "RFC 9110 §6.5.1: content-length is no trailer")
            .request(
                "POST / HTTP/1.1\r\nhost: a\r\ntrailer: content-length\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\ncontent-length: 9\r\n\r\n",
            )
            .upstream_sees([Lacks("content-length: 9")]),
    ]
}

fn duplex() -> Vec<Row> {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    vec![
        row("each chunk of a response leaves when it comes", "streaming; RFC 9112 §7.1")
            .client(vec![send(GET), Do::Until("one"), Do::Until("two"), Do::Quiet])
            .upstream(vec![
                Do::Until("\r\n\r\n"),
                send(answer),
                send("3\r\none\r\n"),
                Do::Quiet,
                send("3\r\ntwo\r\n"),
                Do::Quiet,
                send("0\r\n\r\n"),
                Do::Quiet,
            ])
            .client_sees([Has("3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), Open]),
        row("request and response flow at the same time", "RFC 9112 §9.3; Envoy")
            .client(vec![send(head), send("1\r\na\r\n"), Do::Until("A"), send("1\r\nb\r\n"), Do::Until("B"), send("0\r\n\r\n"), Do::Quiet])
            .upstream(vec![
                Do::Until("\r\na\r\n"),
                send(answer),
                send("1\r\nA\r\n"),
                Do::Until("\r\nb\r\n"),
                send("1\r\nB\r\n"),
                Do::Until("0\r\n\r\n"),
                send("0\r\n\r\n"),
                Do::Quiet,
            ])
            .client_sees([Statuses(&[200]), Has("1\r\na\r\n1\r\nb\r\n0\r\n\r\n")])
            .upstream_sees([Has("1\r\na\r\n1\r\nb\r\n0\r\n\r\n")]),
        row("an answer that comes before the upload ends is delivered", "RFC 9110 §15.5.14, RFC 9112 §9.3")
            .client(vec![send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nabc"), Do::Quiet])
            .upstream(vec![
                Do::Until("abc"),
                send("HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno"),
                Do::Gone,
            ])
            .client_sees([Statuses(&[413]), Has("\r\n\r\nno"), Ended]),
    ]
}

fn cut() -> Vec<Row> {
    vec![
        row("a response cut inside its length is cut", "RFC 9112 §8: incomplete")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this"), Do::Gone])
            .client_sees([Has("content-length: 100"), Has("only this"), Ended]),
        row("a response cut inside its chunks is cut", "RFC 9112 §8: incomplete")
            .request(GET)
            .upstream(vec![
                Do::Until("\r\n\r\n"),
                send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nonly\r\n"),
                Do::Quiet,
                Do::Gone,
            ])
            .client_sees([Has("4\r\nonly\r\n"), Lacks("\r\n0\r\n"), Ended]),
        row("a response with a broken chunk is cut", "RFC 9112 §7.1")
            .request(GET)
            .upstream(vec![
                Do::Until("\r\n\r\n"),
                send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nonly\r\nzz\r\n"),
                Do::Quiet,
            ])
            .client_sees([Lacks("\r\n0\r\n"), Ended]),
        row("a request cut inside its length is never complete", "RFC 9112 §8: incomplete")
            .client(vec![send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Do::Fin, Do::Quiet])
            .client_sees([Ended])
            .upstream_sees([Lacks("abcabc"), Ended]),
        row("a request cut inside its chunks is never complete", "RFC 9112 §8: incomplete")
            .client(vec![send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"), Do::Fin, Do::Quiet])
            .client_sees([Ended])
            .upstream_sees([Lacks("\r\n0\r\n"), Ended]),
        row("a client that is gone ends its request", "Envoy: downstream disconnect resets the upstream")
            .client(vec![send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Do::Until("never"), Do::Gone])
            .upstream(vec![Do::Until("abc"), Do::Quiet, Do::Quiet, Do::Quiet])
            .upstream_sees([Ended]),
    ]
}

fn bad_responses() -> Vec<Row> {
    vec![
        row("a response with a length and a coding is refused", "RFC 9112 §6.3 rule 3; Envoy: protocol error")
            .request(GET)
            .upstream(vec![
                Do::Until("\r\n\r\n"),
                send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
                Do::Quiet,
            ])
            .client_sees([Statuses(&[502])]),
        row("a response with two lengths is refused", "RFC 9112 §6.3 rule 5")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 2\r\n\r\nok"), Do::Quiet])
            .client_sees([Statuses(&[502])]),
        row("a response with equal lengths has one", "RFC 9112 §6.3 rule 5: may be made valid")
            .request(GET)
            .answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok")
            .client_sees([Statuses(&[200]), Has("\r\ncontent-length: 2\r\n"), Lacks("content-length: 2\r\ncontent-length: 2")]),
        row("a response with an unknown coding is refused", "RFC 9112 §6.1; Envoy: protocol error")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nxyz"), Do::Fin, Do::Quiet])
            .client_sees([Statuses(&[502])]),
        row("bytes after a response are no response", "RFC 9112 §9.2: response splitting")
            .client(vec![send(GET), Do::Until("ok"), send(GET), Do::Quiet])
            .upstreams(vec![
                vec![Do::Until("\r\n\r\n"), send([OK, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"].concat()), Do::Quiet],
                vec![Do::Until("\r\n\r\n"), send(OK), Do::Quiet],
            ])
            .client_sees([Lacks("evil")]),
        row("a response with obs-fold is refused", "RFC 9112 §5.2")
            .request(GET)
            .upstream(vec![Do::Until("\r\n\r\n"), send("HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 2\r\n\r\nok"), Do::Quiet])
            .client_sees([Statuses(&[502])]),
        row("fields that a response keeps to its connection are removed", "RFC 9110 §7.6.1")
            .request(GET)
            .answer("HTTP/1.1 200 OK\r\nconnection: x-secret\r\nx-secret: 1\r\nkeep-alive: timeout=5\r\ncontent-length: 2\r\n\r\nok")
            .client_sees([Statuses(&[200]), Lacks("x-secret"), Lacks("timeout=5")]),
    ]
}
