//! The rows over HTTP/1.1, and for each engine the rows it fails.

mod smuggling;

use tests::http_rows::{framing, messages};

use crate::forward::ClientEngine;
use crate::table::{Row, ServerEngine, misses, run};

/// Virtual time a row may take at most.
const ROW_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(600);

fn all() -> Vec<Row> {
    messages::rows().into_iter().chain(framing::rows()).chain(smuggling::rows()).collect()
}

/// The names of the rows that fail, after printing what each missed.
async fn failing(server: ServerEngine, client: ClientEngine) -> Vec<&'static str> {
    let mut failing = Vec::new();
    for row in all() {
        let outcome = tokio::time::timeout(ROW_TIME_MAX, run(&row, server, client)).await;
        let Ok(outcome) = outcome else {
            println!("{}: never ended", row.name);
            failing.push(row.name);
            continue;
        };
        let misses = misses(&row, &outcome);
        if !misses.is_empty() {
            println!("{} ({})\n  misses {misses:?}", row.name, row.source);
            println!("  client saw {:.800} ended {}", format!("{:?}", outcome.client.text()), outcome.client.ended);
            let upstream = format!("{:?}", outcome.upstream.text());
            println!("  upstream saw {upstream:.800} ended {} connections {}", outcome.upstream.ended, outcome.n_connections);
            failing.push(row.name);
        }
    }
    failing
}

#[test]
fn names_of_rows_are_unique() {
    let mut names: Vec<_> = all().iter().map(|row| row.name).collect();
    let n_rows = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), n_rows);
}

#[tokio::test(start_paused = true)]
async fn table_over_hyper_on_both_sides() {
    assert_eq!(failing(ServerEngine::Hyper, ClientEngine::Hyper).await, FAILS_HYPER);
}

#[tokio::test(start_paused = true)]
async fn table_over_hyper_byte_by_byte() {
    assert_eq!(failing(ServerEngine::HyperByteByByte, ClientEngine::Hyper).await, FAILS_BYTE_BY_BYTE);
}

#[tokio::test(start_paused = true)]
async fn table_over_pingoras_server_session() {
    assert_eq!(failing(ServerEngine::Pingora, ClientEngine::Hyper).await, FAILS_PINGORA_SERVER);
}

#[tokio::test(start_paused = true)]
async fn table_over_pingoras_client_session() {
    assert_eq!(failing(ServerEngine::Hyper, ClientEngine::Pingora).await, FAILS_PINGORA_CLIENT);
}

/// hyper's codec on both sides, as the waypoint runs.
const FAILS_HYPER: &[&str] = &[];

/// Single bytes become chunks of one byte, which these rows do not expect.
const FAILS_BYTE_BY_BYTE: &[&str] = &["a chunked request stays chunked", "a chunked GET keeps its body"];

/// pingora's server session. The WebSocket fails because upgrades are not adapted here; pingora can do them.
const FAILS_PINGORA_SERVER: &[&str] = &[
    "date, server and reason of the upstream are kept",
    "nothing is added to a response",
    "a WebSocket passes both ways and half-closes",
    "a head of 100 KiB is refused",
    "101 fields are refused",
    "trailers of a request",
    "trailers of a response, to a client that takes them",
    "a chunk extension with LF",
    "bare CR in the request line",
    "two spaces in the request line",
    "a host that differs from the target is ignored",
    "a space in the target",
    "a target without a slash",
];

/// pingora's client session. The WebSocket as above; an idle connection's end is watched by pingora's pool, not by its session.
const FAILS_PINGORA_CLIENT: &[&str] = &[
    "date, server and reason of the upstream are kept",
    "an upstream connection that ended while idle is replaced",
    "a WebSocket passes both ways and half-closes",
    "trailers of a request",
    "trailers of a response, to a client that takes them",
    "a response with a length and a coding is refused",
    "a response with obs-fold is refused",
];
