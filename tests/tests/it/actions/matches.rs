//! Which route a request takes, how shares and levels change it, and what callers may not say.

use super::*;

fn named(name: &str, matched: Value) -> Value {
    forward(name, matched, json!({}))
}

fn with_headers(headers: Value) -> Value {
    json!({"prefix": "/header", "headers": headers})
}

fn test_of(name: &str, test: Value) -> Value {
    json!({"name": name, "string_match": test})
}

/// One route for each way to ask, in their order; what meets none takes the route of the service.
fn routes() -> Vec<Value> {
    let query = |parameter: Value| json!({"prefix": "/query", "query_parameters": [parameter]});
    vec![
        named("exact", json!({"path": "/exact"})),
        named("exact-any-case", json!({"path": "/EXACT/case", "case_sensitive": false})),
        named("separated", json!({"path_separated_prefix": "/separated"})),
        named("regex", json!({"safe_regex": {"regex": "/regex/[a-c]+"}})),
        named("grpc", json!({"prefix": "/grpc", "grpc": {}})),
        named("method", with_headers(json!([test_of(":method", json!({"exact": "PUT"}))]))),
        named("both", with_headers(json!([test_of("x-a", json!({"exact": "1"})), test_of("x-b", json!({"exact": "2"}))]))),
        named("prefix", with_headers(json!([test_of("x-a", json!({"prefix": "pre"}))]))),
        named("suffix", with_headers(json!([test_of("x-a", json!({"suffix": "fix"}))]))),
        named("contains", with_headers(json!([test_of("x-a", json!({"contains": "MID", "ignore_case": true}))]))),
        named("expression", with_headers(json!([test_of("x-a", json!({"safe_regex": {"regex": "[0-9]+,[0-9]+"}}))]))),
        named("inverted", with_headers(json!([{"name": "x-c", "string_match": {"exact": "1"}, "invert_match": true}]))),
        named(
            "missing-as-empty",
            with_headers(json!([
                {"name": "x-d", "string_match": {"exact": "1"}, "invert_match": true, "treat_missing_header_as_empty": true},
                {"name": "x-e", "present_match": true},
            ])),
        ),
        named("absent", with_headers(json!([{"name": "x-e", "present_match": false}, {"name": "x-f", "present_match": true}]))),
        named("authority", with_headers(json!([test_of(":authority", json!({"suffix": ".other"}))]))),
        named("https", json!({"prefix": "/scheme", "headers": [test_of(":scheme", json!({"exact": "https"}))]})),
        named("http", json!({"prefix": "/scheme", "headers": [test_of(":scheme", json!({"exact": "http"}))]})),
        named("query-exact", query(json!({"name": "q", "string_match": {"exact": "1"}}))),
        named("query-regex", query(json!({"name": "q", "string_match": {"safe_regex": {"regex": "[a-z]+"}}}))),
        named("query-present", query(json!({"name": "p", "present_match": true}))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_take_the_routes_that_they_take_in_envoy() -> Result<()> {
    let mut both = Both::start(routes()).await?;
    let put = |path| Ask { method: Method::PUT, ..Ask::get(path) };
    let asked: Vec<(Ask<'_>, &str)> = vec![
        (Ask::get("/exact"), "exact"),
        (Ask::get("/exact?a=b"), "exact"),
        (Ask::get("/exact/"), "default"),
        (Ask::get("/Exact"), "default"),
        (Ask::get("/exact/CASE"), "exact-any-case"),
        (Ask::get("/separated"), "separated"),
        (Ask::get("/separated/x"), "separated"),
        (Ask::get("/separated?x"), "separated"),
        (Ask::get("/separatedx"), "default"),
        (Ask::get("/regex/abc"), "regex"),
        (Ask::get("/regex/abcd"), "default"),
        (Ask::get("/regex/abc?d"), "regex"),
        (Ask { is_http2: true, ..Ask::get("/grpc").with(&[("content-type", "application/grpc+proto")]) }, "grpc"),
        (Ask::get("/grpc").with(&[("content-type", "application/grpc-web")]), "default"),
        (put("/header"), "method"),
        (Ask::get("/header").with(&[("x-a", "1"), ("x-b", "2")]), "both"),
        (Ask::get("/header").with(&[("x-a", "1"), ("x-b", "3"), ("x-c", "1")]), "default"),
        (Ask::get("/header").with(&[("x-a", "prefer")]), "prefix"),
        (Ask::get("/header").with(&[("x-a", "a fix")]), "suffix"),
        (Ask::get("/header").with(&[("x-a", "amid")]), "contains"),
        (Ask::get("/header").with(&[("x-a", "1,22")]), "expression"),
        (Ask::get("/header").with(&[("x-c", "2")]), "inverted"),
        (Ask::get("/header").with(&[("x-e", "")]), "missing-as-empty"),
        (Ask::get("/header").with(&[("x-f", "1")]), "absent"),
        (Ask { host: "web.other", ..Ask::get("/header") }, "authority"),
        (Ask::get("/scheme"), "http"),
        (Ask::get("/scheme").with(&[("x-forwarded-proto", "https")]), "https"),
        (Ask::get("https://web.shop/scheme"), "https"),
        (Ask::get("http://web.shop/scheme").with(&[("x-forwarded-proto", "https")]), "http"),
        (Ask { is_http2: true, ..Ask::get("/scheme") }, "http"),
        (Ask { is_http2: true, scheme: "https", ..Ask::get("/scheme") }, "https"),
        (Ask { is_http2: true, ..Ask::get("/scheme").with(&[("x-forwarded-proto", "https")]) }, "http"),
        (Ask::get("/query?q=1"), "query-exact"),
        (Ask::get("/query?q=2&q=1"), "default"),
        (Ask::get("/query?x=1&q=abc"), "query-regex"),
        (Ask::get("/query?q=%61"), "default"),
        (Ask::get("/query?p"), "query-present"),
        (Ask::get("/query?P"), "default"),
    ];
    let asks: Vec<_> = asked.iter().map(|(ask, _)| ask.clone()).collect();
    for (seen, (ask, route)) in both.all_same(&asks).await?.into_iter().zip(&asked) {
        assert_eq!(seen.line["route"], *route, "{ask:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_to_no_cluster_says_so_as_in_envoy() -> Result<()> {
    let missing = |name: &str, status: Option<&str>| {
        let mut route = forward(name, json!({"path_separated_prefix": format!("/{name}")}), json!({}));
        route["route"]["cluster"] = "no-such-cluster".into();
        if let Some(status) = status {
            route["route"]["cluster_not_found_response_code"] = status.into();
        }
        route
    };
    let none = json!({"name": "no-such-cluster", "weight": 1});
    let shares = json!({"weighted_clusters": {"clusters": [none, {"name": WEB_CHAIN, "weight": 0}]}});
    let mut both = Both::start(vec![
        missing("default", None),
        missing("internal", Some("INTERNAL_SERVER_ERROR")),
        missing("not-found", Some("NOT_FOUND")),
        forward("shares", json!({"path_separated_prefix": "/shares"}), shares),
    ])
    .await?;
    let grpc = Ask { is_http2: true, ..Ask::get("/internal/grpc").with(&[("content-type", "application/grpc")]) };
    let asks = [Ask::get("/default"), Ask::get("/internal"), Ask::get("/not-found"), Ask::get("/shares"), grpc];
    let seen = both.all_same(&asks).await?;
    assert_eq!(seen.iter().map(|seen| seen.status.as_u16()).collect::<Vec<_>>(), [503, 500, 404, 503, 200]);
    for seen in &seen {
        assert_eq!((&seen.line["response_flags"], &seen.line["details"]), (&"NC".into(), &"cluster_not_found".into()));
    }
    Ok(())
}

fn add(key: &str, value: &str, action: &str) -> Value {
    json!({"header": {"key": key, "value": value}, "append_action": action})
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_and_levels_change_headers_in_the_order_of_envoy() -> Result<()> {
    let all = |level: &str| {
        json!([
            add("x-append", level, "APPEND_IF_EXISTS_OR_ADD"),
            add("x-absent", level, "ADD_IF_ABSENT"),
            add("x-over", level, "OVERWRITE_IF_EXISTS_OR_ADD"),
            add("x-only", level, "OVERWRITE_IF_EXISTS"),
        ])
    };
    for nearest_wins in [false, true] {
        let share = json!({
            "name": WEB_CHAIN, "weight": 7, "request_headers_to_add": all("share"), "request_headers_to_remove": ["x-gone"],
            "response_headers_to_add": all("share"), "response_headers_to_remove": ["x-answered"],
        });
        let never = json!({"name": REVIEWS_CHAIN, "weight": 0});
        let mut route = forward("shared", json!({"prefix": "/shared"}), json!({"weighted_clusters": {"clusters": [never, share]}}));
        route["request_headers_to_add"] = all("route");
        route["response_headers_to_add"] = all("route");
        let mut both = Both::edited(|scenario| {
            with_routes(scenario, vec![route])?;
            let table = &mut scenario.http(WEB_CHAIN)?["route_config"];
            table["most_specific_header_mutations_wins"] = nearest_wins.into();
            table["request_headers_to_add"] = all("table");
            table["response_headers_to_add"] = all("table");
            let host = &mut table["virtual_hosts"][0];
            host["request_headers_to_add"] = all("host");
            host["response_headers_to_add"] = all("host");
            Ok(())
        })
        .await?;
        let named = [("x-gone", "1"), ("x-only", "client"), ("x-answer-with", "x-answered=1"), ("x-answer-with", "x-only=pod")];
        let seen = both.all_same(&[Ask::get("/shared"), Ask::get("/shared").with(&named)]).await?;
        let nearest = if nearest_wins { "route" } else { "table" };
        assert_eq!((&*seen[1].told("x-gone"), &*seen[1].told("x-over"), seen[1].header("x-only")), ("", nearest, nearest));
        assert_eq!(seen[0].told("x-only"), "");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn header_operators_print_what_envoy_prints() -> Result<()> {
    let operators = [
        "%REQ(X-A?X-B):3%",
        "%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)%",
        "%PROTOCOL%",
        "%ROUTE_NAME%",
        "%UPSTREAM_CLUSTER%",
        "%START_TIME(%Y)%",
        "100%%",
        "%REQUESTED_SERVER_NAME%",
        "[%REQ(X-NONE)%]",
        "%RESPONSE_CODE%",
        "%RESPONSE_FLAGS%",
        "%RESP(X-ANSWERED)%",
        "%BYTES_RECEIVED%",
        "%DYNAMIC_METADATA(none:none)%",
    ];
    let adds = |which: &[&str]| -> Value {
        let adds = which.iter().enumerate().map(|(at, operator)| add(&format!("x-op-{at}"), operator, "OVERWRITE_IF_EXISTS_OR_ADD"));
        adds.collect()
    };
    let mut route = forward("operated", json!({"prefix": "/operated"}), json!({}));
    route["request_headers_to_add"] = adds(&operators);
    route["response_headers_to_add"] = adds(&operators);
    let direct = json!({
        "name": "direct", "match": {"prefix": "/direct"}, "direct_response": {"status": 403, "body": {"inline_string": "no"}},
        "response_headers_to_add": adds(&operators),
    });
    let mut both = Both::start(vec![route, direct]).await?;
    let headers = [("x-b", "abcdef"), ("x-answer-with", "x-answered=yes")];
    let seen = both.same(Ask::get("/operated?a=1").with(&headers)).await?;
    assert_eq!((&*seen.told("x-op-0"), &*seen.told("x-op-6"), seen.header("x-op-9")), ("abc", "100%", "200"));
    assert_eq!(both.same(Ask::get("/direct")).await?.header("x-op-9"), "0", "of an answer that is made here there is none yet");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_say_nothing_about_retries_and_time_wherever_they_claim_to_be() -> Result<()> {
    let mut both = Both::start(vec![]).await?;
    let inside = ("x-forwarded-for", "10.0.0.1");
    let timeout = ("x-envoy-upstream-rq-timeout-ms", "20");
    let retries = [("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "3"), ("x-envoy-upstream-rq-per-try-timeout-ms", "20")];
    let others = [
        ("x-envoy-internal", "true"),
        ("x-envoy-original-path", "/other"),
        ("x-envoy-force-trace", "true"),
        ("x-envoy-expected-rq-timeout-ms", "7"),
        ("x-envoy-external-address", "9.9.9.9"),
        ("x-envoy-ip-tags", "a"),
        ("x-envoy-attempt-count", "9"),
        ("x-envoy-decorator-operation", "mine"),
        ("x-envoy-peer-metadata", "m"),
        ("x-envoy-other", "kept"),
    ];
    let mut seen = Vec::new();
    for claims in [&[][..], &[inside][..]] {
        let with = |more: &[(&'static str, &'static str)]| [claims, more].concat();
        let (slow, failing, odd) = (with(&[timeout]), with(&retries), with(&others));
        let path = format!("/fail/503/9/{}", claims.len());
        let asks = [Ask::get("/delay/120").with(&slow), Ask::get(&path).with(&failing), Ask::get("/odd").with(&odd)];
        seen.extend(both.all_same(&asks).await?);
    }
    assert_eq!(seen.iter().map(|seen| seen.status.as_u16()).collect::<Vec<_>>(), [200, 503, 200, 200, 503, 200]);
    assert_eq!((&*seen[2].told("x-envoy-internal"), &*seen[2].told("x-envoy-other")), ("", "kept"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_one_header_are_matched_each_for_itself_as_in_envoy() -> Result<()> {
    let tests = [
        ("/whole", json!({"exact": "1,22"}), false),
        ("/one", json!({"exact": "1"}), false),
        ("/regex", json!({"safe_regex": {"regex": "[0-9]+"}}), false),
        ("/contains", json!({"contains": ","}), false),
        ("/not-first", json!({"exact": "1"}), true),
        ("/not-second", json!({"exact": "22"}), true),
        ("/not-any", json!({"exact": "9"}), true),
    ];
    let route = |(path, test, inverted): &(&str, Value, bool)| {
        named("taken", json!({"path": path, "headers": [{"name": "x-a", "string_match": test, "invert_match": inverted}]}))
    };
    let mut both = Both::start(tests.iter().map(route).collect()).await?;
    let lines = [&[("x-a", "1"), ("x-a", "22")][..], &[("x-a", "1,22")], &[("x-a", "1"), ("x-a", "1")]];
    for ((path, ..), taken) in tests.iter().zip([
        [false, true, false],
        [true, false, true],
        [true, false, true],
        [false, true, false],
        [false, true, false],
        [false, true, true],
        [true, true, true],
    ]) {
        let asks: Vec<_> = lines.iter().map(|lines| Ask::get(path).with(lines)).collect();
        let seen = both.all_same(&asks).await?;
        assert_eq!(seen.iter().map(|seen| seen.line["route"] == "taken").collect::<Vec<_>>(), taken, "{path}");
    }
    Ok(())
}
