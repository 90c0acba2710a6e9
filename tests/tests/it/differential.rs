//! The same requests through the waypoint and through a stock Envoy with what istiod sent: the pod is asked the same, the client reads the same.
//!
//! Differences that are meant stand in `docs/differences.md` and are not asked for here.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use http::Method;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::{Answer, Connection, empty};
use tests::process::Lines;
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long one exchange may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Headers whose value is drawn or measured anew for each request: only that they are there is compared.
const DRAWN: [&str; 5] = ["x-request-id", "traceparent", "x-envoy-upstream-service-time", "date", "x-envoy-expected-rq-timeout-ms"];

/// A message's headers by name, lines of one name in their order.
pub(super) type Headers = BTreeMap<String, Vec<String>>;

/// What the client read and what the pod was asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) status: String,
    pub(super) headers: Headers,
    pub(super) asked: Option<(String, String, Headers)>,
}

fn headers(pairs: impl Iterator<Item = (String, String)>) -> Headers {
    let mut all = Headers::new();
    for (name, value) in pairs {
        let value = if DRAWN.contains(&name.as_str()) { "*".to_owned() } else { value };
        all.entry(name).or_default().push(value);
    }
    all
}

/// What the pod says it was asked; none if the answer is not the pod's.
fn asked_of(body: &str) -> Option<(String, String, Headers)> {
    let told: Value = serde_json::from_str(body).ok()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pairs = told["headers"].as_array()?.iter().map(|pair| (text(&pair[0]), text(&pair[1])));
    Some((text(&told["method"]), text(&told["path"]), headers(pairs)))
}

/// Whether an answer in HTTP/1.1 is all there.
fn is_whole(heard: &str) -> bool {
    let Some((head, body)) = heard.split_once("\r\n\r\n") else { return false };
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        Some(length) => body.len() >= length,
        None if head.contains("transfer-encoding: chunked") => body.ends_with("0\r\n\r\n"),
        None => head.starts_with("http/1.1 101"),
    }
}

/// The answer to raw bytes of HTTP/1 in a tunnel of their own. What has no length is whole at its end, which may be a reset: Envoy resets
/// a tunnel whose connection it closes.
pub(super) async fn whole_answer(connection: &Connection, target: &str, pieces: &[&str]) -> Result<String> {
    let mut stream = connection.tunnel(target).await?;
    for piece in pieces {
        stream.write_all(piece.as_bytes()).await?;
        stream.flush().await?;
    }
    let mut heard = Vec::new();
    let whole =
        async { while !is_whole(&String::from_utf8_lossy(&heard)) && stream.read_buf(&mut heard).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(DEADLINE, whole).await.context("no whole answer")?;
    Ok(String::from_utf8(heard)?)
}

/// What one exchange with `web` looks like from both its ends.
pub(super) async fn exchange(connection: &Connection, request: &str) -> Result<Seen> {
    exchange_with(connection, WEB, request).await
}

/// What one exchange looks like from both its ends.
pub(super) async fn exchange_with(connection: &Connection, target: &str, request: &str) -> Result<Seen> {
    let heard = whole_answer(connection, target, &[request]).await?;
    let (head, body) = heard.split_once("\r\n\r\n").with_context(|| format!("no answer but {heard:?}"))?;
    let mut lines = head.lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let pairs = lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    let mut headers = headers(pairs);
    // The echoed request has other drawn values, so that it may be longer; and the bytes may come in another coding.
    headers.remove("content-length");
    let json = body.find('{').zip(body.rfind('}')).map(|(from, to)| &body[from..=to]);
    headers.remove("transfer-encoding");
    if status.starts_with("HTTP/1.") && status[8..].starts_with(" 400") {
        // What is no request is answered before the chain's settings are looked at.
        headers.remove("server");
    } else if status.starts_with("HTTP/1.1 408") {
        // As is what never becomes a request; by no codec, which would say when.
        headers.remove("server");
        headers.remove("date");
    }
    Ok(Seen { status, headers, asked: json.and_then(asked_of) })
}

/// Asks both proxies; the request and what came out differently, if anything did.
async fn difference(ours: &Connection, theirs: &Connection, request: &str) -> Result<Option<String>> {
    let (ours, theirs) = (exchange(ours, request).await.context(request.to_owned())?, exchange(theirs, request).await?);
    Ok((ours != theirs).then(|| format!("{request:?}\n  ours   {ours:?}\n  theirs {theirs:?}")))
}

const PATHS: [&str; 35] = [
    "/",
    "//a/../b",
    "/a%2fb",
    "/a;x=1?q=1#f",
    "/a#/../b",
    "/a/./b/",
    "/%41",
    "/a\\b",
    "/x?y=//../z",
    "/a%00b",
    "/.%00",
    "/a?%00",
    "/a%5cb",
    "/a//b?x",
    "/..",
    "/a/../../b",
    "/%2e%2e/x",
    "/a/b/../../../c",
    "///..//a",
    "/a/..%2f..",
    "/%zz%41",
    "/x%%41",
    "/%",
    "/a%4",
    "/a/%%32e%%32e/b",
    "/a%%32f%%35cb",
    "/a/%%32%65/b",
    "/a%2500",
    "/a/..;x=1/..;/b",
    "/a/.;;/b",
    "/a/..;",
    "/a/...;/b",
    "/a/..%3b/b",
    "http://other.example/abs?q",
    "http://other.example",
];

const LINES: [&str; 21] = [
    "x-forwarded-for: 10.0.0.1\r\nx-envoy-upstream-rq-timeout-ms: 7000\r\nx-envoy-retry-on: 5xx\r\nx-envoy-max-retries: 7\r\n",
    "x-envoy-upstream-rq-per-try-timeout-ms: 700\r\nx-envoy-retry-grpc-on: internal\r\nx-envoy-retriable-status-codes: 418\r\n",
    "x-envoy-retriable-header-names: x-a\r\nx-envoy-hedge-on-per-try-timeout: true\r\nx-envoy-original-url: http://a/\r\n",
    "x-envoy-internal: true\r\nx-envoy-force-trace: true\r\nx-envoy-ip-tags: a\r\nx-envoy-upstream-alt-stat-name: x\r\n",
    "x-envoy-expected-rq-timeout-ms: 5\r\nx-envoy-upstream-rq-timeout-alt-response: 1\r\n",
    "x-envoy-downstream-service-cluster: c\r\nx-envoy-downstream-service-node: n\r\nx-envoy-external-address: 1.2.3.4\r\n",
    "x-envoy-attempt-count: 9\r\nx-envoy-original-path: /o\r\nx-envoy-original-host: h\r\nx-envoy-peer-metadata: a\r\n",
    "x-envoy-decorator-operation: mine\r\n",
    "keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: trailers\r\n",
    "te: gzip, trailers;q=0.5\r\n",
    "connection: x-secret, keep-alive\r\nx-secret: 1\r\n",
    "referer: not a url\r\n",
    "referer: http://a.example/x\r\n",
    "x-forwarded-for: 1.2.3.4, 5.6.7.8\r\nx-forwarded-proto: https\r\nx-forwarded-host: a\r\nx-forwarded-port: 1\r\nforwarded: for=1\r\n",
    "x-forwarded-proto: gopher\r\n",
    "x-request-id: mine\r\nvia: 1.1 a\r\ntrailer: x-a\r\n",
    "x-empty:\r\nx-twice: 1\r\nx-twice: 2\r\nX-Case: Value\r\n",
    "x_underscore: 1\r\nexpect: 100-continue\r\nearly-data: 1\r\n",
    "content-length: 0\r\naccept-encoding: gzip\r\nuser-agent:\r\n",
    "x-istio-attributes: a\r\nbaggage: k=v\r\n",
    "proxy-authenticate: a\r\nproxy-authorization: b\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn odd_paths_and_headers_reach_the_pod_alike() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    let (ours, theirs) = (peer.connect(mesh.hbone()).await?, peer.connect(envoy.hbone()).await?);
    let mut differences = Vec::new();
    for path in PATHS {
        differences.extend(difference(&ours, &theirs, &format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\n\r\n")).await?);
    }
    for lines in LINES {
        differences.extend(difference(&ours, &theirs, &format!("GET /x HTTP/1.1\r\nhost: web.shop\r\n{lines}\r\n")).await?);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Time limits of the chain, of routes by their path, and details in the log.
fn time_limits(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let http = scenario.http(WEB_CHAIN)?;
    http["stream_idle_timeout"] = json!("0.3s");
    for log in http["access_log"].as_array_mut().context("no log")? {
        log["typed_config"]["log_format"]["json_format"]["details"] = json!("%RESPONSE_CODE_DETAILS%");
    }
    let route = |prefix: &str, limits: &Value| {
        let mut action = json!({"cluster": WEB_CHAIN, "timeout": "0s"});
        for (name, limit) in limits.as_object().into_iter().flatten() {
            action[name] = limit.clone();
        }
        json!({"name": prefix, "match": {"prefix": prefix, "case_sensitive": true}, "route": action})
    };
    scenario.add_routes(
        WEB_CHAIN,
        vec![
            route("/delay/1000/own", &json!({"idle_timeout": "0s"})),
            route("/delay/1000/stream", &json!({"idle_timeout": "0s", "max_stream_duration": {"max_stream_duration": "0.2s"}})),
            route("/delay/1000/route", &json!({"timeout": "0.2s"})),
            route("/stream/20/lasts", &json!({"max_stream_duration": {"max_stream_duration": "0.35s"}})),
            route("/messages/20/lasts", &json!({"max_stream_duration": {"max_stream_duration": "0.35s"}})),
            route("/stream/20/route", &json!({"timeout": "0.35s"})),
            route("/messages/20/route", &json!({"timeout": "0.35s"})),
            route("/stream/6/try", &json!({"retry_policy": {"retry_on": "5xx", "per_try_timeout": "0.35s"}})),
            route("/echo", &json!({"timeout": "5s", "max_grpc_timeout": "4s"})),
        ],
    )
}

/// Flags and details of the line for `path`.
pub(super) async fn line_of(output: &Lines, path: &str) -> Result<(Value, Value)> {
    until(&format!("the line of {path}"), DEADLINE, async || {
        let lines = output.all();
        let found = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|line| line["path"] == path);
        Ok(found
            .map_or_else(|| Look::NotYet(lines.join("\n")), |line| Look::Done((line["response_flags"].clone(), line["details"].clone()))))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_end_requests_alike() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(time_limits)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    for (at, (path, request, status, flags, details)) in [
        ("/delay/1000/idle", "", "504", "SI", "stream_idle_timeout"),
        ("/delay/1000/own", "", "200", "-", "via_upstream"),
        ("/delay/1000/stream", "", "504", "-", "max_duration_timeout"),
        ("/delay/1000/route", "", "504", "UT", "response_timeout"),
        ("/upload", "content-length: 9\r\n", "408", "SI", "stream_idle_timeout"),
        ("/delay/1000/stream/upload", "content-length: 9\r\n", "408", "-", "max_duration_timeout"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut texts = Vec::new();
        for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
            let path = format!("{path}?{at}");
            let heard =
                whole_answer(&peer.connect(proxy).await?, WEB, &[&format!("POST {path} HTTP/1.1\r\nhost: web.shop\r\n{request}\r\n")])
                    .await?;
            let (head, body) = heard.split_once("\r\n\r\n").context("no head")?;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {head}");
            assert_eq!(line_of(output, &path).await?, (json!(flags), json!(details)), "{path}");
            texts.push(if status == "200" { String::new() } else { body.to_owned() });
        }
        assert_eq!(texts[0], texts[1], "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_takes_too_long_is_cut_and_a_grpc_upstream_is_told_its_time() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(time_limits)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        let connection = peer.connect(proxy).await?;
        let rows = [
            ("http1", "/stream/20/lasts", false, "-", "max_duration_timeout"),
            ("http2", "/stream/20/lasts", false, "-", "max_duration_timeout"),
            ("grpc", "/messages/20/lasts", false, "-", "max_duration_timeout"),
            ("http1", "/stream/20/route", false, "UT", "response_timeout"),
            ("http2", "/stream/20/route", false, "UT", "response_timeout"),
            ("grpc", "/messages/20/route", false, "UT", "response_timeout"),
            // A try has its time until it is answered.
            ("http1", "/stream/6/try", true, "-", "via_upstream"),
        ];
        for (protocol, path, is_whole, ..) in rows {
            let mut http = if protocol == "http1" { connection.http1(WEB).await? } else { connection.http2(WEB).await? };
            let path = format!("{path}/{protocol}");
            let kind = if protocol == "grpc" { "application/grpc" } else { "text/plain" };
            let request = http.request(Method::GET, &path).header("content-type", kind).body(empty())?;
            let answer = http.start(request).await?;
            assert_eq!(answer.status(), 200, "{path}");
            assert_eq!(Answer::read(answer).await.is_ok(), is_whole, "{path}: it must not end as if it were whole");
        }
        for (protocol, path, _, flags, details) in rows {
            assert_eq!(line_of(output, &format!("{path}/{protocol}")).await?, (json!(flags), json!(details)), "{proxy}: {path}");
        }
        let mut http = connection.http1(WEB).await?;
        for (asked, told) in [("9S", "4000m"), ("2000000u", "2000m"), ("x", "4000m")] {
            let request = http.request(Method::POST, "/echo").header("content-type", "application/grpc").header("grpc-timeout", asked);
            let answer = http.send(request.body(empty())?).await?;
            let (_, _, headers) = asked_of(&answer.text()).context("the pod did not tell")?;
            assert_eq!(headers.get("grpc-timeout"), Some(&vec![told.to_owned()]), "{asked}");
        }
    }
    Ok(())
}

/// A WebSocket that nobody says anything on, with limits that its path's query chooses.
fn websocket_limits(scenario: &mut Scenario) -> Result<()> {
    time_limits(scenario)?;
    let route = |limit: &str, action: Value| {
        let query = json!([{"name": limit, "present_match": true}]);
        json!({"name": limit, "match": {"prefix": "/upgrade", "query_parameters": query}, "route": action})
    };
    let limits =
        json!({"cluster": WEB_CHAIN, "timeout": "0.1s", "idle_timeout": "0s", "max_stream_duration": {"max_stream_duration": "0.3s"}});
    scenario.add_routes(WEB_CHAIN, vec![route("idle", json!({"cluster": WEB_CHAIN, "timeout": "0.1s"})), route("stream", limits)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_ends_when_its_time_is_over_alike() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(websocket_limits)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        for (path, flag, details) in [("/upgrade?idle", "SI", "stream_idle_timeout"), ("/upgrade?stream", "-", "max_duration_timeout")] {
            let head = format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
            let mut stream = peer.connect(proxy).await?.tunnel(WEB).await?;
            stream.write_all(head.as_bytes()).await?;
            let mut heard = Vec::new();
            // How the connection ends is not alike: one resets it, the other may close it.
            let _ended = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut heard)).await.context("it does not end")?;
            assert!(heard.starts_with(b"HTTP/1.1 101 "), "{path}: {}", String::from_utf8_lossy(&heard));
            assert_eq!(line_of(output, path).await?, (json!(flag), json!(details)), "{path}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_connection_that_lasts_too_long_is_cut_alike() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.keep_endpoints(DB_CHAIN, 1)?;
        let filters = scenario.chain(DB_CHAIN)?["filters"].as_array_mut().context("no filters")?;
        let proxy = filters.last_mut().context("no proxy")?;
        proxy["typed_config"]["max_downstream_connection_duration"] = json!("0.3s");
        Ok(())
    };
    let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let peer = mesh.peer("frontend-0")?;
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        let mut stream = peer.connect(proxy).await?.tunnel(DB).await?;
        let mut heard = Vec::new();
        // It ends, or is reset; either way it does not last.
        let _end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut heard)).await.context("it lasts")?;
        assert_eq!(heard, b"ready\n");
        until("its line", DEADLINE, async || {
            let lines = output.all();
            let found = lines.iter().any(|line| line.contains("\"response_flags\":\"DT\""));
            Ok(if found { Look::Done(()) } else { Look::NotYet(lines.join("\n")) })
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_our_own_has_the_header_changes_of_its_route_alike() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        let route = |prefix: &str, cluster: &str| {
            json!({
                "name": prefix, "match": {"prefix": prefix, "case_sensitive": true}, "route": {"cluster": cluster, "timeout": "0s"},
                "response_headers_to_add": [{"header": {"key": "x-route", "value": prefix}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
            })
        };
        let mut bad = route("/bad", "none");
        drop(bad.as_object_mut().map(|bad| bad.remove("route")));
        bad["direct_response"] = json!({"status": 400});
        scenario.add_routes(WEB_CHAIN, vec![route("/missing", "none"), route("/down", WEB_CHAIN), bad])
    };
    let mesh = Mesh::builder("01-plain")?.edit(edit)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let peer = mesh.peer("frontend-0")?;
    let (ours, theirs) = (peer.connect(mesh.hbone()).await?, peer.connect(envoy.hbone()).await?);
    let mut differences = Vec::new();
    for path in ["/missing", "/down", "/bad"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\n\r\n");
        assert_eq!(exchange(&ours, &request).await?.headers.get("x-route"), Some(&vec![path.to_owned()]));
        differences.extend(difference(&ours, &theirs, &request).await?);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// What an application may say in an answer that is for its client.
const KEPT: [(&str, &str); 29] = [
    ("date", "Tue, 01 Jan 2019 00:00:00 GMT"),
    ("age", "7"),
    ("cache-control", "no-cache, no-store"),
    ("etag", "W/\"x\""),
    ("last-modified", "Tue, 01 Jan 2019 00:00:00 GMT"),
    ("expires", "0"),
    ("vary", "accept"),
    ("vary", "accept-encoding"),
    ("set-cookie", "a=1; Path=/"),
    ("set-cookie", "b=2"),
    ("link", "</a>; rel=next"),
    ("location", "/elsewhere"),
    ("retry-after", "120"),
    ("www-authenticate", "Basic realm=\"a\""),
    ("proxy-authenticate", "Basic realm=\"a\""),
    ("content-language", "de"),
    ("content-encoding", "identity"),
    ("content-location", "/there"),
    ("accept-ranges", "bytes"),
    ("allow", "GET"),
    ("warning", "199 - \"x\""),
    ("pragma", "no-cache"),
    ("via", "1.1 app"),
    ("alt-svc", "clear"),
    ("strict-transport-security", "max-age=1"),
    ("x-forwarded-for", "192.0.2.1"),
    ("x-request-id", "mine"),
    ("x-envoy-other", "kept"),
    ("x-empty", ""),
];

/// Lines of one name as one, which says the same (RFC 9110 §5.3), but for `set-cookie`: Envoy joins some.
fn joined<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Headers {
    let mut all = Headers::new();
    for (name, value) in pairs {
        let values = all.entry(name.to_owned()).or_default();
        match values.last_mut().filter(|_| name != "set-cookie") {
            Some(last) => *last = format!("{last},{value}"),
            None => values.push(value.to_owned()),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_says_to_its_client_arrives_as_it_was_said() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    for is_http2 in [false, true] {
        let mut seen = Vec::new();
        for proxy in [mesh.hbone(), envoy.hbone()] {
            let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
            let mut http = if is_http2 { connection.http2(WEB).await? } else { connection.http1(WEB).await? };
            let request = http.request(Method::GET, "/status/200");
            let request = KEPT.iter().fold(request, |request, (name, value)| request.header("x-answer-with", format!("{name}={value}")));
            let answer = http.send(request.body(empty())?).await?;
            let mut all = joined(answer.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default())));
            for (name, value) in joined(KEPT.into_iter()) {
                assert_eq!(all.get(&name), Some(&value), "{proxy}: {name}");
            }
            all.remove("x-envoy-upstream-service-time");
            seen.push(all);
        }
        assert_eq!(seen[0], seen[1], "here, and in Envoy");
    }
    Ok(())
}
