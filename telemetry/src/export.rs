//! What leaves for collectors: a task for each, which empties its queue in calls, or over a stream.
//!
//! Not for: making spans and records, or reaching collectors; the process dials through its own clusters, behind
//! [`CollectorConnector`]. Invariants: a call ends within [`EXPORT_TIMEOUT`], retries included; what is not taken by then is counted.

mod call;
mod exporters;
mod payload;
mod post;
mod queue;
mod stream;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use model::access_log::EntryKind;
use model::collector::{Call, Collector};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message as _;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout, timeout_at};

use self::call::Caller;
pub(crate) use self::exporters::{Counters, Exporters, Outbox};
pub use self::exporters::{EXPORTERS_MAX, RETIRED_EXPORTERS_MAX};
use self::payload::{Entries, Envelope, Payload};
pub(crate) use self::payload::{Origin, resource_of};
use self::post::Poster;
pub(crate) use self::queue::ExportCounters;
pub use self::queue::{BATCH_BYTES, BATCH_ITEMS, QUEUE_BYTES_MAX, QUEUE_ITEMS_MAX};
use self::queue::{Batch, Queue};
use self::stream::Streamer;

/// How long one export call may take, its retries included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long dialling a collector may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls to one collector at the same time at most: one after the other, a collector that is some milliseconds away would take fewer
/// spans than a busy worker makes.
pub const EXPORTS_IN_FLIGHT_MAX: usize = 4;
/// Repetitions of a call at most, and the pause before the first; it doubles, with up to half of it more by chance.
const RETRIES_MAX: u32 = 3;
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(100);
/// Between two complaints about one collector.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// A connection to a collector, on which HTTP is spoken in the clear (TLS, if any, is part of it).
pub trait CollectorIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> CollectorIo for T {}

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn CollectorIo>>> + Send>>;

/// How the process reaches collectors.
pub trait CollectorConnector: Send + Sync + 'static {
    /// Dials an endpoint of the collector's cluster. Polled on the control runtime; dropped when it takes too long.
    fn connect(&self, to: &Collector) -> Connecting;
}

impl<F: Fn(&Collector) -> Connecting + Send + Sync + 'static> CollectorConnector for F {
    fn connect(&self, to: &Collector) -> Connecting {
        self(to)
    }
}

/// Why there is no exporter for a collector.
#[derive(Debug, Error)]
enum BuildError {
    #[error("the authority {0:?} is none")]
    Authority(Arc<str>),
}

/// Why a collector did not take a batch, or not all of it.
#[derive(Debug, Error)]
#[error("{reason}")]
struct ExportError {
    reason: String,
    /// It may be tried again, after this long at least.
    retry: Option<Duration>,
}

impl ExportError {
    /// It is not tried again.
    fn last(reason: String) -> Self {
        Self { reason, retry: None }
    }

    /// It may be tried again.
    fn again(reason: String) -> Self {
        Self { reason, retry: Some(Duration::ZERO) }
    }
}

/// What a collector is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Spans of OTLP.
    Spans {
        /// The resource's attributes, `service.name` first.
        resource: Vec<(Arc<str>, Arc<str>)>,
    },
    /// Spans of Zipkin's.
    Zipkin,
    /// Log records of OTLP.
    Records {
        /// The resource's attributes.
        resource: Vec<(Arc<str>, Arc<str>)>,
    },
    /// Entries of Envoy's access log service.
    Entries {
        /// Their kind.
        kind: EntryKind,
        /// The log's name.
        log_name: Arc<str>,
    },
}

/// What goes to which collector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outgoing {
    collector: Collector,
    signal: Signal,
}

/// A collector's task: ends when its queue was stopped and is empty, or, once it is retired, when one call's time is over.
async fn run(outgoing: Outgoing, origin: Origin, connector: Arc<dyn CollectorConnector>, queue: Arc<Queue>, flush_interval: Duration) {
    let overdue = async {
        queue.retired().await;
        sleep(EXPORT_TIMEOUT).await;
    };
    tokio::select! {
        () = export(outgoing, origin, connector, &queue, flush_interval) => {}
        () = overdue => {}
    }
    queue.close();
}

/// Exports what its queue holds, until it is asked to stop and empty.
async fn export(outgoing: Outgoing, origin: Origin, connector: Arc<dyn CollectorConnector>, queue: &Queue, flush_interval: Duration) {
    let mut tick = interval(flush_interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let Outgoing { collector, signal } = &outgoing;
    let built = match signal {
        Signal::Entries { kind, log_name } => Streamer::new(collector, Entries::new(&origin.node, log_name, *kind), connector)
            .map(|streamer| Exporter::Stream(Box::new(streamer))),
        Signal::Spans { .. } | Signal::Zipkin | Signal::Records { .. } => {
            Courier::new(&outgoing, connector).map(|courier| Exporter::Calls(Box::new(courier)))
        }
    };
    match built {
        Ok(Exporter::Stream(streamer)) => streamer.run(queue, tick).await,
        Ok(Exporter::Calls(courier)) => call(&courier, queue, tick, &collector.cluster).await,
        Err(error) => {
            tracing::error!(cluster = %collector.cluster, %error, "nothing is exported");
            queue.refuse();
        }
    }
}

/// Calls a collector with what its queue holds, until it is asked to stop and empty.
async fn call(courier: &Courier, queue: &Queue, mut tick: Interval, cluster: &str) {
    let mut calls = FuturesUnordered::new();
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
            calls.push(courier.export(batch));
        }
        if is_stopping && calls.is_empty() {
            return;
        }
        tokio::select! {
            Some(ended) = calls.next(), if !calls.is_empty() => match ended {
                Err(error) if complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) => {
                    complained = Some(Instant::now());
                    tracing::warn!(%cluster, %error, "spans or log records are lost");
                }
                _ => {}
            },
            () = queue.woken() => {}
            _ = tick.tick() => is_flushing = true,
        }
    }
}

enum Exporter {
    Calls(Box<Courier>),
    Stream(Box<Streamer>),
}

enum Way {
    Grpc(Caller),
    Http(Poster),
}

/// Brings batches to a collector.
struct Courier {
    way: Way,
    /// Of OTLP; Zipkin takes a list, and says nothing of what it took.
    envelope: Option<Envelope>,
    call_timeout: Duration,
}

impl Courier {
    fn new(outgoing: &Outgoing, connector: Arc<dyn CollectorConnector>) -> Result<Self, BuildError> {
        let Outgoing { collector, signal } = outgoing;
        let way = match &collector.call {
            Call::Grpc => {
                let path = match signal {
                    Signal::Spans { .. } | Signal::Zipkin => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                    Signal::Records { .. } | Signal::Entries { .. } => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
                };
                Way::Grpc(Caller::new(collector, path, connector)?)
            }
            Call::Http(path) => {
                let content_type = if *signal == Signal::Zipkin { "application/json" } else { "application/x-protobuf" };
                Way::Http(Poster::new(collector, path, content_type, connector)?)
            }
        };
        let call_timeout = collector.timeout.map_or(EXPORT_TIMEOUT, |timeout| timeout.min(EXPORT_TIMEOUT));
        let envelope = (*signal != Signal::Zipkin).then(|| Envelope::new(signal));
        Ok(Self { way, envelope, call_timeout })
    }

    /// Sends a batch until the collector takes it, refuses it, or the time is over.
    ///
    /// # Cancel safety
    /// Dropping it loses the batch, and counts it.
    async fn export(&self, mut batch: Batch) -> Result<(), ExportError> {
        let deadline = Instant::now() + EXPORT_TIMEOUT;
        let payload = match &self.envelope {
            Some(envelope) => envelope.around(batch.bytes()),
            None => Payload::listed(batch.bytes()),
        };
        let mut retries = 0;
        loop {
            let call = timeout(self.call_timeout, self.call(&payload));
            let error = match timeout_at(deadline, call).await {
                Ok(Ok(Ok(answer))) => {
                    let answer = if self.envelope.is_some() { answer } else { Bytes::new() };
                    return took(batch, &answer);
                }
                Ok(Ok(Err(error))) => error,
                Ok(Err(_)) => ExportError::again("no answer in time".to_owned()),
                Err(_) => return Err(ExportError::last("no answer in time".to_owned())),
            };
            match retry_delay(&error, retries).filter(|delay| *delay < deadline.saturating_duration_since(Instant::now())) {
                Some(delay) => sleep(delay).await,
                None => return Err(error),
            }
            retries += 1;
        }
    }

    async fn call(&self, payload: &Payload) -> Result<Bytes, ExportError> {
        match &self.way {
            Way::Grpc(caller) => caller.call(payload.clone()).await,
            Way::Http(poster) => poster.post(payload.joined()).await,
        }
    }
}

/// Counts what the collector took of a batch; an error says that it was not all. Answers about spans and about records have the
/// same fields.
fn took(batch: Batch, answer: &[u8]) -> Result<(), ExportError> {
    let Ok(answer) = ExportTraceServiceResponse::decode(answer) else {
        // Its status says that it was taken.
        batch.exported(0);
        return Ok(());
    };
    let partial = answer.partial_success.unwrap_or_default();
    let Ok(rejected) = usize::try_from(partial.rejected_spans) else {
        return Err(ExportError::last("a negative number was rejected".to_owned()));
    };
    batch.exported(rejected);
    if rejected > 0 { Err(ExportError::last(partial.error_message)) } else { Ok(()) }
}

/// How long to wait before the call is repeated; none if it is not to be.
fn retry_delay(error: &ExportError, retries: u32) -> Option<Duration> {
    let asked = error.retry.filter(|_| retries < RETRIES_MAX)?;
    let back_off = RETRY_DELAY_FIRST.saturating_mul(1 << retries);
    let jitter = back_off.mul_f64(fastrand::f64() / 2.0);
    Some(asked.max(back_off + jitter))
}

#[cfg(test)]
mod tests;
