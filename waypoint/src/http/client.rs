//! The upstream side of the seam: one connection, and sending one request on it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use ::h2::Reason;
use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::body::{Body, BodyError};
use super::normalize::Malformed;
use super::session::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX, Interim, Protocol};
use super::{h1, h2};
use crate::hbone::KeepaliveOptions;

/// How an upstream connection is used.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Bytes of a response's head, trailers included; a header list in HTTP/2.
    pub head_bytes_max: usize,
    /// Fields of an HTTP/1.1 response's head.
    pub head_fields_max: usize,
    /// Streams of an HTTP/2 connection at a time, beside the peer's own limit.
    pub streams_max: Option<usize>,
    /// When an HTTP/2 peer is asked whether it is still there.
    pub keepalive: Option<KeepaliveOptions>,
    /// Names of headers keep the case in which they are sent; HTTP/1.1.
    pub keeps_header_case: bool,
    /// How long an HTTP/2 connection without streams is kept. Who keeps HTTP/1.1 ones sees to it.
    pub idle_timeout: Option<Duration>,
    /// What an HTTP/2 connection writes in a turn leaves at its end, in one write: for sockets, and TLS on them. A stream of a tunnel gathers by itself.
    pub gathers_writes: bool,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions {
            head_bytes_max: HEAD_BYTES_MAX,
            head_fields_max: HEAD_FIELDS_MAX,
            streams_max: None,
            keeps_header_case: false,
            keepalive: None,
            idle_timeout: None,
            gathers_writes: true,
        }
    }
}

/// An upstream connection could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer speaks no HTTP/2, or refused.
    #[error("HTTP/2 handshake failed: {0}")]
    Http2(Reason),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
}

/// One upstream connection. An HTTP/2 one is shared by cloning; an HTTP/1.1 one serves one request at a time.
#[derive(Debug)]
pub struct ClientSession(Session);

#[derive(Debug)]
enum Session {
    Http1(h1::Http1Session),
    Http2(h2::Http2Session),
}

/// Runs an upstream connection; it has to be spawned, and ends with it.
pub type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

impl ClientSession {
    /// Sets a session up on a fresh connection. Nothing waits for the peer.
    ///
    /// # Errors
    /// [`HandshakeError`], from writing the HTTP/2 preface.
    pub async fn handshake<I>(io: I, protocol: Protocol, options: &ClientOptions) -> Result<(ClientSession, Driver), HandshakeError>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match protocol {
            Protocol::Http1 => {
                let (session, driver) = h1::handshake(io, options).await?;
                Ok((ClientSession(Session::Http1(session)), Box::pin(driver)))
            }
            Protocol::Http2 => {
                let (session, driver) = h2::handshake(io, options).await?;
                Ok((ClientSession(Session::Http2(session)), driver))
            }
        }
    }

    /// Which codec the connection speaks.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self.0 {
            Session::Http1(_) => Protocol::Http1,
            Session::Http2(_) => Protocol::Http2,
        }
    }

    /// Whether the connection may still take requests: it has not ended, and the peer has not said that it will.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match &self.0 {
            Session::Http1(session) => session.is_open(),
            Session::Http2(session) => session.is_open(),
        }
    }

    /// Whether a request would be sent at once. HTTP/1.1: the exchange before it is over, both ways.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        match &self.0 {
            Session::Http1(session) => session.is_ready(),
            Session::Http2(session) => session.is_ready(),
        }
    }

    /// Whether several requests can be in flight at once.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.protocol() == Protocol::Http2
    }

    /// Another handle of the same connection, if it can be shared.
    #[must_use]
    pub fn share(&self) -> Option<ClientSession> {
        match &self.0 {
            Session::Http1(_) => None,
            Session::Http2(session) => Some(ClientSession(Session::Http2(session.clone()))),
        }
    }

    /// Waits until [`Self::is_ready`]. False if the connection ended instead.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ready(&mut self) -> bool {
        match &mut self.0 {
            Session::Http1(session) => session.ready().await,
            Session::Http2(session) => session.ready().await,
        }
    }

    /// Sends a request and waits for the head of its response. Interim responses go to `interim`.
    ///
    /// An HTTP/2 request waits until the peer allows another stream.
    ///
    /// # Errors
    /// What went wrong, and whether the request can safely be sent again: [`SendError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request: an HTTP/2 stream is reset, an HTTP/1.1 connection closed. So does dropping the
    /// response's body before its end.
    pub fn send(
        &mut self,
        request: Request<Body>,
        interim: Option<Interim>,
    ) -> impl Future<Output = Result<Response<Body>, SendError>> + Send {
        // No `async fn`: what is done before the first wait would be part of the future, which is moved from caller to caller.
        let interim = interim.unwrap_or(Interim::none());
        match &mut self.0 {
            Session::Http1(session) => Either::Left(session.send(request, interim)),
            Session::Http2(session) => Either::Right(session.send(request, interim)),
        }
    }
}

/// A request got no response.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct SendError {
    /// What went wrong.
    pub kind: SendErrorKind,
    /// The request as it was, if nothing of it was sent and it is still whole.
    pub request: Option<Box<Request<Body>>>,
    /// Nothing of the request reached the peer.
    pub nothing_sent: bool,
}

impl SendError {
    pub(super) fn new(kind: SendErrorKind) -> SendError {
        SendError { kind, request: None, nothing_sent: false }
    }

    pub(super) fn unsent(kind: SendErrorKind, request: Request<Body>) -> SendError {
        SendError { kind, request: Some(Box::new(request)), nothing_sent: true }
    }

    /// Whether the peer provably did not process the request, so that it may be sent again whatever its method:
    /// nothing was sent, or the peer said so (RFC 9113 §8.7).
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        self.nothing_sent || matches!(self.kind, SendErrorKind::RefusedStream)
    }
}

/// Why a request got no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendErrorKind {
    /// The connection ended, or was found ended, before a response.
    #[error("the connection closed before the response")]
    ConnectionClosedBeforeResponse,
    /// The peer reset the stream with this code.
    #[error("the peer reset the stream before the response: {0}")]
    Reset(Reason),
    /// The peer says that it did not process the request: `REFUSED_STREAM`, or a GOAWAY below its stream (RFC 9113 §8.7).
    #[error("the peer refused the stream")]
    RefusedStream,
    /// The response's head is malformed.
    #[error("the response is malformed: {0}")]
    Malformed(Malformed),
    /// The peer broke HTTP/2.
    #[error("the peer broke HTTP/2: {0}")]
    Protocol(Reason),
    /// Our own request's body failed before a response came, and the request was cut.
    #[error("the body of the request failed: {0}")]
    RequestBody(BodyError),
    /// The connection failed while reading or writing.
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
    /// The request cannot be expressed in the connection's protocol: an upgrade with a body over HTTP/2, or a head that is not uniform.
    #[error("the request cannot be sent over this protocol")]
    Unsupported,
}

/// An interim response of an upstream, on its way to the client; 101 is none.
pub(super) fn pass_interim(interim: &Interim, status: http::StatusCode, headers: &HeaderMap) {
    // Dropping one is always allowed (RFC 9110 §15.2).
    let _is_sent = interim.send(status, headers);
}
