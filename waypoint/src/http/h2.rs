//! HTTP/2 by the `h2` crate, in a loop of our own: trailers, interim responses and reset codes pass both ways.

mod client;
mod pump;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) use client::{Http2Session, handshake};
pub(super) use server::serve;

/// Bytes a peer may send on one stream before it is read. With 1 ms of round trip, 1 GiB/s on one stream.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes a peer may send on all streams of one connection before they are read: what one connection can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Bytes one stream may have ready to be written.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;

/// Counts the streams of an upstream connection.
#[derive(Debug, Default)]
struct Streams {
    open: AtomicUsize,
    ever: AtomicUsize,
}

/// One stream of an upstream connection, counted as open as long as this lives.
pub(super) struct StreamInUse(Arc<Streams>);

impl StreamInUse {
    fn new(streams: &Arc<Streams>) -> StreamInUse {
        streams.open.fetch_add(1, Ordering::Relaxed);
        streams.ever.fetch_add(1, Ordering::Relaxed);
        StreamInUse(Arc::clone(streams))
    }
}

impl Drop for StreamInUse {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn list_bytes(head_bytes_max: usize) -> u32 {
    u32::try_from(head_bytes_max).unwrap_or(u32::MAX)
}
