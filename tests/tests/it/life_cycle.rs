//! From start to end of the process: certificates, readiness, drain, settings, memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::{Method, StatusCode};
use tests::fake_istiod::Kind;
use tests::peer::{Answer, empty};
use tests::process::exit_code;
use tests::scenario::{Mesh, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(20);
/// What an idle waypoint may hold; without optimization its code alone is several times larger.
const IDLE_BYTES_MAX: u64 = if cfg!(debug_assertions) { 64 * 1024 * 1024 } else { 20 * 1024 * 1024 };

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ca_it_is_not_ready_says_why_and_keeps_trying() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?.without_istiod().start_unready().await?;
    let address = mesh.istiod.address().to_string();
    until("a reason on the readiness page", DEADLINE, async || {
        Ok(match mesh.waypoint.readiness().await {
            Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.text().contains(&address) => Look::Done(()),
            Ok(answer) => Look::NotYet(format!("{} {}", answer.status, answer.text())),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })
    .await?;
    mesh.waypoint.log_line(&address).await?;
    mesh.istiod.start().await?;
    mesh.waypoint.ready().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let _other = mesh.pod("web-v1-2", App::Http).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/").await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_without_dropping_a_request() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?
        .certificate_lifetime(Duration::from_secs(4))
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut http = connection.http1(WEB).await?;
    let request = http.request(Method::GET, "/stream/60").body(empty())?;
    let response = http.start(request).await?;
    let long = tokio::spawn(async move { Answer::read(response).await });
    until("a third certificate", DEADLINE, async || {
        let n_signed = mesh.istiod.certificates_signed();
        Ok(if n_signed >= 3 { Look::Done(()) } else { Look::NotYet(format!("{n_signed} signed")) })
    })
    .await?;
    let answer = long.await??;
    assert_eq!(answer.text().lines().count(), 60);
    assert_eq!(connection.get(WEB, "/old-connection").await?.status, StatusCode::OK);
    // Both sides of a new connection need a certificate of now.
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/new-connection").await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_requests_finish_and_ends_in_time() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?
        .edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?
        .proxy_config("terminationDrainDuration", "10s".into())
        .start()
        .await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut http = connection.http1(WEB).await?;
    let request = http.request(Method::GET, "/delay/2000").body(empty())?;
    let answer = tokio::spawn(async move { http.send(request).await });
    until("the request at the pod", DEADLINE, async || {
        Ok(if web.record().requests("GET /delay/2000") == 1 { Look::Done(()) } else { Look::NotYet("not there".to_owned()) })
    })
    .await?;
    let start = Instant::now();
    mesh.waypoint.terminate()?;
    until("GOAWAY", Duration::from_secs(2), async || {
        Ok(if connection.takes_streams().await { Look::NotYet("streams are taken".to_owned()) } else { Look::Done(()) })
    })
    .await?;
    assert!(!answer.is_finished(), "GOAWAY came after the request's end");
    assert_eq!(answer.await??.status, StatusCode::OK);
    let status = mesh.waypoint.exited(Duration::from_secs(12)).await?;
    assert_eq!(exit_code(status), Some(0));
    assert!(start.elapsed() < Duration::from_secs(12));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_at_its_deadline_whatever_is_open() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?
        .edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?
        .proxy_config("terminationDrainDuration", "1s".into())
        .start()
        .await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let request = http.request(Method::GET, "/delay/600000").body(empty())?;
    let answer = tokio::spawn(async move { http.send(request).await });
    until("the request at the pod", DEADLINE, async || {
        Ok(if web.record().requests("GET /delay/600000") == 1 { Look::Done(()) } else { Look::NotYet("not there".to_owned()) })
    })
    .await?;
    mesh.waypoint.terminate()?;
    assert_eq!(exit_code(mesh.waypoint.exited(Duration::from_secs(5)).await?), Some(0));
    assert!(answer.await?.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_settings_are_all_named_at_once() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?
        .environment("POD_NAME", None)
        .environment("SERVICE_ACCOUNT", None)
        .environment("INSTANCE_IP", Some("nowhere"))
        .environment("PROXY_CONFIG", Some("{\"discoveryAddress\":"))
        .start_unready()
        .await?;
    let status = mesh.waypoint.exited(DEADLINE).await?;
    assert_eq!(exit_code(status), Some(1));
    // The lines are collected by another thread.
    mesh.waypoint.log_line("PROXY_CONFIG").await?;
    for named in ["POD_NAME", "SERVICE_ACCOUNT", "INSTANCE_IP", "nowhere"] {
        mesh.waypoint.log_line(named).await.with_context(|| format!("{named} is not named"))?;
    }
    assert!(!mesh.waypoint.log().iter().any(|line| line.contains("panicked")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_waypoint_is_small() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    let n_bytes = mesh.waypoint.resident_bytes()?;
    assert!(n_bytes < IDLE_BYTES_MAX, "{n_bytes} bytes");
    Ok(())
}

/// Waits until a series has a value that is right.
async fn series(mesh: &Mesh, name: &str, is_right: impl Fn(f64) -> bool) -> Result<()> {
    let value = |line: &str| line.strip_prefix(name)?.trim_start_matches("{}").strip_prefix(' ')?.parse::<f64>().ok();
    mesh.waypoint.metric(name, |line| value(line).is_some_and(&is_right)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_of_an_envoy_find_the_stream_to_istiod_what_came_of_it_and_the_certificate() -> Result<()> {
    const LIFETIME: Duration = Duration::from_secs(2 * 86_400 + 3600);
    const STREAMS: &str = "envoy_cluster_upstream_cx_active{cluster_name=\"xds-grpc\"}";
    const EXPIRY: &str = "istio_agent_cert_expiry_seconds{resource_name=\"default\"}";
    let mut mesh = Mesh::builder("01-plain")?.certificate_lifetime(LIFETIME).start().await?;
    series(&mesh, STREAMS, |count| count == 1.0).await?;
    series(&mesh, EXPIRY, |left| left > 2.0 * 86_400.0 && left <= LIFETIME.as_secs_f64()).await?;
    series(&mesh, "envoy_server_days_until_first_cert_expiring", |days| days == 2.0).await?;
    let n_clusters = mesh.scenario().resources(Kind::Cluster).count();
    // Those of plumbing are no clusters here.
    series(&mesh, "envoy_cluster_manager_active_clusters", |count| {
        count >= 1.0 && count <= f64::from(u32::try_from(n_clusters).unwrap_or(0))
    })
    .await?;
    for kind in ["cluster_manager_cds", "listener_manager_lds"] {
        series(&mesh, &format!("envoy_{kind}_update_success"), |count| count >= 1.0).await?;
        series(&mesh, &format!("envoy_{kind}_update_rejected"), |count| count == 0.0).await?;
    }
    series(&mesh, "envoy_server_total_connections", |count| count == 0.0).await?;
    let connection = mesh.connect("frontend-0").await?;
    series(&mesh, "envoy_server_total_connections", |count| count == 1.0).await?;
    drop(connection);
    series(&mesh, "envoy_server_total_connections", |count| count == 0.0).await?;
    let replies = mesh
        .push(|scenario| {
            scenario.resource(Kind::Cluster, WEB_CHAIN)?["lb_policy"] = "CLUSTER_PROVIDED".into();
            Ok(())
        })
        .await?;
    anyhow::ensure!(replies.iter().any(|reply| reply.refusal.is_some()), "taken: {replies:?}");
    series(&mesh, "envoy_cluster_manager_cds_update_rejected", |count| count == 1.0).await?;
    mesh.istiod.stop().await;
    series(&mesh, STREAMS, |count| count == 0.0).await
}
