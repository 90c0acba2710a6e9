//! The one body type of the proxy: bytes and trailers that flow from one side to the other as they are read.
//!
//! The ordinary cases (empty, one buffer, HTTP/1.1, HTTP/2) are not boxed. Reading an HTTP/2 body gives the window back
//! to its sender frame by frame, so a reader that stops, stops the sender.
//!
//! Invariant: a body either ends (`None`) because its sender ended it, or says a [`BodyError`]; nothing turns the second into the first.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::h2::{Reason, RecvStream};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;

use super::h1::InUse;
use super::h1::expect::Gated;
use super::h2::StreamInUse;

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The connection ended inside the body (RFC 9112 §8).
    #[error("the connection ended before the end of the body")]
    Truncated,
    /// The bytes are no valid chunked coding, or the frames no valid stream.
    #[error("the framing of the body is malformed")]
    Malformed,
    /// The peer reset the stream with this code.
    #[error("the peer reset the stream: {0}")]
    Reset(Reason),
    /// Reading the connection failed.
    #[error("reading the connection failed: {0}")]
    Io(io::ErrorKind),
    /// Whoever reads or makes this body gave up waiting. The codecs never say this.
    #[error("the body took too long")]
    TimedOut,
    /// The body is larger than whoever reads it allows. The codecs never say this.
    #[error("the body is too large")]
    TooLarge,
    /// The side that should have sent the body went away before sending any of it.
    #[error("the body was never sent")]
    Abandoned,
}

impl BodyError {
    /// The code a stream is reset with whose body ended like this: the peer's own, else what names our reason.
    #[must_use]
    pub fn reset_reason(self) -> Reason {
        match self {
            BodyError::Reset(reason) => reason,
            BodyError::Malformed => Reason::PROTOCOL_ERROR,
            BodyError::Truncated | BodyError::Io(_) => Reason::INTERNAL_ERROR,
            BodyError::TimedOut | BodyError::TooLarge | BodyError::Abandoned => Reason::CANCEL,
        }
    }

    pub(super) fn from_h2(error: &::h2::Error) -> BodyError {
        if error.is_io() {
            return match error.get_io().map(io::Error::kind) {
                None | Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => BodyError::Truncated,
                Some(kind) => BodyError::Io(kind),
            };
        }
        match error.reason() {
            Some(_) if error.is_library() => BodyError::Malformed,
            Some(reason) => BodyError::Reset(reason),
            None => BodyError::Malformed,
        }
    }

    pub(super) fn from_hyper(error: &hyper::Error) -> BodyError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(inner) = cause {
            if let Some(own) = inner.downcast_ref::<BodyError>() {
                return *own;
            }
            if let Some(io) = inner.downcast_ref::<io::Error>() {
                return match io.kind() {
                    io::ErrorKind::UnexpectedEof => BodyError::Truncated,
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => BodyError::Malformed,
                    kind => BodyError::Io(kind),
                };
            }
            cause = inner.source();
        }
        if error.is_parse() { BodyError::Malformed } else { BodyError::Truncated }
    }
}

type Boxed = Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>;

/// A request or response body. `http_body::Body` with `Bytes` and [`BodyError`], `Unpin`, not boxed in the ordinary cases.
#[must_use = "a body that is dropped before its end cuts the message it belongs to"]
pub struct Body(Kind);

enum Kind {
    Empty,
    Full(Bytes),
    Http1(Http1Body),
    Http2(Http2Body),
    Gated(Box<Gated>),
    Announced(u64),
    Boxed(Boxed),
}

impl Body {
    /// No bytes at all.
    pub const fn empty() -> Body {
        Body(Kind::Empty)
    }

    /// These bytes and nothing after them.
    pub fn full(bytes: Bytes) -> Body {
        if bytes.is_empty() { Body::empty() } else { Body(Kind::Full(bytes)) }
    }

    /// Any other body: one allocation, and a virtual call for each frame.
    pub fn wrap<B>(body: B) -> Body
    where
        B: HttpBody<Data = Bytes, Error = BodyError> + Send + 'static,
    {
        Body(Kind::Boxed(Box::pin(body)))
    }

    /// `in_use`: the connection of a client, which is in use for as long as its request's body is there.
    pub(super) fn http1(incoming: Incoming, in_use: Option<&InUse>) -> Body {
        if incoming.is_end_stream() { Body::empty() } else { Body(Kind::Http1(Http1Body { incoming, _in_use: in_use.cloned() })) }
    }

    pub(super) fn gated(gated: Gated) -> Body {
        Body(Kind::Gated(Box::new(gated)))
    }

    /// `length` is the `content-length` of the head, if it has one; h2 holds the peer to it.
    pub(super) fn http2(stream: RecvStream, length: Option<u64>) -> Body {
        if stream.is_end_stream() {
            return Body::empty();
        }
        Body(Kind::Http2(Http2Body { stream, left: length, data_ended: false, upload: None, in_use: None }))
    }

    /// The upload that runs beside this response; it ends when the response is dropped before its end.
    pub(super) fn with_upload(mut self, upload: AbortHandle) -> Body {
        if let Kind::Http2(body) = &mut self.0 {
            body.upload = Some(upload);
        }
        self
    }

    /// The stream counts as in use until this body is dropped or ends.
    pub(super) fn counted(mut self, in_use: Option<StreamInUse>) -> Body {
        if let Kind::Http2(body) = &mut self.0 {
            body.in_use = in_use;
        }
        self
    }

    /// No bytes, but a `content-length` that a codec may announce for them: the answer to a conditional request that
    /// says how long the representation would have been (RFC 9110 §8.6).
    pub(super) const fn announced(length: u64) -> Body {
        Body(Kind::Announced(length))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Empty | Kind::Announced(_) => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Kind::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Http1(body) => Pin::new(&mut body.incoming).poll_frame(cx).map_err(|error| BodyError::from_hyper(&error)),
            Kind::Http2(body) => body.poll_frame(cx),
            Kind::Gated(gated) => gated.poll_frame(cx),
            Kind::Boxed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) | Kind::Announced(_) => false,
            Kind::Http1(body) => body.incoming.is_end_stream(),
            Kind::Http2(body) => body.stream.is_end_stream(),
            Kind::Gated(gated) => gated.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).expect("a usize fits in 64 bits")),
            Kind::Announced(length) => SizeHint::with_exact(*length),
            Kind::Http1(body) => body.incoming.size_hint(),
            Kind::Http2(body) => body.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Kind::Gated(gated) => gated.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

impl Default for Body {
    fn default() -> Body {
        Body::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Kind::Empty => "empty",
            Kind::Full(_) => "full",
            Kind::Http1(_) => "http1",
            Kind::Http2(_) => "http2",
            Kind::Gated(_) => "gated",
            Kind::Announced(_) => "announced",
            Kind::Boxed(_) => "boxed",
        };
        f.debug_tuple("Body").field(&kind).finish()
    }
}

/// What arrives on an HTTP/1.1 connection.
struct Http1Body {
    incoming: Incoming,
    _in_use: Option<InUse>,
}

/// What arrives on one HTTP/2 stream.
struct Http2Body {
    stream: RecvStream,
    left: Option<u64>,
    data_ended: bool,
    upload: Option<AbortHandle>,
    in_use: Option<StreamInUse>,
}

impl Http2Body {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.release(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.end_of_error(&error)),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => {
                self.upload = None;
                self.in_use = None;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => Poll::Ready(self.end_of_error(&error)),
        }
    }

    fn release(&mut self, n_bytes: usize) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(u64::try_from(n_bytes).expect("a usize fits in 64 bits"));
        }
        // Fails only if more is released than was received.
        let released = self.stream.flow_control().release_capacity(n_bytes);
        debug_assert!(released.is_ok(), "released what was received");
    }

    /// A peer may reset with `NO_ERROR` once its answer is complete (RFC 9113 §8.1): whoever still reads the other half
    /// learns that nobody wants the rest, which is an error here too, with that code.
    fn end_of_error(&mut self, error: &::h2::Error) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.data_ended = true;
        Some(Err(BodyError::from_h2(error)))
    }
}

impl Drop for Http2Body {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take()
            && !self.stream.is_end_stream()
        {
            upload.abort();
        }
    }
}
