//! Spans on their way to a collector: a task per collector, which empties its queue in calls of OTLP over gRPC.
//!
//! Not for: reaching the collector; the process dials through its own clusters, behind [`CollectorConnector`]. Source: the OTLP
//! specification 1.x, §OTLP/gRPC, also for what is tried again. Invariant: a call ends within [`EXPORT_TIMEOUT`], retries included.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use model::tracing::OtlpProvider;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use parking_lot::Mutex;
use prost::Message as _;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::queue::{Batch, SpanCounters, SpanQueue};
use super::wire;

/// Collectors at most; spans for others are dropped and counted.
pub const EXPORTERS_MAX: usize = 16;
/// How long one export call may take, its retries included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long dialling a collector may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may see no frame of the collector before it is asked for one, and how long it may then take: a connection
/// that is only half there must not swallow call after call.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// Calls to one collector at the same time at most: one after the other, a collector that is some milliseconds away would take fewer
/// spans than a busy worker makes.
pub const EXPORTS_IN_FLIGHT_MAX: usize = 4;
/// Repetitions of a call at most, and the pause before the first; it doubles, with up to half of it more by chance.
const RETRIES_MAX: u32 = 3;
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(100);
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

/// Why there is no exporter for a provider.
#[derive(Debug, Error)]
enum BuildError {
    #[error("the authority {0:?} is none")]
    Authority(Arc<str>),
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
        let queue = SpanQueue::new(self.counters.clone());
        let task = self.control.spawn(run(provider.clone(), Arc::clone(&self.connector), queue.clone(), self.flush_interval));
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
            exporter.queue.stop();
        }
        for mut exporter in running {
            if timeout_at(deadline, &mut exporter.task).await.is_err() {
                exporter.task.abort();
                // Ends at its next turn, and counts what it had taken.
                let _cancelled = exporter.task.await;
            }
            exporter.queue.close();
            while let Some(lost) = exporter.queue.pop(true) {
                drop(lost);
            }
        }
    }
}

/// A collector's task.
async fn run(provider: OtlpProvider, connector: Arc<dyn CollectorConnector>, queue: SpanQueue, flush_interval: Duration) {
    let collector = match channel(&provider, connector) {
        Ok(channel) => Collector::new(&provider, channel),
        Err(error) => {
            tracing::error!(cluster = %provider.cluster, %error, "no spans are exported");
            queue.close();
            while let Some(batch) = queue.pop(true) {
                batch.unwanted();
            }
            return;
        }
    };
    let mut calls = FuturesUnordered::new();
    let mut tick = interval(flush_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complained: Option<Instant> = None;
    // Whether a batch that is not full leaves too.
    let mut is_flushing = false;
    loop {
        let is_stopping = queue.is_stopping();
        while calls.len() < EXPORTS_IN_FLIGHT_MAX {
            let Some(batch) = queue.pop(is_flushing || is_stopping) else {
                is_flushing = false;
                break;
            };
            calls.push(collector.export(batch));
        }
        if is_stopping && calls.is_empty() {
            return;
        }
        tokio::select! {
            Some(ended) = calls.next(), if !calls.is_empty() => match ended {
                Err(error) if complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) => {
                    complained = Some(Instant::now());
                    tracing::warn!(cluster = %provider.cluster, %error, "spans are lost");
                }
                _ => {}
            },
            () = queue.woken() => {}
            _ = tick.tick() => is_flushing = true,
        }
    }
}

/// A collector that is called.
struct Collector {
    client: Grpc<Channel>,
    /// The encoded fields `ResourceSpans.resource` and `ScopeSpans.scope`.
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Collector {
    fn new(provider: &OtlpProvider, channel: Channel) -> Self {
        let attribute = |key: &str, value: &str| KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
            ..KeyValue::default()
        };
        let version = env!("CARGO_PKG_VERSION");
        let attributes = vec![
            attribute("service.name", &provider.service_name),
            attribute("telemetry.sdk.language", "rust"),
            attribute("telemetry.sdk.name", "waypoint"),
            attribute("telemetry.sdk.version", version),
        ];
        let resource = Resource { attributes, ..Resource::default() };
        let scope = InstrumentationScope { name: "waypoint".to_owned(), version: version.to_owned(), ..InstrumentationScope::default() };
        Self { client: Grpc::new(channel), resource: field(FIRST, &resource.encode_to_vec()), scope: field(FIRST, &scope.encode_to_vec()) }
    }

    /// Sends a batch until the collector takes it, refuses it, or the time is over.
    ///
    /// # Cancel safety
    /// Dropping it loses the batch, and counts it.
    async fn export(&self, mut batch: Batch) -> Result<(), Status> {
        let deadline = Instant::now() + EXPORT_TIMEOUT;
        let payload = Payload::new(&self.resource, &self.scope, batch.bytes());
        let mut retries = 0;
        loop {
            let status = match timeout_at(deadline, self.call(payload.clone())).await {
                Ok(Ok(response)) => return took(batch, response),
                Ok(Err(status)) => status,
                Err(_) => return Err(Status::deadline_exceeded("no answer in time")),
            };
            match retry_delay(&status, retries).filter(|delay| Instant::now() + *delay < deadline) {
                Some(delay) => sleep(delay).await,
                None => return Err(status),
            }
            retries += 1;
        }
    }

    async fn call(&self, payload: Payload) -> Result<ExportTraceServiceResponse, Status> {
        let mut client = self.client.clone();
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export");
        Ok(client.unary(Request::new(payload), path, OtlpCodec).await?.into_inner())
    }
}

/// Counts what the collector took of a batch; an error says that it was not all.
fn took(batch: Batch, response: ExportTraceServiceResponse) -> Result<(), Status> {
    let partial = response.partial_success.unwrap_or_default();
    let Ok(rejected) = usize::try_from(partial.rejected_spans) else {
        return Err(Status::internal("a negative number of spans was rejected"));
    };
    batch.exported(rejected);
    if rejected > 0 { Err(Status::invalid_argument(partial.error_message)) } else { Ok(()) }
}

/// How long to wait before the call is repeated; none if it is not to be.
fn retry_delay(status: &Status, retries: u32) -> Option<Duration> {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let is_retriable = match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::OutOfRange | Code::Unavailable | Code::DataLoss => true,
        // Only if the collector says when.
        Code::ResourceExhausted => asked.is_some(),
        _ => false,
    };
    if !is_retriable || retries >= RETRIES_MAX {
        return None;
    }
    let back_off = RETRY_DELAY_FIRST.saturating_mul(1 << retries);
    let jitter = back_off.mul_f64(fastrand::f64() / 2.0);
    Some(asked.unwrap_or_default().max(back_off + jitter))
}

/// Number of the fields `ExportTraceServiceRequest.resource_spans`, `ResourceSpans.resource` and `ScopeSpans.scope`.
const FIRST: u32 = 1;
/// Number of the field `ResourceSpans.scope_spans`.
const SCOPE_SPANS: u32 = 2;

fn field(number: u32, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    wire::head(&mut out, number, message.len());
    out.extend_from_slice(message);
    out
}

/// An `ExportTraceServiceRequest`: what comes before the spans, and the spans.
#[derive(Clone, Debug)]
struct Payload {
    head: Bytes,
    spans: Bytes,
}

impl Payload {
    fn new(resource: &[u8], scope: &[u8], spans: Vec<u8>) -> Self {
        let mut scope_spans = Vec::new();
        wire::head(&mut scope_spans, SCOPE_SPANS, scope.len() + spans.len());
        let mut head = Vec::new();
        wire::head(&mut head, FIRST, resource.len() + scope_spans.len() + scope.len() + spans.len());
        for part in [resource, &scope_spans, scope] {
            head.extend_from_slice(part);
        }
        Self { head: head.into(), spans: spans.into() }
    }
}

/// Sends what is encoded already.
#[derive(Clone, Copy, Debug)]
struct OtlpCodec;

impl Codec for OtlpCodec {
    type Encode = Payload;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for OtlpCodec {
    type Item = Payload;
    type Error = Status;

    fn encode(&mut self, payload: Payload, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(payload.head);
        out.put(payload.spans);
        Ok(())
    }
}

impl Decoder for OtlpCodec {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<ExportTraceServiceResponse>, Status> {
        ExportTraceServiceResponse::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
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
