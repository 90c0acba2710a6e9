//! The page of metrics as scrapers get it: what configuration and annotations make of it. Golden tests' names begin with their row in
//! `docs/contracts.md`.
//!
//! Not for: labels by outcome ([`crate::golden_metrics`]), and how pages travel ([`crate::scrapes`]).

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::peer::{Http, empty, exchange_raw, full, plain_get};
use tests::process::{AGENT_PORT, STATS_PORT};
use tests::scenario::{DB, DB_CHAIN, Mesh, MeshBuilder, RATINGS, RATINGS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::golden_metrics::http_stats;

const DEADLINE: Duration = Duration::from_secs(30);
/// Envoy's admin port.
const ADMIN_PORT: u16 = 15000;
const TYPE: &str = "# TYPE ";
/// As `CUSTOM_SERIES_MAX`.
const CUSTOM_SERIES_MAX: usize = 10_000;
/// Metrics that one chain defines at most.
const N_DEFINED: usize = 64;

/// A mesh whose `web` answers by itself, so that nothing but the chain is needed.
fn builder(metrics: Value, edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<MeshBuilder> {
    let answering = |scenario: &mut Scenario| {
        let answer = json!({"direct_response": {"status": 200}, "match": {"prefix": "/"}, "name": "answered"});
        scenario.add_routes(WEB_CHAIN, vec![answer])?;
        http_stats(scenario, WEB_CHAIN)?["metrics"] = metrics;
        edit(scenario)
    };
    Mesh::builder("07-telemetry")?.edit(answering)
}

async fn page(mesh: &Mesh, port: u16, accept: &str) -> Result<String> {
    let mut http = Http::one(TcpStream::connect(mesh.waypoint.port(port)).await?).await?;
    let request = Request::get("/stats/prometheus").header("host", "waypoint").header("accept", accept);
    let answer = http.send(request.body(empty())?).await?;
    assert_eq!(answer.status, StatusCode::OK);
    Ok(answer.text())
}

/// Waits until pages of both ports have all of these lines; the page of the agent's port.
async fn pages_have(mesh: &Mesh, lines: &[&str]) -> Result<String> {
    let mut last = String::new();
    for port in [STATS_PORT, AGENT_PORT] {
        last = until(&format!("{lines:?} on {port}"), DEADLINE, async || {
            let text = page(mesh, port, "*/*").await?;
            let missing: Vec<_> = lines.iter().filter(|line| !text.lines().any(|known| known.contains(**line))).collect();
            let istio = || text.lines().filter(|line| line.starts_with("istio_")).collect::<Vec<_>>().join("\n");
            Ok(if missing.is_empty() { Look::Done(text.clone()) } else { Look::NotYet(format!("no {missing:?} in\n{}", istio())) })
        })
        .await?;
    }
    Ok(last)
}

async fn get(mesh: &Mesh, value: &str) -> Result<()> {
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    send(&mut http, value).await
}

async fn send(http: &mut Http, value: &str) -> Result<()> {
    let request = http.request(Method::GET, "/page").header("x-odd", value).body(empty())?;
    assert_eq!(http.send(request).await?.status, StatusCode::OK);
    Ok(())
}

/// Names of traffic that a page has.
fn names(page: &str) -> BTreeSet<&str> {
    page.lines().filter_map(|line| line.strip_prefix(TYPE)?.split(' ').next()).filter(|name| name.starts_with("istio_")).collect()
}

/// Takes the filter `istio.stats` out of every chain.
fn without_stats(value: &mut Value) {
    match value {
        Value::Array(items) => {
            items.retain(|item| item["name"] != "istio.stats");
            items.iter_mut().for_each(without_stats);
        }
        Value::Object(members) => members.values_mut().for_each(without_stats),
        _ => {}
    }
}

/// The labels of the one series of a metric.
async fn labels(mesh: &Mesh, metric: &str) -> Result<Vec<(String, String)>> {
    let start = format!("{metric}{{");
    let text = pages_have(mesh, &[&start]).await?;
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(&start)?.rsplit_once("\"} ")).collect();
    anyhow::ensure!(lines.len() == 1, "{lines:?}");
    let pairs = lines[0].0.split("\",").map(|pair| pair.split_once("=\"").with_context(|| format!("no label: {pair}")));
    pairs.map(|pair| pair.map(|(name, value)| (name.to_owned(), value.to_owned()))).collect()
}

fn of<'a>(labels: &'a [(String, String)], name: &str) -> Option<&'a str> {
    labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn values<'a>(labels: &'a [(String, String)], names: &[&str]) -> Vec<&'a str> {
    names.iter().map(|name| of(labels, name).unwrap_or("(none)")).collect()
}

/// A mesh with one pod of `web`, of a changed recording.
async fn with_web(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<(Mesh, Workload)> {
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?;
    let mesh = builder.edit(edit)?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    mesh.connect("frontend-0").await?.get(WEB, "/page").await?;
    Ok((mesh, web))
}

/// The name by which discovery sends a pod.
fn uid_of(scenario: &Scenario, pod: &str) -> Result<String> {
    let found = scenario.resources(Kind::Workload).find(|(_, workload)| workload["name"] == pod);
    found.map(|(name, _)| name.to_owned()).with_context(|| format!("no workload {pod}"))
}

/// The pod is there, and discovery says nothing of it.
fn forget(scenario: &mut Scenario, pod: &str) -> Result<()> {
    let uid = uid_of(scenario, pod)?;
    let stranger = scenario.resource(Kind::Workload, &uid)?;
    // Another pod's, at an address that nobody has.
    stranger["addresses"] = json!(["fwD/AQ=="]);
    Ok(())
}

const SOURCE: [&str; 9] = [
    "source_workload",
    "source_canonical_service",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "connection_security_policy",
];
const DESTINATION: [&str; 10] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
];

#[tokio::test(flavor = "multi_thread")]
async fn m03_a_client_that_discovery_does_not_know_is_on_the_page_by_its_certificate() -> Result<()> {
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?;
    let mesh = builder.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let uid = uid_of(mesh.scenario(), "frontend-0")?;
    let generation = mesh.istiod.remove(Kind::Workload, &uid);
    mesh.istiod.acknowledged(Kind::Workload, generation, DEADLINE).await?;
    mesh.connect("frontend-0").await?.get(WEB, "/page").await?;
    let expected = [
        "unknown",
        "unknown",
        "unknown",
        "unknown",
        "unknown",
        "latest",
        "clients",
        "spiffe://cluster.local/ns/clients/sa/frontend",
        "mutual_tls",
    ];
    assert_eq!(values(&labels(&mesh, "istio_requests_total").await?, &SOURCE), expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m04_an_endpoint_that_discovery_does_not_know_is_on_the_page_by_its_service() -> Result<()> {
    let (mesh, _web) = with_web(|scenario| forget(scenario, "web-v1-1")).await?;
    let labels = labels(&mesh, "istio_requests_total").await?;
    assert_eq!(values(&labels, &DESTINATION[..8]), ["unknown"; 8]);
    assert_eq!(values(&labels, &DESTINATION[8..]), ["web.shop.svc.cluster.local", "web"]);
    Ok(())
}

/// What a cluster says of its service.
fn service(scenario: &mut Scenario) -> Result<&mut Value> {
    Ok(&mut scenario.resource(Kind::Cluster, WEB_CHAIN)?["metadata"])
}

#[tokio::test(flavor = "multi_thread")]
async fn m08_a_service_without_a_name_is_on_the_page_by_what_its_host_begins_with() -> Result<()> {
    let unnamed = |scenario: &mut Scenario| {
        let services = &mut service(scenario)?["filter_metadata"]["istio"]["services"];
        services[0].as_object_mut().context("no service")?.remove("name").context("no name").map(drop)
    };
    let (mesh, _web) = with_web(unnamed).await?;
    assert_eq!(of(&labels(&mesh, "istio_requests_total").await?, "destination_service_name"), Some("web"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m09_a_cluster_without_a_service_is_on_the_page_without_one_whatever_the_host() -> Result<()> {
    let (mesh, _web) = with_web(|scenario| {
        *service(scenario)? = json!({});
        Ok(())
    })
    .await?;
    let labels = labels(&mesh, "istio_requests_total").await?;
    assert_eq!(values(&labels, &["destination_service", "destination_service_name", "destination_service_namespace"]), ["unknown"; 3]);
    assert_eq!(of(&labels, "destination_workload"), Some("web-v1-1"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m10_a_route_that_blocks_all_is_on_the_page_by_istios_name_for_it() -> Result<()> {
    let (mesh, _web) = with_web(|scenario| {
        let answer = json!({"direct_response": {"status": 502}, "match": {"prefix": "/"}, "name": "block_all"});
        scenario.add_routes(WEB_CHAIN, vec![answer])
    })
    .await?;
    let labels = labels(&mesh, "istio_requests_total").await?;
    assert_eq!(
        values(&labels, &["response_code", "destination_service_name", "destination_service"]),
        ["502", "BlackHoleCluster", "unknown"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m11_a_grpc_call_is_on_the_page_with_its_status_and_its_messages_with_twenty_labels() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(RATINGS_CHAIN, 1))?.start().await?;
    let _ratings = mesh.pod("ratings-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http2(RATINGS).await?;
    let request = http.request(Method::POST, "/ratings.Ratings/Get").header("content-type", "application/grpc").header("te", "trailers");
    assert_eq!(http.send(request.body(full("\0\0\0\0\x02hi"))?).await?.status, StatusCode::OK);
    let total = labels(&mesh, "istio_requests_total").await?;
    assert_eq!(values(&total, &["request_protocol", "response_code", "grpc_response_status"]), ["grpc", "200", "0"]);
    for metric in ["istio_request_messages_total", "istio_response_messages_total"] {
        let messages = labels(&mesh, metric).await?;
        assert_eq!(messages, total[..20], "{metric}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m24_a_short_tcp_connection_is_on_the_page_once_it_is_closed() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    exchange_raw(mesh.connect("frontend-0").await?.tunnel(DB).await?, b"sixsix", true).await?;
    let closed = labels(&mesh, "istio_tcp_connections_closed_total").await?;
    assert_eq!(closed.len(), 23);
    assert_eq!(values(&closed, &["request_protocol", "response_flags", "destination_workload"]), ["tcp", "-", "db-v1-1"]);
    for metric in ["istio_tcp_connections_opened_total", "istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"] {
        assert_eq!(labels(&mesh, metric).await?, closed, "{metric}");
    }
    let text = page(&mesh, AGENT_PORT, "*/*").await?;
    let count =
        |metric: &str| text.lines().find(|line| line.starts_with(metric)).and_then(|line| line.rsplit_once(' ')).map(|(_, count)| count);
    assert_eq!(count("istio_tcp_connections_opened_total{"), Some("1"));
    assert_eq!(count("istio_tcp_received_bytes_total{"), Some("6"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m27_m28_m29_m30_labels_that_are_changed_are_so_on_the_page() -> Result<()> {
    let metrics = json!([
        {"name": "requests_total", "dimensions": {"custom_dimension": "'test'", "x": "request.headers['x-none']"}, "tags_to_remove": ["source_principal"]},
        {"dimensions": {"destination_port": "string(destination.port)", "request_protocol": "'z'"}},
    ]);
    let mesh = builder(metrics, |_| Ok(()))?.start().await?;
    get(&mesh, "a").await?;
    let (total, bytes) = (labels(&mesh, "istio_requests_total").await?, labels(&mesh, "istio_request_bytes_count").await?);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(total[24..], [pair("custom_dimension", "test"), pair("destination_port", "80"), pair("x", "unknown")]);
    assert_eq!(bytes[25..], [pair("destination_port", "80")]);
    assert_eq!((of(&total, "source_principal").is_some(), of(&bytes, "source_principal").is_some()), (false, true));
    assert_eq!((&total[19], &bytes[20]), (&pair("request_protocol", "z"), &pair("request_protocol", "z")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m25_a_waiting_tcp_connection_is_on_the_page_with_zeros_and_then_with_its_bytes_and_its_close() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
        let stats = filters.iter_mut().find(|filter| filter["name"] == "istio.stats").context("no istio.stats")?;
        stats["typed_config"]["tcp_reporting_duration"] = "0.2s".into();
        Ok(())
    };
    let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    let mut tunnel = mesh.connect("frontend-0").await?.tunnel(DB).await?;
    let known = "source_workload=\"frontend-0\"";
    let text = pages_have(&mesh, &["istio_tcp_connections_opened_total{"]).await?;
    for (metric, value) in
        [("istio_tcp_connections_opened_total", 1), ("istio_tcp_received_bytes_total", 0), ("istio_tcp_sent_bytes_total", 0)]
    {
        let line = text.lines().find(|line| line.starts_with(&format!("{metric}{{"))).with_context(|| format!("no {metric}"))?;
        assert!(
            line.contains(known) && line.contains("destination_workload=\"db-v1-1\"") && line.ends_with(&format!("}} {value}")),
            "{line}"
        );
        assert_eq!(line.matches("=\"").count(), 23, "{line}");
    }
    assert!(!text.contains("istio_tcp_connections_closed_total"), "closed while it is open");
    tunnel.write_all(&[b'x'; 100]).await?;
    until("the bytes", DEADLINE, async || {
        let text = page(&mesh, AGENT_PORT, "*/*").await?;
        let line = text.lines().find(|line| line.starts_with("istio_tcp_received_bytes_total{")).unwrap_or_default().to_owned();
        Ok(if line.ends_with("} 100") { Look::Done(()) } else { Look::NotYet(line) })
    })
    .await?;
    drop(tunnel);
    let text = pages_have(&mesh, &["istio_tcp_connections_closed_total{"]).await?;
    assert_eq!(text.matches("\nistio_tcp_connections_opened_total{").count(), 1, "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m31_a_disabled_metric_is_on_no_page_and_the_others_are() -> Result<()> {
    let mesh = builder(json!([{"name": "request_duration_milliseconds", "drop": true}]), |_| Ok(()))?.start().await?;
    get(&mesh, "a").await?;
    let text = pages_have(&mesh, &["istio_requests_total{"]).await?;
    let expected =
        ["istio_build", "istio_agent_cert_expiry_seconds", "istio_request_bytes", "istio_requests_total", "istio_response_bytes"];
    assert_eq!(names(&text), BTreeSet::from(expected));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m32_without_metrics_no_page_has_series_of_traffic_nor_the_build() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        let all: Vec<String> = scenario.resources(Kind::Listener).map(|(name, _)| name.to_owned()).collect();
        for name in all {
            without_stats(scenario.resource(Kind::Listener, &name)?);
        }
        Ok(())
    };
    let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/m32").await?.status, StatusCode::OK);
    mesh.waypoint.access_line("the line", |line| line["path"] == "/m32").await?;
    for port in [STATS_PORT, AGENT_PORT] {
        let text = page(&mesh, port, "*/*").await?;
        assert_eq!(names(&text), BTreeSet::from(["istio_agent_cert_expiry_seconds"]), "{port}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m33_the_build_is_on_the_page_before_any_request() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.environment("ISTIO_META_ISTIO_VERSION", Some("1.29.0")).start().await?;
    let text = pages_have(&mesh, &["istio_build{component=\"proxy\",tag=\"1.29.0\"} 1"]).await?;
    assert!(text.contains("# TYPE istio_build gauge\n"), "{text}");
    assert!(!text.contains("istio_requests_total"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m34_labels_that_would_break_the_page_are_escaped() -> Result<()> {
    let dimensions = json!({"own": "request.headers['x-odd']", "two": "'a\\nb'"});
    let mesh = builder(json!([{"name": "requests_total", "dimensions": dimensions}]), |_| Ok(()))?.start().await?;
    get(&mesh, "a\"b\\c").await?;
    pages_have(&mesh, &["connection_security_policy=\"mutual_tls\",own=\"a\\\"b\\\\c\",two=\"a\\nb\"} 1"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m35_a_scraper_that_asks_for_openmetrics_gets_the_series_of_the_text() -> Result<()> {
    let mesh = builder(json!([]), |_| Ok(()))?.start().await?;
    get(&mesh, "a").await?;
    pages_have(&mesh, &["istio_requests_total{"]).await?;
    let series = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| line.starts_with("istio_") && !line.starts_with("istio_agent"));
        lines.map(|line| line.split(" # ").next().unwrap_or_default().to_owned()).collect()
    };
    let plain = page(&mesh, AGENT_PORT, "text/plain").await?;
    let open = page(&mesh, AGENT_PORT, "application/openmetrics-text; version=1.0.0").await?;
    assert_eq!(series(&plain), series(&open));
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE istio_requests counter\n"), "{open}");
    assert!(plain.contains("# TYPE istio_requests_total counter\n"), "{plain}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn m36_an_annotation_of_the_pod_chooses_the_buckets_on_the_page() -> Result<()> {
    let builder = builder(json!([]), |_| Ok(()))?.annotation("sidecar.istio.io/statsHistogramBuckets", "{\"istiocustom\":[1,10]}");
    let mesh = builder.start().await?;
    get(&mesh, "a").await?;
    let text = pages_have(&mesh, &["istio_request_bytes_bucket{"]).await?;
    for metric in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        let buckets = text.lines().filter(|line| line.starts_with(&format!("{metric}_bucket{{")));
        let bounds: Vec<_> = buckets.filter_map(|line| line.split_once(",le=\"")?.1.split_once('"')).map(|(bound, _)| bound).collect();
        assert_eq!(bounds, ["1", "10", "+Inf"], "{metric}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_a_configuration_defines_are_on_the_page_and_change_with_it() -> Result<()> {
    let define = |scenario: &mut Scenario, value: &str| -> Result<()> {
        http_stats(scenario, WEB_CHAIN)?["definitions"] = json!([
            {"name": "own_total", "value": value},
            {"name": "own_size", "value": "request.total_size", "type": "HISTOGRAM"},
            {"name": "own_code", "value": "response.code", "type": "GAUGE"},
        ]);
        Ok(())
    };
    let metrics = json!([{"name": "own_total", "dimensions": {"who": "filter_state.downstream_peer.workload"}}]);
    let mut mesh = builder(metrics, |scenario| define(scenario, "2"))?.start().await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    send(&mut http, "a").await?;
    let lines = ["istio_own_total{who=\"frontend-0\"} 2", "istio_own_size_bucket{le=\"+Inf\"} 1", "istio_own_code{} 200"];
    pages_have(&mesh, &lines).await?;
    mesh.push_accepted(|scenario| define(scenario, "40")).await?;
    send(&mut http, "a").await?;
    pages_have(&mesh, &["istio_own_total{who=\"frontend-0\"} 42"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_may_be_asked_for_in_part_and_says_what_memory_is_held() -> Result<()> {
    let mesh = builder(json!([]), |_| Ok(()))?.start().await?;
    get(&mesh, "a").await?;
    let whole = pages_have(&mesh, &["istio_requests_total{"]).await?;
    let value = |name: &str| -> Result<u64> {
        let line = whole.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
        Ok(line.rsplit_once(' ').context("no value")?.1.parse()?)
    };
    let (physical, heap) = (value("envoy_server_memory_physical_size ")?, value("envoy_server_memory_heap_size ")?);
    assert!(heap > 1 << 20 && physical > heap && physical < 1 << 30, "{heap} of {physical}");
    assert!(value("waypoint_memory_bytes{owner=\"series\"}")? > 1000);
    let filter = "filter=%5Eistio_request_bytes%5C%7B.*response_code%3D%22200%22";
    for (port, path) in [
        (STATS_PORT, format!("/stats/prometheus?usedonly&{filter}")),
        (AGENT_PORT, format!("/stats/prometheus?{filter}")),
        (ADMIN_PORT, format!("/stats/prometheus?{filter}")),
        (ADMIN_PORT, format!("/stats?format=prometheus&{filter}")),
    ] {
        let part = plain_get(mesh.waypoint.port(port), &path).await?.text();
        let expected = whole.lines().filter(|line| line.contains("istio_request_bytes"));
        assert_eq!(part.lines().collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{port} {path}");
    }
    assert_eq!(plain_get(mesh.waypoint.port(AGENT_PORT), "/stats/prometheus?filter=(").await?.status, StatusCode::BAD_REQUEST);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_series_leaves_the_page_after_the_time_of_the_annotation_and_a_live_counter_goes_on() -> Result<()> {
    let metrics = json!([{"name": "requests_total", "dimensions": {"own": "request.headers['x-odd']"}}]);
    let mesh = builder(metrics, |_| Ok(()))?.annotation("sidecar.istio.io/statsEvictionInterval", "1s").start().await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    send(&mut http, "idle").await?;
    pages_have(&mesh, &["own=\"idle\"} 1"]).await?;
    let mut n_sent = 0;
    until("the idle series gone", DEADLINE, async || {
        send(&mut http, "live").await?;
        n_sent += 1;
        let text = page(&mesh, AGENT_PORT, "*/*").await?;
        Ok(if text.contains("own=\"idle\"") { Look::NotYet("it is there".to_owned()) } else { Look::Done(()) })
    })
    .await?;
    pages_have(&mesh, &[&format!("own=\"live\"}} {n_sent}")]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn series_of_defined_metrics_beyond_their_bound_are_folded_into_one_and_counted() -> Result<()> {
    let metrics = json!([{"drop": true}, {"dimensions": {"own": "request.headers['x-odd']"}}]);
    let definitions: Vec<_> = (0..N_DEFINED).map(|number| json!({"name": format!("m{number}"), "value": "1"})).collect();
    let edit = |scenario: &mut Scenario| {
        scenario.http(WEB_CHAIN)?["access_log"] = json!([]);
        scenario.http(WEB_CHAIN)?.as_object_mut().context("no manager")?.remove("tracing");
        http_stats(scenario, WEB_CHAIN)?["definitions"] = definitions.into();
        Ok(())
    };
    let mesh = builder(metrics, edit)?.start().await?;
    let mut http = mesh.connect("frontend-0").await?.http2(WEB).await?;
    let n_requests = CUSTOM_SERIES_MAX / N_DEFINED + 2;
    for number in 0..n_requests {
        send(&mut http, &format!("value-{number}")).await?;
    }
    let n_folded = n_requests * N_DEFINED - CUSTOM_SERIES_MAX;
    let (series, folded) =
        (format!("waypoint_metric_series {CUSTOM_SERIES_MAX}"), format!("waypoint_metric_series_folded_total {n_folded}"));
    let text = pages_have(&mesh, &[&series, &folded, "istio_m0{own=\"value-0\"} 1"]).await?;
    let overflow =
        text.lines().filter(|line| line.contains("own=\"overflow\"")).filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
    assert_eq!(overflow.sum::<usize>(), n_folded);
    Ok(())
}
