#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;

use model::collector::Call;
use model::tracing::{Dialect, SpanProvider};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse};
use parking_lot::Mutex;
use prometheus::IntCounter;
use prost::Message as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::export::{Connecting, Counters, ExportCounters, Exporters, Origin};

/// The head, in lower case, and the body of a request.
type Posted = (Vec<String>, Vec<u8>);

/// Reads requests and answers them, each in turn, with the next of `answers`, then with 200 and nothing.
async fn collect(io: DuplexStream, posted: mpsc::UnboundedSender<Posted>, answers: Arc<Mutex<VecDeque<Vec<u8>>>>) {
    let mut io = BufReader::new(io);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if io.read_line(&mut line).await.unwrap() == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                text => head.push(text.to_owned()),
            }
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        io.read_exact(&mut body).await.unwrap();
        posted.send((head, body)).unwrap();
        let answer = answers.lock().pop_front().unwrap_or_else(|| b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec());
        io.write_all(&answer).await.unwrap();
    }
}

fn answer(status: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

/// Exports five spans by HTTP to a collector that answers so; what was posted, and how many were exported and lost.
async fn exported(answers: Vec<Vec<u8>>) -> (Vec<Posted>, (u64, u64)) {
    let counter = |name| IntCounter::new(name, name).unwrap();
    let counters = ExportCounters {
        exported: counter("e"),
        dropped_queue: counter("q"),
        dropped_export: counter("x"),
        dropped_provider: counter("p"),
    };
    let (posts, mut posted) = mpsc::unbounded_channel();
    let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
    let connector = move |to: &Collector| -> Connecting {
        assert_eq!(&*to.cluster, "outbound|4318||tempo.tempo.svc.cluster.local");
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(collect(theirs, posts.clone(), Arc::clone(&answers)));
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn CollectorIo>) })
    };
    let both = Counters { spans: counters.clone(), records: counters.clone() };
    let exporters = Exporters::new(Handle::current(), Arc::new(connector), Duration::from_secs(3600), Origin::default(), both);
    let collector = Collector {
        cluster: "outbound|4318||tempo.tempo.svc.cluster.local".into(),
        authority: "tempo.tempo.svc.cluster.local".into(),
        call: Call::Http("/v1/traces?tenant=1".parse().unwrap()),
        headers: vec![("authorization".parse().unwrap(), "Bearer k".parse().unwrap())],
        timeout: Some(Duration::from_secs(2)),
    };
    let queue = exporters
        .spans(&SpanProvider { collector, dialect: Dialect::Otlp { service_name: "waypoint.emojivoto".into(), reads_environment: false } });
    // A span needs a name only.
    (0..5).for_each(|_| queue.push(|| b"\x2a\x01n"));
    exporters.shutdown(Instant::now() + Duration::from_secs(60)).await;
    let posted = std::iter::from_fn(|| posted.try_recv().ok()).collect();
    (posted, (counters.exported.get(), counters.dropped_export.get()))
}

#[tokio::test]
async fn spans_are_posted_to_the_path_with_the_headers_that_are_configured() {
    let (posted, counted) = exported(Vec::new()).await;
    let [(head, body)] = &posted[..] else { panic!("one request") };
    assert_eq!(head[0], "POST /v1/traces?tenant=1 HTTP/1.1");
    for line in ["host: tempo.tempo.svc.cluster.local", "content-type: application/x-protobuf", "authorization: Bearer k"] {
        assert!(head.iter().any(|other| other == line), "{line} in {head:?}");
    }
    let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
    let spans = &request.resource_spans[0].scope_spans[0].spans;
    assert_eq!((spans.len(), spans[0].name.as_str()), (5, "n"));
    assert_eq!(request.resource_spans[0].resource.as_ref().unwrap().attributes[0].key, "service.name");
    assert_eq!(counted, (5, 0));
}

/// OTLP specification, "OTLP/HTTP response": which statuses a client repeats.
#[tokio::test(start_paused = true)]
async fn a_post_is_repeated_only_after_statuses_that_otlp_calls_retryable() {
    for status in ["429 Too Many Requests", "502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout"] {
        let (posted, counted) = exported(vec![answer(status, b"")]).await;
        assert_eq!((posted.len(), counted), (2, (5, 0)), "{status}");
        assert_eq!(posted[0], posted[1]);
    }
    for status in ["400 Bad Request", "401 Unauthorized", "404 Not Found", "500 Internal Server Error", "301 Moved Permanently"] {
        let (posted, counted) = exported(vec![answer(status, b"")]).await;
        assert_eq!((posted.len(), counted), (1, (0, 5)), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_asks_for_time_gets_it_but_no_more_than_a_call_may_take() {
    let begin = Instant::now();
    let (posted, counted) = exported(vec![b"HTTP/1.1 429 Wait\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n".to_vec()]).await;
    assert_eq!((posted.len(), counted), (2, (5, 0)));
    assert!(begin.elapsed() >= Duration::from_secs(3));
    let forever = format!("HTTP/1.1 429 Wait\r\nretry-after: {}\r\ncontent-length: 0\r\n\r\n", u64::MAX);
    assert_eq!(exported(vec![forever.into_bytes()]).await.1, (0, 5));
}

#[tokio::test]
async fn spans_that_a_collector_rejects_in_its_answer_are_lost() {
    let partial = ExportTracePartialSuccess { rejected_spans: 2, error_message: "too old".to_owned() };
    let body = ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    assert_eq!(exported(vec![answer("200 OK", &body)]).await.1, (3, 2));
    // An answer that cannot be read was a good one by its status.
    assert_eq!(exported(vec![answer("200 OK", b"\xff\xff")]).await.1, (5, 0));
}
