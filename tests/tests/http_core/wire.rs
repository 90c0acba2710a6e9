//! The two ends of a row: pipes in memory, and scripts that act on them and remember what they saw.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tests::http_rows;
pub use tests::http_rows::{Do, Seen, send};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Bytes in a pipe before its writer waits.
pub const PIPE_BYTES: usize = 64 * 1024;
/// Virtual time without a byte after which an end believes that none will come. Longer than any timer of the core that
/// a row may wait for, shorter than its idle timeout.
pub const QUIET: Duration = Duration::from_secs(10);

/// Runs a script on one end of a pipe.
pub async fn act(io: DuplexStream, script: Vec<Do>) -> Seen {
    http_rows::act(io, script, QUIET).await
}

/// A stream that is read byte by byte.
pub struct Drip(pub DuplexStream);

impl AsyncRead for Drip {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0_u8; 1];
        let mut one = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut one))?;
        buffer.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Drip {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
