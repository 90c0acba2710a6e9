//! Clusters beside a real Envoy: which endpoint is chosen, and what it is asked.
//!
//! Not for: limits, outlier detection and priorities, PROXY protocol, proxies and name servers that fail; `limits`, `health`,
//! `proxy_protocol`, `http_tunnels` and `by_host` hold both sides of these.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tests::dns::{Entry, NameServer};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, Connection, empty};
use tests::scenario::{LEGACY, Mesh, REVIEWS, Scenario};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

const LEGACY_CHAIN: &str = "inbound-vip|80|http|legacy.shop.svc.cluster.local";
const WILD: &str = "240.0.0.3:80";
const WILD_CHAIN: &str = "inbound-vip|80|http|*.wild.example.com";
const PORT: u16 = 8080;
const DNS_PORT: u16 = 5353;
const DEADLINE: Duration = Duration::from_secs(10);

/// Which pod was asked for what, without what is drawn anew for each request.
fn asked(answer: &Answer) -> Value {
    let mut told = answer.json();
    if let Some(headers) = told["headers"].as_array_mut() {
        headers.retain(|pair| pair[0] != "x-request-id" && pair[0] != "traceparent");
        headers.sort_by_key(|pair| pair[0].as_str().unwrap_or_default().to_owned());
    }
    told
}

async fn ask(connection: &Connection, (to, host, path): (&str, &str, &str), headers: &[(&str, &str)]) -> Result<(StatusCode, Value)> {
    let mut http = connection.http1(to).await?;
    let request = Request::builder().uri(path).header("host", host);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = http.send(request.body(empty())?).await?;
    Ok((answer.status, asked(&answer)))
}

#[tokio::test(flavor = "multi_thread")]
async fn subsets_of_a_destination_rule_are_the_same_pods_as_in_envoy() -> Result<()> {
    let mesh = Mesh::start("04-virtualservice").await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let mut pods = Vec::new();
    for version in 1..=3 {
        pods.push(mesh.pod(&format!("reviews-v{version}-{version}"), App::Http).await?);
    }
    let mut seen = Vec::new();
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        let requests: [(&str, &[(&str, &str)]); 4] =
            [("/reviews/1", &[("end-user", "jason")]), ("/x?v=2", &[]), ("/retry", &[]), ("/re/x", &[])];
        let mut all = Vec::new();
        for (path, headers) in requests {
            all.push(ask(&connection, (REVIEWS, "reviews", path), headers).await?);
        }
        seen.push(all);
    }
    assert_eq!(seen[0], seen[1], "here, and in Envoy");
    let pods: Vec<_> = seen[0].iter().map(|(_, told)| told["pod"].as_str().unwrap_or_default()).collect();
    assert_eq!(pods, ["reviews-v2-2", "reviews-v2-2", "reviews-v3-3", "reviews-v1-1"]);
    Ok(())
}

/// Leads `legacy` to where its clients want to go, and its address to this one.
fn pass_through(scenario: &mut Scenario, port: Option<u16>) -> Result<()> {
    let value = scenario.resource(Kind::Cluster, LEGACY_CHAIN)?.as_object_mut().context("no cluster")?;
    for field in ["eds_cluster_config", "least_request_lb_config", "common_lb_config"] {
        value.remove(field);
    }
    value.insert("type".to_owned(), "ORIGINAL_DST".into());
    value.insert("lb_policy".to_owned(), "CLUSTER_PROVIDED".into());
    if let Some(port) = port {
        value.insert("original_dst_lb_config".to_owned(), json!({"upstream_port_override": port}));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_endpoints_is_reached_where_its_client_wanted_to_go_as_in_envoy() -> Result<()> {
    let builder = Mesh::builder("01-plain")?;
    // The service's address, as one that a test can listen on.
    let address = builder.net().pod(60, 1);
    let virtual_ip = LEGACY.split_once(':').context("no port")?.0;
    let builder = builder.edit(|scenario| {
        pass_through(scenario, Some(PORT))?;
        let listener = scenario.resource(Kind::Listener, "main_internal")?;
        let text = serde_json::to_string(listener)?.replace(&format!("\"{virtual_ip}\""), &format!("\"{address}\""));
        *listener = serde_json::from_str(&text)?;
        Ok(())
    })?;
    let mesh = builder.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _there = Workload::plain("there", SocketAddr::new(address.into(), PORT), App::Http).await?;
    let mut seen = Vec::new();
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        seen.push(ask(&connection, (&format!("{address}:80"), "there", "/there"), &[]).await?);
    }
    assert_eq!(seen[0], seen[1], "here, and in Envoy");
    assert_eq!((seen[0].0, &seen[0].1["pod"]), (StatusCode::OK, &"there".into()));
    Ok(())
}

/// Lets Envoy ask the name server of a test.
fn resolver(server: SocketAddr) -> Value {
    json!({"typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [{"socket_address": {"address": server.ip().to_string(), "port_value": server.port()}}],
        "dns_resolver_options": {"no_default_search_domain": true},
    }}})
}

/// Sets fields wherever a DNS cache is described: Envoy wants it to be the same in cluster and filter.
fn set_cache(value: &mut Value, fields: &Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| set_cache(item, fields)),
        Value::Object(object) => {
            if let Some(cache) = object.get_mut("dns_cache_config") {
                fields.as_object().into_iter().flatten().for_each(|(name, value)| cache[name] = value.clone());
            }
            object.values_mut().for_each(|field| set_cache(field, fields));
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wildcard_service_is_reached_at_the_host_that_is_named_as_in_envoy() -> Result<()> {
    let builder = Mesh::builder("08-egress")?;
    let names = NameServer::start(SocketAddr::new(builder.net().pod(0, 53).into(), DNS_PORT)).await?;
    let server = names.address();
    let builder = builder.edit(|scenario| {
        scenario.http(WILD_CHAIN)?["route_config"]["virtual_hosts"][0]["domains"] = json!(["*.wild.example.com", "*"]);
        Ok(())
    })?;
    let mesh = builder.environment("WAYPOINT_DNS_SERVERS", Some(&server.to_string())).start().await?;
    let resolver = resolver(server);
    let envoy = Envoy::beside(&mesh).edit(|scenario| {
        set_cache(scenario.resource(Kind::Cluster, WILD_CHAIN)?, &resolver);
        set_cache(scenario.chain(WILD_CHAIN)?, &resolver);
        Ok(())
    })?;
    let envoy = envoy.start().await?;
    let address = |last| IpAddr::from(mesh.net.pod(70, last));
    let _one = Workload::plain("one", SocketAddr::new(address(1), PORT), App::Http).await?;
    let _two = Workload::plain("two", SocketAddr::new(address(2), PORT), App::Http).await?;
    names.set("one.wild.example.com", Entry::Addresses(vec![address(1)], 60));
    names.set("two.wild.example.com", Entry::Addresses(vec![address(2), address(1)], 60));
    let mut seen = Vec::new();
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        let mut all = Vec::new();
        for host in ["one", "two", "two"] {
            let host = format!("{host}.wild.example.com:{PORT}");
            all.push(ask(&connection, (WILD, &host, "/wild"), &[]).await?);
        }
        seen.push(all);
    }
    assert_eq!(seen[0], seen[1], "here, and in Envoy");
    assert_eq!(seen[0].iter().map(|(_, told)| &told["pod"]).collect::<Vec<_>>(), ["one", "two", "two"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_has_an_ipv6_address_only_is_reached_as_in_envoy() -> Result<()> {
    const API: &str = "240.0.0.1:80";
    const API_CHAIN: &str = "inbound-vip|80|http|api.example.com";
    let there = Workload::plain("there", SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0), App::Http).await?;
    for family in ["V6_ONLY", "V4_PREFERRED", "AUTO", "ALL"] {
        let builder = Mesh::builder("08-egress")?;
        let names = NameServer::start(SocketAddr::new(builder.net().pod(0, 53).into(), DNS_PORT)).await?;
        let server = names.address();
        names.set("api.example.com", Entry::Addresses(vec![there.address().ip()], 60));
        let builder = builder.edit(|scenario| {
            let cluster = scenario.resource(Kind::Cluster, API_CHAIN)?;
            cluster["dns_lookup_family"] = family.into();
            let endpoint = &mut cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"];
            endpoint["address"]["socket_address"]["port_value"] = there.address().port().into();
            let raw = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
            cluster["transport_socket"]["typed_config"]["transport_socket"] = json!({"name": "raw", "typed_config": {"@type": raw}});
            Ok(())
        })?;
        let mesh = builder.environment("WAYPOINT_DNS_SERVERS", Some(&server.to_string())).start().await?;
        let envoy = Envoy::beside(&mesh).edit(|scenario| {
            let cluster = scenario.resource(Kind::Cluster, API_CHAIN)?;
            cluster["typed_dns_resolver_config"] = resolver(server)["typed_dns_resolver_config"].clone();
            Ok(())
        })?;
        let envoy = envoy.start().await?;
        let mut seen = Vec::new();
        for proxy in [mesh.hbone(), envoy.hbone()] {
            let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
            // The name is looked up beside the first requests.
            let found = until("an answer of the endpoint", DEADLINE, async || {
                let answer = ask(&connection, (API, "api.example.com", "/there"), &[]).await?;
                Ok(if answer.0 == StatusCode::OK { Look::Done(answer) } else { Look::NotYet(format!("{answer:?}")) })
            });
            seen.push(found.await.with_context(|| format!("{family}, {proxy}"))?);
        }
        assert_eq!(seen[0], seen[1], "here, and in Envoy");
        assert_eq!(seen[0].1["pod"], "there");
    }
    Ok(())
}
