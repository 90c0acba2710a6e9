//! TCP chains: when a silent connection is closed, and which endpoint a connection reaches.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::Peer;
use tests::scenario::{DB, DB_CHAIN, Mesh, REVIEWS_CHAIN, Scenario};
use tests::workload::{App, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const AUTO_TCP: &str = "inbound-vip|7000|tcp|auto.shop.svc.cluster.local";
const DEADLINE: Duration = Duration::from_secs(15);
const IDLE_LIMIT: Duration = Duration::from_secs(1);
/// Well below the interval in which connections report, 5 s.
const IDLE_LATE: Duration = Duration::from_secs(3);

/// Edits the TCP proxy of `db`.
fn proxy(scenario: &mut Scenario, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
    edit(&mut filters.last_mut().context("no proxy")?["typed_config"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_closed_an_idle_timeout_after_its_last_byte_alike() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.keep_endpoints(DB_CHAIN, 1)?;
        proxy(scenario, |proxy| proxy["idle_timeout"] = json!("1s"))
    };
    let mesh = Mesh::builder("01-plain")?.edit(edit)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let peer = mesh.peer("frontend-0")?;
    for at in [mesh.hbone(), envoy.hbone()] {
        for n_bytes in [0, 3] {
            let mut stream = peer.connect(at).await?.tunnel(DB).await?;
            let mut greeting = [0; 6];
            stream.read_exact(&mut greeting).await?;
            let mut last = Instant::now();
            for _ in 0..n_bytes {
                // Less than the limit each time, more than it together.
                tokio::time::sleep(IDLE_LIMIT * 7 / 10).await;
                stream.write_all(b"x").await?;
                stream.flush().await?;
                last = Instant::now();
            }
            // It ends, or is reset.
            let mut rest = Vec::new();
            let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await.context("it lasts")?;
            let silent = last.elapsed();
            // What reached the proxy some milliseconds ago has been seen here later.
            assert!(silent >= IDLE_LIMIT - Duration::from_millis(100) && silent <= IDLE_LATE, "{at}, {n_bytes} bytes: {silent:?}");
            assert_eq!(rest, b"");
        }
    }
    Ok(())
}

/// Connects, and waits for the endpoint's greeting.
async fn visit(peer: &Peer, mesh: &Mesh) -> Result<()> {
    let mut stream = peer.connect(mesh.hbone()).await?.tunnel(DB).await?;
    let mut greeting = [0; 6];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut greeting)).await.context("no greeting")??;
    Ok(())
}

fn visits(pods: &[Workload]) -> Vec<usize> {
    pods.iter().map(|pod| pod.record().connects().len()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_shared_among_clusters_by_their_weights() -> Result<()> {
    let clusters = json!({"clusters": [{"name": DB_CHAIN, "weight": 1}, {"name": AUTO_TCP, "weight": 3}]});
    let edit = |scenario: &mut Scenario| {
        proxy(scenario, |proxy| {
            drop(proxy.as_object_mut().map(|proxy| proxy.remove("cluster")));
            proxy["weighted_clusters"] = clusters;
        })
    };
    let mesh = Mesh::builder("01-plain")?.edit(edit)?.start().await?;
    let greets = App::Tcp { greets: true };
    let pods = [mesh.pod("db-v1-1", greets).await?, mesh.pod("auto-v1-1", greets).await?];
    let peer = mesh.peer("frontend-0")?;
    for _ in 0..20 {
        visit(&peer, &mesh).await?;
    }
    assert_eq!(visits(&pods), [5, 15]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_address_reach_one_endpoint_where_that_is_asked_for() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.resource(Kind::Cluster, REVIEWS_CHAIN)?["lb_policy"] = json!("MAGLEV");
        proxy(scenario, |proxy| {
            proxy["cluster"] = json!(REVIEWS_CHAIN);
            proxy["hash_policy"] = json!([{"source_ip": {}}]);
        })
    };
    let mesh = Mesh::builder("01-plain")?.edit(edit)?.start().await?;
    let greets = App::Tcp { greets: true };
    let mut pods = Vec::new();
    for name in ["reviews-v1-1", "reviews-v2-2", "reviews-v3-3"] {
        pods.push(mesh.pod(name, greets).await?);
    }
    let names = [
        "frontend-0",
        "batch-0",
        "web-v1-1",
        "web-v1-2",
        "ratings-v1-1",
        "ratings-v1-2",
        "auto-v1-1",
        "secure-v1-1",
        "db-v1-1",
        "legacy-v1-1",
    ];
    for name in names {
        let (peer, before) = (mesh.peer(name)?, visits(&pods));
        for _ in 0..4 {
            visit(&peer, &mesh).await?;
        }
        let mut here: Vec<_> = visits(&pods).iter().zip(&before).map(|(now, before)| now - before).collect();
        here.sort_unstable();
        assert_eq!(here, [0, 0, 4], "{name}");
    }
    assert!(visits(&pods).iter().filter(|visits| **visits > 0).count() > 1, "not all addresses have one endpoint");
    Ok(())
}
