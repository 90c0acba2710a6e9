//! From a line to its trace, as Grafana goes: a regular expression over the line, and a query by what it finds.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use regex::Regex;
use serde_json::Value;
use tests::consumers::Jaeger;
use tests::fake_istiod::Kind;
use tests::scenario::{Mesh, Scenario, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

use crate::traffic::logged;

/// The regular expression of a derived field of a Loki data source. [Grafana]
const DERIVED_FIELD: &str = r#""trace_id":"(\w+)""#;
const COLLECTOR: &str = "outbound|4317||tempo.tempo.svc.cluster.local";
/// Where Jaeger listens instead of the collector.
const OTLP_PORT: u16 = 24317;
const DEADLINE: Duration = Duration::from_secs(20);

fn configuration(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let collector = scenario.resource(Kind::Endpoints, COLLECTOR)?;
    let address = &mut collector["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
    address["port_value"] = OTLP_PORT.into();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn e03_what_a_derived_field_finds_in_a_line_is_one_span_in_jaeger() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(configuration)?.start().await?;
    let jaeger = Jaeger::start(SocketAddr::new(IpAddr::V4(mesh.net.pod(8, 1)), OTLP_PORT)).await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    for other in ["/before", "/beside"] {
        logged(&mesh, other).await?;
    }
    let line = logged(&mesh, "/linked").await?;
    let found = Regex::new(DERIVED_FIELD)?.captures(&line).with_context(|| format!("no link in {line}"))?;
    let spans = until("the trace in Jaeger", DEADLINE, async || {
        let spans = jaeger.trace(&found[1]).await?;
        Ok(if spans.is_empty() { Look::NotYet("none".to_owned()) } else { Look::Done(spans) })
    })
    .await?;
    let [span] = &spans[..] else { anyhow::bail!("{} spans: {spans:?}", spans.len()) };
    let line: Value = serde_json::from_str(&line)?;
    assert_eq!((&span["spanID"], &span["traceID"]), (&line["span_id"], &line["trace_id"]), "{line}");
    assert_eq!(span["operationName"], "web.shop.svc.cluster.local:80/*");
    let tag = |key: &str| span["tags"].as_array().into_iter().flatten().find(|tag| tag["key"] == key).cloned().unwrap_or_default();
    assert_eq!((&tag("http.status_code")["value"], &tag("http.status_code")["type"]), (&"200".into(), &"string".into()), "{span}");
    assert_eq!((&tag("span.kind")["value"], &tag("http.url")["value"]), (&"server".into(), &"http://web.shop/linked".into()), "{span}");
    Ok(())
}
