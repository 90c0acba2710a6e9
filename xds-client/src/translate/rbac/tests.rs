#![expect(clippy::unwrap_used, reason = "tests")]

use prost::Message;
use serde_json::{Value, json};

use super::*;

/// The rules of a filter with one policy, from the JSON of its permission and principal.
fn with(permission: &Value, principal: &Value) -> Translated<Rbac> {
    let json = json!({"action": "DENY", "policies": {"p": {"permissions": [permission], "principals": [principal]}}});
    let bytes = xds_proto::message_from_json("envoy.config.rbac.v3.RBAC", &json).unwrap();
    rules(&proto::Rbac::decode(&bytes[..]).unwrap(), "rules")
}

fn permission_of(permission: &Value) -> Translated<Permission> {
    with(permission, &json!({"any": true})).map(|rbac| rbac.policies()[0].permissions[0].clone())
}

fn principal_of(principal: &Value) -> Translated<Principal> {
    with(&json!({"any": true}), principal).map(|rbac| rbac.policies()[0].principals[0].clone())
}

fn template(type_name: &str, template: &str) -> Value {
    json!({"uri_template": {"name": "uri-template", "typed_config":
        {"@type": format!("type.googleapis.com/{type_name}"), "path_template": template}}})
}

#[test]
fn ranges_of_ports_and_path_templates_are_read() {
    let range = permission_of(&json!({"destination_port_range": {"start": 80, "end": 90}})).unwrap();
    assert!(matches!(range, Permission::DestinationPortRange(range) if range == (80..90)));
    let path = permission_of(&template(URI_TEMPLATE, "/public/*/info/**")).unwrap();
    assert!(matches!(path, Permission::UriTemplate(template) if &*template.text == "/public/*/info/**"));
}

#[test]
fn a_template_that_is_none_is_refused_with_its_text() {
    let problem = permission_of(&template(URI_TEMPLATE, "/**/**")).unwrap_err();
    assert_eq!(problem.path, "rules.policies[p].permissions[0]");
    assert!(problem.reason.contains("/**/**"), "{problem:?}");
}

#[test]
fn a_filter_knows_whether_it_reads_the_name_in_a_client_hello() {
    let name = json!({"requested_server_name": {"exact": "a.example"}});
    assert!(matches!(permission_of(&name), Ok(Permission::ServerName(_))));
    let nested = json!({"or_rules": {"rules": [{"any": true}, {"and_rules": {"rules": [{"not_rule": name}]}}]}});
    for (permission, reads) in [(nested, true), (json!({"not_rule": {"any": true}}), false)] {
        assert_eq!(with(&permission, &json!({"any": true})).unwrap().reads_server_name(), reads, "{permission}");
    }
}

#[test]
fn conditions_that_cannot_be_read_refuse_the_filter_by_name() {
    for (permission, reason) in [
        (json!({"destination_ip": {"address_prefix": "10.0.0", "prefix_len": 8}}), "no address"),
        (json!({"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 33}}), "longer"),
        (json!({"destination_port": 65536}), "no port"),
        (json!({"url_path": {"path": {"safe_regex": {"regex": "((a{200}){200}){20}"}}}}), "regular expression"),
        (json!({"url_path": {"path": {"safe_regex": {"regex": "[a&&b]"}}}}), "RE2"),
        (json!({"header": {"name": "not a name", "present_match": true}}), "header name"),
        (
            json!({"metadata": {"filter": "envoy.filters.network.mysql_proxy", "path": [{"key": "db"}], "value": {"present_match": true}}}),
            "metadata",
        ),
    ] {
        let problem = permission_of(&permission).unwrap_err();
        assert!(problem.reason.contains(reason), "{permission}: {problem:?}");
    }
    for (principal, reason) in [
        (json!({"authenticated": {}}), "authenticated"),
        (json!({"source_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}), "source_ip"),
        (json!({"filter_state": {"key": "other", "string_match": {"exact": "a"}}}), "filter state"),
        (json!({}), "not set"),
    ] {
        let problem = principal_of(&principal).unwrap_err();
        assert!(problem.reason.contains(reason), "{principal}: {problem:?}");
    }
}

#[test]
fn the_expressions_of_istiod_need_no_engine() {
    for expression in [".*/ns/shop/.*", "spiffe://.+/ns/clients/(.+/|)sa/batch(/.+)?", ".+"] {
        let principal = json!({"filter_state": {"key": PEER_PRINCIPAL, "string_match": {"safe_regex": {"regex": expression}}}});
        let compiled = principal_of(&principal).unwrap();
        assert!(matches!(compiled, Principal::PeerPrincipal(model::matcher::StringMatcher::Globs(_))), "{expression}");
    }
}
