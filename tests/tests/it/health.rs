//! Endpoints that fail are left out, and requests spread over priorities, as a DestinationRule's outlier detection and locality
//! settings ask for.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::Connection;
use tests::scenario::{DB, DB_CHAIN, Mesh, REVIEWS, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(20);

/// Outlier detection as istiod writes it, edited; without panic.
fn set_outlier(scenario: &mut Scenario, cluster: &str, rules: &Value) -> Result<()> {
    let cluster = scenario.resource(Kind::Cluster, cluster)?;
    let mut detection = json!({
        "consecutive_5xx": 3, "enforcing_consecutive_5xx": 100, "enforcing_success_rate": 0,
        "interval": "0.3s", "base_ejection_time": "600s", "max_ejection_percent": 100,
    });
    for (name, value) in rules.as_object().context("rules are an object")? {
        detection[name] = value.clone();
    }
    cluster["outlier_detection"] = detection;
    cluster["common_lb_config"]["healthy_panic_threshold"] = json!({});
    Ok(())
}

/// No retries, so that an answer is the endpoint's own.
fn without_retries(scenario: &mut Scenario) -> Result<()> {
    scenario.add_routes(
        WEB_CHAIN,
        vec![json!({"name": "once", "match": {"prefix": "/", "case_sensitive": true}, "route": {"cluster": WEB_CHAIN, "timeout": "0s"}})],
    )
}

/// The endpoints of the service, all in localities of their own with these priorities and weights.
fn set_localities(scenario: &mut Scenario, cluster: &str, localities: &[(u32, Option<u32>)]) -> Result<()> {
    let assignment = scenario.resource(Kind::Endpoints, cluster)?;
    let all: Vec<Value> = assignment["endpoints"]
        .as_array()
        .context("no endpoints")?
        .iter()
        .flat_map(|one| one["lb_endpoints"].as_array())
        .flatten()
        .cloned()
        .collect();
    let localities = localities.iter().zip(all).enumerate().map(|(at, ((priority, weight), endpoint))| {
        let mut locality = json!({"locality": {"region": format!("r{at}")}, "priority": priority, "lb_endpoints": [endpoint]});
        if let Some(weight) = weight {
            locality["load_balancing_weight"] = (*weight).into();
        }
        locality
    });
    assignment["endpoints"] = localities.collect();
    Ok(())
}

/// Requests until `path` is answered only by `pod`; the endpoint that fails has been left out then.
async fn only_by(connection: &Connection, path: &str, pod: &str) -> Result<()> {
    until(&format!("only {pod} answers"), DEADLINE, async || {
        for _ in 0..12 {
            let answer = connection.get(WEB, path).await?;
            if answer.status != StatusCode::OK || answer.json()["pod"] != pod {
                return Ok(Look::NotYet(answer.text()));
            }
        }
        Ok(Look::Done(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_tunnels_fail_is_left_out_and_comes_back() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            set_outlier(scenario, WEB_CHAIN, &json!({"base_ejection_time": "1s"}))?;
            without_retries(scenario)
        })?
        .start()
        .await?;
    let (failing, serving) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    failing.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let connection = mesh.connect("frontend-0").await?;
    only_by(&connection, "/alone", "web-v1-2").await?;
    assert!(failing.record().connects().len() >= 3, "it was tried three times before");
    assert!(serving.record().requests("GET /alone") >= 12);
    failing.record().refuse_connects(None);
    until("the endpoint is back", DEADLINE, async || {
        let answer = connection.get(WEB, "/back").await?;
        Ok(if answer.json()["pod"] == "web-v1-1" { Look::Done(()) } else { Look::NotYet(answer.text()) })
    })
    .await
}

/// How many of so many requests for an error are answered by the endpoint itself before nobody is left.
async fn errors_until_nobody_is_left(mesh: &Mesh, proxy: SocketAddr) -> Result<usize> {
    let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
    let mut n_errors = 0;
    until("nobody is left", DEADLINE, async || {
        let answer = connection.get(WEB, "/status/500").await?;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            return Ok(Look::Done(()));
        }
        n_errors += 1;
        Ok(Look::NotYet(answer.text()))
    })
    .await?;
    Ok(n_errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_copies_is_left_out() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.keep_endpoints(REVIEWS_CHAIN, 1)?;
            set_outlier(scenario, REVIEWS_CHAIN, &json!({}))?;
            let share = json!({"default_value": {"numerator": 100}});
            let action = json!({"cluster": WEB_CHAIN, "request_mirror_policies": [{"cluster": REVIEWS_CHAIN, "runtime_fraction": share}]});
            scenario.add_routes(WEB_CHAIN, vec![json!({"name": "copied", "match": {"prefix": "/"}, "route": action})])
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let (_web, reviews) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("reviews-v1-1", App::Http).await?);
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        // In a row: an answer that is none of the server's errors would begin the count anew.
        let wanted = reviews.record().requests("GET /status/500") + 3;
        for _ in 0..3 {
            connection.get(WEB, "/status/500").await?;
        }
        until("the copies are there", DEADLINE, async || {
            let seen = reviews.record().requests("GET /status/500");
            Ok(if seen >= wanted { Look::Done(()) } else { Look::NotYet(seen.to_string()) })
        })
        .await?;
        until("nobody is left", DEADLINE, async || {
            let answer = connection.get(REVIEWS, "/status/500").await?;
            Ok(if answer.status == StatusCode::SERVICE_UNAVAILABLE { Look::Done(()) } else { Look::NotYet(answer.text()) })
        })
        .await?;
        assert!(reviews.record().requests("GET /status/500") < wanted + 3, "{proxy}: the copies counted");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_fail_count_as_envoy_counts_them() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            set_outlier(scenario, WEB_CHAIN, &json!({}))?;
            without_retries(scenario)
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        assert_eq!(errors_until_nobody_is_left(&mesh, proxy).await?, 3, "{proxy}");
    }
    let (_, line) = mesh.waypoint.access_line("the line of nobody", |line| line["response_code"] == 503).await?;
    assert_eq!(line["response_flags"], "UH");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_endpoints_are_left_out_than_may_be_as_in_envoy() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            // One of one would be a hundred percent.
            set_outlier(scenario, WEB_CHAIN, &json!({"max_ejection_percent": 99}))?;
            without_retries(scenario)
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    for proxy in [mesh.hbone(), envoy.hbone()] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        for _ in 0..20 {
            assert_eq!(connection.get(WEB, "/status/500").await?.status, StatusCode::INTERNAL_SERVER_ERROR, "{proxy}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_endpoint_that_cannot_be_reached_is_left_out() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(DB_CHAIN, 1)?;
            set_outlier(scenario, DB_CHAIN, &json!({"split_external_local_origin_errors": true, "consecutive_local_origin_failure": 2}))
        })?
        .start()
        .await?;
    let db = mesh.pod("db-v1-1", App::Tcp { greets: true }).await?;
    db.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let connection = mesh.connect("frontend-0").await?;
    until("it is left out", DEADLINE, async || {
        assert_eq!(connection.connect(DB).await?.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
        let is_out = mesh.waypoint.output().iter().any(|line| line.contains("\"UH\""));
        Ok(if is_out { Look::Done(()) } else { Look::NotYet("still tried".to_owned()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_on_to_the_next_priority_when_the_first_is_left_out() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            set_localities(scenario, WEB_CHAIN, &[(0, None), (1, None)])?;
            set_outlier(scenario, WEB_CHAIN, &json!({}))?;
            without_retries(scenario)
        })?
        .start()
        .await?;
    let (near, far) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    let connection = mesh.connect("frontend-0").await?;
    for _ in 0..10 {
        assert_eq!(connection.get(WEB, "/near").await?.json()["pod"], "web-v1-1");
    }
    assert_eq!(far.record().requests_total(), 0, "the best priority is whole");
    near.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    // Sessions that are open are used up first.
    near.kill().await;
    only_by(&connection, "/far", "web-v1-2").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_goes_on_to_another_priority() -> Result<()> {
    let route = json!({
        "name": "retried", "match": {"prefix": "/", "case_sensitive": true},
        "route": {"cluster": WEB_CHAIN, "timeout": "0s", "retry_policy": {
            "retry_on": "connect-failure", "num_retries": 1,
            "retry_priority": {"name": "envoy.retry_priorities.previous_priorities", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency": 1,
            }},
        }},
    });
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            set_localities(scenario, WEB_CHAIN, &[(0, None), (1, None)])?;
            scenario.add_routes(WEB_CHAIN, vec![route])
        })?
        .start()
        .await?;
    let (near, _far) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    near.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let connection = mesh.connect("frontend-0").await?;
    for number in 0..5 {
        assert_eq!(connection.get(WEB, &format!("/{number}")).await?.json()["pod"], "web-v1-2");
    }
    assert!(near.record().connects().len() >= 5, "each was tried there first");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn localities_get_the_shares_that_a_destination_rule_gives_them() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            set_localities(scenario, WEB_CHAIN, &[(0, Some(1)), (0, Some(4))])?;
            scenario.resource(Kind::Cluster, WEB_CHAIN)?["common_lb_config"]["locality_weighted_lb_config"] = json!({});
            Ok(())
        })?
        .start()
        .await?;
    let (one, four) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for _ in 0..500 {
        assert_eq!(http.get("/share").await?.status, StatusCode::OK);
    }
    let (n_one, n_four) = (one.record().requests("GET /share"), four.record().requests("GET /share"));
    assert_eq!(n_one + n_four, 500);
    // Of 500 draws with a fifth each, fewer than 50 or more than 150 happen less than once in 10^7 runs.
    assert!((50..=150).contains(&n_one), "{n_one} and {n_four}");
    Ok(())
}
