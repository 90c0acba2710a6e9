//! What is reported of a request: Istio's metrics, the JSON log line, and the span that both name.

use std::time::{Duration, Instant};

use anyhow::Result;
use http::{Method, StatusCode};
use regex::Regex;
use tests::fake_istiod::Kind;
use tests::otlp::KIND_SERVER;
use tests::peer::{empty, full, plain_get};
use tests::process::STATS_PORT;
use tests::scenario::{DB, Mesh, RATINGS, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

/// `SPAN_KIND_CLIENT`.
const KIND_CLIENT: i32 = 3;
const SPAN_DEADLINE: Duration = Duration::from_secs(15);
/// Of a request that waits for nobody.
const REQUEST_DEADLINE: Duration = Duration::from_secs(2);

const COLLECTOR_CLUSTER: &str = "outbound|4317||tempo.tempo.svc.cluster.local";
/// Where the collector is, and where nobody is, below the network of the mesh.
const COLLECTOR: &str = ".8.1";
const NOBODY: &str = ".8.99";

fn move_collector(scenario: &mut Scenario, (from, to): (&str, &str)) -> Result<()> {
    let assignment = scenario.resource(Kind::Endpoints, COLLECTOR_CLUSTER)?;
    let moved = assignment.to_string().replace(&format!("{from}\""), &format!("{to}\""));
    *assignment = serde_json::from_str(&moved)?;
    Ok(())
}

/// The labels of a request from `clients/frontend` to `web`, in Istio's order.
const LABELS: &str = "reporter=\"waypoint\",source_workload=\"frontend-0\",source_canonical_service=\"frontend\",\
    source_canonical_revision=\"v1\",source_workload_namespace=\"clients\",\
    source_principal=\"spiffe://cluster.local/ns/clients/sa/frontend\",source_app=\"frontend\",source_version=\"v1\",\
    source_cluster=\"Kubernetes\",destination_workload=\"web-v1-1\",destination_workload_namespace=\"shop\",\
    destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\",destination_app=\"web\",destination_version=\"v1\",\
    destination_service=\"web.shop.svc.cluster.local\",destination_canonical_service=\"web\",destination_canonical_revision=\"v1\",\
    destination_service_name=\"web\",destination_service_namespace=\"shop\",destination_cluster=\"Kubernetes\",\
    request_protocol=\"http\",response_code=\"200\",grpc_response_status=\"\",response_flags=\"-\",\
    connection_security_policy=\"mutual_tls\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_counted_with_the_labels_of_both_peers_on_both_ports() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/hello").await?.status, StatusCode::OK);
    let line = mesh.waypoint.metric("istio_requests_total", |line| line.starts_with("istio_requests_total{")).await?;
    assert_eq!(line, format!("istio_requests_total{{{LABELS}}} 1"));
    for histogram in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
        let count = mesh.waypoint.metric(histogram, |line| line.starts_with(&format!("{histogram}_count{{"))).await?;
        assert_eq!(count, format!("{histogram}_count{{{LABELS}}} 1"));
        mesh.waypoint.metric(histogram, |line| line == format!("{histogram}_bucket{{{LABELS},le=\"+Inf\"}} 1")).await?;
    }
    let page = plain_get(mesh.waypoint.port(STATS_PORT), "/stats/prometheus").await?;
    assert!(page.text().contains(&line), "{}", page.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn t06_t16_e03_a_log_line_is_json_in_the_providers_format_and_names_the_exported_span() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let request = http.request(Method::GET, "/ok?a=1").header("user-agent", "t/1").header("x-user", "alice").body(empty())?;
    let answer = http.send(request).await?;
    let (text, line) = mesh.waypoint.access_line("the line of /ok", |line| line["path"] == "/ok?a=1").await?;
    let n_bytes_sent = answer.body.len();
    let shape = Regex::new(&format!(
        "^\\{{\"authority\":\"web.shop\",\"bytes_received\":0,\"bytes_sent\":{n_bytes_sent},\"duration_ms\":\\d+,\"method\":\"GET\",\
         \"path\":\"/ok\\?a=1\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"[0-9a-f-]{{36}}\",\"response_code\":200,\"response_flags\":\"-\",\
         \"span_id\":\"[0-9a-f]{{16}}\",\"timestamp\":\"\\d{{4}}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{{3}}Z\",\
         \"trace_id\":\"[0-9a-f]{{32}}\",\"upstream_cluster\":\"inbound-vip\\|80\\|http\\|web.shop.svc.cluster.local;\",\
         \"upstream_host\":\"envoy://connect_originate/{}:8080\",\"user_agent\":\"t/1\"\\}}$",
        mesh.net.pod(1, 1)
    ))?;
    assert!(shape.is_match(&text), "{text}");
    let trace_id = line["trace_id"].as_str().unwrap_or_default().to_owned();
    let span = mesh.spans.wait_for("the span of /ok", SPAN_DEADLINE, |span| span.trace_id == trace_id).await?;
    assert_eq!(
        (span.span_id.as_str(), span.kind, span.parent_span_id.as_str()),
        (line["span_id"].as_str().unwrap_or_default(), KIND_SERVER, "")
    );
    assert_eq!(span.name, "web.shop.svc.cluster.local:80/*");
    assert_eq!(span.resource["service.name"], "waypoint.shop");
    let attribute = |name: &str| span.attributes.get(name).map(String::as_str);
    assert_eq!((attribute("http.status_code"), attribute("http.method"), attribute("user")), (Some("200"), Some("GET"), Some("alice")));
    assert_eq!((attribute("istio.source_workload"), attribute("istio.destination_workload")), (Some("frontend-0"), Some("web-v1-1")));
    let told = answer.json();
    let seen = told["headers"].as_array().into_iter().flatten().find(|pair| pair[0] == "traceparent");
    assert_eq!(seen.map(|pair| pair[1].clone()), Some(format!("00-{trace_id}-{}-01", span.span_id).into()), "{told}");
    assert_eq!(web.record().requests_total(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn t02_a_callers_trace_is_continued() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let (trace, parent) = ("944465e02249c3cd2ea8d5505aca32a2", "00f067aa0ba902b7");
    let request = http.request(Method::GET, "/traced").header("traceparent", format!("00-{trace}-{parent}-01")).body(empty())?;
    assert_eq!(http.send(request).await?.status, StatusCode::OK);
    let span = mesh.spans.wait_for("the span of the caller's trace", SPAN_DEADLINE, |span| span.trace_id == trace).await?;
    assert_eq!(span.parent_span_id, parent);
    let (_, line) = mesh.waypoint.access_line("the line of /traced", |line| line["path"] == "/traced").await?;
    assert_eq!((&line["trace_id"], &line["span_id"]), (&trace.into(), &span.span_id.as_str().into()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_counted_by_its_status() -> Result<()> {
    let mesh = Mesh::start("07-telemetry").await?;
    let _ratings = (mesh.pod("ratings-v1-1", App::Http).await?, mesh.pod("ratings-v1-2", App::Http).await?);
    let mut http = mesh.connect("frontend-0").await?.http2(RATINGS).await?;
    let request = http.request(Method::POST, "/ratings.Ratings/Get").header("content-type", "application/grpc").body(full("x"))?;
    http.send(request).await?;
    let line = mesh.waypoint.metric("istio_requests_total", |line| line.starts_with("istio_requests_total{")).await?;
    assert!(line.contains("request_protocol=\"grpc\",response_code=\"200\",grpc_response_status=\"0\",response_flags=\"-\""), "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_connection_is_counted_with_both_peers() -> Result<()> {
    let mesh = Mesh::start("07-telemetry").await?;
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    let tunnel = mesh.connect("frontend-0").await?.tunnel(DB).await?;
    tests::peer::exchange_raw(tunnel, b"sixsix", true).await?;
    for (metric, value) in [
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 6),
        ("istio_tcp_sent_bytes_total", 11),
    ] {
        let line = mesh.waypoint.metric(metric, |line| line.starts_with(metric) && line.ends_with(&format!(" {value}"))).await?;
        assert!(line.contains("source_workload=\"frontend-0\"") && line.contains("destination_workload=\"db-v1-1\""), "{line}");
        assert!(line.contains("request_protocol=\"tcp\",response_flags=\"-\",connection_security_policy=\"mutual_tls\"}"), "{line}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logging_stops_when_the_chain_says_nothing_of_it_any_more() -> Result<()> {
    let mut mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    connection.get(WEB, "/logged").await?;
    mesh.waypoint.access_line("the line of /logged", |line| line["path"] == "/logged").await?;
    mesh.push_accepted(|scenario| {
        scenario.http(WEB_CHAIN)?["access_log"] = serde_json::json!([]);
        Ok(())
    })
    .await?;
    connection.get(WEB, "/silent").await?;
    connection.get(tests::scenario::EMPTY, "/marker").await?;
    mesh.waypoint.access_line("a later line of another chain", |line| line["path"] == "/marker").await?;
    assert!(!mesh.waypoint.output().iter().any(|line| line.contains("/silent")), "{:?}", mesh.waypoint.output());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_says_which_span_its_request_has_and_whether_it_is_exported() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        let format = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
        (format["span"], format["sampled"]) = ("%SPAN_ID%".into(), "%TRACE_SAMPLED%".into());
        Ok(())
    };
    let mut mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let of_trace = |flags: &str| format!("00-944465e02249c3cd2ea8d5505aca32a2-00f067aa0ba902b7-{flags}");
    for (path, flags) in [("/sampled", "01"), ("/unsampled", "00")] {
        let request = http.request(Method::GET, path).header("traceparent", of_trace(flags)).body(empty())?;
        let told = http.send(request).await?.json();
        let (_, line) = mesh.waypoint.access_line(path, |line| line["path"] == path).await?;
        assert_eq!(line["sampled"], flags == "01", "{line}");
        // The endpoint is told the same.
        let span_id = line["span"].as_str().unwrap_or_default();
        let seen = told["headers"].as_array().into_iter().flatten().find(|pair| pair[0] == "traceparent").map(|pair| pair[1].clone());
        assert_eq!(seen, Some(of_trace(flags).replace("00f067aa0ba902b7", span_id).into()), "{line}");
        if flags == "01" {
            mesh.spans.wait_for("the span of the line", SPAN_DEADLINE, |span| span.span_id == span_id).await?;
        }
    }
    assert_eq!(mesh.spans.spans().len(), 1);
    mesh.push_accepted(|scenario| {
        scenario.http(WEB_CHAIN)?.as_object_mut().map(|manager| manager.remove("tracing"));
        Ok(())
    })
    .await?;
    http.get("/untraced").await?;
    let (_, line) = mesh.waypoint.access_line("/untraced", |line| line["path"] == "/untraced").await?;
    assert_eq!((&line["span"], &line["sampled"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    Ok(())
}

/// Both are asked for by variables; without them a span says what Envoy's does, and a try has none.
#[tokio::test(flavor = "multi_thread")]
async fn spans_have_opentelemetrys_names_beside_envoys_and_tries_have_spans_where_that_is_asked_for() -> Result<()> {
    for asked in [None, Some("true")] {
        let builder = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?;
        let builder = builder.environment("WAYPOINT_SEMANTIC_CONVENTIONS", asked).environment("WAYPOINT_SPANS_OF_TRIES", asked);
        let mesh = builder.start().await?;
        let _web = mesh.pod("web-v1-1", App::Http).await?;
        assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/semantic?a=1").await?.status, StatusCode::OK);
        let is_request = |span: &tests::otlp::Span| span.kind == KIND_SERVER;
        let span = mesh.spans.wait_for("the span", SPAN_DEADLINE, is_request).await?;
        assert_eq!(span.attributes["http.status_code"], "200", "Envoy's names stay, and are texts");
        let of = |name: &str| span.attributes.get(name).map(String::as_str);
        let told = ["http.request.method", "url.path", "url.query"].map(of);
        let below: Vec<_> = mesh.spans.spans().into_iter().filter(|other| other.parent_span_id == span.span_id).collect();
        if asked.is_none() {
            assert_eq!((told, below.len(), of("http.response.status_code")), ([None; 3], 0, None));
            continue;
        }
        assert_eq!(told, [Some("GET"), Some("/semantic"), Some("a=1")]);
        assert_eq!(of("http.response.status_code"), Some("Some(IntValue(200))"), "a number");
        let is_below = |other: &tests::otlp::Span| other.parent_span_id == span.span_id && other.trace_id == span.trace_id;
        let tried = mesh.spans.wait_for("the span of the try", SPAN_DEADLINE, is_below).await?;
        assert_eq!(tried.kind, KIND_CLIENT);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn t25_requests_go_on_while_the_collector_is_down_and_spans_come_once_it_is_back() -> Result<()> {
    let mut mesh = Mesh::builder("07-telemetry")?
        .edit(|scenario| {
            scenario.keep_endpoints(WEB_CHAIN, 1)?;
            move_collector(scenario, (COLLECTOR, NOBODY))
        })?
        .start()
        .await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let mut n_sent = 0;
    let lost = until("spans that are lost", SPAN_DEADLINE, async || {
        let began = Instant::now();
        assert_eq!(http.get(&format!("/down/{n_sent}")).await?.status, StatusCode::OK);
        assert!(began.elapsed() < REQUEST_DEADLINE, "a request waited {:?}", began.elapsed());
        n_sent += 1;
        let page = mesh.waypoint.metrics().await?;
        let lost = page.lines().find(|line| line.starts_with("waypoint_spans_dropped_total{reason=\"export_failed\"}"));
        Ok(match lost {
            Some(line) if !line.ends_with(" 0") => Look::Done(line.to_owned()),
            _ => Look::NotYet(format!("{lost:?} of {n_sent}")),
        })
    })
    .await?;
    assert!(mesh.spans.spans().is_empty(), "{lost}");
    mesh.push_accepted(|scenario| move_collector(scenario, (NOBODY, COLLECTOR))).await?;
    until("a span", SPAN_DEADLINE, async || {
        http.get("/up").await?;
        let spans = mesh.spans.spans();
        Ok(if spans.iter().any(|span| span.attributes["http.url"].ends_with("/up")) {
            Look::Done(())
        } else {
            Look::NotYet("none".to_owned())
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn t26_a_lone_span_is_exported_within_five_seconds() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| scenario.keep_endpoints(WEB_CHAIN, 1))?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    for path in ["/lone", "/another"] {
        http.get(path).await?;
        let ended = Instant::now();
        mesh.spans.wait_for(path, SPAN_DEADLINE, |span| span.attributes["http.url"].ends_with(path)).await?;
        assert!(ended.elapsed() <= Duration::from_secs(5), "{path}: {:?}", ended.elapsed());
    }
    Ok(())
}
