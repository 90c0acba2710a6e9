//! Changes to headers, parameters and trailers; and policies behind other filters.

use super::*;

const MUTATION: &str = "envoy.filters.http.header_mutation";
const ROUTER: &str = "envoy.filters.http.router";

fn add(name: &str, value: &str, action: &str) -> Value {
    json!({"append": {"header": {"key": name, "value": value}, "append_action": action}})
}

fn parameter(name: &str, value: &str, action: &str) -> Value {
    json!({"append": {"record": {"key": name, "value": value}, "action": action}})
}

fn mutation(mutations: Value, nearest_last: bool) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        "mutations": mutations, "most_specific_header_mutations_wins": nearest_last,
    })
}

fn per_route(mutations: Value) -> Value {
    json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute", "mutations": mutations})
}

/// Puts a filter before another of a chain.
fn insert_before(scenario: &mut Scenario, other: &str, filter: Value) -> Result<()> {
    let filters = scenario.http(WEB_CHAIN)?["http_filters"].as_array_mut().context("no filters")?;
    let at = filters.iter().position(|known| known["name"] == other).context("no such filter")?;
    filters.insert(at, filter);
    Ok(())
}

/// The chain's own changes, and those of table, virtual host and route.
fn mutated(scenario: &mut Scenario, nearest_last: bool) -> Result<()> {
    let level = |name: &str| {
        per_route(json!({
            "request_mutations": [add("x-level", name, "OVERWRITE_IF_EXISTS_OR_ADD"), add("x-seen", "%REQ(x-level)%", "APPEND_IF_EXISTS_OR_ADD")],
            "response_mutations": [add("x-level", name, "OVERWRITE_IF_EXISTS_OR_ADD"), add("x-levels", "%RESP(x-level)%", "APPEND_IF_EXISTS_OR_ADD")],
        }))
    };
    let mut route = forward("levels", json!({"prefix": "/levels"}), json!({}));
    route["typed_per_filter_config"][MUTATION] = level("route");
    let mut refused = forward("refused", json!({"prefix": "/refused"}), json!({}));
    refused["typed_per_filter_config"]["envoy.filters.http.fault"] = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "abort": {"http_status": 418, "percentage": {"numerator": 100}},
    });
    let direct = json!({"name": "direct", "match": {"prefix": "/direct"}, "direct_response": {"status": 203}});
    with_routes(scenario, vec![route, refused, direct])?;
    let table = &mut scenario.http(WEB_CHAIN)?["route_config"];
    table["virtual_hosts"][0]["typed_per_filter_config"][MUTATION] = level("host");
    table["typed_per_filter_config"][MUTATION] = level("table");
    let own = json!({
        "request_mutations": [
            add("x-level", "chain", "OVERWRITE_IF_EXISTS_OR_ADD"),
            add("x-from", "%REQ(x-in)%-%REQ(x-missing)%", "APPEND_IF_EXISTS_OR_ADD"),
            add("x-nothing", "%REQ(x-missing)%", "APPEND_IF_EXISTS_OR_ADD"),
            {"remove_on_match": {"key_matcher": {"prefix": "x-internal-"}}},
            {"remove": "x-gone"},
        ],
        "response_mutations": [
            add("x-made-of", "%REQ(x-in)%", "APPEND_IF_EXISTS_OR_ADD"),
            {"remove_on_match": {"key_matcher": {"suffix": "-secret", "ignore_case": true}}},
        ],
        "query_parameter_mutations": [
            parameter("a", "%REQ(x-in)%", "APPEND_IF_EXISTS_OR_ADD"),
            parameter("b", "new", "OVERWRITE_IF_EXISTS"),
            parameter("c", "new", "ADD_IF_ABSENT"),
            parameter("d", "new", "OVERWRITE_IF_EXISTS_OR_ADD"),
            {"remove": "e"},
        ],
    });
    insert_before(scenario, ROUTER, json!({"name": MUTATION, "typed_config": mutation(own, nearest_last)}))
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_parameters_are_changed_as_envoy_does() -> Result<()> {
    for (nearest_last, level) in [(false, "table"), (true, "route")] {
        let mut both = Both::edited(|scenario| mutated(scenario, nearest_last)).await?;
        let headers = &[
            ("x-in", "in"),
            ("x-internal-a", "1"),
            ("x-internal-b", "1"),
            ("x-gone", "1"),
            ("x-answer-with", "x-my-secret=1"),
            ("x-answer-with", "x-kept=1"),
        ];
        let asks = [
            Ask::get("/levels").with(headers),
            Ask::get("/levels?e=1&d=1&c=1&b=1&a=1&e=2&b=2").with(headers),
            Ask { is_http2: true, ..Ask::get("/levels?x").with(headers) },
            Ask::get("/elsewhere?b=1").with(headers),
            Ask::get("/refused").with(headers),
            Ask::get("/direct").with(headers),
        ];
        let seen = both.all_same(&asks).await?;
        assert_eq!((&*seen[0].told("x-level"), seen[0].header("x-level"), seen[0].header("x-made-of")), (level, level, "in"));
        assert_eq!((&*seen[0].told("x-internal-a"), &*seen[0].told("x-gone"), seen[0].header("x-my-secret")), ("", "", ""));
        assert_eq!(seen[1].body["path"], "/levels?a=1&a=in&b=new&c=1&d=new");
    }
    Ok(())
}

/// Routes that change headers, of requests and answers, by what the request and its answer say.
#[tokio::test(flavor = "multi_thread")]
async fn edits_of_routes_read_any_header_as_envoy_does() -> Result<()> {
    let value = |name: &str, value: &str| json!({"header": {"key": name, "value": value}});
    let edits = |names: &[&str], text: &str| -> Value { names.iter().map(|name| value(name, text)).collect() };
    let mut route = forward("edits", json!({"prefix": "/edits"}), json!({}));
    route["request_headers_to_add"] =
        json!([value("x-a", "<%REQ(x-in)%>"), value("x-b", "%REQ(x-missing)%"), value("x-c", "a%REQ(x-missing)%")]);
    route["request_headers_to_remove"] = json!(["x-answer-with-none"]);
    route["response_headers_to_add"] = json!([value("x-a", "%REQ(x-in)%%RESP(x-out)%"), value("x-b", "%RESP(x-missing)%")]);
    for nearest_last in [false, true] {
        let mut both = Both::edited(|scenario| {
            with_routes(scenario, vec![route.clone()])?;
            let table = &mut scenario.http(WEB_CHAIN)?["route_config"];
            table["most_specific_header_mutations_wins"] = nearest_last.into();
            table["response_headers_to_add"] = edits(&["x-order"], "table");
            table["virtual_hosts"][0]["response_headers_to_add"] = edits(&["x-order"], "host");
            table["virtual_hosts"][0]["request_headers_to_add"] = edits(&["x-order", "x-a"], "host");
            Ok(())
        })
        .await?;
        let seen = both.all_same(&[Ask::get("/edits").with(&[("x-in", "in"), ("x-answer-with", "x-out=out")]), Ask::get("/edits")]).await?;
        assert_eq!((seen[0].header("x-a"), seen[1].header("x-a")), ("inout", ""));
    }
    Ok(())
}

fn rbac(name: &str, action: &str, header: &str) -> Value {
    json!({
        "name": name,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": action, "policies": {name: {
                "permissions": [{"header": {"name": header, "present_match": true}}], "principals": [{"any": true}],
            }}},
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_behind_other_filters_are_judged_there_and_refusals_have_the_routes_changes_as_in_envoy() -> Result<()> {
    let mut both = Both::edited(|scenario| {
        let mut cors = forward("cors", json!({"prefix": "/cors"}), json!({}));
        cors["typed_per_filter_config"]["envoy.filters.http.cors"] = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [{"exact": "https://a.example"}], "allow_methods": "GET", "expose_headers": "x-c",
        });
        cors["response_headers_to_add"] = json!([{"header": {"key": "x-route", "value": "%RESPONSE_CODE%"}}]);
        cors["typed_per_filter_config"][MUTATION] =
            per_route(json!({"request_mutations": [add("x-late", "1", "APPEND_IF_EXISTS_OR_ADD")]}));
        let exact = forward("exact", json!({"path": "/exact"}), json!({}));
        with_routes(scenario, vec![cors, exact])?;
        // Only these: without a route there are policies all the same.
        scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0]["domains"] = json!(["web.shop"]);
        let early = rbac("early", "DENY", "x-denied-early");
        scenario.add_http_filters(WEB_CHAIN, vec![early])?;
        for filter in [
            json!({"name": MUTATION, "typed_config": mutation(json!({}), false)}),
            rbac("late", "DENY", "x-denied-late"),
            rbac("changed", "DENY", "x-late"),
        ] {
            insert_before(scenario, ROUTER, filter)?;
        }
        Ok(())
    })
    .await?;
    let origin = ("origin", "https://a.example");
    let (early, late) = (&[("x-denied-early", "1")], &[("x-denied-late", "1")]);
    let asks = [
        Ask::get("/cors").with(&[]),
        Ask::get("/exact").with(&[]),
        Ask::get("/exact").with(late),
        Ask::get("/exact").with(early),
        Ask { method: Method::OPTIONS, ..Ask::get("/cors").with(&[]) },
        Ask { host: "elsewhere", ..Ask::get("/exact").with(late) },
        Ask { host: "elsewhere", ..Ask::get("/exact") },
    ];
    let preflight = &[origin, ("access-control-request-method", "GET"), late[0]];
    let with_origin = [
        Ask { method: Method::OPTIONS, ..Ask::get("/cors").with(preflight) },
        Ask::get("/cors").with(&[]),
        Ask::get("/cors").with(preflight),
    ];
    let grpc = [Ask {
        is_http2: true,
        method: Method::POST,
        ..Ask::get("/cors").with(&[("content-type", "application/grpc"), ("x-denied-early", "1")])
    }];
    let asks: Vec<_> = asks.into_iter().chain(with_origin).chain(grpc).collect();
    let seen = both.all_same(&asks).await?;
    let codes: Vec<_> = seen.iter().map(|seen| seen.status.as_u16()).collect();
    assert_eq!(codes, [403, 200, 403, 403, 403, 403, 404, 200, 403, 403, 200]);
    assert_eq!((seen[0].header("x-route"), &seen[0].line["details"]), ("0", &"rbac_access_denied_matched_policy[changed]".into()));
    assert_eq!(
        (seen[7].header("access-control-allow-methods"), seen[9].header("access-control-allow-origin")),
        ("GET", "https://a.example")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_are_changed_as_envoy_does() -> Result<()> {
    let changes = json!([add("x-added", "1", "APPEND_IF_EXISTS_OR_ADD"), add("x-trailer", "mine", "OVERWRITE_IF_EXISTS"), {"remove": "grpc-message"}]);
    let mutations = json!({"request_trailers_mutations": changes, "response_trailers_mutations": changes});
    let edit = |scenario: &mut Scenario| {
        with_routes(scenario, Vec::new())?;
        scenario.resource(Kind::Cluster, WEB_CHAIN)?["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
        insert_before(scenario, ROUTER, json!({"name": MUTATION, "typed_config": mutation(mutations, false)}))
    };
    let both = Both::edited(edit).await?;
    let mut seen = Vec::new();
    for proxy in [both.mesh.hbone(), both.envoy.hbone()] {
        let mut http = both.mesh.peer("frontend-0")?.connect(proxy).await?.http2(WEB).await?;
        let trailers = HeaderMap::from_iter([(HeaderName::from_static("x-trailer"), HeaderValue::from_static("theirs"))]);
        let frames: [Result<_, std::convert::Infallible>; 2] =
            [Ok(Frame::data(Bytes::from_static(b"hello"))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(stream::iter(frames)).boxed();
        let request = http.request(Method::POST, "/x").header("content-type", "application/grpc").header("te", "trailers").body(body)?;
        let answer = http.send(request).await?;
        let mut told: Vec<_> = answer.json()["trailers"].as_array().into_iter().flatten().map(ToString::to_string).collect();
        told.sort();
        seen.push((told, answer.trailers));
    }
    assert_eq!(seen[0], seen[1], "ours is on the left, Envoy's on the right");
    assert_eq!(
        (seen[0].0.join(" "), seen[0].1["x-trailer"].as_bytes()),
        (r#"["x-added","1"] ["x-trailer","mine"]"#.to_owned(), &b"mine"[..])
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_address_is_that_of_the_request_as_it_came() -> Result<()> {
    let mut both = Both::edited(|scenario| {
        with_routes(scenario, vec![])?;
        let format = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
        format["client"] = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%".into();
        let removes = json!({"name": "first", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            "mutations": {"request_mutations": [{"remove": "x-forwarded-for"}]},
        }});
        let denies = json!({"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": "DENY", "policies": {"ns[shop]-policy[net]-rule[0]": {
                "permissions": [{"any": true}],
                "principals": [{"remote_ip": {"address_prefix": "203.0.113.0", "prefix_len": 24}}],
            }}},
        }});
        scenario.add_http_filters(WEB_CHAIN, vec![removes, denies])
    })
    .await?;
    let seen = both
        .all_same(&[
            Ask::get("/a").with(&[("x-forwarded-for", "198.51.100.1, 203.0.113.7")]),
            Ask::get("/b").with(&[("x-forwarded-for", "198.51.100.1")]),
        ])
        .await?;
    assert_eq!((seen[0].status, &seen[0].line["client"]), (StatusCode::FORBIDDEN, &"203.0.113.7".into()));
    assert_eq!((seen[1].status, &seen[1].line["client"]), (StatusCode::OK, &"198.51.100.1".into()));
    assert_eq!(seen[1].told("x-forwarded-for"), "");
    Ok(())
}
