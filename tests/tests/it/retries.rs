//! The retry policy that istiod gives every route, and that nothing is sent twice.

use anyhow::Result;
use http::{Method, StatusCode};
use tests::envoy::Envoy;
use tests::peer::full;
use tests::scenario::{LEGACY, Mesh, PRIVILEGED_PORT_SHIFT, WEB, WEB_CHAIN};
use tests::workload::App;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_refuses_the_tunnel_is_replaced_by_another_and_nothing_is_sent_twice() -> Result<()> {
    let mesh = Mesh::start("07-telemetry").await?;
    let refusing = mesh.pod("web-v1-1", App::Http).await?;
    let serving = mesh.pod("web-v1-2", App::Http).await?;
    refusing.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for number in 0..20 {
        let request = http.request(Method::POST, &format!("/once/{number}")).body(full("order"))?;
        let answer = http.send(request).await?;
        assert_eq!((answer.status, answer.json()["pod"].as_str()), (StatusCode::OK, Some("web-v1-2")), "{}", answer.text());
        assert_eq!(serving.record().requests(&format!("POST /once/{number}")), 1);
    }
    assert!(!refusing.record().connects().is_empty(), "the refusing pod was never tried");
    assert_eq!((refusing.record().requests_total(), serving.record().requests_total()), (0, 20));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_is_replaced_by_another() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    let (dying, serving) = (mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?);
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for number in 0..10 {
        assert_eq!(http.get(&format!("/warm/{number}")).await?.status, StatusCode::OK);
    }
    dying.kill().await;
    // Only a request that was sent before the end of its connection was seen may fail: it must not be sent again.
    let mut n_failed = 0;
    for number in 0..20 {
        let request = http.request(Method::POST, &format!("/once/{number}")).body(full("order"))?;
        let answer = http.send(request).await?;
        let n_served = serving.record().requests(&format!("POST /once/{number}"));
        match (answer.status, n_served) {
            (StatusCode::OK, 1) => {}
            (StatusCode::SERVICE_UNAVAILABLE, 0) => n_failed += 1,
            (status, n_served) => panic!("POST {number}: {status}, served {n_served} times"),
        }
    }
    assert!(n_failed <= 1, "{n_failed} requests failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_pod_refuses_the_tunnel_the_cause_is_named() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    web.record().refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
    let answer = mesh.connect("frontend-0").await?.get(WEB, "/refused").await?;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let (_, line) = mesh.waypoint.access_line("the line of /refused", |line| line["path"] == "/refused").await?;
    let flags = line["response_flags"].as_str().unwrap_or_default();
    assert!(flags.split(',').any(|flag| flag == "UF"), "{line}");
    let line = mesh.waypoint.metric("one count", |line| line.starts_with("istio_requests_total{")).await?;
    assert!(line.ends_with(" 1") && line.contains("response_code=\"503\""), "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_longer_than_what_is_kept_is_sent_once_here_and_again_by_envoy() -> Result<()> {
    const LEGACY_CHAIN: &str = "inbound-vip|80|http|legacy.shop.svc.cluster.local";
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| {
        let policy = serde_json::json!({"retry_on": "5xx", "num_retries": 1});
        let route = serde_json::json!({"match": {"prefix": "/status/"}, "route": {"cluster": LEGACY_CHAIN, "retry_policy": policy}});
        scenario.add_routes(LEGACY_CHAIN, vec![route])
    })?;
    let mesh = mesh.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let legacy = mesh.plain_pod("legacy-v1-1", PRIVILEGED_PORT_SHIFT + 80, App::Http).await?;
    let mut seen = Vec::new();
    for proxy in [mesh.hbone(), envoy.hbone()] {
        for (status, kibibytes) in [(500, 32), (501, 100), (502, 900), (503, 1500)] {
            let asked = format!("POST /status/{status}");
            let before = legacy.record().requests(&asked);
            let mut http = mesh.peer("frontend-0")?.connect(proxy).await?.http1(LEGACY).await?;
            let request = http.request(Method::POST, &format!("/status/{status}")).body(full(vec![b'x'; kibibytes * 1024]))?;
            assert_eq!(http.send(request).await?.status.as_u16(), status);
            seen.push(legacy.record().requests(&asked) - before);
        }
    }
    assert_eq!(seen, [2, 1, 1, 1, 2, 2, 2, 1], "up to 64 KiB here, and 1 MiB in Envoy");
    Ok(())
}
