//! Copies of requests.

use bytes::Bytes;
use tests::peer::full;
use tests::wait::Look;

use super::*;

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
