//! Istio's metrics by outcome, on the wire. Each test's name begins with its row in `docs/contracts.md`.
//!
//! Not for: labels and text alone, which are tested where they are made.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Peer, exchange_raw, full};
use tests::scenario::{DB, EMPTY, LEGACY, Mesh, RATINGS, RATINGS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};
use tokio::io::AsyncWriteExt;

use crate::policy::{identity, rbac};

pub(crate) const LEGACY_CHAIN: &str = "inbound-vip|80|http|legacy.shop.svc.cluster.local";
const DB_CHAIN: &str = "inbound-vip|5432|tcp|db.shop.svc.cluster.local";
const REPORTING_INTERVAL: &str = "0.2s";
const DEADLINE: Duration = Duration::from_secs(20);

/// A mesh with one endpoint of `web`.
async fn mesh(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Mesh> {
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?;
    builder.edit(edit)?.start().await
}

async fn with_web() -> Result<(Mesh, Workload)> {
    let mesh = mesh(|_| Ok(())).await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    Ok((mesh, web))
}

/// Waits for the series of a metric that has these labels; its value.
async fn value(mesh: &Mesh, metric: &str, labels: &[(&str, &str)]) -> Result<u64> {
    let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let is_it = |line: &str| {
        line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{')) && pairs.iter().all(|pair| line.contains(pair.as_str()))
    };
    let line = mesh.waypoint.metric(&format!("{metric} with {pairs:?}"), is_it).await?;
    Ok(line.rsplit_once(' ').context("no value")?.1.parse()?)
}

/// The name by which discovery sends a pod.
fn uid_of(mesh: &Mesh, pod: &str) -> Result<String> {
    let found = mesh.scenario().resources(Kind::Workload).find(|(_, workload)| workload["name"] == pod);
    found.map(|(name, _)| name.to_owned()).with_context(|| format!("no workload {pod}"))
}

/// Waits until a metric has one series with this value.
async fn becomes(mesh: &Mesh, metric: &str, value: u64) -> Result<()> {
    let end = format!("}} {value}");
    mesh.waypoint.metric(metric, |line| line.starts_with(&format!("{metric}{{")) && line.ends_with(&end)).await.map(drop)
}

pub(crate) fn http_stats<'a>(scenario: &'a mut Scenario, chain: &str) -> Result<&'a mut Value> {
    let filters = scenario.http(chain)?["http_filters"].as_array_mut().context("no filters")?;
    let stats = filters.iter_mut().find(|filter| filter["name"] == "istio.stats");
    Ok(&mut stats.context("no istio.stats")?["typed_config"])
}

fn grpc(http: &tests::peer::Http, path: &str) -> http::request::Builder {
    http.request(Method::POST, path).header("content-type", "application/grpc").header("te", "trailers")
}

#[tokio::test(flavor = "multi_thread")]
async fn m01_a_requests_size_is_that_of_its_head_as_it_came() -> Result<()> {
    let (mesh, _web) = with_web().await?;
    let request = "GET /ok HTTP/1.1\r\nhost: web.shop\r\nuser-agent: t/1\r\n\r\n";
    exchange_raw(mesh.connect("frontend-0").await?.tunnel(WEB).await?, request.as_bytes(), true).await?;
    assert_eq!(value(&mesh, "istio_request_bytes_sum", &[("response_code", "200")]).await?, u64::try_from(request.len())?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m02_sizes_count_heads_and_bodies_and_lines_bodies_only() -> Result<()> {
    let (mesh, _web) = with_web().await?;
    let head = "POST /m02 HTTP/1.1\r\nhost: web.shop\r\ncontent-length: 1000\r\n\r\n";
    let request = format!("{head}{}", "b".repeat(1000));
    exchange_raw(mesh.connect("frontend-0").await?.tunnel(WEB).await?, request.as_bytes(), true).await?;
    assert_eq!(value(&mesh, "istio_request_bytes_sum", &[("response_code", "200")]).await?, u64::try_from(request.len())?);
    let (_, line) = mesh.waypoint.access_line("the line", |line| line["path"] == "/m02").await?;
    assert_eq!(line["bytes_received"], 1000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m05_a_workload_that_says_neither_trust_domain_nor_namespace_nor_account_has_istios_defaults_in_labels() -> Result<()> {
    let (mut mesh, _web) = with_web().await?;
    let uid = uid_of(&mesh, "web-v1-1")?;
    mesh.push_accepted(|scenario| {
        let workload = scenario.resource(Kind::Workload, &uid)?.as_object_mut().context("no workload")?;
        for field in ["trust_domain", "namespace", "service_account"] {
            workload.remove(field);
        }
        Ok(())
    })
    .await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/m05").await?.status, StatusCode::OK);
    let labels = [
        ("destination_workload", "web-v1-1"),
        ("destination_workload_namespace", "default"),
        ("destination_principal", "spiffe://cluster.local/ns/default/sa/default"),
    ];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    Ok(())
}

/// Envoy compares the beginning of the name alone.
#[tokio::test(flavor = "multi_thread")]
async fn m07_a_client_whose_certificate_names_no_workload_cannot_connect_though_envoy_lets_it() -> Result<()> {
    let (mesh, _web) = with_web().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let robot = mesh.pki.member("spiffe://cluster.local/robot")?;
    let peer = Peer::new(&mesh.pki, Some(&robot), None)?;
    assert_eq!(peer.connect(envoy.hbone()).await?.get(WEB, "/robot").await?.status, StatusCode::OK);
    let refused = match peer.connect(mesh.hbone()).await {
        Ok(connection) => connection.get(WEB, "/robot").await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "it was let in");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m12_a_grpc_request_that_finds_no_connection_is_unavailable() -> Result<()> {
    let mesh = mesh(|scenario| {
        let route = &mut scenario.http(LEGACY_CHAIN)?["route_config"]["virtual_hosts"][0]["routes"][0]["route"];
        route.as_object_mut().context("no route")?.remove("retry_policy");
        Ok(())
    })
    .await?;
    let mut http = mesh.connect("frontend-0").await?.http2(LEGACY).await?;
    let request = grpc(&http, "/legacy.Legacy/Get").body(full("x"))?;
    let answer = http.send(request).await?;
    assert_eq!((answer.status, answer.header("grpc-status")), (StatusCode::OK, "14"));
    let labels = [("request_protocol", "grpc"), ("response_code", "200"), ("grpc_response_status", "14"), ("response_flags", "UF")];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m14_messages_of_a_stream_are_counted_while_it_runs() -> Result<()> {
    let mesh = mesh(|scenario| {
        scenario.keep_endpoints(RATINGS_CHAIN, 1)?;
        http_stats(scenario, RATINGS_CHAIN)?["tcp_reporting_duration"] = REPORTING_INTERVAL.into();
        Ok(())
    })
    .await?;
    let _ratings = mesh.pod("ratings-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http2(RATINGS).await?;
    let (messages, received) = tokio::sync::mpsc::channel::<Bytes>(1);
    let received = futures_util::stream::unfold(received, async |mut received| Some((Ok(Frame::data(received.recv().await?)), received)));
    let body = StreamBody::new(received).boxed();
    let request = grpc(&http, "/messages/40").body(body)?;
    let answer = tokio::spawn(async move { http.send(request).await });
    for count in 1..=2 {
        messages.send(Bytes::from_static(b"\0\0\0\0\x02hi")).await?;
        becomes(&mesh, "istio_request_messages_total", count).await?;
    }
    becomes(&mesh, "istio_response_messages_total", 0).await?;
    drop(messages);
    let is_under_way = |line: &str| line.starts_with("istio_response_messages_total{") && !line.ends_with("} 0") && !line.ends_with("} 40");
    mesh.waypoint.metric("some of the answer", is_under_way).await?;
    assert!(!mesh.waypoint.metrics().await?.contains("istio_requests_total"), "counted before its end");
    answer.await??;
    becomes(&mesh, "istio_requests_total", 1).await?;
    becomes(&mesh, "istio_response_messages_total", 40).await?;
    becomes(&mesh, "istio_request_messages_total", 2).await
}

/// A mesh whose `web` lets nobody in.
async fn refusing() -> Result<Mesh> {
    let allow =
        rbac("ALLOW", "ns[shop]-policy[web]-rule[0]", &json!({"any": true}), &identity("spiffe://cluster.local/ns/clients/sa/nobody"));
    mesh(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![allow])).await
}

/// The labels of a refused request that say nothing of gRPC, the service, and no workload.
fn refused(code: &'static str) -> [(&'static str, &'static str); 6] {
    [
        ("response_code", code),
        ("request_protocol", "http"),
        ("grpc_response_status", ""),
        ("response_flags", "-"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_workload", "unknown"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn m15_a_refused_grpc_request_counts_as_http_without_a_status() -> Result<()> {
    let mesh = refusing().await?;
    let mut http = mesh.connect("frontend-0").await?.http2(WEB).await?;
    let request = grpc(&http, "/web.Web/Get").body(full("x"))?;
    assert_eq!(http.send(request).await?.header("grpc-status"), "7");
    assert_eq!(value(&mesh, "istio_requests_total", &refused("200")).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m22_a_refused_request_names_the_service_and_no_workload() -> Result<()> {
    let mesh = refusing().await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/refused").await?.status, StatusCode::FORBIDDEN);
    assert_eq!(value(&mesh, "istio_requests_total", &refused("403")).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m16_m17_grpc_web_on_a_plain_port_is_http_with_an_empty_status_and_no_messages() -> Result<()> {
    let (mesh, _web) = with_web().await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let request = http.request(Method::POST, "/web.Web/Get").header("content-type", "application/grpc-web").body(full("x"))?;
    assert_eq!(http.send(request).await?.status, StatusCode::OK);
    let labels = [("request_protocol", "http"), ("response_code", "200"), ("grpc_response_status", ""), ("response_flags", "-")];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    assert!(!mesh.waypoint.metrics().await?.contains("_messages_total"), "messages of what is no gRPC");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m18_a_client_that_goes_away_has_code_0_a_duration_a_service_and_no_workload() -> Result<()> {
    let (mesh, web) = with_web().await?;
    let mut tunnel = mesh.connect("frontend-0").await?.tunnel(WEB).await?;
    tunnel.write_all(b"GET /delay/60000 HTTP/1.1\r\nhost: web.shop\r\n\r\n").await?;
    until("the request at the pod", DEADLINE, async || {
        Ok(if web.record().requests("GET /delay/60000") == 1 { Look::Done(()) } else { Look::NotYet("not there".to_owned()) })
    })
    .await?;
    drop(tunnel);
    let labels = [
        ("response_code", "0"),
        ("response_flags", "DC"),
        ("grpc_response_status", ""),
        ("source_workload", "frontend-0"),
        ("destination_service", "web.shop.svc.cluster.local"),
        ("destination_service_name", "web"),
        ("destination_workload", "unknown"),
        ("destination_workload_namespace", "unknown"),
        ("destination_principal", "unknown"),
    ];
    for metric in ["istio_requests_total", "istio_request_duration_milliseconds_count", "istio_request_bytes_count"] {
        assert_eq!(value(&mesh, metric, &labels).await?, 1, "{metric}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m19_a_request_without_a_route_has_no_service() -> Result<()> {
    let mesh = mesh(|scenario| {
        scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["routes"][0]["match"] = json!({"prefix": "/only"});
        Ok(())
    })
    .await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/other").await?.status, StatusCode::NOT_FOUND);
    let labels =
        [("response_code", "404"), ("response_flags", "NR"), ("destination_service", "unknown"), ("destination_workload", "unknown")];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m20_without_endpoints_the_service_is_named_and_no_workload() -> Result<()> {
    let mesh = mesh(|_| Ok(())).await?;
    mesh.connect("frontend-0").await?.get(EMPTY, "/nobody").await?;
    let labels = [
        ("response_code", "503"),
        ("response_flags", "UH"),
        ("destination_service", "empty.shop.svc.cluster.local"),
        ("destination_workload", "unknown"),
    ];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m21_a_pod_that_refuses_its_tunnel_is_counted_once_whatever_was_tried() -> Result<()> {
    let (mesh, web) = with_web().await?;
    web.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/refused").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    let labels = [("response_code", "503"), ("response_flags", "URX,UF"), ("destination_workload", "web-v1-1")];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m21b_a_plain_endpoint_that_refuses_is_counted_once_whatever_was_tried() -> Result<()> {
    let mesh = mesh(|_| Ok(())).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(LEGACY, "/refused").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    let labels = [("response_code", "503"), ("response_flags", "URX,UF"), ("destination_service_name", "legacy")];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m26_a_tcp_connection_that_finds_no_endpoint_is_opened_and_closed() -> Result<()> {
    let mesh = mesh(|_| Ok(())).await?;
    assert!(mesh.connect("frontend-0").await?.connect(DB).await?.is_err());
    for metric in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"] {
        let labels = [("request_protocol", "tcp"), ("response_flags", "UF,URX"), ("destination_service_name", "db")];
        assert_eq!(value(&mesh, metric, &labels).await?, 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m37_tcp_counters_move_at_the_interval_that_was_asked_for() -> Result<()> {
    let mesh = mesh(|scenario| {
        let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
        let stats = filters.iter_mut().find(|filter| filter["name"] == "istio.stats").context("no istio.stats")?;
        stats["typed_config"]["tcp_reporting_duration"] = REPORTING_INTERVAL.into();
        Ok(())
    })
    .await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    let mut tunnel = mesh.connect("frontend-0").await?.tunnel(DB).await?;
    becomes(&mesh, "istio_tcp_connections_opened_total", 1).await?;
    for count in 1..=2 {
        tunnel.write_all(&[b'x'; 100]).await?;
        becomes(&mesh, "istio_tcp_received_bytes_total", 100 * count).await?;
    }
    let labels = [("destination_workload", "db-v1-1"), ("source_workload", "frontend-0")];
    assert_eq!(value(&mesh, "istio_tcp_sent_bytes_total", &labels).await?, 0);
    assert!(!mesh.waypoint.metrics().await?.contains("istio_tcp_connections_closed_total"), "closed while it is open");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m38_a_new_revision_of_a_running_pod_is_seen_by_the_next_request() -> Result<()> {
    let (mut mesh, _web) = with_web().await?;
    let connection = mesh.connect("frontend-0").await?;
    connection.get(WEB, "/before").await?;
    value(&mesh, "istio_requests_total", &[("destination_canonical_revision", "v1")]).await?;
    let uid = uid_of(&mesh, "web-v1-1")?;
    mesh.push_accepted(|scenario| {
        scenario.resource(Kind::Workload, &uid)?["canonical_revision"] = "v2".into();
        Ok(())
    })
    .await?;
    connection.get(WEB, "/after").await?;
    assert_eq!(value(&mesh, "istio_requests_total", &[("destination_canonical_revision", "v2"), ("destination_version", "v2")]).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m39_labels_are_those_of_the_pod_that_took_the_address_also_once_the_old_one_is_removed() -> Result<()> {
    let (mut mesh, _web) = with_web().await?;
    let connection = mesh.connect("frontend-0").await?;
    let uid = uid_of(&mesh, "web-v1-1")?;
    let mut taker = mesh.scenario().resources(Kind::Workload).find(|(name, _)| *name == uid).context("no workload")?.1.clone();
    taker["uid"] = "Kubernetes//Pod/shop/taker-0".into();
    for (field, value) in [("name", "taker-0"), ("workload_name", "taker"), ("canonical_name", "taker"), ("canonical_revision", "v9")] {
        taker[field] = value.into();
    }
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Workload, "Kubernetes//Pod/shop/taker-0", taker);
        Ok(())
    })
    .await?;
    let labels = [
        ("destination_workload", "taker"),
        ("destination_workload_namespace", "shop"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("destination_app", "taker"),
        ("destination_version", "v9"),
        ("destination_canonical_service", "taker"),
        ("destination_canonical_revision", "v9"),
        ("destination_cluster", "Kubernetes"),
        ("destination_service", "web.shop.svc.cluster.local"),
    ];
    connection.get(WEB, "/taken").await?;
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    let generation = mesh.istiod.remove(Kind::Workload, &uid);
    mesh.istiod.acknowledged(Kind::Workload, generation, DEADLINE).await?;
    connection.get(WEB, "/removed").await?;
    mesh.waypoint.metric("both requests", |line| line.starts_with("istio_requests_total{") && line.ends_with("} 2")).await?;
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m40_what_is_no_request_is_counted_all_the_same() -> Result<()> {
    let (mesh, _web) = with_web().await?;
    exchange_raw(mesh.connect("frontend-0").await?.tunnel(WEB).await?, b"\x01\x02 garbage\r\n\r\n", false).await?;
    let labels = [
        ("response_code", "400"),
        ("response_flags", "DPE"),
        ("destination_service", "unknown"),
        ("destination_workload", "unknown"),
        ("source_workload", "frontend-0"),
    ];
    assert_eq!(value(&mesh, "istio_requests_total", &labels).await?, 1);
    Ok(())
}
