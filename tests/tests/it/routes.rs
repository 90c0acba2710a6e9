//! Inline routes as istiod writes them.

use anyhow::Result;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::peer::empty;
use tests::scenario::{Mesh, REVIEWS_CHAIN, WEB, WEB_CHAIN};
use tests::workload::App;

fn header_route() -> Value {
    json!({
        "name": "beta", "match": {"prefix": "/", "case_sensitive": true, "headers": [{"name": "x-group", "string_match": {"exact": "beta"}}]},
        "route": {"cluster": REVIEWS_CHAIN, "timeout": "0s"},
        "request_headers_to_add": [{"header": {"key": "x-routed", "value": "beta"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        "response_headers_to_remove": ["x-pod"],
    })
}

fn weighted_route() -> Value {
    json!({
        "name": "split", "match": {"path_separated_prefix": "/split", "case_sensitive": true},
        "route": {"weighted_clusters": {"clusters": [{"name": WEB_CHAIN, "weight": 70}, {"name": REVIEWS_CHAIN, "weight": 30}]}, "timeout": "0s"},
    })
}

fn timeout_route() -> Value {
    json!({
        "name": "slow", "match": {"prefix": "/delay", "case_sensitive": true},
        "route": {"cluster": WEB_CHAIN, "timeout": "0.200s", "max_grpc_timeout": "0.200s"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_follow_headers_weights_and_timeouts() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.keep_endpoints(REVIEWS_CHAIN, 1)?;
            scenario.add_routes(WEB_CHAIN, vec![header_route(), weighted_route(), timeout_route()])
        })?
        .start()
        .await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let reviews = mesh.pod("reviews-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let mut http = connection.http1(WEB).await?;

    let request = http.request(Method::GET, "/page").header("x-group", "beta").body(empty())?;
    let answer = http.send(request).await?;
    assert_eq!((answer.json()["pod"].as_str(), answer.header("x-pod")), (Some("reviews-v1-1"), ""));
    assert!(answer.text().contains("[\"x-routed\",\"beta\"]"), "{}", answer.text());
    assert_eq!(http.get("/page").await?.json()["pod"], "web-v1-1");

    for ten in 1..=3 {
        for _ in 0..10 {
            assert_eq!(http.get("/split").await?.status, StatusCode::OK);
        }
        let seen = (web.record().requests("GET /split"), reviews.record().requests("GET /split"));
        assert_eq!(seen, (7 * ten, 3 * ten), "weights hold over small counts");
    }

    let answer = connection.get(WEB, "/delay/30000").await?;
    assert_eq!((answer.status, answer.text().as_str()), (StatusCode::GATEWAY_TIMEOUT, "upstream request timeout"));
    let (_, line) = mesh.waypoint.access_line("the line of the timeout", |line| line["path"] == "/delay/30000").await?;
    assert_eq!((&line["response_code"], &line["response_flags"]), (&504.into(), &"UT".into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_is_pushed_takes_effect() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            scenario.keep_endpoints(REVIEWS_CHAIN, 1)
        })?
        .start()
        .await?;
    let _pods = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("reviews-v1-1", App::Http).await?);
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let beta = |http: &tests::peer::Http| http.request(Method::GET, "/").header("x-group", "beta").body(empty());
    let request = beta(&http)?;
    assert_eq!(http.send(request).await?.json()["pod"], "web-v1-1");
    mesh.push_accepted(|scenario| scenario.add_routes(WEB_CHAIN, vec![header_route()])).await?;
    // A connection that is open keeps its chain; the next one has the new.
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let request = beta(&http)?;
    assert_eq!(http.send(request).await?.json()["pod"], "reviews-v1-1");
    Ok(())
}
