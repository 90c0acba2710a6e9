//! How long a client may take over the head of a request, from its first byte to its last (`request_headers_timeout`).
//!
//! Not for: how long it may be silent before the first one, which is the idle time. Invariants: a request that has begun stops the time; a
//! connection without a limit pays nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// What of a connection is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes that the codec has read.
    pub(super) read_bytes: u64,
    /// Requests that have begun.
    pub(super) requests: u64,
    /// Whether one is there.
    pub(super) is_in_use: bool,
}

/// The time of the head that comes now.
pub(super) struct HeadTime {
    limit: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    seen: Progress,
}

impl HeadTime {
    /// `began`: when the first byte of a head came that is not read yet.
    pub(super) fn new(limit: Option<Duration>, began: Option<Instant>, seen: Progress) -> Self {
        let timer = limit.zip(began).map(|(limit, began)| Box::pin(tokio::time::sleep_until(began + limit)));
        Self { limit, timer, seen }
    }

    /// Whether a head has begun to come and has no end yet.
    pub(super) fn has_begun(&self) -> bool {
        self.timer.is_some()
    }

    /// Ready once a head has taken too long. To be asked each time after the codec has read.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: impl FnOnce() -> Progress) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let now = now();
        if now.is_in_use || self.seen.is_in_use || now.requests != self.seen.requests {
            // What was read belongs to that request, or to a head behind it whose time begins with its next byte.
            self.timer = None;
            self.seen = now;
            return Poll::Pending;
        }
        if self.timer.is_none() && now.read_bytes != self.seen.read_bytes {
            self.timer = Some(Box::pin(tokio::time::sleep(limit)));
        }
        self.seen = now;
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn at(read_bytes: u64, requests: u64, is_in_use: bool) -> Progress {
        Progress { read_bytes, requests, is_in_use }
    }

    async fn is_late(time: &mut HeadTime, now: Progress) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(time.poll(cx, || now).is_ready())).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_head_is_from_its_first_byte_to_its_last() {
        let mut time = HeadTime::new(Some(LIMIT), None, at(0, 0, false));
        let wait = async |seconds| tokio::time::sleep(Duration::from_secs(seconds)).await;
        wait(100).await;
        assert!(!is_late(&mut time, at(0, 0, false)).await && !time.has_begun(), "nothing has come");
        assert!(!is_late(&mut time, at(1, 0, false)).await && time.has_begun());
        wait(9).await;
        assert!(!is_late(&mut time, at(2, 0, false)).await, "more of it does not begin it anew");
        assert!(!is_late(&mut time, at(50, 1, true)).await && !time.has_begun(), "it is whole");
        wait(100).await;
        assert!(!is_late(&mut time, at(900, 1, true)).await, "a body has other limits");
        assert!(!is_late(&mut time, at(901, 1, false)).await && !time.has_begun());
        assert!(!is_late(&mut time, at(1000, 2, false)).await && !time.has_begun(), "it came, and was answered, at once");
        assert!(!is_late(&mut time, at(1001, 2, false)).await && time.has_begun());
        wait(11).await;
        assert!(is_late(&mut time, at(1002, 2, false)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_began_before_has_what_is_left() {
        let mut time = HeadTime::new(Some(LIMIT), Some(Instant::now() - Duration::from_secs(8)), at(0, 0, false));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!is_late(&mut time, at(3, 0, false)).await);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(is_late(&mut time, at(3, 0, false)).await);
        let mut free = HeadTime::new(None, Some(Instant::now()), at(0, 0, false));
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert!(!is_late(&mut free, at(3, 0, false)).await && !free.has_begun());
    }
}
