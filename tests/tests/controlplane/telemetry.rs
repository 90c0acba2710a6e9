//! What is reported of a request: Istio's labels, the provider's log line, the span; and that it follows the Telemetry object.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use regex::Regex;
use tests::otlp::{KIND_SERVER, Span};
use tests::peer::{Http, empty};
use tests::wait::{Look, until};

use crate::stage::{EFFECT_DEADLINE, PODS, REVIEWS, Stage, WEB, manifest};

/// Ports of the metrics: Envoy's, and the agent's.
const METRICS_PORTS: [u16; 2] = [15090, 15020];
/// Recording and exporting are behind a request by the exporter's interval at most.
const REPORT_DEADLINE: Duration = Duration::from_secs(15);
/// How long the absence of a log line is watched. Lines come within milliseconds; a later marker excludes late ones.
const SILENCE: Duration = Duration::from_secs(2);
/// Requests that must not be logged.
const SILENT_REQUESTS: usize = 20;

/// The labels of a request from `clients/frontend` to a pod of `web` that answered 201, in Istio's order.
fn labels(pod: &str) -> String {
    format!(
        "reporter=\"waypoint\",source_workload=\"frontend-0\",source_canonical_service=\"frontend\",source_canonical_revision=\"v1\",\
         source_workload_namespace=\"clients\",source_principal=\"spiffe://cluster.local/ns/clients/sa/frontend\",source_app=\"frontend\",\
         source_version=\"v1\",source_cluster=\"Kubernetes\",destination_workload=\"{pod}\",destination_workload_namespace=\"shop\",\
         destination_principal=\"spiffe://cluster.local/ns/shop/sa/web\",destination_app=\"web\",destination_version=\"v1\",\
         destination_service=\"web.shop.svc.cluster.local\",destination_canonical_service=\"web\",destination_canonical_revision=\"v1\",\
         destination_service_name=\"web\",destination_service_namespace=\"shop\",destination_cluster=\"Kubernetes\",\
         request_protocol=\"http\",response_code=\"201\",grpc_response_status=\"\",response_flags=\"-\",\
         connection_security_policy=\"mutual_tls\""
    )
}

/// One request with a status of its own, so that its series is its own.
pub async fn a_request_is_counted(stage: &mut Stage) -> Result<()> {
    let answer = stage.get(&stage.frontend, WEB, "/status/201").await?;
    ensure!(answer.status == StatusCode::CREATED, "{}: {}", answer.status, answer.text());
    let pod = answer.header("x-pod").to_owned();
    for port in METRICS_PORTS {
        let expected = format!("istio_requests_total{{{}}} 1", labels(&pod));
        until(&format!("the series on port {port}"), REPORT_DEADLINE, async || {
            let page = stage.metrics(port).await?;
            let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("istio_requests_total{")).collect();
            let found = lines.iter().filter(|line| line.contains("response_code=\"201\"")).collect::<Vec<_>>() == [&expected.as_str()];
            Ok(if found { Look::Done(()) } else { Look::NotYet(format!("expected\n{expected}\namong\n{}", lines.join("\n"))) })
        })
        .await?;
        let page = stage.metrics(port).await?;
        for histogram in ["istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"] {
            let count = format!("{histogram}_count{{{}}} 1", labels(&pod));
            ensure!(page.lines().any(|line| line == count), "port {port} has no line {count}");
        }
    }
    Ok(())
}

fn line_shape(n_bytes_sent: usize, pod_address: &str) -> Result<Regex> {
    Ok(Regex::new(&format!(
        "^\\{{\"authority\":\"web.shop\",\"bytes_received\":0,\"bytes_sent\":{n_bytes_sent},\"duration_ms\":\\d+,\"method\":\"GET\",\
         \"path\":\"/hello\\?a=1\",\"protocol\":\"HTTP/1.1\",\"request_id\":\"[0-9a-f-]{{36}}\",\"response_code\":200,\"response_flags\":\"-\",\
         \"span_id\":\"[0-9a-f]{{16}}\",\"timestamp\":\"\\d{{4}}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d\\.\\d{{3}}Z\",\
         \"trace_id\":\"[0-9a-f]{{32}}\",\"upstream_cluster\":\"inbound-vip\\|80\\|http\\|web.shop.svc.cluster.local;\",\
         \"upstream_host\":\"envoy://connect_originate/{pod_address}:8080\",\"user_agent\":\"test/1\"\\}}$"
    ))?)
}

/// Without a Telemetry object nothing is logged; with the one of `k8s/manifests`, everything, and the line names the exported span.
pub async fn a_request_is_logged_and_traced(stage: &mut Stage) -> Result<()> {
    ensure!(stage.access_log()?.is_empty(), "there are log lines before Telemetry asks for them: {:?}", stage.access_log()?);
    stage.turn_logging_on().await?;
    let mut http = stage.frontend.connect(stage.hbone_address()).await?.http1(WEB).await?;
    let request = http.request(Method::GET, "/hello?a=1").header("user-agent", "test/1").body(empty())?;
    let answer = http.send(request).await?;
    ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, answer.text());
    let pod_address = PODS.iter().find(|(name, _)| *name == answer.header("x-pod")).map(|(_, address)| *address);
    let shape = line_shape(answer.body.len(), pod_address.context("an answer of no pod")?)?;
    let (text, line) = stage.access_line("/hello?a=1").await?;
    ensure!(shape.is_match(&text), "the line {text} is not of the form {shape}");
    let text_of = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let (trace_id, span_id) = (text_of("trace_id"), text_of("span_id"));
    let span = stage.spans.wait_for("the span of the line", REPORT_DEADLINE, |span| span.trace_id == trace_id).await?;
    ensure!(span.span_id == span_id, "the line names {span_id}, the span is {span:?}");
    ensure!((span.kind, span.parent_span_id.as_str()) == (KIND_SERVER, ""), "{span:?}");
    let service_name = span.resource.get("service.name").map(String::as_str);
    ensure!(service_name == Some("waypoint.shop"), "{:?}", span.resource);
    for (name, value) in [
        ("http.status_code", "200"),
        ("http.method", "GET"),
        ("http.url", "http://web.shop/hello?a=1"),
        ("istio.source_workload", "frontend-0"),
        ("istio.destination_workload", answer.header("x-pod")),
    ] {
        ensure!(span.attributes.get(name).map(String::as_str) == Some(value), "{name} is not {value}: {:?}", span.attributes);
    }
    let told = answer.json();
    let seen = told["headers"].as_array().into_iter().flatten().find(|pair| pair[0] == "traceparent");
    let expected = format!("00-{trace_id}-{span_id}-01");
    ensure!(seen.is_some_and(|pair| pair[1] == expected.as_str()), "the pod did not see {expected}: {told}");
    Ok(())
}

/// The end of logging is seen by requests without a line; a marker, logged when it is turned on again, excludes late lines.
pub async fn deleting_telemetry_ends_logging(stage: &mut Stage) -> Result<()> {
    stage.turn_logging_on().await?;
    stage.plane.delete_yaml(&in_shop(&manifest("namespace/telemetry.yaml")?)).await?;
    let connection = stage.frontend.connect(stage.hbone_address()).await?;
    let mut n_sent = 0;
    until("a request without a log line", EFFECT_DEADLINE, async || {
        n_sent += 1;
        let path = format!("/still-logged/{n_sent}");
        connection.get(WEB, &path).await?;
        let logged = until("a line", SILENCE, async || {
            let found = stage.access_log()?.iter().any(|(_, line)| line["path"] == path.as_str());
            Ok(if found { Look::Done(()) } else { Look::NotYet(String::new()) })
        })
        .await;
        Ok(if logged.is_err() { Look::Done(()) } else { Look::NotYet(format!("{path} is logged")) })
    })
    .await?;
    for number in 0..SILENT_REQUESTS {
        let answer = connection.get(WEB, &format!("/silent/{number}")).await?;
        ensure!(answer.status == StatusCode::OK, "{}", answer.status);
    }
    stage.turn_logging_on().await?;
    let late: Vec<_> = stage.access_log()?.into_iter().filter(|(text, _)| text.contains("/silent/")).collect();
    ensure!(late.is_empty(), "logged without Telemetry: {late:?}");
    // The spans of one queue come in order.
    let (_, last) = stage.access_log()?.pop().context("no line after Telemetry was applied again")?;
    stage.spans.wait_for("the span of a later line", REPORT_DEADLINE, |span| last["trace_id"] == span.trace_id.as_str()).await?;
    let is_silent = |span: &Span| span.attributes.get("http.url").is_some_and(|url| url.contains("/silent/"));
    let late: Vec<_> = stage.spans.spans().into_iter().filter(is_silent).collect();
    ensure!(late.is_empty(), "traced without Telemetry: {late:?}");
    Ok(())
}

/// A Telemetry object of one service: what is logged, a label of its requests, how many are traced.
fn of_web(filter: &str, label: &str, sampling: u8) -> String {
    format!(
        "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: web, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  accessLogging:
  - providers: [{{name: access-log-json}}]
    filter: {{expression: \"{filter}\"}}
  metrics:
  - providers: [{{name: prometheus}}]
    overrides:
    - match: {{metric: REQUEST_COUNT, mode: SERVER}}
      tagOverrides: {{custom_dimension: {{value: \"'{label}'\"}}}}
  tracing:
  - providers: [{{name: otel}}]
    randomSamplingPercentage: {sampling}
"
    )
}

/// Asks until a request with this status of its own is counted with this label, or without any.
async fn counted_with(stage: &Stage, http: &mut Http, status: u16, label: Option<&str>) -> Result<()> {
    let is_it = |line: &str| {
        let own = line.starts_with("istio_requests_total{") && line.contains(&format!("response_code=\"{status}\""));
        own && match label {
            Some(label) => line.contains(&format!(",custom_dimension=\"{label}\"}}")),
            None => !line.contains("custom_dimension"),
        }
    };
    until(&format!("{status} with {label:?}"), EFFECT_DEADLINE, async || {
        http.get(&format!("/status/{status}")).await?;
        let page = stage.metrics(METRICS_PORTS[1]).await?;
        Ok(if page.lines().any(is_it) { Look::Done(()) } else { Look::NotYet("not yet".to_owned()) })
    })
    .await
}

/// What a Telemetry object made of a good and of a failed request: whether each is logged, and whether they are traced. `reviews`, which no
/// such object is for, is logged and traced as its namespace's says, and counted as ever.
async fn reported(stage: &Stage, web: &mut Http, reviews: &mut Http, phase: &str) -> Result<([bool; 2], bool)> {
    let paths = [format!("/hello/{phase}"), format!("/fail/503/99/{phase}")];
    for (path, status) in paths.iter().zip([200, 503]) {
        let answer = web.get(path).await?;
        ensure!(answer.status == status, "{path}: {}", answer.status);
    }
    let marker = format!("/marker/{phase}");
    reviews.get(&marker).await?;
    let (_, line) = stage.access_line(&marker).await?;
    stage.spans.wait_for("the span of the marker", REPORT_DEADLINE, |span| line["trace_id"] == span.trace_id.as_str()).await?;
    let page = stage.metrics(METRICS_PORTS[1]).await?;
    let odd = page.lines().find(|line| line.contains("custom_dimension") && !line.contains("destination_service_name=\"web\""));
    ensure!(odd.is_none(), "another service's label: {odd:?}");
    let (lines, spans) = (stage.access_log()?, stage.spans.spans());
    let is_logged = |path: &String| lines.iter().any(|(_, line)| line["path"] == path.as_str());
    let is_of = |span: &Span| span.attributes.get("http.url").is_some_and(|url| paths.iter().any(|path| url.ends_with(path.as_str())));
    Ok((paths.each_ref().map(is_logged), spans.iter().any(is_of)))
}

/// A service's Telemetry object that is applied, changed and deleted counts for the next request on connections that stay open, and for
/// that service only.
pub async fn a_services_telemetry_follows_its_object(stage: &mut Stage) -> Result<()> {
    stage.turn_logging_on().await?;
    let connection = stage.frontend.connect(stage.hbone_address()).await?;
    let (mut web, mut reviews) = (connection.http1(WEB).await?, connection.http1(REVIEWS).await?);
    stage.plane.apply(&of_web("response.code >= 400", "first", 0)).await?;
    counted_with(stage, &mut web, 431, Some("first")).await?;
    let applied = reported(stage, &mut web, &mut reviews, "applied").await?;
    ensure!(applied == ([false, true], false), "applied: {applied:?}");
    stage.plane.apply(&of_web("response.code < 400", "second", 100)).await?;
    counted_with(stage, &mut web, 432, Some("second")).await?;
    let changed = reported(stage, &mut web, &mut reviews, "changed").await?;
    ensure!(changed == ([true, false], true), "changed: {changed:?}");
    stage.plane.delete_yaml(&of_web("true", "none", 0)).await?;
    counted_with(stage, &mut web, 433, None).await?;
    let deleted = reported(stage, &mut web, &mut reviews, "deleted").await?;
    ensure!(deleted == ([true, true], true), "deleted: {deleted:?}");
    Ok(())
}

/// Takes a label of one metric away, another metric as a whole, and reports each second; lines have another format.
const TUNED: &str = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  accessLogging:
  - providers: [{name: access-log-other}]
  metrics:
  - providers: [{name: prometheus}]
    reportingInterval: 1s
    overrides:
    - match: {metric: REQUEST_COUNT, mode: SERVER}
      tagOverrides: {source_principal: {operation: REMOVE}}
    - match: {metric: REQUEST_SIZE, mode: SERVER}
      disabled: true
";

/// Shorter than Istio's interval of five seconds, and longer than one second.
const REPORTED_WITHIN: Duration = Duration::from_secs(4);

/// The series of a metric with a status of its own.
fn series(page: &str, metric: &str, status: u16) -> Vec<String> {
    let is_it = |line: &&str| line.starts_with(&format!("{metric}{{")) && line.contains(&format!("response_code=\"{status}\""));
    page.lines().filter(is_it).map(str::to_owned).collect()
}

/// Asks until a request with this status is counted by whom it came from, or without.
async fn counted_by_source(stage: &Stage, http: &mut Http, status: u16, by_source: bool) -> Result<String> {
    until(&format!("{status} by source: {by_source}"), EFFECT_DEADLINE, async || {
        http.get(&format!("/status/{status}")).await?;
        let page = stage.metrics(METRICS_PORTS[1]).await?;
        let found = series(&page, "istio_requests_total", status).iter().any(|line| line.contains("source_principal=") == by_source);
        Ok(if found { Look::Done(page) } else { Look::NotYet("not yet".to_owned()) })
    })
    .await
}

/// Messages of a stream that goes on are counted within less than Istio's interval.
async fn messages_are_counted_each_second(stage: &Stage, http: &mut Http) -> Result<()> {
    let (messages, received) = tokio::sync::mpsc::channel::<Bytes>(1);
    let received = futures_util::stream::unfold(received, async |mut received| Some((Ok(Frame::data(received.recv().await?)), received)));
    let request = http.request(Method::POST, "/messages/1").header("content-type", "application/grpc").header("te", "trailers");
    let asked = http.send(request.body(StreamBody::new(received).boxed())?);
    let counted = async {
        messages.send(Bytes::from_static(b"\0\0\0\0\x02hi")).await?;
        until("the message", REPORTED_WITHIN, async || {
            let page = stage.metrics(METRICS_PORTS[1]).await?;
            let found = page.lines().any(|line| line.starts_with("istio_request_messages_total{") && line.ends_with("} 1"));
            Ok(if found { Look::Done(()) } else { Look::NotYet("none is counted".to_owned()) })
        })
        .await?;
        drop(messages);
        anyhow::Ok(())
    };
    let (answer, counted) = tokio::join!(asked, counted);
    counted?;
    ensure!(answer?.status == StatusCode::OK, "the stream failed");
    Ok(())
}

/// What a Telemetry object says of labels, metrics, intervals and formats counts for the next request on connections that stay open; what
/// was counted stays, and its deletion brings back what was there before.
pub async fn metrics_and_lines_follow_the_object(stage: &mut Stage) -> Result<()> {
    stage.turn_logging_on().await?;
    let connection = stage.frontend.connect(stage.hbone_address()).await?;
    let (mut web, mut grpc) = (connection.http1(WEB).await?, connection.http2(WEB).await?);
    let before = counted_by_source(stage, &mut web, 441, true).await?;
    let (count, size) = (series(&before, "istio_requests_total", 441), series(&before, "istio_request_bytes_count", 441));
    ensure!((count.len(), size.len()) == (1, 1), "{count:?} {size:?}");

    stage.plane.apply(TUNED).await?;
    counted_by_source(stage, &mut web, 442, false).await?;
    let tuned = counted_by_source(stage, &mut web, 443, false).await?;
    ensure!(series(&tuned, "istio_requests_total", 443).len() == 1, "counted with its source, too");
    ensure!(series(&tuned, "istio_request_bytes_count", 443).is_empty(), "a metric that is off has a series");
    let others = series(&tuned, "istio_response_bytes_count", 443);
    ensure!(others.len() == 1 && others[0].contains("source_principal="), "another metric changed: {others:?}");
    ensure!(series(&tuned, "istio_requests_total", 441) == count, "what was counted before changed");
    let pod = web.get("/status/203?tuned").await?.header("x-pod").to_owned();
    let (text, _) = stage.access_line("/status/203?tuned").await?;
    ensure!(text == format!(r#"{{"path":"/status/203?tuned","said":"code 203 of {pod}"}}"#), "{text}");
    messages_are_counted_each_second(stage, &mut grpc).await?;

    stage.plane.delete_yaml(TUNED).await?;
    counted_by_source(stage, &mut web, 444, true).await?;
    let after = counted_by_source(stage, &mut web, 445, true).await?;
    ensure!(series(&after, "istio_request_bytes_count", 445).len() == 1, "a metric that is on again has no series");
    web.get("/deleted").await?;
    let (_, line) = stage.access_line("/deleted").await?;
    ensure!(line["authority"] == "web.shop" && line.get("said").is_none(), "{line}");
    ensure!(series(&after, "istio_requests_total", 441) == count, "it began anew");
    Ok(())
}

/// The manifest has no namespace: operators say it.
fn in_shop(yaml: &str) -> String {
    yaml.replace("metadata:\n", "metadata:\n  namespace: shop\n")
}
