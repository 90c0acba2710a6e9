//! What a stream speaks, from its first bytes: HTTP/1, HTTP/2 with prior knowledge, or neither.
//!
//! Decides as early as the bytes allow, and never waits for a number of them: `GET / HTTP/1.0` and a blank line is shorter than the
//! HTTP/2 preface. The rules are those of Envoy's `http_inspector` (preface, else a request line), except that where the version does not
//! matter a registered method and a target in origin form decide without the rest of the line, so that a client which pauses there is no
//! riddle.
//!
//! Not here: how long to wait for the first bytes, and what to do when the server speaks first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

mod hello;
#[cfg(test)]
mod tests;

pub use self::hello::{CLIENT_HELLO_BYTES_MAX, Hello, HelloReader};

/// Bytes within which a request line has to end where its end is waited for; Envoy's inspector looks at as many.
pub const SNIFF_BYTES_MAX: usize = 64 * 1024;
/// Bytes read at once while sniffing.
const READ_BYTES: usize = 1024;

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9110 §9.1 and RFC 5789.
const METHODS: [&[u8]; 9] = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"];

/// What a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sniffed {
    /// HTTP/1.1; of any version of HTTP/1 where [`Wanted::Protocol`] is asked for.
    Http1,
    Http1_0,
    Http2,
    NotHttp,
}

/// What has to be known of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Which codec reads it. A registered method and a target in origin form are enough.
    Protocol,
    /// The version as well, which stands at the end of a request line.
    Version,
}

/// Decides from everything a stream has sent so far; what was looked at is not looked at again.
#[derive(Debug)]
struct Sniffer {
    wanted: Wanted,
    /// Bytes that need no second look.
    looked: usize,
    /// Where the target of the request line begins, once a method has come.
    target: Option<usize>,
}

impl Sniffer {
    fn new(wanted: Wanted) -> Sniffer {
        Sniffer { wanted, looked: 0, target: None }
    }

    /// `bytes`: those of the last time, and more. `None`: it may still become HTTP.
    fn look(&mut self, bytes: &[u8]) -> Option<Sniffed> {
        if bytes.starts_with(PREFACE) {
            return Some(Sniffed::Http2);
        }
        if PREFACE.starts_with(bytes) {
            return None;
        }
        let target = match self.target {
            Some(target) => target,
            None => {
                let method_end = self.find(bytes, |byte| !is_token(byte))?;
                if method_end == 0 || bytes[method_end] != b' ' {
                    return Some(Sniffed::NotHttp);
                }
                self.looked = method_end + 1;
                *self.target.insert(method_end + 1)
            }
        };
        if self.wanted == Wanted::Protocol && METHODS.contains(&&bytes[..target - 1]) && bytes.get(target) == Some(&b'/') {
            return Some(Sniffed::Http1);
        }
        let line_end = self.find(bytes, |byte| !is_in_line(byte))?;
        match &bytes[line_end..] {
            [b'\n', ..] | [b'\r', b'\n', ..] => Some(self.version(&bytes[target..line_end])),
            [b'\r'] => None,
            _ => Some(Sniffed::NotHttp),
        }
    }

    /// The first byte of this kind among those that were not looked at.
    fn find(&mut self, bytes: &[u8], is_it: impl Fn(u8) -> bool) -> Option<usize> {
        let found = bytes[self.looked..].iter().position(|byte| is_it(*byte)).map(|at| self.looked + at);
        self.looked = found.unwrap_or(bytes.len());
        found
    }

    /// By the rest of a request line, `target SP HTTP/1.x` (RFC 9112 §3).
    fn version(&self, rest: &[u8]) -> Sniffed {
        let mut fields = rest.split(|byte| *byte == b' ');
        let (target, version, more) = (fields.next(), fields.next(), fields.next());
        if target.is_none_or(<[u8]>::is_empty) || more.is_some() {
            return Sniffed::NotHttp;
        }
        match version {
            Some(b"HTTP/1.0") if self.wanted == Wanted::Version => Sniffed::Http1_0,
            Some(b"HTTP/1.1" | b"HTTP/1.0") => Sniffed::Http1,
            _ => Sniffed::NotHttp,
        }
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_in_line(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f
}

/// A stream whose first bytes were read, and are read again.
#[derive(Debug)]
pub struct Replay<I> {
    io: I,
    ahead: BytesMut,
}

impl<I> Replay<I> {
    pub fn new(io: I) -> Replay<I> {
        Replay { io, ahead: BytesMut::new() }
    }

    /// What was read and not yet read again.
    #[must_use]
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// The stream under it.
    pub fn get_ref(&self) -> &I {
        &self.io
    }
}

impl<I: AsyncRead + Unpin> Replay<I> {
    /// Waits for the first bytes, or the end.
    ///
    /// # Errors
    /// From reading.
    ///
    /// # Cancel safety
    /// Safe: what was read is kept.
    pub async fn look_ahead(&mut self) -> io::Result<()> {
        if self.ahead.is_empty() {
            self.ahead.reserve(READ_BYTES);
            self.io.read_buf(&mut self.ahead).await?;
        }
        Ok(())
    }

    /// Reads until it is known which name a ClientHello has; a stream that ends before says nothing.
    ///
    /// # Errors
    /// From reading.
    ///
    /// # Cancel safety
    /// Safe: what was read is kept, and the next call begins with it.
    pub async fn hello(&mut self) -> io::Result<Hello> {
        let mut reader = HelloReader::default();
        let mut looked = 0;
        loop {
            if looked < self.ahead.len()
                && let Some(hello) = reader.look(&self.ahead[looked..])
            {
                return Ok(hello);
            }
            looked = self.ahead.len();
            self.ahead.reserve(READ_BYTES);
            if self.io.read_buf(&mut self.ahead).await? == 0 {
                return Ok(if looked == 0 { Hello::NotTls } else { Hello::Unreadable });
            }
        }
    }

    /// Reads until the bytes say what is wanted, at most `bytes_max` of them ([`SNIFF_BYTES_MAX`]). A stream that ends before, or sends
    /// more without deciding, is [`Sniffed::NotHttp`].
    ///
    /// # Errors
    /// From reading.
    ///
    /// # Cancel safety
    /// Safe: what was read is kept, and the next call goes on from there.
    pub async fn sniff(&mut self, wanted: Wanted, bytes_max: usize) -> io::Result<Sniffed> {
        let mut sniffer = Sniffer::new(wanted);
        loop {
            if let Some(decision) = sniffer.look(&self.ahead) {
                return Ok(decision);
            }
            if self.ahead.len() >= bytes_max {
                return Ok(Sniffed::NotHttp);
            }
            self.ahead.reserve(READ_BYTES);
            if self.io.read_buf(&mut self.ahead).await? == 0 {
                return Ok(Sniffed::NotHttp);
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Replay<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let n_bytes = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..n_bytes]);
        self.ahead.advance(n_bytes);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Replay<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
