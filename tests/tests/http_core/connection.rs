//! Connections as a whole: drain, clients that vanish, upgrades that are watched, what is reported.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use waypoint::http::normalize::UpgradeRequested;
use waypoint::http::upgrade::{self, Bounds, Ended};
use waypoint::http::{
    Abort, Body, ClientOptions, ClientSession, Exchange, HalfClose, HeadOptions, Interim, Malformed, Protocol, SendErrorKind, ServeError,
    ServerOptions, serve,
};

use crate::forward::{ClientEngine, Forward};
use crate::table::OK;
use crate::wire::{Do, PIPE_BYTES, act, send};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
/// Virtual time in which anything that will happen has happened.
const QUIET: Duration = Duration::from_secs(10);
/// Types of HTTP/2 frames (RFC 9113 §6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

struct Served {
    client: DuplexStream,
    upstreams: mpsc::UnboundedReceiver<DuplexStream>,
    drain: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServeError>>,
    forward: Forward,
}

fn served(protocol: Protocol, options: ServerOptions) -> Served {
    let (forward, upstreams) = Forward::new(protocol, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    let (drain, drained) = oneshot::channel::<()>();
    let exchange = forward.clone();
    let ended = tokio::spawn(async move {
        let drain = async {
            if drained.await.is_err() {
                pending::<()>().await;
            }
        };
        serve(ours, protocol, exchange, &options, drain).await
    });
    Served { client, upstreams, drain, ended, forward }
}

#[tokio::test(start_paused = true)]
async fn drain_lets_an_http1_request_finish_and_closes() {
    let mut served = served(Protocol::Http1, ServerOptions::default());
    let client = tokio::spawn(act(served.client, vec![send(GET), Do::Until("ok"), send(GET), Do::Quiet]));
    let upstream = served.upstreams.recv().await.unwrap();
    served.drain.send(()).unwrap();
    let upstream = act(upstream, vec![Do::Until("\r\n\r\n"), Do::Quiet, send(OK), Do::Quiet]).await;
    let seen = client.await.unwrap();
    assert!(seen.ended && seen.text().contains("connection: close") && seen.text().ends_with("ok"), "{seen:?}");
    assert_eq!(upstream.text().matches("GET ").count(), 1);
    served.ended.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn drain_closes_an_idle_http1_connection_at_once() {
    let served = served(Protocol::Http1, ServerOptions::default());
    served.drain.send(()).unwrap();
    assert!(act(served.client, vec![Do::Quiet]).await.ended);
    served.ended.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn drain_lets_http2_streams_finish_and_takes_no_more() {
    let mut served = served(Protocol::Http2, ServerOptions::default());
    let (mut sender, connection) = h2::client::handshake(served.client).await.unwrap();
    let client = tokio::spawn(connection);
    let (answer, _body) = sender.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
    let mut http = h2::server::handshake(served.upstreams.recv().await.unwrap()).await.unwrap();
    let (_request, mut respond) = http.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while matches!(http.accept().await, Some(Ok(_))) {} });
    served.drain.send(()).unwrap();
    tokio::time::sleep(QUIET).await;
    assert!(sender.clone().ready().await.is_err(), "the client was told to go away");
    let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
    stream.send_data("ok".into(), true).unwrap();
    assert_eq!(answer.await.unwrap().body_mut().data().await.unwrap().unwrap(), "ok");
    served.ended.await.unwrap().unwrap();
    drop(sender);
    let _ = client.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn half_closed_client_is_cancelled_if_told_to() {
    let options = ServerOptions { half_close: HalfClose::Cancel, ..ServerOptions::default() };
    let mut served = served(Protocol::Http1, options);
    let client = tokio::spawn(act(served.client, vec![send(GET), Do::Fin, Do::Quiet]));
    let upstream = act(served.upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), Do::Quiet]).await;
    assert!(upstream.ended);
    assert!(matches!(served.ended.await.unwrap(), Err(ServeError::ClientGone)));
    assert_eq!(client.await.unwrap().text(), "");
}

/// A stream whose reads fail once it is told so, like a reset one.
struct Resettable {
    io: DuplexStream,
    reset: oneshot::Receiver<()>,
}

impl AsyncRead for Resettable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(Ok(())) = Pin::new(&mut self.reset).poll(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Resettable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn http1_client_that_resets_while_it_waits_closes_the_upstream() {
    let (forward, mut upstreams) = Forward::new(Protocol::Http1, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    let (reset, reset_seen) = oneshot::channel();
    let io = Resettable { io: ours, reset: reset_seen };
    let ended = tokio::spawn(async move { serve(io, Protocol::Http1, forward, &ServerOptions::default(), pending()).await });
    tokio::spawn(act(client, vec![send(GET), Do::Quiet, Do::Quiet]));
    let upstream = tokio::spawn(act(upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), Do::Quiet]));
    tokio::time::sleep(QUIET / 2).await;
    reset.send(()).unwrap();
    assert!(upstream.await.unwrap().ended);
    assert!(matches!(ended.await.unwrap(), Err(ServeError::ClientGone)));
}

#[tokio::test(start_paused = true)]
async fn http1_client_that_resets_while_a_silent_response_streams_closes_the_upstream() {
    let (forward, mut upstreams) = Forward::new(Protocol::Http1, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    let (reset, reset_seen) = oneshot::channel();
    let io = Resettable { io: ours, reset: reset_seen };
    tokio::spawn(async move { serve(io, Protocol::Http1, forward, &ServerOptions::default(), pending()).await });
    let events = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nevent\r\n";
    let client = tokio::spawn(act(client, vec![send(GET), Do::Until("event"), Do::Quiet]));
    let upstream = tokio::spawn(act(upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), send(events), Do::Quiet]));
    tokio::time::sleep(QUIET / 2).await;
    reset.send(()).unwrap();
    assert!(upstream.await.unwrap().ended);
    assert!(client.await.unwrap().ended);
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_reported_whoever_found_them() {
    for (request, problem) in [
        ("GET / HTTP/1.1\r\n\r\n", Malformed::HostMissing),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", Malformed::Syntax),
        (concat!("GET / HTTP/1.1\r\nhost: a\r\n", "x: 1\r\n", "\x00\r\n\r\n"), Malformed::Syntax),
    ] {
        let served = served(Protocol::Http1, ServerOptions::default());
        act(served.client, vec![send(request), Do::Quiet]).await;
        let _ = timeout(QUIET, served.ended).await.unwrap();
        assert_eq!(served.forward.malformed_seen(), [problem], "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn connection_that_sends_no_head_in_time_ends() {
    let options = ServerOptions { idle_timeout: Some(QUIET / 2), ..ServerOptions::default() };
    let served = served(Protocol::Http1, options);
    let seen = act(served.client, vec![send("GET / HT"), Do::Quiet]).await;
    assert!(seen.ended);
    assert!(matches!(served.ended.await.unwrap(), Err(ServeError::IdleTimeout)));
}

#[tokio::test(start_paused = true)]
async fn http2_connection_without_a_stream_goes_away_and_one_with_a_stream_stays() {
    let options = || ServerOptions { idle_timeout: Some(QUIET / 2), ..ServerOptions::default() };
    let idle = served(Protocol::Http2, options());
    let (_sender, connection) = h2::client::handshake(idle.client).await.unwrap();
    tokio::spawn(connection);
    timeout(QUIET, idle.ended).await.unwrap().unwrap().unwrap();

    let mut busy = served(Protocol::Http2, options());
    let (mut sender, connection) = h2::client::handshake(busy.client).await.unwrap();
    tokio::spawn(connection);
    let (_answer, _body) = sender.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
    let _upstream = busy.upstreams.recv().await.unwrap();
    assert!(timeout(QUIET, busy.ended).await.is_err());
}

/// What begins an HTTP/2 connection: the preface, and SETTINGS without any.
const HTTP2_START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// A frame of HEADERS that is a whole request: GET http://a/ by HPACK's static table, and a literal authority.
fn http2_get(stream: u8) -> Vec<u8> {
    let fields = [0x82, 0x84, 0x86, 0x01, 1, b'a'];
    [&[0, 0, 6, 1, 0x05, 0, 0, 0, stream][..], &fields[..]].concat()
}

/// The frames in these bytes: type, stream, and the last four bytes, where GOAWAY and RST_STREAM have their code.
fn http2_frames(mut bytes: &[u8]) -> Vec<(u8, u8, u32)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let code = rest[..length].last_chunk().map_or(0, |code| u32::from_be_bytes(*code));
        frames.push((head[3], head[8], code));
        bytes = &rest[length..];
    }
    frames
}

#[tokio::test(start_paused = true)]
async fn http2_client_that_never_answers_the_ping_of_a_drain_is_left() {
    let limits: [fn() -> ServerOptions; 2] = [
        || ServerOptions { duration_max: Some(QUIET / 2), ..ServerOptions::default() },
        || ServerOptions { idle_timeout: Some(QUIET / 2), ..ServerOptions::default() },
    ];
    for options in limits {
        let mut served = served(Protocol::Http2, options());
        served.client.write_all(HTTP2_START).await.unwrap();
        let mut bytes = Vec::new();
        timeout(QUIET * 2, served.client.read_to_end(&mut bytes)).await.expect("the connection ends").unwrap();
        let frames = http2_frames(&bytes);
        assert_eq!(frames.last(), Some(&(GOAWAY, 0, 0)), "{frames:?}");
        served.ended.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn http2_client_that_reads_nothing_of_a_drain_is_left() {
    let (forward, _upstreams) = Forward::new(Protocol::Http2, ClientEngine::Hyper);
    // So little that the last GOAWAY finds no room.
    let (mut client, ours) = duplex(64);
    let options = ServerOptions { duration_max: Some(QUIET / 2), ..ServerOptions::default() };
    let ended = tokio::spawn(async move { serve(ours, Protocol::Http2, forward, &options, pending()).await });
    client.write_all(HTTP2_START).await.unwrap();
    timeout(QUIET * 2, ended).await.expect("the connection ends").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn http2_client_that_never_answers_the_ping_of_a_drain_finishes_its_streams_and_gets_no_more() {
    let options = ServerOptions { duration_max: Some(QUIET / 2), ..ServerOptions::default() };
    let mut served = served(Protocol::Http2, options);
    served.client.write_all(HTTP2_START).await.unwrap();
    served.client.write_all(&http2_get(1)).await.unwrap();
    let mut http = h2::server::handshake(served.upstreams.recv().await.unwrap()).await.unwrap();
    let (_request, mut respond) = http.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while matches!(http.accept().await, Some(Ok(_))) {} });
    tokio::time::sleep(QUIET * 2).await;
    served.client.write_all(&http2_get(3)).await.unwrap();
    tokio::time::sleep(QUIET).await;
    respond.send_response(http::Response::new(()), true).unwrap();
    let mut bytes = Vec::new();
    timeout(QUIET, served.client.read_to_end(&mut bytes)).await.expect("the connection ends").unwrap();
    let frames = http2_frames(&bytes);
    assert!(frames.contains(&(RST_STREAM, 3, u32::from(h2::Reason::REFUSED_STREAM))), "{frames:?}");
    assert!(frames.iter().any(|(kind, stream, _)| (*kind, *stream) == (HEADERS, 1)), "{frames:?}");
    assert_eq!(frames.last(), Some(&(GOAWAY, 0, 0)), "{frames:?}");
    served.ended.await.unwrap().unwrap();
    assert!(served.upstreams.try_recv().is_err());
}

/// Forwards, and tells how an upgrade ended.
#[derive(Clone)]
struct Watching(Forward, mpsc::UnboundedSender<oneshot::Receiver<Ended>>);

impl Exchange for Watching {
    type Begun = ();

    fn begin(&self, at_start: &HeadOptions) -> ((), HeadOptions) {
        ((), *at_start)
    }

    fn exchange(
        &self,
        (): (),
        request: Request<Body>,
        interim: Interim,
    ) -> impl Future<Output = Result<http::Response<Body>, Abort>> + Send + use<> {
        let watching = self.clone();
        async move {
            let mut response = watching.0.exchange((), request, interim).await?;
            if response.status() == 101 {
                watching.1.send(upgrade::watch(&mut response, Bounds::default())).unwrap();
            }
            Ok(response)
        }
    }

    fn malformed(&self, protocol: Protocol, problem: &Malformed) {
        self.0.malformed(protocol, problem);
    }
}

#[tokio::test(start_paused = true)]
async fn end_and_bytes_of_an_upgrade_are_told() {
    let (forward, mut upstreams) = Forward::new(Protocol::Http1, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    let (watchers, mut watched) = mpsc::unbounded_channel();
    let exchange = Watching(forward, watchers);
    tokio::spawn(async move { serve(ours, Protocol::Http1, exchange, &ServerOptions::default(), pending()).await });
    let ask = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nHELLO";
    tokio::spawn(act(client, vec![send(ask), Do::Until("HELLO"), send("ABC"), Do::Fin, Do::Quiet]));
    tokio::spawn(act(upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), send(switch), Do::Until("ABC"), Do::Fin]));
    let ended = watched.recv().await.unwrap().await.unwrap();
    assert_eq!(ended, Ended { n_bytes_up: 3, n_bytes_down: 5, error: None });
}

#[tokio::test(start_paused = true)]
async fn request_that_was_never_sent_comes_back_whole() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let (ours, theirs) = duplex(PIPE_BYTES);
        let (mut session, driver) = ClientSession::handshake(ours, protocol, &ClientOptions::default()).await.unwrap();
        tokio::spawn(driver);
        drop(theirs);
        tokio::time::sleep(QUIET).await;
        assert!(!session.is_open());
        let request = Request::post("/x").header("host", "a").body(Body::full("body".into())).unwrap();
        let error = session.send(request, None).await.unwrap_err();
        assert_eq!(error.kind, SendErrorKind::ConnectionClosedBeforeResponse);
        assert!(error.nothing_sent && error.is_unprocessed());
        let request = error.request.unwrap();
        assert_eq!(request.headers().keys().collect::<Vec<_>>(), ["host"]);
        assert_eq!((request.uri().path(), http_body::Body::size_hint(request.body()).exact()), ("/x", Some(4)));
    }
}

#[tokio::test(start_paused = true)]
async fn http2_session_is_ready_up_to_the_peers_limit() {
    let (ours, theirs) = duplex(PIPE_BYTES);
    let (mut session, driver) = ClientSession::handshake(ours, Protocol::Http2, &ClientOptions::default()).await.unwrap();
    tokio::spawn(driver);
    let mut http = h2::server::Builder::new().max_concurrent_streams(1).handshake::<_, bytes::Bytes>(theirs).await.unwrap();
    let (finish, finished) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let (_request, mut respond) = http.accept().await.unwrap().unwrap();
        let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
        tokio::spawn(async move {
            finished.await.unwrap();
            stream.send_data("ok".into(), true).unwrap();
        });
        while matches!(http.accept().await, Some(Ok(_))) {}
    });
    tokio::time::sleep(QUIET).await;
    assert!(session.is_shared() && session.is_ready());
    let request = Request::get("/").header("host", "a").body(Body::empty()).unwrap();
    let response = session.send(request, None).await.unwrap();
    assert!(session.is_open() && !session.is_ready());
    finish.send(()).unwrap();
    http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
    assert!(session.is_ready());
}

/// A request body that never has anything, nor ends.
struct Silent;

impl http_body::Body for Silent {
    type Data = bytes::Bytes;
    type Error = waypoint::http::BodyError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn upload_ends_with_an_answer_that_is_over_already() {
    let (ours, theirs) = duplex(PIPE_BYTES);
    let (mut session, driver) = ClientSession::handshake(ours, Protocol::Http2, &ClientOptions::default()).await.unwrap();
    tokio::spawn(driver);
    let upstream = tokio::spawn(async move {
        let mut http = h2::server::handshake(theirs).await.unwrap();
        let (request, mut respond) = http.accept().await.unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        tokio::spawn(async move { while matches!(http.accept().await, Some(Ok(_))) {} });
        let upload: Option<Result<bytes::Bytes, h2::Error>> = request.into_body().data().await;
        upload.unwrap().unwrap_err().reason()
    });
    let request = Request::post("/").header("host", "a").body(Body::wrap(Silent)).unwrap();
    assert_eq!(session.send(request, None).await.unwrap().status(), 200);
    assert_eq!(timeout(QUIET, upstream).await.unwrap().unwrap(), Some(h2::Reason::CANCEL));
}

/// A peer that speaks HTTP/2, whether or not it knows extended CONNECT, and answers everything with 200; tells what it is asked.
fn http2_peer(io: DuplexStream, knows_connect: bool) -> mpsc::UnboundedReceiver<Method> {
    let (asked, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut builder = h2::server::Builder::new();
        if knows_connect {
            builder.enable_connect_protocol();
        }
        let mut http = builder.handshake::<_, bytes::Bytes>(io).await.unwrap();
        while let Some(Ok((request, mut respond))) = http.accept().await {
            asked.send(request.method().clone()).unwrap();
            respond.send_response(http::Response::new(()), request.method() != Method::CONNECT).unwrap();
        }
    });
    seen
}

fn upgrade_to_websocket() -> Request<Body> {
    let mut request = Request::get("/ws").header("host", "a").body(Body::empty()).unwrap();
    request.extensions_mut().insert(UpgradeRequested(http::HeaderValue::from_static("websocket")));
    request
}

#[tokio::test(start_paused = true)]
async fn http2_peer_that_does_not_know_extended_connect_is_never_sent_one() {
    let (ours, theirs) = duplex(PIPE_BYTES);
    let mut asked = http2_peer(theirs, false);
    let (mut session, driver) = ClientSession::handshake(ours, Protocol::Http2, &ClientOptions::default()).await.unwrap();
    tokio::spawn(driver);
    for _ in 0..2 {
        let error = session.send(upgrade_to_websocket(), None).await.unwrap_err();
        assert!(error.nothing_sent && matches!(error.kind, SendErrorKind::Unsupported), "{error:?}");
        let plain = Request::get("/").header("host", "a").body(Body::empty()).unwrap();
        assert_eq!(session.send(plain, None).await.unwrap().status(), 200, "the connection is as it was");
    }
    drop(session);
    let mut all = Vec::new();
    while let Some(method) = asked.recv().await {
        all.push(method);
    }
    assert_eq!(all, [Method::GET, Method::GET]);
}

#[tokio::test(start_paused = true)]
async fn http2_peer_is_sent_an_extended_connect_once_it_has_said_that_it_knows_them() {
    let (ours, theirs) = duplex(PIPE_BYTES);
    let mut asked = http2_peer(theirs, true);
    let (mut session, driver) = ClientSession::handshake(ours, Protocol::Http2, &ClientOptions::default()).await.unwrap();
    tokio::spawn(driver);
    assert_eq!(session.send(upgrade_to_websocket(), None).await.unwrap().status(), 101);
    assert_eq!(asked.recv().await, Some(Method::CONNECT));
}

#[tokio::test(start_paused = true)]
async fn http2_client_never_takes_an_answer_for_a_tunnel() {
    let (forward, mut upstreams) = Forward::new(Protocol::Http1, ClientEngine::Hyper);
    let (client, ours) = duplex(PIPE_BYTES);
    let options = ServerOptions { extended_connect: true, ..ServerOptions::default() };
    tokio::spawn(async move { serve(ours, Protocol::Http2, forward, &options, pending()).await });
    let (sender, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    tokio::time::sleep(QUIET).await;
    for (answer, expected) in [("200 OK", Err(Some(h2::Reason::CONNECT_ERROR))), ("404 Not Found", Ok(404))] {
        let mut request = Request::connect("http://a/ws").body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from("websocket"));
        let (answered, _stream) = sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let answer = format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
        tokio::spawn(act(upstreams.recv().await.unwrap(), vec![Do::Until("\r\n\r\n"), send(answer), Do::Fin]));
        let seen = answered.await.map(|response| response.status().as_u16()).map_err(|error| error.reason());
        assert_eq!(seen, expected);
    }
    sender.ready().await.unwrap();
}
