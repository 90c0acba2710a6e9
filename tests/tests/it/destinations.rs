//! Clusters that have no endpoints of their own: requests and connections go where their client wanted to go.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::peer::exchange_raw;
use tests::pki::spiffe;
use tests::scenario::{DB_CHAIN, Mesh, MeshBuilder, Scenario, WEB_CHAIN};
use tests::workload::{App, Workload};

const PORT: u16 = 8080;

fn chain(name: &str) -> Value {
    json!({"action": {"name": name, "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}}})
}

fn matcher(input: &str, map: &Value) -> Value {
    let input = json!({"name": input, "typed_config": {"@type": format!("type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.{input}")}});
    json!({"matcher_tree": {"input": input, "exact_match_map": {"map": map}}})
}

/// What leads to an address, beside what was recorded.
fn lead(scenario: &mut Scenario, address: &str, target: &Value) -> Result<()> {
    let listener = scenario.resource(Kind::Listener, "main_internal")?;
    let ranges = &mut listener["filter_chain_matcher"]["matcher_tree"]["custom_match"]["typed_config"]["range_matchers"];
    let ranges = ranges.as_array_mut().context("no ranges")?;
    ranges.push(json!({"ranges": [{"address_prefix": address, "prefix_len": 32}], "on_match": target}));
    Ok(())
}

/// A waypoint that serves workloads: what istiod sends for the address of a pod.
fn directly(builder: MeshBuilder) -> Result<(MeshBuilder, SocketAddr)> {
    let pod = SocketAddr::new(builder.net().pod(1, 1).into(), PORT);
    let builder = builder.edit(|scenario| {
        let mut by_protocol =
            matcher("ApplicationProtocolInput", &json!({"'http/1.1'": chain("direct-http"), "'h2c'": chain("direct-http")}));
        by_protocol["on_no_match"] = chain("direct-tcp");
        lead(scenario, &pod.ip().to_string(), &json!({"matcher": by_protocol}))
    })?;
    Ok((builder, pod))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_pod_itself_reaches_that_pod_over_hbone() -> Result<()> {
    let (builder, pod) = directly(Mesh::builder("01-plain")?)?;
    let mesh = builder.start().await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let answer = connection.get(&pod.to_string(), "/direct").await?;
    assert_eq!((answer.status, answer.json()["pod"].as_str()), (StatusCode::OK, Some("web-v1-1")), "{}", answer.text());
    let answer = connection.http2(&pod.to_string()).await?.get("/again").await?;
    assert_eq!((answer.status, &answer.json()["version"]), (StatusCode::OK, &"HTTP/2.0".into()));
    let connects = web.record().connects();
    assert!(connects.iter().all(|connect| connect.authority == pod.to_string() && connect.identity == spiffe("shop", "waypoint")));
    let labels = |line: &str| line.contains("istio_requests_total{") && line.contains("destination_workload=\"web-v1-1\"");
    mesh.waypoint.metric("a request to the pod", labels).await?;
    // Nobody answers there.
    web.kill().await;
    assert_eq!(connection.get(&pod.to_string(), "/").await?.status, StatusCode::SERVICE_UNAVAILABLE);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_reaches_the_pod_itself_as_tcp() -> Result<()> {
    let (builder, pod) = directly(Mesh::builder("01-plain")?)?;
    let mesh = builder.start().await?;
    let web = mesh.pod("web-v1-1", App::Tcp { greets: false }).await?;
    let tunnel = mesh.connect("frontend-0").await?.tunnel(&pod.to_string()).await?;
    assert_eq!(exchange_raw(tunnel, b"no http at all", true).await?, b"echo:no http at all");
    assert_eq!(web.record().connects()[0].authority, pod.to_string());
    Ok(())
}

/// A ServiceEntry without resolution: its address is where its clients want to go.
fn pass_through(scenario: &mut Scenario, cluster: &str) -> Result<()> {
    let value = scenario.resource(Kind::Cluster, cluster)?;
    let fields = value.as_object_mut().context("no cluster")?;
    for field in ["eds_cluster_config", "least_request_lb_config", "common_lb_config"] {
        fields.remove(field);
    }
    fields.insert("type".to_owned(), "ORIGINAL_DST".into());
    fields.insert("lb_policy".to_owned(), "CLUSTER_PROVIDED".into());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_resolution_is_reached_in_plain_at_the_address_that_was_asked_for() -> Result<()> {
    let builder = Mesh::builder("01-plain")?;
    let [one, two] = [1, 2].map(|last| SocketAddr::new(builder.net().pod(60, last).into(), PORT));
    let mut mesh = builder
        .edit(|scenario| {
            pass_through(scenario, WEB_CHAIN)?;
            pass_through(scenario, DB_CHAIN)?;
            let ports =
                |chain_of_service| json!({"matcher": matcher("DestinationPortInput", &json!({PORT.to_string(): chain(chain_of_service)}))});
            lead(scenario, &one.ip().to_string(), &ports(WEB_CHAIN))?;
            lead(scenario, &two.ip().to_string(), &ports(DB_CHAIN))
        })?
        .start()
        .await?;
    let http = Workload::plain("outside", one, App::Http).await?;
    let _tcp = Workload::plain("database", two, App::Tcp { greets: false }).await?;
    let connection = mesh.connect("frontend-0").await?;
    let answer = connection.get(&one.to_string(), "/").await?;
    assert_eq!((answer.status, answer.json()["pod"].as_str()), (StatusCode::OK, Some("outside")), "{}", answer.text());
    assert_eq!(exchange_raw(connection.tunnel(&two.to_string()).await?, b"select", true).await?, b"echo:select");
    // The same requests on another port of the same host.
    let other = SocketAddr::new(one.ip(), PORT + 1);
    let _other = Workload::plain("elsewhere", other, App::Http).await?;
    mesh.push_accepted(|scenario| {
        scenario.resource(Kind::Cluster, WEB_CHAIN)?["original_dst_lb_config"] = json!({"upstream_port_override": other.port()});
        Ok(())
    })
    .await?;
    assert_eq!(connection.get(&one.to_string(), "/").await?.json()["pod"], "elsewhere");
    assert_eq!(http.record().requests_total(), 1);
    Ok(())
}
