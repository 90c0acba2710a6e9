//! Originates HBONE: dials one connection, and opens tunnels on it.
//!
//! Not for: which connection to use, nor when to try again; [`super::pool`] decides.
//! Invariant: nothing of a tunnel's payload is sent before its CONNECT was answered 200, so a failure here never leaves
//! it open whether the payload arrived.

use std::borrow::Cow;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::{Connection, SendRequest};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use model::authority::Authority;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::client::TlsStream;

use super::coalesce::{Coalesce, Failure, Outlet, coalesce};
use super::pool::PoolObserver;
use super::stream::{HboneStream, StreamLease};
use super::{ConnectionEnd, ConnectionFacts, Keepalive, KeepaliveOptions, Upstream, WindowOptions};
use super::{FRAME_BYTES_MAX, HEADER_LIST_BYTES_MAX, SEND_QUEUE_BYTES_MAX};
use crate::listen;
use crate::tls::{ClientTls, TlsFailure, rustls_cause};

/// Limits of one connection that we open, all with defaults.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// For TCP, TLS and the HTTP/2 preface together (Istio's default connect timeout).
    pub connect_timeout: Duration,
    /// For the answer to a CONNECT. A little more than the 10 s that ztunnel gives the application, so that its 503
    /// arrives before ours.
    pub answer_timeout: Duration,
    /// Flow control.
    pub windows: WindowOptions,
    /// PINGs.
    pub keepalive: KeepaliveOptions,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(12),
            windows: WindowOptions::default(),
            keepalive: KeepaliveOptions::default(),
        }
    }
}

/// Why there is no tunnel. Nothing of its payload was sent in any of these.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ConnectError {
    /// Nothing listens there.
    #[error("connection refused")]
    TcpRefused,
    /// No answer to the SYN; often a NetworkPolicy that forgets port 15008.
    #[error("TCP connect timed out; is port 15008 blocked by a NetworkPolicy?")]
    TcpTimeout,
    /// Any other failure to connect; the text is the system's.
    #[error("TCP connect failed: {text}")]
    Tcp {
        /// Its kind.
        kind: io::ErrorKind,
        /// The system's words.
        text: Box<str>,
    },
    /// TLS failed, or the peer refused our certificate.
    #[error("TLS failed: {0}")]
    Tls(TlsFailure),
    /// TCP is up, but TLS and HTTP/2 were not in time.
    #[error("the TLS handshake timed out")]
    HandshakeTimeout,
    /// TLS is up, but the peer does not speak HTTP/2.
    #[error("no HTTP/2 after the TLS handshake: {0}")]
    Handshake(ConnectionEnd),
    /// The destination answered, but not with 200: 503 the application does not accept, 401 a policy denies, 400 the
    /// destination knows no such pod.
    #[error("the destination answered the CONNECT with {0}")]
    TunnelStatus(StatusCode),
    /// The destination did not answer the CONNECT in time.
    #[error("the destination did not answer the CONNECT")]
    TunnelTimeout,
    /// The destination reset the CONNECT.
    #[error("the destination reset the CONNECT: {0}")]
    TunnelReset(Reason),
    /// The connection ended before the CONNECT was answered, again after a retry if there was one to make.
    #[error("the connection was lost before the CONNECT was answered")]
    ConnectionLost,
    /// The CONNECT cannot be written as HTTP/2.
    #[error("the CONNECT is not valid HTTP/2")]
    Invalid,
    /// The pool may hold no more connections, or too many wait for one.
    #[error("too many HBONE connections")]
    PoolFull,
}

impl ConnectError {
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`, in Envoy's words where it has some, without spaces.
    #[must_use]
    pub fn transport_failure_reason(&self) -> Cow<'static, str> {
        match self {
            Self::TcpRefused => "delayed_connect_error:_Connection_refused".into(),
            Self::TcpTimeout => "connect_timeout".into(),
            Self::Tcp { text, .. } => format!("delayed_connect_error:_{}", text.replace(' ', "_")).into(),
            Self::Tls(failure) => format!("TLS_error:_{}", failure.to_string().replace(' ', "_")).into(),
            Self::HandshakeTimeout => "TLS_error:_handshake_timeout".into(),
            Self::Handshake(_) => "protocol_error".into(),
            Self::TunnelStatus(status) => format!("tunnel_response:{}", status.as_u16()).into(),
            Self::TunnelTimeout => "tunnel_response_timeout".into(),
            Self::TunnelReset(_) => "tunnel_reset".into(),
            Self::ConnectionLost => "connection_termination".into(),
            Self::Invalid => "invalid_tunnel_request".into(),
            Self::PoolFull => "hbone_pool_overflow".into(),
        }
    }

    pub(super) fn from_tcp(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::TcpRefused,
            io::ErrorKind::TimedOut => Self::TcpTimeout,
            kind => {
                let text = error.to_string();
                let words = text.split(" (os error").next().unwrap_or(&text);
                Self::Tcp { kind, text: words.into() }
            }
        }
    }
}

pub(super) type Io = TlsStream<TcpStream>;

/// A new connection, and what must be polled for it to live.
pub(super) struct Dialled {
    pub(super) send: SendRequest<Bytes>,
    pub(super) driver: Driver<Io>,
    pub(super) facts: Arc<Upstream>,
    pub(super) failure: Arc<Failure>,
}

/// Opens one connection. It may turn out later that the peer refuses our certificate; see [`ClientTls::connect`].
pub(super) async fn dial(
    address: SocketAddr,
    tls: &ClientTls,
    options: &ClientOptions,
    observer: &dyn PoolObserver,
) -> Result<Dialled, ConnectError> {
    let began = Instant::now();
    let deadline = began + options.connect_timeout;
    let tcp = match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| ConnectError::from_tcp(&error))?,
        Err(_) => return Err(ConnectError::TcpTimeout),
    };
    let connected = Instant::now();
    observer.tcp_connected(connected - began);
    listen::tune(&tcp).map_err(|error| ConnectError::from_tcp(&error))?;
    let local_address = tcp.local_addr().map_err(|error| ConnectError::from_tcp(&error))?;
    let handshake = async {
        let (stream, handshake) = tls.connect(tcp, address.ip()).await.map_err(ConnectError::Tls)?;
        observer.tls_established(connected.elapsed());
        let facts = Arc::new(ConnectionFacts::new(address, local_address, handshake));
        let Established { send, driver, failure } = establish(stream, options).await?;
        Ok(Dialled { send, driver, facts, failure })
    };
    timeout_at(deadline, handshake).await.unwrap_or(Err(ConnectError::HandshakeTimeout))
}

/// HTTP/2 on a stream, and what must be polled for it to live.
pub(super) struct Established<I> {
    pub(super) send: SendRequest<Bytes>,
    pub(super) driver: Driver<I>,
    pub(super) failure: Arc<Failure>,
}

/// Begins HTTP/2 on a stream.
pub(super) async fn establish<I>(stream: I, options: &ClientOptions) -> Result<Established<I>, ConnectError>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let (gathered, outlet) = coalesce(stream);
    let failure = outlet.failure();
    let handshaken = outlet.drive(builder(options).handshake(gathered)).await;
    let handshaken = handshaken.map_err(|error| ConnectError::Tls(TlsFailure::from_io(failure.get().unwrap_or(&error))))?;
    let (send, mut connection) = handshaken.map_err(|error| ConnectError::Handshake(ConnectionEnd::from_h2(&error, &failure)))?;
    let keepalive = connection.ping_pong().map(|ping| Keepalive::new(ping, options.keepalive));
    Ok(Established { send, driver: Driver { connection, outlet, keepalive, ended: None }, failure })
}

/// Whether it is TLS that failed, not what carries it.
pub(super) fn is_of_tls(error: &io::Error) -> bool {
    rustls_cause(error).is_some()
}

fn builder(options: &ClientOptions) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(options.windows.stream())
        .initial_connection_window_size(options.windows.connection())
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(SEND_QUEUE_BYTES_MAX);
    builder
}

/// Moves the frames of one connection; ends when the connection does.
pub(super) struct Driver<I> {
    connection: Connection<Coalesce<I>, Bytes>,
    outlet: Outlet<I>,
    keepalive: Option<Keepalive>,
    ended: Option<ConnectionEnd>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Driver<I> {
    /// One turn. Ready when the connection is over and its last bytes are out.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionEnd> {
        if self.keepalive.as_mut().is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready()) {
            return Poll::Ready(ConnectionEnd::KeepaliveTimeout);
        }
        if self.ended.is_none()
            && let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx)
        {
            self.ended = Some(match result {
                Ok(()) => ConnectionEnd::Closed,
                Err(error) => ConnectionEnd::from_h2(&error, &self.outlet.failure()),
            });
        }
        match self.outlet.poll_out(cx) {
            Poll::Ready(Err(error)) => {
                let failure = self.outlet.failure();
                let failed = ConnectionEnd::Failed(TlsFailure::from_io(failure.get().unwrap_or(&error)));
                Poll::Ready(self.ended.take().unwrap_or(failed))
            }
            Poll::Ready(Ok(())) => self.ended.take().map_or(Poll::Pending, Poll::Ready),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// What became of one CONNECT.
#[derive(Debug)]
pub(super) enum OpenFailure {
    /// The peer has certainly not acted on it: another connection may be tried.
    Refused,
    /// The connection ended before an answer.
    Lost,
    /// Final.
    Failed(ConnectError),
}

/// A CONNECT that can be sent more than once.
#[derive(Debug)]
pub(super) struct Tunnel<'a> {
    pub(super) authority: &'a Authority,
    pub(super) headers: &'a HeaderMap,
    pub(super) answer_timeout: Duration,
}

/// A connection to open a tunnel on: a sender that is ready, and a place among its streams.
pub(super) struct Place {
    pub(super) send: SendRequest<Bytes>,
    pub(super) lease: StreamLease,
    pub(super) facts: Arc<Upstream>,
}

/// Sends one CONNECT and waits for its answer. Dropping the future resets the stream.
pub(super) async fn open(mut place: Place, tunnel: &Tunnel<'_>) -> Result<HboneStream, OpenFailure> {
    let invalid = || OpenFailure::Failed(ConnectError::Invalid);
    let uri: Uri = tunnel.authority.to_string().parse().map_err(|_| invalid())?;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    *request.headers_mut() = tunnel.headers.clone();
    let (response, send) = place.send.send_request(request, false).map_err(|error| classify(&error))?;
    // Not needed any more; a sender that is kept would keep the connection open.
    drop(place.send);
    let response = timeout(tunnel.answer_timeout, response).await;
    let response = response.map_err(|_| OpenFailure::Failed(ConnectError::TunnelTimeout))?.map_err(|error| classify(&error))?;
    if response.status() != StatusCode::OK {
        return Err(OpenFailure::Failed(ConnectError::TunnelStatus(response.status())));
    }
    let (head, body) = response.into_parts();
    Ok(HboneStream::new(send, body, place.facts).with_answer(head.headers, place.lease))
}

fn classify(error: &h2::Error) -> OpenFailure {
    match error.reason() {
        // RFC 9113 §8.7: in both cases the peer has not processed the stream.
        Some(Reason::REFUSED_STREAM) => OpenFailure::Refused,
        Some(_) if error.is_go_away() && error.is_remote() => OpenFailure::Refused,
        Some(reason) if error.is_reset() && error.is_remote() => OpenFailure::Failed(ConnectError::TunnelReset(reason)),
        _ => OpenFailure::Lost,
    }
}
