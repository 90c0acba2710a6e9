//! Whole runs against a workload in this process.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::num::{NonZeroU32, NonZeroU64};

use super::outcome::{IdleOutcome, RequestsOutcome, StalledOutcome};
use super::*;
use crate::load::{LoadOptions, Protocol};
use crate::mesh::testing::{Mesh, workload};
use crate::mesh::workload::Refusal;

fn load() -> Load {
    let options = LoadOptions {
        streams: Some(4),
        connections: Some(2),
        duration: Some(Duration::from_millis(200)),
        warmup: Some(Duration::ZERO),
        hold: Some(Duration::from_millis(200)),
        ..LoadOptions::default()
    };
    options.complete().unwrap()
}

async fn measured(load: Load, refusal: Refusal) -> Outcome {
    let mesh = Mesh::new();
    let address = workload(&mesh, refusal).await;
    let plan = Plan { load, target: "10.0.0.1:80".to_owned(), processes: Vec::new() };
    let pool = |connections| Pool::new(mesh.connector("client"), address, connections);
    measure(&plan, pool(plan.load.connections), Some(&pool(1)), &ProgressBar::hidden()).await.unwrap()
}

async fn outcome(load: Load, refusal: Refusal) -> RequestsOutcome {
    let Outcome::Requests(outcome) = measured(load, refusal).await else { panic!("another kind") };
    outcome
}

async fn idle(load: Load, refusal: Refusal) -> IdleOutcome {
    let Outcome::Idle(outcome) = measured(Load { kind: Kind::Idle, ..load }, refusal).await else { panic!("another kind") };
    outcome
}

async fn stalled(load: Load) -> StalledOutcome {
    let load = Load { kind: Kind::Stalled, ..load };
    let Outcome::Stalled(outcome) = measured(load, Refusal::default()).await else { panic!("another kind") };
    outcome
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
    let plan = Plan { load: load(), target: "10.0.0.1:80".to_owned(), processes: Vec::new() };
    let pool = Pool::new(foreign.connector("client"), address, 1);
    assert!(measure(&plan, pool, None, &ProgressBar::hidden()).await.is_err());
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

#[tokio::test]
async fn every_request_on_the_wire_is_counted_also_those_outside_the_window() {
    let outcome = outcome(Load { warmup: Duration::from_millis(50), ..load() }, Refusal::default()).await;
    assert!(outcome.requests_sent > outcome.completed, "{} sent, {} completed in the window", outcome.requests_sent, outcome.completed);
    let scheduled = Load { rate: NonZeroU32::new(500), warmup: Duration::from_millis(100), ..load() };
    assert_eq!(super::tests::outcome(scheduled, Refusal::default()).await.requests_sent, 150, "all that was scheduled, and the warmup");
}

#[tokio::test]
async fn bodies_of_both_directions_are_counted() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let outcome = outcome(Load { protocol, path: "/bytes/1000".to_owned(), body_bytes: 3000, ..load() }, Refusal::default()).await;
        // What is in flight at either end of the window is counted by its bytes, and as a request only at its end.
        let (expected, in_flight_max) = (outcome.completed * 4000, 4 * 4000);
        assert!(outcome.body_bytes.abs_diff(expected) <= in_flight_max, "{} bytes, {expected} expected", outcome.body_bytes);
        assert!(outcome.processes[0].cpu_seconds_per_gib.is_some());
    }
}

#[tokio::test]
async fn an_upload_larger_than_every_window_is_swallowed() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let upload = Load { protocol, path: "/sink".to_owned(), body_bytes: 20_000_000, duration: Duration::from_secs(1), ..load() };
        let outcome = outcome(upload, Refusal::default()).await;
        assert!(outcome.completed > 0 && outcome.summary.failures.is_empty(), "{protocol:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn each_message_of_a_grpc_stream_counts_and_a_call_is_one_request() {
    let messages_per_call = NonZeroU64::new(10).unwrap();
    let streaming = Load { protocol: Protocol::Grpc, messages_per_call, body_bytes: 100, path: "/echo".to_owned(), ..load() };
    let outcome = outcome(streaming, Refusal::default()).await;
    assert!(outcome.summary.failures.is_empty(), "{:?}", outcome.summary.failures);
    let calls_max = outcome.completed / 10 + 2 * 4;
    assert!(outcome.completed > 10 && outcome.requests_sent <= calls_max, "{} of {calls_max}", outcome.requests_sent);
}

#[tokio::test]
async fn a_message_that_does_not_come_back_is_a_timeout() {
    // The app answers a status when the whole request is there, which a stream's never is.
    let (messages_per_call, timeout) = (NonZeroU64::new(10).unwrap(), Duration::from_millis(50));
    let streaming = Load { protocol: Protocol::Grpc, messages_per_call, timeout, path: "/status/14".to_owned(), ..load() };
    let outcome = outcome(streaming, Refusal::default()).await;
    assert!(outcome.summary.failures["timeout"] > 0, "{:?}", outcome.summary.failures);
    assert_eq!(outcome.completed, 0);
}

#[tokio::test]
async fn short_tunnels_and_short_connections_open_one_for_each_request() {
    for tunnels_per_connection in [None, NonZeroU64::new(1), NonZeroU64::new(3)] {
        let mesh = Mesh::new();
        let address = workload(&mesh, Refusal::default()).await;
        let load = Load { requests_per_tunnel: NonZeroU64::new(2), tunnels_per_connection, ..load() };
        let plan = Plan { load, target: "10.0.0.1:80".to_owned(), processes: Vec::new() };
        let pool = || Pool::new(mesh.connector("client"), address, 1);
        let Outcome::Requests(outcome) = measure(&plan, pool(), None, &ProgressBar::hidden()).await.unwrap() else { panic!("requests") };
        assert!(outcome.completed > 0 && outcome.summary.failures.is_empty(), "{outcome:?}");
        let counts = stalled::counts(&pool(), &plan).await.unwrap();
        let tunnels = counts["connects_accepted"].as_u64().unwrap() - 1;
        assert!(tunnels.abs_diff(outcome.requests_sent.div_ceil(2)) <= 4, "{tunnels} tunnels, {} requests", outcome.requests_sent);
    }
}

#[tokio::test]
async fn a_tunnel_of_its_own_counts_into_the_latency_of_its_request() {
    let refused = Refusal { refuse_first: Some(2), connect_status: None };
    let outcome = outcome(Load { requests_per_tunnel: NonZeroU64::new(1), ..load() }, refused).await;
    assert_eq!(outcome.summary.failures["connect_503"], 2, "and a refused one fails it");
    assert!(outcome.completed > 0);
}

#[tokio::test]
async fn idle_tunnels_are_opened_held_and_still_usable() {
    let outcome = idle(Load { streams: 300, ..load() }, Refusal { refuse_first: Some(3), connect_status: None }).await;
    assert_eq!((outcome.streams, outcome.opened, outcome.failures["connect_503"]), (300, 297, 3));
    assert!(outcome.sampled > 100 && outcome.sampled == outcome.usable, "{} of {}", outcome.usable, outcome.sampled);
    assert_eq!(outcome.requests_sent, 297 + u64::try_from(outcome.sampled).unwrap());
    let driver = outcome.processes.last().unwrap();
    assert!(driver.opened.rss_bytes > 0 && driver.rss_bytes_per_stream.is_some());
}

#[tokio::test]
async fn a_stalled_reader_gets_no_more_than_its_window() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let outcome = stalled(Load { protocol, path: "/bytes/1073741824".to_owned(), ..load() }).await;
        assert_eq!((outcome.heads, outcome.requests_sent), (4, 4), "{:?}", outcome.failures);
        let sent = outcome.workload_body_bytes_sent.unwrap();
        // 16 MiB a connection, two connections, and what the app's HTTP holds.
        assert!(sent > 0 && sent < 48 * 1024 * 1024, "{protocol:?}: {sent}");
        let driver = outcome.processes.last().unwrap();
        assert!(driver.highest.rss_bytes > 0 && driver.closed.rss_bytes > 0);
    }
}

#[test]
fn a_process_may_be_named() {
    assert_eq!(parse_process("proxy=12"), Ok(WatchedProcess { name: "proxy".to_owned(), pid: 12 }));
    assert_eq!(parse_process("12").map(|process| process.name), Ok("12".to_owned()));
    assert!(parse_process("proxy").is_err());
}
