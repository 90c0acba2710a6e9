//! HTTP/1.1 (and 1.0) by hyper's codec.
//!
//! What the codec leaves open is closed here: it is told the framing of each message (it would send a `GET` without a body
//! if the length is unknown), it never answers `100 Continue` before the upstream did, and the connection under it is
//! watched while a request is in flight, so that a client that is gone ends its request.

mod client;
mod rest;
pub(super) mod expect;
mod head_time;
mod server;
mod watched;

pub(super) use client::{Http1Session, handshake};
pub(super) use rest::InUse;
pub(super) use server::serve;

/// Bytes of one connection's buffers, each way; also the most that a single write gathers.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
