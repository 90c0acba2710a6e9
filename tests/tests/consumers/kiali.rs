//! Kiali's graph: its queries and its rules of what to skip, over a real Prometheus. [Kiali: `graph/telemetry/istio`]
//!
//! Not for: how Kiali draws. Invariant: a series that Kiali would skip is an error here, never an edge less.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use tests::consumers::{Prometheus, Series};

/// Who talked to whom. All but the two clusters have to be there.
const ENDS: [&str; 13] = [
    "source_cluster",
    "source_workload_namespace",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_cluster",
    "destination_service_namespace",
    "destination_service",
    "destination_service_name",
    "destination_workload_namespace",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
];
/// How it went.
const RESULT: [&str; 4] = ["request_protocol", "response_code", "grpc_response_status", "response_flags"];
const UNKNOWN: &str = "unknown";
/// What is looked back at.
const WINDOW: &str = "10s";

/// An edge as a test names it: from, service, to, protocol, result.
pub(crate) type Edge = (String, String, String, String, String);

/// The selectors by which Kiali asks for the requests of a namespace in a mesh with waypoints.
fn selectors(namespace: &str) -> [String; 4] {
    [
        format!(
            "reporter=~\"waypoint|source\",source_workload_namespace!=\"{namespace}\",destination_workload_namespace=\"unknown\",\
             destination_workload=\"unknown\",destination_service=~\"^.+\\\\.{namespace}\\\\..+$\""
        ),
        format!("reporter=\"source\",source_workload_namespace!=\"{namespace}\",destination_workload_namespace=\"{namespace}\""),
        format!("reporter=~\"waypoint|destination\",destination_workload_namespace=\"{namespace}\""),
        format!("reporter=~\"waypoint|source\",source_workload_namespace=\"{namespace}\""),
    ]
}

fn query(metric: &str, selector: &str, by: &[&str]) -> String {
    format!("sum(rate({metric}{{{selector}}}[{WINDOW}])) by ({}) > 0", by.join(","))
}

/// Kiali's queries for a namespace: metric by metric, with what is to be grouped by.
pub(crate) fn queries(namespace: &str) -> Vec<String> {
    let [failed, ambient, inbound, outbound] = selectors(namespace);
    let requests: Vec<&str> = ENDS.into_iter().chain(RESULT).collect();
    let connections: Vec<&str> = ["app"].into_iter().chain(ENDS).chain(["response_flags"]).collect();
    let mut queries = Vec::new();
    for selector in [&failed, &ambient, &inbound, &outbound] {
        queries.push(query("istio_requests_total", selector, &requests));
    }
    for metric in ["istio_request_messages_total", "istio_response_messages_total"] {
        queries.extend([&inbound, &outbound].map(|selector| query(metric, selector, &ENDS)));
    }
    for metric in ["istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"] {
        queries.extend([&inbound, &outbound].map(|selector| query(metric, &format!("{selector},app!=\"ztunnel\""), &connections)));
    }
    queries
}

/// Why Kiali would leave a series out; none if it would not.
fn skipped(labels: &BTreeMap<String, String>, is_request: bool) -> Option<&'static str> {
    let text = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    let is_known = |name: &str| text(name) != UNKNOWN;
    if ENDS.iter().any(|name| !name.ends_with("_cluster") && text(name).is_empty()) {
        return Some("a label of its ends is missing");
    }
    if is_request && ["request_protocol", "response_code", "response_flags"].iter().any(|name| text(name).is_empty()) {
        return Some("a label of its result is missing");
    }
    let source_is_named = is_known("source_workload") || is_known("source_canonical_service");
    if is_known("source_workload_namespace") && (!source_is_named || !is_known("source_cluster")) {
        return Some("its source is not whole");
    }
    // Where the destination's is not known, the source's counts.
    if is_known("destination_service_namespace") && !is_known("destination_cluster") && !is_known("source_cluster") {
        return Some("its destination is not whole");
    }
    None
}

fn edge(labels: &BTreeMap<String, String>, protocol: Option<&str>) -> Edge {
    let text = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let end = |side: &str| format!("{}/{}", text(&format!("{side}_workload_namespace")), text(&format!("{side}_workload")));
    let protocol = protocol.map_or_else(|| text("request_protocol"), str::to_owned);
    let result = match (protocol.as_str(), text("response_code").as_str()) {
        // An HTTP code that is an error goes before gRPC's.
        ("grpc", "200") => text("grpc_response_status"),
        ("tcp", _) => text("response_flags"),
        (_, code) => code.to_owned(),
    };
    (end("source"), text("destination_service"), end("destination"), protocol, result)
}

/// The graph of some namespaces.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// By all labels of a series: what several queries answer alike is one edge.
    series: BTreeMap<BTreeMap<String, String>, Edge>,
}

impl Graph {
    pub(crate) async fn of(prometheus: &Prometheus, namespaces: &[&str]) -> Result<Self> {
        let mut graph = Self::default();
        for namespace in namespaces {
            for query in queries(namespace) {
                // Messages make no edges of their own.
                if query.contains("_messages_total") {
                    continue;
                }
                let protocol = query.contains("istio_tcp_").then_some("tcp");
                for Series { labels, .. } in prometheus.query(&query).await? {
                    if let Some(reason) = skipped(&labels, protocol.is_none()) {
                        bail!("Kiali would skip {labels:?}: {reason}");
                    }
                    let edge = edge(&labels, protocol);
                    graph.series.insert(labels, edge);
                }
            }
        }
        Ok(graph)
    }

    /// Its edges.
    ///
    /// # Errors
    /// One is there twice: series that differ in a label that is no part of it.
    pub(crate) fn edges(&self) -> Result<BTreeSet<Edge>> {
        let mut edges: BTreeMap<&Edge, &BTreeMap<String, String>> = BTreeMap::new();
        for (labels, edge) in &self.series {
            if let Some(other) = edges.insert(edge, labels) {
                ensure!(other == labels, "{edge:?} is there twice: {other:?} and {labels:?}");
            }
        }
        edges.into_keys().map(|edge| Ok(edge.clone())).collect::<Result<_>>().context("edges")
    }
}

/// What Kiali asks beside the graph's shape: response times, throughput, locks on edges, health of a service.
pub(crate) fn details() -> Vec<String> {
    let by = ENDS.join(",");
    let of_web = "destination_service_name=\"web\",destination_service_namespace=\"shop\"";
    vec![
        format!(
            "histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket{{reporter=~\"waypoint|destination\"}}[{WINDOW}])) by (le,{by})) > 0"
        ),
        format!(
            "sum(rate(istio_request_duration_milliseconds_sum{{reporter=~\"waypoint|source\"}}[{WINDOW}])) by ({by}) / \
             sum(rate(istio_request_duration_milliseconds_count{{reporter=~\"waypoint|source\"}}[{WINDOW}])) by ({by}) > 0"
        ),
        format!("sum(rate(istio_request_bytes_sum{{reporter=~\"waypoint|source\"}}[{WINDOW}])) by ({by}) > 0"),
        format!("sum(rate(istio_response_bytes_sum{{reporter=~\"waypoint|source\"}}[{WINDOW}])) by ({by}) > 0"),
        format!(
            "sum(rate(istio_requests_total{{reporter=~\"waypoint|destination\",connection_security_policy=\"mutual_tls\",\
             source_principal=~\"spiffe://.+\",destination_principal=~\"spiffe://.+\"}}[{WINDOW}])) by ({by},connection_security_policy) > 0"
        ),
        format!("sum(rate(istio_requests_total{{{of_web}}}[{WINDOW}])) > 0"),
        format!("sum(rate(istio_requests_total{{{of_web},response_code=~\"^0$|^[45]\\\\d\\\\d$\"}}[{WINDOW}])) > 0"),
        format!("sum(rate(istio_requests_total{{destination_service_name=\"ratings\",grpc_response_status=~\"^0$\"}}[{WINDOW}])) > 0"),
    ]
}
