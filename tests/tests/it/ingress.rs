//! A stock Envoy as the ingress gateway in front of the waypoint (`istio.io/ingress-use-waypoint`): requests from outside the mesh through
//! the gateway's tunnels, whose CONNECTs have nothing but an authority.
//!
//! Its configuration is what istiod gives a gateway (`endpoint_builder.go`, `listener_waypoint.go`): endpoints behind the internal listener
//! `connect_originate`, with the service's address as `local` and the waypoint's as `waypoint`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, Http, empty, full};
use tests::pki::spiffe;
use tests::process::HBONE_PORT;
use tests::scenario::{Mesh, RATINGS, RATINGS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::net::{TcpSocket, TcpStream};

const DEADLINE: Duration = Duration::from_secs(20);
/// Where the gateway listens.
const PORT: u16 = 8080;
/// Where the collector of spans is.
const COLLECTOR_PORT: u16 = 4317;

/// The gateway's place in the mesh.
fn gateway_address(mesh: &Mesh) -> IpAddr {
    mesh.net.pod(9, 77).into()
}

/// A client outside the mesh.
fn client_address(mesh: &Mesh) -> IpAddr {
    mesh.net.pod(9, 78).into()
}

/// The mesh knows the gateway, and `web` may be asked by nobody else, but for one path.
fn with_gateway(address: IpAddr, scenario: &mut Scenario) -> Result<()> {
    let uid = "Kubernetes//Pod/istio-ingress/gateway-0";
    let IpAddr::V4(address) = address else { anyhow::bail!("addresses of tests are IPv4") };
    scenario.insert(
        Kind::Workload,
        uid,
        json!({
            "uid": uid, "name": "gateway-0", "namespace": "istio-ingress", "addresses": [STANDARD.encode(address.octets())],
            "service_account": "gateway", "canonical_name": "gateway", "canonical_revision": "latest", "workload_type": "POD",
            "workload_name": "gateway-0", "cluster_id": "Kubernetes", "tunnel_protocol": "HBONE",
        }),
    );
    let caller = json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": {"exact": spiffe("istio-ingress", "gateway")}}});
    let secret = json!({"url_path": {"path": {"exact": "/secret"}}});
    let policies = json!({"ns[shop]-policy[gateway]-rule[0]": {"permissions": [{"not_rule": secret}], "principals": [caller]}});
    let config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"action": "ALLOW", "policies": policies},
    });
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    scenario.keep_endpoints(RATINGS_CHAIN, 1)?;
    scenario.add_http_filters(WEB_CHAIN, vec![json!({"name": "envoy.filters.http.rbac", "typed_config": config})])
}

/// The gateway's cluster of a service: its endpoint is the waypoint.
fn cluster(service: &str, waypoint: IpAddr) -> Value {
    let waypoint = SocketAddr::new(waypoint, HBONE_PORT).to_string();
    let address = json!({"envoy_internal_address": {"server_listener_name": "connect_originate", "endpoint_id": service}});
    let metadata = json!({"filter_metadata": {"envoy.filters.listener.original_dst": {"local": service, "waypoint": waypoint}}});
    let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let socket = "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport";
    let raw = json!({"name": "raw_buffer", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}});
    let protocols = json!({"http_protocol_options": {}, "http2_protocol_options": {}});
    json!({
        "name": service, "type": "STATIC", "connect_timeout": "10s",
        "load_assignment": {"cluster_name": service, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}, "metadata": metadata}]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": options, "use_downstream_protocol_config": protocols},
        },
        "transport_socket": {"name": "internal_upstream", "typed_config": {
            "@type": socket, "transport_socket": raw,
            "passthrough_metadata": [{"kind": {"host": {}}, "name": "envoy.filters.listener.original_dst"}],
        }},
    })
}

/// The gateway's listener: what comes from outside is routed by host, and traced.
fn listener(address: IpAddr) -> Value {
    let host = |name: &str, cluster: &str| json!({"name": name, "domains": [name], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}]});
    let tracer = json!({
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "grpc_service": {"envoy_grpc": {"cluster_name": "spans"}, "timeout": "1s"}, "service_name": "gateway.istio-ingress",
    });
    let router = json!({"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound_0.0.0.0_8080", "use_remote_address": true, "normalize_path": true, "server_name": "istio-envoy",
        "route_config": {"name": "http.8080", "virtual_hosts": [host("web.shop", WEB), host("ratings.shop", RATINGS)]},
        "tracing": {"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": tracer}, "random_sampling": {"value": 100}},
        "http_filters": [router],
    });
    json!({
        "name": "0.0.0.0_8080", "address": {"socket_address": {"address": address.to_string(), "port_value": PORT}},
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    })
}

/// A gateway in front of the waypoint, from what istiod gives one.
async fn gateway(mesh: &Mesh) -> Result<Envoy> {
    let sent = mesh.scenario();
    let find = |kind: Kind| {
        let mut all = sent.resources(kind);
        all.find(|(name, _)| *name == "connect_originate").map(|(_, value)| value.clone()).context("no connect_originate")
    };
    let address = gateway_address(mesh);
    let (mut originate, mut resources) = (find(Kind::Cluster)?, Scenario::default());
    // Discovery knows it by its address.
    originate["upstream_bind_config"] = json!({"source_address": {"address": address.to_string(), "port_value": 0}});
    resources.insert(Kind::Cluster, "connect_originate", originate);
    resources.insert(Kind::Listener, "connect_originate", find(Kind::Listener)?);
    for service in [WEB, RATINGS] {
        resources.insert(Kind::Cluster, service, cluster(service, mesh.hbone().ip()));
    }
    let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let collector = json!({"socket_address": {"address": mesh.net.pod(8, 1).to_string(), "port_value": COLLECTOR_PORT}});
    resources.insert(
        Kind::Cluster,
        "spans",
        json!({
            "name": "spans", "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {"cluster_name": "spans", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": collector}}]}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options, "explicit_http_config": {"http2_protocol_options": {}},
            }},
        }),
    );
    resources.insert(Kind::Listener, "0.0.0.0_8080", listener(address));
    Envoy::builder(&resources, &mesh.pki, mesh.net.pod(9, 77)).identity(&spiffe("istio-ingress", "gateway")).start().await
}

/// A connection of the client to the gateway.
async fn client(mesh: &Mesh) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(client_address(mesh), 0))?;
    Ok(socket.connect(SocketAddr::new(gateway_address(mesh), PORT)).await?)
}

/// A header that a pod was asked with; empty if it had none.
fn told(answer: &Answer, name: &str) -> String {
    let pairs = answer.json();
    let found = pairs["headers"].as_array().into_iter().flatten().find(|pair| pair[0] == name);
    found.and_then(|pair| pair[1].as_str()).unwrap_or_default().to_owned()
}

async fn start() -> Result<(Mesh, Envoy, [Workload; 2])> {
    let builder = Mesh::builder("07-telemetry")?;
    let address = builder.net().pod(9, 77).into();
    let mesh = builder.edit(|scenario| with_gateway(address, scenario))?.start().await?;
    let gateway = gateway(&mesh).await?;
    let pods = [mesh.pod("web-v1-1", App::Http).await?, mesh.pod("ratings-v1-1", App::Http).await?];
    Ok((mesh, gateway, pods))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_either_protocol_pass_a_gateway_and_count_as_its_own() -> Result<()> {
    let (mesh, _gateway, _pods) = start().await?;
    for (mut http, version) in [(Http::one(client(&mesh).await?).await?, "HTTP/1.1"), (Http::two(client(&mesh).await?).await?, "HTTP/2")] {
        let path = format!("/hello/{}", version.len());
        let answer = http.get(&path).await?;
        assert_eq!((answer.status, answer.header("x-pod")), (StatusCode::OK, "web-v1-1"), "{}", answer.text());
        // Whom the gateway met, and nobody else: the waypoint adds no peer of its own.
        assert_eq!(told(&answer, "x-forwarded-for"), client_address(&mesh).to_string());
        assert_eq!((told(&answer, "x-forwarded-proto"), told(&answer, "host").is_empty()), ("http".to_owned(), false));
        let (_, line) = mesh.waypoint.access_line("its line", |line| line["path"] == *path).await?;
        assert_eq!((&line["protocol"], &line["authority"], &line["response_code"]), (&version.into(), &"web.shop".into(), &200.into()));
    }
    let labels = [
        "source_workload=\"gateway-0\"",
        "source_workload_namespace=\"istio-ingress\"",
        "source_principal=\"spiffe://cluster.local/ns/istio-ingress/sa/gateway\"",
        "destination_service=\"web.shop.svc.cluster.local\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    let is_counted = |line: &str| line.starts_with("istio_requests_total{") && labels.iter().all(|label| line.contains(label));
    let line = mesh.waypoint.metric("the requests of the gateway", is_counted).await?;
    assert!(line.ends_with(" 2"), "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_passes_a_gateway_with_its_trailers_and_a_body_of_some_size_too() -> Result<()> {
    let (mesh, _gateway, [web, _ratings]) = start().await?;
    let mut http = Http::two(client(&mesh).await?).await?;
    let request =
        http::Request::post("http://ratings.shop/ratings.Ratings/Get").header("content-type", "application/grpc").header("te", "trailers");
    let answer = http.send(request.body(full(Bytes::from_static(b"\0\0\0\0\x03abc")))?).await?;
    assert_eq!((answer.status, answer.json()["version"].as_str()), (StatusCode::OK, Some("HTTP/2.0")), "{answer:?}");
    assert_eq!((&answer.trailers["grpc-status"], &answer.trailers["x-trailer"]), (&"0".parse()?, &"kept".parse()?));
    let mut http = Http::one(client(&mesh).await?).await?;
    let body = Bytes::from(vec![b'x'; 1 << 20]);
    let answer = http.send(http.request(Method::POST, "/large").body(full(body.clone()))?).await?;
    assert_eq!((answer.status, answer.json()["n_body_bytes"].as_u64()), (StatusCode::OK, Some(1 << 20)));
    assert_eq!(web.record().requests("POST /large"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_see_the_gateway_and_not_its_client() -> Result<()> {
    let (mesh, _gateway, [web, _ratings]) = start().await?;
    let mut http = Http::one(client(&mesh).await?).await?;
    assert_eq!(http.get("/open").await?.status, StatusCode::OK);
    assert_eq!(http.get("/secret").await?.status, StatusCode::FORBIDDEN);
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/open").await?.status, StatusCode::FORBIDDEN);
    assert_eq!((web.record().requests("GET /open"), web.record().requests("GET /secret")), (1, 0));
    let connects = web.record().connects();
    assert!(connects.iter().all(|connect| connect.identity == spiffe("shop", "waypoint")), "{connects:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_leads_from_the_gateway_to_the_pod() -> Result<()> {
    let (mesh, _gateway, _pods) = start().await?;
    let mut http = Http::one(client(&mesh).await?).await?;
    let answer = http.send(http.request(Method::GET, "/traced").header("user-agent", "t/1").body(empty())?).await?;
    assert_eq!(answer.status, StatusCode::OK);
    let traceparent = told(&answer, "traceparent");
    let mut parts = traceparent.split('-').skip(1);
    let (trace, ours) = (parts.next().unwrap_or_default().to_owned(), parts.next().unwrap_or_default().to_owned());
    let span = mesh.spans.wait_for("the waypoint's span", DEADLINE, |span| span.span_id == ours).await?;
    let of_gateway = mesh.spans.wait_for("the gateway's span", DEADLINE, |span| span.span_id == span_parent(&mesh, &ours)).await?;
    assert_eq!((&*span.trace_id, &*of_gateway.trace_id), (&*trace, &*trace));
    assert_eq!((&*span.resource["service.name"], &*of_gateway.resource["service.name"]), ("waypoint.shop", "gateway.istio-ingress"));
    assert_eq!(of_gateway.parent_span_id, "");
    assert_eq!(span.attributes.get("istio.source_workload").map(String::as_str), Some("gateway-0"));
    Ok(())
}

/// The parent of a span that came.
fn span_parent(mesh: &Mesh, span_id: &str) -> String {
    mesh.spans.spans().into_iter().find(|span| span.span_id == span_id).map(|span| span.parent_span_id).unwrap_or_default()
}
