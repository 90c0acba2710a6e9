//! Copies of requests.

use bytes::Bytes;
use tests::peer::full;
use tests::scenario::RATINGS_CHAIN;
use tests::wait::Look;

use super::*;

/// Copies that one worker has under way: `MIRRORS_MAX` of [limits](../../../../docs/limits.md).
const MIRRORS_MAX: u64 = 1024;

fn mirror(cluster: &str, percent: u32) -> Value {
    json!({
        "cluster": cluster, "runtime_fraction": {"default_value": {"numerator": percent}}, "trace_sampled": false,
        "disable_shadow_host_suffix_append": true,
    })
}

fn routes() -> Vec<Value> {
    let route =
        |name: &str, mirrors: Vec<Value>| forward(name, json!({"prefix": format!("/{name}")}), json!({"request_mirror_policies": mirrors}));
    vec![
        route("all", vec![mirror(REVIEWS_CHAIN, 100), mirror("no-such-cluster", 100)]),
        route("none", vec![mirror(REVIEWS_CHAIN, 0)]),
        route("inherits", vec![]),
    ]
}

async fn mirrored(pod: &Workload, what: &str, count: u64) -> Result<()> {
    until(&format!("{count} copies of {what}"), DEADLINE, async || {
        let seen = pod.record().requests(what);
        Ok(if seen >= count { Look::Done(()) } else { Look::NotYet(seen.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_reach_their_cluster_and_leave_no_trace_in_the_request() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            with_routes(scenario, routes())?;
            scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["request_mirror_policies"] = json!([mirror(REVIEWS_CHAIN, 100)]);
            Ok(())
        })?
        .start()
        .await?;
    let (web, reviews) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("reviews-v1-1", App::Http).await?);
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for path in ["/all/post", "/none/post", "/inherits/post"] {
        let request = http.request(Method::POST, path).body(full(Bytes::from(vec![7; 100_000])))?;
        let answer = http.send(request).await?;
        assert_eq!(
            (answer.status, answer.json()["pod"].as_str(), answer.json()["n_body_bytes"].as_u64()),
            (StatusCode::OK, Some("web-v1-1"), Some(100_000))
        );
    }
    mirrored(&reviews, "POST /all/post", 1).await?;
    mirrored(&reviews, "POST /inherits/post", 1).await?;
    assert_eq!((reviews.record().requests("POST /none/post"), web.record().requests_total()), (0, 3));
    // Without anyone to get them, copies hold up nobody.
    let before = std::time::Instant::now();
    reviews.kill().await;
    for number in 0..5 {
        assert_eq!(http.get(&format!("/all/gone/{number}")).await?.status, StatusCode::OK);
    }
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    mesh.waypoint.access_line("the line of the last request", |line| line["path"] == "/all/gone/4").await?;
    let lines = mesh.waypoint.output();
    assert_eq!(lines.iter().filter(|line| line.contains("\"path\":\"/all/post\"")).count(), 1, "{lines:?}");
    Ok(())
}

/// What the copy of a request was, without what is drawn for each and what Envoy adds (the difference `mirrored-head`).
async fn copy(pod: &Workload, what: &str) -> Result<Value> {
    let mut told = until(&format!("a copy of {what}"), DEADLINE, async || {
        Ok(pod.record().remembered(what).map_or_else(|| Look::NotYet("none".to_owned()), Look::Done))
    })
    .await?;
    let drawn = ["x-request-id", "traceparent", "x-envoy-internal", "x-forwarded-for"];
    let headers = told["headers"].as_array_mut().context("no headers")?;
    headers.retain(|pair| !drawn.contains(&pair[0].as_str().unwrap_or_default()));
    headers.sort_by_key(|pair| pair[0].to_string());
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_say_what_they_say_in_envoy_and_as_often() -> Result<()> {
    let fraction = |cluster: &str, numerator: u32| {
        let mut mirror = mirror(cluster, 0);
        mirror["runtime_fraction"]["default_value"] = json!({"numerator": numerator, "denominator": "TEN_THOUSAND"});
        mirror
    };
    let suffixed = json!({"cluster": REVIEWS_CHAIN});
    let mut named = mirror(REVIEWS_CHAIN, 100);
    named["host_rewrite_literal"] = "copy.example".into();
    let route = |name: &str, mirrors: Vec<Value>| {
        let mut route = forward(name, json!({"path_separated_prefix": format!("/{name}")}), json!({"request_mirror_policies": mirrors}));
        route["request_headers_to_add"] = json!([{"header": {"key": "x-route", "value": name}}]);
        route["route"]["prefix_rewrite"] = format!("/rewritten/{name}").into();
        route
    };
    let both = Both::edited(|scenario| {
        let routes = vec![
            route("two", vec![mirror(REVIEWS_CHAIN, 100), mirror(RATINGS_CHAIN, 100)]),
            route("suffixed", vec![suffixed]),
            route("named", vec![named]),
            route("shares", vec![fraction(REVIEWS_CHAIN, 5000), fraction(RATINGS_CHAIN, 0)]),
        ];
        scenario.keep_endpoints(RATINGS_CHAIN, 1)?;
        with_routes(scenario, routes)
    })
    .await?;
    let (reviews, ratings) = (both.mesh.pod("reviews-v1-1", App::Http).await?, both.mesh.pod("ratings-v1-1", App::Http).await?);
    let mut seen = Vec::new();
    for at in [both.mesh.hbone(), both.envoy.hbone()] {
        let connection = both.mesh.peer("frontend-0")?.connect(at).await?;
        let mut copies = Vec::new();
        for is_http2 in [false, true] {
            let mut http = if is_http2 { connection.http2(WEB).await? } else { connection.http1(WEB).await? };
            for (name, pods) in [("two", &[&reviews, &ratings][..]), ("suffixed", &[&reviews]), ("named", &[&reviews])] {
                let path = format!("/{name}/{}-{is_http2}", at.ip());
                let request = http.request(Method::POST, &path).header("x-remember", "1").body(full("copied"))?;
                assert_eq!(http.send(request).await?.status, StatusCode::OK);
                for pod in pods {
                    let copy = copy(pod, &format!("POST /rewritten{path}")).await?;
                    // The path is the only difference that there may be.
                    copies.push(copy.to_string().replace(&at.ip().to_string(), "proxy"));
                }
            }
        }
        seen.push(copies);
        let mut http = connection.http1(WEB).await?;
        for _ in 0..200 {
            assert_eq!(http.get(&format!("/shares/{}", at.ip())).await?.status, StatusCode::OK);
        }
        // Five deviations and more from a hundred.
        mirrored(&reviews, &format!("GET /rewritten/shares/{}", at.ip()), 60).await?;
    }
    assert_eq!(seen[0], seen[1], "here, and in Envoy");
    for at in [both.mesh.hbone(), both.envoy.hbone()] {
        let path = format!("GET /rewritten/shares/{}", at.ip());
        assert!(reviews.record().requests(&path) <= 140, "{path}: {}", reviews.record().requests(&path));
        assert_eq!(ratings.record().requests(&path), 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_beyond_what_a_worker_may_have_under_way_are_left_out_and_counted() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| with_routes(scenario, routes()))?
        .proxy_config("concurrency", 1.into())
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    // It takes tunnels and never answers.
    let silent = mesh.pod("reviews-v1-1", App::Tcp { greets: false }).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for number in 0..MIRRORS_MAX + 3 {
        assert_eq!(http.get(&format!("/all/{number}")).await?.status, StatusCode::OK);
    }
    let dropped = "waypoint_mirrors_dropped_total{reason=\"too_many\"} 3";
    mesh.waypoint.metric("three copies left out", |line| line == dropped).await?;
    silent.kill().await;
    let reviews = mesh.pod("reviews-v1-1", App::Http).await?;
    until("a copy again", DEADLINE, async || {
        assert_eq!(http.get("/all/again").await?.status, StatusCode::OK);
        let seen = reviews.record().requests("GET /all/again");
        Ok(if seen > 0 { Look::Done(()) } else { Look::NotYet("none".to_owned()) })
    })
    .await
}
