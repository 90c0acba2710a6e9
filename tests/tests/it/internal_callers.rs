//! Callers whose addresses `internal_address_config` names: they may steer the proxy by `x-envoy-` headers, beside a real Envoy.

use anyhow::Result;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::peer::{Connection, empty};
use tests::scenario::{LEGACY, Mesh, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};

const LEGACY_CHAIN: &str = "inbound-vip|80|http|legacy.shop.svc.cluster.local";
const PORT: u16 = 8080;
const INTERNAL: &str = "10.1.2.3";
const EXTERNAL: &str = "192.0.2.1";

/// One request: `x-forwarded-for`, what is asked of the proxy, and the path.
type Row = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const ROWS: &[Row] = &[
    // Who is internal.
    ("", &[], "/"),
    (INTERNAL, &[], "/"),
    (EXTERNAL, &[], "/"),
    ("10.1.2.3, 10.1.2.4", &[], "/"),
    ("10.1.2.3,", &[], "/"),
    ("10.1.2.3:80", &[], "/"),
    ("10.200.0.1", &[], "/"),
    ("fd00::1", &[], "/"),
    ("2001:db8::1", &[], "/"),
    ("172.31.0.1", &[], "/"),
    ("172.32.0.1", &[], "/"),
    ("192.168.0.1", &[], "/"),
    ("127.0.0.1", &[], "/"),
    ("127.0.0.2", &[], "/"),
    ("::1", &[], "/"),
    ("fc00::1", &[], "/"),
    ("::ffff:10.1.2.3", &[], "/"),
    (EXTERNAL, &[("x-envoy-internal", "true")], "/"),
    (INTERNAL, &[("x-envoy-internal", "false")], "/"),
    // What passes to the pod, and what does not.
    (
        INTERNAL,
        &[
            ("x-envoy-expected-rq-timeout-ms", "7"),
            ("x-envoy-hedge-on-per-try-timeout", "false"),
            ("x-envoy-ip-tags", "a"),
            ("x-envoy-max-retries", "1"),
            ("x-envoy-original-url", "http://a/"),
            ("x-envoy-retriable-header-names", "a"),
            ("x-envoy-retriable-status-codes", "400"),
            ("x-envoy-retry-grpc-on", "internal"),
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-upstream-alt-stat-name", "a"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "1000"),
            ("x-envoy-upstream-rq-timeout-alt-response", "1"),
            ("x-envoy-upstream-rq-timeout-ms", "9000"),
        ],
        "/",
    ),
    (EXTERNAL, &[("x-envoy-max-retries", "1"), ("x-envoy-ip-tags", "a"), ("x-envoy-upstream-rq-timeout-ms", "9000")], "/"),
    (INTERNAL, &[("x-envoy-upstream-rq-timeout-ms", "soon"), ("x-envoy-upstream-rq-per-try-timeout-ms", "soon")], "/"),
    // Time limits.
    (INTERNAL, &[("x-envoy-upstream-rq-timeout-ms", "150")], "/delay/5000/request"),
    (INTERNAL, &[("x-envoy-upstream-rq-timeout-ms", "150"), ("x-envoy-upstream-rq-timeout-alt-response", "x")], "/delay/5000/none"),
    (INTERNAL, &[("x-envoy-upstream-rq-per-try-timeout-ms", "150")], "/delay/5000/try"),
    (
        INTERNAL,
        &[("x-envoy-upstream-rq-per-try-timeout-ms", "150"), ("x-envoy-retry-on", "reset"), ("x-envoy-max-retries", "2")],
        "/delay/5000/tries",
    ),
    (EXTERNAL, &[("x-envoy-upstream-rq-timeout-ms", "150")], "/delay/300/external"),
    // Tries.
    (INTERNAL, &[], "/status/503"),
    (INTERNAL, &[("x-envoy-retry-on", "5xx")], "/status/503"),
    (INTERNAL, &[("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "1")], "/status/503"),
    (INTERNAL, &[("x-envoy-retry-on", "gateway-error, nothing"), ("x-envoy-max-retries", "3")], "/status/502"),
    (INTERNAL, &[("x-envoy-retry-on", "unavailable"), ("x-envoy-max-retries", "3")], "/status/503"),
    (INTERNAL, &[("x-envoy-retry-on", "retriable-status-codes"), ("x-envoy-retriable-status-codes", "418, 419")], "/status/418"),
    (INTERNAL, &[("x-envoy-retriable-status-codes", "418")], "/status/418"),
    (INTERNAL, &[("x-envoy-max-retries", "0"), ("x-envoy-retry-on", "5xx")], "/status/500"),
    (INTERNAL, &[("x-envoy-max-retries", "many"), ("x-envoy-retry-on", "5xx")], "/status/500"),
    (EXTERNAL, &[("x-envoy-retry-on", "5xx")], "/status/500"),
    // Repeated lines are one, joined by commas; those without text are none.
    ("10.1.2.3", &[("x-forwarded-for", "")], "/"),
    (INTERNAL, &[("x-envoy-upstream-rq-timeout-ms", "0"), ("x-envoy-upstream-rq-timeout-ms", "150")], "/delay/300/twice"),
    (INTERNAL, &[("x-envoy-max-retries", "3"), ("x-envoy-max-retries", "2"), ("x-envoy-retry-on", "5xx")], "/status/500"),
    (INTERNAL, &[("x-envoy-retry-on", "reset"), ("x-envoy-retry-on", "5xx")], "/status/500"),
    // Routes ask as well, whoever calls: for tries, and not for time.
    (EXTERNAL, &[], "/status/504"),
    (INTERNAL, &[("x-envoy-max-retries", "1")], "/status/504"),
    (EXTERNAL, &[], "/delay/301"),
    (EXTERNAL, &[], "/asking"),
];

/// Routes that set what is asked of a proxy.
fn asking_routes() -> Vec<Value> {
    let route = |prefix: &str, headers: &[(&str, &str)]| {
        let added = headers
            .iter()
            .map(|(name, value)| json!({"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}));
        json!({
            "match": {"prefix": prefix},
            "route": {"cluster": LEGACY_CHAIN, "timeout": "10s"},
            "request_headers_to_add": added.collect::<Vec<_>>(),
        })
    };
    let (tries, time) = ([("x-envoy-retry-on", "5xx"), ("x-envoy-max-retries", "3")], [("x-envoy-upstream-rq-timeout-ms", "150")]);
    vec![route("/status/504", &tries), route("/delay/301", &time), route("/asking", &[tries.as_slice(), &time].concat())]
}

/// What came of it: the status, the body unless the pod wrote it, how often the pod was asked, and the `x-envoy-` headers that it saw.
async fn seen(connection: &Connection, (to, pod): (&str, &Workload), (forwarded_for, headers, path): Row) -> Result<Value> {
    let asked = format!("GET {path}");
    let before = pod.record().requests(&asked);
    let mut http = connection.http1(to).await?;
    let request = Request::builder().uri(path).header("host", "a");
    let request = if forwarded_for.is_empty() { request } else { request.header("x-forwarded-for", forwarded_for) };
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = http.send(request.body(empty())?).await?;
    let told = (answer.status == StatusCode::OK).then(|| answer.json()["headers"].clone());
    let mut told: Vec<Value> = told.and_then(|told| told.as_array().cloned()).unwrap_or_default();
    // Envoy passes a line without text on as none.
    told.retain(|pair| pair[1] != "");
    told.retain(|pair| pair[0].as_str().is_some_and(|name| name.starts_with("x-envoy-") || name == "x-forwarded-for"));
    told.sort_by_key(Value::to_string);
    let body = if answer.status.is_server_error() || answer.status == StatusCode::NO_CONTENT { answer.text() } else { String::new() };
    Ok(json!([answer.status.as_u16(), body, pod.record().requests(&asked) - before, told]))
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_callers_steer_time_limits_and_tries_as_in_envoy() -> Result<()> {
    let ranges = json!([{"address_prefix": "10.0.0.0", "prefix_len": 9}, {"address_prefix": "fd00::", "prefix_len": 8}]);
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| {
        scenario.keep_endpoints(WEB_CHAIN, 1)?;
        scenario.http(LEGACY_CHAIN)?["internal_address_config"] = json!({"cidr_ranges": ranges});
        scenario.http(WEB_CHAIN)?["internal_address_config"] = json!({"unix_sockets": true});
        scenario.add_routes(LEGACY_CHAIN, asking_routes())?;
        Ok(())
    })?;
    let mesh = mesh.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let legacy = mesh.plain_pod("legacy-v1-1", PORT, App::Http).await?;
    let web = mesh.pod("web-v1-1", App::Http).await?;
    let mut differences = Vec::new();
    for row in ROWS {
        let mut both = Vec::new();
        for proxy in [mesh.hbone(), envoy.hbone()] {
            let connection = mesh.peer("frontend-0")?.connect(proxy).await?;
            let without_ranges = if row.2 == "/" { seen(&connection, (WEB, &web), *row).await? } else { Value::Null };
            both.push([seen(&connection, (LEGACY, &legacy), *row).await?, without_ranges]);
        }
        if both[0] != both[1] {
            differences.push(format!("{row:?}\n  here: {:?}\n  Envoy: {:?}\n", both[0], both[1]));
        }
    }
    assert!(differences.is_empty(), "{}", differences.concat());
    Ok(())
}
