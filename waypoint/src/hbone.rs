//! HBONE, both ways: HTTP/2 over the mesh's mutual TLS, one CONNECT per tunnelled TCP connection.
//!
//! Not for: what is inside a tunnel, nor which tunnel to open; [`server`] hands each CONNECT to its caller, and [`pool`]
//! opens what it is told to.
//! Invariants: one connection is one peer identity, established once; a tunnel that does not read cannot stop the
//! others of its connection (see [`WindowOptions`]).

pub mod client;
pub mod coalesce;
pub mod double;
pub mod pool;
pub mod server;
pub mod stream;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use model::identity::SpiffeId;
use thiserror::Error;
use tokio::time::{Instant, Sleep};

use crate::tls::accept::Handshake;
use crate::tls::{TlsFacts, TlsFailure};

/// Most bytes of header fields in one CONNECT or its answer (ztunnel's server allows as much).
pub const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;

/// Most bytes that one stream may have queued in its connection. What does not fit waits with the writer.
pub const SEND_QUEUE_BYTES_MAX: usize = 128 * 1024;

/// Largest frame that we accept. ztunnel sends up to 1 MiB if allowed; nothing is gained above TLS records of 16 KiB but
/// less framing, and a frame is held in memory whole.
pub const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// Facts of one HBONE connection, computed once and shared by its streams.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// The other end of the TCP connection. For a client's ztunnel the IP is the pod's, the port the tunnel's.
    pub peer_address: SocketAddr,
    /// Our end of the TCP connection.
    pub local_address: SocketAddr,
    /// Who the peer is, by its certificate.
    pub peer: SpiffeId,
    /// Who we were when the connection was made.
    pub local: SpiffeId,
    /// What the TLS handshake agreed on.
    pub tls: TlsFacts,
}

/// Facts of a connection that a client opened to us.
pub type Downstream = ConnectionFacts;

/// Facts of a connection that we opened to a pod.
pub type Upstream = ConnectionFacts;

impl ConnectionFacts {
    fn new(peer_address: SocketAddr, local_address: SocketAddr, handshake: Handshake) -> Self {
        let Handshake { peer, local, tls } = handshake;
        Self { peer_address, local_address, peer, local, tls }
    }
}

/// Flow-control windows. HTTP/2 has one credit for all streams of a connection, so a tunnel whose reader has stopped
/// keeps its part from the others; the connection's window is therefore the stream's times the number of stopped
/// tunnels that the others must not notice. ztunnel's 16 MiB are kept for the connection, but not its 4 MiB for a
/// stream, of which four exhaust it: 256 KiB carry 2 Gbit/s at a round trip of 1 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowOptions {
    /// Bytes that a peer may send on one stream before we have read them.
    pub stream_bytes: u32,
    /// Streams that may be stalled at their window while the others still flow.
    pub stalled_streams_max: u32,
}

impl Default for WindowOptions {
    fn default() -> Self {
        Self { stream_bytes: 256 * 1024, stalled_streams_max: 64 }
    }
}

impl WindowOptions {
    /// Largest window of HTTP/2 (RFC 9113 §6.9.1).
    const BYTES_MAX: u32 = (1 << 31) - 1;

    /// The stream's window, within what HTTP/2 allows.
    #[must_use]
    pub fn stream(self) -> u32 {
        self.stream_bytes.min(Self::BYTES_MAX)
    }

    /// The connection's window, within what HTTP/2 allows.
    #[must_use]
    pub fn connection(self) -> u32 {
        self.stream_bytes.saturating_mul(self.stalled_streams_max).min(Self::BYTES_MAX)
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ConnectionEnd {
    /// The peer closed it, or we did after a GOAWAY and the last stream.
    #[error("closed in order")]
    Closed,
    /// The peer did not answer a PING in time.
    #[error("the peer did not answer a PING")]
    KeepaliveTimeout,
    /// Cut at the deadline of a drain.
    #[error("cut at the end of the drain")]
    Stopped,
    /// HTTP/2 was broken by one side.
    #[error("HTTP/2 failed: {0}")]
    Protocol(h2::Reason),
    /// The socket or TLS failed.
    #[error("{0}")]
    Failed(TlsFailure),
    /// Nobody drives it any more: its task panicked, or went with its worker.
    #[error("no longer driven")]
    Dropped,
}

/// An open connection, that tells of its end however that comes, so that what is counted as open is.
struct Open<F: FnOnce(&ConnectionEnd)> {
    closed: Option<F>,
    end: ConnectionEnd,
}

impl<F: FnOnce(&ConnectionEnd)> Open<F> {
    /// `closed` is told once.
    fn new(closed: F) -> Self {
        Self { closed: Some(closed), end: ConnectionEnd::Dropped }
    }

    fn ends(mut self, end: ConnectionEnd) {
        self.end = end;
    }
}

impl<F: FnOnce(&ConnectionEnd)> Drop for Open<F> {
    fn drop(&mut self) {
        if let Some(closed) = self.closed.take() {
            closed(&self.end);
        }
    }
}

impl ConnectionEnd {
    /// Reads an error of h2; what the stream below had said is in `failure`.
    fn from_h2(error: &h2::Error, failure: &coalesce::Failure) -> Self {
        match (failure.get(), error.get_io(), error.reason()) {
            (Some(cause), ..) | (None, Some(cause), _) => Self::Failed(TlsFailure::from_io(cause)),
            (None, None, Some(h2::Reason::NO_ERROR)) => Self::Closed,
            (None, None, Some(reason)) => Self::Protocol(reason),
            (None, None, None) => Self::Protocol(h2::Reason::INTERNAL_ERROR),
        }
    }
}

/// When to ask whether the peer is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepaliveOptions {
    /// From the start, or from an answer, to the next PING.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Default for KeepaliveOptions {
    /// As both ztunnel and Istio's Envoy waypoint do.
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) }
    }
}

/// PINGs on one connection. It must be polled by the task that drives the connection.
pub(crate) struct Keepalive {
    ping: h2::PingPong,
    options: KeepaliveOptions,
    awaiting: bool,
    timer: Pin<Box<Sleep>>,
}

impl Keepalive {
    /// `ping` comes from a fresh connection.
    pub(crate) fn new(ping: h2::PingPong, options: KeepaliveOptions) -> Self {
        Self { ping, options, awaiting: false, timer: Box::pin(tokio::time::sleep(options.interval)) }
    }

    /// Ready when the peer has not answered in time. A connection that fails is not this one's to report.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.awaiting {
                match self.ping.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.awaiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.options.interval);
                    }
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        return Poll::Ready(());
                    }
                }
            } else {
                ready!(self.timer.as_mut().poll(cx));
                if self.ping.send_ping(h2::Ping::opaque()).is_err() {
                    return Poll::Pending;
                }
                self.awaiting = true;
                self.timer.as_mut().reset(Instant::now() + self.options.timeout);
            }
        }
    }
}

#[cfg(test)]
mod tests;
