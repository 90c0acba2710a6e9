//! `waypoint parity`: the same is said before a swap as is done after it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::plain_get;
use tests::scenario::{Mesh, Scenario, WEB, WEB_CHAIN};
use tests::workload::App;

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

    let web = named(&told, "unused").remove("VirtualService shop/web").context("its VirtualService is in use")?;
    assert_eq!((&web["chains"], web["routes"].as_array().map(Vec::len)), (&json!([WEB_CHAIN]), Some(1)));
    let service = named(&told, "honoured").remove("Service shop/web").context("its cluster is not in use")?;
    assert_eq!((&service["is_whole"], &service["chains"], &service["clusters"]), (&json!(false), &json!([]), &json!([WEB_CHAIN])));

    let text = mesh.waypoint.run_beside(&["parity"]).await?;
    let text = String::from_utf8(text.stdout)?;
    let service = format!("\n  Service shop/web, port 80  [{WEB_CHAIN}]\n");
    for expected in ["refused: not used", &service, "VirtualService shop/web: ", "\nlisted: ", "\nhonoured: ", "shop/auto (in part)"] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
    Ok(())
}

/// What is told of objects, by their names.
fn named(answer: &Value, list: &str) -> BTreeMap<String, Value> {
    let all = answer[list].as_array().into_iter().flatten();
    all.filter_map(|one| Some((one["object"].as_str()?.to_owned(), one.clone()))).collect()
}

/// How many chains, clusters, routes and rules came from an object.
fn parts(of: &Value) -> [usize; 4] {
    let length = |name: &str| of[name].as_array().map_or(0, Vec::len);
    let rules = of["rules"].as_u64().and_then(|rules| usize::try_from(rules).ok()).unwrap_or_default();
    [length("chains"), length("clusters"), length("routes"), rules]
}

/// A dump as Envoy's admin port has it.
fn dump(scenario: &Scenario) -> Value {
    let all = |kind, inside: fn(&Value) -> Value| scenario.resources(kind).map(|(_, resource)| inside(resource)).collect::<Vec<_>>();
    json!({"configs": [
        {"dynamic_active_clusters": all(Kind::Cluster, |one| json!({"cluster": one}))},
        {"dynamic_endpoint_configs": all(Kind::Endpoints, |one| json!({"endpoint_config": one}))},
        {"dynamic_listeners": all(Kind::Listener, |one| json!({"active_state": {"listener": one}}))},
    ]})
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_honoured_is_told_by_object_and_ends_with_success() -> Result<()> {
    let policies: [(&str, [usize; 4]); 5] = [
        ("AuthorizationPolicy shop/reviews-allow", [1, 0, 0, 4]),
        ("AuthorizationPolicy shop/reviews-deny", [1, 0, 0, 2]),
        ("AuthorizationPolicy shop/reviews-dry-run", [1, 0, 0, 1]),
        ("AuthorizationPolicy shop/web-custom", [1, 0, 0, 1]),
        ("AuthorizationPolicy shop/gateway-wide-deny", [11, 0, 0, 11]),
    ];
    let tokens = [
        ("RequestAuthentication of issuer https://issuer.example", [1, 0, 0, 0]),
        ("RequestAuthentication of issuer https://second.example", [1, 0, 0, 0]),
    ];
    let routing: [(&str, [usize; 4]); 3] = [
        ("VirtualService shop/reviews", [1, 0, 12, 0]),
        ("DestinationRule shop/reviews", [0, 4, 0, 0]),
        ("Service shop/web", [1, 1, 1, 0]),
    ];
    let by_method = [("HTTPRoute or GRPCRoute shop/ratings", [1, 0, 2, 0])];
    let scenarios = [("05-authz", &policies[..]), ("06-jwt", &tokens), ("04-virtualservice", &routing), ("03-grpcroute", &by_method)];
    for (scenario, expected) in scenarios {
        let mesh = Mesh::start(scenario).await?;
        let output = mesh.waypoint.run_beside(&["parity", "--json"]).await?;
        let told: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!((output.status.code(), &told["refused"], &told["unused"]), (Some(0), &json!([]), &json!([])), "{scenario}");
        let honoured = named(&told, "honoured");
        for (object, made) in expected {
            let found = honoured.get(*object).with_context(|| format!("no {object} in {:?}", honoured.keys()))?;
            assert_eq!((parts(found), &found["is_whole"]), (*made, &json!(true)), "{object}: {found}");
        }

        // From an Envoy's dump the same is told.
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("dump.json");
        std::fs::write(&path, dump(mesh.scenario()).to_string())?;
        let of_dump = mesh.waypoint.run_beside(&["parity", path.to_str().context("a path that is no text")?, "--json"]).await?;
        assert_eq!((of_dump.status.code(), serde_json::from_slice::<Value>(&of_dump.stdout)?), (Some(0), told), "{scenario}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_is_told_with_the_objects_it_came_from() -> Result<()> {
    let edit = |scenario: &mut Scenario| {
        let chains: Vec<_> = scenario.resource(Kind::Listener, "main_internal")?["filter_chains"].as_array().context("no chains")?.clone();
        for name in chains.iter().filter_map(|chain| chain["name"].as_str()) {
            if let Ok(manager) = scenario.http(name) {
                manager["drain_timeout"] = json!("5s");
            }
        }
        let cluster = scenario.resource(Kind::Cluster, WEB_CHAIN)?;
        cluster["metadata"]["filter_metadata"]["istio"]["config"] =
            json!("/apis/networking.istio.io/v1/namespaces/shop/destination-rule/web");
        cluster["close_connections_on_host_health_failure"] = json!(true);
        Ok(())
    };
    let mesh = Mesh::builder("01-plain")?.edit(edit)?.start().await?;
    let told: Value = serde_json::from_slice(&mesh.waypoint.run_beside(&["parity", "--json"]).await?.stdout)?;
    let counted = plain_get(mesh.waypoint.port(15000), "/unsupported").await?.json();
    let counts = |answer: &Value| -> BTreeSet<(String, String, u64)> {
        let all = answer["listed"].as_array().into_iter().flatten();
        all.map(|one| (one["type"].to_string(), one["field"].to_string(), one["count"].as_u64().unwrap_or_default())).collect()
    };
    assert_eq!(counts(&told), counts(&counted));
    let objects = |field: &str| -> BTreeMap<String, u64> {
        let all = told["listed"].as_array().into_iter().flatten();
        let objects = all.filter(|one| one["field"] == field).flat_map(|one| one["objects"].as_array().into_iter().flatten());
        objects.filter_map(|one| Some((one["object"].as_str()?.to_owned(), one["count"].as_u64()?))).collect()
    };
    let of_chains = objects("drain_timeout");
    assert_eq!((of_chains.len(), of_chains.get("Service shop/web, port 80")), (7, Some(&1)), "{of_chains:?}");
    assert_eq!(objects("close_connections_on_host_health_failure"), BTreeMap::from([("DestinationRule shop/web".to_owned(), 1)]));

    // The first five, for people.
    let text = String::from_utf8(mesh.waypoint.run_beside(&["parity"]).await?.stdout)?;
    let shown: Vec<_> = of_chains.keys().take(5).map(String::as_str).collect();
    for expected in [
        "\n       7  HttpConnectionManager.drain_timeout: draining has our own time limit\n",
        &format!("\n          in {} and 2 more\n", shown.join("; ")),
        "\n          in DestinationRule shop/web\n",
    ] {
        assert!(text.contains(expected), "no {expected:?} in\n{text}");
    }
    Ok(())
}

/// What istiod sent where EnvoyFilters inject Lua and a local rate limit everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn filters_that_the_operator_names_are_left_out_and_listed() -> Result<()> {
    const NAMED: &str = "envoy.filters.http.lua, envoy.filters.http.local_ratelimit";
    let edit = |scenario: &mut Scenario| {
        // The recording has no extensions; this one lets pass what it does not see.
        let name = "extensions.istio.io/trafficextension/shop.wasm~istio-translated-wasmplugin";
        let wasm = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
        let config = json!({"@type": wasm, "config": {"failure_policy": "FAIL_OPEN"}});
        scenario.insert(Kind::Extension, name, json!({"name": name, "typed_config": config}));
        scenario.keep_endpoints(WEB_CHAIN, 1)
    };
    let builder = Mesh::builder("10-unsupported")?.environment("WAYPOINT_SKIP_FILTERS", Some(NAMED));
    let mesh = builder.edit(edit)?.start().await?;
    let _web = mesh.pod("web-v1-1", App::Http).await?;
    let answer = mesh.connect("frontend-0").await?.get(WEB, "/").await?;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());

    let served = plain_get(mesh.waypoint.port(15000), "/unsupported").await?.json();
    assert_eq!(served["refused"], json!([]));
    let lua = |answer: &Value| {
        let mut listed = answer["listed"].as_array().cloned().unwrap_or_default().into_iter();
        listed.find(|one| one["type"] == "envoy.extensions.filters.http.lua.v3.Lua").context("it is not listed")
    };
    // Seven chains and the tunnel; the rate limit is obeyed in chains.
    assert_eq!((&lua(&served)?["field"], &lua(&served)?["count"]), (&json!("skipped"), &json!(8)));
    let metrics = plain_get(mesh.waypoint.port(15020), "/stats/prometheus").await?.text();
    let counted = r#"waypoint_unsupported_fields{field="skipped",type="envoy.extensions.filters.http.lua.v3.Lua"} 8"#;
    assert!(metrics.lines().any(|line| line == counted), "no {counted} in {metrics}");

    let told = mesh.waypoint.run_beside(&["parity", "--json"]).await?;
    assert_eq!(told.status.code(), Some(0));
    let told = lua(&serde_json::from_slice(&told.stdout)?)?;
    assert_eq!(told["missing"], "the filter is left out, as WAYPOINT_SKIP_FILTERS says");
    assert_eq!((&told["count"], told["objects"].as_array().map(Vec::len)), (&json!(8), Some(8)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_asked_is_no_answer() -> Result<()> {
    let mesh = Mesh::start("01-plain").await?;
    for arguments in [&["parity", "a.json", "b.json"][..], &["parity", "/nowhere/dump.json"], &["explain", "web.shop:80", "--never", "x"]] {
        let output = mesh.waypoint.run_beside(arguments).await?;
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{arguments:?}: {output:?}");
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
