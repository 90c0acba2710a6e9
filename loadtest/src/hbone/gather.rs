//! One write per scheduler turn: frames that an HTTP/2 connection writes in one poll leave together.
//!
//! `h2` flushes after each DATA frame that it does not copy; with TLS below, that is a record and a system call for every
//! small message. `Gathered` therefore only collects, and whoever polls the connection calls [`Outlet::poll_send`]
//! right afterwards. Invariant: at most `GATHER_BYTES_MAX` plus one write are held; beyond that, writes wait for the socket.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes gathered on one connection before further writes wait for the socket.
const GATHER_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
struct Shared<T> {
    inner: T,
    waiting: BytesMut,
    unflushed: bool,
}

impl<T: AsyncWrite + Unpin> Shared<T> {
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &self.waiting))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.waiting.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.len() < GATHER_BYTES_MAX { Poll::Ready(Ok(())) } else { self.poll_write_out(cx) }
    }
}

/// The half that the HTTP/2 connection reads from and writes to.
#[derive(Debug)]
pub struct Gathered<T>(Arc<Mutex<Shared<T>>>);

/// The half that sends what was gathered.
#[derive(Debug)]
pub struct Outlet<T>(Arc<Mutex<Shared<T>>>);

/// Splits a transport into the gathering half and its outlet.
pub fn gather<T>(inner: T) -> (Gathered<T>, Outlet<T>) {
    let shared = Arc::new(Mutex::new(Shared { inner, waiting: BytesMut::new(), unflushed: false }));
    (Gathered(Arc::clone(&shared)), Outlet(shared))
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves bytes, not a broken invariant.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: AsyncWrite + Unpin> Outlet<T> {
    /// Sends what was gathered. `Pending` when the socket is full; the waker is then registered.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        if !shared.unflushed {
            return Poll::Ready(Ok(()));
        }
        ready!(shared.poll_write_out(cx))?;
        ready!(Pin::new(&mut shared.inner).poll_flush(cx))?;
        shared.unflushed = false;
        Poll::Ready(Ok(()))
    }
}

/// Polls a client connection to its end, sending after each poll; its last bytes leave before it counts as over.
///
/// How it ended is told to its streams, which is where someone cares.
pub async fn drive<C, T>(connection: C, outlet: Outlet<T>)
where
    C: Future<Output = Result<(), h2::Error>>,
    T: AsyncWrite + Unpin,
{
    let mut connection = pin!(connection);
    let mut is_over = false;
    poll_fn(|cx| {
        is_over = is_over || connection.as_mut().poll(cx).is_ready();
        match outlet.poll_send(cx) {
            Poll::Ready(Ok(())) if is_over => Poll::Ready(()),
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
        }
    })
    .await;
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.0);
        ready!(shared.poll_room(cx))?;
        shared.waiting.extend_from_slice(bytes);
        shared.unflushed = true;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut shared = lock(&self.0);
        ready!(shared.poll_room(cx))?;
        let before = shared.waiting.len();
        for slice in slices {
            shared.waiting.extend_from_slice(slice);
        }
        shared.unflushed = true;
        Poll::Ready(Ok(shared.waiting.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.0);
        ready!(shared.poll_write_out(cx))?;
        Pin::new(&mut shared.inner).poll_shutdown(cx)
    }
}
