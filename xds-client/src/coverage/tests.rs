//! The walk over what a real istiod sent, and over what it may send one day.
#![expect(clippy::unwrap_used, reason = "tests")]
use std::path::{Path, PathBuf};

use prost::Message;
use prost_reflect::DynamicMessage;
use serde_json::{Value, json};
use xds_proto::{dynamic_from_json, message_from_json};

use super::rule::{Extension, Rule};
use super::table::SECTIONS;
use super::{DEPTH_MAX, FILTER_CHAINS, Findings, LB_ENDPOINTS, document, walk, walk_bytes, walk_bytes_without, walk_without};

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CHAIN: &str = "envoy.config.listener.v3.FilterChain";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const ENDPOINTS: &str = "envoy.config.endpoint.v3.ClusterLoadAssignment";
const WEB: &str = "inbound-vip|80|http|web.shop.svc.cluster.local";
const HTTP_RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The resources of one recorded answer: name, JSON.
fn recorded(scenario: &str, kind: &str) -> Vec<(String, Value)> {
    let path = root().join("tests/fixtures").join(scenario).join(kind).with_extension("json");
    let content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let resources = content["resources"].as_array().unwrap().iter();
    resources.map(|resource| (resource["name"].as_str().unwrap().to_owned(), resource["resource"].clone())).collect()
}

fn dynamic(name: &str, json: &Value) -> DynamicMessage {
    dynamic_from_json(name, json).unwrap()
}

fn walk_json(name: &str, json: &Value) -> Findings {
    walk(&dynamic(name, json))
}

fn reasons(findings: &Findings) -> Vec<String> {
    findings.refused.iter().map(ToString::to_string).collect()
}

/// The chains of a scenario: listener, chain, what is refused in it.
fn chains(scenario: &str) -> Vec<(String, String, Findings)> {
    let mut chains = Vec::new();
    for (listener, json) in recorded(scenario, "Listener") {
        for chain in json["filter_chains"].as_array().unwrap() {
            let name = chain["name"].as_str().unwrap_or_default().to_owned();
            chains.push((listener.clone(), name, walk_json(CHAIN, chain)));
        }
    }
    chains
}

/// The chains of a scenario that are refused, by name.
fn refused_chains(scenario: &str) -> Vec<String> {
    let mut names: Vec<_> = chains(scenario)
        .into_iter()
        .filter(|(listener, _, findings)| !super::DOUBLE_HBONE.contains(&listener.as_str()) && !findings.refused.is_empty())
        .map(|(listener, chain, _)| if chain == "default" { listener } else { chain })
        .collect();
    names.sort();
    names
}

#[test]
fn the_table_names_messages_fields_and_types_that_exist() {
    let pool = xds_proto::descriptors();
    // What arrives by field name only has no descriptor of its own unless we write one; these two have none.
    let without_descriptor = |name: &str| name.starts_with("envoy.extensions.network_filters.peer_metadata.");
    let check = |extensions: &[Extension]| {
        for extension in extensions {
            let name = extension.type_name;
            assert!(pool.get_message_by_name(name).is_some() || without_descriptor(name), "{name} does not exist");
            assert!(!matches!(extension.rule, Rule::Extension(_)), "{name} nests extensions");
        }
    };
    for entry in SECTIONS.iter().flat_map(|section| section.entries) {
        let message = pool.get_message_by_name(entry.message).unwrap_or_else(|| panic!("{} does not exist", entry.message));
        for (field, rule) in entry.fields {
            assert!(message.get_field_by_name(field).is_some(), "{}.{field} does not exist", entry.message);
            if let Rule::Extension(extensions) = rule {
                check(extensions);
            }
        }
    }
}

#[test]
fn a_message_and_a_field_are_in_the_table_once() {
    let mut seen = std::collections::HashSet::new();
    for entry in SECTIONS.iter().flat_map(|section| section.entries) {
        assert!(seen.insert((entry.message, "")), "{} twice", entry.message);
        for (field, _) in entry.fields {
            assert!(seen.insert((entry.message, *field)), "{}.{field} twice", entry.message);
        }
    }
}

#[test]
fn an_extension_that_is_opened_is_in_the_table() {
    for (field, rule) in SECTIONS.iter().flat_map(|section| section.entries).flat_map(|entry| entry.fields) {
        let Rule::Extension(extensions) = rule else { continue };
        for extension in *extensions {
            let opened = matches!(extension.rule, Rule::Honoured | Rule::When { .. });
            let known = super::table::entry(extension.type_name).is_some() || extension.type_name.starts_with("google.protobuf.");
            assert!(!opened || known, "{field}: {} would be refused field by field", extension.type_name);
        }
    }
}

#[test]
fn the_document_is_what_the_table_says() {
    let path = root().join("docs/coverage.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, document()).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == document(),
        "docs/coverage.md is not what the table says; write it anew with UPDATE_DOCS=1 cargo test -p xds-client coverage"
    );
}

#[test]
fn chains_within_the_first_step_have_no_refusals() {
    for scenario in
        ["istiod-1.28/default-chain", "istiod-1.31/01-plain", "istiod-1.31/03-grpcroute", "istiod-1.31/07-telemetry", "istiod-1.31/09-tcp"]
    {
        for (listener, chain, findings) in chains(scenario) {
            let unused = super::DOUBLE_HBONE.contains(&listener.as_str());
            assert!(unused || findings.refused.is_empty(), "{scenario} {listener} {chain}: {:#?}", reasons(&findings));
        }
    }
}

#[test]
fn a_chain_that_needs_more_is_refused_and_its_neighbours_are_not() {
    assert_eq!(refused_chains("istiod-1.31/02-httproute"), Vec::<String>::new());
    assert_eq!(refused_chains("istiod-1.31/04-virtualservice"), Vec::<String>::new());
    assert_eq!(refused_chains("istiod-1.31/05-authz"), Vec::<String>::new());
    assert_eq!(refused_chains("istiod-1.31/06-jwt"), [""; 0]);
    assert_eq!(refused_chains("istiod-1.31/08-egress"), [""; 0]);
}

#[test]
fn filters_that_are_not_supported_are_refused_by_name() {
    let chains = chains("istiod-1.31/10-unsupported");
    let (_, _, tunnel) = chains.iter().find(|(listener, ..)| listener == "connect_terminate").unwrap();
    assert_eq!(
        reasons(tunnel),
        ["filters[0].typed_config.http_filters[3].typed_config: filter envoy.filters.http.lua \
             (type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua) is not supported: a script would see every request",]
    );
    let (_, _, web) = chains.iter().find(|(_, chain, _)| chain == WEB).unwrap();
    let [reason] = &reasons(web)[..] else { panic!("{:#?}", reasons(web)) };
    assert!(reason.contains("filter envoy.filters.http.lua "), "{reason}");
    for (listener, chain, findings) in &chains {
        let tcp = chain.contains("tcp") || listener.ends_with("originate");
        let unused = super::DOUBLE_HBONE.contains(&listener.as_str());
        assert!(unused || findings.refused.is_empty() == tcp, "{listener} {chain}: {:#?}", reasons(findings));
    }
}

#[test]
fn a_listener_without_its_chains_is_clean_in_every_scenario() {
    for scenario in std::fs::read_dir(root().join("tests/fixtures/istiod-1.31")).unwrap().map(|entry| entry.unwrap().path()) {
        let name = scenario.file_name().unwrap().to_str().unwrap().to_owned();
        if !scenario.is_dir() {
            continue;
        }
        for (listener, json) in recorded(&format!("istiod-1.31/{name}"), "Listener") {
            let findings = walk_without(&dynamic(LISTENER, &json), &[FILTER_CHAINS]);
            assert!(findings.refused.is_empty(), "{name} {listener}: {:#?}", reasons(&findings));
        }
    }
}

#[test]
fn clusters_and_endpoints_of_a_plain_mesh_have_no_refusals() {
    for scenario in ["istiod-1.28/default-chain", "istiod-1.31/01-plain", "istiod-1.31/07-telemetry", "istiod-1.31/10-unsupported"] {
        for (kind, type_name) in [("Cluster", CLUSTER), ("ClusterLoadAssignment", ENDPOINTS), ("Workload", "istio.workload.Workload")] {
            for (name, json) in recorded(scenario, kind) {
                let findings = walk_json(type_name, &json);
                assert!(findings.refused.is_empty(), "{scenario} {name}: {:#?}", reasons(&findings));
            }
        }
    }
}

#[test]
fn clusters_of_egress_and_of_destination_rules_have_no_refusals() {
    let refused = |scenario: &str| {
        let clusters = recorded(scenario, "Cluster").into_iter().filter(|(_, json)| !walk_json(CLUSTER, json).refused.is_empty());
        let mut names: Vec<_> = clusters.map(|(name, _)| name).collect();
        names.sort();
        names
    };
    assert!(refused("istiod-1.31/08-egress").is_empty());
    assert!(refused("istiod-1.31/04-virtualservice").is_empty());
}

#[test]
fn a_service_of_persistent_sessions_is_a_cluster_and_the_filter_that_keeps_them_is_refused() {
    // What istiod adds to `outbound` clusters of services that are labelled for it; it only counts where a filter has named an endpoint.
    let kept = json!({"override_host_status": {"statuses": ["HEALTHY", "DRAINING", "UNKNOWN", "DEGRADED"]}});
    let cluster = json!({"name": "outbound|80||web.shop.svc.cluster.local", "type": "EDS", "common_lb_config": kept});
    assert_eq!(reasons(&walk_json(CLUSTER, &cluster)), Vec::<String>::new());
    let session = "envoy.extensions.filters.http.stateful_session.v3.StatefulSession";
    let filter = json!({"name": "session", "typed_config": {"@type": format!("type.googleapis.com/{session}")}});
    let manager = json!({"http_filters": [filter]});
    assert!(reasons(&walk_json(MANAGER, &manager)).iter().any(|reason| reason.contains(session)));
}

#[test]
fn double_hbone_is_known_and_its_baggage_too() {
    let (_, mut listener) =
        recorded("istiod-1.31/01-plain", "Listener").into_iter().find(|(name, _)| name == "inner_connect_originate").unwrap();
    let findings = walk_json(LISTENER, &listener);
    assert_eq!((findings.refused.len(), findings.listed.len()), (0, 0));
    let tunnel = &mut listener["filter_chains"][0]["filters"][1]["typed_config"]["tunneling_config"];
    tunnel["headers_to_add"] = json!([{"header": {"key": "baggage", "value": "%FILTER_STATE(io.istio.baggage:PLAIN)%"}}]);
    let findings = walk_json(LISTENER, &listener);
    assert_eq!((findings.refused.len(), findings.listed.len()), (0, 0));
    let endpoint = |address: Value| {
        let endpoints = json!({"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]});
        let refused = reasons(&walk_json(ENDPOINTS, &endpoints));
        assert_eq!(walk_without(&dynamic(ENDPOINTS, &endpoints), &[LB_ENDPOINTS]).refused, []);
        refused
    };
    let internal = |name: &str| json!({"envoy_internal_address": {"server_listener_name": name, "endpoint_id": "10.244.1.1:8080"}});
    assert_eq!(endpoint(internal("connect_originate")), [""; 0]);
    assert_eq!(endpoint(json!({"socket_address": {"address": "10.244.7.1", "port_value": 8080}})), [""; 0]);
    let at = "endpoints[0].lb_endpoints[0].endpoint.address";
    assert_eq!(endpoint(internal("inner_connect_originate")), [""; 0]);
    let refused = endpoint(internal("forward_inner_connect"));
    assert!(refused.len() == 1 && refused[0].starts_with(&format!("{at}.envoy_internal_address.server_listener_name")), "{refused:?}");
    assert_eq!(endpoint(json!({"pipe": {"path": "/run/app"}})), [format!("{at}.pipe: connections would go to a Unix socket")]);
}

#[test]
fn tunnels_to_pods_tell_our_baggage_and_nothing_else() {
    let (_, listener) = recorded("istiod-1.31/01-plain", "Listener").into_iter().find(|(name, _)| name == "connect_originate").unwrap();
    let own = json!({
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        "header": {"key": "baggage", "value": "%FILTER_STATE(io.istio.baggage:PLAIN)%"},
    });
    let refused = |headers: Value, answer: bool, of: Option<&str>| {
        let mut listener = listener.clone();
        let filters = listener["filter_chains"][0]["filters"].as_array_mut().unwrap();
        let proxy = filters.last_mut().unwrap();
        proxy["typed_config"]["tunneling_config"]["headers_to_add"] = headers;
        proxy["typed_config"]["tunneling_config"]["propagate_response_headers"] = answer.into();
        if let Some(hostname) = of {
            proxy["typed_config"]["tunneling_config"]["hostname"] = hostname.into();
        }
        let type_url = "type.googleapis.com/envoy.extensions.network_filters.peer_metadata.Config";
        let metadata = json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": type_url, "value": {"baggage_key": "io.istio.baggage"}});
        filters.insert(0, json!({"name": "upstream_hbone_peer_metadata", "typed_config": metadata}));
        walk_json(LISTENER, &listener).refused.len()
    };
    assert_eq!(refused(json!([own]), true, None), 0);
    let changed = |at: &str, value: Value| {
        let mut changed = own.clone();
        *changed.pointer_mut(at).unwrap() = value;
        changed
    };
    for other in [
        json!([own, own]),
        json!([changed("/header/key", "x-baggage".into())]),
        json!([changed("/header/value", "k8s.namespace.name=shop".into())]),
        json!([changed("/append_action", "ADD_IF_ABSENT".into())]),
    ] {
        assert_eq!(refused(other.clone(), true, None), 1, "{other}");
    }
    assert_eq!(refused(json!([own]), true, Some("api.example.com:443")), 2, "a proxy outside the mesh is told nothing");
}

#[test]
fn tls_to_applications_is_walked_and_the_mesh_s_own_is_not_negotiable() {
    let socket = json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "api.example.com",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [{"certificate_chain": {"filename": "/a"}, "private_key": {"inline_string": "b"}}],
                "validation_context": {
                    "trusted_ca": {"filename": "/c"},
                    "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "api.example.com"}}],
                },
            },
        },
    });
    let walked = |name: &str, socket: &Value| {
        reasons(&walk_json(CLUSTER, &json!({"name": name, "type": "EDS", "eds_cluster_config": {}, "transport_socket": socket})))
    };
    assert_eq!(walked(WEB, &socket), [""; 0]);
    assert_eq!(walked("connect_originate", &socket).len(), 4, "{:#?}", walked("connect_originate", &socket));
    for (field, value) in [
        ("verify_certificate_hash", json!(["0".repeat(64)])),
        ("allow_expired_certificate", json!(true)),
        ("trust_chain_verification", json!("ACCEPT_UNTRUSTED")),
    ] {
        let mut socket = socket.clone();
        socket["typed_config"]["common_tls_context"]["validation_context"][field] = value;
        assert_eq!(walked(WEB, &socket).len(), 1, "{field}");
    }
    // Lists of revoked certificates are looked into of applications only: between workloads nothing would ask them.
    for (field, value) in [("crl", json!({"inline_string": "a list"})), ("only_verify_leaf_cert_crl", json!(true))] {
        let mut socket = socket.clone();
        socket["typed_config"]["common_tls_context"]["validation_context"][field] = value.clone();
        assert_eq!(walked(WEB, &socket), [""; 0], "{field}");
        let mesh = json!({
            "name": "tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {"combined_validation_context": {"default_validation_context": {field: value}}},
            },
        });
        let refused = walked("connect_originate", &mesh);
        assert!(refused.iter().any(|reason| reason.contains(field)), "{field}: {refused:?}");
    }
}

/// An HTTP RBAC filter that allows one principal.
fn rbac(principal: &Value) -> Value {
    json!({"rules": {"policies": {"p": {"permissions": [{"any": true}], "principals": [principal]}}}})
}

#[test]
fn a_field_number_that_is_not_known_refuses_a_policy() {
    let mut bytes =
        message_from_json("envoy.config.rbac.v3.Policy", &json!({"permissions": [{"any": true}], "principals": [{"any": true}]})).unwrap();
    assert_eq!(walk_bytes("envoy.config.rbac.v3.Policy", &bytes).unwrap().refused, []);
    // Field 99, a varint: a condition of the future.
    bytes.extend([0x98, 0x06, 0x01]);
    let findings = walk_bytes("type.googleapis.com/envoy.config.rbac.v3.Policy", &bytes).unwrap();
    assert_eq!(findings.refused.len(), 1);
    assert_eq!(findings.refused[0].field, "99");
    assert_eq!(findings.refused[0].type_name, "envoy.config.rbac.v3.Policy");
}

#[test]
fn a_field_number_that_is_not_known_is_listed_in_telemetry() {
    let findings = walk_bytes("stats.PluginConfig", &[0x98, 0x06, 0x01]).unwrap();
    assert_eq!((findings.refused.len(), findings.listed.len()), (0, 1));
}

#[test]
fn a_principal_in_which_nothing_known_is_set_is_refused() {
    let findings = walk_json(HTTP_RBAC, &rbac(&json!({})));
    assert_eq!(
        reasons(&findings),
        ["rules.policies[p].principals[0]: nothing that is known is set in identifier of envoy.config.rbac.v3.Principal"]
    );
    assert_eq!(walk_json(HTTP_RBAC, &rbac(&json!({"any": true}))).refused, []);
}

#[test]
fn an_enum_value_that_is_not_known_is_refused() {
    let findings = walk_json(HTTP_RBAC, &json!({"rules": {"action": 7}}));
    assert_eq!(reasons(&findings), ["rules.action: nobody knows what a match would do"]);
    let option = json!({"header": {"key": "x-a", "value": "b"}, "append_action": 9});
    let findings = walk_json("envoy.config.core.v3.HeaderValueOption", &option);
    assert_eq!(reasons(&findings), ["append_action: value 9 is not known"]);
}

#[test]
fn principals_and_permissions_that_are_not_evaluated_are_refused() {
    let principal = |json: Value| walk_json(HTTP_RBAC, &rbac(&json)).refused.len();
    let state = |key: &str| json!({"filter_state": {"key": key, "string_match": {"prefix": "spiffe://"}}});
    assert_eq!(principal(state("io.istio.peer_principal")), 0);
    assert_eq!(principal(state("io.istio.other")), 1);
    let claim = |filter: &str| json!({"metadata": {"filter": filter, "path": [{"key": "payload"}], "value": {"present_match": true}}});
    assert_eq!(principal(claim("envoy.filters.http.jwt_authn")), 0);
    assert_eq!(principal(claim("envoy.filters.network.mysql_proxy")), 1);
    assert_eq!(principal(json!({"authenticated": {}})), 1);
    assert_eq!(principal(json!({"not_id": {"or_ids": {"ids": [{"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}]}}})), 0);
}

#[test]
fn shadow_rules_are_walked() {
    let shadow = |prefix: &str, principal: serde_json::Value| {
        let rules = json!({"action": "DENY", "policies": {"p": {"permissions": [{"any": true}], "principals": [principal]}}});
        let findings = walk_json(HTTP_RBAC, &json!({"shadow_rules": rules, "shadow_rules_stat_prefix": prefix}));
        (findings.refused.len(), findings.listed.len())
    };
    for prefix in ["istio_dry_run_allow_", "istio_ext_authz_"] {
        assert_eq!(shadow(prefix, json!({"any": true})), (0, 0));
        assert_eq!(shadow(prefix, json!({"authenticated": {}})), (1, 0), "what cannot be read is refused by name");
    }
}

/// A chain of one connection manager with this filter.
fn chain_with(filter: &DynamicMessage) -> DynamicMessage {
    let any = |type_name: &str, value: Vec<u8>| {
        let mut any = dynamic("google.protobuf.Any", &json!({"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}));
        any.set_field_by_name("type_url", prost_reflect::Value::String(format!("type.googleapis.com/{type_name}")));
        any.set_field_by_name("value", prost_reflect::Value::Bytes(value.into()));
        any
    };
    let mut manager = dynamic(MANAGER, &json!({"stat_prefix": "waypoint", "route_config": {}}));
    manager.set_field_by_name("http_filters", prost_reflect::Value::List(vec![prost_reflect::Value::Message(filter.clone())]));
    let mut network = dynamic("envoy.config.listener.v3.Filter", &json!({"name": "hcm"}));
    network.set_field_by_name("typed_config", prost_reflect::Value::Message(any(MANAGER, manager.encode_to_vec())));
    let mut chain = dynamic(CHAIN, &json!({"name": "web"}));
    chain.set_field_by_name("filters", prost_reflect::Value::List(vec![prost_reflect::Value::Message(network)]));
    chain
}

#[test]
fn an_extension_of_an_unknown_type_is_refused_by_name() {
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    let mut filter =
        dynamic(name, &json!({"name": "shop.cart", "typed_config": {"@type": "type.googleapis.com/google.protobuf.Empty", "value": {}}}));
    let typed_config = filter.get_field_by_name_mut("typed_config").and_then(prost_reflect::Value::as_message_mut).unwrap();
    typed_config.set_field_by_name("type_url", prost_reflect::Value::String("type.googleapis.com/shop.v1.Cart".to_owned()));
    let findings = walk(&chain_with(&filter));
    assert_eq!(
        reasons(&findings),
        ["filters[0].typed_config.http_filters[0].typed_config: filter shop.cart (type.googleapis.com/shop.v1.Cart) is not supported"]
    );
    assert_eq!(findings.refused[0].type_name, "shop.v1.Cart");
}

#[test]
fn a_filter_without_configuration_is_refused() {
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    let findings = walk(&chain_with(&dynamic(name, &json!({"name": "envoy.filters.http.router"}))));
    assert_eq!(reasons(&findings), ["filters[0].typed_config.http_filters[0]: filter envoy.filters.http.router has no configuration"]);
}

#[test]
fn a_message_in_json_form_is_opened_as_what_it_is() {
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    let filter = |type_name: &str, value: Value| {
        let typed_struct = json!({"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": format!("type.googleapis.com/{type_name}"), "value": value});
        walk(&chain_with(&dynamic(name, &json!({"name": "f", "typed_config": typed_struct}))))
    };
    let known = filter(
        "io.istio.http.peer_metadata.Config",
        json!({"downstream_discovery": [{"workload_discovery": {}}], "shared_with_upstream": true}),
    );
    assert_eq!((known.refused.len(), known.listed.len()), (0, 0));
    let partly = filter("io.istio.http.peer_metadata.Config", json!({"downstream_discovery": [{"baggage": {}}, {"istio_headers": {}}]}));
    assert_eq!((partly.refused.len(), partly.listed.len()), (0, 1));
    let numbers = filter("envoy.extensions.filters.http.fault.v3.HTTPFault", json!({"max_active_faults": 5}));
    assert_eq!(
        reasons(&numbers),
        ["filters[0].typed_config.http_filters[0].typed_config.max_active_faults: faults would be limited in number"]
    );
    let garbled = filter("io.istio.http.peer_metadata.Config", json!({"surprise": 1}));
    assert_eq!(garbled.refused.len(), 1);
    assert!(garbled.refused[0].reason.contains("surprise"), "{}", garbled.refused[0].reason);
    let other = filter("envoy.extensions.filters.http.lua.v3.Lua", json!({}));
    assert!(other.refused[0].reason.contains("envoy.extensions.filters.http.lua.v3.Lua"), "{}", other.refused[0].reason);
}

#[test]
fn a_longest_duration_is_obeyed_for_clients_streams_and_listed_for_a_cluster_s() {
    let options = json!({"max_stream_duration": "15s"});
    let listed = |name: &str, value: Value| {
        let found = walk_json(name, &value);
        assert!(!found.refused.iter().any(|one| one.path.contains("duration")), "{name}");
        found.listed.len()
    };
    let manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    assert_eq!(listed(manager, json!({"common_http_protocol_options": options})), 0);
    assert_eq!(listed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions", json!({"common_http_protocol_options": options})), 1);
}

#[test]
fn connect_is_routed_only_into_the_tunnel() {
    let route = |cluster: &str| {
        walk_json("envoy.config.route.v3.Route", &json!({"match": {"connect_matcher": {}}, "route": {"cluster": cluster}})).refused.len()
    };
    assert_eq!((route("main_internal"), route("inbound-vip|80|http|web")), (0, 1));
}

#[test]
fn the_client_certificate_and_the_trust_domain_are_not_negotiable() {
    let name = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let walk = |json: Value| reasons(&walk_json(name, &json));
    assert_eq!(
        walk(json!({"require_client_certificate": false})),
        ["require_client_certificate: clients without a certificate would be let in"]
    );
    let common = |context: Value| walk(json!({"common_tls_context": context, "require_client_certificate": true}));
    assert_eq!(common(json!({"tls_params": {"tls_minimum_protocol_version": "TLSv1_2"}})).len(), 1);
    let secret = json!({"tls_certificate_sds_secret_configs": [{"name": "kubernetes://other"}]});
    assert_eq!(common(secret), ["common_tls_context.tls_certificate_sds_secret_configs[0].name: another secret would be used"]);
}

#[test]
fn a_message_nested_too_deep_is_refused() {
    let mut matcher = json!({"on_no_match": {"action": {"name": "chain", "typed_config": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "chain"}}}});
    for _ in 0..DEPTH_MAX / 5 {
        let ip =
            json!({"@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher", "range_matchers": [{"on_match": {"matcher": matcher}}]});
        matcher = json!({"matcher_tree": {"input": input(), "custom_match": {"name": "ip", "typed_config": ip}}});
    }
    let findings = walk_json("xds.type.matcher.v3.Matcher", &matcher);
    assert!(reasons(&findings).iter().any(|reason| reason.contains("nested deeper than 128")), "{:#?}", reasons(&findings));
}

fn input() -> Value {
    json!({"name": "ip", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.DestinationIPInput"}})
}

#[test]
fn findings_are_bounded() {
    let unknown = json!({"kind": {"host": {}}, "metadata_key": {"key": "a", "path": [{"key": "b"}]}});
    let tags: Vec<_> = (0..super::FINDINGS_MAX + 3).map(|index| json!({"tag": index.to_string(), "metadata": unknown})).collect();
    let findings = walk_json(&format!("{MANAGER}.Tracing"), &json!({"custom_tags": tags}));
    assert_eq!((findings.listed.len(), findings.omitted), (super::FINDINGS_MAX, 3));
}

#[test]
fn bytes_of_another_type_or_of_none_are_an_error() {
    assert!(matches!(walk_bytes("shop.v1.Cart", &[]), Err(super::CoverageError::UnknownType(name)) if name == "shop.v1.Cart"));
    let malformed = walk_bytes_without(CLUSTER, &[0xff], &[]);
    assert!(matches!(malformed, Err(super::CoverageError::Malformed { type_name, .. }) if type_name == CLUSTER));
}

#[test]
fn a_resource_that_the_table_does_not_have_is_refused() {
    let findings = walk_json("envoy.config.route.v3.ScopedRouteConfiguration", &json!({"name": "s"}));
    assert_eq!(findings.refused.len(), 1);
}
#[test]
fn an_upgrade_to_connect_is_for_the_tunnel_only() {
    let manager = |upgrade: &str, cluster: &str| {
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}});
        let routes = json!({"virtual_hosts": [{"name": "default", "domains": ["*"], "routes": [route]}]});
        let manager = json!({"stat_prefix": "waypoint", "upgrade_configs": [{"upgrade_type": upgrade}], "route_config": routes, "forward_client_cert_details": "APPEND_FORWARD"});
        reasons(&walk_json(MANAGER, &manager))
    };
    let forwarding = "forward_client_cert_details: x-forwarded-client-cert would be written";
    assert_eq!(manager("CONNECT", "main_internal"), [""; 0]);
    assert_eq!(manager("websocket", "web"), [forwarding]);
    assert_eq!(manager("CONNECT", "web"), [forwarding, "upgrade_configs[0].upgrade_type: CONNECT inside a tunnel would be forwarded"]);
}
