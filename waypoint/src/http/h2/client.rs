//! One upstream HTTP/2 connection, shared by cloning.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ::h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use ::h2::ext::Protocol;
use ::h2::{Reason, RecvStream, SendStream};
use bytes::Bytes;
use http::header;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::pump::{Pump, PumpError};
use super::{CONNECTION_WINDOW_BYTES, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES, StreamInUse, Streams, list_bytes};
use crate::hbone::Keepalive;
use crate::hbone::coalesce::coalesce;
use crate::hbone::stream::ByteStream;
use crate::http::body::{Body, BodyError};
use crate::http::client::{ClientOptions, Driver, HandshakeError, SendError, SendErrorKind, pass_interim};
use crate::http::normalize::{self, UpgradeRequested};
use crate::http::session::Interim;
use crate::http::upgrade::{Half, UpstreamHalf};

#[derive(Debug, Clone)]
pub(in crate::http) struct Http2Session {
    sender: SendRequest<Bytes>,
    streams: Arc<Streams>,
    streams_max: usize,
}

/// How long an upgrade waits for the peer to say that it knows extended CONNECT. It says so first of all, but nothing tells when it has.
const SETTINGS_WAIT_MAX: Duration = Duration::from_secs(1);
/// Between two looks.
const SETTINGS_LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Looks so often whether a connection is idle within the time that it may be.
const IDLE_LOOKS: u32 = 4;

/// Ends a connection that has had no stream for a time, or a little longer.
struct Idle {
    between_looks: Duration,
    timer: Pin<Box<Sleep>>,
    streams: Arc<Streams>,
    n_ever: usize,
    n_quiet: u32,
}

impl Idle {
    fn new(timeout: Duration, streams: &Arc<Streams>) -> Self {
        let between_looks = timeout / IDLE_LOOKS;
        Self { between_looks, timer: Box::pin(tokio::time::sleep(between_looks)), streams: Arc::clone(streams), n_ever: 0, n_quiet: 0 }
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.n_quiet < IDLE_LOOKS {
            ready!(self.timer.as_mut().poll(cx));
            let n_ever = self.streams.ever.load(Ordering::Relaxed);
            let is_quiet = self.streams.open.load(Ordering::Relaxed) == 0 && n_ever == self.n_ever;
            self.n_quiet = if is_quiet { self.n_quiet + 1 } else { 0 };
            self.n_ever = n_ever;
            self.timer.as_mut().reset(Instant::now() + self.between_looks);
        }
        Poll::Ready(())
    }
}

/// Begins HTTP/2 on a stream. Where it is a socket's, what a turn writes leaves in one write ([`ClientOptions::gathers_writes`]).
pub(in crate::http) async fn handshake<I>(io: I, options: &ClientOptions) -> Result<(Http2Session, Driver), HandshakeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = builder(options);
    if !options.gathers_writes {
        let (sender, connection) = builder.handshake::<_, Bytes>(io).await.map_err(|error| handshake_error(&error))?;
        return Ok(session(sender, connection, options, |_| Poll::Ready(Ok(()))));
    }
    let (gathered, outlet) = coalesce(io);
    let handshaken = outlet.drive(builder.handshake::<_, Bytes>(gathered)).await.map_err(|error| HandshakeError::Io(error.kind()))?;
    let (sender, connection) = handshaken.map_err(|error| handshake_error(&error))?;
    Ok(session(sender, connection, options, move |cx| outlet.poll_out(cx)))
}

fn builder(options: &ClientOptions) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
        .max_header_list_size(list_bytes(options.head_bytes_max))
        .enable_push(false);
    builder
}

fn handshake_error(error: &::h2::Error) -> HandshakeError {
    match error.get_io() {
        Some(io) => HandshakeError::Io(io.kind()),
        None => HandshakeError::Http2(error.reason().unwrap_or(Reason::INTERNAL_ERROR)),
    }
}

/// A session, and what runs its connection: `end_turn` sends what a poll of it has written.
fn session<I, F>(
    sender: SendRequest<Bytes>,
    mut connection: Connection<I, Bytes>,
    options: &ClientOptions,
    end_turn: F,
) -> (Http2Session, Driver)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(&mut Context<'_>) -> Poll<io::Result<()>> + Send + 'static,
{
    let streams = Arc::default();
    let mut keepalive = options.keepalive.and_then(|options| Some(Keepalive::new(connection.ping_pong()?, options)));
    let mut idle = options.idle_timeout.map(|timeout| Idle::new(timeout, &streams));
    let mut is_over = false;
    let driver = poll_fn(move |cx| {
        let is_dead = keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready());
        let is_idle = idle.as_mut().is_some_and(|idle| idle.poll_over(cx).is_ready());
        // Whatever ends the connection is told to the requests on it, also that this is dropped.
        if is_dead || is_idle {
            return Poll::Ready(());
        }
        is_over = is_over || Pin::new(&mut connection).poll(cx).is_ready();
        match end_turn(cx) {
            Poll::Ready(Ok(())) if !is_over => Poll::Pending,
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    });
    let streams_max = options.streams_max.unwrap_or(usize::MAX);
    (Http2Session { sender, streams, streams_max }, Box::pin(driver))
}

impl Http2Session {
    pub(in crate::http) fn is_open(&self) -> bool {
        !matches!(self.poll_now(), Poll::Ready(Err(_)))
    }

    pub(in crate::http) fn is_ready(&self) -> bool {
        let streams_max = self.sender.current_max_send_streams().min(self.streams_max);
        matches!(self.poll_now(), Poll::Ready(Ok(()))) && self.streams.open.load(Ordering::Relaxed) < streams_max
    }

    /// h2 keeps the state that this asks for behind `&mut`; a clone asks the same connection.
    fn poll_now(&self) -> Poll<Result<(), ::h2::Error>> {
        self.sender.clone().poll_ready(&mut Context::from_waker(Waker::noop()))
    }

    pub(in crate::http) async fn ready(&mut self) -> bool {
        poll_fn(|cx| self.sender.poll_ready(cx)).await.is_ok()
    }

    pub(in crate::http) fn send(&mut self, request: Request<Body>, interim: Interim) -> Sending<'_> {
        Sending::Waiting { session: self, unsent: Some((request, interim)), looks: None }
    }

    /// Ready with whether the peer knows extended CONNECT: to others it must not be sent (RFC 8441 §3), and some of them end the connection
    /// for it, with all that others have on it.
    fn poll_extended_connect(&self, cx: &mut Context<'_>, looks: &mut Option<Looks>) -> Poll<bool> {
        loop {
            if self.sender.is_extended_connect_protocol_enabled() {
                return Poll::Ready(true);
            }
            // Where a stream has ended, the peer's settings came before.
            let n_ended = self.streams.ever.load(Ordering::Relaxed).saturating_sub(self.streams.open.load(Ordering::Relaxed));
            let looks = looks.get_or_insert_default();
            if n_ended > 0 || Instant::now() >= looks.until {
                return Poll::Ready(false);
            }
            ready!(looks.timer.as_mut().poll(cx));
            looks.timer.as_mut().reset(Instant::now() + SETTINGS_LOOK_INTERVAL);
        }
    }

    /// Opens a stream for the request.
    fn begin(&mut self, request: Request<Body>, interim: Interim) -> Result<Exchanged, SendError> {
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.extensions.get::<UpgradeRequested>().cloned();
        // A body of an upgrade could not be told from what follows the switch.
        let protocol = upgrade.as_ref().map(|UpgradeRequested(protocol)| protocol.to_str().ok().filter(|_| body.is_end_stream()));
        match (normalize::target_http2(&parts), protocol) {
            (Ok(target), None) => parts.uri = target,
            (Ok(target), Some(Some(protocol))) => {
                parts.uri = target;
                parts.method = Method::CONNECT;
                parts.extensions.insert(Protocol::from(protocol));
                // RFC 9110 §9.3.6: it has no content.
                parts.headers.remove(header::CONTENT_LENGTH);
            }
            (Err(_), _) | (_, Some(None)) => return Err(SendError::unsent(SendErrorKind::Unsupported, Request::from_parts(parts, body))),
        }
        parts.headers.remove(header::HOST);
        parts.version = Version::HTTP_2;
        let is_end = body.is_end_stream() && upgrade.is_none();
        let (response, stream) = self.sender.send_request(Request::from_parts(parts, ()), is_end).map_err(|error| SendError {
            kind: connection_error(&error),
            request: None,
            nothing_sent: true,
        })?;
        let in_use = StreamInUse::new(&self.streams);
        let rest = match upgrade {
            Some(protocol) => Rest::Upgrade(stream, protocol),
            None if is_end => Rest::Nothing,
            None => Rest::Body(Pump::new(stream, body)),
        };
        Ok(Exchanged { response, rest, interim, upload_error: None, in_use: Some(in_use) })
    }
}

/// A request that waits for the peer to allow another stream, and then for its response.
pub(in crate::http) enum Sending<'a> {
    Waiting { session: &'a mut Http2Session, unsent: Option<(Request<Body>, Interim)>, looks: Option<Looks> },
    Sent(Exchanged),
}

/// Looks now and then what the peer has said of itself.
pub(in crate::http) struct Looks {
    timer: Pin<Box<Sleep>>,
    until: Instant,
}

impl Default for Looks {
    fn default() -> Self {
        Self { timer: Box::pin(tokio::time::sleep(SETTINGS_LOOK_INTERVAL)), until: Instant::now() + SETTINGS_WAIT_MAX }
    }
}

impl Future for Sending<'_> {
    type Output = Result<Response<Body>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut *self {
                Sending::Sent(exchanged) => return Pin::new(exchanged).poll(cx),
                Sending::Waiting { session, unsent, looks } => {
                    let (request, interim) = unsent.take().expect("a future is not polled after it has ended");
                    match session.sender.poll_ready(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(SendError::unsent(connection_error(&error), request))),
                        Poll::Pending => {
                            *unsent = Some((request, interim));
                            return Poll::Pending;
                        }
                    }
                    if request.extensions().get::<UpgradeRequested>().is_some() {
                        match session.poll_extended_connect(cx, looks) {
                            Poll::Ready(true) => {}
                            Poll::Ready(false) => return Poll::Ready(Err(SendError::unsent(SendErrorKind::Unsupported, request))),
                            Poll::Pending => {
                                *unsent = Some((request, interim));
                                return Poll::Pending;
                            }
                        }
                    }
                    let exchanged = session.begin(request, interim)?;
                    *self = Sending::Sent(exchanged);
                }
            }
        }
    }
}

/// What of a request is still to be sent.
enum Rest {
    /// Nothing.
    Nothing,
    /// The rest of its body.
    Body(Pump),
    /// Whatever follows the switch that it asks for.
    Upgrade(SendStream<Bytes>, UpgradeRequested),
}

/// A request that is sent, and its response awaited, at the same time.
pub(in crate::http) struct Exchanged {
    response: ResponseFuture,
    rest: Rest,
    interim: Interim,
    upload_error: Option<BodyError>,
    in_use: Option<StreamInUse>,
}

impl Future for Exchanged {
    type Output = Result<Response<Body>, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Rest::Body(upload) = &mut this.rest
            && let Poll::Ready(ended) = upload.poll(cx)
        {
            this.rest = Rest::Nothing;
            if let Err(PumpError::Body(error)) = ended {
                this.upload_error = Some(error);
            }
        }
        while let Poll::Ready(Some(Ok(response))) = this.response.poll_informational(cx) {
            pass_interim(&this.interim, response.status(), response.headers());
        }
        let response = match std::task::ready!(Pin::new(&mut this.response).poll(cx)) {
            Ok(response) => response,
            Err(error) => {
                let kind = this.upload_error.map_or_else(|| response_error(&error), SendErrorKind::RequestBody);
                return Poll::Ready(Err(SendError::new(kind)));
            }
        };
        Poll::Ready(receive(response, std::mem::replace(&mut this.rest, Rest::Nothing), this.in_use.take()))
    }
}

fn receive(response: Response<RecvStream>, rest: Rest, in_use: Option<StreamInUse>) -> Result<Response<Body>, SendError> {
    let (mut parts, stream) = response.into_parts();
    normalize::response_in(parts.status, &mut parts.headers).map_err(|problem| SendError::new(SendErrorKind::Malformed(problem)))?;
    let upload = match rest {
        Rest::Upgrade(outgoing, protocol) if parts.status == StatusCode::OK => {
            // A 101 between both sides, whatever these speak (RFC 8441 §5).
            parts.status = StatusCode::SWITCHING_PROTOCOLS;
            let half = Half::Http2(Box::new(ByteStream::new(outgoing, stream)), in_use);
            parts.extensions.insert(UpstreamHalf::new(half));
            parts.extensions.insert(protocol);
            return Ok(Response::from_parts(parts, Body::empty()));
        }
        // Refused: nothing follows.
        Rest::Upgrade(mut outgoing, _) => {
            // A stream that is over by now needs no end.
            let _over = outgoing.send_data(Bytes::new(), true);
            None
        }
        Rest::Body(upload) => Some(upload),
        Rest::Nothing => None,
    };
    let is_over = stream.is_end_stream();
    let body = Body::http2(stream, normalize::content_length(&parts.headers)).counted(in_use);
    let body = match upload {
        // The response began before the request ended: the rest is sent beside it.
        Some(mut upload) if !is_over => body.with_upload(
            tokio::spawn(async move {
                let _ended = poll_fn(|cx| upload.poll(cx)).await;
            })
            .abort_handle(),
        ),
        // The answer is over: nobody will end an upload, and dropping it resets the stream, as Envoy does (RFC 9113 §8.1).
        _ => body,
    };
    Ok(Response::from_parts(parts, body))
}

/// What ended a connection before a stream was opened on it.
fn connection_error(error: &::h2::Error) -> SendErrorKind {
    if error.is_library() && error.is_go_away() {
        return SendErrorKind::Protocol(error.reason().unwrap_or(Reason::INTERNAL_ERROR));
    }
    SendErrorKind::ConnectionClosedBeforeResponse
}

/// What ended a stream before its response.
fn response_error(error: &::h2::Error) -> SendErrorKind {
    if let Some(io) = error.get_io() {
        return match io.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::UnexpectedEof => SendErrorKind::ConnectionClosedBeforeResponse,
            kind => SendErrorKind::Io(kind),
        };
    }
    match error.reason() {
        Some(Reason::REFUSED_STREAM) if error.is_remote() => SendErrorKind::RefusedStream,
        Some(_) if error.is_remote() && error.is_go_away() => SendErrorKind::RefusedStream,
        Some(reason) if error.is_remote() => SendErrorKind::Reset(reason),
        Some(reason) => SendErrorKind::Protocol(reason),
        None => SendErrorKind::ConnectionClosedBeforeResponse,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::atomic::AtomicUsize;

    use tokio::io::DuplexStream;
    use tokio::time::timeout;

    use super::*;
    use crate::hbone::KeepaliveOptions;
    use crate::hbone::coalesce::tests::Counting;

    const SECOND: Duration = Duration::from_secs(1);

    /// A session, its driver, and a peer that has said hello.
    async fn session(options: ClientOptions) -> (Http2Session, Driver, ::h2::server::Connection<DuplexStream, Bytes>) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (made, peer) = tokio::join!(handshake(near, &options), ::h2::server::handshake(far));
        let (session, driver) = made.unwrap();
        (session, driver, peer.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_no_ping_is_left_and_one_that_answers_is_not() {
        let keepalive = Some(KeepaliveOptions { interval: SECOND, timeout: SECOND });
        let (session, driver, peer) = session(ClientOptions { keepalive, ..ClientOptions::default() }).await;
        timeout(3 * SECOND, driver).await.expect("nobody answers");
        assert!(!session.is_open());
        drop(peer);

        let (session, driver, mut peer) = super::tests::session(ClientOptions { keepalive, ..ClientOptions::default() }).await;
        let driving = tokio::spawn(driver);
        let answering = tokio::spawn(async move { peer.accept().await.is_none() });
        tokio::time::sleep(10 * SECOND).await;
        assert!(session.is_open() && !driving.is_finished() && !answering.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_streams_ends_after_its_idle_time() {
        let (mut session, driver, mut peer) = session(ClientOptions { idle_timeout: Some(4 * SECOND), ..ClientOptions::default() }).await;
        let driving = tokio::spawn(driver);
        let serving = tokio::spawn(async move {
            let (_request, mut respond) = peer.accept().await.unwrap().unwrap();
            tokio::spawn(async move { peer.accept().await.is_none() });
            tokio::time::sleep(20 * SECOND).await;
            respond.send_response(Response::new(()), true).unwrap();
        });
        let request = Request::get("/").header(header::HOST, "a").body(Body::empty()).unwrap();
        let answered = session.send(request, Interim::none()).await;
        assert!(answered.is_ok() && !driving.is_finished(), "a stream that waits is in use");
        serving.await.unwrap();
        drop(answered);
        tokio::time::sleep(3 * SECOND).await;
        assert!(session.is_open());
        timeout(3 * SECOND, driving).await.expect("it is idle").unwrap();
        assert!(!session.is_open());
    }

    #[tokio::test]
    async fn streams_have_a_limit_of_the_cluster_s_beside_the_peer_s() {
        let (mut session, driver, mut peer) = session(ClientOptions { streams_max: Some(1), ..ClientOptions::default() }).await;
        tokio::spawn(driver);
        tokio::spawn(async move { peer.accept().await.map(Result::unwrap) });
        assert!(session.is_ready());
        let request = Request::get("/").header(header::HOST, "a").body(Body::empty()).unwrap();
        let mut sharing = session.clone();
        let mut sending = std::pin::pin!(sharing.send(request, Interim::none()));
        poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx).is_pending())).await;
        assert!(session.is_open() && !session.is_ready());
        assert!(session.ready().await, "the peer would take another");
    }

    /// Writes that uploads of several requests in one turn need.
    async fn writes_of_uploads(gathers_writes: bool) -> usize {
        const REQUESTS: usize = 32;
        let (near, far) = tokio::io::duplex(1024 * 1024);
        let writes = Arc::new(AtomicUsize::new(0));
        let options = ClientOptions { gathers_writes, ..ClientOptions::default() };
        let near = Counting { io: near, writes: Arc::clone(&writes) };
        let (made, peer) = tokio::join!(handshake(near, &options), ::h2::server::handshake(far));
        let ((session, mut driver), mut peer) = (made.unwrap(), peer.unwrap());
        // What the connection says of itself is out, and what the peer says of itself has been read.
        for _ in 0..2 {
            poll_fn(|cx| Poll::Ready(peer.poll_accept(cx).is_pending())).await;
            poll_fn(|cx| Poll::Ready(driver.as_mut().poll(cx).is_pending())).await;
        }
        let before = writes.load(Ordering::Relaxed);
        let mut sessions = vec![session; REQUESTS];
        let mut sending: Vec<_> = sessions.iter_mut().map(|session| Box::pin(session.send(upload(), Interim::none()))).collect();
        // Two turns: a stream gets room for its body when it has been opened.
        for _ in 0..2 {
            poll_fn(|cx| {
                let is_waiting = sending.iter_mut().all(|sending| sending.as_mut().poll(cx).is_pending());
                Poll::Ready(is_waiting && driver.as_mut().poll(cx).is_pending())
            })
            .await;
        }
        let mut requests = Vec::new();
        while requests.len() < REQUESTS {
            requests.push(peer.accept().await.unwrap().unwrap());
        }
        let serving = tokio::spawn(async move { peer.accept().await.is_none() });
        for (request, _respond) in &mut requests {
            assert_eq!(request.body_mut().data().await.unwrap().unwrap().len(), 1024);
        }
        serving.abort();
        writes.load(Ordering::Relaxed) - before
    }

    fn upload() -> Request<Body> {
        let body = Body::full(Bytes::from_static(&[7; 1024]));
        Request::post("/").header(header::HOST, "a").body(body).unwrap()
    }

    #[tokio::test]
    async fn what_requests_of_many_streams_write_in_one_turn_leaves_a_socket_in_one_write() {
        let writes = |gathers_writes| timeout(10 * SECOND, writes_of_uploads(gathers_writes));
        assert!(writes(true).await.unwrap() <= 2, "one for the heads, one for the bodies");
        assert!(writes(false).await.unwrap() >= 32, "h2 flushes after each body");
    }
}
