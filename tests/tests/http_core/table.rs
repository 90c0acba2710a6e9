//! How a row is run over HTTP/1.1 on both sides.

use std::future::pending;

use tests::http_rows::Script;
pub use tests::http_rows::{OK, Outcome, Row, Want, misses, row};
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;
use waypoint::http::{Protocol, ServerOptions, serve};

use crate::forward::{ClientEngine, Forward};
use crate::pingora;
use crate::wire::{Drip, PIPE_BYTES, QUIET, Seen, act};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEngine {
    Hyper,
    /// As `Hyper`, but whatever the client sends comes in single bytes.
    HyperByteByByte,
    Pingora,
}

/// Runs a row with these engines.
pub async fn run(row: &Row, server: ServerEngine, client_engine: ClientEngine) -> Outcome {
    let (forward, upstreams) = Forward::new(Protocol::Http1, client_engine);
    let (client, ours) = duplex(PIPE_BYTES);
    let upstream = tokio::spawn(serve_upstream(upstreams, row.upstream.scripts()));
    let serving = tokio::spawn(async move {
        match server {
            ServerEngine::Hyper => {
                let _ended = serve(ours, Protocol::Http1, forward, &ServerOptions::default(), pending()).await;
            }
            ServerEngine::HyperByteByByte => {
                let _ended = serve(Drip(ours), Protocol::Http1, forward, &ServerOptions::default(), pending()).await;
            }
            ServerEngine::Pingora => pingora::serve(ours, forward).await,
        }
    });
    let client = act(client, row.client.clone()).await;
    serving.abort();
    let _ = serving.await;
    Outcome::of(client, upstream.await.unwrap())
}

async fn serve_upstream(mut upstreams: mpsc::UnboundedReceiver<DuplexStream>, mut next: impl FnMut() -> Script) -> Vec<Seen> {
    let mut connections = Vec::new();
    while let Some(io) = upstreams.recv().await {
        connections.push(tokio::spawn(next().serve(io, QUIET)));
    }
    let mut seen = Vec::new();
    for connection in connections {
        seen.push(connection.await.unwrap());
    }
    seen
}
