//! A CONNECT stream of the `h2` crate as a stream of bytes, for both ends of a tunnel.
//!
//! Invariants: credit is given back only for bytes that the reader took; shutdown is END_STREAM; dropping before it resets the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes of one write.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Both directions of one CONNECT stream.
#[derive(Debug)]
pub struct Tunnel {
    send: SendStream<Bytes>,
    receive: RecvStream,
    unread: Bytes,
    ended: bool,
}

impl Tunnel {
    pub(crate) fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, unread: Bytes::new(), ended: false }
    }

    /// Ends the stream by RST_STREAM.
    pub fn reset(mut self, reason: Reason) {
        self.ended = true;
        self.send.send_reset(reason);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.ended {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() { io::ErrorKind::ConnectionReset } else { io::ErrorKind::ConnectionAborted };
    io::Error::new(kind, error)
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            let Some(chunk) = ready!(self.receive.poll_data(context)) else { return Poll::Ready(Ok(())) };
            self.unread = chunk.map_err(broken)?;
        }
        let n_taken = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..n_taken]);
        self.unread.advance(n_taken);
        self.receive.flow_control().release_capacity(n_taken).map_err(broken)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wanted = bytes.len().min(WRITE_BYTES_MAX);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(wanted);
        let mut credit = self.send.capacity();
        while credit == 0 {
            credit = match ready!(self.send.poll_capacity(context)) {
                Some(granted) => granted.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let n_sent = wanted.min(credit);
        self.send.send_data(Bytes::copy_from_slice(&bytes[..n_sent]), false).map_err(broken)?;
        Poll::Ready(Ok(n_sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            self.ended = true;
            self.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}
