//! A recorded mesh as workers read it: through the same translation and the same store as in the process.
//!
//! Not for: connections. Invariant: what is measured was configured by messages of istiod, edited at most, never put together by hand.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use model::chain::{Chain, ChainKind, HttpChain};
use serde_json::{Value, json};
use telemetry::export::CollectorConnector;
use telemetry::{Telemetry, TelemetrySettings};
use tests::fake_istiod::Kind;
use tests::scenario::{Scenario, WEB_CHAIN};
use tokio::runtime::Handle;
use waypoint::state::published::{Published, ServedChain};
use waypoint::state::store::Store;
use xds_client::ads::{Resource, ResourceType, Update, Verdict};
use xds_client::apply::Applier;
use xds_client::observer::Change;

/// How soon lines and spans leave: what a row waits for between its windows.
const FLUSH_INTERVAL: Duration = Duration::from_millis(5);

/// The recording with logs, metrics and spans, its service `web` having one endpoint.
pub fn recorded() -> Result<Scenario> {
    let mut scenario = Scenario::recorded("07-telemetry")?;
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    Ok(scenario)
}

/// The process's telemetry as the binary sets it up.
pub fn telemetry(control: &Handle, connector: Arc<dyn CollectorConnector>) -> Arc<Telemetry> {
    let settings = TelemetrySettings {
        node_id: "waypoint~10.244.0.100~waypoint-7d4b8c6d9f-x2x4z.shop~shop.svc.cluster.local".into(),
        log_flush_interval: FLUSH_INTERVAL,
        span_flush_interval: FLUSH_INTERVAL,
        ..TelemetrySettings::default()
    };
    Telemetry::new(settings, control.clone(), connector)
}

/// One response of istiod with these resources.
pub fn update(of: ResourceType, resources: Vec<(String, Vec<u8>)>) -> Update {
    let resource = |(name, body)| Resource { name, version: String::new(), body: Bytes::from(body) };
    Update { of, resources: resources.into_iter().map(resource).collect(), removed: Vec::new() }
}

/// Publishes a scenario.
pub fn publish(scenario: &Scenario, telemetry: &Arc<Telemetry>) -> Result<Arc<Published>> {
    let published = Arc::new(Published::default());
    let mut store = Store::new(Arc::clone(&published), Arc::clone(telemetry));
    let mut applier = Applier::default();
    for kind in Kind::ALL {
        let of = ResourceType::from_type_url(&kind.type_url()).context("a type of ours")?;
        let outcome = applier.apply(update(of, scenario.encoded(kind, |_, _| true)?));
        if let Verdict::Nack(reason) = outcome.applied.verdict {
            // The recording holds services that are refused; the one that is measured must not be.
            ensure!(!reason.contains(WEB_CHAIN), "{reason}");
        }
        outcome.changes.into_iter().for_each(|change| take(&mut store, change));
    }
    store.publish();
    Ok(published)
}

/// Does what a change says.
pub fn take(store: &mut Store, change: Change) {
    match change {
        Change::Listeners(listeners) => store.set_listeners(listeners),
        Change::ClusterUpserted(cluster) => store.upsert_cluster(cluster),
        Change::EndpointsUpserted(name, set) => store.set_endpoints(&name, set),
        Change::WorkloadUpserted(workload) => store.upsert_workload(workload),
        // Nothing is taken back in these rows.
        Change::ClusterRefused(..) | Change::ClusterRemoved(_) | Change::EndpointsRemoved(_) | Change::WorkloadRemoved(_) => {}
        // No cluster of these rows names a secret.
        Change::SecretUpserted(..) | Change::SecretRemoved(_) => {}
    }
}

/// The chain of `web`.
pub fn web(published: &Published) -> Result<Arc<ServedChain>> {
    let generation = published.generation().context("no listeners")?;
    generation.chains.get(WEB_CHAIN).map(Arc::clone).context("no chain of web")
}

/// The chain of `web` of a scenario whose telemetry is of no interest.
pub fn web_chain(scenario: &Scenario) -> Result<Arc<Chain>> {
    scenario.compiled(WEB_CHAIN)
}

/// What an HTTP chain does.
pub fn http(chain: &Chain) -> Result<&HttpChain> {
    match &chain.kind {
        ChainKind::Http(http) => Ok(http),
        ChainKind::Refused { reasons, .. } => bail!("the chain was refused: {reasons:?}"),
        ChainKind::Tcp(_) => bail!("the chain is TCP"),
    }
}

/// An ALLOW filter of `policies` policies with `rules` rules each, as istiod writes it: by namespace, by service account and by path in
/// turn. Only the last rule matches the request that rows make.
pub fn allow(policies: usize, rules: usize) -> Value {
    let mut all = serde_json::Map::new();
    let last = policies * rules - 1;
    for at in 0..=last {
        let name = format!("ns[shop]-policy[allow-{:03}]-rule[{}]", at / rules, at % rules);
        all.insert(name, rule(at, at == last));
    }
    json!({
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"policies": all},
            "shadow_rules_stat_prefix": "istio_dry_run_allow_",
        },
    })
}

fn rule(at: usize, matches: bool) -> Value {
    let principal = |test: Value| {
        let id = json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": test}});
        json!([{"and_ids": {"ids": [{"or_ids": {"ids": [id]}}]}}])
    };
    let anyone = json!([{"and_ids": {"ids": [{"any": true}]}}]);
    let anything = json!([{"and_rules": {"rules": [{"any": true}]}}]);
    let path = |path: String| json!([{"and_rules": {"rules": [{"or_rules": {"rules": [{"url_path": {"path": {"exact": path}}}]}}]}}]);
    let (permissions, principals) = match at % 3 {
        0 => {
            let namespace = if matches { "clients".to_owned() } else { format!("team-{at}") };
            (anything, principal(json!({"safe_regex": {"regex": format!(".*/ns/{namespace}/.*")}})))
        }
        1 => {
            let account = if matches { "frontend".to_owned() } else { format!("account-{at}") };
            (anything, principal(json!({"safe_regex": {"regex": format!("spiffe://.+/ns/clients/(.+/|)sa/{account}(/.+)?")}})))
        }
        _ => (path(if matches { "/ok".to_owned() } else { format!("/v1/resource-{at}") }), anyone),
    };
    json!({"permissions": permissions, "principals": principals})
}
