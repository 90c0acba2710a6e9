//! Requests that become streams of bytes, between clients and pods of either protocol (RFC 9110 §7.8, RFC 8441), also beside a stock Envoy.

use std::time::Duration;

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::{Connection, empty};
use tests::process::Lines;
use tests::scenario::{Mesh, RATINGS, RATINGS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long one exchange may take.
const DEADLINE: Duration = Duration::from_secs(10);

const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
const FORMAT: &str = "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %BYTES_RECEIVED% %BYTES_SENT%\n";

/// What is said on what was switched to.
const SAID: &[u8] = b"\x81\x05hello";

/// What a client speaks.
#[derive(Clone, Copy, Debug)]
enum Speaks {
    Http1,
    Http2,
}

/// Lets clients ask over HTTP/2, as an `EnvoyFilter` does, for WebSockets everywhere but below `/off`, and for `custom` below `/upgrade`.
fn allow_connect(scenario: &mut Scenario) -> Result<()> {
    for chain in [WEB_CHAIN, RATINGS_CHAIN] {
        scenario.keep_endpoints(chain, 1)?;
        let manager = scenario.http(chain)?;
        manager["http2_protocol_options"] = json!({"allow_connect": true});
        manager["access_log"] = json!([{"name": "text", "typed_config": {"@type": FILE_LOG, "path": "/dev/stdout", "log_format": {"text_format_source": {"inline_string": FORMAT}}}}]);
        let route = |prefix: &str, upgrade: Value| {
            let action = json!({"cluster": chain, "timeout": "0s", "upgrade_configs": [upgrade]});
            json!({"name": prefix, "match": {"prefix": prefix, "case_sensitive": true}, "route": action})
        };
        let off = route("/off", json!({"upgrade_type": "websocket", "enabled": false}));
        scenario.add_routes(chain, vec![off, route("/upgrade", json!({"upgrade_type": "custom"}))])?;
    }
    Ok(())
}

/// Says something on what was switched to, and hears it again; then ends its side, and the pod ends its own, where `half_closes`.
async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, said: &[u8], half_closes: bool) -> Result<Vec<u8>> {
    stream.write_all(said).await?;
    stream.flush().await?;
    let mut heard = vec![0; said.len()];
    stream.read_exact(&mut heard).await?;
    if half_closes {
        stream.shutdown().await?;
        stream.read_to_end(&mut heard).await?;
    }
    Ok(heard)
}

/// Asks for a protocol; the status, and what came back of what was said where it switched.
async fn ask(
    connection: &Connection,
    authority: &str,
    speaks: Speaks,
    (path, protocol, half_closes): (&str, &str, bool),
) -> Result<(StatusCode, Vec<u8>)> {
    let mut http = match speaks {
        Speaks::Http1 => connection.http1(authority).await?,
        Speaks::Http2 => {
            let http = connection.http2(authority).await?;
            // The server's settings have to be here before it may be asked.
            let mut first = http;
            first.get("/first").await?;
            first
        }
    };
    let request = match speaks {
        Speaks::Http1 => http.request(Method::GET, path).header("connection", "upgrade").header("upgrade", protocol).body(empty())?,
        Speaks::Http2 => {
            let protocol = Protocol::from(protocol);
            http.request(Method::CONNECT, path).extension(protocol).body(empty())?
        }
    };
    let response = http.start(request).await?;
    let status = response.status();
    let switched = match speaks {
        Speaks::Http1 => StatusCode::SWITCHING_PROTOCOLS,
        Speaks::Http2 => StatusCode::OK,
    };
    if status != switched {
        return Ok((status, Vec::new()));
    }
    let stream = TokioIo::new(hyper::upgrade::on(response).await?);
    let heard = tokio::time::timeout(DEADLINE, talk(stream, SAID, half_closes)).await.context("the talk does not end")??;
    Ok((status, heard))
}

/// The line of a request, by its path.
async fn line_of(output: &Lines, path: &str) -> Result<String> {
    until("its line", DEADLINE, async || {
        let lines = output.all();
        Ok(lines.iter().find(|line| line.contains(path)).map_or_else(|| Look::NotYet(lines.join("\n")), |line| Look::Done(line.clone())))
    })
    .await
}

async fn pods(mesh: &Mesh) -> Result<[Workload; 2]> {
    Ok([mesh.pod("web-v1-1", App::Http).await?, mesh.pod("ratings-v1-1", App::Http).await?])
}

#[tokio::test(flavor = "multi_thread")]
async fn either_protocol_of_a_client_is_joined_to_either_protocol_of_a_pod_as_by_envoy() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(allow_connect)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _pods = pods(&mesh).await?;
    let peer = mesh.peer("frontend-0")?;
    let (ours, theirs) = (peer.connect(mesh.hbone()).await?, peer.connect(envoy.hbone()).await?);
    let mut number = 0;
    for (authority, speaks, protocol) in [
        (WEB, Speaks::Http1, "websocket"),
        (WEB, Speaks::Http2, "websocket"),
        (RATINGS, Speaks::Http1, "websocket"),
        (RATINGS, Speaks::Http2, "WebSocket"),
        (WEB, Speaks::Http2, "custom"),
    ] {
        number += 1;
        let path = format!("/upgrade?{number}");
        let (status, version) = if matches!(speaks, Speaks::Http1) { (101, "HTTP/1.1") } else { (200, "HTTP/2") };
        for (connection, output, is_ours) in [(&ours, mesh.waypoint.output_lines(), true), (&theirs, envoy.output(), false)] {
            // Envoy takes a client that ends its side for one that is gone.
            let (got, heard) = ask(connection, authority, speaks, (&path, protocol, is_ours)).await.context(path.clone())?;
            assert_eq!((got.as_u16(), &heard[..]), (status, SAID), "{authority} {speaks:?} {protocol}");
            let line = line_of(output, &path).await?;
            // Envoy's says how its client went.
            let details = if is_ours { "via_upstream 7 7" } else { "" };
            assert!(line.starts_with(&format!("GET {path} {version} 101 {details}")) && line.ends_with(" 7 7"), "{line}");
        }
    }
    Ok(())
}

/// Asks for a protocol with a body (or none), and what is said on what was switched to; both are heard again.
async fn switch_raw(connection: &Connection, head: &str, body: &str) -> Result<()> {
    let mut tunnel = connection.tunnel(WEB).await?;
    tunnel.write_all(head.as_bytes()).await?;
    tunnel.write_all(body.as_bytes()).await?;
    tunnel.flush().await?;
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(tunnel.read_u8().await?);
    }
    anyhow::ensure!(heard.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&heard));
    talk(tunnel, SAID, false).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_an_upgrade_counts_on_the_wire_as_by_envoy() -> Result<()> {
    const COUNTED: &str = "%REQ(:PATH)% %BYTES_RECEIVED% %DOWNSTREAM_WIRE_BYTES_RECEIVED% \
        %BYTES_SENT%,%DOWNSTREAM_WIRE_BYTES_SENT%,%REQUEST_HEADERS_BYTES%,%RESPONSE_HEADERS_BYTES%\n";
    const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            allow_connect(scenario)?;
            let log = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"];
            log["log_format"]["text_format_source"]["inline_string"] = COUNTED.into();
            Ok(())
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _pods = pods(&mesh).await?;
    let peer = mesh.peer("frontend-0")?;
    let mut on_the_wire = 0;
    for (path, length, body) in [("/upgrade?1", "", ""), ("/upgrade?2", "content-length: 3\r\n", "abc")] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\n{length}connection: upgrade\r\nupgrade: websocket\r\n\r\n");
        let n_received = body.len() + SAID.len();
        let received = format!("{path} {n_received} {} ", head.len() + n_received);
        for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
            switch_raw(&peer.connect(proxy).await?, &head, body).await?;
            let line = line_of(output, path).await?;
            let rest = line.strip_prefix(&received).with_context(|| format!("{line:?} does not begin with {received:?}"))?;
            let numbers = rest.split(',').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>()?;
            let [sent, wire_sent, of_head, of_answer] = numbers[..] else { anyhow::bail!("{line}") };
            assert!(wire_sent > sent + ANSWER.len(), "{line}");
            if proxy == mesh.hbone() {
                // What a pod gets of a body before it switches is no payload to it, as it is to Envoy.
                assert_eq!((sent, wire_sent, of_head), (SAID.len(), of_answer + SAID.len(), head.len()), "{line}");
                on_the_wire += head.len() + n_received;
            }
        }
    }
    let is_it = |line: &str| line.starts_with("istio_request_bytes_sum{") && line.ends_with(&format!("}} {on_the_wire}"));
    mesh.waypoint.metric("sizes", is_it).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extended_connect_that_is_not_allowed_is_refused_as_by_envoy() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(allow_connect)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let [web, ratings] = pods(&mesh).await?;
    let peer = mesh.peer("frontend-0")?;
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        let connection = peer.connect(proxy).await?;
        for (authority, path, protocol) in
            [(WEB, "/off?1", "websocket"), (RATINGS, "/off?2", "websocket"), (WEB, "/elsewhere?3", "custom"), (WEB, "/upgrade?4", "other")]
        {
            for (speaks, version) in [(Speaks::Http1, "HTTP/1.1"), (Speaks::Http2, "HTTP/2")] {
                let path = format!("{path}{}", &version[5..6]);
                let (status, _) = ask(&connection, authority, speaks, (&path, protocol, false)).await?;
                assert_eq!(status, StatusCode::FORBIDDEN, "{authority} {path} {protocol}");
                let line = line_of(output, &path).await?;
                assert_eq!(line, format!("GET {path} {version} 403 upgrade_failed 0 0"));
            }
        }
    }
    assert_eq!((web.record().requests("GET /off"), ratings.record().requests("CONNECT /off")), (0, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_see_an_extended_connect_as_the_get_that_it_becomes() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        allow_connect(scenario)?;
        let permission = |path: &str| {
            let method = json!({"header": {"name": ":method", "string_match": {"exact": "GET"}}});
            json!({"and_rules": {"rules": [method, {"url_path": {"path": {"exact": path}}}]}})
        };
        let policy = json!({"permissions": [permission("/upgrade"), permission("/first")], "principals": [{"any": true}]});
        let rules = json!({"action": "ALLOW", "policies": {"ns[shop]-policy[get]-rule[0]": policy}});
        let config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": rules});
        for chain in [WEB_CHAIN, RATINGS_CHAIN] {
            scenario.add_http_filters(chain, vec![json!({"name": "envoy.filters.http.rbac", "typed_config": config})])?;
        }
        Ok(())
    };
    let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _pods = pods(&mesh).await?;
    let peer = mesh.peer("frontend-0")?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = peer.connect(proxy).await?;
        for authority in [WEB, RATINGS] {
            for (path, status) in [("/upgrade", 200), ("/upgrade/other", 403)] {
                let (got, _) = ask(&connection, authority, Speaks::Http2, (path, "websocket", false)).await?;
                assert_eq!(got.as_u16(), status, "{authority} {path}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_an_upgrade_that_the_pod_refuses_never_reaches_it() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(allow_connect)?.start().await?;
    let [web, ratings] = pods(&mesh).await?;
    let connection = mesh.connect("frontend-0").await?;
    for (authority, pod) in [(WEB, &web), (RATINGS, &ratings)] {
        let (status, _) = ask(&connection, authority, Speaks::Http2, ("/status/404", "websocket", false)).await?;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert_eq!(pod.record().requests("GET /smuggled"), 0);
    }
    Ok(())
}
