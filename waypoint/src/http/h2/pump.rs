//! Moves a body into an HTTP/2 stream as fast as its window opens.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::h2::SendStream;
use bytes::Bytes;
use http_body::Body as HttpBody;

use crate::http::body::{Body, BodyError};

/// Why a body did not get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PumpError {
    /// The body failed; the stream was reset with what that means.
    Body(BodyError),
    /// The peer reset the stream, or the connection is gone.
    Peer,
}

/// A body on its way into a stream. Polled to its end, it has sent END_STREAM or reset the stream.
pub(super) struct Pump {
    stream: SendStream<Bytes>,
    body: Body,
    waiting: Bytes,
}

impl Pump {
    pub(super) fn new(stream: SendStream<Bytes>, body: Body) -> Pump {
        Pump { stream, body, waiting: Bytes::new() }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            if !self.waiting.is_empty() {
                ready!(self.poll_waiting(cx))?;
                if self.body.is_end_stream() && self.waiting.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(PumpError::Peer));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.send(Bytes::new(), true)),
                Some(Err(error)) => {
                    self.stream.send_reset(error.reset_reason());
                    return Poll::Ready(Err(PumpError::Body(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() && !self.body.is_end_stream() => {}
                    Ok(data) if data.is_empty() => return Poll::Ready(self.send(data, true)),
                    Ok(data) => self.waiting = data,
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return Poll::Ready(self.stream.send_trailers(trailers).map_err(|_gone| PumpError::Peer));
                        }
                    }
                },
            }
        }
    }

    /// Sends as much of what is waiting as the window allows.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        self.stream.reserve_capacity(self.waiting.len());
        let mut capacity = self.stream.capacity();
        while capacity == 0 {
            capacity = match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(_)) | None => return Poll::Ready(Err(PumpError::Peer)),
            };
        }
        let part = self.waiting.split_to(capacity.min(self.waiting.len()));
        let is_end = self.waiting.is_empty() && self.body.is_end_stream();
        Poll::Ready(self.send(part, is_end))
    }

    fn send(&mut self, data: Bytes, is_end: bool) -> Result<(), PumpError> {
        self.stream.send_data(data, is_end).map_err(|_gone| PumpError::Peer)
    }
}
