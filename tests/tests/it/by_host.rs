//! A wildcard service: requests reach the host that they name, which is looked up when it is asked for.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tests::dns::{Entry, NameServer};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, Connection, client_hello, exchange_raw, full, plain_get};
use tests::pki::Pki;
use tests::process::Lines;
use tests::scenario::{DB, DB_CHAIN, Mesh, MeshBuilder, Scenario};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

const WILD: &str = "240.0.0.3:80";
const WILD_CHAIN: &str = "inbound-vip|80|http|*.wild.example.com";
const ONE: &str = "one.wild.example.com";
const TWO: &str = "two.wild.example.com";
/// Anybody may listen on it; 80 is root's.
const PORT: u16 = 8080;
const DNS_PORT: u16 = 5353;
const ADMIN_PORT: u16 = 15000;
const DEADLINE: Duration = Duration::from_secs(10);

/// Sets fields of the DNS cache, in the cluster and in the filter, which Envoy wants to be the same.
fn set_cache(scenario: &mut Scenario, values: &Value) -> Result<()> {
    fn edit(value: &mut Value, values: &Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| edit(item, values)),
            Value::Object(fields) => {
                if let Some(cache) = fields.get_mut("dns_cache_config") {
                    values.as_object().into_iter().flatten().for_each(|(name, value)| cache[name] = value.clone());
                }
                fields.values_mut().for_each(|field| edit(field, values));
            }
            _ => {}
        }
    }
    edit(scenario.resource(Kind::Cluster, WILD_CHAIN)?, values);
    edit(scenario.chain(WILD_CHAIN)?, values);
    Ok(())
}

/// Envoy beside a mesh, which asks the test's name server.
async fn envoy(mesh: &Mesh, names: &NameServer) -> Result<Envoy> {
    let address = names.address();
    let resolver = json!({"typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [{"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}}],
        "dns_resolver_options": {"no_default_search_domain": true},
    }}});
    Envoy::beside(mesh).edit(|scenario| set_cache(scenario, &resolver))?.start().await
}

/// The recorded wildcard, for requests that name a port, too; a test answers for its names.
async fn wild(cache: Value) -> Result<(MeshBuilder, NameServer)> {
    let builder = Mesh::builder("08-egress")?.edit(|scenario| {
        let http = scenario.http(WILD_CHAIN)?;
        http["route_config"]["virtual_hosts"][0]["domains"] = json!(["*.wild.example.com", "*"]);
        http["access_log"] = json!([{"name": "envoy.access_loggers.file", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/stdout",
            "log_format": {"json_format": {
                "authority": "%REQ(:AUTHORITY)%",
                "upstream_host": "%UPSTREAM_HOST%",
                "response_flags": "%RESPONSE_FLAGS%",
                "response_code_details": "%RESPONSE_CODE_DETAILS%",
            }},
        }}]);
        set_cache(scenario, &cache)?;
        Ok(())
    })?;
    let names = NameServer::start(SocketAddr::new(builder.net().pod(0, 53).into(), DNS_PORT)).await?;
    let servers = names.address().to_string();
    Ok((builder.environment("WAYPOINT_DNS_SERVERS", Some(&servers)), names))
}

async fn app(mesh: &Mesh, last: u8) -> Result<(Workload, IpAddr)> {
    let address = IpAddr::from(mesh.net.pod(70, last));
    Ok((Workload::plain(&format!("wild-{last}"), SocketAddr::new(address, PORT), App::Http).await?, address))
}

async fn get(connection: &Connection, host: &str) -> Result<Answer> {
    let request = Request::builder().uri("/").header("host", format!("{host}:{PORT}")).body(full(""))?;
    connection.http1(WILD).await?.send(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_reach_the_host_that_they_name_after_one_lookup() -> Result<()> {
    let (builder, names) = wild(json!({})).await?;
    let mesh = builder.start().await?;
    let ((_one, first), (_two, second)) = (app(&mesh, 1).await?, app(&mesh, 2).await?);
    names.set(ONE, Entry::Addresses(vec![first], 60));
    names.set(TWO, Entry::Addresses(vec![second], 60));
    let connection = mesh.connect("frontend-0").await?;
    let all = futures_util::future::join_all((0..20).map(|number| get(&connection, if number % 2 == 0 { ONE } else { TWO }))).await;
    for (number, answer) in all.into_iter().enumerate() {
        let (answer, pod) = (answer?, if number % 2 == 0 { "wild-1" } else { "wild-2" });
        assert_eq!((answer.status, answer.json()["pod"].as_str()), (StatusCode::OK, Some(pod)), "{}", answer.text());
    }
    assert_eq!((names.questions(ONE), names.questions(TWO)), (1, 1));
    let (_, line) = mesh.waypoint.access_line("a line", |line| line["authority"] == format!("{ONE}:{PORT}")).await?;
    assert_eq!(line["upstream_host"], format!("{first}:{PORT}"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_at_one_address_share_no_connection() -> Result<()> {
    let (builder, names) = wild(json!({})).await?;
    let mesh = builder.proxy_config("concurrency", 1.into()).start().await?;
    let (one, first) = app(&mesh, 1).await?;
    names.set(ONE, Entry::Addresses(vec![first], 60));
    names.set(TWO, Entry::Addresses(vec![first], 60));
    let connection = mesh.connect("frontend-0").await?;
    for host in [ONE, TWO, ONE, TWO] {
        assert_eq!(get(&connection, host).await?.status, StatusCode::OK);
    }
    assert_eq!(one.record().connections(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_be_looked_up_is_refused_by_name_and_tried_again() -> Result<()> {
    let (builder, names) = wild(json!({"dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "1s"}})).await?;
    let mesh = builder.start().await?;
    let (_one, first) = app(&mesh, 1).await?;
    let connection = mesh.connect("frontend-0").await?;
    names.set(TWO, Entry::Failure);
    for host in [ONE, TWO] {
        let answer = get(&connection, host).await?;
        assert_eq!((answer.status, answer.text().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "DNS resolution failure"), "{host}");
        let (_, line) = mesh.waypoint.access_line("its line", |line| line["authority"] == format!("{host}:{PORT}")).await?;
        let details = line["response_code_details"].as_str().unwrap_or_default();
        assert!(line["response_flags"] == "DF" && details.starts_with("dns_resolution_failure{"), "{line}");
    }
    names.set(ONE, Entry::Addresses(vec![first], 60));
    until("an answer", DEADLINE, async || {
        let status = get(&connection, ONE).await?.status;
        Ok(if status == StatusCode::OK { Look::Done(()) } else { Look::NotYet(status.to_string()) })
    })
    .await
}

/// The line of a request for a host.
async fn line_of(output: &Lines, host: &str) -> Result<Value> {
    until(&format!("the line of {host}"), DEADLINE, async || {
        let lines = output.all();
        let mut read = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = read.find(|line| line["authority"] == format!("{host}:{PORT}"));
        Ok(found.map_or_else(|| Look::NotYet(lines.join("\n")), Look::Done))
    })
    .await
}

/// Which limit the host of a request stands for; none of the name servers answers in time.
const WAITS: [(&str, &str); 5] = [
    ("route.wild.example.com", r#"{"timeout": "0.3s"}"#),
    ("try.wild.example.com", r#"{"timeout": "0s", "retry_policy": {"retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.3s"}}"#),
    ("stream.wild.example.com", r#"{"timeout": "0s", "max_stream_duration": {"max_stream_duration": "0.3s"}}"#),
    ("idle.wild.example.com", r#"{"timeout": "0s", "idle_timeout": "0.3s"}"#),
    ("failure.wild.example.com", r#"{"timeout": "0s"}"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_a_name_server_ends_as_in_envoy() -> Result<()> {
    let (builder, names) = wild(json!({"dns_query_timeout": "1s"})).await?;
    let builder = builder.edit(|scenario| {
        let routes = WAITS.map(|(host, limits)| {
            let mut action: Value = serde_json::from_str(limits)?;
            action["cluster"] = WILD_CHAIN.into();
            let is_host = json!([{"name": ":authority", "string_match": {"prefix": host}}]);
            Ok(json!({"name": host, "match": {"prefix": "/", "headers": is_host}, "route": action}))
        });
        scenario.add_routes(WILD_CHAIN, routes.into_iter().collect::<Result<_>>()?)
    })?;
    let mesh = builder.start().await?;
    let envoy = envoy(&mesh, &names).await?;
    WAITS.iter().for_each(|(host, _)| names.set(host, Entry::Silence));
    names.set("failure.wild.example.com", Entry::Failure);
    let mut ours = Vec::new();
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        for (at, (host, _)) in WAITS.iter().enumerate() {
            let answer = get(&connection, host).await?;
            let mut line = line_of(output, host).await?;
            if *host == "failure.wild.example.com" {
                // What a name server's failure is called is each resolver's own.
                let details = line["response_code_details"].as_str().and_then(|details| details.split_once('{')).context("no reason")?;
                line["response_code_details"] = details.0.into();
            }
            let seen = (answer.status, answer.text(), line);
            if proxy == mesh.hbone() {
                ours.push(seen);
            } else {
                assert_eq!(ours[at], seen, "{host}");
            }
        }
    }
    let ends: Vec<_> = ours.iter().map(|(_, _, line)| line["response_code_details"].as_str().unwrap_or_default()).collect();
    let timeout = "dns_resolution_failure{resolve_timeout}";
    assert_eq!(ends[..4], [timeout, timeout, "max_duration_timeout", "stream_idle_timeout"], "limits of the route begin when it is known");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_waits_for_no_name_server() -> Result<()> {
    let (builder, names) = wild(json!({"dns_query_timeout": "60s", "dns_cache_circuit_breaker": {"max_pending_requests": 1}})).await?;
    let mesh = builder.start().await?;
    names.set(ONE, Entry::Silence);
    let (connection, (_two, second)) = (mesh.connect("frontend-0").await?, app(&mesh, 2).await?);
    let waiting = tokio::spawn({
        let connection = connection.clone();
        async move { get(&connection, ONE).await }
    });
    until("a question", DEADLINE, async || Ok(if names.questions(ONE) > 0 { Look::Done(()) } else { Look::NotYet(String::new()) })).await?;
    names.set(TWO, Entry::Addresses(vec![second], 60));
    assert_eq!(get(&connection, TWO).await?.text(), "Dynamic forward proxy pending request overflow");
    waiting.abort();
    let line = line_of(mesh.waypoint.output_lines(), ONE).await?;
    assert_eq!((&line["response_flags"], &line["response_code_details"]), (&json!("DC"), &json!("downstream_remote_disconnect")));
    // The line may come before what the request held is gone.
    until("its place is free", DEADLINE, async || {
        let status = get(&connection, TWO).await?.status;
        Ok(if status == StatusCode::OK { Look::Done(()) } else { Look::NotYet(status.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_address_is_tried_where_the_first_refuses() -> Result<()> {
    let (builder, names) = wild(json!({})).await?;
    let mesh = builder.start().await?;
    let (_one, first) = app(&mesh, 1).await?;
    names.set(ONE, Entry::Addresses(vec![mesh.net.pod(70, 99).into(), first], 60));
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(get(&connection, ONE).await?.json()["pod"], "wild-1");
    Ok(())
}

async fn hosts(mesh: &Mesh) -> Result<Vec<String>> {
    let page = plain_get(mesh.waypoint.port(ADMIN_PORT), "/clusters").await?.text();
    Ok(page.lines().filter(|line| line.starts_with(WILD_CHAIN)).map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_bounded_and_forgotten_when_nobody_asks_for_them() -> Result<()> {
    let (builder, names) = wild(json!({"max_hosts": 2, "host_ttl": "1s"})).await?;
    let mesh = builder.start().await?;
    let (_one, first) = app(&mesh, 1).await?;
    let all = [ONE, TWO, "three.wild.example.com"];
    all.iter().for_each(|host| names.set(host, Entry::Addresses(vec![first], 60)));
    let connection = mesh.connect("frontend-0").await?;
    // Of a made-up name nothing is kept that would keep another out.
    assert_eq!(get(&connection, "made-up.wild.example.com").await?.text(), "DNS resolution failure");
    let answers = [get(&connection, ONE).await?, get(&connection, TWO).await?, get(&connection, all[2]).await?];
    assert_eq!(answers.each_ref().map(|answer| answer.status.as_u16()), [200, 200, 503]);
    assert_eq!(answers[2].text(), "DNS cache overflow");
    let (_, line) = mesh.waypoint.access_line("its line", |line| line["authority"] == format!("{}:{PORT}", all[2])).await?;
    assert_eq!((&line["response_code_details"], &line["response_flags"]), (&json!("dns_cache_overflow"), &json!("-")));
    until("no hosts", DEADLINE, async || {
        let hosts = hosts(&mesh).await?;
        Ok(if hosts.is_empty() { Look::Done(()) } else { Look::NotYet(format!("{hosts:?}")) })
    })
    .await?;
    assert_eq!(get(&connection, all[2]).await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_sent_again_keeps_its_hosts() -> Result<()> {
    let (builder, names) = wild(json!({})).await?;
    let mut mesh = builder.start().await?;
    let (_one, first) = app(&mesh, 1).await?;
    names.set(ONE, Entry::Addresses(vec![first], 60));
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(get(&connection, ONE).await?.status, StatusCode::OK);
    mesh.push_accepted(|scenario| {
        scenario.resource(Kind::Cluster, WILD_CHAIN)?["connect_timeout"] = "3s".into();
        Ok(())
    })
    .await?;
    assert_eq!(get(&connection, ONE).await?.status, StatusCode::OK);
    assert_eq!(names.questions(ONE), 1);
    // Another number of hosts is another table: they are looked up anew.
    mesh.push_accepted(|scenario| {
        scenario.resource(Kind::Cluster, WILD_CHAIN)?["cluster_type"]["typed_config"]["dns_cache_config"]["max_hosts"] = 7.into();
        Ok(())
    })
    .await?;
    assert_eq!(get(&connection, ONE).await?.status, StatusCode::OK);
    assert_eq!(names.questions(ONE), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_asks_for_the_host_of_the_request_and_verifies_it() -> Result<()> {
    let (builder, names) = wild(json!({})).await?;
    let callees = Pki::new()?;
    let tls = json!({"name": "tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": callees.root_pem()}}},
    }});
    let options = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "upstream_http_protocol_options": {"auto_sni": true, "auto_san_validation": true},
    }});
    let builder = builder.edit(|scenario| {
        let cluster = scenario.resource(Kind::Cluster, WILD_CHAIN)?;
        cluster["transport_socket"]["typed_config"]["transport_socket"] = tls;
        cluster["typed_extension_protocol_options"] = options;
        Ok(())
    })?;
    let mesh = builder.start().await?;
    let address = mesh.net.pod(70, 1);
    let server = callees.application_config(&callees.application(&[ONE], SystemTime::now() + Duration::from_secs(3600))?, None)?;
    let app = Workload::tls("wild-1", SocketAddr::new(address.into(), PORT), server, App::Http).await?;
    names.set(ONE, Entry::Addresses(vec![address.into()], 60));
    names.set(TWO, Entry::Addresses(vec![address.into()], 60));
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(get(&connection, ONE).await?.json()["pod"], "wild-1");
    assert_eq!(get(&connection, TWO).await?.status, StatusCode::SERVICE_UNAVAILABLE, "its certificate is of another host");
    assert_eq!(app.record().handshakes()[0].server_name.as_deref(), Some(ONE));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_is_passed_through_reaches_the_server_that_it_names() -> Result<()> {
    let (builder, names) = wild(json!({})).await?;
    // A wildcard of TLS hosts, in place of `db`.
    let builder = builder.edit(|scenario| {
        let mut cluster = scenario.resource(Kind::Cluster, WILD_CHAIN)?.clone();
        cluster["name"] = DB_CHAIN.into();
        *scenario.resource(Kind::Cluster, DB_CHAIN)? = cluster;
        let listener = scenario.resource(Kind::Listener, "main_internal")?;
        for filter in listener["listener_filters"].as_array_mut().into_iter().flatten() {
            if filter["name"] == "envoy.filters.listener.tls_inspector" {
                drop(filter.as_object_mut().map(|filter| filter.remove("filter_disabled")));
            }
        }
        let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
        let sni = json!({"name": "envoy.filters.network.sni_dynamic_forward_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
            "dns_cache_config": {"name": "*.wild.example.com_dfp_dns_cache", "dns_lookup_family": "V4_ONLY"},
            "port_value": PORT,
        }});
        filters.insert(0, sni);
        Ok(())
    })?;
    let mesh = builder.start().await?;
    let address = mesh.net.pod(70, 1);
    let _one = Workload::plain("wild-1", SocketAddr::new(address.into(), PORT), App::Tcp { greets: false }).await?;
    names.set(ONE, Entry::Addresses(vec![address.into()], 60));
    names.set("other.example.org", Entry::Addresses(vec![address.into()], 60));
    let connection = mesh.connect("frontend-0").await?;
    let first = client_hello(ONE)?;
    let heard = exchange_raw(connection.tunnel(DB).await?, &first, true).await?;
    assert_eq!(heard, [b"echo:", &first[..]].concat());
    // Nothing in DNS, not of this service, no name at all, no TLS at all.
    for begin in [client_hello(TWO)?, client_hello("other.example.org")?, client_hello("192.0.2.1")?, b"SSH-2.0-client\r\n".to_vec()] {
        assert_eq!(exchange_raw(connection.tunnel(DB).await?, &begin, true).await.unwrap_or_default(), b"");
    }
    assert_eq!((names.questions(ONE), names.questions("other.example.org")), (1, 0));
    Ok(())
}
