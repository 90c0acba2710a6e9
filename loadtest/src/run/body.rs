//! The bodies that a run sends, counted as they are taken.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::fill;

/// What a run put on the wire and took from it.
#[derive(Debug, Default)]
pub struct Traffic {
    pub requests_sent: AtomicU64,
    pub body_bytes: AtomicU64,
}

impl Traffic {
    /// Counts bytes of a body, of either direction.
    pub fn moved(&self, bytes: usize) {
        self.body_bytes.fetch_add(u64::try_from(bytes).expect("a length fits in 64 bits"), Ordering::Relaxed);
    }

    pub fn request_sent(&self) {
        self.requests_sent.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request's body.
#[derive(Debug)]
pub enum RequestBody {
    Empty,
    /// One message.
    Whole(Bytes, Arc<Traffic>),
    /// So many bytes from nowhere.
    Fill(u64, Arc<Traffic>),
    /// Messages as they are given; ends with their sender.
    Messages(mpsc::Receiver<Bytes>, Arc<Traffic>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let (chunk, traffic) = match &mut *self {
            Self::Empty => return Poll::Ready(None),
            Self::Whole(message, traffic) => ((!message.is_empty()).then(|| std::mem::take(message)), traffic),
            Self::Fill(remaining, traffic) => (fill::next_chunk(remaining), traffic),
            Self::Messages(messages, traffic) => (std::task::ready!(messages.poll_recv(cx)), traffic),
        };
        Poll::Ready(chunk.map(|chunk| {
            traffic.moved(chunk.len());
            Ok(Frame::data(chunk))
        }))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(message, _) => message.is_empty(),
            Self::Fill(remaining, _) => *remaining == 0,
            Self::Messages(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(message, _) => SizeHint::with_exact(u64::try_from(message.len()).expect("a length fits in 64 bits")),
            Self::Fill(remaining, _) => SizeHint::with_exact(*remaining),
            Self::Messages(..) => SizeHint::default(),
        }
    }
}
