//! Finished spans that wait for a collector: written by workers, taken by the collector's task.
//!
//! Not for: sending them. Spans wait as the bytes that leave, already in batches. Invariants: a worker never waits for a collector;
//! what finds no room is dropped and counted; what was taken counts as exported or as lost, whatever happens to the task.

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
/// Spans waiting for one collector at most; as many more may be on their way to it.
pub const SPAN_QUEUE_MAX: usize = 4096;
/// Their bytes at most: enough for as many spans of usual size, and a bound for those of huge headers.
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
pub(crate) struct Batch {
    pub(crate) spans: Vec<u8>,
    pub(crate) count: usize,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.count >= SPAN_BATCH || self.spans.len() >= SPAN_BATCH_BYTES
    }
}

#[derive(Debug, Default)]
struct Waiting {
    full: VecDeque<Batch>,
    last: Batch,
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
        waiting.bytes += span.len();
        let last = &mut waiting.last;
        wire::head(&mut last.spans, SPANS_FIELD, span.len());
        last.spans.extend_from_slice(span);
        last.count += 1;
        // Once per batch: a wake-up of another thread costs more than a span.
        let full = last.is_full();
        if full {
            let next = Batch { spans: Vec::with_capacity(last.spans.len()), count: 0 };
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

    /// All that waits.
    pub(crate) fn take(&self) -> Taken<'_> {
        let mut waiting = self.shared.waiting.lock();
        let Waiting { full, last, .. } = std::mem::take(&mut *waiting);
        self.shared.count.store(0, Relaxed);
        drop(waiting);
        let mut batches = full;
        if last.count > 0 {
            batches.push_back(last);
        }
        Taken { batches, in_flight: 0, counters: &self.counters }
    }

    /// Counts what waits as lost for want of an exporter.
    pub(crate) fn discard(&self) {
        let mut taken = self.take();
        let lost = std::mem::take(&mut taken.batches).iter().map(|batch| batch.count).sum();
        self.counters.dropped_provider.inc_by(length(lost));
    }
}

/// Spans taken from a queue. What is not said to be exported counts as lost when this is dropped, also in mid-call.
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    batches: VecDeque<Batch>,
    in_flight: usize,
    counters: &'a SpanCounters,
}

impl Taken<'_> {
    /// The next batch; the one before is lost unless it was exported.
    pub(crate) fn next_batch(&mut self) -> Option<Batch> {
        self.counters.dropped_export.inc_by(length(std::mem::take(&mut self.in_flight)));
        let batch = self.batches.pop_front()?;
        self.in_flight = batch.count;
        Some(batch)
    }

    /// The collector took the last batch, but for so many spans of it.
    pub(crate) fn exported(&mut self, rejected: usize) {
        let rejected = rejected.min(self.in_flight);
        self.counters.exported.inc_by(length(std::mem::take(&mut self.in_flight) - rejected));
        self.counters.dropped_export.inc_by(length(rejected));
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let waiting: usize = self.batches.iter().map(|batch| batch.count).sum();
        self.counters.dropped_export.inc_by(length(self.in_flight + waiting));
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits")
}
