//! `waypoint parity`: the same is said before a swap as is done after it.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::plain_get;
use tests::scenario::{Mesh, WEB_CHAIN};

/// Objects that are refused, by their names in Envoy's configuration.
fn refused(answer: &Value) -> BTreeSet<String> {
    let objects = answer["refused"].as_array().into_iter().flatten().filter_map(|one| one["object"].as_str());
    objects.map(|name| name.split_once("  [").map_or(name, |(_, name)| name.trim_end_matches(']')).to_owned()).collect()
}

async fn unsupported() -> Result<Mesh> {
    let edit = |scenario: &mut tests::scenario::Scenario| {
        let chain = scenario.http(WEB_CHAIN)?;
        let route = &mut chain["route_config"]["virtual_hosts"][0]["routes"][0];
        route["name"] = json!("default");
        route["metadata"] =
            json!({"filter_metadata": {"istio": {"config": "/apis/networking.istio.io/v1/namespaces/shop/virtual-service/web"}}});
        route["match"]["path_match_policy"] =
            json!({"name": "x", "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"}});
        route["match"].as_object_mut().context("no match")?.remove("prefix");
        Ok(())
    };
    Mesh::builder("10-unsupported")?.environment("WAYPOINT_READY_WITH_REFUSED", Some("true")).edit(edit)?.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn istiod_s_configuration_is_judged_as_the_proxy_judges_it() -> Result<()> {
    let mesh = unsupported().await?;
    let output = mesh.waypoint.run_beside(&["parity", "--json"]).await?;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let served = plain_get(mesh.waypoint.port(15000), "/unsupported").await?.json();
    assert_eq!(refused(&told), refused(&served));
    assert!(refused(&told).contains(WEB_CHAIN));
    let route = told["refused"].as_array().into_iter().flatten().find(|one| one["origin"] == "VirtualService shop/web");
    let route = route.with_context(|| format!("no route was traced: {told:#}"))?;
    assert!(route["object"].as_str().is_some_and(|object| object.starts_with("Service shop/web, port 80")), "{route}");

    let text = mesh.waypoint.run_beside(&["parity"]).await?;
    let text = String::from_utf8(text.stdout)?;
    for expected in ["refused: not used", "  Service shop/web, port 80", "VirtualService shop/web: ", "listed: "] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_envoy_s_own_dump_is_judged_alike_and_what_is_no_dump_is_no_answer() -> Result<()> {
    let mesh = Mesh::start("07-telemetry").await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let dump = plain_get(envoy.admin(), "/config_dump?include_eds").await?.text();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("dump.json");
    std::fs::write(&path, &dump)?;
    let path = path.to_str().context("a path that is no text")?;
    let output = mesh.waypoint.run_beside(&["parity", path, "--json"]).await?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let served = plain_get(mesh.waypoint.port(15000), "/unsupported").await?.json();
    // The oracle has its certificates in its configuration, which no Envoy of Istio has, and is told so by name.
    assert_eq!((refused(&served), refused(&told)), (BTreeSet::new(), BTreeSet::from(["connect_terminate".to_owned()])));
    let tls = "filter_chains[default].transport_socket.typed_config.common_tls_context.";
    let elsewhere = |one: &&Value| !one["path"].as_str().is_some_and(|path| path.starts_with(tls));
    assert_eq!(told["refused"].as_array().into_iter().flatten().find(elsewhere), None);

    std::fs::write(path, "{\"resources\": []}")?;
    let none = mesh.waypoint.run_beside(&["parity", path]).await?;
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("not a configuration dump"), "{none:?}");
    Ok(())
}
