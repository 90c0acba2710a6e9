//! The request that the contract's golden lines describe: `vote-bot` calls `web-svc.emojivoto` through its waypoint.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method};
use model::access_log::{AccessLog, LogFormat, LogTarget};
use model::collector::{Call, Collector};
use model::format::{JsonFormat, JsonValue, TextFormat};
use model::identity::SpiffeId;
use model::metrics::{REPORTING_INTERVAL_DEFAULT, Reporter, Stats};
use model::service::ServiceRef;
use model::tracing::{CustomTag, Dialect, Sampling, SpanProvider, TagSource, Tracing};
use model::workload::{Workload, WorkloadType};

use crate::export::Connecting;
use crate::record::{ChainTelemetry, Head, RequestRecord, StreamRecord, UpstreamLocal};

/// `L` of the contract, labels 1 to 20.
pub(crate) const LABELS: &str = "reporter=\"waypoint\",source_workload=\"vote-bot\",source_canonical_service=\"vote-bot\",\
    source_canonical_revision=\"latest\",source_workload_namespace=\"emojivoto\",\
    source_principal=\"spiffe://cluster.local/ns/emojivoto/sa/default\",source_app=\"vote-bot\",source_version=\"latest\",\
    source_cluster=\"Kubernetes\",destination_workload=\"web\",destination_workload_namespace=\"emojivoto\",\
    destination_principal=\"spiffe://cluster.local/ns/emojivoto/sa/web\",destination_app=\"web-svc\",destination_version=\"v11\",\
    destination_service=\"web-svc.emojivoto.svc.cluster.local\",destination_canonical_service=\"web-svc\",\
    destination_canonical_revision=\"v11\",destination_service_name=\"web-svc\",destination_service_namespace=\"emojivoto\",\
    destination_cluster=\"Kubernetes\"";

pub(crate) fn workload(name: &str, account: &str, canonical: (&str, &str)) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("Kubernetes//Pod/emojivoto/{name}-1").into(),
        name: format!("{name}-1").into(),
        namespace: "emojivoto".into(),
        workload_name: name.into(),
        workload_type: WorkloadType::Deployment,
        canonical_name: canonical.0.into(),
        canonical_revision: canonical.1.into(),
        cluster_id: "Kubernetes".into(),
        network: "".into(),
        identity: SpiffeId::new("cluster.local", "emojivoto", account).unwrap(),
        region: "".into(),
        zone: "".into(),
        addresses: Vec::new(),
    })
}

pub(crate) fn stats() -> Stats {
    Stats {
        reporter: Reporter::Waypoint,
        dropped: Vec::new(),
        tags: Vec::new(),
        custom: Vec::new(),
        reporting_interval: REPORTING_INTERVAL_DEFAULT,
    }
}

pub(crate) fn chain(stats: Option<Stats>, logs: Vec<AccessLog>, tracing: Option<Tracing>) -> Arc<ChainTelemetry> {
    Arc::new(ChainTelemetry::new("inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local".into(), stats, logs, tracing))
}

/// The format of the provider `access-log-json` of the deployment that this project was asked for.
pub(crate) fn seed_format() -> LogFormat {
    let labels = [
        ("timestamp", "%START_TIME%"),
        ("method", "%REQ(:METHOD)%"),
        ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
        ("protocol", "%PROTOCOL%"),
        ("response_code", "%RESPONSE_CODE%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("duration_ms", "%DURATION%"),
        ("upstream_host", "%UPSTREAM_HOST%"),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%"),
        ("trace_id", "%TRACE_ID%"),
        ("span_id", "%REQ(X-B3-SPANID)%"),
        ("authority", "%REQ(:AUTHORITY)%"),
        ("user_agent", "%REQ(USER-AGENT)%"),
        ("request_id", "%REQ(X-REQUEST-ID)%"),
    ];
    let labels: BTreeMap<_, _> = labels.into_iter().map(|(key, text)| (key.to_owned(), JsonValue::Text(text.to_owned()))).collect();
    LogFormat::Json(JsonFormat::parse(&labels, false, &mut Vec::new()))
}

pub(crate) fn text_format(text: &str) -> LogFormat {
    LogFormat::Text(TextFormat::parse(text, &mut Vec::new()))
}

pub(crate) fn log_to(path: &std::path::Path, format: LogFormat) -> AccessLog {
    AccessLog { target: LogTarget::File(path.to_str().unwrap().into()), format, filters: Vec::new() }
}

pub(crate) fn collector() -> Collector {
    Collector {
        cluster: "outbound|4317||tempo.tempo.svc.cluster.local".into(),
        authority: "tempo.tempo.svc.cluster.local".into(),
        call: Call::Grpc,
        headers: Vec::new(),
        timeout: None,
    }
}

pub(crate) fn tracing() -> Tracing {
    let format = |text| TagSource::Format(TextFormat::parse(text, &mut Vec::new()));
    Tracing {
        random_sampling: Sampling::percent(100.0),
        client_sampling: Sampling::percent(100.0),
        overall_sampling: Sampling::percent(100.0),
        request_id: model::tracing::RequestIdUse::default(),
        propagates: true,
        spans_of_tries: false,
        semantic_names: false,
        custom_tags: [
            CustomTag { tag: "istio.mesh_id".into(), source: TagSource::Literal("cluster.local".into()) },
            CustomTag { tag: "istio.source_workload".into(), source: format("%FILTER_STATE(downstream_peer_obj:FIELD:workload)%") },
            CustomTag { tag: "istio.destination_workload".into(), source: format("%FILTER_STATE(upstream_peer_obj:FIELD:workload)%") },
        ]
        .into(),
        provider: Some(Arc::new(SpanProvider {
            collector: collector(),
            dialect: Dialect::Otlp { service_name: "waypoint.emojivoto".into(), reads_environment: false },
        })),
        path_bytes_max: 256,
    }
}

fn fill(stream: &mut StreamRecord) {
    stream.start_time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_465_906_500);
    stream.start = Instant::now();
    stream.end = Some(stream.start + Duration::from_micros(7_900));
    stream.source = Some(workload("vote-bot", "default", ("vote-bot", "latest")));
    stream.source_identity = Some(SpiffeId::new("cluster.local", "emojivoto", "default").unwrap());
    stream.local_identity = Some(SpiffeId::new("cluster.local", "emojivoto", "waypoint").unwrap());
    stream.destination = Some(workload("web", "web", ("web-svc", "v11")));
    stream.service = Some(Arc::new(ServiceRef {
        host: "web-svc.emojivoto.svc.cluster.local".into(),
        name: "web-svc".into(),
        namespace: "emojivoto".into(),
    }));
    stream.cluster = Some("inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local".into());
    stream.cluster_stat_name = Some("inbound-vip|80|http|web-svc.emojivoto.svc.cluster.local;".into());
    stream.upstream_host = Some("envoy://connect_originate/10.42.0.74:8080".into());
    stream.upstream_local = Some(UpstreamLocal::Tunnel);
    stream.downstream_local = Some("10.43.7.9:80".parse().unwrap());
    stream.downstream_remote = Some("10.42.0.51:33952".parse().unwrap());
    stream.route_name = Some("default".into());
    stream.attempts = 1;
}

/// `GET /ok?a=1`, answered 200 with 5 bytes after 7 ms.
pub(crate) fn request(chain: &Arc<ChainTelemetry>) -> RequestRecord {
    let mut record = RequestRecord::new(Arc::clone(chain), "HTTP/1.1");
    fill(&mut record.stream);
    record.head = Some(Head {
        method: Method::GET,
        path: Some(PathAndQuery::from_static("/ok?a=1")),
        authority: Some("web-svc.emojivoto".parse().unwrap()),
        scheme: Scheme::HTTP,
    });
    record.capture_request(&headers(&[("user-agent", "t/1"), ("x-request-id", "fb02baa0-d9f3-9e14-8eb6-1b4dd37b51ad"), ("x-other", "no")]));
    record.request_id = Some("fb02baa0-d9f3-9e14-8eb6-1b4dd37b51ad".parse().unwrap());
    record.capture_response(&HeaderMap::new());
    record.response_code = 200;
    record.stream.details = Some("via_upstream".into());
    record.stream.bytes_sent = 5;
    record.wire_bytes_received = 66;
    record.wire_bytes_sent = 232;
    record
}

pub(crate) fn connection(chain: &Arc<ChainTelemetry>) -> crate::record::ConnectionRecord {
    let mut record = crate::record::ConnectionRecord::new(Arc::clone(chain));
    fill(&mut record.stream);
    record
}

pub(crate) fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
}

/// A connector that reaches nothing.
pub(crate) fn unreachable(_: &Collector) -> Connecting {
    Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
}

/// Waits until `done` says so; fails after ten seconds.
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
