//! Limits on the rate of requests.

use super::*;

const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
const LIMIT: &str = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

fn limit(max_tokens: u32, more: Value) -> Value {
    let all = json!({"default_value": {"numerator": 100}});
    let mut config = json!({
        "@type": LIMIT,
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
    let format = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
    format["above"] = "%REQ(X-ABOVE)%".into();
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
    assert_eq!((&seen[4].line["above"], &seen[5].line["above"]), (&Value::Null, &"yes".into()));
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

fn bucket(max_tokens: u32) -> Value {
    json!({"max_tokens": max_tokens, "fill_interval": "600s"})
}

/// The limit of a descriptor; a value of `""` is left open.
fn described(entries: &[(&str, &str)], max_tokens: u32) -> Value {
    let entries: Vec<_> = entries.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    json!({"entries": entries, "token_bucket": bucket(max_tokens)})
}

/// What makes a descriptor: each action by its name and what it says.
fn made_by(actions: &[(&str, Value)]) -> Value {
    let actions: Vec<_> = actions.iter().map(|(name, of)| json!({ *name: of })).collect();
    json!({"actions": actions})
}

fn codes(seen: &[Seen]) -> Vec<u16> {
    seen.iter().map(|seen| seen.status.as_u16()).collect()
}

/// Routes of a chain with a filter that limits nothing by itself.
async fn both_with(routes: Vec<Value>, host: Value) -> Result<Both> {
    Both::edited(|scenario| {
        with_routes(scenario, routes)?;
        scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["rate_limits"] = host;
        let chain = json!({"@type": LIMIT, "stat_prefix": "x"});
        scenario.add_http_filters(WEB_CHAIN, vec![json!({"name": RATE_LIMIT, "typed_config": chain})])
    })
    .await
}

/// A route with a limit of this many tokens, descriptors with theirs, and what makes descriptors.
fn described_route(name: &str, tokens: u32, descriptors: Vec<Value>, rules: Vec<Value>) -> Value {
    let mut route = with_limit(name, Some(limit(tokens, json!({"descriptors": descriptors}))));
    route["route"]["rate_limits"] = rules.into();
    route
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_a_descriptor_have_a_limit_of_their_own_as_in_envoy() -> Result<()> {
    let user = json!({"header_name": "x-user", "descriptor_key": "user"});
    let optional = json!({"header_name": "x-user", "descriptor_key": "user", "skip_if_absent": true});
    let query = json!({"query_parameter_name": "q", "descriptor_key": "q"});
    let header_match = json!({"descriptor_value": "yes", "headers": [{"name": "x-user", "string_match": {"prefix": "a"}}]});
    let query_match = json!({"descriptor_value": "no", "descriptor_key": "k", "expect_match": false, "query_parameters": [{"name": "q", "string_match": {"exact": "1"}}]});
    let path = json!({"header_name": ":path", "descriptor_key": "path"});
    let generic = |value: &str| ("generic_key", json!({"descriptor_value": value}));
    let routes = vec![
        described_route("header", 9, vec![described(&[("user", "a")], 1)], vec![made_by(&[("request_headers", user.clone())])]),
        described_route(
            "two",
            9,
            vec![described(&[("generic_key", "g"), ("user", "a")], 1)],
            vec![made_by(&[generic("g"), ("request_headers", optional)])],
        ),
        described_route("query", 9, vec![described(&[("q", "a b")], 1)], vec![made_by(&[("query_parameters", query)])]),
        described_route("match", 9, vec![described(&[("header_match", "yes")], 1)], vec![made_by(&[("header_value_match", header_match)])]),
        described_route("unasked", 9, vec![described(&[("k", "no")], 1)], vec![made_by(&[("query_parameter_value_match", query_match)])]),
        described_route(
            "cluster",
            9,
            vec![described(&[("destination_cluster", WEB_CHAIN)], 1)],
            vec![made_by(&[("destination_cluster", json!({}))])],
        ),
        described_route("path", 9, vec![described(&[("path", "/path?x")], 1)], vec![made_by(&[("request_headers", path)])]),
        described_route("open", 9, vec![described(&[("user", "")], 1)], vec![made_by(&[("request_headers", user)])]),
    ];
    let mut both = both_with(routes, json!([])).await?;
    let (a, b, ab) = (&[("x-user", "a")], &[("x-user", "b")], &[("x-user", "a"), ("x-user", "b")]);
    for (path, headers, expected) in [
        ("/header", &[&a[..], &b[..], &[], &a[..], &b[..], &ab[..]][..], &[200, 200, 200, 429, 200, 429][..]),
        ("/two", &[&a[..], &[], &a[..], &[]], &[200, 200, 429, 200]),
        ("/query?q=a%20b", &[&[], &[]], &[200, 429]),
        ("/query?x=1&q=a+b&q=c", &[&[], &[]], &[200, 200]),
        ("/match", &[&a[..], &a[..], &b[..]], &[200, 429, 200]),
        ("/unasked?q=1", &[&[], &[]], &[200, 200]),
        ("/unasked?q=2", &[&[], &[]], &[200, 429]),
        ("/cluster", &[&[], &[]], &[200, 429]),
        ("/path?x", &[&[], &[]], &[200, 429]),
        ("/path?y", &[&[], &[]], &[200, 200]),
        ("/open", &[&a[..], &b[..], &a[..], &b[..], &[]], &[200, 200, 429, 429, 200]),
    ] {
        let asks: Vec<_> = headers.iter().map(|headers| Ask::get(path).with(headers)).collect();
        assert_eq!(codes(&both.all_same(&asks).await?), expected, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_by_descriptor_count_together_as_in_envoy() -> Result<()> {
    let user = || made_by(&[("request_headers", json!({"header_name": "x-user", "descriptor_key": "user"}))]);
    let generic = || made_by(&[("generic_key", json!({"descriptor_value": "all"}))]);
    let descriptors = || {
        let mut all = described(&[("generic_key", "all")], 3);
        // Filled faster, so that it is asked last.
        all["token_bucket"]["tokens_per_fill"] = 2.into();
        vec![all, described(&[("user", "a")], 1)]
    };
    let mut apart = described_route("apart", 1, descriptors(), vec![user()]);
    apart["typed_per_filter_config"][RATE_LIMIT]["always_consume_default_token_bucket"] = false.into();
    let mut own = described_route("own", 9, descriptors(), vec![generic()]);
    own["typed_per_filter_config"][RATE_LIMIT]["rate_limits"] = json!([user()]);
    let mut included = described_route("included", 9, descriptors(), vec![user()]);
    included["typed_per_filter_config"][RATE_LIMIT]["vh_rate_limits"] = "INCLUDE".into();
    let mut ignoring = described_route("ignoring", 9, descriptors(), vec![]);
    ignoring["typed_per_filter_config"][RATE_LIMIT]["vh_rate_limits"] = "IGNORE".into();
    let mut staged = described_route("staged", 9, descriptors(), vec![user()]);
    staged["route"]["rate_limits"][0]["stage"] = 1.into();
    let routes = vec![
        described_route("both", 9, descriptors(), vec![generic(), user()]),
        described_route("beyond", 2, descriptors(), vec![generic()]),
        apart,
        own,
        included,
        described_route("host", 9, descriptors(), vec![]),
        ignoring,
        staged,
    ];
    let mut both = both_with(routes, json!([generic()])).await?;
    let (a, b) = (&[("x-user", "a")], &[("x-user", "b")]);
    for (path, headers, expected) in [
        // Those above one limit take no token of the other, where the stricter one is asked first.
        ("/both", &[&a[..], &a[..], &b[..], &b[..], &b[..]][..], &[200, 429, 200, 200, 429][..]),
        ("/beyond", &[&[], &[], &[]], &[200, 200, 429]),
        ("/apart", &[&a[..], &a[..], &b[..], &b[..]], &[200, 429, 200, 429]),
        ("/own", &[&a[..], &a[..], &b[..], &b[..], &b[..], &b[..]], &[200, 429, 200, 200, 200, 200]),
        ("/included", &[&a[..], &a[..], &b[..], &b[..], &b[..]], &[200, 429, 200, 200, 429]),
        ("/host", &[&[], &[], &[], &[]], &[200, 200, 200, 429]),
        ("/ignoring", &[&[], &[], &[], &[]], &[200, 200, 200, 200]),
        ("/staged", &[&a[..], &a[..]], &[200, 200]),
    ] {
        let asks: Vec<_> = headers.iter().map(|headers| Ask::get(path).with(headers)).collect();
        assert_eq!(codes(&both.all_same(&asks).await?), expected, "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_by_address_is_of_whom_x_forwarded_for_names_last_as_in_envoy() -> Result<()> {
    let masked = made_by(&[("masked_remote_address", json!({"v4_prefix_mask_len": 24}))]);
    let routes = vec![
        described_route("one", 9, vec![described(&[("remote_address", "")], 1)], vec![made_by(&[("remote_address", json!({}))])]),
        described_route("many", 9, vec![described(&[("masked_remote_address", "10.9.8.0/24")], 1)], vec![masked]),
    ];
    let mut both = both_with(routes, json!([])).await?;
    let [a, b, c] = ["1.1.1.1, 10.9.8.1", "10.9.8.2", "10.9.7.2"].map(|of| [("x-forwarded-for", of)]);
    for (path, expected) in [("/one", [200, 200, 200, 429, 429, 429]), ("/many", [200, 429, 200, 429, 429, 200])] {
        let asks: Vec<_> = [&a, &b, &c, &a, &b, &c].into_iter().map(|headers| Ask::get(path).with(headers)).collect();
        assert_eq!(codes(&both.all_same(&asks).await?), expected, "{path}");
    }
    Ok(())
}
