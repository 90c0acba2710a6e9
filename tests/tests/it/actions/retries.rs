//! What a retry policy may say beside which statuses: headers, silence, when to come again; and policies of virtual hosts.

use std::time::Instant;

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
