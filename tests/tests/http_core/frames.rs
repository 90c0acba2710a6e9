//! Scripts of HTTP/2 frames.

pub use tests::frames::{data, headers, preface};

use tests::frames::Answers;

use crate::wire::{Do, Seen, send};

/// A whole client: the preface, one request, and silence.
pub fn client(list: &[(&str, &str)], body: Option<&str>) -> Vec<Do> {
    let mut bytes = [preface(), headers(1, list, body.is_none())].concat();
    if let Some(body) = body {
        bytes.extend(data(1, body, true));
    }
    vec![send(bytes), Do::Quiet]
}

/// What a server did with the first stream, and its connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: Option<u16>,
    pub reset: Option<u32>,
    pub go_away: Option<u32>,
    pub is_ended: bool,
}

pub fn answer(seen: &Seen) -> Answer {
    let answers = Answers::read(&seen.bytes);
    let first = answers.of(1);
    Answer { status: first.status, reset: first.reset, go_away: answers.go_away, is_ended: first.is_ended }
}
