//! Requests and connections through the waypoint, by protocol and kind of endpoint.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tests::peer::{exchange_raw, full};
use tests::pki::spiffe;
use tests::scenario::{AUTO, DB, EMPTY, LEGACY, Mesh, PRIVILEGED_PORT_SHIFT, RATINGS, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

/// What a body that nobody reads may cost.
const GROWTH_BYTES_MAX: u64 = 32 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_from_hbone_to_hbone() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.server_identity, spiffe("shop", "waypoint"));
    let answer = connection.get(WEB, "/hello?a=1").await?;
    let told = answer.json();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!((told["pod"].as_str(), told["path"].as_str()), (Some("web-v1-1"), Some("/hello?a=1")));
    assert_eq!(told["authority"], "web.shop");
    let connects = web.record().connects();
    assert_eq!(connects.len(), 1);
    assert_eq!(connects[0].authority, format!("{}:8080", mesh.net.pod(1, 1)));
    assert_eq!(connects[0].identity, spiffe("shop", "waypoint"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_share_one_connection_to_the_pod() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?
        .proxy_config("concurrency", 1.into())
        .start()
        .await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut http = connection.http1(WEB).await?;
    for number in 0..20 {
        assert_eq!(http.get(&format!("/{number}")).await?.status, StatusCode::OK);
    }
    assert_eq!((web.record().connections(), web.record().requests_total()), (1, 20));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_loses_neither_trailers_nor_messages() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    let _ratings = (mesh.pod("ratings-v1-1", App::Http).await?, mesh.pod("ratings-v1-2", App::Http).await?);
    let connection = mesh.connect("frontend-0").await?;
    let mut http = connection.http2(RATINGS).await?;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-end", HeaderValue::from_static("of request"));
    let frames = [Frame::data(Bytes::from_static(b"\0\0\0\0\x03abc")), Frame::trailers(trailers)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, std::convert::Infallible>))).boxed();
    let request = http.request(Method::POST, "/ratings.Ratings/Get").header("content-type", "application/grpc").header("te", "trailers");
    let answer = http.send(request.body(body)?).await?;
    let told = answer.json();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!((told["n_body_bytes"].as_u64(), &told["version"]), (Some(8), &"HTTP/2.0".into()));
    assert_eq!(told["trailers"], serde_json::json!([["x-end", "of request"]]));
    assert_eq!(answer.trailers.get("grpc-status"), Some(&HeaderValue::from_static("0")));
    assert_eq!(answer.trailers.get("x-trailer"), Some(&HeaderValue::from_static("kept")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_joined_to_the_pods() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let tunnel = mesh.connect("frontend-0").await?.tunnel(WEB).await?;
    let head = "GET /upgrade HTTP/1.1\r\nhost: web.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut stream = tokio::io::BufReader::new(tunnel);
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut answer).await?, 0, "{answer}");
    }
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.to_lowercase().contains("upgrade: websocket"), "{answer}");
    let heard = exchange_raw(stream, b"\x81\x05hello", true).await?;
    assert_eq!(heard, b"\x81\x05hello");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_a_hundred_tunnels_at_once() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.get(WEB, "/delay/300").await })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await??.status, StatusCode::OK);
    }
    assert_eq!(web.record().requests("GET /delay/300"), 100);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_holds_up_nobody_and_little_memory() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.get(WEB, "/warm").await?.status, StatusCode::OK);
    let n_bytes_before = mesh.waypoint.resident_bytes()?;
    let mut unread = connection.tunnel(WEB).await?;
    unread.write_all(b"GET /bytes/1048576 HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    let mut first = [0; 1024];
    unread.read_exact(&mut first).await?;
    for number in 0..50 {
        assert_eq!(connection.get(WEB, &format!("/beside/{number}")).await?.status, StatusCode::OK);
    }
    let grown = mesh.waypoint.resident_bytes()?.saturating_sub(n_bytes_before);
    assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more for a GiB that nobody reads");
    assert_eq!(web.record().requests("GET /bytes/1048576"), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_keeps_half_closed_connections_open() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    let db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let connection = mesh.connect("frontend-0").await?;
    let heard = exchange_raw(connection.tunnel(DB).await?, b"select 1", true).await?;
    assert_eq!(String::from_utf8_lossy(&heard), "ready\necho:select 1");
    assert_eq!(db.record().connects()[0].authority, format!("{}:5432", mesh.net.pod(5, 1)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_port_without_a_protocol_carries_is_told_by_its_first_bytes() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    let auto = mesh.pod("auto-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let answer = connection.get(AUTO, "/sniffed").await?;
    assert_eq!((answer.status, auto.record().requests("GET /sniffed")), (StatusCode::OK, 1), "{}", answer.text());
    auto.kill().await;
    let _auto = mesh.pod("auto-v1-1", App::Tcp { greets: false }).await?;
    let heard = exchange_raw(connection.tunnel(AUTO).await?, b"\x16\x03\x01 no HTTP", true).await?;
    assert_eq!(heard, b"echo:\x16\x03\x01 no HTTP");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_where_no_protocol_is_declared() -> Result<()> {
    let mesh = Mesh::start("07-telemetry").await?;
    let auto = mesh.pod("auto-v1-1", App::Tcp { greets: true }).await?;
    let connection = mesh.connect("frontend-0").await?;
    // Nobody who waits for a greeting would wait for an inspector's 15 s.
    for _ in 0..2 {
        let mut stream = connection.tunnel(AUTO).await?;
        let mut greeting = [0; 6];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut greeting)).await??;
        assert_eq!(&greeting, b"ready\n");
        let heard = exchange_raw(stream, b"GET / HTTP/1.1\r\n\r\n", true).await?;
        assert_eq!(heard, b"echo:GET / HTTP/1.1\r\n\r\n", "the server has spoken, so that this is TCP");
    }
    assert_eq!(auto.record().connects().len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_its_time_is_told_by_its_own_first_bytes() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    let auto = mesh.pod("auto-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut stream = connection.tunnel(AUTO).await?;
    until("the endpoint to be dialled", Duration::from_secs(5), async || {
        Ok(if auto.record().connects().is_empty() { Look::NotYet(String::new()) } else { Look::Done(()) })
    })
    .await?;
    stream.write_all(b"GET /late HTTP/1.1\r\nhost: auto\r\nconnection: close\r\n\r\n").await?;
    let heard = exchange_raw(stream, b"", false).await?;
    assert!(heard.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&heard));
    assert_eq!(auto.record().requests("GET /late"), 1);
    let metrics = mesh.waypoint.metrics().await?;
    assert!(
        !metrics.contains("istio_tcp_connections_opened_total{"),
        "a connection that was dialled for nothing is not counted: {metrics}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outside_the_mesh_is_reached_in_plaintext() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    let legacy = mesh.plain_pod("legacy-v1-1", PRIVILEGED_PORT_SHIFT + 80, App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut http = connection.http1(LEGACY).await?;
    let request = http.request(Method::POST, "/old").body(full("12345"))?;
    let answer = http.send(request).await?;
    assert_eq!((answer.status, answer.json()["n_body_bytes"].as_u64()), (StatusCode::OK, Some(5)), "{}", answer.text());
    assert_eq!((legacy.record().requests("POST /old"), legacy.record().connects().len()), (1, 0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_endpoints_is_answered_503() -> Result<()> {
    let mesh = Mesh::start("07-telemetry").await?;
    let connection = mesh.connect("frontend-0").await?;
    let answer = connection.get(EMPTY, "/nobody").await?;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let (_, line) = mesh.waypoint.access_line("the line of /nobody", |line| line["path"] == "/nobody").await?;
    assert_eq!(
        (&line["response_code"], &line["response_flags"], &line["upstream_host"]),
        (&503.into(), &"UH".into(), &serde_json::Value::Null)
    );
    assert_eq!(line["upstream_cluster"], "inbound-vip|80|http|empty.shop.svc.cluster.local;");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn l14_a_connect_to_an_unknown_address_is_answered_404_and_logged_once() -> Result<()> {
    let mesh = Mesh::start("07-telemetry").await?;
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.connect("10.96.9.9:80").await?.err(), Some(StatusCode::NOT_FOUND));
    let (_, line) = mesh.waypoint.access_line("the line of the CONNECT", |line| line["method"] == "CONNECT").await?;
    assert_eq!((&line["response_code"], &line["response_flags"], &line["authority"]), (&404.into(), &"NR".into(), &"10.96.9.9:80".into()));
    // What comes later is logged later, so nothing else of the CONNECT is to come.
    connection.get(EMPTY, "/after").await?;
    mesh.waypoint.access_line("a later line", |line| line["path"] == "/after").await?;
    let n_lines = mesh.waypoint.output().iter().filter(|line| line.contains("10.96.9.9")).count();
    assert_eq!(n_lines, 1, "{:?}", mesh.waypoint.output());
    Ok(())
}
