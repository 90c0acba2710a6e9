//! Spans, on the wire. Each test's name begins with its row in `docs/contracts.md`.
//!
//! Not for: ids, sampling and attributes alone, which are tested where they are made.

use std::time::Duration;

use anyhow::Result;
use http::StatusCode;
use tests::scenario::{Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::App;

const SPAN_DEADLINE: Duration = Duration::from_secs(15);

fn is_for(span: &tests::otlp::Span, path: &str) -> bool {
    span.attributes.get("http.url").is_some_and(|url| url.ends_with(path))
}

/// The route's decorator names the span, and the answer tells it.
async fn is_named(name: &str) -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["routes"][0]["decorator"]["operation"] = name.into();
        Ok(())
    };
    let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let answer = mesh.connect("frontend-0").await?.get(WEB, "/named").await?;
    assert_eq!((answer.status, answer.header("x-envoy-decorator-operation")), (StatusCode::OK, name));
    let span = mesh.spans.wait_for("its span", SPAN_DEADLINE, |span| is_for(span, "/named")).await?;
    assert_eq!(span.name, name);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn t16_a_span_of_the_plain_route_is_named_by_host_and_port() -> Result<()> {
    is_named("web.shop.svc.cluster.local:80/*").await
}

#[tokio::test(flavor = "multi_thread")]
async fn t17_a_span_of_a_route_with_a_prefix_has_its_name() -> Result<()> {
    is_named("web.shop.svc.cluster.local:80/api*").await
}

#[tokio::test(flavor = "multi_thread")]
async fn t18_a_span_of_a_route_to_several_has_its_name() -> Result<()> {
    is_named("split-web:80/*").await
}

#[tokio::test(flavor = "multi_thread")]
async fn t24_a_request_that_is_tried_three_times_has_one_span() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    web.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let connection = mesh.connect("frontend-0").await?;
    connection.get(WEB, "/tried").await?;
    assert_eq!(web.record().connects().len(), 3);
    web.record().refuse_connects(None);
    connection.get(WEB, "/after").await?;
    mesh.spans.wait_for("a later span", SPAN_DEADLINE, |span| is_for(span, "/after")).await?;
    assert_eq!(mesh.spans.spans().iter().filter(|span| is_for(span, "/tried")).count(), 1);
    Ok(())
}
