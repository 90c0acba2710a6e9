//! The conversation with istiod as it is seen from istiod's side, and what bad configuration or a missing istiod does to traffic.

use std::time::Duration;

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::json;
use tests::fake_istiod::Kind;
use tests::scenario::{EMPTY, Mesh, RECORDED, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(15);

async fn plain() -> Result<Mesh> {
    Mesh::builder("01-plain")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_waypoint_introduces_itself_as_the_rendered_pod() -> Result<()> {
    let mesh = plain().await?;
    let nodes = mesh.istiod.nodes();
    let address = mesh.net.waypoint();
    assert_eq!(nodes[0]["id"], format!("waypoint~{address}~waypoint-0.shop~shop.svc.cluster.local"));
    assert_eq!(nodes[0]["cluster"], "waypoint.shop");
    let metadata = &nodes[0]["metadata"];
    assert_eq!(
        (&metadata["NAMESPACE"], &metadata["SERVICE_ACCOUNT"], &metadata["CLUSTER_ID"]),
        (&"shop".into(), &"waypoint".into(), &"Kubernetes".into())
    );
    assert!(metadata["INSTANCE_IPS"].as_str().is_some_and(|ips| ips.split(',').next() == Some(&address.to_string())), "{metadata}");
    assert_eq!(metadata["LABELS"]["gateway.networking.k8s.io/gateway-name"], "waypoint");
    assert!(mesh.istiod.replies().iter().all(|reply| reply.refusal.is_none()), "{:?}", mesh.istiod.replies());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_scenario_is_served_or_refused_by_name() -> Result<()> {
    for scenario in RECORDED {
        let mesh = Mesh::builder(scenario)?.start_unready().await?;
        // No recording has secrets, or extensions.
        for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Secret | Kind::Extension)) {
            let reply = mesh.istiod.reply(kind, 1, DEADLINE).await?;
            let names_something = |text: &String| {
                text.contains("inbound-vip|") || text.contains("direct-") || text.contains("connect_") || text.contains("outbound|")
            };
            assert!(reply.refusal.as_ref().is_none_or(names_something), "{scenario}: {reply:?}");
        }
        until("readiness, or the names of what is refused", DEADLINE, async || {
            Ok(match mesh.waypoint.readiness().await {
                Ok(answer) if answer.status == StatusCode::OK || answer.text().contains("refused") => Look::Done(()),
                Ok(answer) => Look::NotYet(answer.text()),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
        .await
        .with_context(|| scenario)?;
        let tunnel = until("a tunnel", DEADLINE, async || {
            let attempt = async { mesh.connect("frontend-0").await?.connect(EMPTY).await };
            Ok(match attempt.await {
                Ok(Ok(_)) => Look::Done(()),
                Ok(Err(status)) => Look::NotYet(status.to_string()),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        });
        tunnel.await.with_context(|| scenario)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_cannot_be_read_is_refused_and_the_old_one_kept() -> Result<()> {
    let mesh = plain().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.get(WEB, "/before").await?.status, StatusCode::OK);
    let generation = mesh.istiod.set(Kind::Listener, [("main_internal".to_owned(), vec![0xff; 7])]);
    let refusal = mesh.istiod.reply(Kind::Listener, generation, DEADLINE).await?.refusal.unwrap_or_default();
    assert!(refusal.contains("main_internal"), "{refusal:?}");
    assert_eq!(connection.get(WEB, "/after").await?.status, StatusCode::OK);
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/new").await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_with_an_unknown_filter_is_refused_by_name_and_keeps_its_last_good_version() -> Result<()> {
    let mut mesh = plain().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let unknown = json!({
        "name": "envoy.filters.http.lua",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua", "default_source_code": {"inline_string": "x"}},
    });
    let replies = mesh.push(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![unknown])).await?;
    let refusal = replies[0].refusal.clone().unwrap_or_default();
    assert!(refusal.contains(WEB_CHAIN) && refusal.contains("lua"), "{refusal:?}");
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/still").await?.status, StatusCode::OK);
    let answer = mesh.waypoint.readiness().await?;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_waypoint_with_a_refused_chain_is_not_ready_and_answers_503_for_it_only() -> Result<()> {
    let unknown = json!({
        "name": "envoy.filters.http.lua",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua", "default_source_code": {"inline_string": "x"}},
    });
    let mesh = Mesh::builder("01-plain")?.edit(|scenario| scenario.add_http_filters(WEB_CHAIN, vec![unknown]))?.start_unready().await?;
    mesh.istiod.reply(Kind::Listener, 1, DEADLINE).await?;
    let _reviews = mesh.pod("reviews-v1-1", App::Http).await?;
    let _others = (mesh.pod("reviews-v2-2", App::Http).await?, mesh.pod("reviews-v3-3", App::Http).await?);
    let connection = until("a connection", DEADLINE, async || {
        Ok(mesh.connect("frontend-0").await.map_or_else(|error| Look::NotYet(format!("{error:#}")), Look::Done))
    })
    .await?;
    assert_eq!(connection.get(WEB, "/refused").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(connection.get(tests::scenario::REVIEWS, "/fine").await?.status, StatusCode::OK);
    let readiness = mesh.waypoint.readiness().await?;
    assert_eq!(readiness.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(readiness.text().contains(WEB_CHAIN), "{}", readiness.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_come_and_go_are_followed() -> Result<()> {
    let mut mesh = plain().await?;
    let _pods = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    let connection = mesh.connect("frontend-0").await?;
    assert_eq!(connection.get(WEB, "/").await?.json()["pod"], "web-v1-1");
    let (old, new) = (mesh.net.pod(1, 1).to_string(), mesh.net.pod(1, 2).to_string());
    mesh.push_accepted(|scenario| {
        let endpoints = scenario.resource(Kind::Endpoints, WEB_CHAIN)?;
        *endpoints = serde_json::from_str(&endpoints.to_string().replace(&old, &new))?;
        Ok(())
    })
    .await?;
    assert_eq!(connection.get(WEB, "/").await?.json()["pod"], "web-v1-2");
    mesh.push_accepted(|scenario| {
        scenario.resource(Kind::Endpoints, WEB_CHAIN)?["endpoints"] = json!([]);
        Ok(())
    })
    .await?;
    assert_eq!(connection.get(WEB, "/").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_goes_on_without_istiod_and_configuration_follows_when_it_is_back() -> Result<()> {
    let mut mesh = plain().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    mesh.istiod.stop().await;
    mesh.waypoint.log_line("istiod").await?;
    assert_eq!(connection.get(WEB, "/alone").await?.status, StatusCode::OK);
    assert_eq!(mesh.connect("batch-0").await?.get(WEB, "/alone").await?.status, StatusCode::OK);
    assert_eq!(mesh.waypoint.readiness().await?.status, StatusCode::OK);
    let n_streams = mesh.istiod.streams_opened();
    mesh.istiod.start().await?;
    until("the waypoint's return", Duration::from_secs(40), async || {
        let now = mesh.istiod.streams_opened();
        Ok(if now > n_streams { Look::Done(()) } else { Look::NotYet(format!("{now} streams")) })
    })
    .await?;
    mesh.push_accepted(|scenario| {
        scenario.resource(Kind::Endpoints, WEB_CHAIN)?["endpoints"] = json!([]);
        Ok(())
    })
    .await?;
    assert_eq!(connection.get(WEB, "/gone").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    Ok(())
}
