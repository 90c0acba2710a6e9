//! The page of metrics as scrapers get it: what configuration and annotations make of it. Golden tests' names begin with their row in
//! `docs/contracts.md`.
//!
//! Not for: labels by outcome ([`crate::golden_metrics`]), and how pages travel ([`crate::scrapes`]).

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tests::peer::{Http, empty, plain_get};
use tests::process::{AGENT_PORT, STATS_PORT};
use tests::scenario::{DB, DB_CHAIN, Mesh, MeshBuilder, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::golden_metrics::http_stats;

const DEADLINE: Duration = Duration::from_secs(30);
/// Envoy's admin port.
const ADMIN_PORT: u16 = 15000;
const TYPE: &str = "# TYPE ";
/// As `SERIES_MAX`.
const SERIES_MAX: usize = 50_000;
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
        let all: Vec<String> = scenario.resources(tests::fake_istiod::Kind::Listener).map(|(name, _)| name.to_owned()).collect();
        for name in all {
            without_stats(scenario.resource(tests::fake_istiod::Kind::Listener, &name)?);
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
async fn series_beyond_the_bound_are_folded_into_one_and_counted() -> Result<()> {
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
    let n_requests = SERIES_MAX / N_DEFINED + 2;
    for number in 0..n_requests {
        send(&mut http, &format!("value-{number}")).await?;
    }
    let n_folded = n_requests * N_DEFINED - SERIES_MAX;
    let (series, folded) = (format!("waypoint_metric_series {SERIES_MAX}"), format!("waypoint_metric_series_folded_total {n_folded}"));
    let text = pages_have(&mesh, &[&series, &folded, "istio_m0{own=\"value-0\"} 1"]).await?;
    let overflow =
        text.lines().filter(|line| line.contains("own=\"overflow\"")).filter_map(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
    assert_eq!(overflow.sum::<usize>(), n_folded);
    Ok(())
}
