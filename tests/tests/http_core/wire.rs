//! The two ends of a row: pipes in memory, and scripts that act on them and remember what they saw.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::time::timeout;

/// Bytes in a pipe before its writer waits.
pub const PIPE_BYTES: usize = 64 * 1024;
/// Virtual time without a byte after which an end believes that none will come. Longer than any timer of the core that
/// a row may wait for, shorter than its idle timeout.
const QUIET: Duration = Duration::from_secs(10);

/// What an end does next.
#[derive(Debug, Clone)]
pub enum Do {
    Send(Vec<u8>),
    /// Reads until what was read since the last step contains this.
    Until(&'static str),
    /// Reads until nothing more comes, or the end.
    Quiet,
    /// Ends its writing half.
    Fin,
    /// Closes both halves at once.
    Gone,
}

pub fn send(bytes: impl AsRef<[u8]>) -> Do {
    Do::Send(bytes.as_ref().to_vec())
}

/// What an end has seen.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    pub bytes: Vec<u8>,
    /// The other side ended its writing half.
    pub ended: bool,
}

impl Seen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Runs a script on one end of a pipe. Nothing fails here: what did not come is missing in what was seen.
pub async fn act(mut io: DuplexStream, script: Vec<Do>) -> Seen {
    let mut seen = Seen::default();
    for step in script {
        match step {
            Do::Send(bytes) => {
                write(&mut io, &bytes).await;
            }
            Do::Until(text) => {
                let from = seen.bytes.len();
                while !contains(&seen.bytes[from..], text.as_bytes()) && read_some(&mut io, &mut seen).await {}
            }
            Do::Quiet => while read_some(&mut io, &mut seen).await {},
            Do::Fin => {
                let _ = io.shutdown().await;
            }
            Do::Gone => return seen,
        }
    }
    while read_some(&mut io, &mut seen).await {}
    seen
}

/// The other side may have closed already, or read no more; the row's expectations say if it should have.
pub async fn write(io: &mut DuplexStream, bytes: &[u8]) {
    let _ = timeout(QUIET, io.write_all(bytes)).await;
}

pub async fn read_some(io: &mut DuplexStream, seen: &mut Seen) -> bool {
    if seen.ended {
        return false;
    }
    let mut buffer = vec![0_u8; 16 * 1024];
    match timeout(QUIET, io.read(&mut buffer)).await {
        Ok(Ok(0) | Err(_)) => {
            seen.ended = true;
            false
        }
        Ok(Ok(n_bytes)) => {
            seen.bytes.extend_from_slice(&buffer[..n_bytes]);
            true
        }
        Err(_quiet) => false,
    }
}

pub fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
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
