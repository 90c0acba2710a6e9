//! A CONNECT stream as a stream of bytes.
//!
//! Invariants: receive credit is given back only for bytes that the reader took, or never; a write is never larger than the send
//! credit at hand; shutdown is END_STREAM, and dropping before it resets the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes asked of the send window at once.
const WRITE_BYTES_MAX: usize = 256 * 1024;

/// Both directions of one tunnel.
#[derive(Debug)]
pub struct HboneStream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    unread: Bytes,
    shut_down: bool,
    gives_credit: bool,
}

impl HboneStream {
    pub fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, unread: Bytes::new(), shut_down: false, gives_credit: true }
    }

    /// Never gives receive credit back, whatever is read: as a reader that stands still.
    pub fn without_credit(mut self) -> Self {
        self.gives_credit = false;
        self
    }

    /// The next bytes as they arrived; `None` at the end. Gives their credit back.
    pub fn poll_read_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let chunk = if self.unread.is_empty() { ready!(self.receive.poll_data(cx)) } else { Some(Ok(std::mem::take(&mut self.unread))) };
        let Some(chunk) = chunk else { return Poll::Ready(None) };
        let chunk = chunk.map_err(to_io)?;
        if self.gives_credit {
            self.receive.flow_control().release_capacity(chunk.len()).map_err(to_io)?;
        }
        Poll::Ready(Some(Ok(chunk)))
    }

    /// Sends as much of `bytes`, which are not empty, as the credit allows, and takes it off.
    pub fn poll_write_chunk(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<()>> {
        let credit = ready!(self.poll_credit(cx, bytes.len()))?;
        let chunk = bytes.split_to(credit.min(bytes.len()));
        Poll::Ready(self.send.send_data(chunk, false).map_err(to_io))
    }

    /// Ends the sending half.
    pub fn end(&mut self) -> io::Result<()> {
        if !self.shut_down {
            self.shut_down = true;
            self.send.send_data(Bytes::new(), true).map_err(to_io)?;
        }
        Ok(())
    }

    /// Send credit for up to `wanted` bytes, at least one.
    fn poll_credit(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let mut credit = self.send.capacity();
        while credit == 0 {
            self.send.reserve_capacity(wanted.min(WRITE_BYTES_MAX));
            credit = self.send.capacity();
            if credit == 0 {
                credit = match ready!(self.send.poll_capacity(cx)) {
                    Some(granted) => granted.map_err(to_io)?,
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                };
            }
        }
        Poll::Ready(Ok(credit))
    }
}

fn to_io(error: h2::Error) -> io::Error {
    if error.is_reset() { io::Error::new(io::ErrorKind::ConnectionReset, error) } else { io::Error::other(error) }
}

impl AsyncRead for HboneStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(chunk) => self.unread = chunk.map_err(to_io)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..taken]);
        self.unread.advance(taken);
        if self.gives_credit {
            self.receive.flow_control().release_capacity(taken).map_err(to_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let credit = ready!(self.poll_credit(cx, bytes.len()))?;
        let chunk = Bytes::copy_from_slice(&bytes[..bytes.len().min(credit)]);
        let length = chunk.len();
        self.send.send_data(chunk, false).map_err(to_io)?;
        Poll::Ready(Ok(length))
    }

    /// One frame of all slices, as far as the credit goes.
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let length = ready!(self.poll_credit(cx, wanted))?.min(wanted);
        let mut chunk = BytesMut::with_capacity(length);
        for slice in slices {
            let taken = slice.len().min(length - chunk.len());
            chunk.extend_from_slice(&slice[..taken]);
        }
        self.send.send_data(chunk.freeze(), false).map_err(to_io)?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }
}
