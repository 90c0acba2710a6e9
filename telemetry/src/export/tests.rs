#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};

use futures_util::stream;
use model::tracing::SpanProvider;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig as _};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest};
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::call::channel;
use super::queue::Framing;
use super::*;
use crate::fixture;

type Answers = Arc<Mutex<VecDeque<Result<ExportTraceServiceResponse, Status>>>>;

/// A collector that keeps what it is sent, and the authority it was called by; takes everything once its answers are used up.
struct CollectorService {
    received: mpsc::UnboundedSender<(String, ExportTraceServiceRequest)>,
    answers: Answers,
}

#[tonic::async_trait]
impl TraceService for CollectorService {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let authority = request.extensions().get::<Authority>().map(|authority| authority.0.clone()).unwrap_or_default();
        self.received.send((authority, request.into_inner())).unwrap();
        let answer = self.answers.lock().pop_front();
        answer.unwrap_or_else(|| Ok(ExportTraceServiceResponse::default())).map(Response::new)
    }
}

#[derive(Clone)]
struct Authority(String);

/// Dials a collector in this process; notes which cluster was asked for.
struct InProcess {
    received: mpsc::UnboundedSender<(String, ExportTraceServiceRequest)>,
    asked: mpsc::UnboundedSender<String>,
    answers: Answers,
}

impl CollectorConnector for InProcess {
    fn connect(&self, to: &Collector) -> Connecting {
        // Not every test asks.
        let _told = self.asked.send(to.cluster.to_string());
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let service = TraceServiceServer::new(CollectorService { received: self.received.clone(), answers: Arc::clone(&self.answers) });
        let service = tower::ServiceBuilder::new()
            .map_request(|mut request: http::Request<tonic::body::Body>| {
                let authority = request.uri().authority().unwrap().to_string();
                request.extensions_mut().insert(Authority(authority));
                request
            })
            .service(service);
        let incoming = stream::iter([Ok::<_, Infallible>(theirs)]);
        tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn CollectorIo>) })
    }
}

fn counters() -> ExportCounters {
    let counter = |name| IntCounter::new(name, name).unwrap();
    ExportCounters { exported: counter("e"), dropped_queue: counter("q"), dropped_export: counter("x"), dropped_provider: counter("p") }
}

fn provider() -> SpanProvider {
    SpanProvider::clone(&fixture::tracing().provider.unwrap())
}

fn exporting(connector: Arc<dyn CollectorConnector>, flush_interval: Duration, counters: &ExportCounters) -> Arc<Exporters> {
    let counters = Counters { spans: counters.clone(), records: counters.clone() };
    Exporters::new(Handle::current(), connector, flush_interval, Origin::default(), counters)
}

fn at(collector: Collector) -> SpanProvider {
    SpanProvider { collector, ..provider() }
}

/// A span as it is written, and as it is meant.
fn span_of(change: impl FnOnce(&mut crate::record::RequestRecord)) -> (Vec<u8>, Span) {
    let tracing = fixture::tracing();
    let mut record = fixture::request(&fixture::chain(None, Vec::new(), Some(tracing.clone())));
    record.trace = crate::trace::begin(Some(&tracing), &http::HeaderMap::new(), true, &mut fastrand::Rng::new()).trace;
    change(&mut record);
    let mut writer = crate::trace::SpanWriter::new(crate::trace::SpanIdentity::new("waypoint~".into(), "".into(), "".into()));
    let bytes = writer.write(&record, record.trace.as_ref().unwrap(), &tracing).to_vec();
    let span = Span::decode(&*bytes).unwrap();
    (bytes, span)
}

fn span() -> Vec<u8> {
    span_of(|_| {}).0
}

/// A queue whose collector answers so, and what it receives.
fn answering(
    answers: impl IntoIterator<Item = Result<ExportTraceServiceResponse, Status>>,
    counters: &ExportCounters,
) -> (Arc<Exporters>, Arc<Outbox>, mpsc::UnboundedReceiver<(String, ExportTraceServiceRequest)>) {
    let (received, requests) = mpsc::unbounded_channel();
    let (asked, _clusters) = mpsc::unbounded_channel();
    let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
    let connector = Arc::new(InProcess { received, asked, answers });
    let exporters = exporting(connector, NEVER, counters);
    let queue = exporters.spans(&provider());
    (exporters, queue, requests)
}

fn numbered(number: usize) -> SpanProvider {
    at(Collector { cluster: format!("cluster {number}").into(), ..fixture::collector() })
}

fn drain(queue: &Queue) -> Vec<Batch> {
    std::iter::from_fn(|| queue.pop(true)).collect()
}

fn spans(request: ExportTraceServiceRequest) -> Vec<Span> {
    request.resource_spans.into_iter().flat_map(|spans| spans.scope_spans).flat_map(|spans| spans.spans).collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn t27_spans_reach_the_collector_through_the_given_connector() {
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, mut clusters) = mpsc::unbounded_channel();
    let counters = counters();
    let exporters = exporting(Arc::new(InProcess { received, asked, answers: Answers::default() }), Duration::from_millis(10), &counters);
    let (bytes, span) = span_of(|_| {});
    exporters.spans(&provider()).push(|| &bytes);

    let (authority, request) = tokio::time::timeout_at(soon(), requests.recv()).await.unwrap().unwrap();
    assert_eq!(clusters.recv().await.unwrap(), "outbound|4317||tempo.tempo.svc.cluster.local");
    assert_eq!(authority, "tempo.tempo.svc.cluster.local");
    let [resource_spans] = &request.resource_spans[..] else { panic!("one resource") };
    let resource: Vec<_> = resource_spans.resource.as_ref().unwrap().attributes.iter().collect();
    let service = resource.iter().find(|pair| pair.key == "service.name").unwrap();
    assert_eq!(service.value.clone().unwrap().value.unwrap(), Value::StringValue("waypoint.emojivoto".to_owned()));
    let [scope_spans] = &resource_spans.scope_spans[..] else { panic!("one scope") };
    assert_eq!(scope_spans.scope.as_ref().unwrap().name, "waypoint");
    let [sent] = &scope_spans.spans[..] else { panic!("one span") };
    assert_eq!(*sent, span);
    assert_eq!((sent.kind(), sent.flags), (SpanKind::Server, 0x101), "a sampled root");
    assert!(sent.attributes.iter().all(|pair| matches!(pair.value.as_ref().unwrap().value, Some(Value::StringValue(_)))));
    exporters.shutdown(soon()).await;
    assert_eq!(counters.exported.get(), 1);
}

#[tokio::test]
async fn t26_a_full_batch_leaves_at_once_and_shutting_down_sends_the_rest() {
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, _clusters) = mpsc::unbounded_channel();
    let counters = counters();
    let exporters = exporting(Arc::new(InProcess { received, asked, answers: Answers::default() }), NEVER, &counters);
    let queue = exporters.spans(&provider());
    let span = span();
    (0..BATCH_ITEMS).for_each(|_| queue.push(|| &span));
    let (_, request) = tokio::time::timeout_at(soon(), requests.recv()).await.unwrap().unwrap();
    assert_eq!(spans(request).len(), BATCH_ITEMS);
    (0..3).for_each(|_| queue.push(|| &span));
    exporters.shutdown(soon()).await;
    assert_eq!(spans(requests.recv().await.unwrap().1).len(), 3);
    assert_eq!(counters.exported.get(), u64::try_from(BATCH_ITEMS + 3).unwrap());
}

#[test]
fn a_full_queue_drops_and_counts_and_never_waits() {
    let counters = counters();
    let queue = Queue::new(counters.clone(), Framing::OTLP);
    let span = span();
    (0..QUEUE_ITEMS_MAX).for_each(|_| queue.push(|| &span));
    (0..7).for_each(|_| queue.push(|| panic!("made without room")));
    assert_eq!(counters.dropped_queue.get(), 7);
    drop(drain(&queue));
    assert_eq!(counters.dropped_export.get(), u64::try_from(QUEUE_ITEMS_MAX).unwrap());
}

#[tokio::test(start_paused = true)]
async fn t25_spans_for_a_collector_that_is_down_are_lost_counted_and_the_next_are_tried_again() {
    let span = span();
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, _clusters) = mpsc::unbounded_channel();
    let up = Arc::new(AtomicBool::new(false));
    let connector = {
        let (up, collector) = (Arc::clone(&up), InProcess { received, asked, answers: Answers::default() });
        move |to: &Collector| if up.load(Acquire) { collector.connect(to) } else { fixture::unreachable(to) }
    };
    let counters = counters();
    let exporters = exporting(Arc::new(connector), Duration::from_secs(1), &counters);
    let queue = exporters.spans(&provider());
    queue.push(|| &span);
    while counters.dropped_export.get() == 0 {
        tokio::time::advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
    up.store(true, Release);
    queue.push(|| &span);
    assert!(requests.recv().await.is_some());
    assert_eq!(counters.dropped_export.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_hangs_is_given_up_and_the_collector_dialled_anew() {
    let span = span();
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, mut clusters) = mpsc::unbounded_channel();
    let (ours, _never_read) = tokio::io::duplex(1 << 16);
    let first = Mutex::new(Some(ours));
    let collector = InProcess { received, asked, answers: Answers::default() };
    let connector = move |to: &Collector| match first.lock().take() {
        Some(hanging) => Box::pin(async move { Ok(Box::new(hanging) as Box<dyn CollectorIo>) }) as Connecting,
        None => collector.connect(to),
    };
    let exporters = exporting(Arc::new(connector), Duration::from_secs(1), &counters());
    let queue = exporters.spans(&provider());
    queue.push(|| &span);
    let received = async {
        loop {
            tokio::select! {
                request = requests.recv() => return request,
                () = sleep(Duration::from_secs(5)) => queue.push(|| &span),
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), received).await.unwrap().is_some());
    assert!(clusters.try_recv().is_ok());
}

#[tokio::test]
async fn an_authority_that_is_none_exports_nothing_and_counts() {
    let span = span();
    let counters = counters();
    let exporters = exporting(Arc::new(fixture::unreachable), NEVER, &counters);
    let queue = exporters.spans(&at(Collector { authority: "not an authority".into(), ..fixture::collector() }));
    queue.push(|| &span);
    exporters.shutdown(soon()).await;
    queue.push(|| &span);
    assert_eq!(counters.dropped_provider.get(), 2);
}

#[tokio::test]
async fn equal_providers_share_an_exporter() {
    let exporters = exporting(Arc::new(fixture::unreachable), NEVER, &counters());
    let (one, other) = (exporters.spans(&numbered(0)), exporters.spans(&numbered(0)));
    let span = span();
    one.push(|| &span);
    assert!(other.queue().unwrap().pop(true).is_some(), "the same queue");
}

#[test]
fn spans_of_huge_headers_leave_in_small_calls_and_wait_within_a_bound() {
    let counters = counters();
    let queue = Queue::new(counters.clone(), Framing::OTLP);
    let agent = "a".repeat(50_000);
    let (bytes, _) = span_of(|record| record.capture_request(&fixture::headers(&[("user-agent", &agent)])));
    let pushed = 2 * QUEUE_BYTES_MAX / bytes.len();
    (0..pushed).for_each(|_| queue.push(|| &bytes));
    let sizes: Vec<_> = drain(&queue).iter_mut().map(|batch| batch.bytes().len()).collect();
    assert!(sizes.iter().all(|size| *size < BATCH_BYTES + 2 * bytes.len()), "collectors refuse above 4 MiB");
    let kept = usize::try_from(counters.dropped_export.get()).unwrap();
    assert!(kept * bytes.len() <= QUEUE_BYTES_MAX && (kept + 1) * bytes.len() > QUEUE_BYTES_MAX);
    assert_eq!(counters.dropped_queue.get(), u64::try_from(pushed - kept).unwrap());
}

#[tokio::test]
async fn spans_that_a_collector_rejects_are_lost_and_the_others_are_exported() {
    let counters = counters();
    let partial = ExportTracePartialSuccess { rejected_spans: 2, error_message: "too old".to_owned() };
    let (exporters, queue, _requests) = answering([Ok(ExportTraceServiceResponse { partial_success: Some(partial) })], &counters);
    let span = span();
    (0..5).for_each(|_| queue.push(|| &span));
    exporters.shutdown(soon()).await;
    assert_eq!((counters.exported.get(), counters.dropped_export.get()), (3, 2));
}

/// OTLP specification, "OTLP/gRPC response": which statuses a client repeats.
#[tokio::test(start_paused = true)]
async fn a_call_is_repeated_only_after_statuses_that_otlp_calls_retryable() {
    let with_delay = ErrorDetails::with_retry_info(Some(Duration::from_secs(2)));
    let throttled = Status::with_error_details(Code::ResourceExhausted, "later", with_delay);
    let repeated = [Code::Cancelled, Code::DeadlineExceeded, Code::Aborted, Code::OutOfRange, Code::Unavailable, Code::DataLoss];
    let given_up = [Code::Unknown, Code::InvalidArgument, Code::PermissionDenied, Code::Unauthenticated, Code::ResourceExhausted];
    let cases = repeated.map(|code| (Status::new(code, ""), true)).into_iter().chain([(throttled, true)]);
    for (status, is_repeated) in cases.chain(given_up.map(|code| (Status::new(code, ""), false))) {
        let counters = counters();
        let (exporters, queue, mut requests) = answering([Err(status.clone())], &counters);
        let (bytes, span) = span_of(|_| {});
        queue.push(|| &bytes);
        exporters.shutdown(soon()).await;
        let received: Vec<_> = std::iter::from_fn(|| requests.try_recv().ok()).map(|(_, request)| spans(request)).collect();
        let times = if is_repeated { 2 } else { 1 };
        assert_eq!(received, vec![vec![span]; times], "{status:?}");
        let outcome = (counters.exported.get(), counters.dropped_export.get());
        assert_eq!(outcome, if is_repeated { (1, 0) } else { (0, 1) }, "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_stays_unavailable_is_called_four_times_and_no_more() {
    let counters = counters();
    let unavailable = || Err(Status::unavailable(""));
    let (exporters, queue, mut requests) = answering(std::iter::repeat_with(unavailable).take(10), &counters);
    let span = span();
    queue.push(|| &span);
    exporters.shutdown(soon()).await;
    assert_eq!(std::iter::from_fn(|| requests.try_recv().ok()).count(), 4, "once and three times more");
    assert_eq!(counters.dropped_export.get(), 1);
}

/// The same span as the public exporter of OpenTelemetry sends it: an implementation that is not ours.
#[tokio::test]
async fn the_bytes_mean_what_opentelemetrys_own_exporter_sends() {
    let counters = counters();
    let (exporters, queue, mut requests) = answering([], &counters);
    let (bytes, meant) = span_of(|record| {
        record.response_code = 503;
        let trace = record.trace.as_mut().unwrap();
        trace.parent = Some(7);
        trace.tracestate = http::HeaderValue::from_static("a=1,b=2");
    });
    queue.push(|| &bytes);
    exporters.shutdown(soon()).await;
    let ours = requests.recv().await.unwrap().1;

    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, _clusters) = mpsc::unbounded_channel();
    let channel =
        channel(&fixture::collector(), Some(EXPORT_TIMEOUT), Arc::new(InProcess { received, asked, answers: Answers::default() })).unwrap();
    let theirs = SpanExporter::builder().with_tonic().with_channel(channel).build().unwrap();
    export_with(theirs, span_data(&meant)).await;
    let theirs = requests.recv().await.unwrap().1;
    assert_eq!(sorted(ours), sorted(theirs));
}

/// What the OpenTelemetry SDK would hold of it.
fn span_data(meant: &Span) -> SpanData {
    let id = |bytes: &[u8]| SpanId::from_bytes(bytes.try_into().unwrap());
    let trace_id = TraceId::from_bytes(meant.trace_id.as_slice().try_into().unwrap());
    let state = meant.trace_state.parse().unwrap();
    let at = |nanoseconds| std::time::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
    let texts = meant.attributes.iter().map(|pair| {
        let Some(AnyValue { value: Some(Value::StringValue(text)) }) = &pair.value else { panic!("a text") };
        opentelemetry::KeyValue::new(pair.key.clone(), text.clone())
    });
    SpanData {
        span_context: SpanContext::new(trace_id, id(&meant.span_id), TraceFlags::SAMPLED, false, state),
        parent_span_id: id(&meant.parent_span_id),
        parent_span_is_remote: true,
        span_kind: opentelemetry::trace::SpanKind::Server,
        name: meant.name.clone().into(),
        start_time: at(meant.start_time_unix_nano),
        end_time: at(meant.end_time_unix_nano),
        attributes: texts.collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: opentelemetry::trace::Status::error(""),
        instrumentation_scope: opentelemetry::InstrumentationScope::builder("waypoint").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}

async fn export_with(mut exporter: SpanExporter, span: SpanData) {
    let attributes = [("language", "rust"), ("name", "waypoint"), ("version", env!("CARGO_PKG_VERSION"))]
        .map(|(key, value)| opentelemetry::KeyValue::new(format!("telemetry.sdk.{key}"), value));
    let resource = opentelemetry_sdk::Resource::builder_empty().with_service_name("waypoint.emojivoto").with_attributes(attributes).build();
    exporter.set_resource(&resource);
    exporter.export(vec![span]).await.unwrap();
}

/// A resource is a map: its order means nothing.
fn sorted(mut request: ExportTraceServiceRequest) -> ExportTraceServiceRequest {
    for resource in request.resource_spans.iter_mut().filter_map(|spans| spans.resource.as_mut()) {
        resource.attributes.sort_by(|one, other| one.key.cmp(&other.key));
    }
    request
}

#[tokio::test]
async fn a_collector_that_is_slow_has_several_batches_on_their_way_and_no_more_than_the_bound() {
    let counters = counters();
    let (received, mut requests) = mpsc::unbounded_channel();
    let connector = Arc::new(Hanging { received });
    let exporters = exporting(connector, NEVER, &counters);
    let queue = exporters.spans(&provider());
    let span = span();
    (0..BATCH_ITEMS * (EXPORTS_IN_FLIGHT_MAX + 2)).for_each(|_| queue.push(|| &span));
    for _ in 0..EXPORTS_IN_FLIGHT_MAX {
        tokio::time::timeout_at(soon(), requests.recv()).await.unwrap().unwrap();
    }
    assert_eq!(drain(&queue.queue().unwrap()).len(), 2, "the others wait");
}

/// Dials a collector that takes calls and answers none.
struct Hanging {
    received: mpsc::UnboundedSender<()>,
}

#[tonic::async_trait]
impl TraceService for Hanging {
    async fn export(&self, _: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.received.send(()).unwrap();
        std::future::pending().await
    }
}

impl CollectorConnector for Hanging {
    fn connect(&self, _: &Collector) -> Connecting {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let service = TraceServiceServer::new(Hanging { received: self.received.clone() });
        let incoming = stream::iter([Ok::<_, Infallible>(theirs)]);
        tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn CollectorIo>) })
    }
}

#[tokio::test]
async fn a_negative_number_of_rejected_spans_means_that_none_is_known_to_be_taken() {
    let counters = counters();
    let partial = ExportTracePartialSuccess { rejected_spans: -1, error_message: String::new() };
    let (exporters, queue, _requests) = answering([Ok(ExportTraceServiceResponse { partial_success: Some(partial) })], &counters);
    let span = span();
    queue.push(|| &span);
    exporters.shutdown(soon()).await;
    assert_eq!((counters.exported.get(), counters.dropped_export.get()), (0, 1));
}
