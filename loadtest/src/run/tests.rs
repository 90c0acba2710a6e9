//! Whole runs against a workload in this process.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::mesh::testing::{Mesh, workload};
use crate::mesh::workload::Refusal;

fn load() -> Load {
    Load {
        streams: 4,
        connections: 2,
        requests_per_stream: 1,
        duration: Duration::from_millis(200),
        warmup: Duration::ZERO,
        rate: None,
        protocol: Protocol::Http1,
        body_bytes: 0,
        path: "/bytes/1024".to_owned(),
        host: None,
        headers: Vec::new(),
        timeout: Duration::from_secs(10),
        source: None,
    }
}

async fn outcome(load: Load, refusal: Refusal) -> Outcome {
    let mesh = Mesh::new();
    let address = workload(&mesh, refusal).await;
    let plan = Plan::new(load, "10.0.0.1:80", Vec::new()).unwrap();
    let pool = Pool::new(mesh.connector("client"), address, plan.load.connections);
    drive(&plan, pool, &ProgressBar::hidden()).await.unwrap()
}

#[tokio::test]
async fn a_closed_loop_is_answered_without_failures_in_every_protocol() {
    for (protocol, requests_per_stream) in [(Protocol::Http1, 1), (Protocol::Http2, 3), (Protocol::Grpc, 3)] {
        let outcome = outcome(Load { protocol, requests_per_stream, body_bytes: 100, ..load() }, Refusal::default()).await;
        assert!(outcome.completed > 0, "{protocol:?}");
        assert!(outcome.summary.failures.is_empty(), "{protocol:?}: {:?}", outcome.summary.failures);
        assert!(outcome.summary.p50_us > 0.0);
        assert_eq!(outcome.processes.last().unwrap().name, "driver");
    }
}

#[tokio::test]
async fn an_open_loop_sends_what_was_scheduled_and_no_more() {
    let rate = NonZeroU32::new(500);
    let outcome = outcome(Load { rate, warmup: Duration::from_millis(100), ..load() }, Refusal::default()).await;
    assert_eq!(outcome.scheduled, Some(100));
    assert_eq!(outcome.summary.ok, 100, "{:?}", outcome.summary.failures);
}

#[tokio::test]
async fn a_slow_server_does_not_slow_the_clock() {
    // Four streams with 100 ms each answer 40 requests a second; 400 are scheduled.
    let rate = NonZeroU32::new(400);
    let outcome =
        outcome(Load { rate, duration: Duration::from_secs(1), path: "/delay/100".to_owned(), ..load() }, Refusal::default()).await;
    assert_eq!(outcome.scheduled, Some(400));
    let unfinished = outcome.summary.failures["unfinished"];
    assert_eq!(outcome.summary.ok + unfinished, 400, "all that was due is accounted for");
    assert!(unfinished > 200, "{unfinished}");
    assert!(outcome.summary.p90_us > 1_000_000.0, "latency counts from the due time: {}", outcome.summary.p90_us);
}

#[tokio::test]
async fn failures_are_named_by_status_and_by_refusal() {
    let unavailable = outcome(Load { path: "/status/503".to_owned(), ..load() }, Refusal::default()).await;
    assert_eq!(unavailable.summary.ok, 0);
    assert!(unavailable.summary.failures["status_503"] > 0);
    let refused = outcome(load(), Refusal { refuse_first: None, connect_status: Some(http::StatusCode::UNAUTHORIZED) }).await;
    assert!(refused.summary.failures["connect_401"] > 0);
    let grpc = outcome(Load { protocol: Protocol::Grpc, path: "/status/14".to_owned(), ..load() }, Refusal::default()).await;
    assert!(grpc.summary.failures["grpc_14"] > 0);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_a_timeout() {
    let slow = Load { path: "/delay/60000".to_owned(), timeout: Duration::from_millis(50), ..load() };
    let outcome = outcome(slow, Refusal::default()).await;
    assert!(outcome.summary.failures["timeout"] > 0);
}

#[tokio::test]
async fn a_peer_of_another_mesh_is_refused() {
    let (mesh, foreign) = (Mesh::new(), Mesh::new());
    let address = workload(&mesh, Refusal::default()).await;
    let plan = Plan::new(load(), "10.0.0.1:80", Vec::new()).unwrap();
    let pool = Pool::new(foreign.connector("client"), address, 1);
    assert!(drive(&plan, pool, &ProgressBar::hidden()).await.is_err());
}

#[tokio::test]
async fn another_identity_than_expected_is_refused() {
    let mesh = Mesh::new();
    let address = workload(&mesh, Refusal::default()).await;
    let mut connector = mesh.connector("client");
    connector.peer_identity = Some("spiffe://cluster.local/ns/a/sa/other".to_owned());
    assert!(connector.connect(address).await.is_err());
    connector.peer_identity = Some("spiffe://cluster.local/ns/a/sa/pod".to_owned());
    connector.connect(address).await.unwrap();
}

#[test]
fn http1_has_one_request_at_a_time() {
    assert!(Plan::new(Load { requests_per_stream: 2, ..load() }, "a:1", Vec::new()).is_err());
    assert!(Plan::new(Load { streams: 0, ..load() }, "a:1", Vec::new()).is_err());
}

#[test]
fn a_process_may_be_named() {
    assert_eq!(parse_process("proxy=12"), Ok(WatchedProcess { name: "proxy".to_owned(), pid: 12 }));
    assert_eq!(parse_process("12").map(|process| process.name), Ok("12".to_owned()));
    assert!(parse_process("proxy").is_err());
}
