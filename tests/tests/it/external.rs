//! External authorization (CUSTOM policies): the same answers of one service to the waypoint and to a stock Envoy, and what a service that
//! fails does.
//!
//! Known differences (`docs/differences.md`: `external-principal`, `external-changes`) are asked for by themselves.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::authz::{Asked, AuthzServer, Says};
use tests::envoy::Envoy;
use tests::peer::{Answer, Connection, Peer, empty, exchange_raw, plain_get};
use tests::process::Lines;
use tests::scenario::{DB, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

use super::differential::{Seen, exchange, line_of};

const HTTP_CLUSTER: &str = "outbound|8000||ext-authz.authz.svc.cluster.local";
/// The recorded policy asks about these paths only.
const CHECKED: &str = "/checked/";

/// The chain of `web` with its recorded CUSTOM policy alone, and `change` made in its filter.
fn with_external(scenario: &mut Scenario, change: impl FnOnce(&mut Value)) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let filters = scenario.http(WEB_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
    filters.retain(|filter| filter["typed_config"].get("rules").is_none());
    let filter = filters.iter_mut().find(|filter| filter["name"] == "envoy.filters.http.ext_authz").context("no ext_authz")?;
    change(&mut filter["typed_config"]);
    scenario.http(WEB_CHAIN)?["access_log"] = access_log();
    Ok(())
}

fn access_log() -> Value {
    let format =
        json!({"path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "response_flags": "%RESPONSE_FLAGS%", "details": "%RESPONSE_CODE_DETAILS%"});
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/stdout",
            "log_format": {"json_format": format},
        },
    }])
}

/// An HTTP service in place of the recorded gRPC one.
fn by_http(config: &mut Value, request: Value, response: Value) {
    if let Some(fields) = config.as_object_mut() {
        fields.remove("grpc_service");
        fields.remove("status_on_error");
    }
    config["http_service"] = json!({
        "server_uri": {"uri": "http://ext-authz.authz", "cluster": HTTP_CLUSTER, "timeout": "1s"},
        "path_prefix": "/check",
        "authorization_request": request,
        "authorization_response": response,
    });
}

/// A mesh with the service and the pod behind.
struct Stage {
    mesh: Mesh,
    authz: AuthzServer,
    _web: Workload,
    peer: Peer,
}

async fn stage(change: impl FnOnce(&mut Value)) -> Result<Stage> {
    stage_with(|scenario| with_external(scenario, change)).await
}

async fn stage_with(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Stage> {
    let mesh = Mesh::builder("05-authz")?.edit(edit)?.start().await?;
    let at = |port| SocketAddr::new(mesh.net.pod(8, 2).into(), port);
    let authz = AuthzServer::start(at(9001), at(8000), Says::Check(json!({}))).await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    Ok(Stage { mesh, authz, _web: web, peer })
}

/// What the service was asked, without what differs from call to call or by design.
fn comparable(asked: Vec<Asked>) -> Vec<Value> {
    let comparable = |mut asked: Asked| {
        for name in ["x-envoy-internal", "x-forwarded-for"] {
            asked.headers.remove(name);
        }
        let mut check = asked.check;
        for (holder, field) in [
            ("/attributes/request", "time"),
            ("/attributes/request/http", "id"),
            ("/attributes/request/http/headers", "x-request-id"),
            ("/attributes/source", "principal"),
            ("/attributes/destination", "principal"),
            ("/attributes/source/address/socket_address", "port_value"),
        ] {
            if let Some(holder) = check.pointer_mut(holder).and_then(Value::as_object_mut) {
                holder.remove(field);
            }
        }
        // Lines are raw bytes there; all but one are the same for both.
        if let Some(lines) = check.pointer_mut("/attributes/request/http/header_map/headers").and_then(Value::as_array_mut) {
            lines.retain(|line| line["key"] != "x-request-id");
            lines.sort_by_key(ToString::to_string);
        }
        let mut headers: Vec<_> =
            asked.headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect();
        headers.sort();
        let body = if check.is_null() { String::from_utf8_lossy(&asked.body).into_owned() } else { String::new() };
        json!({"method": asked.method, "path": asked.path, "authority": asked.authority, "headers": headers, "check": check, "body": body})
    };
    asked.into_iter().map(comparable).collect()
}

/// A request and what the service says to it.
type Case = (&'static str, Says, String);

fn get(path: &str, lines: &str) -> String {
    format!("GET {CHECKED}{path} HTTP/1.1\r\nhost: web.shop\r\n{lines}\r\n")
}

fn post(path: &str, lines: &str, body: &str) -> String {
    format!("POST {CHECKED}{path} HTTP/1.1\r\nhost: web.shop\r\ncontent-length: {}\r\n{lines}\r\n{body}", body.len())
}

/// Envoy closes what it did not read on.
async fn ask(connection: &Connection, authz: &AuthzServer, request: &str) -> Result<(Seen, Vec<Value>)> {
    drop(authz.asked());
    let mut seen = exchange(connection, request).await.with_context(|| request.to_owned())?;
    if seen.status.starts_with("HTTP/1.1 413") {
        seen.headers.remove("connection");
    }
    Ok((seen, comparable(authz.asked())))
}

/// Both proxies, one service; what comes out differently.
async fn compare(change: impl FnOnce(&mut Value), cases: Vec<Case>) -> Result<Vec<(Seen, Vec<Value>)>> {
    compare_on(&stage(change).await?, cases).await
}

async fn compare_on(stage: &Stage, cases: Vec<Case>) -> Result<Vec<(Seen, Vec<Value>)>> {
    let envoy = Envoy::beside(&stage.mesh).start().await?;
    let (ours, theirs) = (stage.peer.connect(stage.mesh.hbone()).await?, stage.peer.connect(envoy.hbone()).await?);
    let (mut seen, mut differences) = (Vec::new(), Vec::new());
    for (name, says, request) in cases {
        stage.authz.says(says);
        let here = ask(&ours, &stage.authz, &request).await?;
        let there = ask(&theirs, &stage.authz, &request).await?;
        if here != there {
            differences.push(format!("{name}: {request:?}\n  ours   {here:?}\n  theirs {there:?}"));
        }
        seen.push(here);
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(seen)
}

/// The same flag and details in both logs.
async fn logged_alike(stage: &Stage, envoy: &Envoy, path: &str, details: &str) -> Result<()> {
    for output in [stage.mesh.waypoint.output_lines(), envoy.output()] {
        assert_eq!(line_of(output, path).await?, (json!("UAEX"), json!(details)), "{path}");
    }
    Ok(())
}

fn statuses(seen: &[(Seen, Vec<Value>)]) -> Vec<&str> {
    seen.iter().map(|(seen, _)| seen.status.split(' ').nth(1).unwrap_or_default()).collect()
}

fn option(name: &str, value: &str, more: Value) -> Value {
    let mut option = json!({"header": {"key": name, "value": value}});
    for (field, value) in more.as_object().into_iter().flatten() {
        option[field] = value.clone();
    }
    option
}

fn grants(ok: Value) -> Says {
    Says::Check(json!({"ok_response": ok}))
}

fn denies(response: Value) -> Says {
    Says::Check(json!({"status": {"code": 7}, "denied_response": response}))
}

/// All that a gRPC service may say of a request that passes.
fn granted_cases() -> Vec<Case> {
    let headers = json!([
        option("x-default", "v", json!({})),
        option("x-default", "w", json!({})),
        option("x-a", "set", json!({})),
        option("x-b", "appended", json!({"append": true})),
        option("x-absent", "appended", json!({"append": true})),
        option("x-c", "set", json!({"append": false})),
        option("x-d", "if-absent", json!({"append_action": "ADD_IF_ABSENT"})),
        option("x-e", "if-exists", json!({"append_action": "OVERWRITE_IF_EXISTS"})),
        option("x-e-absent", "if-exists", json!({"append_action": "OVERWRITE_IF_EXISTS"})),
        option("X-Upper", "u", json!({})),
        option("x-empty", "", json!({})),
        option("x-bytes", "\u{e9}", json!({})),
    ]);
    let back = json!([
        option("x-back", "1", json!({})),
        option("x-back", "2", json!({"append": true})),
        option("x-pod", "added", json!({})),
        option("x-pod", "set", json!({"append": false})),
        option("x-pod", "absent", json!({"append_action": "ADD_IF_ABSENT"})),
        option("x-new", "absent", json!({"append_action": "ADD_IF_ABSENT"})),
        option("x-gone", "exists", json!({"append_action": "OVERWRITE_IF_EXISTS"})),
        option("x-new", "exists", json!({"append_action": "OVERWRITE_IF_EXISTS"})),
        option("server", "mine", json!({"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"})),
    ]);
    let lines = "x-a: 1\r\nx-a: 2\r\nx-b: 1\r\nx-b: 2\r\nx-c: 1\r\nx-d: 1\r\nx-e: 1\r\nx-gone: 1\r\nx-envoy-auth-partial-body: mine\r\n";
    let set = |pairs: Value| grants(json!({"query_parameters_to_set": pairs}));
    vec![
        ("nothing", Says::Check(json!({})), get("a?b=c", lines)),
        (
            "headers",
            grants(json!({"headers": headers, "headers_to_remove": ["x-gone", "host", ":path", "X-D", "no name"]})),
            get("h", lines),
        ),
        ("back", grants(json!({"response_headers_to_add": back})), get("r", "")),
        ("set", set(json!([{"key": "a", "value": "2"}, {"key": "n", "value": "x%20y"}])), get("q?a=1&b=%20+&a=3&c&=e&d==", "")),
        ("set-first", set(json!([{"key": "a", "value": "2"}])), get("q", "")),
        ("remove", grants(json!({"query_parameters_to_remove": ["a", "c"]})), get("q?a=1&a=3&c&z=#f", "")),
        ("remove-all", grants(json!({"query_parameters_to_remove": ["a"]})), get("q?a=1", "")),
        ("body", Says::Check(json!({})), post("b", "", "0123456789")),
        ("partial-body", Says::Check(json!({})), post("b", "", "0123456789abcdef")),
        (
            "chunked",
            Says::Check(json!({})),
            format!("POST {CHECKED}c HTTP/1.1\r\nhost: web.shop\r\ntransfer-encoding: chunked\r\n\r\n4\r\n0123\r\n3\r\n456\r\n0\r\n\r\n"),
        ),
        ("denied-but-0", Says::Check(json!({"denied_response": {"status": {"code": "Unauthorized"}}})), get("0", "")),
        ("not-checked", Says::Breaks, "GET /other HTTP/1.1\r\nhost: web.shop\r\n\r\n".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_grpc_service_grants_is_done_alike() -> Result<()> {
    let body = json!({"max_request_bytes": 10, "allow_partial_message": true});
    let seen = compare(|config| config["with_request_body"] = body, granted_cases()).await?;
    assert!(statuses(&seen).iter().all(|status| *status == "200"), "{seen:?}");
    let (_, asked) = &seen[8];
    assert_eq!(asked[0]["check"].pointer("/attributes/request/http/body"), Some(&json!("0123456789")));
    assert!(seen[11].1.is_empty(), "what no policy matches is not asked about");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_grpc_service_denies_or_fails_at_is_refused_alike() -> Result<()> {
    let headers = json!([
        option("x-denied", "1", json!({})),
        option("x-denied", "2", json!({})),
        option("content-type", "text/html", json!({})),
        option("content-length", "77", json!({})),
        option("transfer-encoding", "chunked", json!({})),
        option("connection", "close", json!({})),
        option("server", "mine", json!({})),
    ]);
    let grpc = "content-type: application/grpc\r\n";
    let cases = vec![
        ("plain", Says::Check(json!({"status": {"code": 7}})), get("d", "")),
        ("full", denies(json!({"status": {"code": "Unauthorized"}, "body": "no!", "headers": headers})), get("d", "")),
        (
            "no-body",
            denies(
                json!({"status": {"code": "Found"}, "headers": [option("location", "/in", json!({})), option("content-type", "text/html", json!({}))]}),
            ),
            get("d", ""),
        ),
        ("no-status", denies(json!({"body": "no"})), get("d", "")),
        ("fine", denies(json!({"status": {"code": "OK"}, "body": "fine"})), get("d", "")),
        ("grpc", denies(json!({"status": {"code": "Unauthorized"}, "body": "no %"})), get("d", grpc)),
        ("ok-but-7", Says::Check(json!({"status": {"code": 7}, "ok_response": {}})), get("d", "")),
        (
            "error",
            Says::Check(json!({"status": {"code": 13}, "error_response": {"status": {"code": "BadGateway"}, "body": "err"}})),
            get("e", ""),
        ),
        ("error-without-status", Says::Check(json!({"status": {"code": 13}, "error_response": {"body": "err"}})), get("e", "")),
        ("grpc-status", Says::GrpcStatus(14), get("e", "")),
        ("garbage", Says::Garbage(b"\0\0\0\0\x05hello".to_vec()), get("e", "")),
        ("short", Says::Garbage(b"\0\0\0\0\x05hell".to_vec()), get("e", "")),
        ("http", Says::Http(200, vec![], "yes".to_owned()), get("e", "")),
        ("breaks", Says::Breaks, get("e", "")),
        ("hangs", Says::Hangs, get("e", "")),
        ("hangs-grpc", Says::Hangs, get("e", grpc)),
    ];
    let seen = compare(|_| {}, cases).await?;
    let expected = ["403", "401", "302", "403", "200", "200", "403", "502", "503", "503", "503", "503", "503", "503", "503", "200"];
    assert_eq!(statuses(&seen), expected);
    Ok(())
}

fn http_cases() -> Vec<Case> {
    let says = |status, headers: &[(&'static str, &'static str)], text: &str| Says::Http(status, headers.to_vec(), text.to_owned());
    let lines = "x-a: 1\r\nx-a: 2\r\nx-b: 1\r\nx-gone: 1\r\nx-up: 0\r\nx-app: 0\r\nauthorization: Basic x\r\nuser-agent: t/1\r\n";
    let granted = [
        ("x-up", "1"),
        ("x-up", "2"),
        ("x-app", "3"),
        ("x-ok", "4"),
        ("x-other", "5"),
        ("x-envoy-auth-headers-to-remove", "x-gone, x-b"),
        ("x-envoy-auth-headers-to-remove", "host"),
    ];
    let denied = [
        ("x-no", "1"),
        ("x-other", "2"),
        ("www-authenticate", "Basic"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("content-type", "text/html"),
        ("keep-alive", "5"),
        ("server", "mine"),
    ];
    vec![
        ("granted", says(200, &granted, "yes"), get("a?b", lines)),
        ("body", says(200, &[], ""), post("b", "", "0123456789")),
        ("denied", says(401, &denied, "denied!"), get("d", "")),
        ("login", says(302, &[("location", "http://login/"), ("content-type", "text/html")], ""), get("d", "")),
        ("created", says(201, &[("x-no", "1")], "created"), get("d", "")),
        ("failed", says(503, &[("x-no", "1")], "down"), get("e", "")),
        ("breaks", Says::Breaks, get("e", "")),
        ("hangs", Says::Hangs, get("e", "")),
        ("too-long", says(200, &[], ""), post("b", "", "0123456789a")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_http_service_says_is_done_alike() -> Result<()> {
    let names =
        |names: &[&str]| json!({"patterns": names.iter().map(|name| json!({"exact": name, "ignore_case": true})).collect::<Vec<_>>()});
    let lists = json!({
        "allowed_upstream_headers": names(&["x-up"]),
        "allowed_upstream_headers_to_append": names(&["x-app"]),
        "allowed_client_headers": names(&["x-no", "set-cookie"]),
        "allowed_client_headers_on_success": names(&["X-OK"]),
    });
    for response in [lists, json!({})] {
        let seen = compare(
            |config| {
                by_http(config, json!({"headers_to_add": [{"key": "x-added", "value": "y"}]}), response);
                config["allowed_headers"] = names(&["x-a"]);
                config["with_request_body"] = json!({"max_request_bytes": 10});
            },
            http_cases(),
        )
        .await?;
        assert_eq!(statuses(&seen), ["200", "200", "401", "302", "201", "403", "403", "403", "413"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_told_what_it_may_be_told_alike() -> Result<()> {
    let cases = || vec![("told", Says::Check(json!({})), post("b", "x-a: 1\r\nx-a: 2\r\nx-b: 1\r\nauthorization: x\r\n", "0123"))];
    let pattern = |prefix: &str| json!({"patterns": [{"prefix": prefix}]});
    for (allowed, hidden, raw) in
        [(None, Some("x-a"), false), (Some("x-"), Some("x-b"), false), (None, None, true), (Some(":"), None, true)]
    {
        let change = |config: &mut Value| {
            config["with_request_body"] = json!({"max_request_bytes": 100, "pack_as_bytes": raw});
            config["encode_raw_headers"] = json!(raw);
            for (field, prefix) in [("allowed_headers", allowed), ("disallowed_headers", hidden)] {
                if let Some(prefix) = prefix {
                    config[field] = pattern(prefix);
                }
            }
        };
        compare(change, cases()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_logged_alike() -> Result<()> {
    let stage = stage(|_| {}).await?;
    let envoy = Envoy::beside(&stage.mesh).start().await?;
    for (path, says, details) in [
        ("/checked/denied", Says::Check(json!({"status": {"code": 7}})), "ext_authz_denied"),
        ("/checked/failed", Says::GrpcStatus(2), "ext_authz_error"),
        ("/checked/error", Says::Check(json!({"status": {"code": 2}, "error_response": {}})), "ext_authz_error"),
    ] {
        stage.authz.says(says);
        for proxy in [stage.mesh.hbone(), envoy.hbone()] {
            stage.peer.connect(proxy).await?.get(WEB, path).await?;
        }
        logged_alike(&stage, &envoy, path, details).await?;
        let told = json!({"by": "external", "policy": "shop/web-custom", "rule": "0", "detail": details});
        assert_eq!(reasons(&stage.mesh, details).last(), Some(&told), "{path}");
    }
    Ok(())
}

/// A request on a connection of its own to the waypoint.
async fn answer(stage: &Stage, path: &str) -> Result<Answer> {
    stage.peer.connect(stage.mesh.hbone()).await?.get(WEB, path).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_does_not_answer_lets_pass_only_what_is_configured_to() -> Result<()> {
    for allows in [false, true] {
        let stage = stage(|config| {
            config["failure_mode_allow"] = json!(allows);
            config["failure_mode_allow_header_add"] = json!(true);
            config["grpc_service"]["timeout"] = json!("0.3s");
            config["with_request_body"] = json!({"max_request_bytes": 10, "allow_partial_message": true});
        })
        .await?;
        for says in
            [Says::Hangs, Says::Breaks, Says::GrpcStatus(14), Says::Garbage(vec![0; 300_000]), Says::Http(200, vec![], String::new())]
        {
            stage.authz.says(says.clone());
            let began = Instant::now();
            let mut http = stage.peer.connect(stage.mesh.hbone()).await?.http1(WEB).await?;
            let request =
                http.request(Method::POST, "/checked/a").body(tests::peer::full(bytes::Bytes::from_static(b"0123456789abcdef")))?;
            let answer = http.send(request).await?;
            assert!(began.elapsed() < Duration::from_secs(5), "{says:?}");
            if allows {
                let told = answer.json();
                assert_eq!((answer.status, told["n_body_bytes"].as_u64()), (StatusCode::OK, Some(16)), "{says:?}");
                assert!(told["headers"].to_string().contains(r#"["x-envoy-auth-failure-mode-allowed","true"]"#), "{told}");
            } else {
                assert_eq!((answer.status, answer.text().as_str()), (StatusCode::SERVICE_UNAVAILABLE, ""), "{says:?}");
            }
        }
        // Nobody listens there any more.
        drop(stage.authz);
        let connection = stage.peer.connect(stage.mesh.hbone()).await?;
        let expected = if allows { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        until("the service is gone", Duration::from_secs(10), async || {
            let status = connection.get(WEB, "/checked/a").await?.status;
            Ok(if status == expected { Look::Done(()) } else { Look::NotYet(status.to_string()) })
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_told_who_calls_by_its_verified_certificate() -> Result<()> {
    let stage = stage(|_| {}).await?;
    answer(&stage, "/checked/a").await?;
    let asked = stage.authz.asked();
    let principal = |side: &str| asked[0].check.pointer(&format!("/attributes/{side}/principal")).cloned();
    assert_eq!(principal("source"), Some(json!("spiffe://cluster.local/ns/clients/sa/frontend")));
    assert_eq!(principal("destination"), Some(json!("spiffe://cluster.local/ns/shop/sa/waypoint")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_cannot_smuggle_a_request_or_send_it_elsewhere() -> Result<()> {
    let stage = stage(|_| {}).await?;
    for name in ["content-length", "transfer-encoding", "connection", "te", "upgrade", ":path", ":authority", ":method", "host", "x bad"] {
        stage.authz.says(grants(json!({"headers": [option(name, "3", json!({"append": false}))]})));
        let refused = answer(&stage, &format!("/checked/{}", name.replace([':', ' '], ""))).await?;
        assert_eq!((refused.status, refused.text().as_str()), (StatusCode::INTERNAL_SERVER_ERROR, ""), "{name}");
    }
    let line = line_of(stage.mesh.waypoint.output_lines(), "/checked/content-length").await?;
    assert_eq!(line, (json!("UAEX"), json!("ext_authz_invalid")));
    stage.authz.says(grants(json!({"query_parameters_to_set": [{"key": "a", "value": "1 HTTP/1.1\r\nx: y"}]})));
    assert_eq!(answer(&stage, "/checked/query").await?.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(stage._web.record().requests_total(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_the_check_and_a_new_one_is_served() -> Result<()> {
    let stage = stage(|config| config["grpc_service"]["timeout"] = json!("0s")).await?;
    stage.authz.says(Says::Hangs);
    let connection = stage.peer.connect(stage.mesh.hbone()).await?;
    let mut http = connection.http1(WEB).await?;
    let request = http.request(Method::GET, "/checked/left").body(empty())?;
    assert!(tokio::time::timeout(Duration::from_millis(300), http.start(request)).await.is_err(), "it waits");
    drop((http, connection));
    let line = line_of(stage.mesh.waypoint.output_lines(), "/checked/left").await?;
    assert_eq!(line, (json!("DC"), json!("downstream_remote_disconnect")));
    stage.authz.says(Says::Check(json!({})));
    assert_eq!(answer(&stage, "/checked/next").await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_shown_although_an_upgrade_is_asked_for() -> Result<()> {
    let stage = stage(|config| config["with_request_body"] = json!({"max_request_bytes": 100})).await?;
    stage.authz.says(Says::Check(json!({"status": {"code": 7}})));
    let connection = stage.peer.connect(stage.mesh.hbone()).await?;
    exchange(&connection, &post("a", "connection: upgrade\r\nupgrade: websocket\r\n", "0123456789")).await?;
    let asked = stage.authz.asked();
    let told = |field: &str| asked[0].check.pointer(&format!("/attributes/request/http/{field}")).cloned();
    assert_eq!((told("body"), told("headers/upgrade")), (Some(json!("0123456789")), Some(json!("websocket"))));
    Ok(())
}

const DB_CHAIN: &str = "inbound-vip|5432|tcp|db.shop.svc.cluster.local";

/// A CUSTOM policy on all connections to `db`, as istiod writes it for TCP.
fn with_external_tcp(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(DB_CHAIN, 1)?;
    let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
    filters.retain(|filter| filter["name"] != "envoy.filters.network.rbac");
    let any = json!({"permissions": [{"any": true}], "principals": [{"any": true}]});
    let shadow = json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "tcp.",
            "shadow_rules": {"action": "DENY", "policies": {"istio-ext-authz-one-ns[shop]-policy[db]-rule[0]": any}},
            "shadow_rules_stat_prefix": "istio_ext_authz_",
        },
    });
    let ask = json!({
        "name": "envoy.filters.network.ext_authz",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
            "stat_prefix": "tcp.",
            "grpc_service": {"envoy_grpc": {"cluster_name": "outbound|9001||ext-authz.authz.svc.cluster.local", "authority": "authz"}, "timeout": "1s"},
            "transport_api_version": "V3",
            "filter_enabled_metadata": {
                "filter": "envoy.filters.network.rbac",
                "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
                "value": {"string_match": {"prefix": "istio-ext-authz-one"}},
            },
        },
    });
    filters.splice(1..1, [shadow, ask]);
    let proxy = filters.last_mut().context("no proxy")?;
    proxy["typed_config"]["access_log"] = access_log();
    Ok(())
}

/// A line as Envoy has it, who says nothing of why.
fn without_reason(line: &str) -> Option<Value> {
    let mut line: Value = serde_json::from_str(line).ok()?;
    line.as_object_mut()?.remove("waypoint_refusal");
    Some(line)
}

/// What the waypoint's lines with these details say of why.
fn reasons(mesh: &Mesh, details: &str) -> Vec<Value> {
    let lines = mesh.waypoint.output_lines().all();
    let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| line["details"] == details);
    lines.map(|line| line["waypoint_refusal"].clone()).collect()
}

/// Waits for as many lines with this flag and details.
async fn logged(output: &Lines, details: &str, count: usize) -> Result<()> {
    let wanted = json!({"details": details, "path": null, "response_flags": "UAEX"});
    until(&wanted.to_string(), Duration::from_secs(10), async || {
        let lines = output.all();
        let found = lines.iter().filter(|line| without_reason(line).is_some_and(|line| line == wanted)).count();
        Ok(if found == count { Look::Done(()) } else { Look::NotYet(lines.join("\n")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_connections_are_asked_about_and_refused_alike() -> Result<()> {
    let mesh = Mesh::builder("05-authz")?.edit(with_external_tcp)?.start().await?;
    let at = |port| SocketAddr::new(mesh.net.pod(8, 2).into(), port);
    let authz = AuthzServer::start(at(9001), at(8000), Says::Check(json!({}))).await?;
    let db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let peer = mesh.peer("frontend-0")?;
    let mut asked = Vec::new();
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let heard = exchange_raw(peer.connect(proxy).await?.tunnel(DB).await?, b"hello", true).await?;
        assert_eq!(heard, b"echo:hello");
        asked.push(comparable(authz.asked()));
    }
    assert_eq!(asked[0], asked[1]);
    let accepted = db.record().connections();
    for (says, details) in [(Says::Check(json!({"status": {"code": 7}})), "ext_authz_denied"), (Says::Hangs, "ext_authz_error")] {
        authz.says(says);
        // Refused before a tunnel opens; Envoy lets it open, and asks when the first byte comes.
        assert_eq!(peer.connect(mesh.hbone()).await?.connect(DB).await?.err(), Some(StatusCode::FORBIDDEN));
        logged(mesh.waypoint.output_lines(), details, 1).await?;
        assert_eq!(reasons(&mesh, details), [json!({"by": "external", "policy": "shop/db", "rule": "0", "detail": details})]);
        let tunnel = peer.connect(envoy.hbone()).await?.tunnel(DB).await?;
        assert!(exchange_raw(tunnel, b"hello", true).await.map_or(true, |heard| heard.is_empty()));
        logged(envoy.output(), details, 1).await?;
    }
    assert!(db.record().connections() >= accepted);
    for (decision, count) in [("allowed", 1), ("denied", 2)] {
        let labels = format!("policy=\"shop/db\",rule=\"0\",action=\"CUSTOM\",decision=\"{decision}\"");
        let wanted = format!("waypoint_authz_decisions_total{{{labels}}} {count}");
        mesh.waypoint.metric(decision, |line| line == wanted).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_the_check_of_its_connection() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        with_external_tcp(scenario)?;
        scenario.chain(DB_CHAIN)?["filters"][2]["typed_config"]["grpc_service"]["timeout"] = json!("600s");
        Ok(())
    };
    let mesh = Mesh::builder("05-authz")?.edit(edit)?.start().await?;
    let at = |port| SocketAddr::new(mesh.net.pod(8, 2).into(), port);
    let _authz = AuthzServer::start(at(9001), at(8000), Says::Hangs).await?;
    let peer = mesh.peer("frontend-0")?;
    let connection = peer.connect(mesh.hbone()).await?;
    assert!(tokio::time::timeout(Duration::from_millis(300), connection.connect(DB)).await.is_err(), "it waits");
    drop(connection);
    until("the connection is logged", Duration::from_secs(10), async || {
        let lines = mesh.waypoint.output_lines().all();
        let is_logged = lines.iter().any(|line| line.contains("\"path\":null"));
        Ok(if is_logged { Look::Done(()) } else { Look::NotYet(lines.join("\n")) })
    })
    .await
}

/// Routes before those of `web`.
fn with_routes(scenario: &mut Scenario, anew: bool) -> Result<()> {
    with_external(scenario, |config| config["clear_route_cache"] = json!(anew))?;
    let green = json!({"name": "x-team", "string_match": {"exact": "green"}});
    scenario.add_routes(
        WEB_CHAIN,
        vec![json!({
            "match": {"prefix": "/checked/", "headers": [green]},
            "direct_response": {"status": 409, "body": {"inline_string": "green"}},
        })],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_is_chosen_anew_only_where_that_is_configured_alike() -> Result<()> {
    let cases = || {
        let green = grants(json!({"headers": [option("x-team", "green", json!({}))]}));
        vec![
            ("green", green, get("a", "")),
            ("not-green", grants(json!({"headers_to_remove": ["x-team"]})), get("a", "x-team: green\r\n")),
            ("unchanged", Says::Check(json!({})), get("a", "x-team: green\r\n")),
        ]
    };
    for (anew, expected) in [(false, ["200", "409", "409"]), (true, ["409", "200", "409"])] {
        let seen = compare_on(&stage_with(|scenario| with_routes(scenario, anew)).await?, cases()).await?;
        assert_eq!(statuses(&seen), expected, "{anew}");
    }
    Ok(())
}

/// What routes say of the filter.
fn with_settings(scenario: &mut Scenario) -> Result<()> {
    with_external(scenario, |config| config["with_request_body"] = json!({"max_request_bytes": 100}))?;
    let route = |path: &str, said: Value| {
        let mut said = said;
        said["@type"] = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute".into();
        json!({
            "name": path,
            "match": {"prefix": format!("{CHECKED}{path}")},
            "route": {"cluster": WEB_CHAIN, "timeout": "0s"},
            "typed_per_filter_config": {"envoy.filters.http.ext_authz": said},
        })
    };
    scenario.add_routes(
        WEB_CHAIN,
        vec![
            route("off", json!({"disabled": true})),
            route("context", json!({"check_settings": {"context_extensions": {"a": "1", "b": "2"}}})),
            route("part", json!({"check_settings": {"with_request_body": {"max_request_bytes": 4, "allow_partial_message": true}}})),
            route("hidden", json!({"check_settings": {"disable_request_body_buffering": true}})),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn what_routes_say_of_the_service_is_obeyed_alike() -> Result<()> {
    let denies = || Says::Check(json!({"status": {"code": 7}}));
    let cases = ["off", "context", "part", "hidden", "other"].map(|path| (path, denies(), post(path, "", "0123456789")));
    let stage = stage_with(with_settings).await?;
    let seen = compare_on(&stage, cases.into()).await?;
    assert_eq!(statuses(&seen), ["200", "403", "403", "403", "403"]);
    // So does what is explained.
    for (path, is_asked) in [("off", false), ("context", true)] {
        let query = format!("/explain?output=json&service={WEB}&identity=spiffe://cluster.local/ns/a/sa/b&path={CHECKED}{path}");
        let told = plain_get(stage.mesh.waypoint.port(15000), &query).await?.json();
        assert_eq!(told["asked"].as_array().map(Vec::is_empty), Some(!is_asked), "{path}: {told}");
    }
    Ok(())
}

/// Two providers: all checked paths are asked about at the first by gRPC, some at the second by HTTP too.
fn with_two_providers(scenario: &mut Scenario) -> Result<()> {
    with_external(scenario, |_| {})?;
    let filters = scenario.http(WEB_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
    let (mut rules, mut ask) = (filters[0].clone(), filters[1].clone());
    let policy = json!({
        "permissions": [{"url_path": {"path": {"prefix": "/checked/both"}}}],
        "principals": [{"any": true}],
    });
    rules["typed_config"]["shadow_rules"]["policies"] = json!({"istio-ext-authz-two-ns[shop]-policy[two]-rule[0]": policy});
    by_http(&mut ask["typed_config"], json!({}), json!({}));
    ask["typed_config"]["filter_enabled_metadata"]["value"]["string_match"]["prefix"] = json!("istio-ext-authz-two");
    filters.splice(2..2, [rules, ask]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_providers_is_asked_by_its_own_policies_alike() -> Result<()> {
    let stage = stage_with(with_two_providers).await?;
    stage.authz.says_by_http(Says::Http(403, vec![], "second".to_owned()));
    let first = grants(json!({"headers": [option("x-first", "1", json!({}))]}));
    let cases = vec![
        ("one", first.clone(), get("one", "")),
        ("both", first, get("both", "")),
        ("first-denies", Says::Check(json!({"status": {"code": 7}})), get("both", "")),
    ];
    let seen = compare_on(&stage, cases).await?;
    assert_eq!(statuses(&seen), ["200", "403", "403"]);
    assert_eq!(seen.iter().map(|(_, asked)| asked.len()).collect::<Vec<_>>(), [1, 2, 1]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_while_a_service_is_asked_ends_a_request_alike() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        with_external(scenario, |config| {
            config["grpc_service"]["timeout"] = json!("30s");
            config["with_request_body"] = json!({"max_request_bytes": 100});
        })?;
        scenario.http(WEB_CHAIN)?["stream_idle_timeout"] = json!("0.3s");
        Ok(())
    };
    let stage = stage_with(edit).await?;
    let envoy = Envoy::beside(&stage.mesh).start().await?;
    stage.authz.says(Says::Hangs);
    for (path, length, status) in [("hangs", 0, "504"), ("uploads", 9, "408")] {
        for (proxy, output) in [(stage.mesh.hbone(), stage.mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
            let request = format!("POST {CHECKED}{path} HTTP/1.1\r\nhost: web.shop\r\ncontent-length: {length}\r\n\r\n");
            let seen = exchange(&stage.peer.connect(proxy).await?, &request).await?;
            assert_eq!(seen.status.split(' ').nth(1), Some(status), "{path}");
            assert_eq!(line_of(output, &format!("{CHECKED}{path}")).await?, (json!("SI"), json!("stream_idle_timeout")), "{path}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_of_checks_is_counted() -> Result<()> {
    let stage = stage(|config| config["failure_mode_allow"] = json!(true)).await?;
    for says in [
        Says::Check(json!({})),
        Says::Check(json!({"status": {"code": 7}})),
        Says::Breaks,
        grants(json!({"headers": [option("te", "x", json!({}))]})),
    ] {
        stage.authz.says(says);
        answer(&stage, "/checked/a").await?;
    }
    for result in ["ok", "denied", "error", "failure_mode_allowed", "invalid"] {
        let wanted = format!("waypoint_ext_authz_total{{result=\"{result}\"}} 1");
        stage.mesh.waypoint.metric(result, |line| line == wanted).await?;
    }
    // Of the policy because of which it was asked: what passed because nobody answered is let through as well.
    for decision in ["allowed", "denied"] {
        let labels = format!("policy=\"shop/web-custom\",rule=\"0\",action=\"CUSTOM\",decision=\"{decision}\"");
        let wanted = format!("waypoint_authz_decisions_total{{{labels}}} 2");
        stage.mesh.waypoint.metric(decision, |line| line == wanted).await?;
    }
    Ok(())
}
