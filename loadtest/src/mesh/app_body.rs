//! The bodies that the built-in app answers with: bytes from nowhere, or the request's own body on its way back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::app::Counts;
use crate::fill;

/// An answer's body.
#[derive(Debug)]
pub enum AppBody {
    /// These bytes.
    Text(Bytes),
    /// So many bytes of `x`, counted as they are taken.
    Fill { remaining: u64, counts: Arc<Counts> },
    /// The request's body and its trailers, as they come; then `trailers`, if the request had none.
    Echo { body: Incoming, trailers: Option<HeaderMap> },
    /// A message, then trailers (gRPC).
    Trailed { message: Option<Bytes>, trailers: Option<HeaderMap> },
}

impl Body for AppBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Self::Text(text) if text.is_empty() => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            Self::Fill { remaining, counts } => Poll::Ready(fill::next_chunk(remaining).map(|chunk| {
                counts.body_bytes_sent.fetch_add(u64::try_from(chunk.len()).expect("a length fits in 64 bits"), Ordering::Relaxed);
                Ok(Frame::data(chunk))
            })),
            Self::Echo { body, trailers } => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if frame.is_trailers() {
                        *trailers = None;
                    }
                    Poll::Ready(Some(Ok(frame)))
                }
                Poll::Ready(None) => Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
                other => other,
            },
            Self::Trailed { message, trailers } => {
                let next = message.take().map(Frame::data).or_else(|| trailers.take().map(Frame::trailers));
                Poll::Ready(next.map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Fill { remaining, .. } => *remaining == 0,
            Self::Echo { body, trailers } => body.is_end_stream() && trailers.is_none(),
            Self::Trailed { message, trailers } => message.is_none() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(u64::try_from(text.len()).expect("a length fits in 64 bits")),
            Self::Fill { remaining, .. } => SizeHint::with_exact(*remaining),
            Self::Echo { body, .. } => body.size_hint(),
            Self::Trailed { .. } => SizeHint::default(),
        }
    }
}
