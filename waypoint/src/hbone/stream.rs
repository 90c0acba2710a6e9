//! An HTTP/2 stream as a byte stream ([`ByteStream`]), and a tunnel, which is one ([`HboneStream`]).
//!
//! Not for: opening or answering CONNECTs.
//!
//! How HTTP/2 reads as TCP: END_STREAM is end of file, also when a reset follows it. RST_STREAM without END_STREAM is
//! `ConnectionReset` to the reader whatever its code, CANCEL and NO_ERROR too: something is missing, and a body that is
//! delimited by the end of the connection must not look complete. To the writer, NO_ERROR is `BrokenPipe` (RFC 9113 §8.1:
//! the peer has said all and wants no more), any other code `ConnectionReset`. Shutting down sends END_STREAM. Dropping a
//! stream that has not ended both ways resets it with CANCEL, and what had not left by then is lost, as with a TCP
//! socket that is closed with bytes unread; only a server that has shut down may drop without having read all: its
//! bytes leave first, then NO_ERROR.
//!
//! Memory, per stream: unread bytes are bounded by the window that we advertise, unsent ones by
//! [`super::SEND_QUEUE_BYTES_MAX`] plus [`GATHERED_BYTES_MAX`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ConnectionFacts;

/// Small writes are gathered up to this size, and leave as one DATA frame at the flush.
pub const GATHERED_BYTES_MAX: usize = 16 * 1024;

/// A write of at least this size, with nothing gathered, is not gathered.
const DIRECT_BYTES_MIN: usize = 8 * 1024;

/// Most bytes that are taken from a writer at once.
const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// How many streams of a connection are open.
#[derive(Debug, Default)]
pub(super) struct StreamCount(AtomicUsize);

impl StreamCount {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// Holds one place among the streams of a connection.
#[derive(Debug)]
pub(super) struct StreamLease(Arc<StreamCount>);

impl StreamLease {
    pub(super) fn take(count: &Arc<StreamCount>) -> Self {
        count.0.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What follows the heads of a CONNECT and its answer. `AsyncRead` and `AsyncWrite` are cancel safe in tokio's sense;
/// small writes wait for a flush.
#[derive(Debug)]
pub struct ByteStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    unread: Bytes,
    gathered: BytesMut,
    read_ended: bool,
    end_sent: bool,
}

/// A tunnel: a [`ByteStream`], and what carries it.
#[derive(Debug)]
pub struct HboneStream {
    bytes: ByteStream,
    connection: Arc<ConnectionFacts>,
    headers: HeaderMap,
    _lease: Option<StreamLease>,
}

impl HboneStream {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, connection: Arc<ConnectionFacts>) -> Self {
        Self { bytes: ByteStream::new(send, recv), connection, headers: HeaderMap::new(), _lease: None }
    }

    pub(super) fn with_answer(mut self, headers: HeaderMap, lease: StreamLease) -> Self {
        self.headers = headers;
        self._lease = Some(lease);
        self
    }

    /// The connection that carries this tunnel.
    #[must_use]
    pub fn connection(&self) -> &Arc<ConnectionFacts> {
        &self.connection
    }

    /// Header fields of the 200 that opened this tunnel (ztunnel: its `baggage`); none on tunnels that we accepted.
    #[must_use]
    pub fn answer_headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// As [`ByteStream::unread`].
    pub fn unread(&mut self, bytes: Bytes) {
        self.bytes.unread(bytes);
    }

    /// As [`ByteStream::poll_read_chunk`].
    ///
    /// # Errors
    /// As reading.
    pub fn poll_read_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.bytes.poll_read_chunk(cx)
    }

    /// As [`ByteStream::poll_write_chunk`].
    ///
    /// # Errors
    /// As writing.
    pub fn poll_write_chunk(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<()>> {
        self.bytes.poll_write_chunk(cx, bytes)
    }

    /// As [`ByteStream::reset`].
    pub fn reset(self, reason: Reason) {
        self.bytes.reset(reason);
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().bytes).poll_read(cx, buffer)
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().bytes).poll_write(cx, bytes)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().bytes).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().bytes).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().bytes).poll_shutdown(cx)
    }
}

impl ByteStream {
    /// Of both halves of a stream whose heads have passed.
    #[must_use]
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, unread: Bytes::new(), gathered: BytesMut::new(), read_ended: false, end_sent: false }
    }

    /// Gives bytes back, to be read again before all others: for whoever had to look to know whose they are.
    pub fn unread(&mut self, bytes: Bytes) {
        if self.unread.is_empty() {
            self.unread = bytes;
        } else {
            let mut joined = BytesMut::with_capacity(bytes.len() + self.unread.len());
            joined.extend_from_slice(&bytes);
            joined.extend_from_slice(&self.unread);
            self.unread = joined.freeze();
        }
    }

    /// The next bytes without copying them; `None` at the end of the stream. Their flow control is released with this
    /// call: take no more than can be passed on.
    ///
    /// # Errors
    /// As reading.
    pub fn poll_read_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        ready!(self.poll_unread(cx))?;
        Poll::Ready(Ok(if self.unread.is_empty() { None } else { Some(std::mem::take(&mut self.unread)) }))
    }

    /// Takes from the front of `bytes` what the peer has room for, without copying it. Ready when something was taken.
    ///
    /// # Errors
    /// As writing.
    pub fn poll_write_chunk(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<()>> {
        ready!(self.poll_send_gathered(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let room = ready!(self.poll_room(cx, bytes.len().min(CHUNK_BYTES_MAX)))?;
        let chunk = bytes.split_to(room.min(bytes.len()));
        Poll::Ready(self.send(cx, chunk, false))
    }

    /// Ends the stream at once, both ways, as an error to the peer. What was not sent yet is lost.
    pub fn reset(mut self, reason: Reason) {
        self.end_sent = true;
        self.send.send_reset(reason);
    }

    /// Waits until something unread is at hand or the stream has ended. Connection and stream credit is released as
    /// soon as bytes are taken out of h2: at most one DATA frame waits here.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.read_ended {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    // Fails only for more than was received.
                    self.recv.flow_control().release_capacity(bytes.len()).map_err(stream_error)?;
                    self.unread = bytes;
                }
                Some(Err(error)) if error.is_reset() => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, error)));
                }
                Some(Err(error)) => return Poll::Ready(Err(stream_error(error))),
                None => self.read_ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for room to send, asking for `wanted` bytes.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            self.send.reserve_capacity(wanted);
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(stream_error(error))),
                None => return Poll::Ready(Err(self.why_closed(cx))),
            }
        }
    }

    fn poll_send_gathered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let length = self.gathered.len();
            let room = ready!(self.poll_room(cx, length))?.min(length);
            // Taken whole where possible: thousands of idle tunnels should hold no buffers.
            let chunk = if room == length { std::mem::take(&mut self.gathered) } else { self.gathered.split_to(room) };
            let chunk = chunk.freeze();
            self.send(cx, chunk, false)?;
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, cx: &mut Context<'_>, chunk: Bytes, end: bool) -> io::Result<()> {
        if self.send.send_data(chunk, end).is_err() {
            return Err(self.why_closed(cx));
        }
        if self.send.capacity() > 0 {
            // Credit that was asked for and is not used would be kept from the connection's other streams.
            self.send.reserve_capacity(0);
        }
        Ok(())
    }

    /// Why h2 takes no more data on this stream.
    fn why_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset_error(reason),
            Poll::Ready(Err(error)) => stream_error(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

fn reset_error(reason: Reason) -> io::Error {
    let kind = if reason == Reason::NO_ERROR { io::ErrorKind::BrokenPipe } else { io::ErrorKind::ConnectionReset };
    io::Error::new(kind, h2::Error::from(reason))
}

/// What an error of h2 is to a reader or writer of bytes.
fn stream_error(error: h2::Error) -> io::Error {
    if let Some(cause) = error.get_io() {
        return io::Error::new(cause.kind(), error);
    }
    let kind = match error.reason() {
        Some(Reason::NO_ERROR) if error.is_reset() => io::ErrorKind::BrokenPipe,
        Some(_) => io::ErrorKind::ConnectionReset,
        None => io::ErrorKind::BrokenPipe,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for ByteStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_unread(cx))?;
        let length = this.unread.len().min(buffer.remaining());
        buffer.put_slice(&this.unread[..length]);
        this.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.end_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !this.gathered.is_empty() && this.gathered.len() + bytes.len() > GATHERED_BYTES_MAX {
            ready!(this.poll_send_gathered(cx))?;
        }
        if bytes.len() >= DIRECT_BYTES_MIN && this.gathered.is_empty() {
            let wanted = bytes.len().min(CHUNK_BYTES_MAX);
            let length = ready!(this.poll_room(cx, wanted))?.min(wanted);
            this.send(cx, Bytes::copy_from_slice(&bytes[..length]), false)?;
            return Poll::Ready(Ok(length));
        }
        this.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let this = self.get_mut();
        if this.end_sent || this.gathered.len() + total > GATHERED_BYTES_MAX {
            // Too much to gather: the first slice with bytes, as a write of its own.
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return Pin::new(this).poll_write(cx, first);
        }
        for slice in slices {
            this.gathered.extend_from_slice(slice);
        }
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Ready when h2 has taken everything; the bytes leave in the connection's next turn.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send_gathered(cx)
    }

    /// Sends END_STREAM after what was written; reading goes on. Nothing is an error here that the peer has ended in
    /// order.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end_sent {
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_send_gathered(cx))?;
        this.end_sent = true;
        match this.send(cx, Bytes::new(), true) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}
