#![expect(clippy::unwrap_used, reason = "tests")]

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::accesslog::v3::access_log_service_server::{AccessLogService, AccessLogServiceServer};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_types::pb::envoy::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use futures_util::stream;
use model::access_log::{EntryKind, LogCollector, LogOrigin};
use prometheus::IntCounter;
use prost::Message as _;
use tokio::runtime::Handle;
use tonic::{Response, Streaming};

use super::*;
use crate::export::{BATCH_ITEMS, CollectorIo, Connecting, Counters, ExportCounters, Exporters, Origin, Outbox, QUEUE_ITEMS_MAX};
use crate::fixture;

/// An access log service that ends each stream after so many messages.
#[derive(Clone)]
struct Service {
    received: mpsc::UnboundedSender<StreamAccessLogsMessage>,
    messages_max: usize,
}

#[tonic::async_trait]
impl AccessLogService for Service {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        for _ in 0..self.messages_max {
            let Some(message) = messages.message().await? else { break };
            self.received.send(message).unwrap();
        }
        Ok(Response::new(StreamAccessLogsResponse::default()))
    }
}

struct Fixture {
    exporters: Arc<Exporters>,
    queue: Arc<Outbox>,
    counters: ExportCounters,
    messages: mpsc::UnboundedReceiver<StreamAccessLogsMessage>,
    is_up: Arc<AtomicBool>,
}

/// A queue whose service ends streams after so many messages.
fn streaming(messages_max: usize, flush_interval: Duration) -> Fixture {
    let counter = |name| IntCounter::new(name, name).unwrap();
    let counters = ExportCounters {
        exported: counter("e"),
        dropped_queue: counter("q"),
        dropped_export: counter("x"),
        dropped_provider: counter("p"),
    };
    let (received, messages) = mpsc::unbounded_channel();
    let is_up = Arc::new(AtomicBool::new(true));
    let service = Service { received, messages_max };
    let up = Arc::clone(&is_up);
    let connector = move |_: &Collector| -> Connecting {
        if !up.load(Relaxed) {
            return fixture::unreachable(&fixture::collector());
        }
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let incoming = stream::iter([Ok::<_, Infallible>(theirs)]);
        let service = AccessLogServiceServer::new(service.clone());
        tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn CollectorIo>) })
    };
    let both = Counters { spans: counters.clone(), records: counters.clone() };
    let node = Node { id: "waypoint~1".to_owned(), ..Node::default() }.encode_to_vec();
    let origin = Origin { node: node.into(), ..Origin::default() };
    let exporters = Exporters::new(Handle::current(), Arc::new(connector), flush_interval, origin, both);
    let logs = LogCollector {
        collector: fixture::collector(),
        origin: LogOrigin::Entries { kind: EntryKind::Http, log_name: "http_envoy_accesslog".into() },
    };
    let queue = exporters.logs(&logs);
    Fixture { exporters, queue, counters, messages, is_up }
}

/// How many entries a message has, all of HTTP.
fn entries(message: &StreamAccessLogsMessage) -> usize {
    match message.log_entries.as_ref().unwrap() {
        LogEntries::HttpLogs(entries) => entries.log_entry.len(),
        LogEntries::TcpLogs(_) => panic!("of TCP"),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// An entry that says that it is of HTTP/2.
const ENTRY: &[u8] = b"\x10\x03";
const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn one_stream_carries_all_and_its_first_message_says_who_sends() {
    let mut it = streaming(usize::MAX, Duration::from_secs(1));
    it.queue.push(|| ENTRY);
    let first = it.messages.recv().await.unwrap();
    let identifier = first.identifier.clone().unwrap();
    assert_eq!((identifier.node.unwrap().id, identifier.log_name), ("waypoint~1".to_owned(), "http_envoy_accesslog".to_owned()));
    assert_eq!(entries(&first), 1);
    (0..3).for_each(|_| it.queue.push(|| ENTRY));
    let second = it.messages.recv().await.unwrap();
    assert_eq!((second.identifier.is_none(), entries(&second)), (true, 3));
    it.exporters.shutdown(soon()).await;
    assert_eq!((it.counters.exported.get(), it.counters.dropped_export.get()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn what_waits_at_the_end_is_sent() {
    let mut it = streaming(usize::MAX, NEVER);
    (0..BATCH_ITEMS + 3).for_each(|_| it.queue.push(|| ENTRY));
    it.exporters.shutdown(soon()).await;
    let received: Vec<_> = std::iter::from_fn(|| it.messages.try_recv().ok()).collect();
    assert_eq!(received.iter().map(entries).collect::<Vec<_>>(), [BATCH_ITEMS, 3]);
    assert_eq!(it.counters.exported.get(), u64::try_from(BATCH_ITEMS + 3).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_is_opened_again_and_says_again_who_sends() {
    let mut it = streaming(1, Duration::from_secs(1));
    for _ in 0..3 {
        it.queue.push(|| ENTRY);
        let message = it.messages.recv().await.unwrap();
        assert_eq!((message.identifier.is_some(), entries(&message)), (true, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_down_costs_entries_when_the_queue_is_full_and_gets_the_rest_later() {
    let mut it = streaming(usize::MAX, Duration::from_secs(1));
    it.is_up.store(false, Relaxed);
    (0..5).for_each(|_| it.queue.push(|| ENTRY));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((it.counters.exported.get(), it.counters.dropped_export.get()), (0, 0), "they are held");
    // Those that are held do not count as waiting.
    (0..QUEUE_ITEMS_MAX + 7).for_each(|_| it.queue.push(|| ENTRY));
    assert_eq!(it.counters.dropped_queue.get(), 7);
    it.is_up.store(true, Relaxed);
    assert_eq!(entries(&it.messages.recv().await.unwrap()), 5);
    it.exporters.shutdown(soon()).await;
    assert_eq!(it.counters.exported.get(), u64::try_from(QUEUE_ITEMS_MAX + 5).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_came_up_costs_what_was_held_at_the_end() {
    let it = streaming(usize::MAX, Duration::from_secs(1));
    it.is_up.store(false, Relaxed);
    (0..5).for_each(|_| it.queue.push(|| ENTRY));
    tokio::time::sleep(Duration::from_secs(5)).await;
    it.exporters.shutdown(soon()).await;
    assert_eq!((it.counters.exported.get(), it.counters.dropped_export.get()), (0, 5));
}
