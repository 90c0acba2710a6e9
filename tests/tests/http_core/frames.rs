//! HTTP/2 frames by hand, for what the `h2` crate refuses to send (RFC 9113 §4, §6; RFC 7541 §6.2.2).

use crate::wire::{Do, Seen, send};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
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
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

pub fn preface() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

pub fn headers(stream: u32, list: &[(&str, &str)], is_end: bool) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | if is_end { END_STREAM } else { 0 }, stream, &fields(list))
}

pub fn data(stream: u32, bytes: &str, is_end: bool) -> Vec<u8> {
    frame(DATA, if is_end { END_STREAM } else { 0 }, stream, bytes.as_bytes())
}

/// A whole client: the preface, one request, and silence.
pub fn client(list: &[(&str, &str)], body: Option<&str>) -> Vec<Do> {
    let mut bytes = [preface(), headers(1, list, body.is_none())].concat();
    if let Some(body) = body {
        bytes.extend(data(1, body, true));
    }
    vec![send(bytes), Do::Quiet]
}

/// What a server did with a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// First byte of the final response's field block: an indexed `:status`, if it is a common one.
    pub status: Option<u16>,
    pub reset: Option<u32>,
    pub go_away: Option<u32>,
    pub is_ended: bool,
}

pub fn answer(seen: &Seen) -> Answer {
    let mut answer = Answer::default();
    let mut rest = &seen.bytes[..];
    while rest.len() >= 9 {
        let length = usize::try_from(u32::from_be_bytes([0, rest[0], rest[1], rest[2]])).unwrap();
        let (kind, flags) = (rest[3], rest[4]);
        let Some(payload) = rest.get(9..9 + length) else { break };
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            HEADERS if answer.status.is_none() => answer.status = Some(indexed_status(payload[0])),
            RST_STREAM => answer.reset = Some(code(0)),
            GOAWAY => answer.go_away = Some(code(4)),
            _ => {}
        }
        answer.is_ended |= matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
        rest = &rest[9 + length..];
    }
    answer
}

/// RFC 7541 appendix A, 8 to 14. Others are literal, and read as 0.
fn indexed_status(byte: u8) -> u16 {
    match byte {
        0x88 => 200,
        0x89 => 204,
        0x8a => 206,
        0x8b => 304,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        _ => 0,
    }
}
