//! A lean HTTP/1.1 client for requests whose body fits beside their head: what a run sends by the hundred thousand.
//!
//! The request is one prebuilt piece that is never copied; of an answer only the head is looked at, and its body is checked
//! against its framing (RFC 9112 §6) and dropped where it lies. Not here: bodies that need flow control (`session.rs` uses
//! hyper for them). Invariants: one request at a time; a client that failed or was cancelled is not used again.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt as _;

use super::body::Traffic;
use crate::hbone::stream::HboneStream;
use crate::stats::Failure;

/// Largest head of an answer, and largest line within a chunked body.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// How long the peer may take to end its half of a tunnel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// One connection inside a tunnel.
#[derive(Debug)]
pub struct Http1 {
    stream: HboneStream,
    unread: Bytes,
    /// False from the beginning of a request until its answer has ended and left the connection usable.
    is_usable: bool,
}

/// What of an answer's head matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    framing: Framing,
    keeps_alive: bool,
}

/// How an answer's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    Close,
}

impl Http1 {
    pub fn new(stream: HboneStream) -> Self {
        Self { stream, unread: Bytes::new(), is_usable: true }
    }

    /// Whether a request can be sent: the answer before it has ended, and the peer has neither closed nor spoken since.
    pub fn is_ready(&mut self) -> bool {
        self.is_usable && self.unread.is_empty() && poll_fn(|cx| self.stream.poll_read_chunk(cx)).now_or_never().is_none()
    }

    /// Sends a whole request and waits for the head of the final answer.
    pub async fn send(&mut self, mut request: Bytes) -> Result<Head, Failure> {
        self.is_usable = false;
        while !request.is_empty() {
            poll_fn(|cx| self.stream.poll_write_chunk(cx, &mut request)).await.map_err(|_broken| Failure::Broken)?;
        }
        loop {
            let head = self.head().await?;
            if head.status >= 200 {
                return Ok(head);
            }
        }
    }

    /// Takes the body of the answer that `head` began.
    pub async fn skip_body(&mut self, head: Head, traffic: &Traffic) -> Result<(), Failure> {
        match head.framing {
            Framing::Length(length) => self.skip(length, Some(traffic)).await?,
            Framing::Chunked => self.skip_chunks(traffic).await?,
            Framing::Close => {
                traffic.moved(self.unread.len());
                while let Some(chunk) = self.read().await? {
                    traffic.moved(chunk.len());
                }
            }
        }
        self.is_usable = head.keeps_alive;
        Ok(())
    }

    /// Ends the tunnel as an app's connection ends: this half first, then the peer's. A reset instead is what Envoy counts
    /// against a client, up to closing its connection (CVE-2023-44487).
    pub async fn close(mut self) {
        if std::mem::take(&mut self.is_usable) && self.stream.end().is_ok() {
            let ended = async { while let Ok(Some(_)) = self.read().await {} };
            // A peer that does not end is left to itself.
            let _late = tokio::time::timeout(CLOSE_TIMEOUT, ended).await;
        }
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Failure> {
        poll_fn(|cx| self.stream.poll_read_chunk(cx)).await.transpose().map_err(|_broken| Failure::Broken)
    }

    /// Adds to what is unread; an end is a cut answer.
    async fn read_more(&mut self) -> Result<(), Failure> {
        let chunk = self.read().await?.ok_or(Failure::Broken)?;
        if self.unread.is_empty() {
            self.unread = chunk;
        } else if self.unread.len() > HEAD_BYTES_MAX {
            return Err(Failure::Broken);
        } else {
            let mut joined = BytesMut::from(std::mem::take(&mut self.unread));
            joined.extend_from_slice(&chunk);
            self.unread = joined.freeze();
        }
        Ok(())
    }

    async fn head(&mut self) -> Result<Head, Failure> {
        loop {
            if let Some((length, head)) = parse_head(&self.unread).ok_or(Failure::Broken)? {
                self.unread.advance(length);
                return Ok(head);
            }
            self.read_more().await?;
        }
    }

    async fn skip(&mut self, mut length: u64, traffic: Option<&Traffic>) -> Result<(), Failure> {
        while length > 0 {
            if self.unread.is_empty() {
                self.read_more().await?;
            }
            let taken = usize::try_from(length).map_or(self.unread.len(), |length| length.min(self.unread.len()));
            self.unread.advance(taken);
            length -= u64::try_from(taken).expect("a length fits in 64 bits");
            if let Some(traffic) = traffic {
                traffic.moved(taken);
            }
        }
        Ok(())
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<Bytes, Failure> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line = self.unread.split_to(end + 1);
                return Ok(line.slice(..line.len() - if line.ends_with(b"\r\n") { 2 } else { 1 }));
            }
            self.read_more().await?;
        }
    }

    async fn skip_chunks(&mut self, traffic: &Traffic) -> Result<(), Failure> {
        loop {
            let line = self.line().await?;
            let size = line.split(|byte| *byte == b';').next().and_then(|size| std::str::from_utf8(size).ok());
            let size = size.and_then(|size| u64::from_str_radix(size.trim(), 16).ok()).ok_or(Failure::Broken)?;
            if size == 0 {
                break;
            }
            self.skip(size, Some(traffic)).await?;
            if !self.line().await?.is_empty() {
                return Err(Failure::Broken);
            }
        }
        while !self.line().await?.is_empty() {}
        Ok(())
    }
}

impl Drop for Http1 {
    /// A client leaves by ending its half; a reset follows only where the answer has not ended.
    fn drop(&mut self) {
        if self.is_usable {
            // A tunnel that is already gone needs no end.
            let _gone = self.stream.end();
        }
    }
}

/// `None`: no head of an HTTP/1 answer. `Some(None)`: it goes on.
fn parse_head(bytes: &[u8]) -> Option<Option<(usize, Head)>> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let Some(first) = lines.next().filter(|line| line.ends_with(b"\n")) else { return Some(None) };
    let status = std::str::from_utf8(first.strip_prefix(b"HTTP/1.")?.get(2..5)?).ok()?.parse().ok()?;
    let mut head = Head { status, framing: Framing::Close, keeps_alive: first.starts_with(b"HTTP/1.1 ") };
    let mut length = first.len();
    for line in lines {
        if !line.ends_with(b"\n") {
            return Some(None);
        }
        length += line.len();
        let line = line.trim_ascii();
        if line.is_empty() {
            if status < 200 || status == 204 || status == 304 {
                head.framing = Framing::Length(0);
            }
            head.keeps_alive &= head.framing != Framing::Close;
            return Some(Some((length, head)));
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        read_field(&mut head, name, value)?;
    }
    Some(None)
}

fn read_field(head: &mut Head, name: &[u8], value: &[u8]) -> Option<()> {
    if name.eq_ignore_ascii_case(b"content-length") {
        let length = Framing::Length(std::str::from_utf8(value).ok()?.parse().ok()?);
        match head.framing {
            Framing::Close => head.framing = length,
            // Repeated, it has to say the same; beside chunks it does not count (RFC 9112 §6.3).
            Framing::Length(_) if head.framing != length => return None,
            Framing::Length(_) | Framing::Chunked => {}
        }
    } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
        head.framing = if value.to_ascii_lowercase().ends_with(b"chunked") { Framing::Chunked } else { Framing::Close };
    } else if name.eq_ignore_ascii_case(b"connection") && value.eq_ignore_ascii_case(b"close") {
        head.keeps_alive = false;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Option<Option<(usize, Head)>> {
        parse_head(text.as_bytes())
    }

    fn framing(fields: &str) -> Option<(Framing, bool)> {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        head(&text)?.map(|(_, head)| (head.framing, head.keeps_alive))
    }

    #[test]
    fn a_head_is_whole_at_its_empty_line_and_not_before() {
        let text = "HTTP/1.1 503 Service Unavailable\r\nserver: a\r\ncontent-length: 5\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(head(&text[..end]), Some(None), "{end}");
        }
        let (length, head) = head(&format!("{text}hello")).flatten().expect("a head");
        assert_eq!((length, head.status, head.framing), (text.len(), 503, Framing::Length(5)));
    }

    #[test]
    fn a_body_ends_as_its_fields_say() {
        assert_eq!(framing("Content-Length: 12\r\n"), Some((Framing::Length(12), true)));
        assert_eq!(framing("transfer-encoding: Chunked\r\ncontent-length: 3\r\n"), Some((Framing::Chunked, true)));
        assert_eq!(framing("content-length: 3\r\ncontent-length: 3\r\n"), Some((Framing::Length(3), true)));
        assert_eq!(framing(""), Some((Framing::Close, false)));
        assert_eq!(framing("content-length: 1\r\nconnection: Close\r\n"), Some((Framing::Length(1), false)));
        assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n").flatten().map(|(_, head)| head.framing), Some(Framing::Length(0)));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for bad in ["content-length: x\r\n", "content-length: 1\r\ncontent-length: 2\r\n", "nonsense\r\n"] {
            assert_eq!(framing(bad), None, "{bad}");
        }
        assert_eq!(head("SSH-2.0-x\r\n\r\n"), None);
        assert_eq!(head("HTTP/1.1 2\r\n\r\n"), None);
    }
}
