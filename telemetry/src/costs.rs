//! What serving costs: the time that requests spend in this process, connects and handshakes, tries again, and what is kept in memory
//! for whom.
//!
//! Not for: Istio's metrics, or what the allocator holds. Invariants: each worker counts in cells of its own, without a lock and without
//! a text; what is kept for a while is counted by a guard, so that whatever ends it counts it off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto;

use crate::metrics::{Bounds, Cell as _, Counter, Histogram, HistogramTotal, float};

/// Upper bounds of all times here, in microseconds.
const TIME_BOUNDS: [f64; 17] = [
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    25_000.0,
    50_000.0,
    100_000.0,
    250_000.0,
    1_000_000.0,
    10_000_000.0,
];
/// Microseconds in a second.
const MICROSECONDS: f64 = 1e6;

/// Who began a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A client of ours.
    Accepted,
    /// We, with an endpoint.
    Dialled,
}

impl Side {
    const ALL: [(Self, &'static str); 2] = [(Self::Accepted, "accepted"), (Self::Dialled, "dialled")];
}

/// Why a request was tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryReason {
    /// There was no connection.
    ConnectFailure,
    /// The endpoint refused the stream before it looked at it.
    Refused,
    /// The connection or stream ended without an answer.
    Reset,
    /// The time for one try passed.
    Timeout,
    /// An answer of 500 or more.
    ServerError,
    /// Another answer that the policy names, by its status or a header.
    Answer,
    /// A status of gRPC.
    GrpcStatus,
}

impl RetryReason {
    const ALL: [(Self, &'static str); 7] = [
        (Self::ConnectFailure, "connect_failure"),
        (Self::Refused, "refused"),
        (Self::Reset, "reset"),
        (Self::Timeout, "timeout"),
        (Self::ServerError, "server_error"),
        (Self::Answer, "answer"),
        (Self::GrpcStatus, "grpc_status"),
    ];
}

/// Whom memory is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Bodies of requests that may be sent again.
    Replay,
    /// Bodies that authorization services look at.
    Authorization,
    /// Bodies that copies of requests have not taken yet.
    Mirrors,
}

impl Owner {
    const ALL: [(Self, &'static str); 3] = [(Self::Replay, "replay"), (Self::Authorization, "authorization"), (Self::Mirrors, "mirrors")];
}

fn place<T: PartialEq, const N: usize>(all: &[(T, &'static str); N], wanted: &T) -> usize {
    all.iter().position(|(one, _)| one == wanted).expect("the list has every one")
}

/// One worker's cells.
#[derive(Debug)]
pub struct WorkerCosts {
    overhead: Histogram,
    connects: Histogram,
    handshakes: [Histogram; Side::ALL.len()],
    connections: [AtomicU64; Side::ALL.len()],
    retries: [Counter; RetryReason::ALL.len()],
    kept: [AtomicU64; Owner::ALL.len()],
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl WorkerCosts {
    fn new(bounds: &Arc<Bounds>) -> Self {
        let histogram = || Histogram::new(bounds);
        Self {
            overhead: histogram(),
            connects: histogram(),
            handshakes: std::array::from_fn(|_| histogram()),
            connections: Default::default(),
            retries: Default::default(),
            kept: Default::default(),
        }
    }

    /// Cells that nobody reads.
    #[must_use]
    pub fn unread() -> Arc<Self> {
        Arc::new(Self::new(&Arc::new(time_bounds())))
    }

    /// A request that an endpoint has answered: the time until its answer's head was on its way, but for what others took.
    pub fn overhead(&self, took: Duration) {
        self.overhead.record(microseconds(took));
    }

    /// A TCP connection was made.
    pub fn connected(&self, took: Duration) {
        self.connects.record(microseconds(took));
    }

    /// A TLS handshake succeeded.
    pub fn handshake(&self, side: Side, took: Duration) {
        self.handshakes[place(&Side::ALL, &side)].record(microseconds(took));
    }

    /// An HBONE connection is established.
    pub fn opened(&self, side: Side) {
        self.connections[place(&Side::ALL, &side)].fetch_add(1, Relaxed);
    }

    /// One that was [`Self::opened`] is over.
    pub fn closed(&self, side: Side) {
        self.connections[place(&Side::ALL, &side)].fetch_sub(1, Relaxed);
    }

    /// A request is tried again.
    pub fn retried(&self, reason: RetryReason) {
        self.retries[place(&RetryReason::ALL, &reason)].add(1);
    }
}

/// Bytes that are kept for someone, counted until it is dropped.
#[derive(Debug)]
pub struct Kept {
    costs: Arc<WorkerCosts>,
    owner: Owner,
    bytes: AtomicU64,
}

impl Kept {
    /// Of nothing yet.
    #[must_use]
    pub fn new(costs: &Arc<WorkerCosts>, owner: Owner) -> Self {
        Self { costs: Arc::clone(costs), owner, bytes: AtomicU64::new(0) }
    }

    fn cell(&self) -> &AtomicU64 {
        &self.costs.kept[place(&Owner::ALL, &self.owner)]
    }

    /// So many more; how many there are then.
    pub fn add(&self, bytes: usize) -> u64 {
        let bytes = u64::try_from(bytes).expect("a length fits");
        self.cell().fetch_add(bytes, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed) + bytes
    }

    /// So many fewer, of those that were added.
    pub fn take(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).expect("a length fits");
        self.cell().fetch_sub(bytes, Relaxed);
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    /// None any more.
    pub fn clear(&self) {
        self.cell().fetch_sub(self.bytes.swap(0, Relaxed), Relaxed);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What else keeps memory, and how much it does.
pub(crate) type Keeper = (&'static str, Box<dyn Fn() -> u64 + Send + Sync>);

#[derive(Default)]
struct Read {
    workers: Mutex<Vec<Arc<WorkerCosts>>>,
    keepers: Vec<Keeper>,
}

/// The cells of all workers, as metrics.
#[derive(Clone)]
pub(crate) struct Costs {
    read: Arc<Read>,
    bounds: Arc<Bounds>,
    descriptions: Vec<Desc>,
}

impl std::fmt::Debug for Costs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Costs").field("workers", &self.read.workers).finish_non_exhaustive()
    }
}

/// Name, help and label.
type Named = (&'static str, &'static str, &'static [&'static str]);

const OVERHEAD: Named = (
    "waypoint_request_overhead_microseconds",
    "Time of answered requests here, until the answer's head left, without waiting for others.",
    &[],
);
const CONNECT: Named = ("waypoint_connect_seconds", "Time to make a TCP connection to an endpoint.", &[]);
const HANDSHAKE: Named = ("waypoint_tls_handshake_seconds", "Time of TLS handshakes that succeeded, the peer's part included.", &["side"]);
const CONNECTIONS: Named = ("waypoint_hbone_connections", "HBONE connections that are established.", &["side"]);
const RETRIES: Named = ("waypoint_retries_total", "Requests tried again, by what the try before came to.", &["reason"]);
const MEMORY: Named = ("waypoint_memory_bytes", "Bytes that are kept, by what for.", &["owner"]);

fn time_bounds() -> Bounds {
    Bounds::new(&TIME_BOUNDS).expect("they rise from above zero")
}

impl Costs {
    /// Of no worker yet; `keepers` keep memory beside workers.
    pub(crate) fn new(keepers: Vec<Keeper>) -> Self {
        let description = |(name, help, labels): Named| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Desc::new(name.to_owned(), help.to_owned(), labels, std::collections::HashMap::new()).expect("a well-formed name")
        };
        Self {
            read: Arc::new(Read { workers: Mutex::default(), keepers }),
            bounds: Arc::new(time_bounds()),
            descriptions: [OVERHEAD, CONNECT, HANDSHAKE, CONNECTIONS, RETRIES, MEMORY].map(description).into(),
        }
    }

    /// One more worker's cells.
    pub(crate) fn worker(&self) -> Arc<WorkerCosts> {
        let costs = Arc::new(WorkerCosts::new(&self.bounds));
        self.read.workers.lock().push(Arc::clone(&costs));
        costs
    }

    /// A histogram of all workers; its times are read in units of `unit` microseconds.
    fn histogram(&self, unit: f64, of: impl Fn(&WorkerCosts) -> &Histogram) -> proto::Metric {
        let mut total = HistogramTotal::default();
        self.read.workers.lock().iter().for_each(|worker| of(worker).add_to(&mut total));
        let mut count = 0;
        let buckets = total.buckets.iter().enumerate().filter_map(|(at, bucket)| {
            count += bucket;
            let mut out = proto::Bucket::default();
            out.set_cumulative_count(count);
            out.set_upper_bound(self.bounds.value(at)? / unit);
            Some(out)
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(total.buckets.iter().sum());
        histogram.set_sample_sum(float(total.sum) / unit);
        let mut metric = proto::Metric::default();
        metric.set_histogram(histogram);
        metric
    }

    /// HBONE connections that clients have open.
    pub(crate) fn accepted(&self) -> u64 {
        let of_side = Side::ALL.iter().position(|(side, _)| *side == Side::Accepted);
        of_side.map_or(0, |at| self.sum(|worker| worker.connections[at].load(Relaxed)))
    }

    fn sum(&self, of: impl Fn(&WorkerCosts) -> u64) -> u64 {
        self.read.workers.lock().iter().map(|worker| of(worker)).sum()
    }
}

fn family((name, help, _): Named, kind: proto::MetricType, metrics: Vec<proto::Metric>) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled((_, _, labels): Named, value: &str, mut metric: proto::Metric) -> proto::Metric {
    let mut pair = proto::LabelPair::default();
    pair.set_name(labels[0].to_owned());
    pair.set_value(value.to_owned());
    metric.set_label(vec![pair]);
    metric
}

fn counter(value: u64) -> proto::Metric {
    let mut counter = proto::Counter::default();
    counter.set_value(float(value));
    let mut metric = proto::Metric::default();
    metric.set_counter(counter);
    metric
}

fn gauge(value: u64) -> proto::Metric {
    let mut gauge = proto::Gauge::default();
    gauge.set_value(float(value));
    let mut metric = proto::Metric::default();
    metric.set_gauge(gauge);
    metric
}

impl Collector for Costs {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        use proto::MetricType::{COUNTER, GAUGE, HISTOGRAM};
        let of_side =
            |(at, (_, side)): (usize, &(Side, &str))| labelled(HANDSHAKE, side, self.histogram(MICROSECONDS, |w| &w.handshakes[at]));
        let open =
            |(at, (_, side)): (usize, &(Side, &str))| labelled(CONNECTIONS, side, gauge(self.sum(|w| w.connections[at].load(Relaxed))));
        let of_reason =
            |(at, (_, reason)): (usize, &(RetryReason, &str))| labelled(RETRIES, reason, counter(self.sum(|w| w.retries[at].value())));
        let of_owner = |(at, (_, owner)): (usize, &(Owner, &str))| labelled(MEMORY, owner, gauge(self.sum(|w| w.kept[at].load(Relaxed))));
        let keepers = self.read.keepers.iter().map(|(owner, bytes)| labelled(MEMORY, owner, gauge(bytes())));
        vec![
            family(OVERHEAD, HISTOGRAM, vec![self.histogram(1.0, |worker| &worker.overhead)]),
            family(CONNECT, HISTOGRAM, vec![self.histogram(MICROSECONDS, |worker| &worker.connects)]),
            family(HANDSHAKE, HISTOGRAM, Side::ALL.iter().enumerate().map(of_side).collect()),
            family(CONNECTIONS, GAUGE, Side::ALL.iter().enumerate().map(open).collect()),
            family(RETRIES, COUNTER, RetryReason::ALL.iter().enumerate().map(of_reason).collect()),
            family(MEMORY, GAUGE, Owner::ALL.iter().enumerate().map(of_owner).chain(keepers).collect()),
        ]
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use prometheus::{Registry, TextEncoder};

    use super::*;

    fn page(costs: &Costs) -> String {
        let registry = Registry::new();
        registry.register(Box::new(costs.clone())).unwrap();
        TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn what_all_workers_counted_is_one_histogram_and_one_counter() {
        let costs = Costs::new(Vec::new());
        let workers = [costs.worker(), costs.worker()];
        for worker in &workers {
            worker.overhead(Duration::from_micros(42));
            worker.connected(Duration::from_millis(2));
            worker.handshake(Side::Dialled, Duration::from_millis(30));
            worker.retried(RetryReason::ConnectFailure);
            worker.opened(Side::Accepted);
        }
        workers[1].closed(Side::Accepted);
        workers[0].retried(RetryReason::GrpcStatus);
        let text = page(&costs);
        for line in [
            "waypoint_request_overhead_microseconds_bucket{le=\"25\"} 0",
            "waypoint_request_overhead_microseconds_bucket{le=\"50\"} 2",
            "waypoint_request_overhead_microseconds_bucket{le=\"+Inf\"} 2",
            "waypoint_request_overhead_microseconds_sum 84",
            "waypoint_connect_seconds_bucket{le=\"0.001\"} 0",
            "waypoint_connect_seconds_bucket{le=\"0.0025\"} 2",
            "waypoint_connect_seconds_sum 0.004",
            "waypoint_tls_handshake_seconds_count{side=\"accepted\"} 0",
            "waypoint_tls_handshake_seconds_bucket{side=\"dialled\",le=\"0.05\"} 2",
            "waypoint_hbone_connections{side=\"accepted\"} 1",
            "waypoint_hbone_connections{side=\"dialled\"} 0",
            "waypoint_retries_total{reason=\"connect_failure\"} 2",
            "waypoint_retries_total{reason=\"grpc_status\"} 1",
            "waypoint_retries_total{reason=\"timeout\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in {text}");
        }
    }

    #[test]
    fn what_is_kept_counts_until_it_is_let_go() {
        let costs = Costs::new(vec![("exporters", Box::new(|| 7))]);
        let (one, other) = (costs.worker(), costs.worker());
        let replay = Kept::new(&one, Owner::Replay);
        assert_eq!((replay.add(100), replay.add(30)), (100, 130));
        replay.take(10);
        let shown = Kept::new(&other, Owner::Authorization);
        shown.add(5);
        let bytes = |owner: &str| {
            let text = page(&costs);
            let start = format!("waypoint_memory_bytes{{owner=\"{owner}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok()).unwrap()
        };
        assert_eq!([bytes("replay"), bytes("authorization"), bytes("mirrors"), bytes("exporters")], [120, 5, 0, 7]);
        replay.clear();
        drop(shown);
        assert_eq!([bytes("replay"), bytes("authorization")], [0, 0]);
        replay.add(3);
        assert_eq!(bytes("replay"), 3);
    }
}
