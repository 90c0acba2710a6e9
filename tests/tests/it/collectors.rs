//! What leaves for collectors, on the wire: records of logs, and spans over HTTP. Golden tests' names begin with their row in
//! `docs/contracts.md`.
//!
//! Not for: what records and spans say in detail, which is tested where they are made.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogCommon, HttpAccessLogEntry};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use http::{Method, StatusCode};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use prost::Message as _;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::empty;
use tests::scenario::{DB, DB_CHAIN, Mesh, WEB, WEB_CHAIN};
use tests::telemetry_sink::{Message, Speaks, TelemetrySink};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(15);
const SINK: &str = "outbound|9000||sink.telemetry.svc.cluster.local";
const AUTHORITY: &str = "sink.telemetry.svc.cluster.local";
const LOGS_PATH: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn grpc_service() -> Value {
    json!({"envoy_grpc": {"cluster_name": SINK, "authority": AUTHORITY}, "initial_metadata": [{"key": "x-tenant", "value": "shop"}]})
}

fn http_service(path: &str) -> Value {
    json!({
        // As istiod writes it: without a scheme.
        "http_uri": {"uri": format!("{AUTHORITY}{path}"), "cluster": SINK, "timeout": "2s"},
        "request_headers_to_add": [{"header": {"key": "x-tenant", "value": "shop"}}],
    })
}

/// The logger that istiod makes of the provider `envoyOtelAls`.
fn otel_logger(body: &str) -> Value {
    json!({
        "name": "otel-envoy-accesslog",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
            "common_config": {
                "log_name": "otel_envoy_accesslog", "grpc_service": grpc_service(), "transport_api_version": "V3",
                "filter_state_objects_to_log": ["upstream_peer", "downstream_peer"],
            },
            "disable_builtin_labels": true,
            "body": {"string_value": body},
            "attributes": {"values": [
                {"key": "response_code", "value": {"string_value": "%RESPONSE_CODE%"}},
                {"key": "user", "value": {"string_value": "%REQ(X-USER)%"}},
            ]},
        },
    })
}

/// The first record whose body begins so, and the attributes of its resource.
fn record(request: &[u8], begins: &str) -> Option<(LogRecord, usize)> {
    let request = ExportLogsServiceRequest::decode(request).ok()?;
    request.resource_logs.into_iter().find_map(|logs| {
        let resource = logs.resource.map_or(0, |resource| resource.attributes.len());
        let records = logs.scope_logs.into_iter().flat_map(|scope| scope.log_records);
        let mut found = records.filter(|record| text(record.body.as_ref().and_then(|body| body.value.as_ref())).starts_with(begins));
        Some((found.next()?, resource))
    })
}

fn text(value: Option<&AnyValue>) -> String {
    match value {
        Some(AnyValue::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn l25_a_request_is_a_log_record_of_a_collector_with_the_ids_of_its_span() -> Result<()> {
    let sink = TelemetrySink::start(Speaks::Grpc).await?;
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.insert(Kind::Cluster, SINK, sink.cluster(SINK));
            scenario.http(WEB_CHAIN)?["access_log"] = json!([otel_logger("%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_FLAGS%\n")]);
            Ok(())
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/recorded").await?.status, StatusCode::OK);
    let (message, (record, resource)) =
        sink.wait_for("the record", DEADLINE, |message| Some((message.clone(), record(&message.body, "GET /recorded")?))).await?;
    assert_eq!(message.path, LOGS_PATH);
    assert_eq!(message.headers["x-tenant"], "shop");
    assert_eq!(resource, 0, "built-in labels are switched off");
    assert_eq!(text(record.body.as_ref().and_then(|body| body.value.as_ref())), "GET /recorded -\n");
    let attributes: BTreeMap<_, _> = record
        .attributes
        .iter()
        .map(|pair| (pair.key.as_str(), text(pair.value.as_ref().and_then(|value| value.value.as_ref()))))
        .collect();
    assert_eq!(attributes, BTreeMap::from([("response_code", "200".to_owned()), ("user", "-".to_owned())]));
    let trace_id = hex(&record.trace_id);
    let span = mesh.spans.wait_for("the span of the record", DEADLINE, |span| span.trace_id == trace_id).await?;
    assert_eq!(span.span_id, hex(&record.span_id));
    mesh.waypoint.metric("waypoint_access_log_lines_total", |line| line == "waypoint_access_log_lines_total 1").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l25_a_tcp_connection_is_a_log_record_over_http_and_a_changed_log_counts_at_once() -> Result<()> {
    let sink = TelemetrySink::start(Speaks::Http1).await?;
    let mut mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.insert(Kind::Cluster, SINK, sink.cluster(SINK));
            Ok(())
        })?
        .start()
        .await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    let connection = mesh.connect("frontend-0").await?;
    tests::peer::exchange_raw(connection.tunnel(DB).await?, b"before", true).await?;
    mesh.push_accepted(|scenario| {
        let mut logger = otel_logger("tcp %BYTES_RECEIVED% %ACCESS_LOG_TYPE%");
        let config = &mut logger["typed_config"];
        *config = json!({
            "@type": config["@type"], "body": config["body"], "http_service": http_service("/v1/logs"), "log_name": "tcp",
            "resource_attributes": {"values": [{"key": "team", "value": {"string_value": "shop"}}]},
        });
        let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("filters")?;
        let proxy = filters.last_mut().context("a proxy")?;
        proxy["typed_config"]["access_log"] = json!([logger]);
        Ok(())
    })
    .await?;
    tests::peer::exchange_raw(connection.tunnel(DB).await?, b"sixsix", true).await?;
    let (message, (record, resource)) =
        sink.wait_for("the record", DEADLINE, |message| Some((message.clone(), record(&message.body, "tcp 6")?))).await?;
    assert_eq!((message.path.as_str(), &message.headers["x-tenant"]), ("/v1/logs", &"shop".parse()?));
    assert_eq!((&message.headers["host"], &message.headers["content-type"]), (&AUTHORITY.parse()?, &"application/x-protobuf".parse()?));
    assert_eq!(text(record.body.as_ref().and_then(|body| body.value.as_ref())), "tcp 6 TcpConnectionEnd");
    assert_eq!((record.trace_id.len(), resource), (0, 5), "four labels of where it is from, and the one that is configured");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_are_exported_over_http_to_the_path_that_is_configured() -> Result<()> {
    let sink = TelemetrySink::start(Speaks::Http1).await?;
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.insert(Kind::Cluster, SINK, sink.cluster(SINK));
            let provider = &mut scenario.http(WEB_CHAIN)?["tracing"]["provider"]["typed_config"];
            *provider = json!({"@type": provider["@type"], "http_service": http_service("/v1/traces"), "service_name": "waypoint.shop"});
            Ok(())
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    // A collector that cannot take them now is asked again.
    sink.answer(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/traced").await?.status, StatusCode::OK);
    sink.wait_for("a first try", DEADLINE, |_| Some(())).await?;
    sink.answer(StatusCode::OK);
    mesh.waypoint.metric("waypoint_spans_exported_total", |line| line == "waypoint_spans_exported_total 1").await?;
    let message = sink.messages().pop().context("a message")?;
    assert_eq!((message.path.as_str(), &message.headers["x-tenant"]), ("/v1/traces", &"shop".parse()?));
    let request = ExportTraceServiceRequest::decode(message.body)?;
    assert_eq!(request.resource_spans[0].scope_spans[0].spans[0].name, "web.shop.svc.cluster.local:80/*");
    Ok(())
}

/// The logger that istiod makes of the providers `envoyHttpAls` and `envoyTcpAls`.
fn grpc_logger(kind: &str) -> Value {
    json!({
        "name": format!("envoy.access_loggers.{}_grpc", kind.to_lowercase()),
        "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.access_loggers.grpc.v3.{kind}GrpcAccessLogConfig"),
            "common_config": {
                "log_name": format!("{kind}_envoy_accesslog"), "grpc_service": grpc_service(), "transport_api_version": "V3",
                "filter_state_objects_to_log": ["upstream_peer", "downstream_peer"],
            },
        },
    })
}

fn http_entries(message: &Message) -> Vec<HttpAccessLogEntry> {
    match StreamAccessLogsMessage::decode(&message.body[..]).ok().and_then(|message| message.log_entries) {
        Some(LogEntries::HttpLogs(entries)) => entries.log_entry,
        _ => Vec::new(),
    }
}

/// What two proxies say alike of a request: without times, ids, ports of clients, sizes of heads, and what only Istio's Envoy knows.
fn alike(mut entry: HttpAccessLogEntry) -> HttpAccessLogEntry {
    if let Some(common) = &mut entry.common_properties {
        let kept = std::mem::take(common);
        *common = AccessLogCommon {
            downstream_local_address: kept.downstream_local_address,
            upstream_remote_address: kept.upstream_remote_address,
            upstream_local_address: kept.upstream_local_address,
            upstream_cluster: kept.upstream_cluster,
            response_flags: kept.response_flags,
            upstream_transport_failure_reason: kept.upstream_transport_failure_reason,
            route_name: kept.route_name,
            upstream_request_attempt_count: kept.upstream_request_attempt_count,
            connection_termination_details: kept.connection_termination_details,
            access_log_type: kept.access_log_type,
            ..AccessLogCommon::default()
        };
    }
    if let Some(request) = &mut entry.request {
        request.request_id = String::new();
        (request.request_headers_bytes, request.downstream_header_bytes_received, request.upstream_header_bytes_sent) = (0, 0, 0);
    }
    if let Some(response) = &mut entry.response {
        let bytes = [&mut response.response_headers_bytes, &mut response.downstream_header_bytes_sent];
        bytes.into_iter().chain([&mut response.upstream_header_bytes_received]).for_each(|bytes| *bytes = 0);
    }
    entry
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_log_service_is_told_of_a_request_what_envoy_tells_it() -> Result<()> {
    let sink = TelemetrySink::start(Speaks::Grpc).await?;
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.insert(Kind::Cluster, SINK, sink.cluster(SINK));
            let mut logger = grpc_logger("Http");
            let config = &mut logger["typed_config"];
            config["additional_request_headers_to_log"] =
                json!(["X-User", ":path", ":Method", ":authority", ":scheme", "host", ":protocol"]);
            config["additional_response_headers_to_log"] = json!([":status", "x-none"]);
            scenario.http(WEB_CHAIN)?["access_log"] = json!([logger]);
            scenario.add_routes(WEB_CHAIN, vec![json!({"match": {"path": "/teapot"}, "direct_response": {"status": 418}, "name": "tea"})])
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    for path in ["/ok", "/teapot"] {
        let mut said = Vec::new();
        for (proxy, hbone) in [("ours1", mesh.hbone()), ("envoy", envoy.hbone())] {
            let mut http = peer.connect(hbone).await?.http1(WEB).await?;
            let request =
                http.request(Method::GET, path).header("user-agent", proxy).header("x-user", "alice").header("referer", "http://web.shop/");
            http.send(request.body(empty())?).await?;
            let is_it = |entry: &HttpAccessLogEntry| entry.request.as_ref().is_some_and(|r| r.user_agent == proxy && r.path == path);
            let mut entry = sink.wait_for(proxy, DEADLINE, |message| http_entries(message).into_iter().find(is_it)).await?;
            if let Some(request) = &mut entry.request {
                request.user_agent = String::new();
            }
            said.push(entry);
        }
        let envoys = said.pop().context("an entry")?;
        let ours = said.pop().context("an entry")?;
        assert_eq!(alike(ours), alike(envoys), "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_log_service_is_told_who_sends_who_the_peers_are_and_what_the_span_is() -> Result<()> {
    let sink = TelemetrySink::start(Speaks::Grpc).await?;
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.insert(Kind::Cluster, SINK, sink.cluster(SINK));
            scenario.http(WEB_CHAIN)?["access_log"] = json!([grpc_logger("Http")]);
            let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("filters")?;
            filters.last_mut().context("a proxy")?["typed_config"]["access_log"] = json!([grpc_logger("Tcp")]);
            Ok(())
        })?
        .start()
        .await?;
    let (_web, _db) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("db-v1-1", App::Tcp { greets: false }).await?);
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.get(WEB, "/served").await?.status, StatusCode::OK);
    let first = |message: &Message| Some((message.clone(), http_entries(message).pop()?));
    let (message, entry) = sink.wait_for("the entry", DEADLINE, first).await?;
    assert_eq!(message.path, "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs");
    let identifier = StreamAccessLogsMessage::decode(&message.body[..])?.identifier.context("who sends")?;
    let node = identifier.node.context("a node")?;
    assert_eq!((identifier.log_name.as_str(), node.cluster.as_str()), ("Http_envoy_accesslog", "waypoint.shop"));
    assert!(node.id.starts_with("waypoint~") && node.metadata.is_some(), "{node:?}");
    let common = entry.common_properties.context("common properties")?;
    assert_eq!(common.filter_state_objects.len(), 2);
    let (trace_id, span_id) = (&common.custom_tags["trace_id"], &common.custom_tags["span_id"]);
    let span = mesh.spans.wait_for("the span of the entry", DEADLINE, |span| span.trace_id == *trace_id).await?;
    assert_eq!(span.span_id, *span_id);
    tests::peer::exchange_raw(connection.tunnel(DB).await?, b"sixsix", true).await?;
    let tcp = |message: &Message| match StreamAccessLogsMessage::decode(&message.body[..]).ok()?.log_entries? {
        LogEntries::TcpLogs(mut entries) => entries.log_entry.pop()?.connection_properties,
        LogEntries::HttpLogs(_) => None,
    };
    let counted = sink.wait_for("the entry of the connection", DEADLINE, tcp).await?;
    assert_eq!(counted.received_bytes, 6);
    Ok(())
}

/// The provider that istiod makes of `zipkin`.
fn zipkin_provider(option: &str) -> Value {
    json!({
        "name": "envoy.tracers.zipkin",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
            "collector_service": {"http_uri": {"uri": format!("http://{AUTHORITY}/api/v2/spans"), "cluster": SINK, "timeout": "5s"}},
            "collector_endpoint_version": "HTTP_JSON", "trace_id_128bit": true, "shared_span_context": false,
            "trace_context_option": option,
        },
    })
}

/// A span without what differs from request to request and from proxy to proxy: ids, times, addresses, and tags of who is who.
fn zipkin_alike(span: &Value) -> Value {
    let mut span = span.clone();
    for member in ["id", "timestamp", "duration", "annotations", "localEndpoint"] {
        span[member] = Value::Bool(span.get(member).is_some());
    }
    if let Some(tags) = span["tags"].as_object_mut() {
        tags.retain(|name, _| !name.starts_with("istio.") && !["node_id", "peer.address", "guid:x-request-id"].contains(&name.as_str()));
    }
    span
}

#[tokio::test(flavor = "multi_thread")]
async fn zipkin_is_told_of_a_request_what_envoy_tells_it_and_endpoints_see_its_headers() -> Result<()> {
    let sink = TelemetrySink::start(Speaks::Http1).await?;
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.insert(Kind::Cluster, SINK, sink.cluster(SINK));
            scenario.http(WEB_CHAIN)?["tracing"]["provider"] = zipkin_provider("USE_B3_WITH_W3C_PROPAGATION");
            Ok(())
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    let (trace, caller) = ("463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312");
    let (mut said, mut seen) = (Vec::new(), Vec::new());
    for (proxy, hbone) in [("ours1", mesh.hbone()), ("envoy", envoy.hbone())] {
        let mut http = peer.connect(hbone).await?.http1(WEB).await?;
        let request = http.request(Method::GET, "/zipkin").header("user-agent", proxy).header("x-b3-traceid", trace);
        let answer = http.send(request.header("x-b3-spanid", caller).header("x-b3-sampled", "1").body(empty())?).await?;
        let find = |message: &Message| {
            let spans: Vec<Value> = serde_json::from_slice(&message.body).ok()?;
            Some((message.clone(), spans.into_iter().find(|span| span["tags"]["user_agent"] == proxy)?))
        };
        let (message, mut span) = sink.wait_for(proxy, DEADLINE, find).await?;
        assert_eq!((message.path.as_str(), &message.headers["content-type"]), ("/api/v2/spans", &"application/json".parse()?));
        let id = span["id"].as_str().context("an id")?.to_owned();
        let told = answer.json();
        let headers = told["headers"].as_array().context("headers")?.iter();
        let trace_headers = headers.filter_map(|pair| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.replace(&id, "SPAN"))));
        seen.push(trace_headers.filter(|(name, _)| name.contains("b3") || name.starts_with("trace")).collect::<BTreeMap<_, _>>());
        span["tags"]["user_agent"] = Value::Null;
        said.push(zipkin_alike(&span));
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0]["x-b3-parentspanid"], caller);
    Ok(())
}
