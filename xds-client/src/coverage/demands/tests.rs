#![expect(clippy::unwrap_used, reason = "tests")]
use serde_json::{Value, json};

use super::super::table::SECTIONS;
use super::super::walk;
use super::*;

/// What is said of a message, path and reason.
fn breaches(name: &str, json: &Value) -> Vec<String> {
    walk(&xds_proto::dynamic_from_json(name, json).unwrap()).refused.iter().map(ToString::to_string).collect()
}

#[test]
fn all_that_is_asked_of_a_message_of_the_table_is_understood() {
    let mut unknown = Vec::new();
    let mut n_demands = 0;
    for entry in SECTIONS.iter().flat_map(|section| section.entries.iter()) {
        if let Some(descriptor) = descriptors().get_message_by_name(entry.message) {
            n_demands += Demands::read(&descriptor, &mut unknown).fields.len();
        }
    }
    assert_eq!(unknown, [""; 0]);
    assert!(n_demands > 200, "{n_demands}");
}

#[test]
fn what_envoy_forbids_is_refused_by_the_field_that_has_it() {
    let rbac = "envoy.config.rbac.v3.Policy";
    let any = json!([{"any": true}]);
    let route = "envoy.config.route.v3.Route";
    let cluster = "envoy.config.cluster.v3.Cluster";
    let to_web = json!({"cluster": "web"});
    for (name, message, path) in [
        (rbac, json!({"permissions": any, "principals": []}), "principals"),
        (rbac, json!({"permissions": [{"and_rules": {"rules": []}}], "principals": any}), "permissions[0].and_rules.rules"),
        (rbac, json!({"permissions": [{"or_rules": {}}], "principals": any}), "permissions[0].or_rules.rules"),
        (rbac, json!({"permissions": [{"not_rule": {"any": false}}], "principals": any}), "permissions[0].not_rule.any"),
        (
            rbac,
            json!({"permissions": [{"header": {"name": "a", "string_match": {"suffix": ""}}}], "principals": any}),
            "permissions[0].header.string_match.suffix",
        ),
        (
            rbac,
            json!({"permissions": [{"header": {"name": "a\nb", "present_match": true}}], "principals": any}),
            "permissions[0].header.name",
        ),
        (rbac, json!({"permissions": [{"destination_port": 65536}], "principals": any}), "permissions[0].destination_port"),
        (
            rbac,
            json!({"permissions": any, "principals": [{"remote_ip": {"address_prefix": "", "prefix_len": 8}}]}),
            "principals[0].remote_ip.address_prefix",
        ),
        (
            rbac,
            json!({"permissions": any, "principals": [{"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 129}}]}),
            "principals[0].remote_ip.prefix_len",
        ),
        (route, json!({"match": {"path_separated_prefix": "/a/"}, "route": to_web}), "match.path_separated_prefix"),
        (route, json!({"route": to_web}), "match"),
        (route, json!({"match": {"prefix": "/"}, "route": {"cluster": ""}}), "route.cluster"),
        (cluster, json!({"name": "web", "type": "EDS", "eds_cluster_config": {}, "connect_timeout": "0s"}), "connect_timeout"),
        (cluster, json!({"name": "", "type": "EDS", "eds_cluster_config": {}}), "name"),
    ] {
        let found = breaches(name, &message);
        assert!(found.iter().any(|one| one.starts_with(&format!("{path}: "))), "{path} of {message}: {found:?}");
    }
}

#[test]
fn what_is_not_there_and_need_not_be_is_asked_nothing() {
    let policy = json!({"permissions": [{"destination_port": 0}], "principals": [{"any": true}]});
    assert_eq!(breaches("envoy.config.rbac.v3.Policy", &policy), [""; 0]);
    let cluster = json!({"name": "web", "type": "EDS", "eds_cluster_config": {}, "connect_timeout": "0.000000001s"});
    assert_eq!(breaches("envoy.config.cluster.v3.Cluster", &cluster), [""; 0]);
}
