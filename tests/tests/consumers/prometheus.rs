//! A real Prometheus scrapes a waypoint under load, and promtool reads its page.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use regex::Regex;
use tests::consumers::{Prometheus, check_metrics, check_rules};
use tests::wait::{Look, until};

use crate::kiali::{self, Graph};
use crate::traffic::{EDGES, Traffic, logged};

/// How long it may take until rates are there; a scrape a second, two for a rate.
const DEADLINE: Duration = Duration::from_secs(60);

/// The queries of Istio's mesh dashboard. [Istio: `manifests/addons/dashboards/istio-mesh-dashboard.gen.json`]
const MESH_DASHBOARD: [&str; 12] = [
    r#"round(sum (rate(istio_requests_total{reporter=~"source|waypoint"}[10s])), 0.01)"#,
    r#"sum (rate(istio_requests_total{reporter=~"source|waypoint",response_code!~"5.."}[10s])) / sum (rate(istio_requests_total{reporter=~"source|waypoint"}[10s]))"#,
    r#"round(sum (rate(istio_requests_total{reporter=~"source|waypoint",response_code=~"4.."}[10s])), 0.01)or vector(0)"#,
    r#"round(sum (rate(istio_requests_total{reporter=~"source|waypoint",response_code=~"5.."}[10s])), 0.01)or vector(0)"#,
    r#"label_join(sum by (destination_workload,destination_workload_namespace,destination_service) (rate(istio_requests_total{reporter=~"source|waypoint"}[10s])), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")"#,
    r#"label_join(histogram_quantile(0.5, sum by (le,destination_workload,destination_workload_namespace) (rate(istio_request_duration_milliseconds_bucket{reporter=~"source|waypoint"}[10s]))), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")"#,
    r#"label_join(histogram_quantile(0.9, sum by (le,destination_workload,destination_workload_namespace) (rate(istio_request_duration_milliseconds_bucket{reporter=~"source|waypoint"}[10s]))), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")"#,
    r#"label_join(histogram_quantile(0.99, sum by (le,destination_workload,destination_workload_namespace) (rate(istio_request_duration_milliseconds_bucket{reporter=~"source|waypoint"}[10s]))), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")"#,
    r#"label_join(sum by (destination_workload,destination_workload_namespace) (rate(istio_requests_total{reporter=~"source|waypoint",response_code!~"5.."}[10s]))/sum by (destination_workload,destination_workload_namespace) (rate(istio_requests_total{reporter=~"source|waypoint"}[10s])), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")"#,
    r#"label_join(sum by (destination_workload,destination_workload_namespace,destination_service) (rate(istio_tcp_received_bytes_total{reporter=~"source|waypoint"}[10s])), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")"#,
    r#"label_join(sum by (destination_workload,destination_workload_namespace,destination_service) (rate(istio_tcp_sent_bytes_total{reporter=~"source|waypoint"}[10s])), "destination_workload_var", ".", "destination_workload", "destination_workload_namespace")"#,
    r#"sum by (component,tag) (istio_build)"#,
];

/// What an operator asks of a waypoint itself.
const OURS: [&str; 4] = [
    r#"sum by (policy,decision) (rate(waypoint_authz_decisions_total{decision="denied"}[10s])) > 0"#,
    r#"sum(envoy_server_live) == 1"#,
    r#"histogram_quantile(0.99, sum by (le) (rate(istio_request_duration_milliseconds_bucket{reporter="waypoint"}[10s])))"#,
    r#"count({__name__=~"istio_.+"})"#,
];

async fn scraped() -> Result<(Traffic, Prometheus)> {
    let traffic = Traffic::begin().await?;
    let net = &traffic.mesh.net;
    let prometheus = Prometheus::start(IpAddr::V4(net.pod(0, 4)), traffic.mesh.waypoint.port(15020)).await?;
    Ok((traffic, prometheus))
}

/// Waits until a query has an answer with a number in it.
async fn answers(prometheus: &Prometheus, query: &str) -> Result<()> {
    until(query, DEADLINE, async || {
        let series = prometheus.query(query).await?;
        let is_answered = series.iter().any(|series| !series.value.is_nan());
        Ok(if is_answered { Look::Done(()) } else { Look::NotYet(format!("{series:?}")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn e01_prometheus_answers_dashboards_and_kialis_details() -> Result<()> {
    let (traffic, prometheus) = scraped().await?;
    for query in MESH_DASHBOARD.into_iter().chain(OURS).map(str::to_owned).chain(kiali::details()) {
        answers(&prometheus, &query).await?;
    }
    for query in kiali::queries("shop").iter().filter(|query| query.contains("_messages_total") && query.contains("waypoint|destination")) {
        answers(&prometheus, query).await?;
    }
    let error = prometheus.last_error().await?;
    ensure!(error.as_deref() == Some(""), "a scrape failed: {error:?}");
    // A bucket of durations leads to a trace that was exported.
    let line: serde_json::Value = serde_json::from_str(&logged(&traffic.mesh, "/exemplar").await?)?;
    ensure!(line["trace_id"].is_string(), "{line}");
    until("a trace at a bucket", DEADLINE, async || {
        let traces = prometheus.traces_of(r#"istio_request_duration_milliseconds_bucket{reporter="waypoint"}"#).await?;
        let exported: BTreeSet<String> = traffic.mesh.spans.spans().into_iter().map(|span| span.trace_id).collect();
        let is_exported = traces.iter().any(|trace| exported.contains(trace));
        Ok(if is_exported { Look::Done(()) } else { Look::NotYet(format!("{} traces, {} exported", traces.len(), exported.len())) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn e01_prometheus_takes_native_histograms_beside_the_classic_ones() -> Result<()> {
    let traffic = Traffic::begin().await?;
    let net = &traffic.mesh.net;
    let prometheus = Prometheus::start_native(IpAddr::V4(net.pod(0, 4)), traffic.mesh.waypoint.port(15020)).await?;
    logged(&traffic.mesh, "/native").await?;
    let durations = r#"istio_request_duration_milliseconds{reporter="waypoint"}"#;
    for query in [
        format!("histogram_quantile(0.9, sum(rate({durations}[10s])))"),
        format!("histogram_fraction(0, 60000, sum({durations})) == 1"),
        // One histogram says what the other does, to the last request.
        r#"histogram_count(sum(istio_request_bytes)) == on() sum(istio_request_bytes_count)"#.to_owned(),
        r#"histogram_sum(sum(istio_request_bytes)) == on() sum(istio_request_bytes_sum)"#.to_owned(),
        r#"sum(istio_request_bytes_bucket{le="+Inf"}) == on() sum(istio_request_bytes_count)"#.to_owned(),
    ] {
        answers(&prometheus, &query).await?;
    }
    for query in MESH_DASHBOARD.into_iter().chain(OURS) {
        answers(&prometheus, query).await?;
    }
    let error = prometheus.last_error().await?;
    ensure!(error.as_deref() == Some(""), "a scrape failed: {error:?}");
    until("a trace at a native histogram", DEADLINE, async || {
        let traces = prometheus.traces_of(durations).await?;
        Ok(if traces.is_empty() { Look::NotYet("none".to_owned()) } else { Look::Done(()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn e02_kialis_graph_has_every_edge_once() -> Result<()> {
    let (_traffic, prometheus) = scraped().await?;
    let expected: BTreeSet<kiali::Edge> = EDGES
        .iter()
        .map(|(from, service, to, protocol, result)| {
            ((*from).to_owned(), (*service).to_owned(), (*to).to_owned(), (*protocol).to_owned(), (*result).to_owned())
        })
        .collect();
    until("Kiali's graph", DEADLINE, async || {
        let edges = Graph::of(&prometheus, &["shop", "clients"]).await?.edges()?;
        if let Some(odd) = edges.difference(&expected).next() {
            bail!("an edge that is none: {odd:?}");
        }
        let missing: Vec<_> = expected.difference(&edges).collect();
        Ok(if missing.is_empty() { Look::Done(()) } else { Look::NotYet(format!("missing {missing:?}")) })
    })
    .await
}

/// A label without a value is on the page, and to Prometheus it is none.
#[tokio::test(flavor = "multi_thread")]
async fn m17_the_status_of_what_is_not_grpc_is_written_and_to_prometheus_not_there() -> Result<()> {
    let (traffic, prometheus) = scraped().await?;
    let page = traffic.mesh.waypoint.metric("a request over HTTP", |line| is_of(line, "http")).await?;
    ensure!(page.contains(",grpc_response_status=\"\","), "{page}");
    for (query, has_status) in [
        (r#"istio_requests_total{request_protocol="http"}"#, false),
        (r#"istio_requests_total{request_protocol="http",grpc_response_status=""}"#, false),
        (r#"istio_requests_total{request_protocol="grpc"}"#, true),
    ] {
        answers(&prometheus, query).await?;
        for series in prometheus.query(query).await? {
            ensure!(series.labels.contains_key("grpc_response_status") == has_status, "{query}: {:?}", series.labels);
            ensure!(series.labels.values().all(|value| !value.is_empty()), "{query}: {:?}", series.labels);
        }
    }
    let none = prometheus.query(r#"istio_requests_total{request_protocol="http",grpc_response_status=~".+"}"#).await?;
    ensure!(none.is_empty(), "{none:?}");
    Ok(())
}

fn is_of(line: &str, protocol: &str) -> bool {
    line.starts_with("istio_requests_total{") && line.contains(&format!("request_protocol=\"{protocol}\""))
}

/// The rules that are shipped: promtool reads them, and what each compares is there, whatever it compares it with.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_read_and_what_they_compare_is_there() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../k8s/manifests/alerts.yaml");
    check_rules(path.into()).await?;
    let (_traffic, prometheus) = scraped().await?;
    let file: serde_json::Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path)?)?;
    let rules = file["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array().into_iter().flatten());
    let (threshold, window) = (Regex::new(r" (>|<|==) [0-9.]+\s*$")?, Regex::new(r"\[[0-9]+[mh]\]")?);
    let mut n_rules = 0;
    for rule in rules {
        let expression = rule["expr"].as_str().unwrap_or_default();
        ensure!(threshold.is_match(expression), "{expression} compares with nothing");
        let compared = window.replace_all(expression, "[10s]").into_owned();
        let compared = threshold.replace(&compared, "").into_owned();
        // Nothing may be stale, no service without an endpoint, and no gRPC refused.
        if ["stale_seconds", "UH|NC", "grpc_response_status!~"].iter().any(|seldom| compared.contains(seldom)) {
            prometheus.query(&compared).await?;
        } else {
            answers(&prometheus, &compared).await?;
        }
        n_rules += 1;
    }
    ensure!(n_rules > 8, "{n_rules} rules");
    Ok(())
}

/// What promtool says of names that are Istio's and Envoy's, which are not ours to choose.
const KNOWN: [&str; 4] = ["no help text", "use base unit", "abbreviated units", "counter metrics should have"];

#[tokio::test(flavor = "multi_thread")]
async fn e01_promtool_has_nothing_to_say_of_our_own_metrics() -> Result<()> {
    let traffic = Traffic::begin().await?;
    for path in ["/one", "/two"] {
        logged(&traffic.mesh, path).await?;
    }
    // One of ours is in microseconds, since it is a few of them.
    let is_others = Regex::new("^((istio|envoy)_[a-z_]+|waypoint_request_overhead_microseconds) ")?;
    let said = check_metrics(traffic.mesh.waypoint.metrics().await?).await?;
    let new: Vec<_> = said.iter().filter(|line| !(is_others.is_match(line) && KNOWN.iter().any(|known| line.contains(known)))).collect();
    ensure!(new.is_empty(), "promtool: {new:#?}");
    Ok(())
}
