#![expect(clippy::unwrap_used, reason = "tests")]

use std::convert::Infallible;

use futures_util::stream;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::*;
use crate::fixture;

/// A collector that keeps what it is sent, and the authority it was called by.
struct Collector(mpsc::UnboundedSender<(String, ExportTraceServiceRequest)>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let authority = request.extensions().get::<Authority>().map(|authority| authority.0.clone()).unwrap_or_default();
        self.0.send((authority, request.into_inner())).unwrap();
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

#[derive(Clone)]
struct Authority(String);

/// Dials a collector in this process; notes which cluster was asked for.
struct InProcess {
    received: mpsc::UnboundedSender<(String, ExportTraceServiceRequest)>,
    asked: mpsc::UnboundedSender<String>,
}

impl CollectorConnector for InProcess {
    fn connect(&self, cluster: &str) -> Connecting {
        self.asked.send(cluster.to_owned()).unwrap();
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let service = TraceServiceServer::new(Collector(self.received.clone()));
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

fn counters() -> SpanCounters {
    let counter = |name| IntCounter::new(name, name).unwrap();
    SpanCounters { exported: counter("e"), dropped_queue: counter("q"), dropped_export: counter("x"), dropped_provider: counter("p") }
}

fn provider() -> OtlpProvider {
    fixture::tracing().provider.unwrap()
}

fn span() -> SpanData {
    let tracing = fixture::tracing();
    let mut record = fixture::request(&fixture::chain(None, Vec::new(), Some(tracing.clone())));
    record.trace = crate::trace::begin(Some(&tracing), &http::HeaderMap::new(), true, &mut fastrand::Rng::new()).trace;
    let scope = opentelemetry::InstrumentationScope::builder("waypoint").with_version("1").build();
    let identity = crate::trace::SpanIdentity { node_id: "waypoint~".into(), zone: "".into(), scope };
    crate::trace::span::finished(&record, record.trace.as_ref().unwrap(), &tracing, &identity)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn spans_reach_the_collector_through_the_given_connector() {
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, mut clusters) = mpsc::unbounded_channel();
    let counters = counters();
    let exporters = Exporters::new(Handle::current(), Arc::new(InProcess { received, asked }), Duration::from_millis(10), counters.clone());
    let span = span();
    exporters.queue(&provider()).unwrap().push(|| span.clone());

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
    assert_eq!(sent.trace_id, span.span_context.trace_id().to_bytes());
    assert_eq!(sent.span_id, span.span_context.span_id().to_bytes());
    assert_eq!((sent.kind(), sent.flags), (SpanKind::Server, 0x101), "a sampled root");
    assert!(sent.attributes.iter().all(|pair| matches!(pair.value.as_ref().unwrap().value, Some(Value::StringValue(_)))));
    exporters.shutdown(soon()).await;
    assert_eq!(counters.exported.get(), 1);
}

#[tokio::test]
async fn a_full_batch_leaves_at_once_and_shutting_down_sends_the_rest() {
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, _clusters) = mpsc::unbounded_channel();
    let counters = counters();
    let exporters = Exporters::new(Handle::current(), Arc::new(InProcess { received, asked }), NEVER, counters.clone());
    let queue = exporters.queue(&provider()).unwrap();
    let span = span();
    (0..SPAN_BATCH).for_each(|_| queue.push(|| span.clone()));
    let spans = |request: ExportTraceServiceRequest| request.resource_spans[0].scope_spans[0].spans.len();
    let (_, request) = tokio::time::timeout_at(soon(), requests.recv()).await.unwrap().unwrap();
    assert_eq!(spans(request), SPAN_BATCH);
    (0..3).for_each(|_| queue.push(|| span.clone()));
    exporters.shutdown(soon()).await;
    assert_eq!(spans(requests.recv().await.unwrap().1), 3);
    assert_eq!(counters.exported.get(), u64::try_from(SPAN_BATCH + 3).unwrap());
}

#[test]
fn a_full_queue_drops_and_counts_and_never_waits() {
    let counters = counters();
    let queue = SpanQueue { shared: Arc::default(), counters: counters.clone() };
    let span = span();
    (0..SPAN_QUEUE_MAX).for_each(|_| queue.push(|| span.clone()));
    (0..7).for_each(|_| queue.push(|| panic!("made without room")));
    assert_eq!(queue.shared.spans.lock().len(), SPAN_QUEUE_MAX);
    assert_eq!(counters.dropped_queue.get(), 7);
}

#[tokio::test(start_paused = true)]
async fn spans_for_a_collector_that_is_down_are_lost_counted_and_the_next_are_tried_again() {
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, _clusters) = mpsc::unbounded_channel();
    let up = Arc::new(AtomicBool::new(false));
    let connector = {
        let (up, collector) = (Arc::clone(&up), InProcess { received, asked });
        move |cluster: &str| if up.load(Acquire) { collector.connect(cluster) } else { fixture::unreachable(cluster) }
    };
    let counters = counters();
    let exporters = Exporters::new(Handle::current(), Arc::new(connector), Duration::from_secs(1), counters.clone());
    let queue = exporters.queue(&provider()).unwrap();
    queue.push(span);
    while counters.dropped_export.get() == 0 {
        tokio::time::advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
    }
    up.store(true, Release);
    queue.push(span);
    assert!(requests.recv().await.is_some());
    assert_eq!(counters.dropped_export.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_hangs_is_given_up_and_the_collector_dialled_anew() {
    let (received, mut requests) = mpsc::unbounded_channel();
    let (asked, mut clusters) = mpsc::unbounded_channel();
    let (ours, _never_read) = tokio::io::duplex(1 << 16);
    let first = Mutex::new(Some(ours));
    let collector = InProcess { received, asked };
    let connector = move |cluster: &str| match first.lock().take() {
        Some(hanging) => Box::pin(async move { Ok(Box::new(hanging) as Box<dyn CollectorIo>) }) as Connecting,
        None => collector.connect(cluster),
    };
    let exporters = Exporters::new(Handle::current(), Arc::new(connector), Duration::from_secs(1), counters());
    let queue = exporters.queue(&provider()).unwrap();
    queue.push(span);
    let received = async {
        loop {
            tokio::select! {
                request = requests.recv() => return request,
                () = sleep(Duration::from_secs(5)) => queue.push(span),
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(60), received).await.unwrap().is_some());
    assert!(clusters.try_recv().is_ok());
}

#[tokio::test]
async fn an_authority_that_is_none_exports_nothing_and_counts() {
    let counters = counters();
    let exporters = Exporters::new(Handle::current(), Arc::new(fixture::unreachable), NEVER, counters.clone());
    let queue = exporters.queue(&OtlpProvider { authority: "not an authority".into(), ..provider() }).unwrap();
    queue.push(span);
    exporters.shutdown(soon()).await;
    queue.push(span);
    assert_eq!(counters.dropped_provider.get(), 2);
}

#[tokio::test]
async fn equal_providers_share_an_exporter_and_exporters_are_limited() {
    let exporters = Exporters::new(Handle::current(), Arc::new(fixture::unreachable), NEVER, counters());
    let named = |number: usize| OtlpProvider { cluster: format!("cluster {number}").into(), ..provider() };
    let first = exporters.queue(&named(0)).unwrap();
    assert!(Arc::ptr_eq(&first.shared, &exporters.queue(&named(0)).unwrap().shared));
    assert!((1..EXPORTERS_MAX).all(|number| exporters.queue(&named(number)).is_some()));
    assert!(exporters.queue(&named(EXPORTERS_MAX)).is_none());
}
