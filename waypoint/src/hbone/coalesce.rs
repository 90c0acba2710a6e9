//! One write per scheduler turn: what an HTTP/2 connection writes in one poll is gathered and leaves at its end.
//!
//! h2 flushes after each DATA frame whose payload it does not copy (256 bytes and more), so every small answer would
//! cost a TLS record and a system call. [`Coalesce`] takes note of a flush and does nothing; whoever polls the connection
//! calls [`Outlet::poll_out`] afterwards, once for all frames of that turn.
//!
//! Not for: streams whose reader waits for a flush before the next poll; only for connections that are driven as below.
//! Invariants: bytes leave in order; at most [`GATHERED_BYTES_MAX`] wait here; a connection is over only when its last
//! bytes (a GOAWAY) are out, or cannot leave.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that wait for the end of a turn, or for the socket.
pub const GATHERED_BYTES_MAX: usize = 256 * 1024;

/// What the buffer begins with. A larger one, of a burst, goes back when its bytes have left: the next turn may be long in coming.
const GATHER_BYTES_KEPT: usize = 16 * 1024;

#[derive(Debug)]
struct Gathered<T> {
    io: T,
    out: Vec<u8>,
    /// How much of it has left.
    out_sent: usize,
    failure: Arc<Failure>,
    dirty: bool,
    /// What this turn and the last one gathered.
    turn_bytes: usize,
    last_turn_bytes: usize,
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    /// Writes until nothing is left, or the socket takes no more.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out_sent < self.out.len() {
            let written = match ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.out_sent..])) {
                Ok(0) => return Poll::Ready(Err(self.failure.keep(io::ErrorKind::WriteZero.into()))),
                Ok(written) => written,
                Err(error) => return Poll::Ready(Err(self.failure.keep(error))),
            };
            self.out_sent += written;
        }
        self.out.clear();
        self.out_sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Waits for room, then says how much there is.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.waiting_bytes() >= GATHERED_BYTES_MAX {
            ready!(self.poll_drain(cx))?;
        }
        Poll::Ready(Ok(GATHERED_BYTES_MAX - self.waiting_bytes()))
    }

    fn waiting_bytes(&self) -> usize {
        self.out.len() - self.out_sent
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.out.capacity() == 0 {
            // Turns of one connection are alike: one allocation is mostly enough.
            self.out.reserve_exact(self.last_turn_bytes.clamp(GATHER_BYTES_KEPT, GATHERED_BYTES_MAX));
        }
        if self.out_sent > 0 && self.out.len() + bytes.len() > self.out.capacity() {
            self.out.drain(..self.out_sent);
            self.out_sent = 0;
        }
        self.out.extend_from_slice(bytes);
        self.turn_bytes += bytes.len();
        self.dirty = true;
    }

    /// All is out: gives memory back that only a burst needed.
    fn end_turn(&mut self) {
        if self.out.capacity() > GATHER_BYTES_KEPT {
            self.out = Vec::new();
        }
        self.last_turn_bytes = std::mem::take(&mut self.turn_bytes);
        self.dirty = false;
    }
}

/// The first error of the stream below. h2 keeps its kind and text, but not what TLS had to say.
#[derive(Debug, Default)]
pub struct Failure(OnceLock<io::Error>);

impl Failure {
    /// The error, if there was one.
    #[must_use]
    pub fn get(&self) -> Option<&io::Error> {
        self.0.get()
    }

    /// Keeps `error` if it is the first, and gives out a copy.
    fn keep(&self, error: io::Error) -> io::Error {
        let copy = io::Error::new(error.kind(), error.to_string());
        // A later error is a consequence of the first.
        let _ = self.0.set(error);
        copy
    }
}

/// The stream that the HTTP/2 connection is given.
#[derive(Debug)]
pub struct Coalesce<T>(Arc<Mutex<Gathered<T>>>);

/// The end through which gathered bytes leave.
#[derive(Debug)]
pub struct Outlet<T>(Arc<Mutex<Gathered<T>>>);

/// Splits `io` into the stream for the connection and the outlet for whoever polls it.
pub fn coalesce<T>(io: T) -> (Coalesce<T>, Outlet<T>) {
    let gathered = Gathered {
        io,
        out: Vec::with_capacity(GATHER_BYTES_KEPT),
        out_sent: 0,
        failure: Arc::default(),
        dirty: false,
        turn_bytes: 0,
        last_turn_bytes: 0,
    };
    let shared = Arc::new(Mutex::new(gathered));
    (Coalesce(Arc::clone(&shared)), Outlet(shared))
}

impl<T: AsyncWrite + Unpin> Outlet<T> {
    /// Where the first error of the stream below will be.
    #[must_use]
    pub fn failure(&self) -> Arc<Failure> {
        Arc::clone(&self.0.lock().failure)
    }

    /// Sends what was gathered. Pending means that the socket is full; the task is woken when it is not.
    ///
    /// # Errors
    /// Those of the stream below; the connection must end with them.
    pub fn poll_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.lock();
        if !gathered.dirty {
            return Poll::Ready(Ok(()));
        }
        ready!(gathered.poll_drain(cx))?;
        ready!(Pin::new(&mut gathered.io).poll_flush(cx))?;
        gathered.end_turn();
        Poll::Ready(Ok(()))
    }

    /// Ends a turn: `turn` is what polling the connection gave; what that wrote is sent. A connection that is over must
    /// be followed by [`Self::flushed`].
    ///
    /// # Errors
    /// Those of the stream below.
    pub fn end_turn<R>(&self, cx: &mut Context<'_>, turn: Poll<R>) -> Poll<io::Result<R>> {
        match (turn, self.poll_out(cx)) {
            (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Ready(result), _) => Poll::Ready(Ok(result)),
            (Poll::Pending, _) => Poll::Pending,
        }
    }

    /// Drives a handshake to its end, sending after each poll what it wrote. What its last poll wrote may still wait
    /// for the socket: it leaves in the first turn of the connection.
    ///
    /// # Errors
    /// Those of the stream below.
    pub async fn drive<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            let turn = future.as_mut().poll(cx);
            self.end_turn(cx, turn)
        })
        .await
    }

    /// Waits until all that was gathered has left.
    ///
    /// # Errors
    /// Those of the stream below.
    pub async fn flushed(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_out(cx)).await
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesce<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.lock();
        let read = Pin::new(&mut gathered.io).poll_read(cx, buffer);
        read.map_err(|error| gathered.failure.keep(error))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesce<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.lock();
        let room = ready!(gathered.poll_room(cx))?;
        let taken = bytes.len().min(room);
        gathered.take(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.lock();
        let room = ready!(gathered.poll_room(cx))?;
        let mut taken = 0;
        for slice in slices {
            let part = slice.len().min(room - taken);
            gathered.take(&slice[..part]);
            taken += part;
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Takes note only; see the module.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.lock();
        ready!(gathered.poll_drain(cx))?;
        Pin::new(&mut gathered.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
pub(crate) mod tests;
