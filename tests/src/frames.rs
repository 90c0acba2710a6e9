//! HTTP/2 frames by hand, for what the `h2` crate refuses to send (RFC 9113 §4, §6; RFC 7541 §6.2.2).
//!
//! Not for: reading more of an answer than its status and how its stream ended.

use std::collections::BTreeMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Length, kind, flags, stream.
const HEAD_BYTES: usize = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads of tests are short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Literal fields, neither indexed nor compressed; names and values below 127 bytes.
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("texts of tests are short"));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// What a client begins with.
#[must_use]
pub fn preface() -> Vec<u8> {
    [PREFACE, &settings()].concat()
}

/// What a server begins with.
#[must_use]
pub fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

/// A head, or trailers.
#[must_use]
pub fn headers(stream: u32, list: &[(&str, &str)], is_end: bool) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | if is_end { END_STREAM } else { 0 }, stream, &fields(list))
}

/// A part of a body.
#[must_use]
pub fn data(stream: u32, bytes: &str, is_end: bool) -> Vec<u8> {
    frame(DATA, if is_end { END_STREAM } else { 0 }, stream, bytes.as_bytes())
}

/// What a peer did with a stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Of its first head; 0 if that is no answer's.
    pub status: Option<u16>,
    pub reset: Option<u32>,
    pub is_ended: bool,
}

/// What a peer did with a connection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Answers {
    pub go_away: Option<u32>,
    streams: BTreeMap<u32, Answer>,
}

impl Answers {
    /// Reads all whole frames.
    #[must_use]
    pub fn read(mut bytes: &[u8]) -> Self {
        let mut answers = Self::default();
        while let Some(([a, b, c, kind, flags, stream @ ..], rest)) = bytes.split_first_chunk::<HEAD_BYTES>() {
            let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).expect("32 bits fit");
            let Some(payload) = rest.get(..length) else { break };
            let code = |at: usize| payload.get(at..at + 4).map(|code| u32::from_be_bytes(code.try_into().expect("four bytes")));
            let answer = answers.streams.entry(u32::from_be_bytes(*stream)).or_default();
            match *kind {
                HEADERS if answer.status.is_none() => answer.status = Some(status(payload)),
                RST_STREAM => answer.reset = code(0),
                GOAWAY => answers.go_away = code(4),
                _ => {}
            }
            answer.is_ended |= matches!(*kind, HEADERS | DATA) && flags & END_STREAM != 0;
            bytes = &rest[length..];
        }
        answers
    }

    /// What became of a stream.
    #[must_use]
    pub fn of(&self, stream: u32) -> Answer {
        self.streams.get(&stream).cloned().unwrap_or_default()
    }
}

/// `:status`, which comes first: one of the static table (RFC 7541 appendix A, 8 to 14), or the value of its name as a literal.
fn status(mut block: &[u8]) -> u16 {
    // Changes to the size of the dynamic table.
    while let [0x20..=0x3e, rest @ ..] = block {
        block = rest;
    }
    if let [0x3f, rest @ ..] = block {
        let end = rest.iter().position(|byte| byte & 0x80 == 0).unwrap_or(0);
        block = &rest[end + 1..];
    }
    match block {
        [first @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(first - 0x88)],
        [0x08 | 0x48, length, value @ ..] => {
            let value = value.get(..usize::from(length & 0x7f)).unwrap_or_default();
            let text = if length & 0x80 == 0 { String::from_utf8_lossy(value).into_owned() } else { digits(value) };
            text.parse().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Digits in the Huffman code of RFC 7541 appendix B: 0 to 2 in five bits, the others in six.
fn digits(value: &[u8]) -> String {
    let mut bits = value.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
    let mut out = String::new();
    let mut take = |count: usize, so_far: u32| {
        let taken: Vec<_> = bits.by_ref().take(count).collect();
        (taken.len() == count).then(|| taken.into_iter().fold(so_far, |number, bit| number << 1 | u32::from(bit)))
    };
    while let Some(five) = take(5, 0) {
        let digit = if five <= 2 { Some(five) } else { take(1, five).and_then(|six| six.checked_sub(0b01_1001)).map(|six| six + 3) };
        let Some(digit) = digit.and_then(|digit| char::from_digit(digit, 10)) else { break };
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_form_that_servers_write() {
        for (block, expected) in [
            (&[0x88][..], 200),
            (&[0x20, 0x8c], 400),
            (&[0x3f, 0xe1, 0x1f, 0x88], 200),
            (&[0x08, 3, b'4', b'3', b'1'], 431),
            // 302 as RFC 7541 §C.6.1 has it.
            (&[0x48, 0x82, 0x64, 0x02], 302),
            (&[0x00, 1, b'x', 1, b'y'], 0),
        ] {
            assert_eq!(status(block), expected, "{block:x?}");
        }
    }
}
