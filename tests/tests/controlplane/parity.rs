//! `waypoint parity` in the waypoint's pod: what istiod's objects have become, by their own names.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::wait::{Look, until};

use crate::stage::{EFFECT_DEADLINE, Stage};

const OBJECTS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: by-user, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: reviews, port: 9080}]
  rules:
  - matches: [{headers: [{name: x-user, value: alice}]}]
    backendRefs: [{name: web, port: 80}]
  - backendRefs: [{name: reviews, port: 9080}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/clients/sa/frontend]}}]
  - to: [{operation: {methods: [GET]}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: spread, namespace: shop}
spec:
  host: web.shop.svc.cluster.local
  trafficPolicy: {loadBalancer: {simple: RANDOM}}
";

/// A filter that no waypoint but Envoy has.
const FOREIGN: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: foreign, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]
  configPatches:
  - applyTo: HTTP_FILTER
    match: {listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.lua
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          inlineCode: 'function envoy_on_request(handle) end'
";

/// Exit code and answer.
async fn parity(stage: &Stage) -> Result<(Option<i32>, Value)> {
    let output = stage.waypoint.run_beside(&["parity", "--json"]).await?;
    let told = serde_json::from_slice(&output.stdout);
    Ok((output.status.code(), told.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?))
}

/// How many chains, clusters, routes and rules each object has become.
fn honoured(told: &Value) -> BTreeMap<String, [u64; 4]> {
    let length = |of: &Value| of.as_array().map_or(0, |list| u64::try_from(list.len()).unwrap_or(u64::MAX));
    let all = told["honoured"].as_array().into_iter().flatten();
    all.filter_map(|one| {
        let rules = one["rules"].as_u64().unwrap_or_default();
        Some((one["object"].as_str()?.to_owned(), [length(&one["chains"]), length(&one["clusters"]), length(&one["routes"]), rules]))
    })
    .collect()
}

/// Objects as `kubectl` names them, with success; what is refused by name, without.
pub async fn objects_are_named(stage: &mut Stage) -> Result<()> {
    stage.plane.apply_in("shop", OBJECTS).await?;
    let expected = [
        ("AuthorizationPolicy shop/readers", [1, 0, 0, 2]),
        ("DestinationRule shop/spread", [0, 1, 0, 0]),
        ("HTTPRoute or GRPCRoute shop/by-user", [1, 0, 2, 0]),
    ];
    until("all objects are honoured", EFFECT_DEADLINE, async || {
        let (code, told) = parity(stage).await?;
        ensure!(code == Some(0) && told["refused"] == Value::Array(Vec::new()), "it ended with {code:?}: {told:#}");
        let honoured = honoured(&told);
        let has_all = expected.iter().all(|(object, made)| honoured.get(*object) == Some(made));
        Ok(if has_all { Look::Done(()) } else { Look::NotYet(format!("{honoured:?}")) })
    })
    .await?;
    let text = String::from_utf8(stage.waypoint.run_beside(&["parity"]).await?.stdout)?;
    for line in
        ["refused: nothing", "  AuthorizationPolicy              shop/readers\n", "  HTTPRoute or GRPCRoute           shop/by-user\n"]
    {
        ensure!(text.contains(line), "no {line:?} in {text}");
    }

    stage.plane.apply_in("shop", FOREIGN).await?;
    until("the EnvoyFilter's filter is refused", EFFECT_DEADLINE, async || {
        let (code, told) = parity(stage).await?;
        let refused = told["refused"].as_array().context("no list of what is refused")?;
        let by_name = refused.iter().any(|one| {
            let of = |name: &str| one[name].as_str().unwrap_or_default();
            of("object").starts_with("Service shop/web, port 80  [") && of("reason").contains("filter envoy.filters.http.lua")
        });
        ensure!(code == Some(i32::from(!refused.is_empty())), "it ended with {code:?}: {told:#}");
        Ok(if by_name { Look::Done(()) } else { Look::NotYet(format!("{refused:?}")) })
    })
    .await?;
    stage.plane.delete("networking.istio.io/v1alpha3", "EnvoyFilter", "shop", "foreign").await?;
    stage.plane.delete("gateway.networking.k8s.io/v1", "HTTPRoute", "shop", "by-user").await?;
    stage.plane.delete("security.istio.io/v1", "AuthorizationPolicy", "shop", "readers").await?;
    stage.plane.delete("networking.istio.io/v1", "DestinationRule", "shop", "spread").await?;
    until("nothing is refused any more", EFFECT_DEADLINE, async || {
        let (code, told) = parity(stage).await?;
        Ok(if code == Some(0) { Look::Done(()) } else { Look::NotYet(told["refused"].to_string()) })
    })
    .await
}
