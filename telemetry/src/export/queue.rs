//! What waits for a collector, spans or records of logs: written by workers, taken by the collector's task.
//!
//! Not for: sending it. Items wait as the bytes that leave, already in batches. Invariants: a worker never waits for a collector;
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

use crate::wire;

/// Spans or records in one export call at most; as many waiting ones start a call at once.
pub const BATCH_ITEMS: usize = 512;
/// Their bytes in one export call from which no more are added: collectors refuse messages above 4 MiB.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// Spans or records waiting for one collector at most: a tenth of a second of a worker that has nothing else to do.
pub const QUEUE_ITEMS_MAX: usize = 8192;
/// Their bytes at most: enough for nearly as many of usual size, and a bound for those of huge headers.
pub const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What stands before an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// The head of a repeated field.
    Field(u32),
    /// A comma, unless it is the first.
    Comma,
}

impl Framing {
    /// `ScopeSpans.spans` and `ScopeLogs.log_records`.
    pub(crate) const OTLP: Self = Self::Field(2);
    /// `HTTPAccessLogEntries.log_entry` and `TCPAccessLogEntries.log_entry`.
    pub(crate) const ENTRIES: Self = Self::Field(1);
}

/// What became of spans, or of records.
#[derive(Clone, Debug)]
pub(crate) struct ExportCounters {
    /// Taken by the collector.
    pub(crate) exported: IntCounter,
    /// The queue was full.
    pub(crate) dropped_queue: IntCounter,
    /// The collector did not take them, retries included.
    pub(crate) dropped_export: IntCounter,
    /// There is no exporter: too many collectors, or one that cannot be called.
    pub(crate) dropped_provider: IntCounter,
}

/// Items of one call: repeated fields of a message, one after the other.
#[derive(Debug, Default)]
struct Filling {
    items: Vec<u8>,
    count: usize,
}

impl Filling {
    fn is_full(&self) -> bool {
        self.count >= BATCH_ITEMS || self.items.len() >= BATCH_BYTES
    }
}

/// Items of one call that were taken. Those not said to be exported count as lost when it is dropped.
#[derive(Debug)]
pub(crate) struct Batch {
    items: Vec<u8>,
    count: usize,
    counters: ExportCounters,
}

impl Batch {
    /// Their bytes; to be asked once.
    pub(crate) fn bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.items)
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
    /// As [`Shared::closed`].
    is_closed: bool,
    full: VecDeque<Filling>,
    last: Filling,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Items in it, to be read without its lock.
    count: AtomicUsize,
    wake: Notify,
    retired: Notify,
    stopping: AtomicBool,
    /// Nobody will take what is pushed.
    closed: AtomicBool,
}

/// Both ends of a collector's queue.
#[derive(Debug)]
pub(crate) struct Queue {
    shared: Arc<Shared>,
    counters: ExportCounters,
    framing: Framing,
}

impl Queue {
    pub(crate) fn new(counters: ExportCounters, framing: Framing) -> Self {
        Self { shared: Arc::default(), counters, framing }
    }

    /// Hands over the item that `make` makes, if there is room for it: while a collector is down, none is made.
    pub(crate) fn push<'a>(&self, make: impl FnOnce() -> &'a [u8]) {
        if self.shared.closed.load(Acquire) {
            self.counters.dropped_provider.inc();
            return;
        }
        if self.shared.count.load(Relaxed) >= QUEUE_ITEMS_MAX {
            self.counters.dropped_queue.inc();
            return;
        }
        let item = make();
        let mut waiting = self.shared.waiting.lock();
        if waiting.is_closed {
            drop(waiting);
            self.counters.dropped_provider.inc();
            return;
        }
        if self.shared.count.load(Relaxed) >= QUEUE_ITEMS_MAX || waiting.bytes + item.len() > QUEUE_BYTES_MAX {
            drop(waiting);
            self.counters.dropped_queue.inc();
            return;
        }
        let Waiting { last, bytes, .. } = &mut *waiting;
        let before = last.items.len();
        match self.framing {
            Framing::Field(field) => wire::head(&mut last.items, field, item.len()),
            Framing::Comma if last.items.is_empty() => {}
            Framing::Comma => last.items.push(b','),
        }
        last.items.extend_from_slice(item);
        last.count += 1;
        *bytes += last.items.len() - before;
        // Once per batch: a wake-up of another thread costs more than an item.
        let full = last.is_full();
        if full {
            let next = Filling { items: Vec::with_capacity(last.items.len()), count: 0 };
            let last = std::mem::replace(last, next);
            waiting.full.push_back(last);
        }
        self.shared.count.fetch_add(1, Relaxed);
        drop(waiting);
        if full {
            self.shared.wake.notify_one();
        }
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> u64 {
        length(self.shared.waiting.lock().bytes)
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

    /// Asks the task to end as [`Self::stop`] does, but within a time.
    pub(crate) fn retire(&self) {
        self.stop();
        self.shared.retired.notify_one();
    }

    /// Waits for [`Self::retire`].
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn retired(&self) {
        self.shared.retired.notified().await;
    }

    /// Refuses items from now on, as lost for want of an exporter; what waits is lost for want of an export.
    pub(crate) fn close(&self) {
        self.end();
        while let Some(lost) = self.pop(true) {
            drop(lost);
        }
    }

    /// Refuses items from now on, and those that wait.
    pub(crate) fn refuse(&self) {
        self.end();
        while let Some(batch) = self.pop(true) {
            batch.unwanted();
        }
    }

    fn end(&self) {
        self.shared.waiting.lock().is_closed = true;
        self.shared.closed.store(true, Release);
    }

    /// The oldest batch; one that is not full only if asked for.
    pub(crate) fn pop(&self, partial: bool) -> Option<Batch> {
        let mut waiting = self.shared.waiting.lock();
        let oldest = waiting.full.pop_front();
        let Filling { items, count } = match oldest {
            Some(full) => full,
            None if partial && waiting.last.count > 0 => std::mem::take(&mut waiting.last),
            None => return None,
        };
        waiting.bytes = waiting.bytes.saturating_sub(items.len());
        self.shared.count.fetch_sub(count, Relaxed);
        Some(Batch { items, count, counters: self.counters.clone() })
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits")
}
