//! Whole requests: HTTP/1.1 in a tunnel, through routes, policies, an attempt and a session, to the answer and its record.
//!
//! `request` and `request_bare` have pipes in memory in place of both HBONE connections, on one thread with the client and the
//! application; these do as little as they can, but they are in the count.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use arc_swap::ArcSwap;
use model::authority::Authority;
use model::baggage::Baggage;
use model::identity::SpiffeId;
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tests::scenario::{Scenario, WEB, WEB_CHAIN};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Builder;
use waypoint::drain::{Drain, drain};
use waypoint::hbone::ConnectionFacts;
use waypoint::hbone::pool::{Pool, PoolOptions};
use waypoint::http::{ClientOptions, ClientSession, Protocol};
use waypoint::request::{ChainOfTunnel, Inspection, TunnelContext};
use waypoint::state::published::{ClusterEntry, Published};
use waypoint::tls::originate::Originator;
use waypoint::tls::verify::PeerMatcher;
use waypoint::tls::{MeshTls, TlsFacts};
use waypoint::tunnel::serve_http;
use waypoint::upstream::connect::Dialer;
use waypoint::upstream::introduction::Introduction;
use waypoint::worker::Worker;

use crate::mesh::{self, allow};
use crate::sinks::Sinks;
use crate::window::{WINDOWS, Windows};

/// Bytes in a pipe before its writer waits.
const PIPE_BYTES: usize = 64 * 1024;
/// Requests in a window: fewer than make a buffer of lines or a batch of spans leave by itself.
pub const REQUESTS: u64 = 100;

const REQUEST: &[u8] = b"GET /ok?a=1 HTTP/1.1\r\nhost: web.shop\r\nuser-agent: costs/1\r\naccept: */*\r\n\
    accept-encoding: gzip\r\nx-user: alice\r\n\r\n";
const RESPONSE_HEAD: &str = "HTTP/1.1 200 OK\r\ndate: Wed, 25 Nov 2026 10:00:00 GMT\r\ncontent-type: application/json\r\n\
    content-length: 1024\r\nserver: web\r\n\r\n";
const BODY_BYTES: usize = 1024;
/// How the body ends, by which the client knows that all of it is there.
const BODY_END: &[u8] = b"the end\n";

/// Everything on: metrics, a JSON line, a span, and a filter of three ALLOW policies.
pub fn full(windows: &mut Windows) -> Result<()> {
    let mut scenario = mesh::recorded()?;
    scenario.add_http_filters(WEB_CHAIN, vec![allow(3, 1)])?;
    in_memory(&scenario, windows, true)
}

/// No telemetry and no policy.
pub fn bare(windows: &mut Windows) -> Result<()> {
    in_memory(&without_telemetry()?, windows, false)
}

fn without_telemetry() -> Result<Scenario> {
    let mut scenario = mesh::recorded()?;
    let http = scenario.http(WEB_CHAIN)?;
    http["access_log"] = json!([]);
    http.as_object_mut().context("an object")?.remove("tracing");
    let filters = http["http_filters"].as_array_mut().context("filters")?;
    filters.retain(|filter| filter["name"] != "istio.stats");
    Ok(scenario)
}

fn in_memory(scenario: &Scenario, windows: &mut Windows, is_recorded: bool) -> Result<()> {
    let sinks = Sinks::new()?;
    let published = mesh::publish(scenario, &sinks.telemetry)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (_drain, mut client) = runtime.block_on(start(&published, &sinks))?;
    for window in 0..WINDOWS {
        let mut outcome = Ok(());
        windows.number(window, REQUESTS, || outcome = runtime.block_on(ask(&mut client)));
        outcome?;
        let recorded = if is_recorded { (window + 1) * REQUESTS } else { 0 };
        sinks.settle(recorded, recorded)?;
    }
    Ok(())
}

/// A tunnel to `web` with a client at one end, and an application behind the only endpoint. Nothing is dialled: the session is there.
async fn start(published: &Arc<Published>, sinks: &Sinks) -> Result<(Drain, DuplexStream)> {
    let tls = Arc::new(MeshTls::new());
    let dialer = Dialer {
        pool: Pool::new(PoolOptions::default(), Arc::new(())),
        originator: Arc::new(Originator::new(Arc::clone(&tls), Arc::default())),
        tls,
        accepted: Arc::new(ArcSwap::from_pointee(PeerMatcher::any())),
        introduction: Introduction::new("", &Baggage::default()),
    };
    let worker = Arc::new(Worker::new(Arc::clone(published), dialer, sinks.telemetry.worker()));
    let Some(ClusterEntry::Served(cluster)) = published.cluster(WEB_CHAIN) else { bail!("no cluster of web") };
    let endpoint = cluster.endpoints.load().all.entries().next().context("no endpoint")?.endpoint.clone();
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let (session, driver) = ClientSession::handshake(near, Protocol::Http1, &ClientOptions::default()).await?;
    tokio::spawn(driver);
    tokio::spawn(serve_application(far));
    worker.sessions.put_idle(&cluster, &endpoint, session);

    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let (drain, watch) = drain();
    let tunnel = tunnel(published)?;
    tokio::spawn(async move { serve_http(server, (Protocol::Http1, None), tunnel, &worker, watch).await });
    Ok((drain, client))
}

/// What a CONNECT of `clients/frontend-0` for `web` is known by.
fn tunnel(published: &Published) -> Result<Arc<TunnelContext>> {
    let peer_address: SocketAddr = "10.244.9.1:33952".parse()?;
    let connection = ConnectionFacts {
        peer_address,
        local_address: "10.244.0.100:15008".parse()?,
        peer: SpiffeId::new("cluster.local", "clients", "frontend")?,
        local: SpiffeId::new("cluster.local", "shop", "waypoint")?,
        tls: TlsFacts {
            version: "TLSv1.3",
            cipher_suite: "TLS13_AES_256_GCM_SHA384",
            group: "X25519",
            peer_certificate: CertificateDer::from(Vec::new()),
        },
    };
    let source = published.workload(peer_address.ip());
    ensure!(source.as_ref().is_some_and(|source| source.identity == connection.peer), "the client is not in the recording: {source:?}");
    Ok(Arc::new(TunnelContext {
        served: ChainOfTunnel::new(mesh::web(published)?, published.generation_number()),
        connection: Arc::new(connection),
        target: Authority::parse(WEB)?,
        source,
        inspection: Inspection::Off,
        began: tokio::time::Instant::now(),
    }))
}

async fn serve_application(mut io: DuplexStream) {
    let mut response = RESPONSE_HEAD.as_bytes().to_vec();
    response.resize(RESPONSE_HEAD.len() + BODY_BYTES - BODY_END.len(), b'.');
    response.extend_from_slice(BODY_END);
    let mut buffer = vec![0; PIPE_BYTES];
    let mut filled = 0;
    // An end that the row did not expect is seen by its client.
    while let Ok(n_bytes @ 1..) = io.read(&mut buffer[filled..]).await {
        filled += n_bytes;
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            if io.write_all(&response).await.is_err() {
                return;
            }
        }
    }
}

/// Sends the window's requests, one after another.
async fn ask(client: &mut DuplexStream) -> Result<()> {
    let mut buffer = [0; 8 * 1024];
    for _ in 0..REQUESTS {
        client.write_all(REQUEST).await?;
        let mut filled = 0;
        while !buffer[..filled].ends_with(BODY_END) {
            let n_bytes = client.read(&mut buffer[filled..]).await?;
            ensure!(n_bytes > 0, "cut after {}", String::from_utf8_lossy(&buffer[..filled]));
            filled += n_bytes;
            if !buffer.starts_with(b"HTTP/1.1 200") {
                bail!("answered {}", String::from_utf8_lossy(&buffer[..filled]));
            }
        }
    }
    Ok(())
}
