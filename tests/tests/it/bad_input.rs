//! What must not come, and what is answered; a connection beside is never harmed.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use serde_json::json;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, Connection, Peer, empty, exchange_raw};
use tests::pki::{Pki, spiffe};
use tests::scenario::{Mesh, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A mesh with one pod of `web`, and a good connection whose fate is looked at in the end.
async fn with_a_good_connection() -> Result<(Mesh, Workload, Connection)> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let good = mesh.connect("frontend-0").await?;
    assert_eq!(good.get(WEB, "/before").await?.status, StatusCode::OK);
    Ok((mesh, web, good))
}

async fn is_unharmed(good: &Connection) -> Result<()> {
    assert_eq!(good.get(WEB, "/after").await?.status, StatusCode::OK);
    Ok(())
}

/// Whether a caller gets a tunnel; TLS 1.3 tells of a refused certificate only after its own handshake.
async fn gets_a_tunnel(mesh: &Mesh, peer: &Peer) -> bool {
    match peer.connect(mesh.hbone()).await {
        Ok(connection) => matches!(connection.connect(WEB).await, Ok(Ok(_))),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_tls_on_the_hbone_port_is_closed() -> Result<()> {
    let (mesh, _web, good) = with_a_good_connection().await?;
    let stream = TcpStream::connect(mesh.hbone()).await?;
    // A TLS alert or nothing, then the end; never HTTP.
    let heard = exchange_raw(stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", false).await.unwrap_or_default();
    assert!(heard.len() <= 7 && !heard.starts_with(b"HTTP"), "{heard:?}");
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http2_within_tls_is_closed() -> Result<()> {
    let (mesh, _web, good) = with_a_good_connection().await?;
    let stream = mesh.peer("batch-0")?.dial_tls(mesh.hbone()).await?;
    let heard = exchange_raw(stream, b"CONNECT 10.96.1.1:80 HTTP/1.1\r\nhost: 10.96.1.1:80\r\n\r\n", false).await.unwrap_or_default();
    // At most SETTINGS and GOAWAY.
    assert!(!heard.windows(5).any(|window| window == b"HTTP/"), "{heard:?}");
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_no_connect_is_answered_404() -> Result<()> {
    let (mesh, _web, good) = with_a_good_connection().await?;
    let connection = mesh.connect("batch-0").await?;
    let status = connection.request(Request::get("http://10.96.1.1/").body(())?).await?;
    assert_eq!(status, StatusCode::NOT_FOUND);
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_without_a_valid_certificate_of_the_mesh_get_no_tunnel() -> Result<()> {
    let (mesh, web, good) = with_a_good_connection().await?;
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let frontend = spiffe("clients", "frontend");
    let foreign_domain = mesh.pki.member("spiffe://other.domain/ns/clients/sa/frontend")?;
    let expired = mesh.pki.member_valid(&frontend, now - 2 * hour, now - hour)?;
    let not_yet = mesh.pki.member_valid(&frontend, now + hour, now + 2 * hour)?;
    let foreign_root = Pki::new()?.member(&frontend)?;
    let good_one = mesh.pki.member(&frontend)?;
    for (what, identity) in [
        ("none", None),
        ("of a foreign trust domain", Some(&foreign_domain)),
        ("expired", Some(&expired)),
        ("of the future", Some(&not_yet)),
        ("of a foreign root", Some(&foreign_root)),
    ] {
        assert!(!gets_a_tunnel(&mesh, &Peer::new(&mesh.pki, identity, None)?).await, "a certificate {what} was accepted");
    }
    assert!(gets_a_tunnel(&mesh, &Peer::new(&mesh.pki, Some(&good_one), None)?).await);
    assert_eq!(web.record().requests_total(), 1);
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_a_tunnel_is_answered_400_and_logged() -> Result<()> {
    let (mesh, web, good) = with_a_good_connection().await?;
    let heard = exchange_raw(good.tunnel(WEB).await?, b"\x01\x02 garbage\r\n\r\n", false).await?;
    assert!(heard.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&heard));
    let (_, line) = mesh.waypoint.access_line("the line of the garbage", |line| line["response_code"] == 400).await?;
    assert_eq!(
        (&line["response_flags"], &line["method"], &line["path"]),
        (&"DPE".into(), &serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!(web.record().requests_total(), 1);
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn conflicting_lengths_smuggle_nothing() -> Result<()> {
    let (_mesh, web, good) = with_a_good_connection().await?;
    for head in [
        "POST /refused HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "POST /refused HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ] {
        let heard = exchange_raw(good.tunnel(WEB).await?, head.as_bytes(), false).await?;
        assert!(heard.starts_with(b"HTTP/1.1 400 "), "{head:?}: {}", String::from_utf8_lossy(&heard));
    }
    // RFC 9112 §6.3 rule 3 lets a length beside chunked be taken away, if the connection ends with the answer.
    let both = "POST /both HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let heard = String::from_utf8_lossy(&exchange_raw(good.tunnel(WEB).await?, both.as_bytes(), false).await?).into_owned();
    assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "{heard}");
    assert!(!heard.contains("[\"content-length\""), "{heard}");
    assert_eq!((web.record().requests("POST /refused"), web.record().requests("GET /smuggled")), (0, 0));
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_and_its_end_harm_nobody() -> Result<()> {
    let (_mesh, web, good) = with_a_good_connection().await?;
    let mut tunnel = good.tunnel(WEB).await?;
    tunnel.write_all(b"POST /half HTTP/1.1\r\nhost: a\r\ncontent-le").await?;
    drop(tunnel);
    // There is no request to answer, so a reset is as good as an end or a 400.
    let heard = exchange_raw(good.tunnel(WEB).await?, b"GET /half HTTP/1.1\r\nhost: a", true).await.unwrap_or_default();
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&heard));
    is_unharmed(&good).await?;
    assert_eq!(web.record().requests("GET /half") + web.record().requests("POST /half"), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_the_limit_are_answered_431() -> Result<()> {
    let (_mesh, web, good) = with_a_good_connection().await?;
    let head = format!("GET /large HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n", "a".repeat(200 * 1024));
    let heard = exchange_raw(good.tunnel(WEB).await?, head.as_bytes(), false).await?;
    assert!(heard.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&heard));
    assert_eq!(web.record().requests("GET /large"), 0);
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_ends_within_a_body_is_seen_as_cut_off() -> Result<()> {
    let (_mesh, _web, good) = with_a_good_connection().await?;
    let mut http = good.http1(WEB).await?;
    let request = http.request(Method::GET, "/cut").body(empty())?;
    let response = http.start(request).await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(Answer::read(response).await.is_err(), "a body of 15 of 1000 bytes looked whole");
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_resets_before_its_answer_gives_503() -> Result<()> {
    let (mesh, web, good) = with_a_good_connection().await?;
    let answer = good.get(WEB, "/reset").await?;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
    let (_, line) = mesh.waypoint.access_line("the line of /reset", |line| line["path"] == "/reset").await?;
    assert_eq!(line["response_flags"], "UC", "{line}");
    assert_eq!(web.record().requests("GET /reset"), 1, "sent twice");
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_is_logged_and_frees_its_request() -> Result<()> {
    let (mesh, web, good) = with_a_good_connection().await?;
    let mut tunnel = good.tunnel(WEB).await?;
    tunnel.write_all(b"GET /delay/600000 HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    tests::wait::until("the request at the pod", Duration::from_secs(5), async || {
        let n_requests = web.record().requests("GET /delay/600000");
        Ok(if n_requests == 1 { tests::wait::Look::Done(()) } else { tests::wait::Look::NotYet(String::new()) })
    })
    .await?;
    drop(tunnel);
    let (_, line) = mesh.waypoint.access_line("the line of the abandoned request", |line| line["path"] == "/delay/600000").await?;
    assert_eq!((line["response_code"].as_u64().context("a code")?, line["response_flags"].as_str()), (0, Some("DC")), "{line}");
    is_unharmed(&good).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_endpoint_is_its_own_waypoint_ends_at_the_second_turn() -> Result<()> {
    let mut mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let waypoint = mesh.hbone();
    mesh.push(|scenario| {
        let endpoint = &mut scenario.resource(Kind::Endpoints, WEB_CHAIN)?["endpoints"][0]["lb_endpoints"][0];
        endpoint["metadata"]["filter_metadata"]["envoy.filters.listener.original_dst"] =
            json!({"local": WEB, "waypoint": waypoint.to_string()});
        Ok(())
    })
    .await?;
    let answer = mesh.connect("frontend-0").await?.get(WEB, "/round").await?;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let (_, line) = mesh.waypoint.access_line("the line of the second turn", |line| line["response_code"] == 508).await?;
    assert_eq!((&line["authority"], &line["response_flags"]), (&WEB.into(), &"-".into()));
    let (_, line) = mesh.waypoint.access_line("the line of the request", |line| line["path"] == "/round").await?;
    assert_eq!((&line["response_code"], &line["response_flags"]), (&503.into(), &"URX,UF".into()));
    // Others may carry the mark: it means nothing without the gateway's own identity.
    let mark = HeaderMap::from_iter([(HeaderName::from_static("x-waypoint-via"), HeaderValue::from_static("waypoint"))]);
    assert!(mesh.connect("frontend-0").await?.connect_with(WEB, mark).await?.is_ok());
    Ok(())
}
