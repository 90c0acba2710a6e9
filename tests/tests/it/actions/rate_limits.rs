//! Limits on the rate of requests.

use super::*;

const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";

fn limit(max_tokens: u32, more: Value) -> Value {
    let all = json!({"default_value": {"numerator": 100}});
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limit", "token_bucket": {"max_tokens": max_tokens, "fill_interval": "600s"},
        "filter_enabled": all, "filter_enforced": all, "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    config
}

fn with_limit(name: &str, config: Option<Value>) -> Value {
    let mut route = forward(name, json!({"prefix": format!("/{name}")}), json!({}));
    if let Some(config) = config {
        route["typed_per_filter_config"][RATE_LIMIT] = config;
    }
    route
}

fn limits(scenario: &mut Scenario) -> Result<()> {
    let add = |name: &str| json!([{"header": {"key": name, "value": "yes"}}]);
    let none = json!({"default_value": {"numerator": 0}});
    with_routes(
        scenario,
        vec![
            with_limit("own", Some(limit(1, json!({"status": {"code": 503}, "response_headers_to_add": add("x-limited")})))),
            with_limit("grpc", Some(limit(1, json!({"rate_limited_as_resource_exhausted": true})))),
            with_limit(
                "told",
                Some(limit(1, json!({"filter_enforced": none, "request_headers_to_add_when_not_enforced": add("x-above")}))),
            ),
            with_limit("off", Some(limit(1, json!({"filter_enabled": none})))),
            with_limit("chain-a", None),
            with_limit("chain-b", None),
        ],
    )?;
    scenario.add_http_filters(WEB_CHAIN, vec![json!({"name": RATE_LIMIT, "typed_config": limit(3, json!({}))})])
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_above_a_limit_are_refused_as_envoy_does() -> Result<()> {
    let mut both = Both::edited(limits).await?;
    let grpc = &[("content-type", "application/grpc")];
    let grpc = Ask { is_http2: true, ..Ask::get("/grpc").with(grpc) };
    let asks = [
        Ask::get("/own"),
        Ask::get("/own"),
        grpc.clone(),
        grpc,
        Ask::get("/told"),
        Ask::get("/told"),
        Ask::get("/off"),
        Ask::get("/off"),
        Ask::get("/chain-a"),
        Ask::get("/chain-b"),
        Ask::get("/chain-a"),
        Ask::get("/chain-b"),
    ];
    let seen = both.all_same(&asks).await?;
    let codes: Vec<_> = seen.iter().map(|seen| seen.status.as_u16()).collect();
    assert_eq!(codes, [200, 503, 200, 200, 200, 200, 200, 200, 200, 200, 200, 429]);
    assert_eq!((&seen[1].line["response_flags"], &seen[1].line["details"]), (&"RL".into(), &"local_rate_limited".into()));
    assert_eq!((seen[1].header("x-limited"), seen[3].header("grpc-status")), ("yes", "8"));
    assert_eq!((&*seen[4].told("x-above"), &*seen[5].told("x-above")), ("", "yes"));
    let told = |at: usize| (seen[at].header("x-ratelimit-limit"), seen[at].header("x-ratelimit-remaining"));
    assert_eq!([told(7), told(8), told(11)], [("", ""), ("3", "2"), ("3", "0")]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_before_policies_counts_what_they_refuse_and_one_behind_does_not() -> Result<()> {
    for (is_first, codes) in [(true, [403, 429]), (false, [403, 403])] {
        let mut both = Both::edited(|scenario| {
            with_routes(scenario, vec![])?;
            let rules = json!({"action": "DENY", "policies": {"ns[shop]-policy[all]-rule[0]": {"permissions": [{"any": true}], "principals": [{"any": true}]}}});
            let rbac = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC", "rules": rules});
            let mut filters = vec![json!({"name": "envoy.filters.http.rbac", "typed_config": rbac})];
            filters.insert(usize::from(!is_first), json!({"name": RATE_LIMIT, "typed_config": limit(1, json!({}))}));
            scenario.add_http_filters(WEB_CHAIN, filters)
        })
        .await?;
        let seen = both.all_same(&[Ask::get("/"), Ask::get("/")]).await?;
        assert_eq!(seen.iter().map(|seen| seen.status.as_u16()).collect::<Vec<_>>(), codes);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_chain_counts_requests_without_a_route() -> Result<()> {
    for is_first in [true, false] {
        let mut both = Both::edited(|scenario| {
            with_routes(scenario, vec![])?;
            let http = scenario.http(WEB_CHAIN)?;
            http["route_config"]["virtual_hosts"][0]["routes"] = json!([forward("known", json!({"prefix": "/known"}), json!({}))]);
            let limit = json!({"name": RATE_LIMIT, "typed_config": limit(1, json!({}))});
            if let Some(filters) = http["http_filters"].as_array_mut() {
                // Behind all others but the router.
                let at = if is_first { 0 } else { filters.len() - 1 };
                filters.insert(at, limit);
            }
            Ok(())
        })
        .await?;
        let seen = both.all_same(&[Ask::get("/unknown"), Ask::get("/unknown"), Ask::get("/known")]).await?;
        assert_eq!(seen.iter().map(|seen| seen.status.as_u16()).collect::<Vec<_>>(), [404, 429, 429]);
    }
    Ok(())
}
