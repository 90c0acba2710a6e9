#![expect(clippy::unwrap_used, reason = "tests")]

mod cost;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::flags::ResponseFlag;
use model::format::Expression;
use model::metrics::{CustomKind, CustomMetric, Tag};
use prometheus::core::Collector as _;
use prometheus::{Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, Opts, TextEncoder};

use super::histogram::Bounds;
use super::*;
use crate::fixture::{self, LABELS};
use crate::grpc::GrpcStatus;

const OUTCOME: &str = "request_protocol=\"http\",response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",\
    connection_security_policy=\"mutual_tls\"";

struct Metrics {
    worker: WorkerMetrics,
    folded: prometheus::IntCounter,
}

impl Metrics {
    fn new() -> Self {
        Self::bounded(SERIES_MAX)
    }

    fn bounded(series_max: usize) -> Self {
        let folded = prometheus::IntCounter::new("folded", "folded").unwrap();
        Self { worker: WorkerMetrics::new(Arc::new(Store::new(series_max, folded.clone(), &[])), 0), folded }
    }

    fn text(&self) -> String {
        let mut out = Vec::new();
        write(&self.worker.store, &[], Exposition::Text, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))).map(str::to_owned).collect()
    }

    /// The labels of the one series of `name`.
    fn labels(&self, name: &str) -> Vec<(String, String)> {
        let lines = self.lines(name);
        assert_eq!(lines.len(), 1, "{lines:?}");
        labels_of(&lines[0])
    }
}

fn labels_of(line: &str) -> Vec<(String, String)> {
    let inside = &line[line.find('{').unwrap() + 1..line.rfind('}').unwrap()];
    let pairs = inside.strip_suffix('"').unwrap().split("\",");
    pairs.map(|pair| pair.split_once("=\"").unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn recorded(change: impl FnOnce(&mut RequestRecord)) -> Metrics {
    let mut metrics = Metrics::new();
    let mut record = fixture::request(&fixture::chain(Some(fixture::stats()), Vec::new(), None));
    change(&mut record);
    metrics.worker.record_request(&mut record);
    metrics
}

fn value<'a>(labels: &'a [(String, String)], name: &str) -> &'a str {
    &labels.iter().find(|(label, _)| label == name).unwrap().1
}

fn values<'a>(labels: &'a [(String, String)], names: &[&str]) -> Vec<&'a str> {
    names.iter().map(|name| value(labels, name)).collect()
}

#[test]
fn m01_a_normal_request_prints_the_golden_line() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    for _ in 0..100 {
        metrics.worker.record_request(&mut fixture::request(&chain));
    }
    let expected = format!("# TYPE istio_requests_total counter\nistio_requests_total{{{LABELS},{OUTCOME}}} 100\n");
    assert!(metrics.text().starts_with(&expected), "{}", metrics.text());
}

#[test]
fn m01_histograms_count_whole_milliseconds_and_wire_bytes() {
    let text = recorded(|_| {}).text();
    for (name, below, first, sum) in [
        ("istio_request_duration_milliseconds", "5", "10", 7),
        ("istio_request_bytes", "50", "100", 66),
        ("istio_response_bytes", "100", "250", 232),
    ] {
        for (suffix, value) in [
            (format!("_bucket{{{LABELS},{OUTCOME},le=\"{below}\"}}"), 0),
            (format!("_bucket{{{LABELS},{OUTCOME},le=\"{first}\"}}"), 1),
            (format!("_bucket{{{LABELS},{OUTCOME},le=\"+Inf\"}}"), 1),
            (format!("_sum{{{LABELS},{OUTCOME}}}"), sum),
            (format!("_count{{{LABELS},{OUTCOME}}}"), 1),
        ] {
            assert!(text.contains(&format!("\n{name}{suffix} {value}\n")), "{name}{suffix}");
        }
        let of_buckets = text.lines().filter(|line| line.starts_with(&format!("{name}_bucket{{")));
        let bounds: Vec<_> = of_buckets.filter_map(|line| line.split_once(",le=\"")?.1.split_once('"')).map(|(bound, _)| bound).collect();
        assert_eq!(bounds.join(" "), BOUNDS, "{name}");
    }
}

/// Envoy's, as it prints them.
const BOUNDS: &str = "0.5 1 5 10 25 50 100 250 500 1000 2500 5000 10000 30000 60000 300000 600000 1800000 3600000 +Inf";

#[test]
fn one_edge_with_one_status_is_sixty_seven_lines_and_names_come_in_order() {
    let text = recorded(|_| {}).text();
    let (types, series): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with('#'));
    assert_eq!(series.len(), 67);
    assert_eq!(
        types,
        [
            "# TYPE istio_requests_total counter",
            "# TYPE istio_request_bytes histogram",
            "# TYPE istio_request_duration_milliseconds histogram",
            "# TYPE istio_response_bytes histogram",
        ]
    );
}

#[test]
fn m03_a_client_that_discovery_does_not_know_is_unknown_but_its_revision_is_latest() {
    let labels = recorded(|record| record.stream.source = None).labels("istio_requests_total");
    let names = ["source_workload", "source_canonical_service", "source_app", "source_version", "source_cluster"];
    assert_eq!(values(&labels, &names), ["unknown"; 5]);
    assert_eq!(value(&labels, "source_canonical_revision"), "latest");
    assert_eq!(value(&labels, "source_workload_namespace"), "emojivoto");
    assert_eq!(value(&labels, "source_principal"), "spiffe://cluster.local/ns/emojivoto/sa/default");
    assert_eq!(value(&labels, "connection_security_policy"), "mutual_tls");
}

#[test]
fn m04_an_endpoint_that_discovery_does_not_know_is_unknown_and_so_is_its_revision() {
    let labels = recorded(|record| record.stream.destination = None).labels("istio_requests_total");
    let names = [
        "destination_workload",
        "destination_workload_namespace",
        "destination_principal",
        "destination_app",
        "destination_version",
        "destination_canonical_service",
        "destination_canonical_revision",
        "destination_cluster",
    ];
    assert_eq!(values(&labels, &names), ["unknown"; 8]);
    let service = ["destination_service", "destination_service_name", "destination_service_namespace"];
    assert_eq!(values(&labels, &service), ["web-svc.emojivoto.svc.cluster.local", "web-svc", "emojivoto"]);
}

#[test]
fn m06_the_certificate_names_the_source_namespace_before_discovery_does() {
    let id = SpiffeId::new("cluster.local", "a", "default").unwrap();
    let labels = recorded(|record| record.stream.source_identity = Some(id)).labels("istio_requests_total");
    assert_eq!(value(&labels, "source_workload_namespace"), "a");
}

#[test]
fn m07_without_a_namespace_in_the_certificate_it_is_discoverys() {
    let labels = recorded(|record| record.stream.source_identity = None).labels("istio_requests_total");
    assert_eq!(value(&labels, "source_workload_namespace"), "emojivoto");
}

#[test]
fn m23_without_tls_there_is_no_principal_and_nothing_is_mutual_tls() {
    let labels =
        recorded(|record| (record.stream.source_identity, record.stream.local_identity) = (None, None)).labels("istio_requests_total");
    assert_eq!(values(&labels, &["source_principal", "connection_security_policy"]), ["unknown", "none"]);
}

#[test]
fn m08_a_service_without_a_name_is_called_what_its_host_begins_with() {
    let service = ServiceRef { host: "web-svc.emojivoto.svc.cluster.local".into(), name: "".into(), namespace: "".into() };
    let labels = recorded(|record| record.stream.service = Some(Arc::new(service))).labels("istio_requests_total");
    assert_eq!(values(&labels, &["destination_service_name", "destination_service_namespace"]), ["web-svc", "unknown"]);
}

fn without_service(route: Option<&str>, cluster: Option<&str>) -> Vec<String> {
    let labels = recorded(|record| {
        record.stream.service = None;
        record.stream.route_name = route.map(Arc::from);
        record.stream.cluster = cluster.map(Arc::from);
        record.head.as_mut().unwrap().authority = Some("elsewhere.shop".parse().unwrap());
    })
    .labels("istio_requests_total");
    values(&labels, &["destination_service", "destination_service_name", "destination_service_namespace"])
        .into_iter()
        .map(str::to_owned)
        .collect()
}

#[test]
fn m09_a_cluster_without_a_service_is_unknown_whatever_the_host() {
    assert_eq!(without_service(Some("default"), Some("encap")), ["unknown"; 3]);
}

#[test]
fn m10_well_known_routes_and_clusters_name_themselves() {
    assert_eq!(without_service(Some("block_all"), None), ["unknown", "BlackHoleCluster", "unknown"]);
    assert_eq!(without_service(Some("allow_any"), Some("PassthroughCluster")), ["unknown", "PassthroughCluster", "unknown"]);
    assert_eq!(without_service(None, Some("InboundPassthroughClusterIpv4"))[1], "InboundPassthroughClusterIpv4");
}

#[test]
fn m18_a_client_that_went_away_leaves_code_0_and_no_destination_workload() {
    let metrics = recorded(|record| {
        record.response_code = 0;
        record.stream.flags.insert(ResponseFlag::DownstreamConnectionTermination);
    });
    let labels = metrics.labels("istio_requests_total");
    let names = ["response_code", "response_flags", "destination_workload", "destination_service_name"];
    assert_eq!(values(&labels, &names), ["0", "DC", "unknown", "web-svc"]);
    assert!(metrics.lines("istio_request_duration_milliseconds_count")[0].ends_with(" 1"));
}

#[test]
fn m21b_flags_print_in_the_order_they_were_set() {
    let labels = recorded(|record| {
        record.response_code = 503;
        record.stream.flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
        record.stream.flags.insert(ResponseFlag::UpstreamConnectionFailure);
    })
    .labels("istio_requests_total");
    assert_eq!(values(&labels, &["response_code", "response_flags"]), ["503", "URX,UF"]);
}

fn grpc(code: u16, status: Option<GrpcStatus>) -> Vec<String> {
    let metrics = recorded(|record| {
        record.is_grpc = true;
        record.response_code = code;
        record.grpc_status = status;
    });
    let labels = metrics.labels("istio_requests_total");
    values(&labels, &["request_protocol", "response_code", "grpc_response_status"]).into_iter().map(str::to_owned).collect()
}

#[test]
fn m11_a_grpc_request_carries_its_status() {
    assert_eq!(grpc(200, Some(GrpcStatus::OK)), ["grpc", "200", "0"]);
    assert_eq!(grpc(200, Some(GrpcStatus::new(14))), ["grpc", "200", "14"]);
}

#[test]
fn m13_without_a_status_a_grpc_requests_comes_from_http() {
    assert_eq!(grpc(404, None), ["grpc", "404", "12"]);
    assert_eq!(grpc(0, None), ["grpc", "0", ""]);
}

#[test]
fn m16_grpc_web_is_http() {
    for (content_type, is_grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", false),
        ("application/grpc-web+proto", false),
        ("application/json", false),
    ] {
        assert_eq!(crate::grpc::is_grpc(&fixture::headers(&[("content-type", content_type)])), is_grpc, "{content_type}");
    }
}

#[test]
fn m17_without_grpc_its_status_is_there_and_empty() {
    assert!(recorded(|_| {}).lines("istio_requests_total")[0].contains(",grpc_response_status=\"\","));
}

#[test]
fn m15_a_grpc_request_denied_before_the_stats_filter_counts_as_http() {
    let labels = recorded(|record| record.grpc_status = Some(GrpcStatus::new(7))).labels("istio_requests_total");
    assert_eq!(values(&labels, &["request_protocol", "grpc_response_status"]), ["http", ""]);
}

#[test]
fn m11_m14_grpc_messages_are_counted_as_they_come_with_the_first_twenty_labels() {
    let mut metrics = Metrics::new();
    let mut record = fixture::request(&fixture::chain(Some(fixture::stats()), Vec::new(), None));
    record.is_grpc = true;
    record.grpc_messages = Some(GrpcMessages { request: 1, response: 0 });
    metrics.worker.report_messages(&mut record);
    assert_eq!(metrics.lines("istio_request_messages_total"), [format!("istio_request_messages_total{{{LABELS}}} 1")]);
    assert_eq!(metrics.lines("istio_response_messages_total"), [format!("istio_response_messages_total{{{LABELS}}} 0")]);
    assert!(metrics.lines("istio_requests_total").is_empty());
    record.grpc_messages = Some(GrpcMessages { request: 1, response: 3 });
    metrics.worker.record_request(&mut record);
    assert_eq!(metrics.lines("istio_request_messages_total"), [format!("istio_request_messages_total{{{LABELS}}} 1")]);
    assert_eq!(metrics.lines("istio_response_messages_total"), [format!("istio_response_messages_total{{{LABELS}}} 3")]);
    assert_eq!(metrics.lines("istio_requests_total").len(), 1);
}

#[test]
fn m24_a_short_tcp_connection_is_counted_at_its_close() {
    let mut metrics = Metrics::new();
    let mut record = fixture::connection(&fixture::chain(Some(fixture::stats()), Vec::new(), None));
    (record.stream.bytes_received, record.stream.bytes_sent) = (6, 5);
    metrics.worker.record_connection(&mut record);
    for (name, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 6),
        ("istio_tcp_sent_bytes_total", 5),
    ] {
        assert!(metrics.lines(name)[0].ends_with(&format!("}} {value}")), "{name}");
        let labels = metrics.labels(name);
        assert_eq!(labels.len(), 23, "{name}");
        assert_eq!(values(&labels, &["request_protocol", "response_flags"]), ["tcp", "-"]);
    }
}

#[test]
fn m25_tcp_metrics_exist_from_the_first_report_and_keep_its_labels() {
    let labels = format!("{LABELS},request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"");
    let mut metrics = Metrics::new();
    let mut record = fixture::connection(&fixture::chain(Some(fixture::stats()), Vec::new(), None));
    metrics.worker.report_connection(&mut record);
    let opened = format!("istio_tcp_connections_opened_total{{{labels}}} 1");
    assert_eq!(
        metrics.text(),
        format!(
            "# TYPE istio_tcp_connections_opened_total counter\n{opened}\n\
             # TYPE istio_tcp_received_bytes_total counter\nistio_tcp_received_bytes_total{{{labels}}} 0\n\
             # TYPE istio_tcp_sent_bytes_total counter\nistio_tcp_sent_bytes_total{{{labels}}} 0\n"
        )
    );
    (record.stream.bytes_received, record.stream.bytes_sent) = (6, 5);
    metrics.worker.report_connection(&mut record);
    record.stream.flags.insert(ResponseFlag::UpstreamRemoteReset);
    record.stream.bytes_sent = 8;
    metrics.worker.record_connection(&mut record);
    assert_eq!(metrics.lines("istio_tcp_connections_opened_total"), [opened]);
    for (name, value) in
        [("istio_tcp_connections_closed_total", 1), ("istio_tcp_received_bytes_total", 6), ("istio_tcp_sent_bytes_total", 8)]
    {
        assert_eq!(metrics.lines(name), [format!("{name}{{{labels}}} {value}")], "labels stay what they were at the first report");
    }
}

fn tag(metric: Option<Metric>, name: &str, value: Option<&str>) -> Tag {
    Tag { metric, name: name.into(), value: value.map(|text| Expression::parse(text).unwrap()) }
}

/// A request on a chain with these labels.
fn tagged(tags: Vec<Tag>, change: impl FnOnce(&mut RequestRecord)) -> Metrics {
    let mut metrics = Metrics::new();
    let mut record = fixture::request(&fixture::chain(Some(Stats { tags, ..fixture::stats() }), Vec::new(), None));
    change(&mut record);
    metrics.worker.record_request(&mut record);
    metrics
}

#[test]
fn m27_a_label_is_removed_and_another_added_on_one_metric_only() {
    let on = Some(Metric::RequestsTotal);
    let tags = vec![tag(on, "source_principal", None), tag(on, "custom_dimension", Some("'test'"))];
    let metrics = tagged(tags, |_| {});
    let line = metrics.lines("istio_requests_total").remove(0);
    assert!(!line.contains("source_principal"), "{line}");
    assert!(line.ends_with(",connection_security_policy=\"mutual_tls\",custom_dimension=\"test\"} 1"), "{line}");
    let other = format!("istio_request_bytes_count{{{LABELS},{OUTCOME}}} 1");
    assert_eq!(metrics.lines("istio_request_bytes_count"), [other]);
}

#[test]
fn m28_an_added_label_comes_last_on_all_metrics() {
    let stats = Stats { tags: vec![tag(None, "destination_port", Some("string(destination.port)"))], ..fixture::stats() };
    let chain = fixture::chain(Some(stats), Vec::new(), None);
    let mut metrics = Metrics::new();
    let mut record = fixture::request(&chain);
    record.is_grpc = true;
    record.grpc_messages = Some(GrpcMessages::default());
    metrics.worker.record_request(&mut record);
    metrics.worker.record_connection(&mut fixture::connection(&chain));
    let text = metrics.text();
    let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(text.lines().filter(|line| line.starts_with('#')).count(), 10);
    for line in series {
        let last = labels_of(line).into_iter().rfind(|(name, _)| name != "le").unwrap();
        assert_eq!(last, ("destination_port".to_owned(), "80".to_owned()), "{line}");
    }
}

#[test]
fn m29_an_expression_without_a_value_is_unknown() {
    let metrics = tagged(vec![tag(None, "x", Some("request.headers['x-none']"))], |_| {});
    assert_eq!(value(&metrics.labels("istio_requests_total"), "x"), "unknown");
}

#[test]
fn m30_a_standard_label_keeps_its_place_when_its_value_is_replaced() {
    let metrics = tagged(vec![tag(None, "request_protocol", Some("'z'"))], |_| {});
    let expected = OUTCOME.replace("request_protocol=\"http\"", "request_protocol=\"z\"");
    assert_eq!(metrics.lines("istio_requests_total"), [format!("istio_requests_total{{{LABELS},{expected}}} 1")]);
}

#[test]
fn requests_that_differ_in_a_varying_label_are_counted_apart() {
    let tags = vec![tag(None, "user", Some("request.headers['x-user']")), tag(None, "class", Some("response.code < 300 ? '2xx' : 'rest'"))];
    let chain = fixture::chain(Some(Stats { tags, ..fixture::stats() }), Vec::new(), None);
    let mut metrics = Metrics::new();
    for (user, count) in [("alice", 2), ("bob", 1)] {
        for _ in 0..count {
            let mut record = fixture::request(&chain);
            record.capture_request(&fixture::headers(&[("x-user", user)]));
            metrics.worker.record_request(&mut record);
        }
    }
    let lines = metrics.lines("istio_requests_total");
    assert_eq!(lines.len(), 2);
    assert!(lines[0].ends_with("class=\"2xx\",user=\"alice\"} 2") && lines[1].ends_with("class=\"2xx\",user=\"bob\"} 1"), "{lines:?}");
}

#[test]
fn labels_of_message_counters_stay_what_they_were_at_the_first_report() {
    let stats = Stats { tags: vec![tag(None, "code", Some("response.code"))], ..fixture::stats() };
    let mut metrics = Metrics::new();
    let mut record = fixture::request(&fixture::chain(Some(stats), Vec::new(), None));
    (record.is_grpc, record.response_code) = (true, 0);
    record.grpc_messages = Some(GrpcMessages { request: 1, response: 0 });
    metrics.worker.report_messages(&mut record);
    record.response_code = 200;
    record.grpc_messages = Some(GrpcMessages { request: 3, response: 1 });
    metrics.worker.record_request(&mut record);
    assert_eq!(value(&metrics.labels("istio_requests_total"), "code"), "200");
    let messages = metrics.lines("istio_request_messages_total");
    assert_eq!(messages.len(), 1);
    assert!(messages[0].ends_with(",code=\"unknown\"} 3"), "{messages:?}");
}

#[test]
fn m31_a_disabled_metric_has_no_series_and_others_have() {
    let mut metrics = Metrics::new();
    let stats = Stats { dropped: vec![Metric::RequestDurationMilliseconds], ..fixture::stats() };
    metrics.worker.record_request(&mut fixture::request(&fixture::chain(Some(stats), Vec::new(), None)));
    assert!(!metrics.text().contains("istio_request_duration_milliseconds"));
    for name in ["istio_requests_total", "istio_request_bytes_count", "istio_response_bytes_count"] {
        assert_eq!(metrics.lines(name).len(), 1, "{name}");
    }
}

#[test]
fn m32_a_chain_without_stats_counts_nothing() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(None, Vec::new(), None);
    metrics.worker.record_request(&mut fixture::request(&chain));
    metrics.worker.record_connection(&mut fixture::connection(&chain));
    assert_eq!(metrics.text(), "");
}

#[test]
fn m36_histograms_have_the_bounds_that_were_asked_for_by_their_names() {
    let bounds = |bounds: &[f64]| Bounds::new(bounds).unwrap();
    let buckets = |asked: &[(String, Bounds)], name: &str| {
        let folded = prometheus::IntCounter::new("folded", "folded").unwrap();
        let store = Arc::new(Store::new(SERIES_MAX, folded.clone(), asked));
        let mut metrics = Metrics { worker: WorkerMetrics::new(store, 0), folded };
        metrics.worker.record_request(&mut fixture::request(&fixture::chain(Some(fixture::stats()), Vec::new(), None)));
        let lines = metrics.lines(&format!("{name}_bucket"));
        lines.iter().map(|line| (value(&labels_of(line), "le").to_owned(), line.ends_with(" 1"))).collect::<Vec<_>>()
    };
    let all = [("istiocustom".to_owned(), bounds(&[1.0, 10.0]))];
    let expected = [("1".to_owned(), false), ("10".to_owned(), true), ("+Inf".to_owned(), true)];
    assert_eq!(buckets(&all, "istio_request_duration_milliseconds"), expected);
    let one = [("istiocustom.istio_request_bytes".to_owned(), bounds(&[0.5]))];
    assert_eq!(buckets(&one, "istio_request_bytes").len(), 2);
    assert_eq!(buckets(&one, "istio_response_bytes").len(), 20);
}

#[test]
fn m34_quotes_backslashes_and_newlines_are_escaped() {
    let odd = fixture::workload("a\"b\\c\nd\té", "default", ("x", "y"));
    let line = recorded(|record| record.stream.source = Some(odd)).lines("istio_requests_total").remove(0);
    assert!(line.contains("source_workload=\"a\\\"b\\\\c\\nd\té\","), "{line}");
}

#[test]
fn m34_a_header_in_a_label_is_escaped() {
    let metrics = tagged(vec![tag(None, "x", Some("request.headers['x-odd'] + '\\n'"))], |record| {
        record.capture_request(&fixture::headers(&[("x-odd", "a\"b\\c")]));
    });
    let line = metrics.lines("istio_requests_total").remove(0);
    assert!(line.contains(r#"x="a\"b\\c\n"}"#), "{line}");
}

#[test]
fn workers_are_summed_and_a_replaced_workload_with_equal_labels_is_the_same_series() {
    let mut metrics = Metrics::new();
    let mut other = WorkerMetrics::new(Arc::clone(&metrics.worker.store), 1);
    for _ in 0..3 {
        // Each has workloads, a service and a chain of its own, with equal contents.
        let record = || fixture::request(&fixture::chain(Some(fixture::stats()), Vec::new(), None));
        metrics.worker.record_request(&mut record());
        other.record_request(&mut record());
    }
    assert_eq!(metrics.lines("istio_requests_total"), [format!("istio_requests_total{{{LABELS},{OUTCOME}}} 6")]);
    assert!(metrics.lines("istio_request_bytes_sum")[0].ends_with(" 396"));
}

#[test]
fn m38_a_new_revision_of_a_workload_is_seen_by_the_next_request() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    let mut record = fixture::request(&chain);
    metrics.worker.record_request(&mut record);
    record.stream.destination = Some(fixture::workload("web", "web", ("web-svc", "v12")));
    metrics.worker.record_request(&mut record);
    let revisions: Vec<_> = metrics
        .lines("istio_requests_total")
        .iter()
        .map(|line| value(&labels_of(line), "destination_canonical_revision").to_owned())
        .collect();
    assert_eq!(revisions, ["v11", "v12"]);
}

fn custom(name: &str, kind: CustomKind, value: &str, labels: &[(&str, &str)]) -> CustomMetric {
    let labels = labels.iter().map(|(name, text)| ((*name).into(), Expression::parse(text).unwrap())).collect();
    CustomMetric { name: name.into(), kind, value: Expression::parse(value).unwrap(), labels }
}

fn counting(metrics: &[CustomMetric]) -> Arc<ChainTelemetry> {
    fixture::chain(Some(Stats { custom: metrics.to_vec(), ..fixture::stats() }), Vec::new(), None)
}

#[test]
fn metrics_of_ones_own_have_their_value_and_only_the_labels_that_they_were_given() {
    let chain = counting(&[
        custom("istio_own_total", CustomKind::Counter, "response.size + 1", &[("host", "request.host"), ("none", "request.headers['x']")]),
        custom("istio_own_code", CustomKind::Gauge, "response.code", &[]),
        custom("istio_own_size", CustomKind::Histogram, "request.total_size", &[("reporter", "'me'")]),
        custom("istio_own_nothing", CustomKind::Counter, "request.host", &[]),
    ]);
    let mut metrics = Metrics::new();
    for code in [200, 503] {
        let mut record = fixture::request(&chain);
        record.response_code = code;
        metrics.worker.record_request(&mut record);
    }
    let text = metrics.text();
    for line in [
        "# TYPE istio_own_total counter\nistio_own_total{host=\"web-svc.emojivoto\",none=\"unknown\"} 12\n",
        "# TYPE istio_own_code gauge\nistio_own_code{} 503\n",
        "istio_own_size_bucket{reporter=\"me\",le=\"100\"} 2\n",
        "istio_own_size_sum{reporter=\"me\"} 132\n",
        "istio_own_nothing{} 0\n",
    ] {
        assert!(text.contains(line), "{line} of {text}");
    }
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let is_sorted = |kind: &str| names.iter().filter(|(_, of)| *of == kind).is_sorted();
    assert!(is_sorted("counter") && is_sorted("gauge") && is_sorted("histogram"), "{names:?}");
}

#[test]
fn metrics_of_ones_own_count_connections_when_they_close() {
    let chain = counting(&[custom("istio_own_bytes", CustomKind::Counter, "request.size", &[("port", "string(destination.port)")])]);
    let mut metrics = Metrics::new();
    let mut record = fixture::connection(&chain);
    metrics.worker.report_connection(&mut record);
    assert!(!metrics.text().contains("istio_own_bytes"));
    record.stream.bytes_received = 6;
    metrics.worker.record_connection(&mut record);
    assert_eq!(metrics.lines("istio_own_bytes"), ["istio_own_bytes{port=\"80\"} 6"]);
}

#[test]
fn names_that_could_be_taken_for_others_and_other_kinds_of_a_name_are_not_counted() {
    let mut metrics = Metrics::new();
    for (name, kind) in [
        ("istio_requests", CustomKind::Gauge),
        ("istio_request_bytes_sum", CustomKind::Counter),
        ("istio_build", CustomKind::Gauge),
        ("istio_agent_cert_expiry_seconds", CustomKind::Gauge),
        ("istio_own", CustomKind::Gauge),
        ("istio_own", CustomKind::Counter),
        ("istio_own_total", CustomKind::Counter),
    ] {
        metrics.worker.record_request(&mut fixture::request(&counting(&[custom(name, kind, "7", &[])])));
    }
    let text = metrics.text();
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert_eq!(metrics.lines("istio_own"), ["istio_own{} 7"]);
}

#[test]
fn no_more_than_so_many_names_of_ones_own_are_counted() {
    let mut metrics = Metrics::new();
    for number in 0..CUSTOM_NAMES_MAX + 10 {
        let own = custom(&format!("istio_m{number}"), CustomKind::Counter, "1", &[]);
        metrics.worker.record_request(&mut fixture::request(&counting(&[own])));
    }
    assert_eq!(metrics.text().matches("# TYPE istio_m").count(), CUSTOM_NAMES_MAX);
}

#[test]
fn series_of_ones_own_have_a_bound_and_expire() {
    let own = custom("istio_own", CustomKind::Counter, "1", &[("code", "string(response.code)")]);
    let stats = Stats { custom: vec![own], dropped: Metric::ALL.to_vec(), ..fixture::stats() };
    let chain = fixture::chain(Some(stats), Vec::new(), None);
    let mut metrics = Metrics::bounded(3);
    for code in 200..210 {
        let mut record = fixture::request(&chain);
        record.response_code = code;
        metrics.worker.record_request(&mut record);
    }
    let lines = metrics.lines("istio_own");
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().any(|line| line == "istio_own{code=\"overflow\"} 7"), "{lines:?}");
    assert_eq!((metrics.folded.get(), metrics.worker.store.series_count()), (7, 3));

    let (start, idle) = (Instant::now(), Duration::from_secs(60));
    metrics.worker.store.expire(start, idle);
    metrics.worker.store.expire(start + idle, idle);
    assert_eq!(metrics.lines("istio_own").len(), 4, "the worker remembers them");
    metrics.worker.forget();
    metrics.worker.store.expire(start + idle + idle, idle);
    assert_eq!((metrics.text().as_str(), metrics.worker.store.series_count()), ("", 0));
}

#[test]
fn series_of_ones_own_take_no_place_from_istio_s() {
    let own = custom("istio_own", CustomKind::Counter, "1", &[("code", "string(response.code)")]);
    let only = Stats { custom: vec![own], dropped: Metric::ALL.to_vec(), ..fixture::stats() };
    let (own, standard) = (fixture::chain(Some(only), Vec::new(), None), fixture::chain(Some(fixture::stats()), Vec::new(), None));
    let mut metrics = Metrics::bounded(4);
    for code in 200..210 {
        let mut record = fixture::request(&own);
        record.response_code = code;
        metrics.worker.record_request(&mut record);
    }
    metrics.worker.record_request(&mut fixture::request(&standard));
    assert!(!metrics.lines("istio_requests_total").iter().any(|line| line.contains("overflow")));
    assert_eq!(metrics.lines("istio_own").len(), 5);
}

#[test]
fn series_beyond_the_limit_are_counted_in_one_named_overflow() {
    let mut metrics = Metrics::bounded(4);
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    for code in 200..300 {
        let mut record = fixture::request(&chain);
        record.response_code = code;
        metrics.worker.record_request(&mut record);
    }
    let lines = metrics.lines("istio_requests_total");
    assert_eq!(lines.len(), 2);
    let overflow = lines.iter().find(|line| line.contains("response_code=\"overflow\"")).unwrap();
    assert!(overflow.starts_with("istio_requests_total{reporter=\"waypoint\",source_workload=\"overflow\",") && overflow.ends_with(" 99"));
    assert_eq!(labels_of(overflow).len(), 25);
    assert_eq!(metrics.folded.get(), 99 * 4);
}

#[test]
fn what_series_take_is_their_labels_once_and_their_cells() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    assert_eq!(metrics.worker.store.bytes(), 0);
    let mut one = fixture::request(&chain);
    metrics.worker.record_request(&mut one);
    let first = metrics.worker.store.bytes();
    // 25 labels of which four metrics share the text, and three times twenty buckets of 8 bytes.
    let text = u64::try_from(metrics.lines("istio_requests_total")[0].len()).unwrap();
    assert!((text + 480..text + 480 + 2000).contains(&first), "{first} with a text of {text}");
    metrics.worker.record_request(&mut fixture::request(&chain));
    assert_eq!(metrics.worker.store.bytes(), first, "the same series");
    let mut other = fixture::request(&chain);
    other.response_code = 503;
    metrics.worker.record_request(&mut other);
    assert_eq!(metrics.worker.store.bytes(), 2 * first);
}

#[test]
fn a_worker_forgets_series_without_losing_counts() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    let rounds = u16::try_from(REMEMBERED_MAX).unwrap() + 10;
    for round in 0..2 {
        for code in 0..rounds {
            let mut record = fixture::request(&chain);
            record.response_code = code;
            metrics.worker.record_request(&mut record);
            assert!(metrics.worker.requests.cells.len() <= REMEMBERED_MAX, "{round}");
        }
    }
    let lines = metrics.lines("istio_requests_total");
    assert!(lines.len() == usize::from(rounds) && lines.iter().all(|line| line.ends_with(" 2")));
}

/// Series of a text, without regard to the order of lines.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.map(|line| line.rsplit_once(' ').unwrap()).map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn the_text_agrees_with_the_prometheus_crates_for_the_same_numbers() {
    let metrics = recorded(|record| record.stream.source = Some(fixture::workload("a\"b\\c\nd", "default", ("x", "y"))));
    let labels = metrics.labels("istio_requests_total");
    let unescape = |value: &str| value.replace("\\n", "\n").replace("\\\"", "\"").replace("\\\\", "\\");
    let values: Vec<_> = labels.iter().map(|(_, value)| unescape(value)).collect();
    let values: Vec<_> = values.iter().map(String::as_str).collect();
    let names: Vec<_> = labels.iter().map(|(name, _)| name.as_str()).collect();

    let mut families = Vec::new();
    let counter = IntCounterVec::new(Opts::new("istio_requests_total", "h"), &names).unwrap();
    counter.with_label_values(&values).inc();
    families.extend(counter.collect());
    let bounds: Vec<f64> = (0..19).map(|bucket| Bounds::default().text(bucket).parse().unwrap()).collect();
    for (name, value) in [("istio_request_duration_milliseconds", 7.0), ("istio_request_bytes", 66.0), ("istio_response_bytes", 232.0)] {
        let histogram = HistogramVec::new(HistogramOpts::new(name, "h").buckets(bounds.clone()), &names).unwrap();
        histogram.with_label_values(&values).observe(value);
        families.extend(histogram.collect());
    }
    let mut theirs = Vec::new();
    TextEncoder::new().encode(&families, &mut theirs).unwrap();

    // The crate sorts labels by name; ours are in Istio's order. Compared as sets of pairs.
    let sorted = |text: &str| -> BTreeMap<(String, Vec<(String, String)>), f64> {
        parsed(text)
            .into_iter()
            .map(|(series, value)| {
                let mut labels = labels_of(&series);
                labels.sort();
                ((series[..series.find('{').unwrap()].to_owned(), labels), value)
            })
            .collect()
    };
    let (ours, theirs) = (sorted(&metrics.text()), sorted(&String::from_utf8(theirs).unwrap()));
    assert_eq!(ours.len(), 67);
    assert_eq!(ours, theirs);
}

#[test]
fn m35_openmetrics_has_the_series_of_the_text_and_durations_name_traces() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    metrics.worker.store.want_exemplars();
    let trace = |trace_id, sampled| {
        Some(crate::trace::TraceContext {
            trace_id,
            span_id: 1,
            parent: None,
            sampled,
            tracestate: http::HeaderValue::from_static(""),
            is_shared: false,
            told: crate::trace::Told::W3c,
        })
    };
    for (trace_id, sampled, seconds) in [(0xa, true, 0), (0xb, true, 1), (0xc, false, 2), (0xd, true, 0)] {
        let mut record = fixture::request(&chain);
        record.trace = trace(trace_id, sampled);
        record.stream.start_time += std::time::Duration::from_secs(seconds);
        metrics.worker.record_request(&mut record);
    }
    let mut page = Vec::new();
    write(&metrics.worker.store, &[], Exposition::OpenMetrics, &mut page).unwrap();
    let own_counter = prometheus::IntCounter::new("waypoint_x_total", "X.").unwrap();
    own_counter.inc();
    own(&own_counter.collect(), Exposition::OpenMetrics, &mut page).unwrap();
    let page = String::from_utf8(page).unwrap();
    assert!(page.starts_with("# TYPE istio_requests counter\nistio_requests_total{"), "{page}");
    assert!(page.ends_with("# HELP waypoint_x X.\n# TYPE waypoint_x counter\nwaypoint_x_total 1\n# EOF\n"), "{page}");
    let exemplars: Vec<_> = page.lines().filter_map(|line| line.split_once(" # ")).collect();
    assert_eq!(exemplars.len(), 1, "{exemplars:?}");
    assert!(exemplars[0].0.ends_with(",le=\"10\"} 4"), "the newest sampled one: {exemplars:?}");
    assert_eq!(exemplars[0].1, format!("{{trace_id=\"{:032x}\"}} 7 1795465907.507", 0xb));
    let series: Vec<_> = page.lines().filter(|line| line.starts_with("istio_")).map(|line| line.split(" # ").next().unwrap()).collect();
    assert_eq!(series, metrics.text().lines().filter(|line| line.starts_with("istio_")).collect::<Vec<_>>());
}

#[test]
fn idle_series_expire_and_no_count_is_lost() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    let store = Arc::clone(&metrics.worker.store);
    let hour = std::time::Duration::from_secs(3600);
    let began = std::time::Instant::now();
    let record = |metrics: &mut Metrics, code| {
        let mut record = fixture::request(&chain);
        record.response_code = code;
        metrics.worker.record_request(&mut record);
    };
    record(&mut metrics, 200);
    record(&mut metrics, 404);
    store.expire(began, hour);
    record(&mut metrics, 200);
    // Both are remembered by the worker; only the one that was used lately may stay.
    store.expire(began + hour, hour);
    assert_eq!(metrics.lines("istio_requests_total").len(), 2, "a worker may still count in it");
    record(&mut metrics, 200);
    store.expire(began + hour, hour);
    assert_eq!(store.series_count(), 4);
    let lines = metrics.lines("istio_requests_total");
    assert!(lines.len() == 1 && lines[0].contains("response_code=\"200\"") && lines[0].ends_with(" 3"), "{lines:?}");
    record(&mut metrics, 404);
    assert_eq!(metrics.lines("istio_requests_total").len(), 2, "it begins anew");
}

#[test]
fn a_label_by_expression_is_cut_between_characters() {
    let long = "é".repeat(200);
    let tags = vec![tag(None, "x", Some("request.headers['x-long']"))];
    let chain = fixture::chain(Some(Stats { tags, ..fixture::stats() }), Vec::new(), None);
    let mut metrics = Metrics::new();
    for end in ["a", "b"] {
        let mut record = fixture::request(&chain);
        let value = http::HeaderValue::from_bytes(format!("{long}{end}").as_bytes()).unwrap();
        record.capture_request(&http::HeaderMap::from_iter([(http::HeaderName::from_static("x-long"), value)]));
        metrics.worker.record_request(&mut record);
    }
    let lines = metrics.lines("istio_requests_total");
    assert!(lines.len() == 1 && lines[0].ends_with(" 2"), "alike as far as it is kept: {lines:?}");
    assert_eq!(value(&labels_of(&lines[0]), "x"), "é".repeat(LABEL_BYTES_MAX / 2));
}

#[test]
fn a_quiet_worker_makes_others_forget_no_more_than_once_in_a_while() {
    let mut metrics = Metrics::new();
    let chain = fixture::chain(Some(fixture::stats()), Vec::new(), None);
    metrics.worker.record_request(&mut fixture::request(&chain));
    let store = Arc::clone(&metrics.worker.store);
    let (began, hour) = (std::time::Instant::now(), std::time::Duration::from_secs(3600));
    let mut generations = Vec::new();
    for minutes in [0, 60, 61, 90, 119, 120] {
        store.expire(began + hour / 60 * minutes, hour);
        generations.push(store.generation());
    }
    assert_eq!(generations, [0, 1, 1, 1, 1, 2]);
    let mut connection = fixture::connection(&chain);
    let mut metrics = Metrics::new();
    metrics.worker.report_connection(&mut connection);
    let store = Arc::clone(&metrics.worker.store);
    store.expire(began, hour);
    store.expire(began + hour, hour);
    assert_eq!(store.generation(), 0, "an open connection is no reason");
    assert_eq!(metrics.lines("istio_tcp_sent_bytes_total").len(), 1);
}

#[test]
fn labels_of_message_counters_are_those_of_their_stream_though_the_worker_forgot() {
    let stats = Stats { tags: vec![tag(None, "code", Some("response.code"))], ..fixture::stats() };
    let mut metrics = Metrics::new();
    let mut record = fixture::request(&fixture::chain(Some(stats), Vec::new(), None));
    (record.is_grpc, record.response_code) = (true, 0);
    record.grpc_messages = Some(GrpcMessages { request: 1, response: 0 });
    metrics.worker.report_messages(&mut record);
    metrics.worker.messages.cells.clear();
    record.response_code = 200;
    record.grpc_messages = Some(GrpcMessages { request: 2, response: 0 });
    metrics.worker.report_messages(&mut record);
    let messages = metrics.lines("istio_request_messages_total");
    assert!(messages.len() == 1 && messages[0].ends_with(",code=\"unknown\"} 2"), "{messages:?}");
}
