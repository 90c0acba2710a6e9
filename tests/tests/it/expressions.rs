//! Attributes of expressions (CEL), beside a stock Envoy: the same request, connection and answer made here, and what each of them says.
//!
//! Not for: the language itself, which is tested where it is evaluated. Invariant: what is excused is different, and stands in
//! `docs/differences.md`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::{empty, exchange_raw};
use tests::process::Lines;
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(20);

const EXPRESSIONS: &[&str] = &[
    "request.path",
    "request.url_path",
    "request.query",
    "request.host",
    "request.scheme",
    "request.method",
    "request.referer",
    "request.useragent",
    "request.protocol",
    "request.size",
    "has(request.id)",
    "has(request.time)",
    "has(request.duration)",
    "request.duration >= duration('0s')",
    "request.total_size >= 0",
    "request.headers['x-odd']",
    "request.headers['x-none']",
    "has(request.headers)",
    "has(request.none)",
    "'x-odd' in request.headers",
    "response.code",
    "response.code_details",
    "response.flags",
    "response.grpc_status",
    "response.size",
    "response.total_size >= 0",
    "response.headers['server']",
    "response.headers['x-none']",
    "response.trailers['x-none']",
    "has(response.headers)",
    "has(response.backend_latency)",
    "response.backend_latency <= request.duration",
    "source.address == 'x'",
    "has(source.port)",
    "destination.address",
    "destination.port",
    "connection.mtls",
    "connection.requested_server_name",
    "connection.tls_version",
    "connection.subject_local_certificate",
    "connection.subject_peer_certificate",
    "connection.dns_san_local_certificate",
    "connection.dns_san_peer_certificate",
    "connection.uri_san_local_certificate",
    "connection.uri_san_peer_certificate",
    "connection.sha256_peer_certificate_digest",
    "connection.termination_details",
    "connection.transport_failure_reason",
    "has(connection.id)",
    "has(connection.mtls)",
    "has(connection.tls_version)",
    "has(connection.none)",
    "has(connection.requested_server_name)",
    "upstream.address",
    "upstream.port",
    "upstream.local_address",
    "upstream.tls_version",
    "upstream.subject_local_certificate",
    "upstream.subject_peer_certificate",
    "upstream.dns_san_peer_certificate",
    "upstream.uri_san_local_certificate",
    "upstream.uri_san_peer_certificate",
    "upstream.sha256_peer_certificate_digest",
    "upstream.transport_failure_reason",
    "upstream.request_attempt_count",
    "has(upstream.cx_pool_ready_duration)",
    "has(upstream.address)",
    "xds.cluster_name",
    "xds.route_name",
    "xds.listener_direction",
    "xds.filter_chain_name",
    "xds.virtual_host_name",
    "xds.cluster_metadata.filter_metadata['istio']['services'][0]['host']",
    "xds.cluster_metadata.filter_metadata.istio.services[0].name",
    "xds.cluster_metadata.filter_metadata.istio.services[0].namespace",
    "xds.cluster_metadata.filter_metadata['none']",
    "has(xds.cluster_metadata)",
    "xds.route_metadata.filter_metadata['istio']['config']",
    "has(xds.route_metadata)",
    "xds.upstream_host_metadata.filter_metadata['istio']['workload']",
    "has(xds.upstream_host_metadata)",
    "xds.listener_metadata.filter_metadata['istio']",
    "xds.virtual_host_metadata.filter_metadata['istio']",
    "xds.node.id == ''",
    "xds.node.cluster",
    "xds.node.locality.zone",
    "has(xds.node)",
    "has(xds.none)",
    "filter_state['none']",
    "'none' in filter_state",
    "upstream_filter_state['none']",
    "has(filter_state.none)",
    "metadata.filter_metadata['none']['key']",
    "has(metadata.filter_metadata)",
    "'none' in metadata.filter_metadata",
    "none",
    "duration('90s')",
    "duration('1h2m3.5s')",
    "duration('1.5ms')",
    "duration('250us')",
    "duration('-1s')",
    "duration('0s')",
    "duration('x')",
    "duration('1s') + duration('500ms')",
    "duration('2s') > duration('1500ms')",
    "duration('100ms') - duration('1s')",
    "timestamp('2026-01-02T03:04:05.678Z')",
    "timestamp('2026-01-02T03:04:05Z')",
    "timestamp('2026-01-02T03:04:05+01:00')",
    "timestamp('x')",
    "request.time > timestamp('2020-01-01T00:00:00Z')",
    "timestamp('2026-01-02T03:04:05Z') + duration('1h')",
    "timestamp('2026-01-02T03:04:05Z') - timestamp('2026-01-02T03:04:00Z')",
    "int(timestamp('2026-01-02T03:04:05Z'))",
    "1.0",
    "1.5",
    "1e20",
    "1e100",
    "0.1 + 0.2",
    "1.0 / 3.0",
    "double(7)",
    "double('x')",
    "int(1e20)",
    "int('7')",
    "int(-1.9)",
    "uint(7)",
    "uint(-1)",
    "5u",
    "-5",
    "9223372036854775807 + 1",
    "1 / 0",
    "1.0 / 0.0",
    "5 - 7u",
    "2 * 3 + 4",
    "true",
    "!true",
    "null",
    "[1, 2]",
    "1 in [1, 2]",
    "size([1, 2])",
    "size('é')",
    "size(request.path) > 1",
    "'a' < 'b'",
    "'a' == 1",
    "1 == 1.0",
    "1u == 1",
    "'aXb'.contains('X')",
    "'ab'.matches('^a')",
    "matches('ab', 'b$')",
    "dyn(1) == 1",
    "true ? 1 : 'x'",
    "false || true",
    "request.headers['x-none'] == 'a' || true",
    "request.headers['x-none'] == 'a' && false",
    "'a'.startsWith('a')",
    "request.headers['x-odd'].size()",
    "none.member",
    "plugin_name",
];

/// Expressions that say something else here, and the difference that is why.
const EXCUSED: [(&str, &str); 4] = [
    ("has(connection.id)", "unkept"),
    ("has(upstream.cx_pool_ready_duration)", "unkept"),
    ("xds.virtual_host_name", "unkept"),
    ("xds.upstream_host_metadata.filter_metadata['istio']['workload']", "unkept"),
];

fn logger() -> Value {
    let mut members = json!({"path": "%REQ(:PATH)%"});
    for expression in EXPRESSIONS {
        members[*expression] = format!("%CEL({expression})%").into();
    }
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/stdout", "log_format": {"json_format": members},
        },
    })
}

fn configuration(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    scenario.http(WEB_CHAIN)?["access_log"] = json!([logger()]);
    let answer = json!({"direct_response": {"status": 404}, "match": {"prefix": "/answered"}, "name": "answered"});
    scenario.add_routes(WEB_CHAIN, vec![answer])?;
    let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("filters")?;
    filters.last_mut().context("a proxy")?["typed_config"]["access_log"] = json!([logger()]);
    Ok(())
}

/// The line of a path; that of a connection has none.
async fn line(output: &Lines, path: Option<&str>) -> Result<Value> {
    until("the line", DEADLINE, async || {
        let lines: Vec<Value> = output.all().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let found = lines.iter().find(|line| line.get("request.path").is_some() && line["path"].as_str() == path);
        Ok(found.map_or_else(|| Look::NotYet(format!("{lines:?}")), |line| Look::Done(line.clone())))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_say_what_envoy_says() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(configuration)?.quiet().start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let (_web, _db) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("db-v1-1", App::Tcp { greets: false }).await?);
    let peer = mesh.peer("frontend-0")?;
    let paths = [Some("/hello?a=1"), Some("/answered"), None];
    for hbone in [mesh.hbone(), envoy.hbone()] {
        let connection = peer.connect(hbone).await?;
        let mut http = connection.http1(WEB).await?;
        for path in paths.into_iter().flatten() {
            let request = http.request(Method::GET, path).header("x-odd", "a").header("referer", "http://web.shop/from");
            http.send(request.body(empty())?).await?;
        }
        exchange_raw(connection.tunnel(DB).await?, b"sixsix", true).await?;
    }
    let (mut found, mut unused): (Vec<String>, Vec<_>) = (Vec::new(), EXCUSED.iter().map(|(expression, _)| *expression).collect());
    for path in paths {
        let (ours, theirs) = (line(mesh.waypoint.output_lines(), path).await?, line(envoy.output(), path).await?);
        for expression in EXPRESSIONS {
            if ours[expression] == theirs[expression] {
                continue;
            }
            let is_excused = EXCUSED.iter().any(|(excused, _)| excused == expression);
            unused.retain(|excused| excused != expression);
            if !is_excused {
                found.push(format!("{path:?}: {expression}: {} here, {} there", ours[expression], theirs[expression]));
            }
        }
    }
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
    assert!(unused.is_empty(), "these excuse nothing: {unused:?}");
    Ok(())
}
