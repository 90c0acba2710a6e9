#![expect(clippy::unwrap_used, reason = "tests")]

use prost::Message;
use serde_json::{Value, json};

use super::*;

fn base() -> Value {
    json!({
        "grpc_service": {"envoy_grpc": {"cluster_name": "authz"}, "timeout": "1s"},
        "transport_api_version": "V3",
        "filter_enabled_metadata": {
            "filter": "envoy.filters.http.rbac",
            "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
            "value": {"string_match": {"prefix": "istio-ext-authz-one"}},
        },
    })
}

fn read(json: &Value) -> Translated<ExtAuthz> {
    let bytes = xds_proto::message_from_json("envoy.extensions.filters.http.ext_authz.v3.ExtAuthz", json).unwrap();
    http(&http::ExtAuthz::decode(&bytes[..]).unwrap(), "ext_authz", "filter")
}

fn with(more: &Value) -> Translated<ExtAuthz> {
    let mut json = base();
    for (field, value) in more.as_object().unwrap() {
        json[field] = value.clone();
    }
    read(&json)
}

#[test]
fn what_is_not_said_is_as_envoy_has_it() {
    let filter = read(&json!({"grpc_service": {"envoy_grpc": {"cluster_name": "authz"}}})).unwrap();
    let AuthzService::Grpc(grpc) = &filter.service else { panic!("gRPC") };
    assert_eq!((&*grpc.cluster, grpc.authority.as_bytes(), grpc.timeout), ("authz", &b"authz"[..], Some(CHECK_TIMEOUT_DEFAULT)));
    assert!(filter.gate.is_none() && filter.share == Fraction::ALL && filter.told.headers.is_none() && filter.told.body.is_none());
    assert_eq!(filter.on_failure, OnFailure { allows: false, adds_header: false, status: 403 });
    let http = json!({"http_service": {"server_uri": {"uri": "http://a", "cluster": "authz", "timeout": "600s"}}});
    let filter = read(&http).unwrap();
    let told = filter.told.headers.unwrap();
    assert!([":method", ":path", ":authority", "authorization"].iter().all(|name| told.matches(name)) && !told.matches("x-a"));
    let AuthzService::Http(service) = &filter.service else { panic!("HTTP") };
    assert!(service.client_headers.is_none() && service.timeout == Some(Duration::from_secs(600)));
}

#[test]
fn a_filter_is_on_by_the_policies_before_it_or_refused() {
    let gate = read(&base()).unwrap().gate.unwrap();
    assert!(gate.test.matches(b"istio-ext-authz-one-ns[a]-policy[b]-rule[0]") && !gate.test.matches(b"istio-ext-authz-two"));
    let metadata = |filter: &str, key: &str, value: Value| {
        with(&json!({"filter_enabled_metadata": {"filter": filter, "path": [{"key": key}], "value": value}})).is_ok()
    };
    let prefix = json!({"string_match": {"prefix": "a"}});
    assert!(metadata("envoy.filters.http.rbac", "istio_ext_authz_shadow_effective_policy_id", prefix.clone()));
    assert!(!metadata("envoy.filters.http.rbac", "istio_ext_authz_shadow_engine_result", prefix.clone()));
    assert!(!metadata("envoy.filters.http.jwt_authn", "istio_ext_authz_shadow_effective_policy_id", prefix));
    assert!(!metadata("envoy.filters.http.rbac", "istio_ext_authz_shadow_effective_policy_id", json!({"present_match": true})));
}

#[test]
fn what_would_make_a_service_see_or_decide_otherwise_is_refused() {
    let http = |service: Value| {
        let mut json = base();
        json.as_object_mut().unwrap().remove("grpc_service");
        json["http_service"] = service;
        json
    };
    let server = json!({"uri": "http://a", "cluster": "authz", "timeout": "1s"});
    for (json, reason) in [
        (json!({}), "not set"),
        (json!({"grpc_service": {"google_grpc": {"target_uri": "a", "stat_prefix": "a"}}}), "envoy_grpc"),
        (json!({"grpc_service": {"envoy_grpc": {}}}), "no cluster"),
        (http(json!({})), "not set"),
        (http(json!({"server_uri": {"uri": "http://a"}})), "no cluster"),
        (http(json!({"server_uri": server, "path_prefix": "check"})), "slash"),
        (http(json!({"server_uri": server, "path_override": "/check"})), "not supported"),
        (http(json!({"server_uri": server, "authorization_request": {"headers_to_add": [{"key": "x-a", "value": "%PATH%"}]}})), "plain"),
        (
            http(json!({"server_uri": server, "authorization_request": {"headers_to_add": [{"key": "content-length", "value": "1"}]}})),
            "set",
        ),
        (http(json!({"server_uri": server, "authorization_request": {"headers_to_add": [{"key": "Host", "value": "a"}]}})), "set"),
    ] {
        let problem = read(&json).unwrap_err();
        assert!(problem.reason.contains(reason), "{json}: {problem:?}");
    }
    for more in [
        json!({"transport_api_version": "V2"}),
        json!({"metadata_context_namespaces": ["a"]}),
        json!({"shadow_mode": true}),
        json!({"decoder_header_mutation_rules": {}}),
        json!({"with_request_body": {"max_request_bytes": 0}}),
        json!({"with_request_body": {"max_request_bytes": BODY_SHOWN_BYTES_MAX + 1}}),
        json!({"status_on_error": {"code": "Continue"}}),
    ] {
        assert!(with(&more).is_err(), "{more}");
    }
    assert_eq!(with(&json!({"status_on_error": {"code": "ServiceUnavailable"}})).unwrap().on_failure.status, 503);
}

fn of_levels(levels: &[Value]) -> Translated<RouteExternal> {
    let read = |json: &Value| {
        let bytes = xds_proto::message_from_json("envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", json).unwrap();
        http::ExtAuthzPerRoute::decode(&bytes[..]).unwrap()
    };
    of_route(&levels.iter().map(read).collect::<Vec<_>>(), &"ext_authz".into(), "route")
}

#[test]
fn the_most_specific_level_of_a_route_counts_and_contexts_are_put_together() {
    let context = |pairs: Value| json!({"check_settings": {"context_extensions": pairs}});
    let said = of_levels(&[context(json!({"a": "route"})), context(json!({"a": "host", "b": "host"}))]).unwrap();
    let pairs: Vec<_> = said.context.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!((pairs, said.is_off), (vec![("a", "route"), ("b", "host")], false));
    assert!(of_levels(&[json!({"disabled": true})]).unwrap().is_off);
    assert!(!of_levels(&[context(json!({})), json!({"disabled": true})]).unwrap().is_off, "the route says otherwise");
    let body = json!({"max_request_bytes": 7, "allow_partial_message": true});
    let said = of_levels(&[json!({"check_settings": {"with_request_body": body}})]).unwrap();
    assert_eq!(said.body, Some(BodyShown { bytes_max: 7, allows_partial: true }));
    assert!(of_levels(&[json!({"check_settings": {"disable_request_body_buffering": true}})]).unwrap().hides_body);
    assert!(of_levels(&[json!({})]).is_err(), "nothing that is known is said");
    assert!(of_levels(&[json!({"check_settings": {"grpc_service": {"envoy_grpc": {"cluster_name": "other"}}}})]).is_err());
}
