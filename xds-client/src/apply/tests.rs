#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use envoy_types::pb::envoy::config::listener::v3::{Listener as ListenerProto, filter::ConfigType};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType::TypedConfig;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter as PbHttpFilter,
};
use envoy_types::pb::google::protobuf::Any;
use model::authority::Authority;
use model::chain::{ChainKind, EarlyFilter, HttpFilter};
use model::cluster::UpstreamProtocol;
use model::dispatch::{Lookup, SniffedProtocol};
use model::endpoint::EndpointAddress;
use model::listener::Listeners;
use model::rbac::RbacAction;
use model::route::{ClusterChoice, RouteAction};
use model::tracing::Dialect;
use prost::Message;
use serde_json::{Value, json};

use super::*;

mod extensions;
mod policies;
mod skipped;

const TYPES: [(ResourceType, &str); 4] = [
    (ResourceType::Cluster, "Cluster"),
    (ResourceType::Endpoint, "ClusterLoadAssignment"),
    (ResourceType::Listener, "Listener"),
    (ResourceType::Workload, "Workload"),
];

fn fixture(scenario: &str, file: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(scenario).join(format!("{file}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn update(of: ResourceType, file: &Value) -> Update {
    let type_url = file["type_url"].as_str().unwrap();
    let resource = |entry: &Value| Resource {
        name: entry["name"].as_str().unwrap().to_owned(),
        version: String::new(),
        body: xds_proto::message_from_json(type_url, &entry["resource"]).unwrap().into(),
    };
    Update { of, resources: file["resources"].as_array().unwrap().iter().map(resource).collect(), removed: Vec::new() }
}

/// What is held after a scenario was applied.
struct Applied {
    applier: Applier,
    listeners: Arc<Listeners>,
    clusters: HashMap<String, Arc<Cluster>>,
    endpoints: HashMap<String, Arc<EndpointSet>>,
    nacks: Vec<String>,
    wanted: Vec<Wanted>,
}

fn apply(scenario: &str) -> Applied {
    let mut applier = Applier::default();
    let (mut listeners, mut clusters, mut endpoints) = (None, HashMap::new(), HashMap::new());
    let (mut nacks, mut wanted) = (Vec::new(), Vec::new());
    for (of, file) in TYPES {
        let outcome = applier.apply(update(of, &fixture(scenario, file)));
        if let Verdict::Nack(reason) = outcome.applied.verdict {
            nacks.push(reason);
        }
        wanted.extend(outcome.applied.wanted);
        for change in outcome.changes {
            match change {
                Change::Listeners(all) => listeners = Some(all),
                Change::ClusterUpserted(cluster) => {
                    clusters.insert(cluster.name.to_string(), cluster);
                }
                Change::EndpointsUpserted(name, set) => {
                    endpoints.insert(name.to_string(), set);
                }
                _ => {}
            }
        }
    }
    Applied { applier, listeners: listeners.unwrap(), clusters, endpoints, nacks, wanted }
}

fn refused_chains(listeners: &Listeners) -> Vec<String> {
    let refused = listeners.chains.values().filter(|chain| matches!(chain.kind, ChainKind::Refused { .. }));
    let mut names: Vec<_> = refused.map(|chain| chain.name.to_string()).collect();
    names.sort();
    names
}

fn web() -> String {
    "inbound-vip|80|http|web.shop.svc.cluster.local".to_owned()
}

#[test]
fn the_plain_mesh_is_obeyed_in_full() {
    let applied = apply("istiod-1.31/01-plain");
    assert_eq!(applied.nacks, Vec::<String>::new());
    assert_eq!(refused_chains(&applied.listeners), Vec::<String>::new());
    assert_eq!(applied.listeners.terminate.addresses, ["0.0.0.0:15008".parse().unwrap()]);
    assert_eq!(applied.listeners.terminate.client_id_prefixes, Some(vec![Box::from("spiffe://cluster.local/")]));
    let target = Authority::parse("10.96.1.1:80").unwrap();
    assert_eq!(applied.listeners.dispatch.lookup(&target), Lookup::Chain(&web().as_str().into()));
    let auto = Authority::parse("10.96.1.4:7000").unwrap();
    let Lookup::Sniff(by) = applied.listeners.dispatch.lookup(&auto) else { panic!("an undeclared port is sniffed") };
    let chain = |protocol| match by.lookup(protocol, &auto) {
        Lookup::Chain(name) => name.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(chain(SniffedProtocol::Http2), "inbound-vip|7000|http|auto.shop.svc.cluster.local");
    assert_eq!(chain(SniffedProtocol::Other), "inbound-vip|7000|tcp|auto.shop.svc.cluster.local");
    assert_eq!(applied.applier.report().stale_chains, Vec::<String>::new());
}

#[test]
fn the_default_route_has_istios_retries_and_no_time_limit() {
    let applied = apply("istiod-1.31/01-plain");
    let ChainKind::Http(http) = &applied.listeners.chains[web().as_str()].kind else { panic!("http") };
    let route = &http.routes.virtual_hosts[0].routes[0];
    let RouteAction::Forward(forward) = &route.action else { panic!("forwards") };
    let retry = forward.retry.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.refused_stream && retry.on.grpc_unavailable && retry.on.grpc_cancelled);
    assert!(!retry.on.server_error && !retry.on.reset);
    assert_eq!((retry.retries_max, retry.avoid_previous_hosts, retry.host_attempts_max), (2, true, 5));
    assert_eq!((forward.timeouts.request, forward.cluster_not_found_status), (None, 503));
    assert_eq!(route.operation.as_ref().map(|operation| &*operation.name), Some("web.shop.svc.cluster.local:80/*"));
    assert!(matches!(&forward.clusters, ClusterChoice::One(name) if **name == *web()));
    assert!(http.options.normalize_path && http.options.upgrades.say(b"websocket") == Some(true) && http.count_grpc_messages);
}

#[test]
fn clusters_and_endpoints_are_read_with_protocol_service_and_tunnel() {
    let applied = apply("istiod-1.31/01-plain");
    let cluster = &applied.clusters[&web()];
    assert_eq!(&*cluster.stat_name, "inbound-vip|80|http|web.shop.svc.cluster.local;");
    assert_eq!(cluster.service.as_ref().map(|service| &*service.host), Some("web.shop.svc.cluster.local"));
    assert_eq!((cluster.protocol, cluster.connect_timeout), (UpstreamProtocol::Http1, Duration::from_secs(10)));
    let ratings = &applied.clusters["inbound-vip|9000|http|ratings.shop.svc.cluster.local"];
    assert_eq!(ratings.protocol, UpstreamProtocol::Http2);
    let auto = &applied.clusters["inbound-vip|7000|http|auto.shop.svc.cluster.local"];
    assert_eq!(auto.protocol, UpstreamProtocol::Downstream);
    let first = &applied.endpoints[&web()].endpoints[0];
    let expected = EndpointAddress::Hbone { tunnel: "10.244.1.1:15008".parse().unwrap(), target: "10.244.1.1:8080".parse().unwrap() };
    assert_eq!((first.address, &*first.host), (expected, "envoy://connect_originate/10.244.1.1:8080"));
    let legacy = &applied.endpoints["inbound-vip|80|http|legacy.shop.svc.cluster.local"].endpoints[0];
    assert_eq!(legacy.address, EndpointAddress::Plain("10.244.7.1:80".parse().unwrap()));
    let names: std::collections::BTreeSet<_> = applied.clusters.keys().filter(|name| *name != "encap").cloned().collect();
    assert_eq!(applied.wanted, [Wanted::new(ResourceType::Endpoint, names).unwrap()]);
}

#[test]
fn every_recorded_scenario_loads_and_what_is_not_obeyed_is_named() {
    for scenario in [
        "istiod-1.31/01-plain",
        "istiod-1.31/02-httproute",
        "istiod-1.31/03-grpcroute",
        "istiod-1.31/04-virtualservice",
        "istiod-1.31/05-authz",
        "istiod-1.31/06-jwt",
        "istiod-1.31/07-telemetry",
        "istiod-1.31/08-egress",
        "istiod-1.31/09-tcp",
        "istiod-1.28/default-chain",
        "istiod-1.29/default-chain",
    ] {
        assert_eq!(refused_chains(&apply(scenario).listeners), [""; 0], "{scenario}");
    }
}

#[test]
fn filters_that_are_not_known_leave_a_listening_waypoint_that_explains() {
    let applied = apply("istiod-1.31/10-unsupported");
    assert!(!applied.listeners.chains.is_empty() && !applied.listeners.terminate.addresses.is_empty());
    let ChainKind::Refused { http: true, reasons } = &applied.listeners.chains[web().as_str()].kind else { panic!("refused") };
    assert!(!reasons.is_empty());
    assert!(matches!(applied.listeners.dispatch.lookup(&Authority::parse("10.96.1.1:80").unwrap()), Lookup::Chain(_)));
}

#[test]
fn a_filter_that_is_not_known_is_one_reason() {
    let mut sent = plain_listeners();
    let lua = "envoy.extensions.filters.http.lua.v3.Lua";
    edit_manager(&mut sent, "main_internal", &web(), |manager, _| put_first(manager, lua, &json!({"inline_code": ""})));
    let mut applier = Applier::default();
    applier.apply(sent);
    let report = applier.report();
    let paths: Vec<_> = report.refused[&web()].iter().map(|reason| reason.path.as_str()).collect();
    assert_eq!(paths, ["filters[0].typed_config.http_filters[0].typed_config"]);
}

#[test]
fn policies_are_compiled_in_their_order() {
    let applied = apply("istiod-1.31/05-authz");
    let ChainKind::Tcp(db) = &applied.listeners.chains["inbound-vip|5432|tcp|db.shop.svc.cluster.local"].kind else { panic!("tcp") };
    let actions: Vec<_> = db.rbac.iter().map(|rbac| rbac.action).collect();
    assert_eq!(actions, [RbacAction::Deny, RbacAction::Allow]);
    assert_eq!(&*db.rbac[1].policies()[0].name, "ns[shop]-policy[db-allow]-rule[0]");
    let ChainKind::Http(empty) = &applied.listeners.chains["inbound-vip|80|http|empty.shop.svc.cluster.local"].kind else { panic!("http") };
    let [HttpFilter::Rbac(deny)] = empty.filters.as_slice() else { panic!("one filter") };
    assert_eq!(deny.action, RbacAction::Deny);
}

#[test]
fn a_custom_policy_is_judged_before_the_others() {
    let applied = apply("istiod-1.31/05-authz");
    let ChainKind::Http(http) = &applied.listeners.chains[web().as_str()].kind else { panic!("http") };
    let [EarlyFilter::Shadow(rules), EarlyFilter::External(filter)] = &http.early[..] else { panic!("a pair") };
    assert_eq!(&*rules.policies()[0].name, "istio-ext-authz-ext-authz-grpc-ns[shop]-policy[web-custom]-rule[0]");
    assert_eq!(&**filter.service.cluster(), "outbound|9001||ext-authz.authz.svc.cluster.local");
    let actions: Vec<_> = http.filters.iter().map(|HttpFilter::Rbac(rbac)| rbac.action).collect();
    assert_eq!(actions, [RbacAction::Log, RbacAction::Deny], "AUDIT and DENY come after, in this order");
}

#[test]
fn telemetry_is_read_where_it_is_configured() {
    let applied = apply("istiod-1.31/07-telemetry");
    let chain = &applied.listeners.chains[web().as_str()];
    assert_eq!(chain.access_logs.len(), 1);
    let tracing = chain.tracing.as_ref().unwrap();
    let provider = tracing.provider.as_ref().unwrap();
    assert_eq!(&*provider.collector.cluster, "outbound|4317||tempo.tempo.svc.cluster.local");
    assert_eq!(provider.dialect, Dialect::Otlp { service_name: "waypoint.shop".into(), reads_environment: false });
    assert!(tracing.custom_tags.iter().any(|tag| &*tag.tag == "istio.source_workload"));
    assert!(chain.stats.is_some());
    let plain = apply("istiod-1.31/01-plain");
    assert!(plain.listeners.chains[web().as_str()].access_logs.is_empty(), "nothing is logged unless Telemetry says so");
}

fn listeners_of(outcome: Outcome) -> Arc<Listeners> {
    match outcome.changes.into_iter().next() {
        Some(Change::Listeners(listeners)) => listeners,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_same_resources_again_change_nothing() {
    let mut applied = apply("istiod-1.31/07-telemetry");
    for (of, file) in TYPES.iter().filter(|(of, _)| matches!(of, ResourceType::Cluster | ResourceType::Endpoint)) {
        let outcome = applied.applier.apply(update(*of, &fixture("istiod-1.31/07-telemetry", file)));
        assert!(outcome.changes.is_empty(), "{of:?}: {:?}", outcome.changes);
    }
    let again = listeners_of(applied.applier.apply(update(ResourceType::Listener, &fixture("istiod-1.31/07-telemetry", "Listener"))));
    for (name, chain) in &again.chains {
        assert!(Arc::ptr_eq(chain, &applied.listeners.chains[name]), "{name} kept its Arc");
    }
}

#[test]
fn chains_whose_bytes_are_ordered_otherwise_stay_the_same() {
    let mut applied = apply("istiod-1.31/05-authz");
    let mut shuffled = update(ResourceType::Listener, &fixture("istiod-1.31/05-authz", "Listener"));
    for resource in &mut shuffled.resources {
        // Decoding into hash maps and encoding again orders map entries at random, as istiod's releases do.
        let decoded = envoy_types::pb::envoy::config::listener::v3::Listener::decode(resource.body.clone()).unwrap();
        resource.body = decoded.encode_to_vec().into();
    }
    let again = listeners_of(applied.applier.apply(shuffled));
    for (name, chain) in &again.chains {
        assert!(Arc::ptr_eq(chain, &applied.listeners.chains[name]), "{name} kept its Arc");
    }
}

#[test]
fn a_bad_version_of_a_chain_leaves_the_last_good_one_and_harms_no_other() {
    let mut applied = apply("istiod-1.31/01-plain");
    let mut file = fixture("istiod-1.31/01-plain", "Listener");
    let main = file["resources"].as_array_mut().unwrap().iter_mut().find(|entry| entry["name"] == "main_internal").unwrap();
    for chain in main["resource"]["filter_chains"].as_array_mut().unwrap() {
        if chain["name"] == web() {
            chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["internal_redirect_policy"] =
                json!({});
        }
    }
    let outcome = applied.applier.apply(update(ResourceType::Listener, &file));
    let Verdict::Nack(reason) = &outcome.applied.verdict else { panic!("refused in part") };
    assert!(reason.contains(&web()) && reason.contains("internal_redirect_policy"), "{reason}");
    let listeners = listeners_of(outcome);
    assert!(Arc::ptr_eq(&listeners.chains[web().as_str()], &applied.listeners.chains[web().as_str()]));
    assert_eq!(refused_chains(&listeners), Vec::<String>::new());
    assert_eq!(applied.applier.report().stale_chains, [web()]);
}

#[test]
fn a_malformed_resource_is_refused_by_name_and_the_last_good_one_stays() {
    let mut applied = apply("istiod-1.31/01-plain");
    let garbage = |name: &str| Resource { name: name.to_owned(), version: String::new(), body: Bytes::from_static(&[0xff, 0xff, 0xff]) };
    for (of, name) in [
        (ResourceType::Cluster, web()),
        (ResourceType::Endpoint, web()),
        (ResourceType::Listener, "main_internal".to_owned()),
        (ResourceType::Workload, "w".to_owned()),
    ] {
        let outcome = applied.applier.apply(Update { of, resources: vec![garbage(&name)], removed: Vec::new() });
        let Verdict::Nack(reason) = &outcome.applied.verdict else { panic!("{of:?} is refused") };
        assert!(reason.contains(&name), "{of:?}: {reason}");
        for change in outcome.changes {
            match change {
                Change::Listeners(listeners) => {
                    assert!(Arc::ptr_eq(&listeners.chains[web().as_str()], &applied.listeners.chains[web().as_str()]))
                }
                Change::ClusterRefused(refused, _) => assert_eq!(*refused, *web()),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_cluster_that_goes_takes_its_endpoints_and_their_subscription_along() {
    let mut applied = apply("istiod-1.31/01-plain");
    let outcome = applied.applier.apply(Update { of: ResourceType::Cluster, resources: Vec::new(), removed: vec![web()] });
    let removed: Vec<_> = outcome.changes.iter().map(|change| format!("{change:?}")).collect();
    assert!(
        removed.iter().any(|text| text.contains("ClusterRemoved")) && removed.iter().any(|text| text.contains("EndpointsRemoved")),
        "{removed:?}"
    );
    let names: std::collections::BTreeSet<_> =
        applied.clusters.keys().filter(|name| **name != web() && *name != "encap").cloned().collect();
    assert_eq!(outcome.applied.wanted, [Wanted::new(ResourceType::Endpoint, names).unwrap()]);
}

/// Changes one connection manager of a listeners' update.
fn edit_manager(update: &mut Update, listener: &str, chain: &str, work: impl Fn(&mut HttpConnectionManager, &mut Vec<u8>)) {
    let resource = update.resources.iter_mut().find(|resource| resource.name == listener).unwrap();
    let mut decoded = ListenerProto::decode(resource.body.clone()).unwrap();
    let chain = decoded.filter_chains.iter_mut().find(|one| one.name == chain).unwrap();
    let Some(ConfigType::TypedConfig(config)) = &mut chain.filters[0].config_type else { panic!("no manager") };
    let mut manager = HttpConnectionManager::decode(&config.value[..]).unwrap();
    let mut extra = Vec::new();
    work(&mut manager, &mut extra);
    config.value = manager.encode_to_vec();
    config.value.extend(extra);
    resource.body = decoded.encode_to_vec().into();
}

fn plain_listeners() -> Update {
    update(ResourceType::Listener, &fixture("istiod-1.31/01-plain", "Listener"))
}

/// An HTTP filter in front of all others.
fn put_first(manager: &mut HttpConnectionManager, type_name: &str, config: &Value) {
    let value = xds_proto::message_from_json(type_name, config).unwrap();
    let config = Any { type_url: format!("type.googleapis.com/{type_name}"), value };
    let name = "policy".to_owned();
    manager.http_filters.insert(0, PbHttpFilter { name, config_type: Some(TypedConfig(config)), ..PbHttpFilter::default() });
}

fn deny_everybody() -> Value {
    json!({"rules": {"action": "DENY", "policies": {"all": {"permissions": [{"any": true}], "principals": [{"any": true}]}}}})
}

fn nack(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Nack(reason) => reason,
        Verdict::Ack => panic!("accepted"),
    }
}

#[test]
fn a_field_that_is_not_known_is_refused_in_a_chain_that_was_good_before() {
    for was_good in [false, true] {
        let mut applier = Applier::default();
        if was_good {
            applier.apply(plain_listeners());
        }
        let mut newer = plain_listeners();
        edit_manager(&mut newer, "main_internal", &web(), |_, extra| prost::encoding::uint32::encode(9999, &1, extra));
        let outcome = applier.apply(newer);
        let reason = nack(&outcome.applied.verdict);
        assert!(reason.contains(&web()) && reason.contains("9999"), "{reason}");
        assert_eq!(refused_chains(&listeners_of(outcome)).is_empty(), was_good, "the last good version serves");
    }
}

#[test]
fn a_server_name_that_no_header_can_carry_is_refused_by_name() {
    let mut named = plain_listeners();
    edit_manager(&mut named, "main_internal", &web(), |manager, _| manager.server_name = "two\nlines".to_owned());
    let outcome = Applier::default().apply(named);
    assert!(nack(&outcome.applied.verdict).contains("server_name"));
    assert_eq!(refused_chains(&listeners_of(outcome)).len(), 1);
}

#[test]
fn a_policy_on_tunnels_is_refused_by_name_and_nothing_inside_is_served() {
    let mut policed = plain_listeners();
    edit_manager(&mut policed, "connect_terminate", "default", |manager, _| {
        put_first(manager, "envoy.extensions.filters.http.rbac.v3.RBAC", &deny_everybody());
    });
    let outcome = Applier::default().apply(policed);
    assert!(nack(&outcome.applied.verdict).contains("RBAC"));
    let listeners = listeners_of(outcome);
    assert!(listeners.terminate_refused[0].reason.contains("RBAC"), "{:?}", listeners.terminate_refused);
    assert_eq!(listeners.terminate.client_id_prefixes, Some(vec!["spiffe://cluster.local/".into()]), "who may connect is still known");
    assert_eq!(refused_chains(&listeners).len(), listeners.chains.len());
}

#[test]
fn a_policy_in_the_json_form_of_a_typed_struct_is_not_passed_over() {
    let mut policed = plain_listeners();
    let config = json!({"type_url": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "value": deny_everybody()});
    edit_manager(&mut policed, "main_internal", &web(), |manager, _| put_first(manager, "udpa.type.v1.TypedStruct", &config));
    let outcome = Applier::default().apply(policed);
    assert!(nack(&outcome.applied.verdict).contains("RBAC"));
    assert_eq!(refused_chains(&listeners_of(outcome)), [web()]);
}

#[test]
fn an_endpoint_with_a_field_that_is_not_known_is_left_out_and_its_neighbour_stays() {
    let mut newer = update(ResourceType::Endpoint, &fixture("istiod-1.31/01-plain", "ClusterLoadAssignment"));
    newer.resources.retain(|resource| resource.name == web());
    let decoded = endpoint_proto::ClusterLoadAssignment::decode(newer.resources[0].body.clone()).unwrap();
    let mut endpoints: Vec<_> = decoded.endpoints.iter().flat_map(|locality| &locality.lb_endpoints).map(Message::encode_to_vec).collect();
    assert_eq!(endpoints.len(), 2);
    prost::encoding::uint32::encode(9999, &1, &mut endpoints[0]);
    let (mut locality, mut body) = (Vec::new(), Vec::new());
    endpoints.iter().for_each(|endpoint| prost::encoding::bytes::encode(2, endpoint, &mut locality));
    prost::encoding::string::encode(1, &web(), &mut body);
    prost::encoding::bytes::encode(2, &locality, &mut body);
    newer.resources[0].body = body.into();
    let outcome = Applier::default().apply(newer);
    let reason = nack(&outcome.applied.verdict);
    assert!(reason.contains("endpoints[0].lb_endpoints[0].") && reason.contains("9999"), "{reason}");
    let Some(Change::EndpointsUpserted(_, set)) = outcome.changes.first() else { panic!("{:?}", outcome.changes) };
    assert_eq!(set.endpoints.len(), 1);
}

#[test]
fn a_cluster_whose_endpoints_cannot_be_asked_for_costs_no_other_its_own() {
    let mut file = fixture("istiod-1.31/01-plain", "Cluster");
    let web_cluster = file["resources"].as_array_mut().unwrap().iter_mut().find(|entry| entry["name"] == web()).unwrap();
    web_cluster["resource"]["eds_cluster_config"]["service_name"] = "*".into();
    let outcome = Applier::default().apply(update(ResourceType::Cluster, &file));
    assert!(nack(&outcome.applied.verdict).contains(&web()));
    assert_eq!(outcome.applied.wanted.len(), 1, "the others' endpoints are asked for");
}

#[test]
fn a_single_reason_that_is_too_long_is_cut_and_not_left_out() {
    let applied = verdict(&[Invalid::new("web", "filters[0]", "ü".repeat(NACK_BYTES_MAX))]);
    let reason = nack(&applied.verdict);
    assert!(reason.starts_with("web: filters[0]: ü") && reason.len() <= NACK_BYTES_MAX, "{}", reason.len());
}

#[test]
fn a_workload_of_a_kind_that_is_not_known_is_refused() {
    let mut newer = update(ResourceType::Workload, &fixture("istiod-1.31/01-plain", "Workload"));
    newer.resources.truncate(1);
    let mut body = newer.resources[0].body.to_vec();
    prost::encoding::int32::encode(12, &99, &mut body);
    newer.resources[0].body = body.into();
    let outcome = Applier::default().apply(newer);
    assert!(nack(&outcome.applied.verdict).contains("workload_type"));
    assert!(outcome.changes.is_empty());
}

#[test]
fn places_are_as_many_as_the_report_counts_and_name_the_object() {
    let mut n_places = 0;
    for scenario in ["01-plain", "04-virtualservice", "05-authz", "07-telemetry", "08-egress", "10-unsupported"] {
        let scenario = format!("istiod-1.31/{scenario}");
        let applier = apply(&scenario).applier;
        let mut counted = BTreeMap::new();
        for (of, file) in TYPES {
            for place in update(of, &fixture(&scenario, file)).resources.iter().flat_map(|resource| applier.places(of, resource)) {
                assert!(!place.object.is_empty() && !place.path.is_empty(), "{place:?}");
                *counted.entry((place.type_name, place.field)).or_default() += 1;
                n_places += 1;
            }
        }
        assert_eq!(counted, applier.report().listed, "{scenario}");
    }
    assert!(n_places > 0);
}
