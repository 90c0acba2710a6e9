//! What HTTP/2 clients and upstreams rely on: gRPC's trailers, interim responses, resets, GOAWAY, flow control.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::Request;
use tokio::time::timeout;
use waypoint::http::Protocol;

use super::{core, h2_client, h2_upstream, one_field, read, response};
use crate::wire::{Do, act, send};

/// Longer than the core waits for anything in these tests.
const QUIET: Duration = Duration::from_secs(10);

fn get() -> Request<()> {
    Request::get("http://a/").body(()).unwrap()
}

fn post() -> Request<()> {
    Request::post("http://a/svc/m").header("te", "trailers").header("content-type", "application/grpc").body(()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn grpc_trailers_of_50_kb_pass() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    let (answer, _body) = sender.send_request(post(), true).unwrap();
    let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    let mut stream = respond.send_response(response(200), false).unwrap();
    stream.send_data(Bytes::from_static(b"ok"), false).unwrap();
    let mut trailers = one_field("grpc-status", "0");
    trailers.insert("grpc-status-details-bin", "x".repeat(50_000).parse().unwrap());
    stream.send_trailers(trailers.clone()).unwrap();
    assert_eq!(read(answer.await.unwrap().body_mut()).await.unwrap(), (b"ok".to_vec(), Some(trailers)));
}

#[tokio::test(start_paused = true)]
async fn grpc_trailers_only_response_is_one_frame() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    let (answer, _body) = sender.send_request(post(), true).unwrap();
    let (request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    assert_eq!(request.headers()["te"], "trailers");
    let mut head = response(200);
    head.headers_mut().extend(one_field("grpc-status", "12"));
    respond.send_response(head, true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    assert!(answer.body().is_end_stream());
}

#[tokio::test(start_paused = true)]
async fn grpc_messages_flow_both_ways_one_by_one() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    let (answer, mut requests) = sender.send_request(post(), false).unwrap();
    let (request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    let mut incoming = request.into_body();
    let mut outgoing = respond.send_response(response(200), false).unwrap();
    let mut responses = answer.await.unwrap().into_body();
    for message in [&b"one"[..], b"two", b"three"] {
        requests.send_data(Bytes::from_static(message), false).unwrap();
        let data = incoming.data().await.unwrap().unwrap();
        outgoing.send_data(data, false).unwrap();
        assert_eq!(responses.data().await.unwrap().unwrap(), message);
    }
    requests.send_data(Bytes::new(), true).unwrap();
    assert!(incoming.data().await.is_none_or(|end| end.unwrap().is_empty()));
    outgoing.send_trailers(one_field("grpc-status", "0")).unwrap();
    assert_eq!(read(&mut responses).await.unwrap().1, Some(one_field("grpc-status", "0")));
}

#[tokio::test(start_paused = true)]
async fn interim_responses_reach_http2_clients() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    let (mut answer, _body) = sender.send_request(get(), true).unwrap();
    let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    let mut hints = response(103);
    hints.headers_mut().extend(one_field("link", "</a>"));
    respond.send_informational(hints).unwrap();
    let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
    assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &"</a>".parse().unwrap()));
    respond.send_response(response(204), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 204);
}

#[tokio::test(start_paused = true)]
async fn interim_responses_of_http1_upstreams_reach_http2_clients() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
    let mut sender = h2_client(io).await;
    let (mut answer, _body) = sender.send_request(get(), true).unwrap();
    let script = vec![
        Do::Until("\r\n\r\n"),
        send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nconnection: x\r\n\r\n"),
        Do::Quiet,
        send("HTTP/1.1 204 No Content\r\n\r\n"),
        Do::Quiet,
    ];
    tokio::spawn(act(upstreams.recv().await.unwrap(), script));
    let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
    assert_eq!(interim.status(), 103);
    assert_eq!(interim.headers(), &one_field("link", "</a>"));
    assert_eq!(answer.await.unwrap().status(), 204);
}

#[tokio::test(start_paused = true)]
async fn trailers_of_http1_upstreams_reach_http2_clients() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
    let mut sender = h2_client(io).await;
    let (answer, _body) = sender.send_request(post(), true).unwrap();
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n";
    tokio::spawn(act(upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), send(chunked), Do::Quiet]));
    assert_eq!(read(answer.await.unwrap().body_mut()).await.unwrap(), (b"ok".to_vec(), Some(one_field("grpc-status", "0"))));
}

#[tokio::test(start_paused = true)]
async fn trailers_of_http2_upstreams_reach_http1_clients_that_take_them() {
    let (io, mut upstreams) = core(Protocol::Http1, Protocol::Http2);
    let client = tokio::spawn(act(io, vec![send("GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n"), Do::Quiet]));
    let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    let mut head = response(200);
    head.headers_mut().extend(one_field("trailer", "x-sum"));
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data(Bytes::from_static(b"ok"), false).unwrap();
    stream.send_trailers(one_field("x-sum", "42")).unwrap();
    let seen = client.await.unwrap().text();
    assert!(seen.ends_with("2\r\nok\r\n0\r\nx-sum: 42\r\n\r\n"), "{seen}");
}

#[tokio::test(start_paused = true)]
async fn request_trailers_of_http2_clients_reach_http1_upstreams() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
    let mut sender = h2_client(io).await;
    let request = Request::post("http://a/").header("trailer", "x-t").body(()).unwrap();
    let (_answer, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"hi"), false).unwrap();
    body.send_trailers(one_field("x-t", "1")).unwrap();
    let upstream = act(upstreams.recv().await.unwrap(), vec![Do::Quiet]).await.text();
    assert!(upstream.ends_with("2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n"), "{upstream}");
}

#[tokio::test(start_paused = true)]
async fn reset_in_the_middle_of_a_body_keeps_its_code() {
    for reason in [Reason::ENHANCE_YOUR_CALM, Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
        let mut sender = h2_client(io).await;
        let (answer, _body) = sender.send_request(get(), true).unwrap();
        let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
        let mut stream = respond.send_response(response(200), false).unwrap();
        stream.send_data(Bytes::from_static(b"part"), false).unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "part");
        stream.send_reset(reason);
        assert_eq!(read(&mut body).await.unwrap_err().reason(), Some(reason));
    }
}

#[tokio::test(start_paused = true)]
async fn response_cut_by_an_http1_upstream_is_reset_for_http2_clients() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
    let mut sender = h2_client(io).await;
    let (answer, _body) = sender.send_request(get(), true).unwrap();
    let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nonly\r\n";
    tokio::spawn(act(upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), send(cut), Do::Quiet, Do::Gone]));
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(read(&mut body).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
}

#[tokio::test(start_paused = true)]
async fn response_cut_by_an_http2_upstream_is_cut_for_http1_clients() {
    let (io, mut upstreams) = core(Protocol::Http1, Protocol::Http2);
    let client = tokio::spawn(act(io, vec![send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Do::Quiet]));
    let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    let mut stream = respond.send_response(response(200), false).unwrap();
    stream.send_data(Bytes::from_static(b"part"), false).unwrap();
    tokio::time::sleep(QUIET / 2).await;
    stream.send_reset(Reason::CANCEL);
    let seen = client.await.unwrap();
    assert!(seen.ended && seen.text().ends_with("4\r\npart\r\n"), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn refused_stream_before_a_response_is_said_to_be_unprocessed() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    for (reason, status) in [(Reason::REFUSED_STREAM, 503), (Reason::CANCEL, 502)] {
        let (answer, _body) = sender.send_request(get(), true).unwrap();
        let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
        respond.send_reset(reason);
        assert_eq!(answer.await.unwrap().status(), status);
        let (io, next) = core(Protocol::Http2, Protocol::Http2);
        (sender, upstreams) = (h2_client(io).await, next);
    }
}

#[tokio::test(start_paused = true)]
async fn client_that_resets_its_stream_resets_the_upstreams() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    let (_answer, mut body) = sender.send_request(post(), false).unwrap();
    let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    body.send_reset(Reason::CANCEL);
    let reason = timeout(QUIET, std::future::poll_fn(|cx| respond.poll_reset(cx))).await.unwrap().unwrap();
    assert_eq!(reason, Reason::CANCEL);
}

#[tokio::test(start_paused = true)]
async fn client_that_resets_its_stream_closes_the_http1_upstream() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http1);
    let mut sender = h2_client(io).await;
    let (_answer, mut body) = sender.send_request(get(), true).unwrap();
    let upstream = tokio::spawn(act(upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), Do::Quiet]));
    tokio::time::sleep(QUIET / 2).await;
    body.send_reset(Reason::CANCEL);
    assert!(upstream.await.unwrap().ended);
}

#[tokio::test(start_paused = true)]
async fn upstream_that_goes_away_gets_no_further_request() {
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    for _ in 0..3 {
        let (answer, _body) = sender.send_request(get(), true).unwrap();
        let mut http = h2::server::handshake(upstreams.recv().await.unwrap()).await.unwrap();
        let (_request, mut respond) = http.accept().await.unwrap().unwrap();
        http.graceful_shutdown();
        respond.send_response(response(204), true).unwrap();
        drop(respond);
        tokio::spawn(async move { while matches!(http.accept().await, Some(Ok(_))) {} });
        assert_eq!(answer.await.unwrap().status(), 204);
        sender = sender.ready().await.unwrap();
        tokio::time::sleep(QUIET).await;
    }
}

#[tokio::test(start_paused = true)]
async fn reader_that_stops_stops_the_upstream() {
    const CHUNK: usize = 16 * 1024;
    // One window towards the client, one towards the upstream, and what the pipes and frames hold.
    const HELD_BYTES_MAX: usize = 3 * 1024 * 1024;
    let (io, mut upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    let (answer, _body) = sender.send_request(get(), true).unwrap();
    let (_request, mut respond) = h2_upstream(upstreams.recv().await.unwrap()).await;
    let mut stream = respond.send_response(response(200), false).unwrap();
    let _unread = answer.await.unwrap();
    let mut n_bytes = 0;
    loop {
        stream.reserve_capacity(CHUNK);
        let Ok(capacity) = timeout(QUIET, std::future::poll_fn(|cx| stream.poll_capacity(cx))).await else { break };
        let capacity = capacity.unwrap().unwrap().min(CHUNK);
        stream.send_data(Bytes::from(vec![0; capacity]), false).unwrap();
        n_bytes += capacity;
        assert!(n_bytes < HELD_BYTES_MAX, "nothing stops the upstream");
    }
}

#[tokio::test(start_paused = true)]
async fn connect_and_extended_connect_are_refused() {
    let (io, _upstreams) = core(Protocol::Http2, Protocol::Http2);
    let mut sender = h2_client(io).await;
    assert!(!sender.is_extended_connect_protocol_enabled());
    let (answer, _body) = sender.send_request(Request::connect("a:80").body(()).unwrap(), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 405);
}
