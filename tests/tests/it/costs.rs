//! What serving costs, as the process itself tells it.
//!
//! Not for: how much that is, which benches measure.

use std::time::{Duration, Instant};

use anyhow::Result;
use http::{Method, StatusCode};
use tests::peer::full;
use tests::scenario::{Mesh, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(20);
/// How long the endpoint takes; nothing has to happen within it.
const ENDPOINT_TIME: Duration = Duration::from_millis(500);

/// The number of a line that begins so, once `is_it`.
async fn number(mesh: &Mesh, start: &str, is_it: impl Fn(f64) -> bool) -> Result<f64> {
    let value = |line: &str| line.strip_prefix(start)?.trim().parse::<f64>().ok();
    let line = mesh.waypoint.metric(start, |line| value(line).is_some_and(&is_it)).await?;
    Ok(value(&line).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requests_overhead_is_its_time_without_that_of_its_endpoint_and_bodies_are_counted_while_they_are_kept() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    // Istio's default retry policy keeps bodies that may be sent again.
    let request = http.request(Method::POST, "/held").body(full("order"))?;
    let start = Instant::now();
    let asked = tokio::spawn(async move { http.send(request).await });
    number(&mesh, "waypoint_memory_bytes{owner=\"replay\"}", |bytes| bytes == 5.0).await?;
    until("the request at the pod", DEADLINE, async || {
        Ok(if web.record().requests("POST /held") == 1 { Look::Done(()) } else { Look::NotYet("not there".to_owned()) })
    })
    .await?;
    // The endpoint has it from here on: what it takes is to be no part of the overhead.
    let held_from = Instant::now();
    tokio::time::sleep(ENDPOINT_TIME).await;
    let held = held_from.elapsed();
    web.record().let_go();
    assert_eq!(asked.await??.status, StatusCode::OK);
    let rest = start.elapsed().saturating_sub(held);
    number(&mesh, "waypoint_memory_bytes{owner=\"replay\"}", |bytes| bytes == 0.0).await?;
    number(&mesh, "waypoint_request_overhead_microseconds_count", |count| count == 1.0).await?;
    let overhead = number(&mesh, "waypoint_request_overhead_microseconds_sum", |_| true).await?;
    assert!(
        overhead > 0.0 && overhead <= rest.as_secs_f64() * 1e6,
        "{overhead} \u{b5}s beside {held:?} of the endpoint and {rest:?} of all others"
    );
    for (count, at_least) in [
        ("waypoint_tls_handshake_seconds_count{side=\"accepted\"}", 1.0),
        ("waypoint_tls_handshake_seconds_count{side=\"dialled\"}", 1.0),
        ("waypoint_connect_seconds_count", 1.0),
    ] {
        number(&mesh, count, |number| number >= at_least).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tries_again_are_counted_by_what_the_try_before_came_to() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    web.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/refused").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    // Two after the first.
    number(&mesh, "waypoint_retries_total{reason=\"connect_failure\"}", |count| count == 2.0).await?;
    number(&mesh, "waypoint_request_overhead_microseconds_count", |count| count == 0.0).await?;
    Ok(())
}
