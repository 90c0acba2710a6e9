//! A connection that nobody uses holds no buffers: after [`REST_AFTER`] without a request its hyper is let go, and another one made for the
//! next bytes. Of what an idle connection holds, hyper's two buffers are the most, 16 KiB.
//!
//! Not for: when a connection may rest, which the server and [`super::watched`] know. Invariants: a connection that is used pays one timer
//! event in [`REST_AFTER`]; one that has rested rests again only after another request, so that a client who sends a head byte by byte is
//! waited for once more at most.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio::time::{Instant, Sleep};

use super::watched::{Handle, More};
use crate::http::body::{Body, BodyError};
use crate::http::session::LEAVE_TIME;
use crate::http::upgrade;

/// How long a connection is without a request before it rests; at most twice as long.
const REST_AFTER: Duration = Duration::from_secs(2);

/// What the service and the connection tell each other.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) upgrade: Mutex<Option<upgrade::Pending>>,
    /// A request began since the timer looked.
    was_used: AtomicBool,
    /// How many have begun.
    requests: AtomicU64,
    /// Its client is told, by the next answer, that it closes.
    is_leaving: AtomicBool,
}

impl Connection {
    /// Ends once the connection has become as old as it may, and its client has had time to be told so; never if there is no limit.
    pub(super) async fn too_old(&self, duration_max: Option<Duration>) {
        let Some(limit) = duration_max else { return std::future::pending().await };
        // In a box: most connections have no limit.
        Box::pin(async {
            tokio::time::sleep(limit).await;
            self.is_leaving.store(true, Ordering::Relaxed);
            tokio::time::sleep(LEAVE_TIME).await;
        })
        .await;
    }

    /// How many requests have begun.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Relaxed)
    }
}

/// One of a request's parts: for as long as one of them is there, the request is.
#[derive(Clone)]
pub(in crate::http) struct InUse(Arc<Connection>);

impl InUse {
    pub(super) fn begin(connection: &Arc<Connection>) -> Self {
        connection.was_used.store(true, Ordering::Relaxed);
        connection.requests.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.0
    }
}

/// Whether a request is there: whoever serves the connection has one share in it, and its service another.
pub(super) fn is_in_use(connection: &Arc<Connection>) -> bool {
    const SHARES_AT_REST: usize = 2;
    Arc::strong_count(connection) > SHARES_AT_REST
}

/// A response's body: the last of a request's parts.
pub(super) struct Answer {
    pub(super) body: Body,
    pub(super) _in_use: Option<InUse>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Finds out that a connection is not used, by looking now and then.
pub(super) struct Unused {
    sleep: Pin<Box<Sleep>>,
    is_armed: bool,
    /// It has rested, and there was no request since.
    has_rested: bool,
}

impl Unused {
    pub(super) fn new(has_rested: bool) -> Self {
        Self { sleep: Box::pin(tokio::time::sleep(REST_AFTER)), is_armed: false, has_rested }
    }

    /// Ready if there is no request, and was none for [`REST_AFTER`].
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, connection: &Arc<Connection>) -> Poll<()> {
        if self.is_armed && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        if self.is_armed {
            // One that is in use now counts as used until the next look: it may end right behind this one.
            let is_used = is_in_use(connection);
            if connection.was_used.swap(is_used, Ordering::Relaxed) || is_used {
                self.has_rested = false;
            } else if !self.has_rested {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(Instant::now() + REST_AFTER);
        }
        self.is_armed = self.sleep.as_mut().poll(cx).is_pending();
        Poll::Pending
    }
}

/// Why a rest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rested {
    /// There is something to read.
    Bytes,
    /// The client is gone, or the connection is to be drained.
    End,
    /// No request came in time.
    Limit,
}

/// Waits for the end of a rest. `idle_timeout` is from the last request on.
pub(super) async fn rest<I, D>(handle: &Handle<I>, mut drain: Pin<&mut D>, idle_timeout: Option<Duration>) -> Rested
where
    I: AsyncRead + Unpin,
    D: Future<Output = ()>,
{
    let mut limit = idle_timeout.map(|limit| Box::pin(tokio::time::sleep(limit.saturating_sub(REST_AFTER))));
    poll_fn(|cx| {
        if let Poll::Ready(more) = handle.poll_more(cx) {
            return Poll::Ready(if more == More::Bytes { Rested::Bytes } else { Rested::End });
        }
        if drain.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Rested::End);
        }
        match &mut limit {
            Some(limit) => limit.as_mut().poll(cx).map(|()| Rested::Limit),
            None => Poll::Pending,
        }
    })
    .await
}
