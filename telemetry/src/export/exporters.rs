//! Who has an exporter: a place for each collector that is written to, as long as something names it.
//!
//! Not for: sending ([`super::run`]). A chain holds an [`Outbox`] for each collector it names; chains that name the same one share it.
//! Invariants: an exporter whose outbox nobody holds any more is retired, and its place is free at once; where there is no place, one
//! that the current configuration does not name gives way; an outbox that found no place asks again when places or configuration change.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use model::access_log::{LogCollector, LogOrigin};
use model::tracing::{Dialect, SpanProvider};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::payload::Origin;
use super::queue::{ExportCounters, Framing, Queue};
use super::{CollectorConnector, Outgoing, Signal, run};

/// Collectors at most that are sent to; what is for others is dropped and counted.
pub const EXPORTERS_MAX: usize = 16;
/// Exporters at most that were retired and still send what they have; of more, the oldest drops it, counted.
pub const RETIRED_EXPORTERS_MAX: usize = 16;

/// How spans and records are counted.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
    /// Spans.
    pub(crate) spans: ExportCounters,
    /// Records of access logs.
    pub(crate) records: ExportCounters,
}

/// What is for one collector, of all chains that name it.
#[derive(Debug)]
pub(crate) struct Outbox {
    exporters: Arc<Exporters>,
    outgoing: Outgoing,
    counters: ExportCounters,
    place: Arc<Place>,
    /// The number of changes at which there was no place; 0 before that.
    refused_at: AtomicU64,
}

/// Of an outbox, what outlives it until its exporter is retired.
#[derive(Debug, Default)]
struct Place {
    /// While there is an exporter.
    queue: ArcSwapOption<Queue>,
    /// The last configuration that named it.
    named_by: AtomicU64,
}

impl Outbox {
    /// Hands over the item that `make` makes, if there is an exporter for it and room.
    pub(crate) fn push<'a>(&self, make: impl FnOnce() -> &'a [u8]) {
        if let Some(queue) = &*self.place.queue.load() {
            return queue.push(make);
        }
        match self.start() {
            Some(queue) => queue.push(make),
            None => self.counters.dropped_provider.inc(),
        }
    }

    /// Its queue, once there is a place; asks only once between two changes.
    fn start(&self) -> Option<Arc<Queue>> {
        let changes = self.exporters.changes.load(Acquire);
        if self.refused_at.load(Relaxed) == changes {
            return None;
        }
        let started = self.exporters.start(self);
        if started.is_none() {
            self.refused_at.store(changes, Relaxed);
        }
        started
    }

    #[cfg(test)]
    pub(super) fn queue(&self) -> Option<Arc<Queue>> {
        self.place.queue.load_full().or_else(|| self.start())
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.exporters.retire(&self.place);
    }
}

#[derive(Debug)]
struct Running {
    place: Arc<Place>,
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl Running {
    /// Ends the task now, and counts what it had.
    async fn abort(self) {
        self.task.abort();
        // Ends at its next turn, and counts what it had taken.
        let _cancelled = self.task.await;
        self.queue.close();
    }
}

#[derive(Debug, Default)]
struct Tasks {
    running: Vec<Running>,
    retired: Vec<Running>,
}

/// One exporter per collector, made when the first item for it is there.
pub(crate) struct Exporters {
    control: Handle,
    connector: Arc<dyn CollectorConnector>,
    flush_interval: Duration,
    origin: Origin,
    counters: Counters,
    outboxes: Mutex<Vec<Weak<Outbox>>>,
    tasks: Mutex<Tasks>,
    /// The current configuration's number.
    configuration: AtomicU64,
    /// Counts what may give a place to an outbox that found none; begins with 1.
    changes: AtomicU64,
}

impl std::fmt::Debug for Exporters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Exporters").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

impl Exporters {
    /// Exporters whose tasks run on `control`, flush at least every `flush_interval` and dial through `connector`.
    pub(crate) fn new(
        control: Handle,
        connector: Arc<dyn CollectorConnector>,
        flush_interval: Duration,
        origin: Origin,
        counters: Counters,
    ) -> Arc<Self> {
        Arc::new(Self {
            control,
            connector,
            flush_interval,
            origin,
            counters,
            outboxes: Mutex::default(),
            tasks: Mutex::default(),
            configuration: AtomicU64::new(0),
            changes: AtomicU64::new(1),
        })
    }

    /// The outbox of a provider of spans.
    pub(crate) fn spans(self: &Arc<Self>, provider: &SpanProvider) -> Arc<Outbox> {
        let signal = match &provider.dialect {
            Dialect::Otlp { service_name, reads_environment } => {
                Signal::Spans { resource: self.resource(service_name, *reads_environment) }
            }
            Dialect::Zipkin(_) => Signal::Zipkin,
        };
        self.outbox(Outgoing { collector: provider.collector.clone(), signal })
    }

    /// What spans are said to be of.
    fn resource(&self, service_name: &Arc<str>, reads_environment: bool) -> Vec<(Arc<str>, Arc<str>)> {
        let told = |key: &str, value: &str| (Arc::from(key), Arc::from(value));
        let mut resource = vec![
            ("service.name".into(), Arc::clone(service_name)),
            told("telemetry.sdk.language", "rust"),
            told("telemetry.sdk.name", "waypoint"),
            told("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ];
        for (key, value) in self.origin.resource.iter().filter(|_| reads_environment) {
            match resource.iter_mut().find(|(known, _)| known == key) {
                Some((_, known)) => known.clone_from(value),
                None => resource.push((Arc::clone(key), Arc::clone(value))),
            }
        }
        resource
    }

    /// The outbox of a collector of logs.
    pub(crate) fn logs(self: &Arc<Self>, logs: &LogCollector) -> Arc<Outbox> {
        let signal = match &logs.origin {
            LogOrigin::Records { resource, builtin_labels } => {
                let Origin { node_id, node_cluster, zone, .. } = &self.origin;
                let builtin = builtin_labels.iter().flat_map(|log_name| {
                    [("log_name", log_name), ("zone_name", zone), ("cluster_name", node_cluster), ("node_name", node_id)]
                });
                let builtin = builtin.map(|(key, value)| (Arc::from(key), Arc::clone(value)));
                Signal::Records { resource: builtin.chain(resource.iter().cloned()).collect() }
            }
            LogOrigin::Entries { kind, log_name } => Signal::Entries { kind: *kind, log_name: Arc::clone(log_name) },
        };
        self.outbox(Outgoing { collector: logs.collector.clone(), signal })
    }

    fn outbox(self: &Arc<Self>, outgoing: Outgoing) -> Arc<Outbox> {
        let mut outboxes = self.outboxes.lock();
        outboxes.retain(|known| known.strong_count() > 0);
        // Dropping what was only looked at may retire it, which does not take this lock.
        if let Some(known) = outboxes.iter().filter_map(Weak::upgrade).find(|known| known.outgoing == outgoing) {
            return known;
        }
        let counters = match &outgoing.signal {
            Signal::Spans { .. } | Signal::Zipkin => self.counters.spans.clone(),
            Signal::Records { .. } | Signal::Entries { .. } => self.counters.records.clone(),
        };
        let outbox = Outbox { exporters: Arc::clone(self), outgoing, counters, place: Arc::default(), refused_at: AtomicU64::new(0) };
        let outbox = Arc::new(outbox);
        outboxes.push(Arc::downgrade(&outbox));
        outbox
    }

    /// These are what the configuration names from now on.
    pub(crate) fn configured<'a>(&self, named: impl Iterator<Item = &'a Arc<Outbox>>) {
        let next = self.configuration.load(Acquire) + 1;
        for outbox in named {
            outbox.place.named_by.store(next, Release);
        }
        self.configuration.store(next, Release);
        self.changes.fetch_add(1, AcqRel);
    }

    fn is_named(&self, place: &Place) -> bool {
        place.named_by.load(Acquire) >= self.configuration.load(Acquire)
    }

    /// An exporter for an outbox, if there is a place.
    fn start(&self, outbox: &Outbox) -> Option<Arc<Queue>> {
        let mut tasks = self.tasks.lock();
        if let Some(queue) = outbox.place.queue.load_full() {
            return Some(queue);
        }
        if tasks.running.len() >= EXPORTERS_MAX {
            let unnamed = tasks.running.iter().position(|running| !self.is_named(&running.place));
            let Some(unnamed) = unnamed.filter(|_| self.is_named(&outbox.place)) else {
                tracing::error!(cluster = %outbox.outgoing.collector.cluster, "too many collectors: what is for this one is dropped");
                return None;
            };
            self.retire_at(&mut tasks, unnamed);
        }
        let framing = match &outbox.outgoing.signal {
            Signal::Spans { .. } | Signal::Records { .. } => Framing::OTLP,
            Signal::Zipkin => Framing::Comma,
            Signal::Entries { .. } => Framing::ENTRIES,
        };
        let queue = Arc::new(Queue::new(outbox.counters.clone(), framing));
        let (origin, connector) = (self.origin.clone(), Arc::clone(&self.connector));
        let task = self.control.spawn(run(outbox.outgoing.clone(), origin, connector, Arc::clone(&queue), self.flush_interval));
        outbox.place.queue.store(Some(Arc::clone(&queue)));
        tasks.running.push(Running { place: Arc::clone(&outbox.place), queue: Arc::clone(&queue), task });
        Some(queue)
    }

    /// Nobody holds the outbox of this place any more.
    fn retire(&self, place: &Arc<Place>) {
        let mut tasks = self.tasks.lock();
        if let Some(at) = tasks.running.iter().position(|running| Arc::ptr_eq(&running.place, place)) {
            self.retire_at(&mut tasks, at);
            self.changes.fetch_add(1, AcqRel);
        }
    }

    fn retire_at(&self, tasks: &mut Tasks, at: usize) {
        let retired = tasks.running.swap_remove(at);
        retired.place.queue.store(None);
        retired.queue.retire();
        tasks.retired.retain(|retired| !retired.task.is_finished());
        tasks.retired.push(retired);
        if tasks.retired.len() > RETIRED_EXPORTERS_MAX {
            self.control.spawn(tasks.retired.remove(0).abort());
        }
    }

    /// Bytes that wait for collectors.
    pub(crate) fn bytes(&self) -> u64 {
        let tasks = self.tasks.lock();
        tasks.running.iter().chain(&tasks.retired).map(|exporter| exporter.queue.bytes()).sum()
    }

    /// Exports what is queued and ends the tasks; those not done by `deadline` are aborted.
    pub(crate) async fn shutdown(&self, deadline: Instant) {
        let Tasks { running, retired } = std::mem::take(&mut *self.tasks.lock());
        for exporter in &running {
            exporter.queue.stop();
        }
        for mut exporter in running.into_iter().chain(retired) {
            match timeout_at(deadline, &mut exporter.task).await {
                Ok(_) => exporter.queue.close(),
                Err(_) => exporter.abort().await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
