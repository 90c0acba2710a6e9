//! A request that becomes a stream of bytes each way: the client's and the upstream's, joined after a 101.
//!
//! A side that speaks HTTP/1.1 asks by `upgrade` and is a connection from then on; one that speaks HTTP/2 asks by an
//! extended CONNECT (RFC 8441) and is a stream of its connection. Between both there is one form, whatever the request
//! came by: a `GET` with `UpgradeRequested` in its extensions, and a 101 for an answer that switches.
//!
//! The request loop forwards the request and returns the upstream's 101 as it is. The upstream's half travels in the
//! response's extensions; the downstream side joins both once the head of the answer is written, and ends when they do.
//! Whoever wants to know takes [`watch`] first.
//!
//! Invariant: what a client sends behind the head reaches an upstream only after that has switched.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::Response;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::body::Body;
use super::h2::StreamInUse;
use crate::hbone::stream::ByteStream;

/// Bytes buffered each way between the two streams.
const COPY_BYTES: usize = 16 * 1024;

/// How a joined pair of streams ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Bytes from the client to the upstream.
    pub n_bytes_up: u64,
    /// Bytes from the upstream to the client.
    pub n_bytes_down: u64,
    /// `None`: both sides ended theirs.
    pub error: Option<io::ErrorKind>,
}

/// What a joined pair of streams obeys.
#[derive(Default)]
pub struct Bounds {
    /// Both are closed when this ends; none is never.
    pub until: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Called whenever bytes come from either side.
    pub moved: Option<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Bounds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Bounds").field("ends", &self.until.is_some()).field("tells", &self.moved.is_some()).finish()
    }
}

/// Tells when the streams that this 101 joins have ended, and how much they carried.
///
/// The receiver fails if they were never joined: the client went away before, or the response is no upgrade.
pub fn watch(response: &mut Response<Body>, bounds: Bounds) -> oneshot::Receiver<Ended> {
    let (sender, receiver) = oneshot::channel();
    response.extensions_mut().insert(Watcher(Arc::new(Mutex::new(Some(Watch { sender, bounds })))));
    receiver
}

/// Extensions are cloned with their response; only one of the clones tells.
#[derive(Clone)]
struct Watcher(Arc<Mutex<Option<Watch>>>);

struct Watch {
    sender: oneshot::Sender<Ended>,
    bounds: Bounds,
}

/// One side of what is joined.
pub(super) enum Half {
    /// An HTTP/1.1 connection, once its codec lets go of it.
    Http1(OnUpgrade),
    /// A stream of an HTTP/2 connection, and what counts it as open.
    Http2(Box<ByteStream>, Option<StreamInUse>),
}

impl Half {
    /// Its bytes. `None` if the connection ended instead.
    async fn open(self) -> Option<Open> {
        match self {
            Half::Http1(upgraded) => Some(Open::Http1(TokioIo::new(upgraded.await.ok()?))),
            Half::Http2(stream, in_use) => Some(Open::Http2(stream, in_use)),
        }
    }
}

/// The upstream's half, in the extensions of its 101. Extensions are cloned; only one of the clones has it.
#[derive(Clone)]
pub(super) struct UpstreamHalf(Arc<Mutex<Option<Half>>>);

impl UpstreamHalf {
    pub(super) fn new(half: Half) -> UpstreamHalf {
        UpstreamHalf(Arc::new(Mutex::new(Some(half))))
    }
}

/// Both halves, while the 101 is on its way.
pub(super) struct Pending {
    client: Half,
    upstream: Half,
    watcher: Option<Watcher>,
}

/// The upstream's half and the watcher of a 101.
pub(super) struct Switched {
    upstream: Half,
    watcher: Option<Watcher>,
}

impl Switched {
    /// Takes them out. `None` if there is no upstream's half.
    pub(super) fn of(response: &mut Response<Body>) -> Option<Switched> {
        let UpstreamHalf(upstream) = response.extensions_mut().remove()?;
        let upstream = upstream.lock().take()?;
        Some(Switched { upstream, watcher: response.extensions_mut().remove() })
    }

    /// With the client's half.
    pub(super) fn with(self, client: Half) -> Pending {
        Pending { client, upstream: self.upstream, watcher: self.watcher }
    }
}

impl Pending {
    /// Copies both ways until both have ended, passing each end on (half-close), or a bound has passed.
    pub(super) async fn join(self) {
        let (Some(client), Some(upstream)) = (self.client.open().await, self.upstream.open().await) else { return };
        let (sender, bounds) = self.watcher.and_then(|watcher| watcher.0.lock().take()).map(|watch| (watch.sender, watch.bounds)).unzip();
        let Bounds { until, moved } = bounds.unwrap_or_default();
        let counts = Arc::new(Counts { moved, ..Counts::default() });
        let mut client = Counted { io: client, n_bytes: Arc::clone(&counts), read: |counts| &counts.up };
        let mut upstream = Counted { io: upstream, n_bytes: Arc::clone(&counts), read: |counts| &counts.down };
        let until = async {
            match until {
                Some(until) => until.await,
                None => std::future::pending().await,
            }
        };
        let error = tokio::select! {
            copied = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, COPY_BYTES, COPY_BYTES) => {
                copied.err().map(|error| error.kind())
            }
            () = until => Some(io::ErrorKind::TimedOut),
        };
        let ended = Ended { n_bytes_up: counts.up.load(Ordering::Relaxed), n_bytes_down: counts.down.load(Ordering::Relaxed), error };
        if let Some(sender) = sender {
            // Nobody has to listen.
            let _ = sender.send(ended);
        }
    }
}

#[derive(Default)]
struct Counts {
    up: AtomicU64,
    down: AtomicU64,
    moved: Option<Box<dyn Fn() + Send + Sync>>,
}

/// The bytes of one side.
enum Open {
    Http1(TokioIo<Upgraded>),
    Http2(Box<ByteStream>, #[expect(dead_code, reason = "held for its end")] Option<StreamInUse>),
}

impl AsyncRead for Open {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Open::Http1(io) => Pin::new(io).poll_read(cx, buffer),
            Open::Http2(stream, _) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Open {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Open::Http1(io) => Pin::new(io).poll_write(cx, bytes),
            Open::Http2(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Open::Http1(io) => Pin::new(io).poll_flush(cx),
            Open::Http2(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Open::Http1(io) => Pin::new(io).poll_shutdown(cx),
            Open::Http2(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Counts what is read from one side: `copy_bidirectional` forgets its counts when it fails.
struct Counted {
    io: Open,
    n_bytes: Arc<Counts>,
    read: fn(&Counts) -> &AtomicU64,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        let n_bytes = buffer.filled().len() - before;
        if n_bytes > 0
            && let Some(moved) = &self.n_bytes.moved
        {
            moved();
        }
        (self.read)(&self.n_bytes).fetch_add(u64::try_from(n_bytes).expect("a usize fits in 64 bits"), Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
