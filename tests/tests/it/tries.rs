//! Spans of tries, beside a stock Envoy that makes them too.
//!
//! Not for: what else a trace says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::json;
use tests::envoy::Envoy;
use tests::otlp::Span;
use tests::peer::empty;
use tests::scenario::{Mesh, WEB, WEB_CHAIN};
use tests::wait::{self, Look};
use tests::workload::App;

const DEADLINE: Duration = Duration::from_secs(20);
/// `SPAN_KIND_CLIENT`.
const KIND_CLIENT: i32 = 3;

/// The spans of the tries below a request's, by number.
async fn tries_of(mesh: &Mesh, agent: &str, count: usize) -> Result<(Span, Vec<Span>)> {
    let is_it = |span: &Span| span.attributes.get("user_agent").is_some_and(|value| value == agent);
    let request = mesh.spans.wait_for(agent, DEADLINE, is_it).await?;
    let is_below = |span: &Span| span.parent_span_id == request.span_id;
    let is_last =
        |span: &Span| is_below(span) && span.attributes.get("retry.count").map_or(1, |again| again.parse().unwrap_or(0) + 1) == count;
    mesh.spans.wait_for("the span of the last try", DEADLINE, is_last).await?;
    let mut tries: Vec<_> = mesh.spans.spans().into_iter().filter(is_below).collect();
    tries.sort_by_key(|span| span.attributes.get("retry.count").cloned());
    Ok((request, tries))
}

/// What a try's span says, but for who it is.
fn said(span: &Span) -> (String, i32, i32, u32, BTreeMap<String, String>) {
    let mut attributes = span.attributes.clone();
    // A stock Envoy knows no peers.
    attributes.retain(|name, _| !name.starts_with("istio.source") && !name.starts_with("istio.destination"));
    (span.name.clone(), span.kind, span.status, span.flags, attributes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_has_the_span_that_envoy_gives_it_and_the_endpoint_is_told_of_it() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            let http = scenario.http(WEB_CHAIN)?;
            http["tracing"]["spawn_upstream_span"] = true.into();
            let route = &mut http["route_config"]["virtual_hosts"][0]["routes"][0]["route"];
            route["retry_policy"] = json!({"retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.500s"});
            Ok(())
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    for (path, count) in [("/tried", 1), ("/fail/503/1", 2), ("/fail/503/9", 3), ("/fail/connection/9", 3), ("/delay/3000", 3)] {
        let mut all = Vec::new();
        for (proxy, hbone) in [("ours", mesh.hbone()), ("them", envoy.hbone())] {
            let (agent, path) = (format!("{proxy}{path}"), format!("{path}/{proxy}"));
            let mut http = peer.connect(hbone).await?.http1(WEB).await?;
            let answer = http.send(http.request(Method::GET, &path).header("user-agent", &agent).body(empty())?).await?;
            let (request, tries) = tries_of(&mesh, &agent, count).await?;
            assert_eq!(tries.len(), count, "{agent}: {tries:#?}");
            let ids: BTreeSet<_> = tries.iter().map(|span| (span.trace_id.clone(), span.kind)).collect();
            assert_eq!(ids, BTreeSet::from([(request.trace_id.clone(), KIND_CLIENT)]));
            if count < 3 {
                let told = answer.json();
                let headers = told["headers"].as_array().context("headers")?;
                let of = |name: &str| headers.iter().find(|pair| pair[0] == name).and_then(|pair| pair[1].as_str());
                assert_eq!(of("traceparent"), Some(&*format!("00-{}-{}-01", request.trace_id, tries[count - 1].span_id)), "{agent}");
            }
            all.push(tries.iter().map(said).collect::<Vec<_>>());
        }
        assert_eq!(all[0], all[1], "{path}");
    }
    Ok(())
}

/// How a client leaves a request whose only try is unfinished.
#[derive(Clone, Copy, Debug)]
enum Until {
    /// It goes away once the endpoint has the request.
    Asked,
    /// It goes away once the answer has begun.
    Begun,
    /// It reads to the end, however that comes.
    Ended,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_try_that_does_not_come_to_its_end_has_the_span_that_envoy_gives_it() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            let http = scenario.http(WEB_CHAIN)?;
            // The older way to say it.
            http["http_filters"].as_array_mut().and_then(|filters| filters.last_mut()).context("no router")?["typed_config"]
                ["start_child_span"] = true.into();
            let routes = &mut http["route_config"]["virtual_hosts"][0]["routes"];
            let mut plain = routes[0].clone();
            plain["route"]["retry_policy"] = serde_json::Value::Null;
            plain["name"] = "plain".into();
            let limited = |prefix: &str, limit: &str, time: &str| {
                let mut limited = plain.clone();
                limited["match"] = json!({"prefix": prefix});
                limited["name"] = prefix.into();
                limited["route"][limit] = match limit {
                    "max_stream_duration" => json!({"max_stream_duration": time}),
                    _ => time.into(),
                };
                limited
            };
            *routes = json!([
                limited("/delay/6001", "idle_timeout", "0.5s"),
                limited("/delay/6002", "max_stream_duration", "0.5s"),
                limited("/stream/61", "max_stream_duration", "0.5s"),
                limited("/stream/62", "timeout", "0.5s"),
                plain
            ]);
            Ok(())
        })?
        .start()
        .await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let peer = mesh.peer("frontend-0")?;
    for (path, until) in [
        ("/delay/6000", Until::Asked),
        ("/stream/60", Until::Begun),
        ("/cut", Until::Ended),
        ("/delay/6001", Until::Ended),
        ("/delay/6002", Until::Ended),
        ("/stream/61", Until::Ended),
        ("/stream/62", Until::Ended),
    ] {
        let mut all = Vec::new();
        for (proxy, hbone) in [("ours", mesh.hbone()), ("them", envoy.hbone())] {
            let (agent, path) = (format!("{proxy}{path}"), format!("{path}/{proxy}"));
            let mut http = peer.connect(hbone).await?.http1(WEB).await?;
            let request = http.request(Method::GET, &path).header("user-agent", &agent).body(empty())?;
            match until {
                Until::Asked => {
                    let asked = tokio::spawn(async move { http.start(request).await });
                    let line = format!("GET {path}");
                    let look = async || Ok(if web.record().requests(&line) == 1 { Look::Done(()) } else { Look::NotYet(String::new()) });
                    wait::until(&line, DEADLINE, look).await?;
                    asked.abort();
                }
                Until::Begun => drop((http.start(request).await?, http)),
                // It is cut.
                Until::Ended => drop(http.send(request).await),
            }
            let (_, tries) = tries_of(&mesh, &agent, 1).await?;
            all.push(tries.iter().map(said).collect::<Vec<_>>());
        }
        assert_eq!(all[0], all[1], "{path}");
    }
    Ok(())
}
