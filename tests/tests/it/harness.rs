//! The harness itself, without a waypoint: a caller and a workload understand each other, istiod keeps the rules.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, StatusCode};
use tests::peer::{Peer, exchange_raw, full};
use tests::pki::{Pki, spiffe};
use tests::scenario::Loopback;
use tests::workload::{App, Workload};

async fn pair(app: App) -> Result<(Loopback, Workload, Peer)> {
    let (net, pki) = (Loopback::take()?, Pki::new()?);
    let tls = pki.workload_config(&pki.member(&spiffe("shop", "web"))?)?;
    let workload = Workload::hbone("web", IpAddr::V4(net.pod(1, 1)), tls, app).await?;
    let caller = pki.member(&spiffe("clients", "frontend"))?;
    let peer = Peer::new(&pki, Some(&caller), Some(IpAddr::V4(net.pod(9, 1))))?;
    Ok((net, workload, peer))
}

#[tokio::test]
async fn a_workload_tells_what_it_was_asked_over_both_protocols() -> Result<()> {
    let (_net, workload, peer) = pair(App::Http).await?;
    let connection = peer.connect(workload.address()).await?;
    assert_eq!(connection.server_identity, spiffe("shop", "web"));
    let answer = connection.get("10.0.0.1:80", "/a?b=1").await?;
    assert_eq!((answer.status, answer.json()["path"].as_str()), (StatusCode::OK, Some("/a?b=1")));
    let mut http = connection.http2("10.0.0.1:80").await?;
    let request = http.request(Method::POST, "/grpc").header("content-type", "application/grpc").body(full(Bytes::from("abc")))?;
    let answer = http.send(request).await?;
    assert_eq!((answer.json()["n_body_bytes"].as_u64(), answer.trailers["grpc-status"].as_bytes()), (Some(3), &b"0"[..]));
    let record = Arc::clone(workload.record());
    assert_eq!((record.requests("GET /a"), record.requests("POST /grpc"), record.connections()), (1, 1, 1));
    assert_eq!(record.connects()[0].identity, spiffe("clients", "frontend"));
    Ok(())
}

#[tokio::test]
async fn a_workload_refuses_connects_when_told_and_cuts_bodies_by_path() -> Result<()> {
    let (_net, workload, peer) = pair(App::Http).await?;
    let connection = peer.connect(workload.address()).await?;
    assert!(connection.get("10.0.0.1:80", "/cut").await.is_err());
    assert!(connection.get("10.0.0.1:80", "/reset").await.is_err());
    workload.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(connection.connect("10.0.0.1:80").await?.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    workload.kill().await;
    assert!(!connection.ended().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_tcp_workload_answers_after_the_end_of_what_it_hears() -> Result<()> {
    let (_net, workload, peer) = pair(App::Tcp { greets: true }).await?;
    let connection = peer.connect(workload.address()).await?;
    let heard = exchange_raw(connection.tunnel("10.0.0.1:5432").await?, b"hello", true).await?;
    assert_eq!(heard, b"ready\necho:hello");
    Ok(())
}
