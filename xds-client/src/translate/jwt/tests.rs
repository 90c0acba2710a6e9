#![expect(clippy::unwrap_used, reason = "tests")]

use prost::Message;
use serde_json::{Value, json};

use super::*;

fn read(json: &Value) -> Translated<JwtAuthn> {
    let bytes = xds_proto::message_from_json("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", json).unwrap();
    jwt_authn(&proto::JwtAuthentication::decode(&bytes[..]).unwrap(), "jwt")
}

fn with(requires: &Value) -> Translated<JwtAuthn> {
    let provider = json!({"issuer": "i", "local_jwks": {"inline_string": "{\"keys\":[]}"}});
    read(&json!({"providers": {"a": provider, "b": provider}, "rules": [{"match": {"prefix": "/"}, "requires": requires}]}))
}

#[test]
fn a_requirement_is_read_whole_or_refused() {
    let any = with(&json!({"requires_any": {"requirements": [{"provider_name": "b"}, {"allow_missing": {}}]}})).unwrap();
    let Some(Requirement::Any { of, allow_missing: true }) = &any.rules[0].requires else { panic!("any") };
    assert!(matches!(of.as_slice(), [Requirement::Provider { provider: 1, audiences: None }]));
    for (refused, reason) in [
        (json!({}), "not set"),
        (json!({"provider_name": "c"}), "no provider"),
        (json!({"requires_any": {}}), "no provider"),
        (json!({"requires_all": {}}), "no provider"),
        (json!({"requires_any": {"requirements": [{"allow_missing": {}}]}}), "no provider"),
        (json!({"allow_missing": {}}), "allow_missing"),
        (json!({"requires_any": {"requirements": [{"provider_name": "a"}, {"allow_missing_or_failed": {}}]}}), "allow_missing_or_failed"),
    ] {
        let problem = with(&refused).unwrap_err();
        assert!(problem.reason.contains(reason), "{refused}: {problem:?}");
    }
}

#[test]
fn tokens_are_looked_for_in_envoys_order_and_by_default_in_two_places() {
    let places = |more: Value| {
        let mut provider = json!({"local_jwks": {"inline_string": "{\"keys\":[]}"}});
        provider.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(&json!({"providers": {"a": provider}})).unwrap().providers.remove(0).places
    };
    let header = |name: &str, prefix: &str| TokenPlace::Header { name: name.parse().unwrap(), prefix: prefix.into() };
    assert_eq!(places(json!({})), [header("authorization", "Bearer "), TokenPlace::Parameter("access_token".into())]);
    let named = json!({
        "from_cookies": ["s"],
        "from_params": ["z", "a"],
        "from_headers": [{"name": "X-B"}, {"name": "x-a", "value_prefix": "P "}, {"name": "x-b"}],
    });
    let parameter = |name: &str| TokenPlace::Parameter(name.into());
    assert_eq!(places(named), [header("x-a", "P "), header("x-b", ""), parameter("a"), parameter("z"), TokenPlace::Cookie("s".into())]);
}

#[test]
fn keys_that_are_elsewhere_or_none_refuse_the_filter() {
    for (source, reason) in [
        (json!({}), "not set"),
        (json!({"remote_jwks": {"http_uri": {"uri": "http://a", "cluster": "c", "timeout": "1s"}}}), "inline"),
        (json!({"local_jwks": {"filename": "/keys"}}), "inline"),
        (json!({"local_jwks": {"inline_string": "no"}}), "JSON"),
    ] {
        let problem = read(&json!({"providers": {"a": source}})).unwrap_err();
        assert!(problem.reason.contains(reason) && problem.path.starts_with("jwt.providers[a]"), "{source}: {problem:?}");
    }
}
