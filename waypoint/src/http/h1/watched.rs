//! The connection under hyper's server, readable from outside while hyper does not read it.
//!
//! hyper, told to answer clients that half-close, stops reading while a request is in flight, and would notice a client
//! that reset its stream only when it writes. So the connection is shared: while hyper does not read,
//! [`Handle::poll_gone`] reads ahead, at most once and at most [`AHEAD_BYTES_MAX`], and says if the client is gone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read ahead of hyper, while it does not read.
const AHEAD_BYTES_MAX: usize = 512;

struct Shared<I> {
    io: I,
    ahead: Vec<u8>,
    ended: bool,
    /// hyper waits for bytes itself, so it will see the end itself.
    awaited: bool,
}

pub(super) struct Watched<I>(Arc<Mutex<Shared<I>>>);

pub(super) struct Handle<I>(Arc<Mutex<Shared<I>>>);

/// What the client did while hyper did not look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// It will send no more, but may still read (FIN, END_STREAM).
    HalfClosed,
    /// The connection or stream was reset.
    Reset,
}

pub(super) fn watch<I>(io: I) -> (Watched<I>, Handle<I>) {
    let shared = Arc::new(Mutex::new(Shared { io, ahead: Vec::new(), ended: false, awaited: false }));
    (Watched(Arc::clone(&shared)), Handle(shared))
}

impl<I: AsyncRead + Unpin> Handle<I> {
    /// Ready once the client is gone. Pending without a wake-up if hyper reads by itself, or bytes are waiting for it.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        let shared = &mut *self.0.lock();
        if shared.awaited || shared.ended || !shared.ahead.is_empty() {
            return Poll::Pending;
        }
        let mut bytes = [0_u8; AHEAD_BYTES_MAX];
        let mut buffer = ReadBuf::new(&mut bytes);
        match ready!(Pin::new(&mut shared.io).poll_read(cx, &mut buffer)) {
            Err(_reset) => Poll::Ready(Gone::Reset),
            Ok(()) if buffer.filled().is_empty() => {
                shared.ended = true;
                Poll::Ready(Gone::HalfClosed)
            }
            Ok(()) => {
                shared.ahead.extend_from_slice(buffer.filled());
                Poll::Pending
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        if !shared.ahead.is_empty() {
            let n_bytes = shared.ahead.len().min(buffer.remaining());
            buffer.put_slice(&shared.ahead[..n_bytes]);
            shared.ahead.drain(..n_bytes);
            return Poll::Ready(Ok(()));
        }
        if shared.ended {
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut shared.io).poll_read(cx, buffer);
        shared.awaited = read.is_pending();
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.lock().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.lock().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().io).poll_shutdown(cx)
    }
}
