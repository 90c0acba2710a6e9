//! Many of something: what one of it takes is known and bounded.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Result;
use http::StatusCode;
use tests::fake_istiod::Kind;
use tests::pki::spiffe;
use tests::process::STATS_PORT;
use tests::scale::{add_services, chain_of, change_route, three_policies};
use tests::scenario::{Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PODS: u8 = 200;
const WORKERS: u64 = 4;
/// Where the pods of `web` are, behind those of the recording.
const POD_BLOCK: u8 = 90;

/// Gives `web` one endpoint for each of the pods, shaped like its first.
fn spread_over_pods(scenario: &mut Scenario, addresses: &[String]) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let endpoints = &mut scenario.resource(Kind::Endpoints, WEB_CHAIN)?["endpoints"][0]["lb_endpoints"];
    let first = endpoints[0].clone();
    let all = addresses.iter().map(|address| {
        let mut endpoint = first.clone();
        endpoint["endpoint"]["address"]["envoy_internal_address"]["endpoint_id"] = format!("{address}:8080").into();
        endpoint["metadata"]["filter_metadata"]["envoy.filters.listener.original_dst"]["local"] = format!("{address}:8080").into();
        endpoint
    });
    *endpoints = all.collect::<Vec<_>>().into();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_one_connection_to_each_of_two_hundred_pods_and_they_are_counted() -> Result<()> {
    let builder = Mesh::builder("07-telemetry")?.proxy_config("concurrency", WORKERS.into()).quiet();
    let addresses: Vec<IpAddr> = (1..=PODS).map(|last| builder.net().pod(POD_BLOCK, last).into()).collect();
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let mesh = builder.edit(|scenario| spread_over_pods(scenario, &texts))?.start().await?;
    let tls = mesh.pki.workload_config(&mesh.pki.member(&spiffe("shop", "web"))?)?;
    let mut pods = Vec::new();
    for address in addresses {
        pods.push(Workload::hbone(&address.to_string(), address, std::sync::Arc::clone(&tls), App::Http).await?);
    }
    let mut clients = Vec::new();
    for _ in 0..16 {
        let connection = mesh.connect("frontend-0").await?;
        clients.push(tokio::spawn(async move {
            let mut seen = BTreeSet::new();
            for _ in 0..PODS {
                let answer = connection.get(WEB, "/").await?;
                assert_eq!(answer.status, StatusCode::OK);
                seen.insert(answer.json()["pod"].to_string());
            }
            anyhow::Ok((seen, connection))
        }));
    }
    let (mut seen, mut open) = (BTreeSet::new(), Vec::new());
    for client in clients {
        let (pods, connection) = client.await??;
        seen.extend(pods);
        open.push(connection);
    }
    assert!(seen.len() > usize::from(PODS) * 9 / 10, "{} pods were asked", seen.len());
    let n_connections: u64 = pods.iter().map(|pod| pod.record().connections()).sum();
    assert!(pods.iter().all(|pod| pod.record().connections() <= WORKERS), "one a worker");
    let dialled = format!("waypoint_hbone_connections{{side=\"dialled\"}} {n_connections}");
    mesh.waypoint.metric("connections are counted", |line| line == dialled).await?;
    let accepted = mesh.waypoint.metrics().await?;
    let accepted = accepted.lines().find(|line| line.starts_with("waypoint_hbone_connections{side=\"accepted\"}"));
    assert_eq!(accepted.and_then(|line| line.rsplit_once(' ')).map(|(_, count)| count), Some(open.len().to_string().as_str()));
    Ok(())
}

/// A scrape that is answered and not read.
async fn begin_scrape(mesh: &Mesh, accepts: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(mesh.waypoint.port(STATS_PORT)).await?;
    let request = format!("GET /stats/prometheus HTTP/1.1\r\nhost: waypoint\r\naccept-encoding: {accepts}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut first = [0; 12];
    stream.read_exact(&mut first).await?;
    assert_eq!(&first, b"HTTP/1.1 200");
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_scrapes_of_ten_thousand_series_at_once_add_a_bounded_amount() -> Result<()> {
    const SERVICES: u8 = 200;
    const SERIES_MIN: usize = 10_000;
    /// Beside the pages themselves.
    const GROWTH_BYTES_MAX: u64 = 8 * 1024 * 1024;
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        add_services(scenario, SERVICES.into())
    })?;
    let mesh = builder.quiet().start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    for number in 0..SERVICES {
        let answer = connection.get(&format!("10.112.0.{number}:80"), "/").await?;
        assert_eq!(answer.status, StatusCode::OK, "{number}");
    }
    let page = mesh.waypoint.metrics().await?;
    let n_series = page.lines().filter(|line| line.starts_with("istio_")).count();
    assert!(n_series >= SERIES_MIN, "{n_series} series");
    let page_bytes = u64::try_from(page.len())?;
    // Prometheus takes gzip; its page is a small part of the text.
    for (accepts, pages_bytes) in [("gzip", page_bytes / 5), ("identity", page_bytes * 2)] {
        let before = mesh.waypoint.resident_bytes()?;
        let scrapes = (begin_scrape(&mesh, accepts).await?, begin_scrape(&mesh, accepts).await?);
        let growth = mesh.waypoint.resident_bytes()?.saturating_sub(before);
        println!("{n_series} series, {} KiB; two scrapes by {accepts}: + {} KiB", page_bytes / 1024, growth / 1024);
        assert!(growth <= pages_bytes + GROWTH_BYTES_MAX, "{growth} bytes for two pages by {accepts}");
        for mut scrape in [scrapes.0, scrapes.1] {
            assert!(scrape.read_to_end(&mut Vec::new()).await? > 10_000, "the whole page comes");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_other_services_dial_nothing_and_leave_connections_as_they_are() -> Result<()> {
    const SERVICES: u32 = 20;
    const PUSHES: u32 = 25;
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        let of_web = scenario.http(WEB_CHAIN)?["http_filters"].clone();
        scenario.add_http_filters(WEB_CHAIN, vec![three_policies()])?;
        add_services(scenario, SERVICES)?;
        scenario.http(WEB_CHAIN)?["http_filters"] = of_web;
        Ok(())
    })?;
    let mut mesh = builder.proxy_config("concurrency", 1.into()).quiet().start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    assert_eq!(http.get("/before").await?.status, StatusCode::OK);
    let before = (web.record().connections(), web.record().connects().len());
    assert_eq!(before, (1, 1));
    for push in 0..PUSHES {
        // Each comes with the policies of all chains in another order; a cluster and endpoints change as well.
        mesh.push_accepted(|scenario| {
            scenario.resource(Kind::Cluster, &chain_of(push % SERVICES))?["connect_timeout"] = format!("{}s", push + 1).into();
            change_route(scenario, push % SERVICES, push + 1)
        })
        .await?;
        assert_eq!(http.get("/while").await?.status, StatusCode::OK, "the client's stream is the same");
    }
    let after = (web.record().connections(), web.record().connects().len());
    assert_eq!(after, before, "neither a connection nor a tunnel was made anew");
    let accepted = "waypoint_hbone_connections{side=\"accepted\"} 1";
    mesh.waypoint.metric("the client's connection is the only one", |line| line == accepted).await?;
    Ok(())
}
