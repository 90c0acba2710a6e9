//! A CONNECT stream as a stream of bytes.
//!
//! Invariants: receive credit is given back only for bytes that the reader took; a write is never larger than the send
//! credit at hand; shutdown is END_STREAM, and dropping before it resets the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
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
}

impl HboneStream {
    pub fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, unread: Bytes::new(), shut_down: false }
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
        self.receive.flow_control().release_capacity(taken).map_err(to_io)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut credit = self.send.capacity();
        while credit == 0 {
            self.send.reserve_capacity(bytes.len().min(WRITE_BYTES_MAX));
            credit = self.send.capacity();
            if credit == 0 {
                credit = match ready!(self.send.poll_capacity(cx)) {
                    Some(granted) => granted.map_err(to_io)?,
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                };
            }
        }
        let chunk = Bytes::copy_from_slice(&bytes[..bytes.len().min(credit)]);
        let length = chunk.len();
        self.send.send_data(chunk, false).map_err(to_io)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut_down {
            self.shut_down = true;
            self.send.send_data(Bytes::new(), true).map_err(to_io)?;
        }
        Poll::Ready(Ok(()))
    }
}
