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
fn keys_that_cannot_be_had_refuse_the_filter() {
    for (source, reason) in [
        (json!({}), "not set"),
        (json!({"remote_jwks": {"http_uri": {"uri": "http://a", "timeout": "1s"}}}), "not set"),
        (json!({"remote_jwks": {"http_uri": {"uri": "a b", "cluster": "c", "timeout": "1s"}}}), "URL"),
        (json!({"remote_jwks": {"http_uri": {"uri": "http://a", "cluster": "c"}}}), "not set"),
        (json!({"remote_jwks": {}}), "not set"),
        (json!({"local_jwks": {"filename": "/keys"}}), "inline"),
        (json!({"local_jwks": {"inline_string": "no"}}), "JSON"),
    ] {
        let problem = read(&json!({"providers": {"a": source}})).unwrap_err();
        assert!(problem.reason.contains(reason) && problem.path.starts_with("jwt.providers[a]"), "{source}: {problem:?}");
    }
}

#[test]
fn keys_that_are_fetched_are_asked_for_where_istiod_says() {
    let remote = |remote: Value| {
        let authn = read(&json!({"providers": {"a": {"remote_jwks": remote}}})).unwrap();
        let KeySource::Fetched(remote) = &authn.providers[0].keys else { panic!("fetched") };
        RemoteKeys::clone(remote)
    };
    let of_istiod = json!({
        "http_uri": {"uri": "https://user:secret@issuer.example:8443/a/keys?x=1", "cluster": "outbound|8443||issuer.example", "timeout": "5s"},
        "cache_duration": "300s",
    });
    let expected = RemoteKeys {
        name: "https://issuer.example:8443/a/keys".into(),
        cluster: "outbound|8443||issuer.example".into(),
        host: HeaderValue::from_static("issuer.example:8443"),
        path: PathAndQuery::from_static("/a/keys?x=1"),
        timeout: Some(Duration::from_secs(5)),
        cache_duration: Duration::from_secs(300),
        failed_pause: Duration::from_secs(1),
        retries: None,
    };
    assert_eq!(remote(of_istiod), expected);
    let other = remote(json!({
        "http_uri": {"uri": "issuer.example", "cluster": "c", "timeout": "0s"},
        "async_fetch": {"failed_refetch_duration": "7s"},
        "retry_policy": {"num_retries": 2, "retry_back_off": {"base_interval": "0.01s"}},
    }));
    assert_eq!((other.host.as_bytes(), other.path.as_str(), other.timeout), (&b"issuer.example"[..], "/", None));
    assert_eq!((other.cache_duration.as_secs(), other.failed_pause.as_secs()), (600, 7));
    let retries = FetchRetries { count: 2, pause_first: Duration::from_millis(10), pause_max: Duration::from_millis(100) };
    assert_eq!(other.retries, Some(retries));
}
