//! The connection under hyper's server, readable from outside while hyper does not read it, and kept while there is no hyper at all.
//!
//! hyper, told to answer clients that half-close, stops reading while a request is in flight, and would notice a client
//! that reset its stream only when it writes. So the connection is shared: while hyper does not read,
//! [`Handle::poll_gone`] reads ahead, at most once and at most [`AHEAD_BYTES_MAX`], and says if the client is gone.
//! A connection that is not used outlives its hyper, and [`Handle::poll_more`] waits for what the next one is to read.

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
    /// Met behind what was read ahead; hyper's next read says it.
    error: Option<io::Error>,
    /// hyper waits for bytes itself, so it will see the end itself.
    awaited: bool,
    /// Something was written since the last whole flush.
    unflushed: bool,
    /// hyper ends our side.
    ending: bool,
    /// What hyper has read.
    read_bytes: u64,
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

/// What ended a wait without hyper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    /// Bytes: a hyper is to read them.
    Bytes,
    /// The client will send no more, or is gone.
    End,
}

impl<I> Handle<I> {
    pub(super) fn new(io: I) -> Self {
        let shared =
            Shared { io, ahead: Vec::new(), ended: false, error: None, awaited: false, unflushed: false, ending: false, read_bytes: 0 };
        Self(Arc::new(Mutex::new(shared)))
    }

    /// The connection as hyper has it. One at a time.
    pub(super) fn watched(&self) -> Watched<I> {
        self.0.lock().awaited = false;
        Watched(Arc::clone(&self.0))
    }

    /// Whether hyper does nothing but wait for bytes: all that it wrote has left, and it is not ending the connection.
    pub(super) fn only_waits(&self) -> bool {
        let shared = self.0.lock();
        shared.awaited && !shared.unflushed && !shared.ending
    }

    /// What hyper had read and not used is what the next one reads first.
    pub(super) fn put_back(&self, bytes: &[u8]) {
        let ahead = &mut self.0.lock().ahead;
        // Nothing was read behind what hyper had.
        debug_assert!(ahead.is_empty(), "hyper waited for bytes");
        ahead.extend_from_slice(bytes);
    }
}

impl<I: AsyncRead + Unpin> Handle<I> {
    /// Ready once the client is gone. Pending without a wake-up if hyper reads by itself, or bytes are waiting for it.
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        let shared = &mut *self.0.lock();
        if shared.awaited || shared.ended || shared.error.is_some() || !shared.ahead.is_empty() {
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

impl<I: AsyncRead + Unpin> Handle<I> {
    /// Ready once there is something to read, while there is no hyper that would. An error is the end of an unused connection; behind
    /// bytes that were put back, both are for hyper to see.
    pub(super) fn poll_more(&self, cx: &mut Context<'_>) -> Poll<More> {
        let shared = &mut *self.0.lock();
        let mut bytes = [0_u8; AHEAD_BYTES_MAX];
        let mut buffer = ReadBuf::new(&mut bytes);
        match ready!(Pin::new(&mut shared.io).poll_read(cx, &mut buffer)) {
            Err(error) => shared.error = Some(error),
            Ok(()) => shared.ended = buffer.filled().is_empty(),
        }
        shared.ahead.extend_from_slice(buffer.filled());
        Poll::Ready(if shared.ahead.is_empty() { More::End } else { More::Bytes })
    }
}

impl<I> Handle<I> {
    /// How many bytes hyper has read.
    pub(super) fn read_bytes(&self) -> u64 {
        self.0.lock().read_bytes
    }
}

impl<I: AsyncWrite + Unpin> Handle<I> {
    /// Writes where there is no hyper any more.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.lock().io).poll_write(cx, bytes)
    }

    /// Ends our side, as hyper does itself but where it believes to have handed the stream over: for a request that asked for another
    /// protocol, whatever it was answered.
    pub(super) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        ready!(Pin::new(&mut shared.io).poll_flush(cx))?;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        let before = buffer.filled().len();
        let read = shared.read(cx, buffer);
        // Empty lines before a head are passed over (RFC 9112 §2.2), and begin none.
        if buffer.filled()[before..].iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            shared.read_bytes += u64::try_from(buffer.filled().len() - before).unwrap_or(u64::MAX);
        }
        read
    }
}

impl<I: AsyncRead + Unpin> Shared<I> {
    fn read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let shared = self;
        if !shared.ahead.is_empty() {
            return Poll::Ready(shared.read_behind(cx, buffer));
        }
        if let Some(error) = shared.error.take() {
            return Poll::Ready(Err(error));
        }
        if shared.ended {
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut shared.io).poll_read(cx, buffer);
        shared.awaited = read.is_pending();
        read
    }

    /// What was read ahead, and with it what is there by now: an upload would go on in pieces of [`AHEAD_BYTES_MAX`] otherwise, each
    /// with a write of its own.
    fn read_behind(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        let n_bytes = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..n_bytes]);
        self.ahead.drain(..n_bytes);
        if buffer.remaining() == 0 || self.ended || self.error.is_some() {
            return Ok(());
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.io).poll_read(cx, buffer) {
            Poll::Ready(Err(error)) => self.error = Some(error),
            Poll::Ready(Ok(())) => self.ended = buffer.filled().len() == before,
            Poll::Pending => {}
        }
        Ok(())
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let shared = &mut *self.0.lock();
        shared.unflushed = true;
        Pin::new(&mut shared.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let shared = &mut *self.0.lock();
        shared.unflushed = true;
        Pin::new(&mut shared.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.lock().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        ready!(Pin::new(&mut shared.io).poll_flush(cx))?;
        shared.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = &mut *self.0.lock();
        shared.ending = true;
        Pin::new(&mut shared.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;

    /// Gives what it has, piece by piece.
    struct Pieces(VecDeque<io::Result<Vec<u8>>>);

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let Some(piece) = self.0.pop_front() else { return Poll::Pending };
            let mut piece = piece?;
            let rest = piece.split_off(piece.len().min(buffer.remaining()));
            buffer.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(Ok(rest));
            }
            Poll::Ready(Ok(()))
        }
    }

    fn read(watched: &mut Watched<Pieces>, room: usize) -> Poll<io::Result<usize>> {
        let mut bytes = vec![0; room];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = Pin::new(watched).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer);
        read.map_ok(|()| buffer.filled().len())
    }

    fn looked_at(pieces: impl IntoIterator<Item = io::Result<Vec<u8>>>) -> (Watched<Pieces>, Handle<Pieces>) {
        let handle = Handle::new(Pieces(pieces.into_iter().collect()));
        let watched = handle.watched();
        assert!(handle.poll_gone(&mut Context::from_waker(Waker::noop())).is_pending());
        (watched, handle)
    }

    #[test]
    fn an_upload_is_not_cut_small_by_looking_for_its_client() {
        let (mut watched, handle) = looked_at([Ok(vec![7; 16_384]), Ok(vec![7; 16_384])]);
        assert!(matches!(read(&mut watched, 8192), Poll::Ready(Ok(8192))));
        assert!(handle.poll_gone(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(matches!(read(&mut watched, 65_536), Poll::Ready(Ok(n_bytes)) if n_bytes >= 8192 - AHEAD_BYTES_MAX));
    }

    #[test]
    fn an_error_behind_what_was_read_ahead_comes_after_it() {
        let (mut watched, handle) = looked_at([Ok(vec![7; 100]), Err(io::ErrorKind::ConnectionReset.into())]);
        assert!(matches!(read(&mut watched, 8192), Poll::Ready(Ok(100))));
        assert!(handle.poll_gone(&mut Context::from_waker(Waker::noop())).is_pending(), "hyper is told first");
        assert_eq!(
            match read(&mut watched, 8192) {
                Poll::Ready(Err(error)) => error.kind(),
                other => panic!("{other:?}"),
            },
            io::ErrorKind::ConnectionReset
        );
    }

    #[test]
    fn an_end_behind_what_was_read_ahead_comes_after_it() {
        let (mut watched, _handle) = looked_at([Ok(vec![7; 100]), Ok(Vec::new())]);
        assert!(matches!(read(&mut watched, 8192), Poll::Ready(Ok(100))));
        assert!(matches!(read(&mut watched, 8192), Poll::Ready(Ok(0))));
    }

    #[test]
    fn codec_only_waits_if_all_that_it_wrote_has_left_and_nothing_ends() {
        let mut cx = Context::from_waker(Waker::noop());
        let (client, io) = tokio::io::duplex(4);
        let handle = Handle::new(io);
        let mut watched = handle.watched();
        let read =
            |watched: &mut Watched<_>| Pin::new(watched).poll_read(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut [0]));
        assert!(!handle.only_waits(), "it has not begun to wait");
        assert!(read(&mut watched).is_pending() && handle.only_waits());
        assert!(Pin::new(&mut watched).poll_write(&mut cx, b"1234").is_ready() && !handle.only_waits());
        assert!(Pin::new(&mut watched).poll_write(&mut cx, b"5").is_pending() && !handle.only_waits(), "the client does not read");
        assert!(Pin::new(&mut watched).poll_flush(&mut cx).is_ready() && handle.only_waits());
        assert!(Pin::new(&mut watched).poll_shutdown(&mut cx).is_ready() && !handle.only_waits());
        drop(client);
        assert!(!handle.watched().0.lock().awaited, "another codec has not begun to wait");
    }
}
