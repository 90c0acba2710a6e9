//! Subsets of clusters beside a real Envoy: which pod a request gets whose route asks for some of them.
//!
//! Not for: subsets as istiod makes them, which are clusters of their own; `cluster_oracle` has these.

use std::time::Duration;

use anyhow::{Context, Result};
use http::StatusCode;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::exchange_raw;
use tests::scenario::{DB, DB_CHAIN, Mesh, REVIEWS, REVIEWS_CHAIN, Scenario};
use tests::wait::{Look, until};
use tests::workload::App;

/// What the three pods say of themselves, and may be asked for: of the example in Envoy's documentation.
fn said() -> [Value; 3] {
    [
        json!({"v": "1.0", "stage": "prod", "shard": 1, "zone": {"a": [true, null], "b": "x"}}),
        json!({"v": "1.1", "stage": "canary", "shard": "1"}),
        json!({"v": "1.2-pre", "stage": "dev"}),
    ]
}

fn lb(labels: &Value) -> Value {
    json!({"filter_metadata": {"envoy.lb": labels}})
}

/// A cluster of the same pods that is divided.
fn divided(scenario: &mut Scenario, name: &str, rules: Value) -> Result<()> {
    let mut cluster = scenario.resource(Kind::Cluster, REVIEWS_CHAIN)?.clone();
    cluster["name"] = name.into();
    cluster["lb_subset_config"] = rules;
    scenario.insert(Kind::Cluster, name, cluster);
    Ok(())
}

pub(crate) fn subsets(scenario: &mut Scenario) -> Result<()> {
    let endpoints = &mut scenario.resource(Kind::Endpoints, REVIEWS_CHAIN)?["endpoints"];
    let groups = endpoints.as_array_mut().context("no endpoints")?.iter_mut();
    let all = groups.filter_map(|group| group["lb_endpoints"].as_array_mut()).flatten();
    for (endpoint, said) in all.zip(said()) {
        endpoint["metadata"]["filter_metadata"]["envoy.lb"] = said;
    }
    let documented = json!({
        "fallback_policy": "DEFAULT_SUBSET",
        "default_subset": {"stage": "prod"},
        "subset_selectors": [{"keys": ["v", "stage"]}, {"keys": ["stage"], "fallback_policy": "NO_FALLBACK"}],
    });
    divided(scenario, "documented", documented.clone())?;
    let mut turned = documented;
    turned["subset_selectors"] = json!([{"keys": ["stage"], "fallback_policy": "NO_FALLBACK"}, {"keys": ["v", "stage"]}]);
    divided(scenario, "turned", turned)?;
    divided(scenario, "nowhere", json!({"subset_selectors": [{"keys": ["shard"]}, {"keys": ["zone"]}]}))?;
    let keys = json!({
        "subset_selectors": [
            {"keys": ["stage"], "fallback_policy": "DEFAULT_SUBSET"},
            {"keys": ["stage", "v"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["stage"]},
        ],
        "default_subset": {"shard": "1"},
    });
    divided(scenario, "keys", keys)?;
    let panics = json!({"fallback_policy": "DEFAULT_SUBSET", "default_subset": {"v": "9"}, "panic_mode_any": true, "subset_selectors": [{"keys": ["v"]}]});
    divided(scenario, "panics", panics)?;
    divided(scenario, "undivided", json!({"fallback_policy": "NO_FALLBACK"}))?;
    let assignment = scenario.resource(Kind::Endpoints, REVIEWS_CHAIN)?.clone();
    divided(scenario, "static", json!({"fallback_policy": "NO_FALLBACK", "subset_selectors": [{"keys": ["v"]}]}))?;
    let cluster = scenario.resource(Kind::Cluster, "static")?;
    cluster["type"] = "STATIC".into();
    cluster["load_assignment"] = assignment;
    cluster.as_object_mut().context("no cluster")?.remove("eds_cluster_config");
    let routes = requests().into_iter().enumerate().map(|(at, (cluster, asked, of_share, _))| {
        let path = json!({"prefix": format!("/{at}/"), "case_sensitive": true});
        let route = match of_share {
            None => json!({"cluster": cluster, "metadata_match": lb(&asked)}),
            Some(share) => {
                let shares = json!([{"name": cluster, "weight": 1, "metadata_match": lb(&share)}]);
                json!({"weighted_clusters": {"clusters": shares}, "metadata_match": lb(&asked)})
            }
        };
        json!({"match": path, "route": route})
    });
    scenario.add_routes(REVIEWS_CHAIN, routes.collect())
}

/// Cluster, what the route asks for, what the share does, and who answers; none: any pod.
pub(crate) fn requests() -> Vec<(&'static str, Value, Option<Value>, Option<&'static str>)> {
    const ONE: Option<&str> = Some("reviews-v1-1");
    const TWO: Option<&str> = Some("reviews-v2-2");
    const THREE: Option<&str> = Some("reviews-v3-3");
    const NOBODY: Option<&str> = Some("");
    vec![
        ("documented", json!({"stage": "canary"}), None, TWO),
        ("documented", json!({"v": "1.2-pre", "stage": "dev"}), None, THREE),
        ("documented", json!({"v": "1.1"}), None, ONE),
        ("documented", json!({"other": "x"}), None, ONE),
        ("documented", json!({}), None, ONE),
        // Not as documented, where nobody is said: what begins with the keys of a selector before has its fallback lost.
        ("documented", json!({"stage": "test"}), None, ONE),
        ("turned", json!({"stage": "test"}), None, NOBODY),
        ("turned", json!({"stage": "dev"}), None, THREE),
        ("turned", json!({"v": "1.1", "stage": "dev"}), None, ONE),
        ("documented", json!({"stage": "canary"}), Some(json!({"stage": "dev"})), THREE),
        ("documented", json!({"v": "1.1"}), Some(json!({"stage": "canary"})), TWO),
        ("documented", json!({"v": "1.0", "stage": "prod"}), Some(json!({"v": "1.1", "stage": "canary"})), TWO),
        ("documented", json!({}), Some(json!({"stage": "dev"})), THREE),
        ("documented", json!({"stage": "dev"}), Some(json!({})), THREE),
        ("nowhere", json!({}), None, NOBODY),
        ("nowhere", json!({"shard": 1}), None, ONE),
        ("nowhere", json!({"shard": "1"}), None, TWO),
        ("nowhere", json!({"shard": true}), None, NOBODY),
        ("nowhere", json!({"zone": {"b": "x", "a": [true, null]}}), None, ONE),
        ("nowhere", json!({"zone": {"b": "x", "a": [true]}}), None, NOBODY),
        ("nowhere", json!({"shard": 1, "v": "1.0"}), None, NOBODY),
        ("keys", json!({"stage": "dev", "v": "9"}), None, THREE),
        ("keys", json!({"stage": "none", "v": "9"}), None, TWO),
        ("keys", json!({"v": "1.0"}), None, NOBODY),
        ("panics", json!({"v": "1.1"}), None, TWO),
        ("panics", json!({}), None, None),
        ("undivided", json!({"v": "1.1"}), None, None),
        ("static", json!({"v": "1.1"}), None, TWO),
        ("static", json!({"v": "9"}), None, NOBODY),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_gets_the_pods_that_its_route_asks_for_as_in_envoy() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(subsets)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let mut pods = Vec::new();
    for version in 1..=3 {
        pods.push(mesh.pod(&format!("reviews-v{version}-{version}"), App::Http).await?);
    }
    let expected: Vec<_> = requests().into_iter().map(|(.., pod)| pod).collect();
    for (proxy, address) in [("here", mesh.hbone()), ("in Envoy", envoy.hbone())] {
        let connection = mesh.peer("frontend-0")?.connect(address).await?;
        let mut seen = Vec::new();
        for (at, pod) in expected.iter().enumerate() {
            let answer = connection.get(REVIEWS, &format!("/{at}/")).await?;
            if answer.status == StatusCode::SERVICE_UNAVAILABLE {
                assert_eq!(answer.text(), "no healthy upstream", "{proxy}, /{at}/");
                seen.push(Some(String::new()));
                continue;
            }
            let told = answer.json()["pod"].as_str().map(str::to_owned).context("no pod has answered")?;
            // Whoever it is, where any pod will do.
            seen.push(Some(told).filter(|_| pod.is_some()));
        }
        let expected: Vec<_> = expected.iter().map(|pod| pod.map(str::to_owned)).collect();
        assert_eq!(seen, expected, "{proxy}");
    }
    Ok(())
}

/// A route with a copy to a cluster that is divided, and a TCP service that is, too.
fn copies_and_connections(scenario: &mut Scenario) -> Result<()> {
    subsets(scenario)?;
    let mirror = json!([{"cluster": "documented"}]);
    let dev = lb(&json!({"stage": "dev"}));
    let shares = json!([{"name": "undivided", "weight": 1, "metadata_match": lb(&json!({"stage": "canary"}))}]);
    let routes = [
        ("/dev/", json!({"cluster": "undivided", "metadata_match": dev, "request_mirror_policies": mirror})),
        ("/canary/", json!({"weighted_clusters": {"clusters": shares}, "metadata_match": dev, "request_mirror_policies": mirror})),
        ("/nothing/", json!({"cluster": "undivided", "request_mirror_policies": mirror})),
    ];
    let routes = routes.map(|(path, route)| json!({"match": {"prefix": path}, "route": route}));
    scenario.add_routes(REVIEWS_CHAIN, routes.to_vec())?;
    let endpoints = &mut scenario.resource(Kind::Endpoints, DB_CHAIN)?["endpoints"][0]["lb_endpoints"];
    let first = endpoints[0].clone();
    let mut second = first.clone();
    // Nobody is there.
    let (at, nowhere) = ("envoy.filters.listener.original_dst", "127.0.0.1:9");
    second["metadata"]["filter_metadata"][at]["local"] = nowhere.into();
    second["endpoint"]["address"]["envoy_internal_address"]["endpoint_id"] = nowhere.into();
    second["metadata"]["filter_metadata"]["envoy.lb"] = json!({"stage": "dev"});
    *endpoints = json!([first, second]);
    endpoints[0]["metadata"]["filter_metadata"]["envoy.lb"] = json!({"stage": "prod"});
    scenario.resource(Kind::Cluster, DB_CHAIN)?["lb_subset_config"] = json!({
        "fallback_policy": "DEFAULT_SUBSET",
        "default_subset": {"stage": "prod"},
        "subset_selectors": [{"keys": ["stage"]}],
    });
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_ask_for_the_subset_of_their_originals_and_tcp_for_none_as_in_envoy() -> Result<()> {
    let mesh = Mesh::builder("01-plain")?.edit(copies_and_connections)?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    const NAMES: [&str; 3] = ["reviews-v1-1", "reviews-v2-2", "reviews-v3-3"];
    let mut pods = Vec::new();
    for name in NAMES {
        pods.push(mesh.pod(name, App::Http).await?);
    }
    let _db = mesh.pod("db-v1-1", App::Tcp { greets: false }).await?;
    for (name, proxy) in [("here", mesh.hbone()), ("envoy", envoy.hbone())] {
        let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
        for (path, copied_to) in [("dev", 2), ("canary", 1), ("nothing", 0)] {
            let path = format!("/{path}/{name}");
            let original = connection.get(REVIEWS, &path).await?.json()["pod"].clone();
            let asked = format!("GET {path}");
            let mut seen = until("a copy", Duration::from_secs(10), async || {
                let seen: Vec<_> = pods.iter().map(|pod| pod.record().requests(&asked)).collect();
                Ok(if seen.iter().sum::<u64>() == 2 { Look::Done(seen) } else { Look::NotYet(format!("{seen:?}")) })
            })
            .await?;
            let original = NAMES.iter().position(|pod| original == *pod).context("no pod has answered")?;
            seen[original] -= 1;
            assert_eq!(seen.iter().position(|count| *count == 1), Some(copied_to), "{name} {path}");
        }
        for _ in 0..8 {
            let tunnel = connection.tunnel(DB).await?;
            assert_eq!(exchange_raw(tunnel, b"select 1", true).await?, b"echo:select 1", "{name}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subset_follows_what_its_endpoints_say() -> Result<()> {
    let mut mesh = Mesh::builder("01-plain")?.edit(subsets)?.start().await?;
    let _one = mesh.pod("reviews-v1-1", App::Http).await?;
    let _three = mesh.pod("reviews-v3-3", App::Http).await?;
    let connection = mesh.connect("frontend-0").await?;
    let asked = |at: usize| format!("/{at}/");
    assert_eq!(connection.get(REVIEWS, &asked(1)).await?.json()["pod"], "reviews-v3-3");
    mesh.push_accepted(|scenario| {
        let text = serde_json::to_string(scenario.resource(Kind::Endpoints, REVIEWS_CHAIN)?)?;
        let moved = text.replace("\"stage\":\"dev\"", "\"stage\":\"gone\"");
        *scenario.resource(Kind::Endpoints, REVIEWS_CHAIN)? = serde_json::from_str(&moved)?;
        Ok(())
    })
    .await?;
    until("a subset that is gone", Duration::from_secs(10), async || {
        let answer = connection.get(REVIEWS, &asked(1)).await?;
        Ok(if answer.json()["pod"] == "reviews-v1-1" { Look::Done(()) } else { Look::NotYet(answer.text()) })
    })
    .await
}
