//! A recorded mesh made big: many services shaped like `web`, for measurements.
//!
//! Not for: tests of behaviour, which need no more than the recording has. Invariant: every added service is whole, its way in the
//! dispatch, its chain, its cluster and its endpoints; only names and addresses differ from the recorded ones.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::fake_istiod::Kind;
use crate::scenario::{Scenario, WEB_CHAIN};

/// Virtual addresses of added services begin here.
const FIRST_ADDRESS: u32 = u32::from_be_bytes([10, 112, 0, 0]);
/// The host and the address of the service that is copied.
const HOST: &str = "web.shop.svc.cluster.local";
const ADDRESS: &str = "10.96.1.1";
/// As many as the range of addresses holds.
const RANGE: u32 = 65_536;

/// The chain and the cluster of the added service `number`.
#[must_use]
pub fn chain_of(number: u32) -> String {
    WEB_CHAIN.replace(HOST, &host_of(number))
}

fn host_of(number: u32) -> String {
    format!("service-{number:05}.shop.svc.cluster.local")
}

/// Adds so many services.
///
/// # Errors
/// There are more than an address range holds, or the recording has no `web`.
pub fn add_services(scenario: &mut Scenario, count: u32) -> Result<()> {
    ensure!(count <= RANGE, "{count} services are more than {RANGE}");
    let chain = scenario.chain(WEB_CHAIN)?.to_string();
    let cluster = scenario.resource(Kind::Cluster, WEB_CHAIN)?.to_string();
    let endpoints = scenario.resource(Kind::Endpoints, WEB_CHAIN)?.to_string();
    let way = ways(scenario)?.iter().find(|way| way["ranges"][0]["address_prefix"] == ADDRESS);
    let way = way.context("the dispatch does not know web")?.to_string();
    let mut chains = Vec::new();
    let mut added_ways = Vec::new();
    for number in 0..count {
        let copy = |text: &str| -> Result<Value> {
            let address = Ipv4Addr::from(FIRST_ADDRESS + number).to_string();
            let text = text.replace(HOST, &host_of(number)).replace(&format!("\"{ADDRESS}\""), &format!("\"{address}\""));
            Ok(serde_json::from_str(&text)?)
        };
        chains.push(copy(&chain)?);
        added_ways.push(copy(&way)?);
        scenario.insert(Kind::Cluster, &chain_of(number), copy(&cluster)?);
        scenario.insert(Kind::Endpoints, &chain_of(number), copy(&endpoints)?);
    }
    ways(scenario)?.extend(added_ways);
    let listener = scenario.resource(Kind::Listener, "main_internal")?;
    listener["filter_chains"].as_array_mut().context("no chains")?.extend(chains);
    Ok(())
}

/// Three AuthorizationPolicies that allow, as istiod writes them: one filter, a policy for each rule. The last holds for callers
/// of namespace `load`.
#[must_use]
pub fn three_policies() -> Value {
    let principal = |matcher: Value| json!({ "or_ids": { "ids": [{ "filter_state": { "key": "io.istio.peer_principal", "string_match": matcher } }] } });
    let path = |matcher: Value| json!({ "url_path": { "path": matcher } });
    let method = |name: &str| json!({ "header": { "name": ":method", "string_match": { "exact": name } } });
    let any_of = |rules: &[Value]| json!({ "or_rules": { "rules": rules } });
    let policy = |permissions: &[Value], principals: &[Value]| {
        json!({
            "permissions": [{ "and_rules": { "rules": permissions } }],
            "principals": [{ "and_ids": { "ids": principals } }],
        })
    };
    let admins = policy(
        &[any_of(&[path(json!({ "prefix": "/admin/" }))])],
        &[principal(json!({ "exact": "spiffe://cluster.local/ns/clients/sa/admin" }))],
    );
    let readers = policy(
        &[any_of(&[method("GET"), method("HEAD")]), any_of(&[path(json!({ "prefix": "/reviews/" })), path(json!({ "suffix": "/info" }))])],
        &[principal(json!({ "safe_regex": { "regex": ".*/ns/clients/.*" } }))],
    );
    let load = policy(
        &[json!({ "not_rule": any_of(&[path(json!({ "prefix": "/admin" }))]) })],
        &[principal(json!({ "safe_regex": { "regex": ".*/ns/load/.*" } }))],
    );
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": { "policies": {
                "ns[shop]-policy[admins]-rule[0]": admins,
                "ns[shop]-policy[readers]-rule[0]": readers,
                "ns[shop]-policy[the-load]-rule[0]": load,
            } },
            "shadow_rules_stat_prefix": "istio_dry_run_allow_",
        },
    })
}

/// The entries of the dispatch, by address.
fn ways(scenario: &mut Scenario) -> Result<&mut Vec<Value>> {
    let listener = scenario.resource(Kind::Listener, "main_internal")?;
    let matcher = &mut listener["filter_chain_matcher"]["matcher_tree"]["custom_match"]["typed_config"]["range_matchers"];
    matcher.as_array_mut().context("the dispatch is not by address")
}

/// Has `web` served by the one workload at this address and port, whose HBONE port is 15008.
///
/// # Errors
/// The recording has no `web`.
pub fn lead_to(scenario: &mut Scenario, endpoint: &str) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    let only = &mut scenario.resource(Kind::Endpoints, WEB_CHAIN)?["endpoints"][0]["lb_endpoints"][0];
    only["endpoint"]["address"]["envoy_internal_address"]["endpoint_id"] = endpoint.into();
    only["metadata"]["filter_metadata"]["envoy.filters.listener.original_dst"]["local"] = endpoint.into();
    Ok(())
}

/// Changes the one route of the added service `number`: its time limit.
///
/// # Errors
/// There is no such service.
pub fn change_route(scenario: &mut Scenario, number: u32, timeout_seconds: u32) -> Result<()> {
    let http = scenario.http(&chain_of(number))?;
    http["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["timeout"] = format!("{timeout_seconds}s").into();
    Ok(())
}
