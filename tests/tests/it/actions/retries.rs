//! What a retry policy may say beside which statuses: headers, silence, when to come again; and policies of virtual hosts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use tests::peer::full;

use super::*;

/// Name, retry policy, the beginning of the path, headers of the request; and the status, and how often the pod is asked.
type Row = (&'static str, Option<Value>, &'static str, &'static [(&'static str, &'static str)], u16, u64);

fn rows() -> Vec<Row> {
    let policy = |on: &str, more: Value| {
        let mut policy = json!({"retry_on": on, "num_retries": 1});
        for (name, value) in more.as_object().into_iter().flatten() {
            policy[name] = value.clone();
        }
        Some(policy)
    };
    let header = |name: &str| json!([{"name": name, "string_match": {"exact": "1"}}]);
    let answers = policy("retriable-headers", json!({"retriable_headers": header("x-again")}));
    let requests = policy("5xx", json!({"retriable_request_headers": header("x-may")}));
    let idle = policy("5xx", json!({"per_try_idle_timeout": "0.200s"}));
    let told = json!({"reset_headers": [{"name": "x-reset", "format": "UNIX_TIMESTAMP"}, {"name": "Retry-After", "format": "SECONDS"}]});
    let told = policy("5xx", json!({"rate_limited_retry_back_off": told}));
    vec![
        ("header", answers.clone(), "/fail/400/1", &[("x-answer-with", "x-again=1")], 200, 2),
        ("other-header", answers.clone(), "/fail/400/1", &[("x-answer-with", "x-again=2")], 400, 1),
        (
            "no-word",
            policy("connect-failure", json!({"retriable_headers": header("x-again")})),
            "/fail/400/1",
            &[("x-answer-with", "x-again=1")],
            400,
            1,
        ),
        ("may", requests.clone(), "/fail/503/1", &[("x-may", "1")], 200, 2),
        ("may-not", requests, "/fail/503/1", &[], 503, 1),
        ("silent", idle.clone(), "/delay/5000", &[], 504, 2),
        ("not-silent", idle, "/stream/4", &[], 200, 1),
        ("told", told.clone(), "/fail/503/1", &[("x-answer-with", "retry-after=1")], 200, 2),
        ("told-too-much", told, "/fail/503/1", &[("x-answer-with", "retry-after=301")], 200, 2),
        // It is the virtual host's.
        ("host", None, "/fail/503/1", &[], 200, 2),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_obey_headers_silence_and_what_answers_ask_for_as_in_envoy() -> Result<()> {
    let routes = rows().into_iter().map(|(name, policy, ..)| {
        let headers = json!([{"name": "x-row", "string_match": {"exact": name}}]);
        forward(name, json!({"prefix": "/", "headers": headers}), policy.map_or(json!({}), |policy| json!({"retry_policy": policy})))
    });
    let routes = routes.collect();
    let both = Both::edited(|scenario| {
        with_routes(scenario, routes)?;
        let host = &mut scenario.http(WEB_CHAIN)?["route_config"]["virtual_hosts"][0];
        host["retry_policy"] = json!({"retry_on": "5xx", "num_retries": 1});
        Ok(())
    })
    .await?;
    let mut lines = Vec::new();
    for (proxy, at, output) in
        [("ours", both.mesh.hbone(), both.mesh.waypoint.output_lines()), ("envoy", both.envoy.hbone(), both.envoy.output())]
    {
        let connection = both.mesh.peer("frontend-0")?.connect(at).await?;
        let mut agents = Vec::new();
        for (name, _, path, headers, status, n_asked) in rows() {
            let mut http = connection.http1(WEB).await?;
            let (path, agent) = (format!("{path}/{name}-{proxy}"), format!("{name}-{proxy}"));
            let mut request = http.request(Method::GET, &path).header("x-row", name).header("user-agent", &agent);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let before = Instant::now();
            let answer = http.send(request.body(empty())?).await.with_context(|| agent.clone())?;
            assert_eq!((answer.status.as_u16(), both.web.record().requests(&format!("GET {path}"))), (status, n_asked), "{agent}");
            assert_eq!(before.elapsed() >= Duration::from_secs(1), name == "told", "{agent}: {:?}", before.elapsed());
            agents.push(agent);
        }
        let mut of_proxy = Vec::new();
        for agent in agents {
            let line = access_line(output, &agent).await?;
            of_proxy.push((line["response_code"].clone(), line["response_flags"].clone(), line["details"].clone()));
        }
        lines.push(of_proxy);
    }
    assert_eq!(lines[0], lines[1], "ours are on the left, Envoy's on the right");
    Ok(())
}

/// The words of `retry_on`, each with a route of its own.
const WORDS: [&str; 15] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "cancelled",
    "deadline-exceeded",
    "resource-exhausted",
    "internal",
    "unavailable",
];
/// Two words on one route.
const BOTH_WORDS: &str = "5xx,reset";
/// A cluster whose endpoint takes no connections.
const NOBODY: &str = "nobody";

/// What may become of a try: its name, the beginning of the path, headers of the request, and the words that it meets.
type Outcome = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

const OUTCOMES: [Outcome; 22] = [
    ("404", "/fail/404/1", &[], &[]),
    ("409", "/fail/409/1", &[], &["retriable-4xx"]),
    ("418", "/fail/418/1", &[], &["retriable-status-codes"]),
    ("425", "/fail/425/1", &[], &[]),
    ("500", "/fail/500/1", &[], &["5xx"]),
    ("502", "/fail/502/1", &[], &["5xx", "gateway-error"]),
    ("503", "/fail/503/1", &[], &["5xx", "gateway-error"]),
    ("504", "/fail/504/1", &[], &["5xx", "gateway-error"]),
    ("505", "/fail/505/1", &[], &["5xx"]),
    ("header", "/fail/400/1", &[("x-answer-with", "x-again=1")], &["retriable-headers"]),
    ("limited", "/fail/503/1", &[("x-answer-with", "x-envoy-ratelimited=true")], &["envoy-ratelimited"]),
    ("overloaded", "/fail/503/1", &[("x-answer-with", "x-envoy-overloaded=true")], &["5xx", "gateway-error"]),
    ("grpc-1", "/fail/200/1", &[GRPC, ("x-answer-with", "grpc-status=1")], &["cancelled"]),
    ("grpc-2", "/fail/200/1", &[GRPC, ("x-answer-with", "grpc-status=2")], &[]),
    ("grpc-4", "/fail/200/1", &[GRPC, ("x-answer-with", "grpc-status=4")], &["deadline-exceeded"]),
    ("grpc-8", "/fail/200/1", &[GRPC, ("x-answer-with", "grpc-status=8")], &["resource-exhausted"]),
    ("grpc-13", "/fail/200/1", &[GRPC, ("x-answer-with", "grpc-status=13")], &["internal"]),
    ("grpc-14", "/fail/200/1", &[GRPC, ("x-answer-with", "grpc-status=14")], &["unavailable"]),
    ("reset", "/fail/connection/1", &[], &["5xx", "gateway-error", "reset"]),
    ("refused", "/fail/refused/1", &[], &["5xx", "gateway-error", "reset", "refused-stream"]),
    ("late", "/delay/5000", &[], &["5xx", "gateway-error", "reset"]),
    ("unconnected", "/nobody", &[], &["5xx", "gateway-error", "reset", "reset-before-request", "connect-failure"]),
];
const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// Routes for each word: to nobody, with little time for a try, and to the pod.
fn word_routes() -> Vec<Value> {
    let routes = WORDS.iter().chain([&BOTH_WORDS]).flat_map(|word| {
        let policy = json!({
            "retry_on": word, "num_retries": 1, "retry_back_off": {"base_interval": "0.001s"}, "retriable_status_codes": [418],
            "retriable_headers": [{"name": "x-again", "string_match": {"exact": "1"}}],
        });
        let mut short = policy.clone();
        short["per_try_timeout"] = "0.200s".into();
        [("/nobody", policy.clone(), NOBODY), ("/delay", short, WEB_CHAIN), ("/", policy, WEB_CHAIN)].map(|(prefix, policy, cluster)| {
            let headers = json!([{"name": "x-word", "string_match": {"exact": word}}]);
            let mut route = forward(word, json!({"prefix": prefix, "headers": headers}), json!({"retry_policy": policy}));
            route["route"]["cluster"] = cluster.into();
            route
        })
    });
    routes.collect()
}

/// Asks for each outcome on the route of one word; the agents by which the lines are found.
async fn ask_all(mesh: &Mesh, (proxy, at): (&str, SocketAddr), word: &'static str) -> Result<Vec<String>> {
    let mut http = mesh.peer("frontend-0")?.connect(at).await?.http2(WEB).await?;
    let mut agents = Vec::new();
    for (outcome, path, headers, _) in OUTCOMES {
        let agent = format!("{word} {outcome} {proxy}");
        let path = format!("{path}/{}", agent.replace(' ', "/"));
        let mut request = http.request(Method::GET, &path).header("x-word", word).header("user-agent", &agent);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        http.send(request.body(empty())?).await.with_context(|| agent.clone())?;
        agents.push(agent);
    }
    Ok(agents)
}

/// The lines of all these agents.
async fn lines_of(output: &Lines, agents: &[String]) -> Result<BTreeMap<String, Value>> {
    until("the lines of all", DEADLINE, async || {
        let lines = output.all();
        let read = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found: BTreeMap<_, _> = read.map(|line| (line["user_agent"].as_str().unwrap_or_default().to_owned(), line)).collect();
        let missing = agents.iter().find(|agent| !found.contains_key(*agent)).cloned();
        Ok(missing.map_or(Look::Done(found), Look::NotYet))
    })
    .await
}

/// A mesh with the routes of all words, and the number of tries in its lines.
async fn with_words() -> Result<Both> {
    Both::edited(|scenario| {
        with_routes(scenario, word_routes())?;
        scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"]["tries"] =
            "%UPSTREAM_REQUEST_ATTEMPT_COUNT%".into();
        let address = scenario.resource(Kind::Listener, "connect_terminate")?["address"]["socket_address"]["address"].clone();
        let endpoint = json!({"endpoint": {"address": {"socket_address": {"address": address, "port_value": 9}}}});
        let options = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
        }});
        scenario.resource(Kind::Cluster, WEB_CHAIN)?["typed_extension_protocol_options"] = options.clone();
        let cluster = json!({
            "name": NOBODY, "type": "STATIC", "connect_timeout": "1s", "typed_extension_protocol_options": options,
            "load_assignment": {"cluster_name": NOBODY, "endpoints": [{"lb_endpoints": [endpoint]}]},
        });
        scenario.insert(Kind::Cluster, NOBODY, cluster);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_word_of_a_retry_policy_means_what_it_means_in_envoy() -> Result<()> {
    let both = with_words().await?;
    let mut lines = Vec::new();
    for (proxy, at, output) in
        [("ours", both.mesh.hbone(), both.mesh.waypoint.output_lines()), ("envoy", both.envoy.hbone(), both.envoy.output())]
    {
        let agents = futures_util::future::try_join_all(WORDS.map(|word| ask_all(&both.mesh, (proxy, at), word))).await?.concat();
        lines.push(lines_of(output, &agents).await?);
    }
    let mut different = Vec::new();
    for word in WORDS {
        for (outcome, path, _, met) in OUTCOMES {
            let wanted = if met.contains(&word) { 2 } else { 1 };
            for (proxy, lines) in ["ours", "envoy"].into_iter().zip(&lines) {
                let path = format!("GET {path}/{word}/{outcome}/{proxy}");
                let (tries, n_asked) = (&lines[&format!("{word} {outcome} {proxy}")]["tries"], both.web.record().requests(&path));
                if *tries != wanted || (outcome != "unconnected" && n_asked != wanted) {
                    different.push(format!("{path}: {wanted} tries wanted, {tries} told, {n_asked} seen"));
                }
            }
            let told = |proxy: usize, name: &str| {
                let line = &lines[proxy][&format!("{word} {outcome} {name}")];
                ["response_code", "response_flags", "details"].map(|field| line[field].clone())
            };
            let (ours, theirs) = (told(0, "ours"), told(1, "envoy"));
            if ours != theirs {
                different.push(format!("{word} {outcome}: ours {ours:?}, Envoy's {theirs:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert_what_is_repeated(&both).await
}

/// What is sent again with its body, and what is not.
async fn assert_what_is_repeated(both: &Both) -> Result<()> {
    const KIB: usize = 1024;
    for (name, path, n_bytes, ours, theirs) in [
        ("after-503", "/fail/503/1", 10, (200, 2), (200, 2)),
        ("after-reset", "/fail/connection/1", 10, (200, 2), (200, 2)),
        ("at-the-bound", "/fail/503/1", 64 * KIB, (200, 2), (200, 2)),
        // The difference `retry-body`.
        ("beyond-the-bound", "/fail/503/1", 65 * KIB, (503, 1), (200, 2)),
        ("beyond-envoys-bound", "/fail/503/1", 1025 * KIB, (503, 1), (503, 1)),
    ] {
        for (proxy, at, (status, n_asked)) in [("ours", both.mesh.hbone(), ours), ("envoy", both.envoy.hbone(), theirs)] {
            let mut http = both.mesh.peer("frontend-0")?.connect(at).await?.http1(WEB).await?;
            let path = format!("{path}/{name}-{proxy}");
            let request = http.request(Method::POST, &path).header("x-word", BOTH_WORDS).body(full(vec![b'b'; n_bytes]))?;
            let answer = http.send(request).await.with_context(|| path.clone())?;
            assert_eq!((answer.status.as_u16(), both.web.record().requests(&format!("POST {path}"))), (status, n_asked), "{path}");
            if status == 200 {
                assert_eq!(answer.json()["n_body_bytes"], n_bytes, "{path}: all of it is sent again");
            }
        }
    }
    // The difference `grpc-status-unasked`.
    for (proxy, at, n_asked) in [("ours", both.mesh.hbone(), 1), ("envoy", both.envoy.hbone(), 2)] {
        let mut http = both.mesh.peer("frontend-0")?.connect(at).await?.http1(WEB).await?;
        let path = format!("/fail/200/9/{proxy}");
        let request = http.request(Method::GET, &path).header("x-word", "unavailable").header("x-answer-with", "grpc-status=14");
        assert_eq!(http.send(request.body(empty())?).await?.status, StatusCode::OK);
        assert_eq!(both.web.record().requests(&format!("GET {path}")), n_asked, "{path}");
    }
    for (n_before, at) in [(0, both.mesh.hbone()), (1, both.envoy.hbone())] {
        let mut http = both.mesh.peer("frontend-0")?.connect(at).await?.http1(WEB).await?;
        let request = http.request(Method::GET, "/cut").header("x-word", BOTH_WORDS).body(empty())?;
        assert!(http.send(request).await.is_err(), "it must not end as if it were whole");
        assert_eq!(both.web.record().requests("GET /cut"), n_before + 1, "what has begun to be answered is not asked again");
    }
    Ok(())
}
