//! Finished spans on their way to a collector: a bounded queue and a task per collector.
//!
//! Not for: reaching the collector; the process dials through its own clusters, behind [`CollectorConnector`].
//! Invariant: a worker that hands over a span never waits for a collector; what finds no room is dropped and counted.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use model::tracing::OtlpProvider;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use parking_lot::Mutex;
use prometheus::IntCounter;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::transport::{Channel, Endpoint};

/// Spans in one export call at most; as many waiting ones start a call at once.
pub const SPAN_BATCH: usize = 512;
/// Spans waiting for one collector at most; as many more may be on their way to it.
pub const SPAN_QUEUE_MAX: usize = 4096;
/// Collectors at most; spans for others are dropped and counted.
pub const EXPORTERS_MAX: usize = 16;
/// How long one export call may take, its retries included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long dialling a collector may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may see no frame of the collector before it is asked for one, and how long it may then take: a connection
/// that is only half there must not swallow call after call.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// Between two complaints about one collector.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// A connection to a collector, on which HTTP/2 is spoken in the clear (TLS, if any, is part of it).
pub trait CollectorIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> CollectorIo for T {}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn CollectorIo>>> + Send>>;

/// How the process reaches the endpoints of a cluster.
pub trait CollectorConnector: Send + Sync + 'static {
    /// Dials an endpoint of the cluster. Polled on the control runtime; dropped when it takes too long.
    fn connect(&self, cluster: &str) -> Connecting;
}

impl<F: Fn(&str) -> Connecting + Send + Sync + 'static> CollectorConnector for F {
    fn connect(&self, cluster: &str) -> Connecting {
        self(cluster)
    }
}

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

/// Why there is no exporter for a provider.
#[derive(Debug, Error)]
enum BuildError {
    #[error("the authority {0:?} is none")]
    Authority(Arc<str>),
    #[error(transparent)]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

#[derive(Debug, Default)]
struct Shared {
    spans: Mutex<VecDeque<SpanData>>,
    wake: Notify,
    stopping: AtomicBool,
    /// Nobody will take what is pushed.
    closed: AtomicBool,
}

/// A worker's end of a collector's queue.
#[derive(Clone, Debug)]
pub(crate) struct SpanQueue {
    shared: Arc<Shared>,
    counters: SpanCounters,
}

impl SpanQueue {
    /// Hands over the span that `make` makes, if there is room for it: while a collector is down, none is made.
    pub(crate) fn push(&self, make: impl FnOnce() -> SpanData) {
        if self.shared.closed.load(Acquire) {
            self.counters.dropped_provider.inc();
            return;
        }
        if self.shared.spans.lock().len() >= SPAN_QUEUE_MAX {
            self.counters.dropped_queue.inc();
            return;
        }
        let span = make();
        let mut spans = self.shared.spans.lock();
        if spans.len() >= SPAN_QUEUE_MAX {
            drop(spans);
            self.counters.dropped_queue.inc();
            return;
        }
        spans.push_back(span);
        // Once per batch: a wake-up of another thread costs more than a span.
        let full = spans.len() == SPAN_BATCH;
        drop(spans);
        if full {
            self.shared.wake.notify_one();
        }
    }
}

#[derive(Debug)]
struct Running {
    provider: OtlpProvider,
    queue: SpanQueue,
    task: JoinHandle<()>,
}

/// One exporter per collector, made when the first span for it is there.
pub(crate) struct Exporters {
    control: Handle,
    connector: Arc<dyn CollectorConnector>,
    flush_interval: Duration,
    counters: SpanCounters,
    running: Mutex<Vec<Running>>,
}

impl std::fmt::Debug for Exporters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Exporters").field("running", &self.running).finish_non_exhaustive()
    }
}

impl Exporters {
    /// Exporters whose tasks run on `control`, flush at least every `flush_interval` and dial through `connector`.
    pub(crate) fn new(control: Handle, connector: Arc<dyn CollectorConnector>, flush_interval: Duration, counters: SpanCounters) -> Self {
        Self { control, connector, flush_interval, counters, running: Mutex::default() }
    }

    /// The queue of a provider; none if there are too many.
    pub(crate) fn queue(&self, provider: &OtlpProvider) -> Option<SpanQueue> {
        let mut running = self.running.lock();
        if let Some(known) = running.iter().find(|known| known.provider == *provider) {
            return Some(known.queue.clone());
        }
        if running.len() >= EXPORTERS_MAX {
            tracing::error!(cluster = %provider.cluster, "too many trace collectors: spans for this one are dropped");
            return None;
        }
        let queue = SpanQueue { shared: Arc::default(), counters: self.counters.clone() };
        let task = self.control.spawn(run(
            provider.clone(),
            Arc::clone(&self.connector),
            Arc::clone(&queue.shared),
            self.flush_interval,
            self.counters.clone(),
        ));
        running.push(Running { provider: provider.clone(), queue: queue.clone(), task });
        Some(queue)
    }

    pub(crate) fn count_refused(&self) {
        self.counters.dropped_provider.inc();
    }

    /// Exports what is queued and ends the tasks; those not done by `deadline` are aborted.
    pub(crate) async fn shutdown(&self, deadline: Instant) {
        let running = std::mem::take(&mut *self.running.lock());
        for exporter in &running {
            exporter.queue.shared.stopping.store(true, Release);
            exporter.queue.shared.wake.notify_one();
        }
        for mut exporter in running {
            if timeout_at(deadline, &mut exporter.task).await.is_err() {
                exporter.task.abort();
                // Ends at its next turn, and counts what it had taken.
                let _cancelled = exporter.task.await;
            }
            exporter.queue.shared.closed.store(true, Release);
            drop(Taken::all(&exporter.queue.shared, &self.counters));
        }
    }
}

/// Spans taken from a queue. What is not said to be exported counts as lost when this is dropped, also in mid-call.
struct Taken<'a> {
    waiting: VecDeque<SpanData>,
    in_flight: usize,
    counters: &'a SpanCounters,
}

impl<'a> Taken<'a> {
    fn all(shared: &Shared, counters: &'a SpanCounters) -> Self {
        Self { waiting: std::mem::take(&mut *shared.spans.lock()), in_flight: 0, counters }
    }

    /// The next batch; the one before is lost unless it was exported.
    fn next_batch(&mut self) -> Option<Vec<SpanData>> {
        self.counters.dropped_export.inc_by(length(self.in_flight));
        self.in_flight = self.waiting.len().min(SPAN_BATCH);
        (self.in_flight > 0).then(|| self.waiting.drain(..self.in_flight).collect())
    }

    fn exported(&mut self) {
        self.counters.exported.inc_by(length(std::mem::take(&mut self.in_flight)));
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.counters.dropped_export.inc_by(length(self.in_flight + self.waiting.len()));
    }
}

fn length(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits")
}

/// A collector's task.
async fn run(
    provider: OtlpProvider,
    connector: Arc<dyn CollectorConnector>,
    shared: Arc<Shared>,
    flush_interval: Duration,
    counters: SpanCounters,
) {
    let exporter = match build(&provider, connector) {
        Ok(exporter) => exporter,
        Err(error) => {
            tracing::error!(cluster = %provider.cluster, %error, "no spans are exported");
            shared.closed.store(true, Release);
            let lost = std::mem::take(&mut *shared.spans.lock()).len();
            counters.dropped_provider.inc_by(length(lost));
            return;
        }
    };
    let mut complained: Option<Instant> = None;
    loop {
        tokio::select! {
            () = shared.wake.notified() => {}
            () = sleep(flush_interval) => {}
        }
        // Read before the queue is taken: what was pushed before the shutdown is exported.
        let stopping = shared.stopping.load(Acquire);
        let mut taken = Taken::all(&shared, &counters);
        while let Some(batch) = taken.next_batch() {
            match exporter.export(batch).await {
                Ok(()) => taken.exported(),
                Err(error) if complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) => {
                    complained = Some(Instant::now());
                    tracing::warn!(cluster = %provider.cluster, %error, "spans are lost");
                }
                Err(_) => {}
            }
        }
        if stopping {
            return;
        }
    }
}

fn build(provider: &OtlpProvider, connector: Arc<dyn CollectorConnector>) -> Result<SpanExporter, BuildError> {
    let channel = channel(provider, connector)?;
    let mut exporter = SpanExporter::builder().with_tonic().with_channel(channel).with_timeout(EXPORT_TIMEOUT).build()?;
    let resource = Resource::builder_empty()
        .with_service_name(Arc::clone(&provider.service_name))
        .with_attributes([
            KeyValue::new("telemetry.sdk.language", "rust"),
            KeyValue::new("telemetry.sdk.name", "waypoint"),
            KeyValue::new("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ])
        .build();
    exporter.set_resource(&resource);
    Ok(exporter)
}

/// A channel that dials through the connector and names the provider's authority, whatever the endpoint's address.
fn channel(provider: &OtlpProvider, connector: Arc<dyn CollectorConnector>) -> Result<Channel, BuildError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", provider.authority))
        .ok()
        .filter(|endpoint| endpoint.uri().authority().is_some())
        .ok_or_else(|| BuildError::Authority(Arc::clone(&provider.authority)))?;
    let cluster = Arc::clone(&provider.cluster);
    let dial = tower::service_fn(move |_: http::Uri| {
        let connecting = connector.connect(&cluster);
        async move { connecting.await.map(TokioIo::new) }
    });
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(EXPORT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    Ok(endpoint.connect_with_connector_lazy(dial))
}

#[cfg(test)]
mod tests;
