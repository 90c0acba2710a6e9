//! Bodies from nowhere: any number of the same byte, without memory for them.

use bytes::Bytes;

/// Bytes of one piece; larger bodies are several.
const CHUNK_BYTES: usize = 64 * 1024;
static FILL: [u8; CHUNK_BYTES] = [b'x'; CHUNK_BYTES];

/// The next piece of a body of which `remaining` bytes are left, which it takes off; `None` at its end.
pub fn next_chunk(remaining: &mut u64) -> Option<Bytes> {
    if *remaining == 0 {
        return None;
    }
    let length = usize::try_from(*remaining).map_or(CHUNK_BYTES, |all| all.min(CHUNK_BYTES));
    *remaining -= u64::try_from(length).expect("a chunk's length fits in 64 bits");
    Some(Bytes::from_static(&FILL[..length]))
}
