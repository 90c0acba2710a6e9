//! gRPC-Web (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>): what a browser's request and its answer become, so that the
//! application speaks gRPC.
//!
//! Not for: moving bodies. Source: Envoy's filter of this name.
//! Invariants: the answer to a gRPC-Web client is gRPC-Web, whoever makes it; text is cut at the ends of messages only.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};

const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const ENCODINGS: HeaderValue = HeaderValue::from_static("identity");
const GRPC: &[u8] = b"application/grpc";
const BINARY: [&[u8]; 2] = [b"application/grpc-web", b"application/grpc-web+proto"];
const TEXT: [&[u8]; 2] = [b"application/grpc-web-text", b"application/grpc-web-text+proto"];
/// Flag of a frame that holds trailers.
const TRAILERS: u8 = 0x80;
/// A flag, and four bytes of length.
const PREFIX_LEN: usize = 5;

/// A request that came as gRPC-Web.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Web {
    /// Its body is text.
    pub is_text: bool,
    /// Its answer is to be.
    pub wants_text: bool,
}

/// Makes a gRPC request of one that is gRPC-Web; none is left alone.
pub fn begin(headers: &mut HeaderMap) -> Option<Web> {
    let is_one_of = |name: HeaderName, known: &[&[u8]]| headers.get(name).is_some_and(|value| known.contains(&value.as_bytes()));
    let is_text = is_one_of(CONTENT_TYPE, &TEXT);
    if !is_text && !is_one_of(CONTENT_TYPE, &BINARY) {
        return None;
    }
    let wants_text = is_one_of(http::header::ACCEPT, &TEXT);
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    if !headers.contains_key(ACCEPT_ENCODING) {
        headers.insert(ACCEPT_ENCODING, ENCODINGS);
    }
    Some(Web { is_text, wants_text })
}

/// Whether an answer is none of gRPC's, so that its text becomes a message. `has_body`: more than the head comes.
#[must_use]
pub fn is_foreign(status: u16, headers: &HeaderMap, has_body: bool) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let is_grpc = match has_body {
        true => status == 200 && kind.strip_prefix(GRPC).is_some_and(|rest| rest.is_empty() || rest[0] == b'+'),
        false => headers.contains_key("grpc-status"),
    };
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii_end();
    let is_web = status == 200 && BINARY.iter().any(|known| kind.eq_ignore_ascii_case(known));
    !is_grpc && !is_web
}

/// The head of an answer, as this client wants it.
pub fn answer_head(web: Web, headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    let kind = if web.wants_text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
}

/// Trailers as the last frame of a body.
#[must_use]
pub fn trailers_frame(web: Web, trailers: &HeaderMap) -> Vec<u8> {
    let mut frame = vec![TRAILERS, 0, 0, 0, 0];
    for (name, value) in trailers {
        frame.extend_from_slice(name.as_str().as_bytes());
        frame.push(b':');
        frame.extend_from_slice(value.as_bytes());
        frame.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(frame.len() - PREFIX_LEN).unwrap_or(u32::MAX);
    frame[1..PREFIX_LEN].copy_from_slice(&length.to_be_bytes());
    if web.wants_text { STANDARD.encode(frame).into_bytes() } else { frame }
}

/// What is no text of gRPC-Web.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoText;

/// Reads a body of text as it comes.
#[derive(Debug, Default)]
pub struct TextReader {
    rest: Vec<u8>,
}

impl TextReader {
    /// The bytes in all whole groups of four so far.
    ///
    /// # Errors
    /// It is no base64.
    pub fn read(&mut self, text: &[u8]) -> Result<Vec<u8>, NoText> {
        self.rest.extend_from_slice(text);
        let groups: Vec<u8> = self.rest.drain(..self.rest.len() / 4 * 4).collect();
        let mut out = Vec::with_capacity(groups.len() / 4 * 3);
        // Each client's piece may be padded.
        for piece in pieces(&groups) {
            STANDARD.decode_vec(piece, &mut out).map_err(|_| NoText)?;
        }
        Ok(out)
    }

    /// Whether the text may end here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Writes messages as text: each by itself, padded, however they come.
#[derive(Debug, Default)]
pub struct TextWriter {
    prefix: Vec<u8>,
    left: usize,
    /// One or two bytes that wait for more.
    rest: Vec<u8>,
}

impl TextWriter {
    /// The text of these bytes, as far as it can be written already.
    pub fn write(&mut self, mut data: &[u8]) -> Vec<u8> {
        let mut out = String::new();
        while !data.is_empty() {
            let taken = if self.left > 0 { self.left.min(data.len()) } else { (PREFIX_LEN - self.prefix.len()).min(data.len()) };
            let (now, later) = data.split_at(taken);
            data = later;
            self.rest.extend_from_slice(now);
            if self.left > 0 {
                self.left -= taken;
            } else {
                self.prefix.extend_from_slice(now);
                if let [_, a, b, c, d] = self.prefix[..] {
                    self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                }
            }
            let is_end = self.left == 0 && self.prefix.len() == PREFIX_LEN;
            let whole = if is_end { self.rest.len() } else { self.rest.len() / 3 * 3 };
            STANDARD.encode_string(&self.rest[..whole], &mut out);
            self.rest.drain(..whole);
            if is_end {
                self.prefix.clear();
            }
        }
        out.into_bytes()
    }
}

/// Pieces of text, each of which ends with its padding.
fn pieces(mut left: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let groups = left.chunks(4);
        let end = groups.clone().position(|group| group.ends_with(b"=")).map_or(groups.len(), |at| at + 1);
        let (piece, rest) = left.split_at(end * 4);
        left = rest;
        Some(piece).filter(|piece| !piece.is_empty())
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn text_is_read_and_written_alike_however_it_is_cut() {
        let messages: Vec<u8> = [0_usize, 1, 2, 3, 300].into_iter().flat_map(frame).collect();
        let expected: String = [0_usize, 1, 2, 3, 300].into_iter().map(|length| STANDARD.encode(frame(length))).collect();
        for piece in [1, 2, 3, 5, 7, 64, 1000] {
            let (mut writer, mut reader) = (TextWriter::default(), TextReader::default());
            let text: Vec<u8> = messages.chunks(piece).flat_map(|data| writer.write(data)).collect();
            assert_eq!(String::from_utf8(text.clone()).unwrap(), expected, "in pieces of {piece}");
            let read: Vec<u8> = text.chunks(piece).flat_map(|text| reader.read(text).unwrap()).collect();
            assert!(read == messages && reader.is_whole(), "in pieces of {piece}");
        }
        assert_eq!(TextReader::default().read(b"AA*="), Err(NoText));
    }

    fn frame(length: usize) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend(u32::try_from(length).unwrap().to_be_bytes());
        frame.extend(std::iter::repeat_n(7, length));
        frame
    }

    #[test]
    fn answers_that_are_none_of_grpc_are_told_apart() {
        let of = |kind: &'static str| HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        for (status, kind, has_body, foreign) in [
            (200, "application/grpc", true, false),
            (200, "application/grpc+proto", true, false),
            (503, "application/grpc", true, true),
            (200, "application/grpc-web; x=y", true, false),
            (200, "text/plain", true, true),
            (200, "application/grpc", false, true),
        ] {
            assert_eq!(is_foreign(status, &of(kind), has_body), foreign, "{status} {kind}");
        }
    }
}
