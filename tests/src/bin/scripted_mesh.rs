//! A waypoint with a scripted control plane, for a load generator: prints where it listens and its process id, and stays.
//!
//! cargo run -p tests --bin scripted_mesh -- ROOT_CERT ROOT_KEY ENDPOINT [bare|metrics|full]
//!
//! `web` (10.96.1.1:80) is served by ENDPOINT, the address of an application whose HBONE port is 15008 of the same address.
//! bare: no logs, metrics or tracing. metrics: Istio's metrics. full: metrics, JSON log and a span for every request.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::pki::Pki;
use tests::scenario::{Mesh, Scenario, WEB_CHAIN};

/// Ends by itself if nobody ends it.
const LIFETIME: Duration = Duration::from_secs(3600);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [root_cert, root_key, endpoint, rest @ ..] = args.as_slice() else {
        bail!("usage: scripted_mesh ROOT_CERT ROOT_KEY ENDPOINT [bare|metrics|full]")
    };
    let pki = Pki::from_pem(&std::fs::read_to_string(root_cert)?, &std::fs::read_to_string(root_key)?)?;
    let what = rest.first().map_or("bare", String::as_str);
    let scenario = if what == "full" { "07-telemetry" } else { "01-plain" };
    let builder = Mesh::builder(scenario)?.pki(pki).proxy_config("concurrency", json!(1));
    let mesh = builder.edit(|scenario| prepare(scenario, endpoint, what))?.start().await?;
    println!("address={},destination=10.96.1.1:80,pid={}", mesh.hbone(), mesh.waypoint.pid());
    tokio::time::sleep(LIFETIME).await;
    Ok(())
}

fn prepare(scenario: &mut Scenario, endpoint: &str, what: &str) -> Result<()> {
    let assignment = scenario.resource(Kind::Endpoints, WEB_CHAIN)?;
    assignment["endpoints"].as_array_mut().context("localities")?.truncate(1);
    let only = &mut assignment["endpoints"][0]["lb_endpoints"][0];
    only["endpoint"]["address"]["envoy_internal_address"]["endpoint_id"] = endpoint.into();
    only["metadata"]["filter_metadata"]["envoy.filters.listener.original_dst"]["local"] = endpoint.into();
    if what == "bare" {
        let http = scenario.http(WEB_CHAIN)?;
        http.as_object_mut().context("an object")?.remove("tracing");
        let filters = http["http_filters"].as_array_mut().context("filters")?;
        filters.retain(|filter: &Value| filter["name"] != "istio.stats");
    }
    Ok(())
}
