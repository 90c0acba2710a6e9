//! An HBONE peer of our own: HTTP/2 CONNECT over mutual TLS, both ends, with ztunnel's settings.
//!
//! Independent of the proxy's HBONE on purpose. Not here: what runs inside a tunnel, and pooling.

pub mod client;
mod gather;
pub mod pool;
pub mod server;
pub mod stream;

use std::time::Duration;

/// Receive window of one stream (ztunnel: 4 MiB).
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Receive window of one connection (ztunnel: 16 MiB, so that one unread stream does not starve the others).
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Largest frame accepted (ztunnel: 1 MiB).
const FRAME_BYTES_MAX: u32 = 1024 * 1024;
/// Largest header list accepted from a peer.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Streams a server lets one client open on one connection.
const STREAMS_PER_CONNECTION_MAX: u32 = 1024;
/// Receive window of one HTTP/2 stream inside a tunnel.
pub const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Receive window of an HTTP/2 connection inside a tunnel.
pub const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Time for TCP and TLS together, on either side.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the answer to a CONNECT.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
