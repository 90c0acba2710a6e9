//! What the connection manager is told to make of heads of requests and answers, beside a real Envoy.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::{Peer, empty};
use tests::process::Lines;
use tests::scenario::{Mesh, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::differential::{Seen, exchange};

const DEADLINE: Duration = Duration::from_secs(10);

/// Sets fields of the connection manager, and has lines tell details.
fn set(scenario: &mut Scenario, fields: &Value) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let http = scenario.http(WEB_CHAIN)?;
    for (name, value) in fields.as_object().into_iter().flatten() {
        http[name] = value.clone();
    }
    for log in http["access_log"].as_array_mut().context("no log")? {
        log["typed_config"]["log_format"]["json_format"]["details"] = json!("%RESPONSE_CODE_DETAILS%");
    }
    let direct = json!({"name": "direct", "match": {"path": "/direct", "case_sensitive": true}, "direct_response": {"status": 404}});
    scenario.add_routes(WEB_CHAIN, vec![direct])
}

struct Both {
    mesh: Mesh,
    envoy: Envoy,
    peer: Peer,
    web: Workload,
    n_lines: [usize; 2],
    /// The last line of each.
    last: [Value; 2],
}

/// What a line tells of a request.
const TOLD: [&str; 8] = ["method", "path", "protocol", "response_code", "response_flags", "details", "user_agent", "bytes_sent"];

impl Both {
    async fn start(fields: Value) -> Result<Self> {
        let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| set(scenario, &fields))?.start().await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let web = mesh.pod("web-v1-1", App::Http).await?;
        let peer = mesh.peer("frontend-0")?;
        Ok(Self { mesh, envoy, peer, web, n_lines: [0; 2], last: [Value::Null, Value::Null] })
    }

    fn proxies(&self) -> [(SocketAddr, Lines); 2] {
        [(self.mesh.hbone(), self.mesh.waypoint.output_lines().clone()), (self.envoy.hbone(), self.envoy.output().clone())]
    }

    /// What the next line of each tells.
    async fn lines(&mut self) -> Result<[Vec<Value>; 2]> {
        let mut both = [Vec::new(), Vec::new()];
        for (at, (_, output)) in self.proxies().into_iter().enumerate() {
            let line = until("the next line", DEADLINE, async || {
                let new = output.after(&mut self.n_lines[at]);
                let line =
                    new.iter().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line.get("details").is_some()));
                Ok(line.map_or_else(|| Look::NotYet(String::new()), Look::Done))
            })
            .await?;
            both[at] = TOLD.iter().map(|name| line[name].clone()).collect();
            self.last[at] = line;
        }
        Ok(both)
    }

    /// Asks both in HTTP/1.1; the status that both answer with.
    async fn ask(&mut self, request: &str) -> Result<String> {
        Ok(self.see(request).await?.status)
    }

    /// Asks both in HTTP/1.1; what both do.
    async fn see(&mut self, request: &str) -> Result<Seen> {
        let mut seen = Vec::new();
        for (proxy, _) in self.proxies() {
            seen.push(exchange(&self.peer.connect(proxy).await?, request).await?);
        }
        let [ours, theirs] = self.lines().await?;
        assert_eq!(seen[0], seen[1], "{request:?}: here, and in Envoy");
        assert_eq!(ours, theirs, "{request:?}: its lines");
        Ok(seen.swap_remove(0))
    }

    /// Asks both in HTTP/2; the status that both answer with, and where they lead. None: the stream is reset.
    async fn ask_h2(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Option<(StatusCode, String)>> {
        let mut seen = Vec::new();
        for (proxy, _) in self.proxies() {
            let mut http = self.peer.connect(proxy).await?.http2(WEB).await?;
            let mut request = http.request(Method::POST, path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let answer = http.send(request.body(empty())?).await;
            seen.push(match answer {
                Ok(answer) => {
                    let told = ["location", "server", "content-type", "grpc-status"].map(|name| answer.header(name).to_owned());
                    Some((answer.status, told, answer.json()["headers"].to_string().contains('_')))
                }
                Err(error) => {
                    assert!(format!("{error:#}").contains("unexpected internal error"), "{error:#}");
                    None
                }
            });
        }
        let [ours, theirs] = self.lines().await?;
        assert_eq!(seen[0], seen[1], "{path} {headers:?}: here, and in Envoy");
        assert_eq!(ours, theirs, "{path} {headers:?}: its lines");
        Ok(seen.swap_remove(0).map(|(status, [location, ..], _)| (status, location)))
    }
}

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\nuser-agent: a/1\r\n{lines}\r\n")
}

const UNDERSCORES: [&str; 4] = ["x_a: 1\r\n", "x_a: 1\r\nx-b: 2\r\ny_: 3\r\n", "_: 1\r\n", "content_length: 3\r\n"];

#[tokio::test(flavor = "multi_thread")]
async fn headers_with_underscores_go_where_that_is_asked_for_alike() -> Result<()> {
    let mut both = Both::start(json!({"common_http_protocol_options": {"headers_with_underscores_action": "DROP_HEADER"}})).await?;
    for lines in UNDERSCORES {
        assert_eq!(both.ask(&get("/x_y?a_b=1", lines)).await?, "HTTP/1.1 200 OK");
    }
    assert_eq!(both.ask_h2("/x", &[("x_a", "1"), ("x-b", "2")]).await?, Some((StatusCode::OK, String::new())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_underscores_in_headers_are_refused_where_that_is_asked_for_alike() -> Result<()> {
    let mut both = Both::start(json!({"common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"}})).await?;
    for lines in UNDERSCORES {
        assert_eq!(both.ask(&get("/x", lines)).await?, "HTTP/1.1 400 Bad Request");
    }
    assert_eq!(both.ask_h2("/x", &[("x_a", "1")]).await?, None);
    assert_eq!(both.web.record().requests_total(), 0);
    assert_eq!(both.ask(&get("/x_y?a_b=1", "x-a: 1\r\n")).await?, "HTTP/1.1 200 OK");
    assert_eq!(both.ask_h2("/x_y", &[("x-a", "1_2")]).await?, Some((StatusCode::OK, String::new())));
    Ok(())
}

/// Paths, and where a client is sent that asked for them; none: they have no escaped slash.
const SLASHES: [(&str, Option<&str>); 12] = [
    ("/a%2fb", Some("/a/b")),
    ("/a%2Fb?x=%2f", Some("/a/b?x=%2f")),
    ("/a%5cb", Some("/a/b")),
    ("/a%5Cb", Some("/a/b")),
    ("/a/b", None),
    ("/a%2f..%2fb", Some("/b")),
    ("/a?q=%2f", None),
    ("/a%2fb/%41//c", Some("/a/b/A//c")),
    ("/a%252fb", None),
    ("/x%2f%2e%2e%2fy", Some("/y")),
    ("/a/../%2fb", Some("//b")),
    ("/%2", None),
];

#[tokio::test(flavor = "multi_thread")]
async fn paths_with_escaped_slashes_are_refused_where_that_is_asked_for_alike() -> Result<()> {
    let mut both = Both::start(json!({"path_with_escaped_slashes_action": "REJECT_REQUEST"})).await?;
    for (path, leads) in SLASHES {
        let status = if leads.is_some() { "HTTP/1.1 400 Bad Request" } else { "HTTP/1.1 200 OK" };
        assert_eq!(both.ask(&get(path, "")).await?, status, "{path}");
    }
    assert_eq!(both.ask_h2("/a%2fb", &[]).await?, Some((StatusCode::BAD_REQUEST, String::new())));
    assert_eq!(both.ask_h2("/a%2fb", &[("content-type", "application/grpc")]).await?, Some((StatusCode::OK, String::new())));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_escape_slashes_are_sent_to_the_path_without_where_that_is_asked_for_alike() -> Result<()> {
    for normalize in [true, false] {
        let fields = json!({"path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT", "normalize_path": normalize});
        let mut both = Both::start(fields).await?;
        // To another host nobody is led here (`slash-redirect`).
        let [ours, theirs] = both.proxies().map(|(proxy, _)| proxy);
        for (proxy, status) in [(ours, "HTTP/1.1 400 Bad Request"), (theirs, "HTTP/1.1 307 Temporary Redirect")] {
            assert_eq!(exchange(&both.peer.connect(proxy).await?, &get("/%2Fevil.example/x", "")).await?.status, status);
        }
        both.lines().await?;
        let same = SLASHES.into_iter().filter(|(_, leads)| !leads.is_some_and(|leads| leads.starts_with("//")));
        for (path, leads) in same.clone() {
            let status = if leads.is_some() { "HTTP/1.1 307 Temporary Redirect" } else { "HTTP/1.1 200 OK" };
            assert_eq!(both.ask(&get(path, "x-forwarded-proto: https\r\n")).await?, status, "{path}");
        }
        for (path, leads) in same.filter(|_| normalize) {
            let leads = leads.map_or((StatusCode::OK, ""), |leads| (StatusCode::TEMPORARY_REDIRECT, leads));
            assert_eq!(both.ask_h2(path, &[]).await?, Some((leads.0, leads.1.to_owned())), "{path}");
        }
        // No gRPC client follows a redirect.
        assert_eq!(both.ask_h2("/a%2fb", &[("content-type", "application/grpc")]).await?, Some((StatusCode::OK, String::new())));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answers_server_is_whose_it_is_to_be_alike() -> Result<()> {
    for (transformation, of_pod, of_proxy) in [
        ("OVERWRITE", "istio-envoy", Some("istio-envoy")),
        ("APPEND_IF_ABSENT", "web-v1-1", Some("istio-envoy")),
        ("PASS_THROUGH", "web-v1-1", None),
    ] {
        let mut both = Both::start(json!({"server_header_transformation": transformation})).await?;
        assert_eq!(both.see(&get("/x", "")).await?.headers["server"], [of_pod], "{transformation}");
        let reply = both.see(&get("/direct", "")).await?;
        assert_eq!(reply.status, "HTTP/1.1 404 Not Found");
        let server = reply.headers.get("server").map(|lines| lines.join(","));
        assert_eq!(server.as_deref(), of_proxy, "{transformation}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_gets_an_id_where_that_is_switched_off_alike() -> Result<()> {
    let mut both = Both::start(json!({"generate_request_id": false})).await?;
    // The client's own says from then on that its trace is recorded.
    let uuid = "11111111-1111-4111-9111-111111111111";
    for (lines, id) in [
        ("", Value::Null),
        (&*format!("x-request-id: {uuid}\r\n"), json!("11111111-1111-9111-9111-111111111111")),
        ("x-request-id: mine\r\n", json!("mine")),
    ] {
        let (_, _, asked) = both.see(&get("/x", lines)).await?.asked.context("the pod was not asked")?;
        assert_eq!(asked.contains_key("x-request-id"), !id.is_null());
        assert_eq!([&both.last[0]["request_id"], &both.last[1]["request_id"]], [&id, &id]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_of_operations_where_nothing_is_traced_alike() -> Result<()> {
    let mut both = Both::start(json!({"tracing": null})).await?;
    for lines in ["", "x-envoy-decorator-operation: mine\r\n"] {
        let seen = both.see(&get("/x", lines)).await?;
        assert!(!seen.headers.contains_key("x-envoy-decorator-operation"), "{seen:?}");
        let (_, _, asked) = seen.asked.context("the pod was not asked")?;
        assert_eq!(asked.contains_key("x-envoy-decorator-operation"), !lines.is_empty(), "what means nothing here passes");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_is_refused_closes_its_connection_alike() -> Result<()> {
    let mut both = Both::start(json!({})).await?;
    let refused = both.see(&get("/x", "connection: upgrade\r\nupgrade: other\r\n")).await?;
    assert_eq!((&*refused.status, &*refused.headers["connection"]), ("HTTP/1.1 403 Forbidden", &["close".to_owned()][..]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_takes_too_long_is_answered_408_alike() -> Result<()> {
    let mut both = Both::start(json!({"request_headers_timeout": "0.5s"})).await?;
    for part in ["G", "GET /a HTTP/1.1\r\nhost: web", "GET /a HTTP/1.1\r\nhost: web.shop\r\nuser-agent: a/1\r\n"] {
        assert_eq!(both.ask(part).await?, "HTTP/1.1 408 Request Timeout");
    }
    for (proxy, _) in both.proxies() {
        let mut stream = both.peer.connect(proxy).await?.tunnel(WEB).await?;
        let mut heard = String::new();
        let mut hear = async |bytes: &str, end: &str| {
            stream.write_all(bytes.as_bytes()).await?;
            stream.flush().await?;
            let until_end = async {
                while !heard.contains(end) {
                    let mut piece = [0; 1024];
                    let n_bytes = stream.read(&mut piece).await?;
                    anyhow::ensure!(n_bytes > 0, "{proxy}: {heard}");
                    heard.push_str(&String::from_utf8_lossy(&piece[..n_bytes]));
                }
                anyhow::Ok(())
            };
            tokio::time::timeout(DEADLINE, until_end).await.context("nothing is heard")?
        };
        // A body is none of it, nor is the time between requests.
        hear("POST /delay/700 HTTP/1.1\r\nhost: web.shop\r\ncontent-length: 3\r\n\r\n", "").await?;
        hear("abc", "\"n_body_bytes\":3").await?;
        hear("GET /b HTTP/1.1\r\nhost", "HTTP/1.1 408 Request Timeout").await?;
    }
    Ok(())
}
