//! Terminates HBONE: TLS, HTTP/2, and one call of a [`ConnectHandler`] per CONNECT.
//!
//! Not for: accepting TCP (`listen`), nor what a CONNECT leads to.
//! Invariants: a peer that stalls holds one connection and nothing else, for at most the handshake's time limit; every
//! CONNECT is answered, by its handler or by the time limit; a drain lets open streams finish until its deadline.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use model::authority::{Authority, AuthorityError};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use super::coalesce::{Coalesce, Outlet, coalesce};
use super::stream::HboneStream;
use super::{ConnectionEnd, ConnectionFacts, Downstream, Keepalive, KeepaliveOptions, Open, WindowOptions};
use super::{FRAME_BYTES_MAX, HEADER_LIST_BYTES_MAX, SEND_QUEUE_BYTES_MAX};
use crate::drain::{DrainWatch, Phase};
use crate::tls::{MeshTls, TlsFailure};

/// How long the last bytes of a connection may take to leave.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Limits of one server, all with defaults.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// From the accepted socket to the HTTP/2 preface. ztunnel has no limit of its own and holds all new connections of
    /// its pod meanwhile.
    pub handshake_timeout: Duration,
    /// How long a CONNECT may go unanswered.
    pub answer_timeout: Duration,
    /// Streams that one connection may have open. ztunnel opens about 100 whatever is advertised, sometimes a few more,
    /// and what is above waits without a limit: not less than 100, and better more.
    pub streams_max: u32,
    /// CONNECTs of one connection that may be unanswered at a time; more are answered 503.
    pub unanswered_max: usize,
    /// Flow control.
    pub windows: WindowOptions,
    /// PINGs.
    pub keepalive: KeepaliveOptions,
    /// When a connection gets a GOAWAY however it is used, so that its peer authenticates anew; streams finish.
    pub age_max: Option<Duration>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(30),
            streams_max: 200,
            unanswered_max: 200,
            windows: WindowOptions::default(),
            keepalive: KeepaliveOptions::default(),
            age_max: None,
        }
    }
}

/// Why a connection never became one.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum HandshakeRefusal {
    /// We have no certificate yet.
    #[error("no certificate to serve with yet")]
    NoIdentity,
    /// TLS failed.
    #[error("{0}")]
    Tls(TlsFailure),
    /// TLS is up, but what follows is not HTTP/2.
    #[error("no HTTP/2 after the TLS handshake: {0}")]
    Http2(ConnectionEnd),
    /// Nothing of the above within the limit.
    #[error("the handshake took too long")]
    Timeout,
    /// The process ends.
    #[error("stopped during the handshake")]
    Stopped,
}

impl HandshakeRefusal {
    /// The reason as a label or log value: lower case, closed list.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoIdentity => "no_identity",
            Self::Tls(failure) => failure.name(),
            Self::Http2(_) => "not_http2",
            Self::Timeout => "handshake_timeout",
            Self::Stopped => "stopped",
        }
    }
}

/// Why a CONNECT never reached its handler, or was taken from it.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConnectRefusal {
    /// Another method.
    #[error("the method is {0}, not CONNECT")]
    Method(Method),
    /// `:authority` is no target.
    #[error("bad :authority: {0}")]
    Authority(AuthorityError),
    /// Too many are waiting already.
    #[error("too many CONNECTs of this connection are unanswered")]
    TooMany,
    /// The handler did not answer in time.
    #[error("not answered in time")]
    Timeout,
}

impl ConnectRefusal {
    /// The answer. Only CONNECT is routed on this port, so other methods find nothing (as in Envoy).
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Method(_) => StatusCode::NOT_FOUND,
            Self::Authority(_) => StatusCode::BAD_REQUEST,
            Self::TooMany => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// Is told what no handler sees, for logs and metrics. Called on the data path: it must not block.
pub trait ServerObserver: Send + Sync + 'static {
    /// A connection failed before it was one.
    fn handshake_refused(&self, _peer: SocketAddr, _local: Option<SocketAddr>, _reason: &HandshakeRefusal) {}
    /// A TLS handshake succeeded.
    fn tls_established(&self, _took: Duration) {}
    /// A connection is established.
    fn connection_opened(&self, _connection: &Downstream) {}
    /// A connection is over; told of each that was opened, whatever becomes of who drives it.
    fn connection_closed(&self, _connection: &Downstream, _end: &ConnectionEnd) {}
    /// A CONNECT was answered without its handler; `authority` as it came.
    fn connect_refused(&self, _connection: &Downstream, _authority: &str, _reason: &ConnectRefusal) {}
}

/// Tells nobody.
impl ServerObserver for () {}

/// Decides about each CONNECT. The future runs on the connection's runtime, apart from the connection.
pub trait ConnectHandler: Send + Sync + 'static {
    /// Answers `connect` and serves what comes of it.
    fn handle(&self, connect: Connect) -> impl Future<Output = ()> + Send + 'static;
}

impl<F, Fut> ConnectHandler for F
where
    F: Fn(Connect) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn handle(&self, connect: Connect) -> impl Future<Output = ()> + Send + 'static {
        self(connect)
    }
}

/// One CONNECT that waits for its answer.
#[derive(Debug)]
pub struct Connect {
    /// Where it wants to go.
    pub authority: Authority,
    /// Its header fields (`baggage`, `forwarded`, `traceparent`, all optional).
    pub headers: HeaderMap,
    /// The connection it came on.
    pub connection: Arc<Downstream>,
    /// What the answer that opens the tunnel is to say.
    pub told: HeaderMap,
    /// How to answer it. Dropped unanswered, it answers 500.
    pub answer: Answer,
}

impl Connect {
    /// Answers 200 and opens the tunnel.
    ///
    /// # Errors
    /// See [`Answer::accept`].
    pub fn accept(self) -> Result<HboneStream, AnswerError> {
        self.answer.accept(self.told)
    }

    /// Answers with a status that is not 200; the client's application sees a reset connection.
    pub fn reject(self, status: StatusCode) {
        self.answer.reject(status);
    }
}

/// Why a tunnel cannot be opened any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AnswerError {
    /// The time limit has answered.
    #[error("the CONNECT was not answered in time")]
    TooLate,
    /// The client or its connection is gone.
    #[error("the client is gone")]
    Gone,
}

/// A CONNECT's way back; shared with the time limit, and emptied by whoever answers first.
#[derive(Debug, Default)]
struct Slot(Mutex<Option<(SendResponse<Bytes>, RecvStream)>>);

impl Slot {
    fn is_answered(&self) -> bool {
        self.0.lock().is_none()
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.0.lock() {
            Some((respond, _)) => respond.poll_reset(cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    fn reject(&self, status: StatusCode) -> bool {
        let Some((mut respond, _)) = self.0.lock().take() else { return false };
        let mut response = Response::new(());
        *response.status_mut() = status;
        // Fails only for a stream that is gone, which needs no answer.
        let _ = respond.send_response(response, true);
        true
    }
}

/// The right to answer one CONNECT.
#[derive(Debug)]
pub struct Answer {
    slot: Arc<Slot>,
    connection: Arc<Downstream>,
}

impl Answer {
    /// Answers 200 with `headers` and opens the tunnel.
    ///
    /// # Errors
    /// Nobody waits for the answer any more.
    pub fn accept(self, headers: HeaderMap) -> Result<HboneStream, AnswerError> {
        let (mut respond, body) = self.slot.0.lock().take().ok_or(AnswerError::TooLate)?;
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = respond.send_response(response, false).map_err(|_| AnswerError::Gone)?;
        Ok(HboneStream::new(send, body, Arc::clone(&self.connection)))
    }

    /// Waits until the client has reset the stream, or its connection has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn gone(&self) {
        poll_fn(|cx| self.slot.poll_gone(cx)).await;
    }

    /// Answers with a status that is not 200.
    pub fn reject(self, status: StatusCode) {
        self.slot.reject(status);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.slot.reject(StatusCode::INTERNAL_SERVER_ERROR);
    }
}

/// Serves HBONE connections. One per worker, or shared.
pub struct Server<H> {
    tls: Arc<MeshTls>,
    handler: H,
    observer: Arc<dyn ServerObserver>,
    options: ServerOptions,
    drain: DrainWatch,
}

impl<H> std::fmt::Debug for Server<H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("options", &self.options).finish_non_exhaustive()
    }
}

type Io = TlsStream<TcpStream>;

struct Established {
    connection: Connection<Coalesce<Io>, Bytes>,
    outlet: Outlet<Io>,
    facts: Arc<Downstream>,
}

impl<H: ConnectHandler> Server<H> {
    /// A server that takes its certificate from `tls` at each connection.
    pub fn new(tls: Arc<MeshTls>, handler: H, observer: Arc<dyn ServerObserver>, options: ServerOptions, drain: DrainWatch) -> Self {
        Self { tls, handler, observer, options, drain }
    }

    /// Serves one connection to its end. Dropping the future cuts it.
    pub async fn serve_connection(&self, tcp: TcpStream, peer_address: SocketAddr) {
        let _guard = self.drain.guard();
        let local_address = tcp.local_addr().ok();
        let mut stop = self.drain.clone();
        let established = tokio::select! {
            biased;
            () = stop.stopped() => Err(HandshakeRefusal::Stopped),
            established = tokio::time::timeout(self.options.handshake_timeout, self.establish(tcp, peer_address)) => {
                established.unwrap_or(Err(HandshakeRefusal::Timeout))
            }
        };
        match established {
            Err(reason) => self.observer.handshake_refused(peer_address, local_address, &reason),
            Ok(established) => {
                let facts = Arc::clone(&established.facts);
                self.observer.connection_opened(&facts);
                let living = Open::new(|end| self.observer.connection_closed(&facts, end));
                living.ends(Driver::new(self, established).drive().await);
            }
        }
    }

    async fn establish(&self, tcp: TcpStream, peer_address: SocketAddr) -> Result<Established, HandshakeRefusal> {
        let socket = |error: std::io::Error| HandshakeRefusal::Tls(TlsFailure::from_io(&error));
        let local_address = tcp.local_addr().map_err(socket)?;
        let tls = self.tls.server().ok_or(HandshakeRefusal::NoIdentity)?;
        let began = Instant::now();
        let (stream, handshake) = tls.accept(tcp).await.map_err(HandshakeRefusal::Tls)?;
        self.observer.tls_established(began.elapsed());
        let (gathered, outlet) = coalesce(stream);
        let failure = outlet.failure();
        let handshaken = outlet.drive(self.builder().handshake(gathered)).await.map_err(socket)?;
        let connection = handshaken.map_err(|error| HandshakeRefusal::Http2(ConnectionEnd::from_h2(&error, &failure)))?;
        Ok(Established { connection, outlet, facts: Arc::new(ConnectionFacts::new(peer_address, local_address, handshake)) })
    }

    fn builder(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(self.options.windows.stream())
            .initial_connection_window_size(self.options.windows.connection())
            .max_concurrent_streams(self.options.streams_max)
            .max_frame_size(FRAME_BYTES_MAX)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_send_buffer_size(SEND_QUEUE_BYTES_MAX);
        builder
    }
}

/// CONNECTs that wait for their answer, oldest first; all have the same time limit.
struct Unanswered {
    waiting: VecDeque<(Instant, Arc<Slot>, Arc<str>)>,
    timer: Pin<Box<Sleep>>,
    timeout: Duration,
    max: usize,
}

impl Unanswered {
    fn new(timeout: Duration, max: usize) -> Self {
        Self { waiting: VecDeque::new(), timer: Box::pin(tokio::time::sleep(timeout)), timeout, max }
    }

    /// Whether one more may wait. Answered ones are forgotten on the way, which bounds the queue by `max`.
    fn has_room(&mut self) -> bool {
        while self.waiting.front().is_some_and(|(_, slot, _)| slot.is_answered()) {
            self.waiting.pop_front();
        }
        if self.waiting.len() >= self.max {
            self.waiting.retain(|(_, slot, _)| !slot.is_answered());
        }
        self.waiting.len() < self.max
    }

    fn push(&mut self, slot: Arc<Slot>, authority: Arc<str>) {
        self.waiting.push_back((Instant::now() + self.timeout, slot, authority));
    }

    /// Ready with the authority of a CONNECT that was refused because its time is over.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Arc<str>> {
        while let Some((deadline, slot, _)) = self.waiting.front() {
            if !slot.is_answered() {
                if self.timer.deadline() != *deadline {
                    self.timer.as_mut().reset(*deadline);
                }
                if self.timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
            if let Some((_, slot, authority)) = self.waiting.pop_front()
                && slot.reject(ConnectRefusal::Timeout.status())
            {
                return Poll::Ready(authority);
            }
        }
        Poll::Pending
    }
}

/// One connection being served.
struct Driver<'a, H> {
    server: &'a Server<H>,
    connection: Connection<Coalesce<Io>, Bytes>,
    outlet: Outlet<Io>,
    facts: Arc<Downstream>,
    keepalive: Option<Keepalive>,
    unanswered: Unanswered,
    /// Some request has come on this connection.
    served: bool,
}

enum Event {
    Request(Box<Request<RecvStream>>, SendResponse<Bytes>),
    Overdue(Arc<str>),
    Over(ConnectionEnd),
}

impl<'a, H: ConnectHandler> Driver<'a, H> {
    fn new(server: &'a Server<H>, established: Established) -> Self {
        let Established { mut connection, outlet, facts } = established;
        let options = &server.options;
        let keepalive = connection.ping_pong().map(|ping| Keepalive::new(ping, options.keepalive));
        let unanswered = Unanswered::new(options.answer_timeout, options.unanswered_max);
        Self { server, connection, outlet, facts, keepalive, unanswered, served: false }
    }

    async fn drive(mut self) -> ConnectionEnd {
        let (mut stop, mut drain) = (self.server.drain.clone(), self.server.drain.clone());
        let mut stopped = pin!(stop.stopped());
        let mut draining = pin!(drain.draining());
        let age = self.server.options.age_max;
        let mut aged = pin!(async move {
            match age {
                Some(age) => tokio::time::sleep(age).await,
                None => std::future::pending().await,
            }
        });
        // A connection that was made during the drain is told to leave with its first request, not before: its client
        // would only dial again.
        let early = self.server.drain.phase() == Phase::Running;
        let mut leaving = false;
        let end = loop {
            // Cancel safe: each arm only waits, and what `poll_event` takes out of the connection it returns at once.
            let event = tokio::select! {
                biased;
                () = &mut stopped => break ConnectionEnd::Stopped,
                () = &mut draining, if !leaving && (early || self.served) => None,
                () = &mut aged, if !leaving => None,
                event = std::future::poll_fn(|cx| self.poll_event(cx)) => Some(event),
            };
            match event {
                None => {
                    leaving = true;
                    self.connection.graceful_shutdown();
                }
                Some(Event::Request(request, respond)) => self.on_request(*request, respond),
                Some(Event::Overdue(authority)) => self.refused(&authority, &ConnectRefusal::Timeout),
                Some(Event::Over(end)) => break end,
            }
        };
        self.close(end, stopped).await
    }

    /// Lets the last bytes leave, as far as the peer takes them.
    async fn close(&mut self, end: ConnectionEnd, stopped: Pin<&mut impl Future<Output = ()>>) -> ConnectionEnd {
        if matches!(end, ConnectionEnd::KeepaliveTimeout | ConnectionEnd::Stopped) {
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
            std::future::poll_fn(|cx| {
                let _ = self.connection.poll_closed(cx).map(drop);
                let _ = self.outlet.poll_out(cx).map(drop);
                Poll::Ready(())
            })
            .await;
        } else if !matches!(end, ConnectionEnd::Failed(_)) {
            tokio::select! {
                biased;
                () = stopped => {}
                // Whether the peer takes them or not, the connection is over.
                _ = tokio::time::timeout(CLOSE_TIMEOUT, self.outlet.flushed()) => {}
            }
        }
        end
    }

    /// One turn of the connection. What the timers cause is written in the same turn.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready()) {
            return Poll::Ready(Event::Over(ConnectionEnd::KeepaliveTimeout));
        }
        if let Poll::Ready(authority) = self.unanswered.poll_overdue(cx) {
            return Poll::Ready(Event::Overdue(authority));
        }
        let turn = self.connection.poll_accept(cx);
        self.outlet.end_turn(cx, turn).map(|accepted| match accepted {
            Ok(Some(Ok((request, respond)))) => Event::Request(Box::new(request), respond),
            Ok(Some(Err(error))) => Event::Over(ConnectionEnd::from_h2(&error, &self.outlet.failure())),
            Ok(None) => Event::Over(ConnectionEnd::Closed),
            Err(error) => Event::Over(ConnectionEnd::Failed(TlsFailure::from_io(self.outlet.failure().get().unwrap_or(&error)))),
        })
    }

    fn on_request(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.served = true;
        let (head, body) = request.into_parts();
        let text: Arc<str> = head.uri.authority().map_or("", |authority| authority.as_str()).into();
        let slot = Arc::new(Slot(Mutex::new(Some((respond, body)))));
        let authority = if head.method == Method::CONNECT {
            Authority::parse(&text).map_err(ConnectRefusal::Authority)
        } else {
            Err(ConnectRefusal::Method(head.method))
        };
        let room = self.unanswered.has_room();
        let authority = authority.and_then(|authority| if room { Ok(authority) } else { Err(ConnectRefusal::TooMany) });
        match authority {
            Err(reason) => {
                slot.reject(reason.status());
                self.refused(&text, &reason);
            }
            Ok(authority) => {
                self.unanswered.push(Arc::clone(&slot), text);
                let answer = Answer { slot, connection: Arc::clone(&self.facts) };
                let connect =
                    Connect { authority, headers: head.headers, connection: Arc::clone(&self.facts), told: HeaderMap::new(), answer };
                tokio::spawn(self.server.handler.handle(connect));
            }
        }
    }

    fn refused(&self, authority: &str, reason: &ConnectRefusal) {
        self.server.observer.connect_refused(&self.facts, authority, reason);
    }
}
