//! The downstream side of the seam: one connection, and what it calls for each request.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ::h2::Reason;
use ::h2::server::SendResponse;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use model::cluster::UpstreamProtocol;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::body::{Body, BodyError};
use super::h1::expect::Gate;
use super::normalize::{HeadOptions, Malformed};
use super::{h1, h2};

/// Bytes of a message head that are accepted: HTTP/1.1 head or HTTP/2 header list. Envoy's default is 60 KiB; gRPC trailers of 50 KB must pass.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of a head that are accepted; Envoy's default.
pub const HEAD_FIELDS_MAX: usize = 100;
/// How long a connection may be without a request; Envoy's idle timeout.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a connection is kept for its client to learn that it is to go; Envoy's `drain_timeout`. HTTP/1.1: too old, for the request by whose answer
/// its client is told. HTTP/2: after the first GOAWAY, for the answer to the PING that follows it; then new streams are refused.
pub const LEAVE_TIME: Duration = Duration::from_secs(5);
/// Streams that a client may have open on one HTTP/2 connection.
pub const STREAMS_MAX: u32 = 1024;

/// Which codec a connection speaks; `crate::sniff` finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// What is spoken with the endpoints of a cluster, for a request that came by `downstream`.
    #[must_use]
    pub fn of(cluster: UpstreamProtocol, downstream: Version) -> Self {
        match cluster {
            UpstreamProtocol::Http1 => Self::Http1,
            UpstreamProtocol::Http2 => Self::Http2,
            UpstreamProtocol::Downstream if downstream == Version::HTTP_2 => Self::Http2,
            UpstreamProtocol::Downstream => Self::Http1,
        }
    }
}

/// What a downstream connection calls for each request.
pub trait Exchange: Clone + Send + Sync + Unpin + 'static {
    /// What one request is judged by, taken once: its head is made uniform as the same configuration says.
    type Begun: Send;

    /// A request begins. `at_start` is how heads were to be made uniform when the connection was accepted; the answer, how this one is.
    fn begin(&self, at_start: &HeadOptions) -> (Self::Begun, HeadOptions);

    /// Answers one request.
    ///
    /// # Errors
    /// [`Abort`] if there is to be no answer: the stream is reset, or the HTTP/1.1 connection cut.
    ///
    /// # Cancel safety
    /// The future is dropped when the client resets the stream or its connection ends.
    fn exchange(
        &self,
        begun: Self::Begun,
        request: Request<Body>,
        interim: Interim,
    ) -> impl Future<Output = Result<Response<Body>, Abort>> + Send + use<Self>;

    /// A request that never became one: it was answered with [`Malformed::status`] already. For the log and the metrics.
    fn malformed(&self, protocol: Protocol, problem: &Malformed);
}

/// The connection of an HTTP/1.1 client closes behind this answer, as behind what was no request. In the answer's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastAnswer;

/// Cut this exchange: nothing more is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// The code an HTTP/2 stream is reset with.
    pub reason: Reason,
}

impl From<BodyError> for Abort {
    fn from(error: BodyError) -> Abort {
        Abort { reason: error.reset_reason() }
    }
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the exchange was aborted: {}", self.reason)
    }
}

impl std::error::Error for Abort {}

/// Sends interim (1xx) responses to the client, as far as its connection can carry them.
#[derive(Clone)]
pub struct Interim(Way);

#[derive(Clone)]
enum Way {
    None,
    Http1(Arc<Gate>),
    Http2(Arc<Mutex<SendResponse<Bytes>>>),
    Custom(Arc<Send1xx>),
}

/// Sends an interim response; false if it cannot.
type Send1xx = dyn Fn(StatusCode, &HeaderMap) -> bool + Send + Sync;

impl Interim {
    /// To nobody.
    #[must_use]
    pub const fn none() -> Interim {
        Interim(Way::None)
    }

    /// To whoever this calls, for instance to look at what passes on. It is called on the task of the upstream's
    /// connection, and must not block.
    pub fn custom(send: impl Fn(StatusCode, &HeaderMap) -> bool + Send + Sync + 'static) -> Interim {
        Interim(Way::Custom(Arc::new(send)))
    }

    pub(super) fn http1(gate: Arc<Gate>) -> Interim {
        Interim(Way::Http1(gate))
    }

    pub(super) fn http2(respond: Arc<Mutex<SendResponse<Bytes>>>) -> Interim {
        Interim(Way::Http2(respond))
    }

    /// By which a client may take its request back, and keep its connection.
    #[must_use]
    pub fn client_reset(&self) -> Option<ClientReset> {
        match &self.0 {
            Way::Http2(respond) => Some(ClientReset(Arc::clone(respond))),
            Way::None | Way::Http1(_) | Way::Custom(_) => None,
        }
    }

    /// Whether this status would reach the client. HTTP/2 carries every 1xx but 101; HTTP/1.1 carries 100 to a client
    /// that expects it, and no other, for hyper's codec cannot send one.
    #[must_use]
    pub fn can_send(&self, status: StatusCode) -> bool {
        match self.0 {
            Way::None => false,
            Way::Http1(_) => status == StatusCode::CONTINUE,
            Way::Http2(_) | Way::Custom(_) => status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS,
        }
    }

    /// Sends it. True if it is on its way; dropping one is always allowed (RFC 9110 §15.2).
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if !self.can_send(status) {
            return false;
        }
        match &self.0 {
            Way::None => false,
            Way::Custom(send) => send(status, headers),
            Way::Http1(gate) => {
                gate.open();
                true
            }
            Way::Http2(respond) => {
                let mut response = Response::new(());
                *response.status_mut() = status;
                *response.headers_mut() = headers.clone();
                super::normalize::strip_hop_by_hop(response.headers_mut());
                respond.lock().send_informational(response).is_ok()
            }
        }
    }
}

/// Tells the end of a stream from that of its connection.
#[derive(Clone)]
pub struct ClientReset(Arc<Mutex<SendResponse<Bytes>>>);

impl ClientReset {
    /// Whether the client has reset the stream. To be asked when the exchange is over: nobody is woken by it.
    #[must_use]
    pub fn has_come(&self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        // Whoever holds it is sending.
        self.0.try_lock().is_some_and(|mut respond| matches!(respond.poll_reset(&mut nobody), Poll::Ready(Ok(_))))
    }
}

impl fmt::Debug for ClientReset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientReset")
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.0 {
            Way::None => "none",
            Way::Http1(_) => "http1",
            Way::Http2(_) => "http2",
            Way::Custom(_) => "custom",
        };
        f.debug_tuple("Interim").field(&way).finish()
    }
}

/// What a client means that ends its side of an HTTP/1.1 connection while its request is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HalfClose {
    /// It sends no more and reads the answer.
    #[default]
    Answer,
    /// It is gone: the request is cancelled, as Envoy does.
    Cancel,
}

/// How a downstream connection is served.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Bytes of a head, or of a header list.
    pub head_bytes_max: usize,
    /// Fields of an HTTP/1.1 head.
    pub head_fields_max: usize,
    /// HTTP/1.1: from one request to the complete head of the next. HTTP/2: without a stream, then GOAWAY. `None`: without end.
    pub idle_timeout: Option<Duration>,
    /// HTTP/1.1: the head of a request, from its first byte to its last; then 408. `None`: as long as `idle_timeout` says.
    pub head_timeout: Option<Duration>,
    /// When the first bytes came that are there already.
    pub head_began: Option<Instant>,
    /// From then on it takes no more requests. HTTP/2: GOAWAY. HTTP/1.1: answers say that it closes, and after [`LEAVE_TIME`] it does.
    /// `None`: it may become as old as it likes.
    pub duration_max: Option<Duration>,
    /// HTTP/2: streams open at once.
    pub streams_max: u32,
    /// HTTP/2: clients may ask for another protocol by an extended CONNECT (RFC 8441), and are told so.
    pub extended_connect: bool,
    /// HTTP/1.1: what a half-closed client means.
    pub half_close: HalfClose,
    /// HTTP/1.1: names of headers keep the case in which they are sent.
    pub keeps_header_case: bool,
    /// How heads are made uniform before any rule sees them.
    pub head: HeadOptions,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            head_bytes_max: HEAD_BYTES_MAX,
            head_fields_max: HEAD_FIELDS_MAX,
            idle_timeout: Some(IDLE_TIMEOUT),
            head_timeout: None,
            head_began: None,
            duration_max: None,
            streams_max: STREAMS_MAX,
            extended_connect: false,
            half_close: HalfClose::default(),
            keeps_header_case: false,
            head: HeadOptions::default(),
        }
    }
}

/// Why a downstream connection ended otherwise than by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client sent what is no request; it was answered if it could be, and reported to [`Exchange::malformed`].
    #[error("the client sent a malformed request: {0}")]
    Malformed(Malformed),
    /// The client went away while a request was in flight.
    #[error("the client went away while its request was in flight")]
    ClientGone,
    /// The exchange aborted, or the response's body did not end cleanly: an HTTP/1.1 connection is cut for that.
    #[error("the connection was cut because the response could not be completed")]
    Cut,
    /// No request came in time.
    #[error("the client sent no complete request head in time")]
    IdleTimeout,
    /// An HTTP/2 connection error, ours or the client's.
    #[error("HTTP/2 connection error: {0}")]
    Http2(Reason),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
}

/// Serves one downstream connection until it ends.
///
/// When `drain` completes, no new requests are taken (GOAWAY, or `connection: close`) and those in flight are finished, and
/// so are streams that an upgrade joined: whoever drains sets the deadline.
/// The future has to be polled on a tokio runtime with time; HTTP/2 streams are spawned on the current one.
///
/// # Errors
/// Why the connection ended, if not by itself. An error of one HTTP/2 stream is none of the connection.
///
/// # Cancel safety
/// Dropping the future cuts the connection and everything on it.
pub async fn serve<I, E, D>(io: I, protocol: Protocol, exchange: E, options: &ServerOptions, drain: D) -> Result<(), ServeError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Exchange,
    D: Future<Output = ()> + Send,
{
    match protocol {
        Protocol::Http1 => h1::serve(io, exchange, options, drain).await,
        Protocol::Http2 => h2::serve(io, exchange, options, drain).await,
    }
}
