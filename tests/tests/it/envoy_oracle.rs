//! The oracle itself: a stock Envoy made of what istiod sent does what the waypoint does with the same.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::envoy::{Envoy, substitutions};
use tests::fake_istiod::Kind;
use tests::otlp::KIND_SERVER;
use tests::peer::{Answer, Connection, empty};
use tests::pki::Pki;
use tests::process::Lines;
use tests::scenario::{Loopback, Mesh, RECORDED, REVIEWS, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(20);

/// A line of the access log for `path`.
async fn access_line(output: &Lines, path: &str) -> Result<Value> {
    until(&format!("the line of {path}"), DEADLINE, async || {
        let lines = output.all();
        let found = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|line| line["path"] == path);
        Ok(found.map_or_else(|| Look::NotYet(lines.join("\n")), Look::Done))
    })
    .await
}

/// What the pod was asked, without what is drawn anew for each request.
fn asked(answer: &Answer) -> Value {
    let mut told = answer.json();
    if let Some(headers) = told["headers"].as_array_mut() {
        headers.retain(|pair| pair[0] != "x-request-id");
        headers.sort_by_key(|pair| pair[0].as_str().unwrap_or_default().to_owned());
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_accepts_every_recorded_scenario() -> Result<()> {
    let (net, pki) = (Loopback::take()?, Arc::new(Pki::new()?));
    for name in RECORDED {
        let scenario = Scenario::load(name, &net)?;
        Envoy::builder(&scenario, &pki, net.pod(0, 101)).validate().await.context(name)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_refuses_what_it_does_not_know_among_its_own_names() -> Result<()> {
    let (net, pki) = (Loopback::take()?, Arc::new(Pki::new()?));
    let unknown = json!({ "name": "x", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.none.v3.None" } });
    let oracle = Envoy::builder(&Scenario::load("01-plain", &net)?, &pki, net.pod(0, 101));
    let refused = oracle.edit(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![unknown]))?.validate().await;
    let error = refused.err().context("it was accepted")?.to_string();
    assert!(error.contains("envoy.extensions.filters.http.none.v3.None"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_reaches_the_same_pod_in_the_same_form_through_both() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    let mut seen = Vec::new();
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = peer.connect(proxy).await?;
        let answer = connection.get(WEB, "/hello?a=1").await?;
        assert_eq!((answer.status, answer.header("server")), (StatusCode::OK, "istio-envoy"));
        seen.push((connection.server_identity.clone(), asked(&answer)));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].1["pod"], "web-v1-1");
    let tunnels: Vec<_> = web.record().connects().into_iter().map(|connect| (connect.authority, connect.identity)).collect();
    let expected = (format!("{}:8080", mesh.net.pod(1, 1)), tests::pki::spiffe("shop", "waypoint"));
    assert_eq!(tunnels, [expected.clone(), expected]);
    assert!(std::fs::read_to_string(format!("/proc/{}/comm", envoy.pid()))?.starts_with("envoy"));
    Ok(())
}

/// The recorded policies, in both proxies. Chains that ask external services are refused by our waypoint by name.
async fn with_policies() -> Result<(Mesh, Envoy)> {
    let edit = |scenario: &mut Scenario| scenario.keep_endpoints(REVIEWS_CHAIN, 1);
    let mesh = Mesh::builder("05-authz")?.edit(edit)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    Ok((mesh, envoy))
}

async fn decide(connection: &Connection, method: Method, path: &str, token: &str) -> Result<(StatusCode, String)> {
    let mut http = connection.http1(REVIEWS).await?;
    let answer = http.send(http.request(method, path).header("x-token", token).body(empty())?).await?;
    Ok((answer.status, if answer.status.is_success() { String::new() } else { answer.text() }))
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_policies_decide_alike_in_both_by_principal() -> Result<()> {
    let (mesh, envoy) = with_policies().await?;
    let pod = mesh.pod("reviews-v1-1", App::Http).await?;
    let requests = [
        (Method::GET, "/reviews/1"),
        (Method::POST, "/reviews/1"),
        (Method::DELETE, "/reviews/1"),
        (Method::GET, "/internal/x"),
        (Method::GET, "/forbidden"),
        (Method::GET, "/other"),
    ];
    let denied = (StatusCode::FORBIDDEN, "RBAC: access denied".to_owned());
    // Which of the requests each caller may make, by the policies: frontend reads reviews, others of its namespace do nothing, those of
    // `shop` do anything but DELETE and what is forbidden to all, except the one that is named.
    for (caller, allowed) in [("frontend-0", &[0][..]), ("batch-0", &[]), ("web-v1-1", &[0, 1, 3, 5]), ("legacy-v1-1", &[])] {
        let peer = mesh.peer(caller)?;
        let (to_ours, to_envoy) = (peer.connect(mesh.hbone()).await?, peer.connect(envoy.hbone()).await?);
        for (at, (method, path)) in requests.iter().enumerate() {
            let expected = if allowed.contains(&at) { (StatusCode::OK, String::new()) } else { denied.clone() };
            assert_eq!(decide(&to_envoy, method.clone(), path, "none").await?, expected, "Envoy: {caller} {method} {path}");
            assert_eq!(decide(&to_ours, method.clone(), path, "none").await?, expected, "ours: {caller} {method} {path}");
        }
    }
    assert_eq!(pod.record().requests_total(), 2 * 5);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_that_a_caller_dials_from_is_known_here_and_to_no_envoy() -> Result<()> {
    let (mesh, envoy) = with_policies().await?;
    let _pod = mesh.pod("reviews-v1-1", App::Http).await?;
    // `ipBlocks` is `direct_remote_ip`. Behind an internal listener Envoy sees `envoy://internal_client_address/` there, which is in no range.
    let peer = mesh.peer("batch-0")?;
    let ours = decide(&peer.connect(mesh.hbone()).await?, Method::GET, "/reviews/1", "secret-new").await?;
    let theirs = decide(&peer.connect(envoy.hbone()).await?, Method::GET, "/reviews/1", "secret-new").await?;
    assert_eq!((ours.0, theirs.0), (StatusCode::OK, StatusCode::FORBIDDEN));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_writes_the_configured_line_and_exports_the_span_that_it_names() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    let mut lines = Vec::new();
    for (proxy, path, output) in [(mesh.hbone(), "/ours", mesh.waypoint.output_lines()), (envoy.hbone(), "/theirs", envoy.output())] {
        let mut http = peer.connect(proxy).await?.http1(WEB).await?;
        let request = http.request(Method::GET, path).header("user-agent", "t/1").header("x-user", "alice").body(empty())?;
        assert_eq!(http.send(request).await?.status, StatusCode::OK);
        let line = access_line(output, path).await?;
        let trace_id = line["trace_id"].as_str().unwrap_or_default().to_owned();
        let span = mesh.spans.wait_for(&format!("the span of {path}"), DEADLINE, |span| span.trace_id == trace_id).await?;
        assert_eq!((span.kind, span.resource["service.name"].as_str()), (KIND_SERVER, "waypoint.shop"));
        let attribute = |name: &str| span.attributes.get(name).map(String::as_str);
        assert_eq!((attribute("http.status_code"), attribute("user"), attribute("team")), (Some("200"), Some("alice"), Some("shop")));
        lines.push(line);
    }
    let keys = |line: &Value| line.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    assert_eq!(keys(&lines[0]), keys(&lines[1]));
    for same in ["authority", "method", "protocol", "response_code", "response_flags", "upstream_cluster", "upstream_host", "user_agent"] {
        assert_eq!(lines[0][same], lines[1][same], "{same}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn oracles_listen_where_they_are_told_and_log_where_they_are_told() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("access.log");
    let at = |port| std::net::SocketAddr::new(IpAddr::V4(mesh.net.pod(0, 101)), port);
    let first = Envoy::beside(&mesh).counting().start().await?;
    let second = Envoy::beside(&mesh).hbone(at(25008)).admin(at(25000)).access_log(&file).start().await?;
    let third_output = std::fs::File::create(folder.path().join("output"))?;
    let third = Envoy::beside(&mesh).hbone(at(35008)).admin(at(35000)).standard_output(third_output).start().await?;
    for envoy in [&first, &second, &third] {
        assert_eq!(mesh.peer("frontend-0")?.connect(envoy.hbone()).await?.get(WEB, "/x").await?.status, StatusCode::OK);
    }
    for written in [&file, &folder.path().join("output")] {
        until("a line in the file", DEADLINE, async || {
            let text = std::fs::read_to_string(written)?;
            Ok(if text.contains("\"path\":\"/x\"") { Look::Done(()) } else { Look::NotYet(text) })
        })
        .await?;
    }
    until("a counted line", DEADLINE, async || {
        Ok(if first.output().n_ever() == 1 { Look::Done(()) } else { Look::NotYet(first.output().n_ever().to_string()) })
    })
    .await?;
    assert_eq!((first.output().all().len(), second.output().n_ever()), (0, 0));
    Ok(())
}

#[test]
fn the_document_lists_the_substitutions_and_no_other() -> Result<()> {
    let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/envoy-oracle.md"))?;
    let rows: Vec<&str> = document.lines().filter(|line| line.starts_with("| `")).collect();
    let expected: Vec<String> =
        substitutions().iter().map(|row| format!("| `{}` | {} | {} |", row.name(), row.instead, row.because)).collect();
    assert_eq!(rows, expected);
    Ok(())
}

#[test]
fn an_oracle_holds_every_listener_and_cluster_that_was_sent() -> Result<()> {
    let net = Loopback::take()?;
    let scenario = Scenario::load("04-virtualservice", &net)?;
    let tls = tests::envoy::TlsFiles { certificate: "c".into(), key: "k".into(), root: "r".into() };
    let bootstrap = Envoy::builder(&scenario, &Arc::new(Pki::new()?), net.pod(0, 101)).bootstrap(&tls)?;
    for (kind, list) in [(Kind::Listener, "listeners"), (Kind::Cluster, "clusters")] {
        let made: Vec<_> = bootstrap["static_resources"][list].as_array().into_iter().flatten().map(|made| &made["name"]).collect();
        assert_eq!(made, scenario.resources(kind).map(|(name, _)| name).collect::<Vec<_>>());
    }
    Ok(())
}
