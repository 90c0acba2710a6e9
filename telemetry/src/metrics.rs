//! Istio's standard metrics: counted per worker, resolved to series once, printed as Envoy prints them.
//!
//! Not for: the process's own metrics, which live in the `prometheus` registry.
//! Invariant: recording a request whose series this worker knows formats no text, and takes no lock but those of its own cells, which
//! only a scrape contends for, once a scraper wants exemplars or native buckets.

mod custom;
mod exposition;
mod histogram;
mod labels;
mod native;
mod protobuf;
mod store;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use model::identity::SpiffeId;
use model::metrics::{Metric, Reporter, Stats};
use model::service::ServiceRef;
use model::stream_view::StreamView;
use model::workload::Workload;

use self::custom::CustomCell;
pub use self::custom::{CUSTOM_NAMES_MAX, CUSTOM_SERIES_MAX};
pub use self::labels::LABEL_BYTES_MAX;
use self::labels::{Ends, Outcome, Protocol, ServiceStandIn, render, with_label};
use self::store::Wanted;
use crate::record::{ChainTelemetry, ConnectionRecord, GrpcMessages, RequestRecord, StreamRecord, whole_milliseconds};

pub use self::exposition::Exposition;
pub(crate) use self::exposition::{Gauge, own, write};
pub use self::histogram::{Bounds, HISTOGRAM_BOUNDS_MAX};
pub(crate) use self::histogram::{Cell, Counter, Histogram, HistogramTotal};
pub(crate) use self::labels::push_pair;
pub use self::native::NATIVE_BUCKETS_MAX;
pub(crate) use self::protobuf::{float, write_counters};
pub use self::store::SERIES_MAX;
pub(crate) use self::store::{Series, Store};

/// Resolved series that one worker remembers; then it forgets all and resolves anew.
const REMEMBERED_MAX: usize = 4096;

/// What tells series apart, by address where a thing is shared and immutable. [`Guards`] keep the addresses from being reused.
#[derive(Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    chain: usize,
    source: usize,
    destination: usize,
    service: usize,
    principal: Option<SpiffeId>,
    mutual_tls: bool,
    stand_in: ServiceStandIn,
    outcome: Outcome,
    /// What varying labels say; none on chains without any.
    tags: Option<Box<str>>,
}

fn address<T>(shared: Option<&T>) -> usize {
    shared.map_or(0, |shared| std::ptr::from_ref(shared).addr())
}

impl SeriesKey {
    fn new(chain: &Arc<ChainTelemetry>, ends: &Ends<'_>, outcome: Outcome, tags: Option<Box<str>>) -> Self {
        Self {
            chain: address(Some(&**chain)),
            source: address(ends.source),
            destination: address(ends.destination),
            service: address(ends.service),
            principal: ends.principal.cloned(),
            mutual_tls: ends.mutual_tls,
            stand_in: ends.stand_in,
            outcome,
            tags,
        }
    }
}

/// What the varying labels of a chain say of a request, as one text; none if it has none.
fn varying(stats: &Stats, view: &dyn StreamView) -> Option<Box<str>> {
    if stats.tags.is_empty() && stats.custom.is_empty() {
        return None;
    }
    let mut said = String::new();
    for value in stats.varying() {
        // No label has the separator, so that no two lists of values are alike.
        with_label(value, view, |text| said.push_str(text.unwrap_or("\u{1}")));
        said.push('\0');
    }
    (!said.is_empty()).then(|| said.into())
}

/// Keep the memory of what a key names by address, without keeping its contents.
#[derive(Debug)]
struct Guards {
    _chain: Weak<ChainTelemetry>,
    _source: Option<Weak<Workload>>,
    _destination: Option<Weak<Workload>>,
    _service: Option<Weak<ServiceRef>>,
}

impl Guards {
    fn of(stream: &StreamRecord) -> Self {
        Self {
            _chain: Arc::downgrade(&stream.chain),
            _source: stream.source.as_ref().map(Arc::downgrade),
            _destination: stream.destination.as_ref().map(Arc::downgrade),
            _service: stream.service.as_ref().map(Arc::downgrade),
        }
    }
}

#[derive(Debug)]
struct Remembered<T> {
    cells: HashMap<SeriesKey, (T, Guards), foldhash::fast::RandomState>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self { cells: HashMap::default() }
    }
}

impl<T> Remembered<T> {
    fn get_or(&mut self, key: SeriesKey, stream: &StreamRecord, resolve: impl FnOnce() -> T) -> &T {
        if self.cells.len() >= REMEMBERED_MAX && !self.cells.contains_key(&key) {
            self.cells.clear();
        }
        &self.cells.entry(key).or_insert_with(|| (resolve(), Guards::of(stream))).0
    }
}

/// What one request is counted in; none where the chain drops the metric.
#[derive(Debug)]
struct RequestCells {
    requests: Option<Arc<Counter>>,
    duration: Option<Arc<Histogram>>,
    request_bytes: Option<Arc<Histogram>>,
    response_bytes: Option<Arc<Histogram>>,
    /// Of the metrics that are not Istio's own, in their order.
    custom: Vec<CustomCell>,
}

/// What the messages of a gRPC stream are counted in.
#[derive(Clone, Debug)]
pub(crate) struct MessageCells {
    request: Option<Arc<Counter>>,
    response: Option<Arc<Counter>>,
}

/// What one TCP connection is counted in.
#[derive(Debug)]
pub(crate) struct ConnectionCells {
    /// Labels of the closing; its series begins to exist with the first connection that closes.
    closed: Option<(Reporter, Arc<str>)>,
    sent: Option<Arc<Counter>>,
    received: Option<Arc<Counter>>,
}

/// Finds the cells of one set of labels; metrics with the same labels share their text.
struct Resolver<'a> {
    store: &'a Store,
    worker: usize,
    stats: &'a Stats,
    view: &'a dyn StreamView,
    ends: Ends<'a>,
    outcome: Outcome,
    last: Option<Arc<str>>,
}

impl Resolver<'_> {
    fn labels(&mut self, metric: Metric) -> Arc<str> {
        let text = render(self.stats, metric, self.view, (&self.ends, &self.outcome));
        match &self.last {
            Some(last) if **last == *text => Arc::clone(last),
            _ => Arc::clone(self.last.insert(text.into())),
        }
    }

    fn resolve<C>(&mut self, metric: Metric, find: impl FnOnce(&Store, Wanted<'_>) -> Arc<C>) -> Option<Arc<C>> {
        if !self.stats.records(metric) {
            return None;
        }
        let labels = self.labels(metric);
        Some(find(self.store, Wanted { metric, reporter: self.stats.reporter, labels: &labels, worker: self.worker }))
    }

    fn counter(&mut self, metric: Metric) -> Option<Arc<Counter>> {
        self.resolve(metric, |store, wanted| store.counter(wanted))
    }

    fn histogram(&mut self, metric: Metric) -> Option<Arc<Histogram>> {
        self.resolve(metric, |store, wanted| store.histogram(wanted))
    }
}

fn count(counter: Option<&Arc<Counter>>, by: u64) {
    if let Some(counter) = counter {
        counter.add(by);
    }
}

fn observe(histogram: Option<&Arc<Histogram>>, value: u64, is_native: bool) {
    match histogram {
        Some(histogram) if is_native => histogram.record_native(value),
        Some(histogram) => histogram.record(value),
        None => {}
    }
}

/// One worker's way to its series.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    store: Arc<Store>,
    worker: usize,
    /// Of the store, when something was last remembered.
    generation: u64,
    requests: Remembered<RequestCells>,
    messages: Remembered<MessageCells>,
}

impl WorkerMetrics {
    pub(crate) fn new(store: Arc<Store>, worker: usize) -> Self {
        Self { generation: store.generation(), store, worker, requests: Remembered::default(), messages: Remembered::default() }
    }

    /// Forgets what it remembers, if it was told to.
    fn forget(&mut self) {
        let generation = self.store.generation();
        if generation != self.generation {
            self.generation = generation;
            self.requests.cells.clear();
            self.messages.cells.clear();
        }
    }

    /// Counts a request that ended.
    pub(crate) fn record_request(&mut self, record: &mut RequestRecord) {
        self.forget();
        self.report_messages(record);
        let record = &*record;
        let stream = &record.stream;
        let Some(stats) = &stream.chain.stats else { return };
        let ends = Ends::of(stream, record.response_code != 0);
        let outcome = Outcome::of_request(record);
        let (store, worker) = (&*self.store, self.worker);
        let key = SeriesKey::new(&stream.chain, &ends, outcome, varying(stats, record));
        let cells = self.requests.get_or(key, stream, || {
            let mut resolver = Resolver { store, worker, stats, view: record, ends, outcome, last: None };
            RequestCells {
                requests: resolver.counter(Metric::RequestsTotal),
                duration: resolver.histogram(Metric::RequestDurationMilliseconds),
                request_bytes: resolver.histogram(Metric::RequestBytes),
                response_bytes: resolver.histogram(Metric::ResponseBytes),
                custom: custom::resolve(store, worker, stats, record),
            }
        });
        count(cells.requests.as_ref(), 1);
        let milliseconds = whole_milliseconds(stream.duration());
        let is_native = self.store.wants_native();
        observe(cells.duration.as_ref(), milliseconds, is_native);
        if self.store.wants_exemplars()
            && let (Some(duration), Some(trace)) = (&cells.duration, record.trace.as_ref().filter(|trace| trace.sampled))
        {
            duration.exemplify(milliseconds, trace.trace_id, stream.start_time + stream.duration());
        }
        observe(cells.request_bytes.as_ref(), record.wire_bytes_received, is_native);
        observe(cells.response_bytes.as_ref(), record.wire_bytes_sent, is_native);
        for (cell, metric) in cells.custom.iter().zip(&stats.custom) {
            cell.record(metric, record, is_native);
        }
    }

    /// Counts the messages of a gRPC stream since the last report.
    pub(crate) fn report_messages(&mut self, record: &mut RequestRecord) {
        let (Some(messages), true, true) = (record.grpc_messages, record.is_grpc, record.stream.chain.stats.is_some()) else { return };
        // Of later reports as of the first, which knows nothing of the answer.
        let cells = match record.message_cells.take() {
            Some(cells) => cells,
            None => self.message_cells(record),
        };
        let GrpcMessages { request, response } = record.grpc_messages_reported;
        count(cells.request.as_ref(), messages.request.saturating_sub(request));
        count(cells.response.as_ref(), messages.response.saturating_sub(response));
        record.grpc_messages_reported = messages;
        record.message_cells = Some(cells);
    }

    /// What a stream's messages are counted in.
    fn message_cells(&mut self, record: &RequestRecord) -> MessageCells {
        let stream = &record.stream;
        let stats = stream.chain.stats.as_ref().expect("asked only where there is something to count");
        let ends = Ends::of(stream, true);
        // Message counters carry no outcome: one key whatever it will be.
        let outcome = Outcome { protocol: Protocol::Grpc, code: 0, grpc: None, flags: model::flags::ResponseFlags::default() };
        let (store, worker) = (&*self.store, self.worker);
        let key = SeriesKey::new(&stream.chain, &ends, outcome, varying(stats, record));
        let cells = self.messages.get_or(key, stream, || {
            let mut resolver = Resolver { store, worker, stats, view: record, ends, outcome, last: None };
            MessageCells {
                request: resolver.counter(Metric::RequestMessagesTotal),
                response: resolver.counter(Metric::ResponseMessagesTotal),
            }
        });
        cells.clone()
    }

    /// Counts a connection's bytes since the last report; the first report also counts its opening, and fixes its labels.
    pub(crate) fn report_connection(&mut self, record: &mut ConnectionRecord) {
        if record.stream.chain.stats.is_none() {
            return;
        }
        let cells = match record.cells.take() {
            Some(cells) => cells,
            None => self.open(record),
        };
        let cells = record.cells.insert(cells);
        let stream = &record.stream;
        count(cells.sent.as_ref(), stream.bytes_sent.saturating_sub(record.bytes_sent_reported));
        count(cells.received.as_ref(), stream.bytes_received.saturating_sub(record.bytes_received_reported));
        record.bytes_sent_reported = stream.bytes_sent;
        record.bytes_received_reported = stream.bytes_received;
    }

    /// Counts a connection's opening, and resolves what it is counted in.
    fn open(&self, record: &ConnectionRecord) -> ConnectionCells {
        let stream = &record.stream;
        let stats = stream.chain.stats.as_ref().expect("asked only where there is something to count");
        let (outcome, ends) = (Outcome::of_connection(stream.flags), Ends::of(stream, true));
        let mut resolver = Resolver { store: &self.store, worker: self.worker, stats, view: record, ends, outcome, last: None };
        count(resolver.counter(Metric::TcpConnectionsOpenedTotal).as_ref(), 1);
        ConnectionCells {
            closed: stats
                .records(Metric::TcpConnectionsClosedTotal)
                .then(|| (stats.reporter, resolver.labels(Metric::TcpConnectionsClosedTotal))),
            sent: resolver.counter(Metric::TcpSentBytesTotal),
            received: resolver.counter(Metric::TcpReceivedBytesTotal),
        }
    }

    /// Counts a connection that closed.
    pub(crate) fn record_connection(&mut self, record: &mut ConnectionRecord) {
        self.report_connection(record);
        if let Some((reporter, labels)) = record.cells.take().and_then(|cells| cells.closed) {
            let metric = Metric::TcpConnectionsClosedTotal;
            self.store.counter(Wanted { metric, reporter, labels: &labels, worker: self.worker }).add(1);
        }
        if let Some(stats) = &record.stream.chain.stats {
            let cells = custom::resolve(&self.store, self.worker, stats, record);
            for (cell, metric) in cells.iter().zip(&stats.custom) {
                cell.record(metric, record, self.store.wants_native());
            }
        }
    }
}

#[cfg(test)]
mod tests;
