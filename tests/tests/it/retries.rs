//! The retry policy that istiod gives every route, and that nothing is sent twice.

use anyhow::Result;
use http::{Method, StatusCode};
use tests::peer::full;
use tests::scenario::{Mesh, WEB, WEB_CHAIN};
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
