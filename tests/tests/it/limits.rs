//! Circuit breakers and the use of connections, as a DestinationRule's connection pool sets them.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, exchange_raw};
use tests::scenario::{DB, DB_CHAIN, Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::App;
use tokio::io::AsyncReadExt;

const OVERFLOW: &str = "upstream connect error or disconnect/reset before headers. reset reason: overflow";

/// Thresholds of a cluster; what is not named is without limit, as istiod writes it.
fn set_limits(scenario: &mut Scenario, cluster: &str, limits: &Value) -> Result<()> {
    let thresholds = &mut scenario.resource(Kind::Cluster, cluster)?["circuit_breakers"]["thresholds"][0];
    for (name, value) in limits.as_object().context("limits are an object")? {
        thresholds[name] = value.clone();
    }
    Ok(())
}

/// A mesh with one pod for the service and one worker.
async fn mesh(cluster: &str, limits: &Value) -> Result<Mesh> {
    let builder = Mesh::builder("07-telemetry")?.edit(|scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        set_limits(scenario, cluster, limits)
    })?;
    builder.proxy_config("concurrency", 1.into()).start().await
}

/// Ten requests at once, each on a connection of its own, after one alone.
async fn ten_at_once(mesh: &Mesh, proxy: SocketAddr) -> Result<(Vec<Answer>, Vec<Answer>)> {
    let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
    assert_eq!(connection.get(WEB, "/warm").await?.status, StatusCode::OK);
    let requests: Vec<_> = (0..10)
        .map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { connection.get(WEB, "/delay/1500").await })
        })
        .collect();
    let mut answers = Vec::new();
    for request in requests {
        answers.push(request.await??);
    }
    Ok(answers.into_iter().partition(|answer| answer.status == StatusCode::OK))
}

fn assert_overflow(answer: &Answer) {
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::SERVICE_UNAVAILABLE, OVERFLOW));
    assert_eq!(answer.header("x-envoy-overloaded"), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_connections_wait_and_beyond_the_waiting_are_refused_as_envoy_does() -> Result<()> {
    let mesh = mesh(WEB_CHAIN, &json!({"max_connections": 1, "max_pending_requests": 1})).await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let n_tunnels_before = web.record().connects().len();
        let (served, refused) = ten_at_once(&mesh, proxy).await?;
        assert_eq!((served.len(), refused.len()), (2, 8), "{proxy}: one on the connection, one waits");
        refused.iter().for_each(assert_overflow);
        assert_eq!(web.record().connects().len() - n_tunnels_before, 1, "{proxy}: one connection");
    }
    let (_, line) = mesh.waypoint.access_line("a refused one", |line| line["response_code"] == 503).await?;
    assert_eq!(line["response_flags"], "UO");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_are_in_flight_than_may_be_whatever_the_worker() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            set_limits(scenario, WEB_CHAIN, &json!({"max_requests": 3}))
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let (served, refused) = ten_at_once(&mesh, mesh.hbone()).await?;
    assert_eq!((served.len(), refused.len()), (3, 7));
    refused.iter().for_each(assert_overflow);
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/after").await?.status, StatusCode::OK, "what has ended makes room");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_finds_its_breaker_open_is_not_made_and_the_answer_passes() -> Result<()> {
    let route = json!({
        "name": "retried", "match": {"prefix": "/status", "case_sensitive": true},
        "route": {"cluster": WEB_CHAIN, "timeout": "0s", "retry_policy": {"retry_on": "5xx", "num_retries": 2}},
    });
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.add_routes(WEB_CHAIN, vec![route])?;
            set_limits(scenario, WEB_CHAIN, &json!({"max_retries": 0}))
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    for (n_before, proxy) in [(0, mesh.hbone()), (1, envoy.hbone())] {
        let answer = mesh.peer("frontend-0")?.connect(proxy).await?.get(WEB, "/status/500").await?;
        assert_eq!((answer.status.as_u16(), answer.header("x-envoy-overloaded")), (500, ""), "{proxy}");
        assert_eq!(web.record().requests("GET /status/500"), n_before + 1, "{proxy}: one try");
    }
    let (_, line) = mesh.waypoint.access_line("the line", |line| line["path"] == "/status/500").await?;
    assert_eq!((&line["response_code"], &line["response_flags"]), (&500.into(), &"UO".into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_connection_beyond_the_limit_is_refused() -> Result<()> {
    let mesh = mesh(DB_CHAIN, &json!({"max_connections": 1})).await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut first = connection.tunnel(DB).await?;
    let mut greeting = [0; 6];
    first.read_exact(&mut greeting).await?;
    assert_eq!(connection.connect(DB).await?.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
    let (_, line) = mesh.waypoint.access_line("the refused one", |line| line["response_flags"] == "UO").await?;
    assert_eq!(line["upstream_cluster"], "inbound-vip|5432|tcp|db.shop.svc.cluster.local;");
    assert_eq!(exchange_raw(first, b"select 1", true).await?, b"echo:select 1");
    mesh.waypoint.access_line("the one that ended", |line| line["bytes_sent"] == 19).await?;
    assert_eq!(exchange_raw(connection.tunnel(DB).await?, b"", true).await?, b"ready\necho:", "what has ended makes room");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_no_more_requests_than_it_may() -> Result<()> {
    let options = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"max_requests_per_connection": 2},
        "explicit_http_config": {"http_protocol_options": {}},
    });
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            let cluster = scenario.resource(Kind::Cluster, WEB_CHAIN)?;
            cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options});
            Ok(())
        })?
        .proxy_config("concurrency", 1.into())
        .start()
        .await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for number in 0..6 {
        assert_eq!(http.get(&format!("/{number}")).await?.status, StatusCode::OK);
    }
    assert_eq!(web.record().connects().len(), 3, "two requests each");
    Ok(())
}
