//! Several networks: out through the gateway of another one, a tunnel inside a tunnel; and in by the names of services.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::peer::{Http, exchange_raw};
use tests::pki::spiffe;
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};

/// The port behind which a test's gateway finds the other network's pod; any service port would do for a real one.
const REMOTE_PORT: u16 = 15008;

/// All endpoints of a service are behind a gateway, as istiod lists them.
fn behind(scenario: &mut Scenario, cluster: &str, gateway: SocketAddr, service: &str) -> Result<()> {
    let endpoint = json!({
        "endpoint": {"address": {"envoy_internal_address": {
            "server_listener_name": "inner_connect_originate", "endpoint_id": gateway.to_string()}}},
        "load_balancing_weight": 1,
        "metadata": {"filter_metadata": {
            "envoy.filters.listener.original_dst": {"local": gateway.to_string()},
            "istio": {"workload": ";;;;cluster2", "double_hbone": {"hbone_target_address": format!("{service}:{REMOTE_PORT}")}},
        }},
    });
    scenario.resource(Kind::Endpoints, cluster)?["endpoints"] = json!([{"lb_endpoints": [endpoint]}]);
    Ok(())
}

/// A gateway that passes on what is in its tunnels to a pod.
async fn gateway(mesh: &Mesh, at: SocketAddr, pod: IpAddr) -> Result<Workload> {
    let tls = mesh.pki.workload_config(&mesh.pki.member(&spiffe("istio-system", "eastwest"))?)?;
    Workload::hbone("eastwest", at.ip(), tls, App::Program(SocketAddr::new(pod, REMOTE_PORT))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_in_another_network_is_reached_through_its_gateway() -> Result<()> {
    let builder = Mesh::builder("01-plain")?;
    let at = SocketAddr::new(builder.net().pod(200, 1).into(), 15008);
    let builder = builder.edit(|scenario| behind(scenario, WEB_CHAIN, at, "web.shop.svc.cluster.local"))?;
    let mesh = builder.environment("ISTIO_META_NETWORK", Some("network1")).proxy_config("concurrency", 1.into()).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let gateway = gateway(&mesh, at, mesh.net.pod(1, 1).into()).await?;
    let connection = mesh.connect("frontend-0").await?;
    for protocol in 1..=2 {
        let mut http = if protocol == 1 { connection.http1(WEB).await? } else { connection.http2(WEB).await? };
        let answer = http.get("/remote").await?;
        assert_eq!((answer.status, answer.json()["pod"].as_str()), (StatusCode::OK, Some("web-v1-1")), "{}", answer.text());
    }
    let (outer, inner) = (gateway.record().connects(), web.record().connects());
    let authority = format!("web.shop.svc.cluster.local:{REMOTE_PORT}");
    assert!(outer.iter().chain(&inner).all(|connect| connect.authority == authority && connect.identity == spiffe("shop", "waypoint")));
    assert_eq!(outer[0].headers["x-istio-source"], "waypoint");
    assert_eq!(inner[0].headers["x-forwarded-network"], "network1");
    assert!(!inner[0].headers.contains_key("x-waypoint-via"), "a waypoint there may have the same name");
    assert_eq!(outer.len(), inner.len());
    assert_eq!(gateway.record().connections(), 1, "tunnels to a gateway share a connection");
    assert_eq!(web.record().connections(), u64::try_from(inner.len())?, "each inner connection carries one tunnel");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_through_a_gateway_serves_no_other_service_behind_it() -> Result<()> {
    let builder = Mesh::builder("01-plain")?;
    let at = SocketAddr::new(builder.net().pod(200, 1).into(), 15008);
    let builder = builder.edit(|scenario| behind(scenario, WEB_CHAIN, at, "web.shop.svc.cluster.local"))?;
    let mut mesh = builder.proxy_config("concurrency", 1.into()).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let _gateway = gateway(&mesh, at, mesh.net.pod(1, 1).into()).await?;
    let connection = mesh.connect("frontend-0").await?;
    for service in ["web.shop.svc.cluster.local", "web.global.example.com"] {
        mesh.push_accepted(|scenario| behind(scenario, WEB_CHAIN, at, service)).await?;
        for _ in 0..2 {
            assert_eq!(connection.get(WEB, "/remote").await?.status, StatusCode::OK);
        }
    }
    let asked: Vec<_> = web.record().connects().into_iter().map(|connect| connect.authority).collect();
    assert_eq!(asked, ["web.shop.svc.cluster.local", "web.global.example.com"].map(|service| format!("{service}:{REMOTE_PORT}")));
    // One with the gateway, and one inside for each.
    let handshakes = "waypoint_tls_handshake_seconds_count{side=\"dialled\"} 3";
    mesh.waypoint.metric("handshakes inside tunnels count", |line| line == handshakes).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_fails_is_named_and_its_pod_s_refusal_too() -> Result<()> {
    let builder = Mesh::builder("01-plain")?;
    let at = SocketAddr::new(builder.net().pod(200, 1).into(), 15008);
    let mesh = builder.edit(|scenario| behind(scenario, DB_CHAIN, at, "db.shop.svc.cluster.local"))?.start().await?;
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.connect(DB).await?.err(), Some(StatusCode::SERVICE_UNAVAILABLE), "nobody listens");
    let db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    let gateway = gateway(&mesh, at, mesh.net.pod(5, 1).into()).await?;
    db.record().refuse_connects(Some(StatusCode::UNAUTHORIZED));
    assert_eq!(connection.connect(DB).await?.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    db.record().refuse_connects(None);
    assert_eq!(exchange_raw(connection.tunnel(DB).await?, b"select", true).await?, b"echo:select");
    gateway.kill().await;
    assert_eq!(connection.connect(DB).await?.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_of_a_client_in_another_network_names_nobody_here() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.environment("ISTIO_META_NETWORK", Some("network1")).start().await?;
    let _web = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    let connection = mesh.connect("frontend-0").await?;
    for (network, workload) in [("network1", "frontend-0"), ("network2", "unknown")] {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-forwarded-network"), HeaderValue::from_static(network))]);
        let tunnel = connection.connect_with(WEB, headers).await?.map_err(|status| anyhow!("CONNECT: {status}"))?;
        assert_eq!(Http::one(tunnel).await?.get("/").await?.status, StatusCode::OK);
        let label = format!("source_workload=\"{workload}\"");
        mesh.waypoint.metric(network, |line| line.starts_with("istio_requests_total{") && line.contains(&label)).await?;
    }
    Ok(())
}

fn by_authority() -> Value {
    let action = |chain: &str| json!({"action": {"name": chain, "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": chain}}});
    json!({"matcher_tree": {
        "input": {"name": "authority", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.FilterStateInput",
            "key": "io.istio.connect_authority",
        }},
        "exact_match_map": {"map": {
            "web.shop.svc.cluster.local:80": action(WEB_CHAIN),
            "db.shop.svc.cluster.local:5432": action(DB_CHAIN),
        }},
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn another_network_s_waypoint_asks_for_services_by_name() -> Result<()> {
    // 1.29 and later look at the name first, 1.28 at the address.
    for name_first in [true, false] {
        let builder = Mesh::builder("01-plain")?.edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            let matcher = &mut scenario.resource(Kind::Listener, "main_internal")?["filter_chain_matcher"];
            if name_first {
                let by_address = matcher.take();
                *matcher = by_authority();
                matcher["on_no_match"] = json!({"matcher": by_address});
            } else {
                matcher["on_no_match"] = json!({"matcher": by_authority()});
            }
            let address = json!({"name": "set_dst_address", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config",
                "on_new_connection": [{
                    "object_key": "envoy.network.transport_socket.original_dst_address",
                    "format_string": {
                        "text_format_source": {"inline_string": "%CEL('envoy.filters.listener.original_dst.local_ip' in filter_state ? filter_state['envoy.filters.listener.original_dst.local_ip']: r'10.96.1.5:5432')%"},
                        "formatters": [{"name": "envoy.formatter.cel", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.formatter.cel.v3.Cel"}}],
                    },
                }],
            }});
            let chain = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
            chain.insert(0, address);
            Ok(())
        })?;
        let mesh = builder.start().await?;
        let (_web, _db) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("db-v1-1", App::Tcp { greets: false }).await?);
        let connection = mesh.connect("frontend-0").await?;
        for authority in ["web.shop.svc.cluster.local:80", "Web.shop.svc.cluster.local:80", WEB] {
            assert_eq!(connection.get(authority, "/").await?.json()["pod"], "web-v1-1", "{authority} {name_first}");
        }
        for authority in ["db.shop.svc.cluster.local:5432", DB] {
            assert_eq!(exchange_raw(connection.tunnel(authority).await?, b"select", true).await?, b"echo:select", "{authority}");
        }
        assert_eq!(connection.connect("web.shop.svc.cluster.local:81").await?.err(), Some(StatusCode::NOT_FOUND));
    }
    Ok(())
}
