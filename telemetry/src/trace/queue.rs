//! Finished spans that wait for a collector: written by workers, taken by the collector's task.
//!
//! Not for: sending them. Spans wait as the bytes that leave, already in batches. Invariants: a worker never waits for a collector;
//! what finds no room is dropped and counted; a batch that was taken counts as exported or as lost, whatever happens to the task.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::sync::Notify;

use super::wire;

/// Spans in one export call at most; as many waiting ones start a call at once.
pub const SPAN_BATCH: usize = 512;
/// Bytes of spans in one export call from which no more are added: collectors refuse messages above 4 MiB.
pub const SPAN_BATCH_BYTES: usize = 1024 * 1024;
/// Spans waiting for one collector at most: a tenth of a second of a worker that has nothing else to do.
pub const SPAN_QUEUE_MAX: usize = 8192;
/// Their bytes at most: enough for nearly as many spans of usual size, and a bound for those of huge headers.
pub const SPAN_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// `ScopeSpans.spans`.
const SPANS_FIELD: u32 = 2;

/// What became of spans.
#[derive(Clone, Debug)]
pub(crate) struct SpanCounters {
    /// Taken by the collector.
    pub(crate) exported: IntCounter,
    /// The queue was full.
    pub(crate) dropped_queue: IntCounter,
    /// The collector did not take them, retries included.
    pub(crate) dropped_export: IntCounter,
    /// There is no exporter: too many collectors, or one that cannot be called.
    pub(crate) dropped_provider: IntCounter,
}

/// Spans of one call: the fields `spans` of a `ScopeSpans`, one after the other.
#[derive(Debug, Default)]
struct Filling {
    spans: Vec<u8>,
    count: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.count >= SPAN_BATCH || self.spans.len() >= SPAN_BATCH_BYTES
    }
}

/// Spans of one call that were taken. Those not said to be exported count as lost when it is dropped.
#[derive(Debug)]
pub(crate) struct Batch {
    spans: Vec<u8>,
    count: usize,
    counters: SpanCounters,
}

impl Batch {
    /// Their bytes; to be asked once.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spans)
    }

    /// The collector took it, but for so many spans of it.
    pub(crate) fn exported(mut self, rejected: usize) {
        let taken = std::mem::take(&mut self.count);
        let rejected = rejected.min(taken);
        self.counters.exported.inc_by(length(taken - rejected));
        self.counters.dropped_export.inc_by(length(rejected));
    }

    /// There never was an exporter for it.
    pub(crate) fn unwanted(mut self) {
        self.counters.dropped_provider.inc_by(length(std::mem::take(&mut self.count)));
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.counters.dropped_export.inc_by(length(self.count));
    }
}

#[derive(Debug, Default)]
struct Waiting {
    full: VecDeque<Filling>,
    last: Filling,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Spans in it, to be read without its lock.
    count: AtomicUsize,
    wake: Notify,
    stopping: AtomicBool,
    /// Nobody will take what is pushed.
    closed: AtomicBool,
}

/// Both ends of a collector's queue.
#[derive(Clone, Debug)]
pub(crate) struct SpanQueue {
    shared: Arc<Shared>,
    counters: SpanCounters,
}

impl SpanQueue {
    pub(crate) fn new(counters: SpanCounters) -> Self {
        Self { shared: Arc::default(), counters }
    }

    /// Hands over the span that `make` makes, if there is room for it: while a collector is down, none is made.
    pub(crate) fn push<'a>(&self, make: impl FnOnce() -> &'a [u8]) {
        if self.shared.closed.load(Acquire) {
            self.counters.dropped_provider.inc();
            return;
        }
        if self.shared.count.load(Relaxed) >= SPAN_QUEUE_MAX {
            self.counters.dropped_queue.inc();
            return;
        }
        let span = make();
        let mut waiting = self.shared.waiting.lock();
        if self.shared.count.load(Relaxed) >= SPAN_QUEUE_MAX || waiting.bytes + span.len() > SPAN_QUEUE_BYTES_MAX {
            drop(waiting);
            self.counters.dropped_queue.inc();
            return;
        }
        let Waiting { last, bytes, .. } = &mut *waiting;
        let before = last.spans.len();
        wire::head(&mut last.spans, SPANS_FIELD, span.len());
        last.spans.extend_from_slice(span);
        last.count += 1;
        *bytes += last.spans.len() - before;
        // Once per batch: a wake-up of another thread costs more than a span.
        let full = last.is_full();
        if full {
            let next = Filling { spans: Vec::with_capacity(last.spans.len()), count: 0 };
            let last = std::mem::replace(last, next);
            waiting.full.push_back(last);
        }
        self.shared.count.fetch_add(1, Relaxed);
        drop(waiting);
        if full {
            self.shared.wake.notify_one();
        }
    }

    /// Waits for a full batch, or for [`Self::stop`].
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn woken(&self) {
        self.shared.wake.notified().await;
    }

    /// Asks the task to take what waits once more, and to end.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, Release);
        self.shared.wake.notify_one();
    }

    /// Whether it was asked. What was pushed before that is in what is taken after this was read.
    pub(crate) fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Acquire)
    }

    /// Refuses spans from now on, as lost for want of an exporter.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Release);
    }

    /// The oldest batch; one that is not full only if asked for.
    pub(crate) fn pop(&self, partial: bool) -> Option<Batch> {
        let mut waiting = self.shared.waiting.lock();
        let oldest = waiting.full.pop_front();
        let Filling { spans, count } = match oldest {
            Some(full) => full,
            None if partial && waiting.last.count > 0 => std::mem::take(&mut waiting.last),
            None => return None,
        };
        waiting.bytes = waiting.bytes.saturating_sub(spans.len());
        self.shared.count.fetch_sub(count, Relaxed);
        Some(Batch { spans, count, counters: self.counters.clone() })
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits")
}
