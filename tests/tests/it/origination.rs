//! TLS to applications, inside HBONE and without: what is asked for, what is shown, what is verified, and what fails by name.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::exchange_raw;
use tests::pki::{Identity, Pki};
use tests::scenario::{DB, DB_CHAIN, LEGACY, Mesh, PRIVILEGED_PORT_SHIFT, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, SeenHandshake, Workload};

const LEGACY_CHAIN: &str = "inbound-vip|80|http|legacy.shop.svc.cluster.local";
const LEGACY_PORT: u16 = PRIVILEGED_PORT_SHIFT + 80;
const NAME: &str = "api.example.com";
const DEADLINE: Duration = Duration::from_secs(10);

fn tomorrow() -> SystemTime {
    SystemTime::now() + Duration::from_secs(24 * 3600)
}

/// The inner socket of a cluster, as DestinationRules change it.
fn set_tls(scenario: &mut Scenario, cluster: &str, context: Value) -> Result<()> {
    let mut context = context;
    context["@type"] = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext".into();
    let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    scenario.resource(Kind::Cluster, cluster)?["transport_socket"]["typed_config"]["transport_socket"] = socket;
    Ok(())
}

/// A secret that comes from istiod.
fn discovered(name: &str) -> Value {
    json!({"name": name, "sds_config": {"ads": {}, "resource_api_version": "V3"}})
}

/// A secret that pilot-agent serves from a file.
fn from_file(name: &str) -> Value {
    json!({"name": name, "sds_config": {"api_config_source": {"api_type": "GRPC"}, "resource_api_version": "V3"}})
}

/// `mode: SIMPLE` with a root from `secret`.
fn simple(secret: Value) -> Value {
    json!({"sni": NAME, "common_tls_context": {"combined_validation_context": {
        "default_validation_context": {"match_subject_alt_names": [{"exact": NAME}]},
        "validation_context_sds_secret_config": secret,
    }}})
}

fn given_root(pki: &Pki) -> Value {
    json!({"sni": NAME, "common_tls_context": {"validation_context": {
        "trusted_ca": {"inline_string": pki.root_pem()},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": NAME}}],
    }}})
}

/// Asks `legacy`, with all tries of the route; returns status and the reason in the access log.
async fn failure(mesh: &Mesh, path: &str) -> Result<(StatusCode, String, String)> {
    let answer = mesh.connect("frontend-0").await?.get(LEGACY, path).await?;
    let (_, line) = mesh.waypoint.access_line(path, |line| line["path"] == path).await?;
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    Ok((answer.status, text("response_flags"), text("upstream_transport_failure_reason") + &text("response_code_details")))
}

async fn with_legacy_tls(context: impl FnOnce(&Pki) -> Value) -> Result<(Mesh, Pki)> {
    let callees = Pki::new()?;
    let context = context(&callees);
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| {
        show_reasons(scenario)?;
        set_tls(scenario, LEGACY_CHAIN, context)
    })?;
    Ok((mesh.start().await?, callees))
}

/// Puts the reason into the log's lines of `legacy`.
fn show_reasons(scenario: &mut Scenario) -> Result<()> {
    let log = &mut scenario.http(LEGACY_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
    log.as_object_mut().context("no JSON format")?.insert("response_code_details".into(), "%RESPONSE_CODE_DETAILS%".into());
    Ok(())
}

async fn legacy(mesh: &Mesh, callees: &Pki, names: &[&str], until: SystemTime) -> Result<Workload> {
    let tls = callees.application_config(&callees.application(names, until)?, None)?;
    mesh.tls_pod("legacy-v1-1", LEGACY_PORT, tls, App::Http).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_inside_hbone() -> Result<()> {
    let callees = Pki::new()?;
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            set_tls(scenario, WEB_CHAIN, given_root(&callees))
        })?
        .proxy_config("concurrency", 1.into())
        .start()
        .await?;
    let tls = callees.application_config(&callees.application(&["*.example.com"], tomorrow())?, None)?;
    let web = mesh.pod_with_tls("web-v1-1", tls, App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for number in 0..5 {
        assert_eq!(http.get(&format!("/{number}")).await?.status, StatusCode::OK);
    }
    assert_eq!(web.record().connects()[0].authority, format!("{}:8080", mesh.net.pod(1, 1)));
    let seen = SeenHandshake { server_name: Some(NAME.into()), alpn: Some("http/1.1".into()), shows_certificate: false };
    assert_eq!(web.record().handshakes(), [seen], "five requests share one session");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_services_are_spoken_to_in_tls_and_both_sides_are_verified() -> Result<()> {
    let (callees, callers) = (Pki::new()?, Pki::new()?);
    let shown = callers.application(&["waypoint"], tomorrow())?;
    for is_mutual in [false, true] {
        let mut context = given_root(&callees);
        if is_mutual {
            let (chain, key) = (shown.chain_pem(), shown.key_pem());
            let certificate = json!({"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}});
            context["common_tls_context"]["tls_certificates"] = json!([certificate]);
        }
        let builder = Mesh::builder("07-telemetry")?.edit(|scenario| {
            scenario.keep_endpoints(DB_CHAIN, 1)?;
            set_tls(scenario, DB_CHAIN, context)
        })?;
        let mesh = builder.start().await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let tls = callees.application_config(&callees.application(&[NAME], tomorrow())?, is_mutual.then_some(&callers))?;
        let db = mesh.pod_with_tls("db-v1-1", tls, App::Tcp { greets: true }).await?;
        for proxy in [mesh.hbone(), envoy.hbone()] {
            let tunnel = mesh.peer("frontend-0")?.connect(proxy).await?.tunnel(DB).await?;
            assert_eq!(exchange_raw(tunnel, b"select 1", true).await?, b"ready\necho:select 1", "{proxy} {is_mutual}");
        }
        let seen = SeenHandshake { server_name: Some(NAME.into()), alpn: None, shows_certificate: is_mutual };
        assert_eq!(db.record().handshakes(), [seen.clone(), seen], "here, and from Envoy");
        db.kill().await;

        let tls = callees.application_config(&callees.application(&["other.example.com"], tomorrow())?, None)?;
        let _other = mesh.pod_with_tls("db-v1-1", tls, App::Tcp { greets: true }).await?;
        let refused = mesh.connect("frontend-0").await?.connect(DB).await?.err();
        assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE), "its certificate is another's");
        mesh.waypoint.access_line("the refused one", |line| line["response_flags"] == "UF,URX").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_without_hbone_and_both_sides_show_certificates_from_files() -> Result<()> {
    let (callees, callers) = (Pki::new()?, Pki::new()?);
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let shown = callers.application(&["waypoint"], tomorrow())?;
    std::fs::write(path("root.pem"), callees.root_pem())?;
    std::fs::write(path("chain.pem"), shown.chain_pem())?;
    std::fs::write(path("key.pem"), shown.key_pem())?;
    let mut context = simple(from_file(&format!("file-root:{}", path("root.pem"))));
    let certificate = from_file(&format!("file-cert:{}~{}", path("chain.pem"), path("key.pem")));
    context["common_tls_context"]["tls_certificate_sds_secret_configs"] = json!([certificate]);
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| set_tls(scenario, LEGACY_CHAIN, context))?.start().await?;
    let tls = callees.application_config(&callees.application(&[NAME], tomorrow())?, Some(&callers))?;
    let app = mesh.tls_pod("legacy-v1-1", LEGACY_PORT, tls, App::Http).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(LEGACY, "/").await?.status, StatusCode::OK);
    assert!(app.record().handshakes()[0].shows_certificate);

    // The root is replaced on disk: new connections follow, and the server of the old one is refused.
    app.kill().await;
    let renewed = Pki::new()?;
    replace(folder.path(), "root.pem", &renewed.root_pem())?;
    let tls = renewed.application_config(&renewed.application(&[NAME], tomorrow())?, Some(&callers))?;
    let _app = mesh.tls_pod("legacy-v1-1", LEGACY_PORT, tls, App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    until("the new root to count", DEADLINE, async || {
        let status = connection.get(LEGACY, "/again").await?.status;
        Ok(if status == StatusCode::OK { Look::Done(()) } else { Look::NotYet(status.to_string()) })
    })
    .await
}

fn replace(folder: &Path, name: &str, text: &str) -> Result<()> {
    std::fs::write(folder.join("next"), text)?;
    Ok(std::fs::rename(folder.join("next"), folder.join(name))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_of_another_root_is_refused_by_name() -> Result<()> {
    let (mesh, _callees) = with_legacy_tls(given_root).await?;
    let strangers = Pki::new()?;
    let app = legacy(&mesh, &strangers, &[NAME], tomorrow()).await?;
    let (status, flags, reason) = failure(&mesh, "/stranger").await?;
    assert_eq!((status, flags.split(',').any(|flag| flag == "UF")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(reason.contains("TLS_error:|CERTIFICATE_VERIFY_FAILED:") && reason.contains("unknown_issuer"), "{reason}");
    assert_eq!(app.record().requests_total(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_of_another_name_is_refused_by_name() -> Result<()> {
    let (mesh, callees) = with_legacy_tls(given_root).await?;
    let app = legacy(&mesh, &callees, &["other.example.com"], tomorrow()).await?;
    let (status, flags, reason) = failure(&mesh, "/other").await?;
    assert_eq!((status, flags.split(',').any(|flag| flag == "UF")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(reason.contains("CERTIFICATE_VERIFY_FAILED:") && reason.contains("none_of_the_names"), "{reason}");
    assert_eq!(app.record().requests_total(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_whose_certificate_has_expired_is_refused_by_name() -> Result<()> {
    let (mesh, callees) = with_legacy_tls(given_root).await?;
    let app = legacy(&mesh, &callees, &[NAME], SystemTime::now() - Duration::from_secs(60)).await?;
    let (status, flags, reason) = failure(&mesh, "/expired").await?;
    assert_eq!((status, flags.split(',').any(|flag| flag == "UF")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(reason.contains("CERTIFICATE_VERIFY_FAILED:") && reason.contains("expired"), "{reason}");
    assert_eq!(app.record().requests_total(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_speaks_no_tls_gets_nothing_in_plain() -> Result<()> {
    let (mesh, _) = with_legacy_tls(given_root).await?;
    let app = mesh.plain_pod("legacy-v1-1", LEGACY_PORT, App::Http).await?;
    let (status, flags, reason) = failure(&mesh, "/plain").await?;
    assert_eq!((status, flags.split(',').any(|flag| flag == "UF")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(reason.contains("TLS_error:|"), "{reason}");
    assert_eq!(app.record().requests_total(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_refuses_our_certificate_gets_no_second_request() -> Result<()> {
    let (callees, callers) = (Pki::new()?, Pki::new()?);
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            show_reasons(scenario)?;
            set_tls(scenario, LEGACY_CHAIN, given_root(&callees))
        })?
        .start()
        .await?;
    let tls = callees.application_config(&callees.application(&[NAME], tomorrow())?, Some(&callers))?;
    let app = mesh.tls_pod("legacy-v1-1", LEGACY_PORT, tls, App::Http).await?;
    let (status, flags, reason) = failure(&mesh, "/unknown").await?;
    // With TLS 1.3 the alert comes after our end of the handshake, so that Envoy too has a connection that ends.
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(flags.split(',').any(|flag| ["UF", "UC"].contains(&flag)), "{flags} {reason}");
    assert_eq!(app.record().requests_total(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_istiod_s_is_asked_for_waited_for_and_followed() -> Result<()> {
    let name = "kubernetes://api-cacert";
    let (mut mesh, callees) = with_legacy_tls(|_| simple(discovered(name))).await?;
    let app = legacy(&mesh, &callees, &[NAME], tomorrow()).await?;
    let (status, flags, reason) = failure(&mesh, "/missing").await?;
    assert_eq!((status, flags.split(',').any(|flag| flag == "UF")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(reason.contains(&format!("TLS_error:_Secret_is_not_supplied_by_SDS_({name})")), "{reason}");
    assert_eq!(app.record().connections(), 0, "nothing is dialled without it");

    let secret = |pki: &Pki| json!({"name": name, "validation_context": {"trusted_ca": {"inline_bytes": base64(&pki.root_pem())}}});
    let given = secret(&callees);
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Secret, name, given);
        Ok(())
    })
    .await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(LEGACY, "/there").await?.status, StatusCode::OK);

    // One that cannot be read is refused by name, and the one before stays.
    let replies = mesh
        .push(|scenario| {
            scenario.insert(Kind::Secret, name, json!({"name": name, "validation_context": {"trusted_ca": {"inline_string": "x"}}}));
            Ok(())
        })
        .await?;
    assert!(replies[0].refusal.as_deref().is_some_and(|text| text.contains(name)), "{replies:?}");
    app.kill().await;
    let app = legacy(&mesh, &callees, &[NAME], tomorrow()).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(LEGACY, "/still").await?.status, StatusCode::OK);

    // What it revokes is refused from the next connection on.
    let leaf = callees.application(&[NAME], tomorrow())?;
    let mut given = secret(&callees);
    given["validation_context"]["crl"] = json!({"inline_bytes": base64(&callees.crl(&[&leaf.parts().0], tomorrow())?)});
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Secret, name, given);
        Ok(())
    })
    .await?;
    app.kill().await;
    let app = legacy(&mesh, &callees, &[NAME], tomorrow()).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(LEGACY, "/not-revoked").await?.status, StatusCode::OK);
    app.kill().await;
    let app = mesh.tls_pod("legacy-v1-1", LEGACY_PORT, callees.application_config(&leaf, None)?, App::Http).await?;
    let (status, _, reason) = failure(&mesh, "/revoked").await?;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reason.contains("CERTIFICATE_VERIFY_FAILED:") && reason.contains("certificate_is_revoked"), "{reason}");

    // Another root counts for the next connection.
    let given = secret(&Pki::new()?);
    mesh.push_accepted(|scenario| {
        scenario.insert(Kind::Secret, name, given);
        Ok(())
    })
    .await?;
    app.kill().await;
    let _app = legacy(&mesh, &callees, &[NAME], tomorrow()).await?;
    let (status, _, reason) = failure(&mesh, "/replaced").await?;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reason.contains("unknown_issuer"), "{reason}");
    Ok(())
}

/// A chain of two authorities, and what is known of it.
struct Revocable {
    /// What the configuration says.
    roots: String,
    crl: String,
    of_leaf_only: bool,
    /// Whether requests pass.
    passes: bool,
    what: &'static str,
}

fn revocable(root: &Pki, below: &Pki, leaf: &Identity) -> Result<Vec<Revocable>> {
    let (chain, _) = leaf.parts();
    let past = SystemTime::now() - Duration::from_secs(60);
    let (of_root, of_below) = (root.crl(&[], tomorrow())?, below.crl(&[], tomorrow())?);
    let revoked = below.crl(&[&chain], tomorrow())?;
    let authority_revoked = format!("{}{of_below}", root.crl(&[&below.between()], tomorrow())?);
    // Begins before the others, and still counts.
    let soon = SystemTime::now() + Duration::from_secs(3600);
    let (older, older_revoked) = (below.crl(&[], soon)?, below.crl(&[&chain], soon)?);
    let expired = below.crl(&[], past)?;
    let other_key = Pki::new()?.below()?.crl(&[], tomorrow() + Duration::from_secs(60))?;
    let rows = [
        (format!("{of_root}{of_below}"), false, true, "neither is revoked"),
        (format!("{of_root}{revoked}"), false, false, "the leaf is revoked"),
        (format!("{of_root}{revoked}"), true, false, "the leaf is revoked, and it alone is looked for"),
        (of_below.clone(), false, false, "nothing says whether the authority is revoked"),
        (of_below.clone(), true, true, "nothing says whether the authority is, and nobody asks"),
        (of_root.clone(), false, false, "nothing says whether the leaf is revoked"),
        (of_root.clone(), true, false, "nothing says whether the leaf is, which alone is looked for"),
        (authority_revoked.clone(), false, false, "the authority is revoked"),
        (authority_revoked.clone(), true, true, "the authority is, and nobody asks"),
        (expired.clone(), true, false, "the list has expired"),
        (Pki::new()?.crl(&[], tomorrow())?, true, false, "the list is another's, though of the same name"),
        (format!("{older}{revoked}"), true, false, "the newer list has the leaf, and comes last"),
        (format!("{revoked}{older}"), true, false, "the newer list has the leaf, and comes first"),
        (format!("{older_revoked}{of_below}"), true, true, "the newer list has the leaf no more, and comes last"),
        (format!("{of_below}{older_revoked}"), true, true, "the newer list has the leaf no more, and comes first"),
        (format!("{expired}{of_below}"), true, true, "a list that counts follows an expired one"),
        (format!("{expired}{revoked}"), true, false, "a list that has the leaf follows an expired one"),
        (format!("{other_key}{of_root}{of_below}"), false, true, "a newer list is of another key of the same name"),
        (format!("{of_root}{of_below}{other_key}"), false, true, "a newer list is of another key of the same name, and comes last"),
        (format!("{other_key}{of_root}{revoked}"), false, false, "a newer list is of another key, and the right one has the leaf"),
    ];
    let of_root_alone = rows.into_iter().map(|row| (root.root_pem(), row));
    let between = below.between_pem()?;
    let both = format!("{between}{}", root.root_pem());
    let with_the_authority = [
        (both.clone(), (format!("{of_root}{of_below}"), false, true, "the authority is trusted as well")),
        (both.clone(), (authority_revoked.clone(), false, false, "the authority is trusted as well, and revoked")),
        (both, (authority_revoked, true, true, "the authority is trusted as well, and revoked, and nobody asks")),
        (between.clone(), (of_below.clone(), false, false, "the authority alone is trusted, and nothing is said of it")),
        (between, (of_below, true, true, "the authority alone is trusted, and nobody asks")),
    ];
    let rows = of_root_alone.chain(with_the_authority);
    Ok(rows.map(|(roots, (crl, of_leaf_only, passes, what))| Revocable { roots, crl, of_leaf_only, passes, what }).collect())
}

/// TLS to an application of `below`, with lists of revoked certificates.
fn with_crl(roots: &str, crl: &str, of_leaf_only: bool) -> Value {
    json!({"sni": NAME, "common_tls_context": {"validation_context": {
        "trusted_ca": {"inline_string": roots},
        "crl": {"inline_string": crl},
        "only_verify_leaf_cert_crl": of_leaf_only,
    }}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_looked_for_in_lists_of_revoked_ones_as_in_envoy() -> Result<()> {
    let root = Pki::new()?;
    let below = root.below()?;
    let leaf = below.application(&[NAME], tomorrow())?;
    let rows = revocable(&root, &below, &leaf)?;
    // Beside the table: a list among the roots counts as well.
    let among = format!("{}{}", root.root_pem(), below.crl(&[&leaf.parts().0], tomorrow())?);
    let mut contexts: Vec<_> = rows.iter().map(|row| with_crl(&row.roots, &row.crl, row.of_leaf_only)).collect();
    contexts.push(json!({"sni": NAME, "common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": among}}}}));
    let n_rows = contexts.len();
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| {
        let mut routes = Vec::new();
        for (at, context) in contexts.into_iter().enumerate() {
            let name = format!("row-{at}");
            let mut cluster = scenario.resource(Kind::Cluster, LEGACY_CHAIN)?.clone();
            cluster["name"] = name.as_str().into();
            scenario.insert(Kind::Cluster, &name, cluster);
            set_tls(scenario, &name, context)?;
            routes.push(json!({"match": {"path": format!("/{name}")}, "route": {"cluster": name}}));
        }
        scenario.add_routes(LEGACY_CHAIN, routes)
    })?;
    let mesh = mesh.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let tls = below.application_config(&leaf, None)?;
    let _app = mesh.tls_pod("legacy-v1-1", LEGACY_PORT, tls, App::Http).await?;
    let mut seen = Vec::new();
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        let mut statuses = Vec::new();
        for at in 0..n_rows {
            statuses.push(connection.get(LEGACY, &format!("/row-{at}")).await?.status);
        }
        seen.push(statuses);
    }
    for (at, row) in rows.iter().enumerate() {
        let passes = (seen[0][at] == StatusCode::OK, seen[1][at] == StatusCode::OK);
        assert_eq!(passes, (row.passes, row.passes), "here, and in Envoy: {}", row.what);
    }
    assert_eq!(seen[0].last(), Some(&StatusCode::SERVICE_UNAVAILABLE), "revoked by a list among the roots");
    Ok(())
}

fn base64(text: &str) -> String {
    use ::base64::Engine;
    ::base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_s_host_is_asked_for_and_verified_where_the_rule_names_none() -> Result<()> {
    let callees = Pki::new()?;
    let context = json!({"common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": callees.root_pem()}}}});
    let options = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        "upstream_http_protocol_options": {"auto_sni": true, "auto_san_validation": true},
    }});
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.resource(Kind::Cluster, LEGACY_CHAIN)?["typed_extension_protocol_options"] = options;
            set_tls(scenario, LEGACY_CHAIN, context)
        })?
        .proxy_config("concurrency", 1.into())
        .start()
        .await?;
    let app = legacy(&mesh, &callees, &["one.example.com", "two.example.com"], tomorrow()).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(LEGACY).await?;
    let mut status = async |host: &str| -> Result<StatusCode> {
        let request = http::Request::builder().uri("/").header("host", host).body(tests::peer::full(""))?;
        Ok(http.send(request).await?.status)
    };
    assert_eq!(status("one.example.com").await?, StatusCode::OK);
    assert_eq!(status("two.example.com:80").await?, StatusCode::OK);
    assert_eq!(status("one.example.com").await?, StatusCode::OK);
    assert_eq!(status("three.example.com").await?, StatusCode::SERVICE_UNAVAILABLE);
    let names: Vec<_> = app.record().handshakes().into_iter().filter_map(|one| one.server_name).collect();
    assert_eq!(names, ["one.example.com", "two.example.com"], "a session of one host serves no other");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn insecure_skip_verify_verifies_nothing_and_still_encrypts() -> Result<()> {
    let context = json!({"sni": NAME, "common_tls_context": {"validation_context": {}}});
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| set_tls(scenario, LEGACY_CHAIN, context))?.start().await?;
    let strangers = Pki::new()?;
    let app = legacy(&mesh, &strangers, &["whoever"], SystemTime::now() - Duration::from_secs(60)).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(LEGACY, "/").await?.status, StatusCode::OK);
    assert_eq!(app.record().handshakes().len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_tls_leaves_no_session_of_the_one_before_in_use() -> Result<()> {
    let callees = Pki::new()?;
    let mut mesh = Mesh::builder("01-plain")?.proxy_config("concurrency", 1.into()).start().await?;
    let plain = mesh.plain_pod("legacy-v1-1", LEGACY_PORT, App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(LEGACY).await?;
    assert_eq!(http.get("/plain").await?.status, StatusCode::OK);
    let context = given_root(&callees);
    mesh.push_accepted(|scenario| set_tls(scenario, LEGACY_CHAIN, context)).await?;
    assert_eq!(http.get("/in-tls").await?.status, StatusCode::SERVICE_UNAVAILABLE, "the idle session is in plain");
    assert_eq!(plain.record().requests_total(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_is_reached_by_mutual_tls_where_the_cluster_matches_it() -> Result<()> {
    let matched = "outbound|80||legacy.shop.svc.cluster.local";
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            let mut cluster = scenario.resource(Kind::Cluster, "outbound|4317||tempo.tempo.svc.cluster.local")?.clone();
            let text = cluster.to_string().replace("outbound|4317||tempo.tempo.svc.cluster.local", matched);
            let text = text
                .replace("ns/tempo/sa/tempo", "ns/shop/sa/legacy")
                .replace(r#""http2_protocol_options":{}"#, r#""http_protocol_options":{}"#);
            cluster = serde_json::from_str(&text)?;
            scenario.insert(Kind::Cluster, matched, cluster);
            let mut endpoints = scenario.resource(Kind::Endpoints, LEGACY_CHAIN)?.clone();
            endpoints["cluster_name"] = matched.into();
            let endpoint = &mut endpoints["endpoints"][0]["lb_endpoints"][0];
            endpoint["metadata"]["filter_metadata"]["envoy.transport_socket_match"] = json!({"tlsMode": "istio"});
            scenario.insert(Kind::Endpoints, matched, endpoints);
            let routes = scenario.http(LEGACY_CHAIN)?["route_config"]["virtual_hosts"][0]["routes"].as_array_mut().context("no routes")?;
            routes[0]["route"]["cluster"] = matched.into();
            Ok(())
        })?
        .start()
        .await?;
    let sidecar = |identity: &str| -> Result<_> {
        let config = mesh.pki.workload_config(&mesh.pki.member(identity)?)?;
        let mut config = (*config).clone();
        config.alpn_protocols = vec![b"istio-peer-exchange".to_vec(), b"istio".to_vec()];
        Ok(std::sync::Arc::new(config))
    };
    let tls = sidecar(&tests::pki::spiffe("shop", "legacy"))?;
    let app = mesh.tls_pod("legacy-v1-1", LEGACY_PORT, tls, App::Http).await?;
    let answer = mesh.connect("frontend-0").await?.get(LEGACY, "/").await?;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let seen = SeenHandshake {
        server_name: Some("outbound_.4317_._.tempo.tempo.svc.cluster.local".into()),
        alpn: Some("istio".into()),
        shows_certificate: true,
    };
    assert_eq!(app.record().handshakes(), [seen]);
    app.kill().await;
    let impostor = mesh.tls_pod("legacy-v1-1", LEGACY_PORT, sidecar(&tests::pki::spiffe("shop", "web"))?, App::Http).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(LEGACY, "/").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(impostor.record().requests_total(), 0);
    Ok(())
}
