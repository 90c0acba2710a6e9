//! The script of requests, and the configuration that makes them come out in every way.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use http::Request;
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::peer::{Connection, Http, Tunnel, exchange_raw, full};
use tests::scenario::{DB, DB_CHAIN, EMPTY, LEGACY, RATINGS, RATINGS_CHAIN, REVIEWS, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::Record;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::operators;
use crate::golden_metrics::LEGACY_CHAIN;
use crate::policy::rbac;

/// Members that are added to the provider's JSON format.
const OPERATORS: &[(&str, &str)] = &[
    // By which a line is found, where its caller's address is not in it.
    ("case", "%REQ(X-CASE)%"),
    ("access_log_type", "%ACCESS_LOG_TYPE%"),
    ("attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("cluster_metadata", "%CLUSTER_METADATA(istio:services)%"),
    ("cluster_raw", "%UPSTREAM_CLUSTER_RAW%"),
    ("decorator", "%RESP(X-ENVOY-DECORATOR-OPERATION)%"),
    ("details", "%RESPONSE_CODE_DETAILS%"),
    ("direct_remote", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
    ("environment", "%ENVIRONMENT(CASES_ZONE):7%"),
    ("environment_unset", "%ENVIRONMENT(CASES_NONE)%"),
    ("filter_chain", "%FILTER_CHAIN_NAME%"),
    ("flags_long", "%RESPONSE_FLAGS_LONG%"),
    ("flags_number", "%CEL(response.flags)%"),
    ("grpc_number", "%GRPC_STATUS_NUMBER%"),
    ("grpc_status", "%GRPC_STATUS%"),
    ("local", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("local_port", "%DOWNSTREAM_LOCAL_PORT%"),
    ("local_reply", "%LOCAL_REPLY_BODY%"),
    ("local_principal", "%FILTER_STATE(io.istio.local_principal:PLAIN)%"),
    ("local_san", "%DOWNSTREAM_LOCAL_URI_SAN%"),
    ("mixed", "<%REQ(X-NONE)%> %RESPONSE_CODE% %%"),
    ("path_only", "%PATH(NQ)%"),
    ("peer_principal", "%FILTER_STATE(io.istio.peer_principal:PLAIN)%"),
    ("peer_principal_cut", "%FILTER_STATE(io.istio.peer_principal:PLAIN):9%"),
    ("peer_san", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("query", "%QUERY_PARAM(a)%"),
    ("reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("remote", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("remote_ip", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ("request_duration", "%REQUEST_DURATION%"),
    ("request_headers", "%REQUEST_HEADERS_BYTES%"),
    ("request_tx_duration", "%REQUEST_TX_DURATION%"),
    ("response_duration", "%RESPONSE_DURATION%"),
    ("response_headers", "%RESPONSE_HEADERS_BYTES%"),
    ("response_trailers", "%RESPONSE_TRAILERS_BYTES%"),
    ("response_tx_duration", "%RESPONSE_TX_DURATION%"),
    ("roundtrip", "%ROUNDTRIP_DURATION%"),
    ("route", "%ROUTE_NAME%"),
    ("server", "%RESP(SERVER)%"),
    ("service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("sni", "%REQUESTED_SERVER_NAME%"),
    ("stream_id", "%STREAM_ID%"),
    ("termination", "%CONNECTION_TERMINATION_DETAILS%"),
    ("text", TEXT),
    ("traceparent", "%REQ(TRACEPARENT)%"),
    ("tracestate", "%REQ(TRACESTATE)%"),
    ("trailer", "%TRAILER(X-TRAILER)%"),
    ("upstream_local", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_protocol", "%UPSTREAM_PROTOCOL%"),
    ("upstream_remote", "%UPSTREAM_REMOTE_ADDRESS%"),
    ("xff", "%REQ(X-FORWARDED-FOR)%"),
];

/// Variables of both processes' environment.
pub(super) const VARIABLES: [(&str, &str); 2] =
    [("CASES_ZONE", "eu-west-1a"), ("OTEL_RESOURCE_ATTRIBUTES", "team=shop,encoded=a%20b,service.instance.id=i-1")];

/// Istio's default format.
const TEXT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% \
    %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// A caller's trace and span; literals, since `concat!` takes no constants.
macro_rules! trace {
    ($end:literal) => {
        concat!("00-944465e02249c3cd2ea8d5505aca32", $end)
    };
}

/// Longer than what of a path is in a span.
const LONG_PATH: &str = concat!(
    "/long/aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggghhhhhhhhhhiiiiiiiiiijjjjjjjjjj",
    "/long/aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggghhhhhhhhhhiiiiiiiiiijjjjjjjjjj",
    "/long/aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffgggggggggghhhhhhhhhhiiiiiiiiiijjjjjjjjjj",
);

const UPGRADE: &str = "GET /upgrade HTTP/1.1\r\nhost: web.shop\r\nuser-agent: SIDE\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// How long an exchange may take.
const DEADLINE: Duration = Duration::from_secs(10);
const ENVIRONMENT_DETECTOR: &str =
    "type.googleapis.com/envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig";
const EMPTY_CHAIN: &str = "inbound-vip|80|http|empty.shop.svc.cluster.local";
/// A TCP service whose only pod is not there.
const SECURE: &str = "10.96.1.6:8443";

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    One,
    Two,
    /// Bytes, until the other side ends.
    Raw(&'static str),
    /// Bytes, what is then heard, and bytes after which this side ends.
    Talk(&'static str, &'static str, &'static str),
    /// A request whose client leaves when the pod has seen it.
    Leave,
    /// The same in HTTP/2, where it takes back the request alone.
    Cancel,
    /// One whose client leaves when it has heard the beginning of the answer.
    LeaveLater,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    to: &'static str,
    ask: Ask,
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
}

const fn get(name: &'static str, path: &'static str) -> Case {
    Case { name, to: WEB, ask: Ask::One, method: "GET", path, headers: &[], body: "" }
}

const fn raw(name: &'static str, to: &'static str, bytes: &'static str) -> Case {
    get(name, "").to(to).ask(Ask::Raw(bytes))
}

/// A request with these headers, which say something of its trace.
const fn traced(name: &'static str, headers: &'static [(&'static str, &'static str)]) -> Case {
    get(name, "/traced").with(headers)
}

const fn grpc(name: &'static str, path: &'static str) -> Case {
    const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];
    Case { method: "POST", ask: Ask::Two, body: "\0\0\0\0\x02hi", ..get(name, path).with(GRPC) }
}

impl Case {
    const fn to(self, to: &'static str) -> Self {
        Self { to, ..self }
    }

    const fn ask(self, ask: Ask) -> Self {
        Self { ask, ..self }
    }

    const fn method(self, method: &'static str, body: &'static str) -> Self {
        Self { method, body, ..self }
    }

    const fn with(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }

    /// Sends it on a connection of its own. What is answered is in the line.
    pub(super) async fn send(&self, connection: &Connection, side: &str, web: &Record) -> Result<()> {
        let tunnel = match connection.connect(self.to).await? {
            Ok(tunnel) => tunnel,
            // It says so in its line.
            Err(_) => return Ok(()),
        };
        match self.ask {
            // How it ends is not alike: one resets, the other closes.
            Ask::Raw(bytes) => drop(exchange_raw(tunnel, bytes.replace("SIDE", side).as_bytes(), false).await),
            Ask::Two => self.whole(Http::two(tunnel).await?, side, connection.local).await?,
            Ask::One => self.whole(Http::one(tunnel).await?, side, connection.local).await?,
            Ask::Talk(first, heard, then) => {
                let mut tunnel = tunnel;
                tunnel.write_all(first.replace("SIDE", side).as_bytes()).await?;
                hear(&mut tunnel, heard).await?;
                drop(exchange_raw(tunnel, then.as_bytes(), true).await);
            }
            Ask::Leave => {
                let _tunnel = self.begun(tunnel, side).await?;
                self.seen(side, web).await?;
            }
            Ask::Cancel => {
                let Http::Two(requests) = Http::two(tunnel).await? else { bail!("not HTTP/2") };
                tokio::select! {
                    asked = self.whole(Http::Two(requests.clone()), side, connection.local) => bail!("it was answered: {asked:?}"),
                    seen = self.seen(side, web) => seen?,
                }
                // Answered when the cancel has come; until then the connection must not end.
                Self { path: "/hello", ..*self }.whole(Http::Two(requests), side, connection.local).await?;
            }
            Ask::LeaveLater => hear(&mut self.begun(tunnel, side).await?, "chunk 0").await?,
        }
        Ok(())
    }

    /// Waits until the pod has it.
    async fn seen(&self, side: &str, web: &Record) -> Result<()> {
        let key = format!("GET {}", self.path_of(side));
        let has_come = async || Ok(if web.requests(&key) > 0 { Look::Done(()) } else { Look::NotYet(key.clone()) });
        until("the request at the pod", DEADLINE, has_come).await
    }

    fn path_of(&self, side: &str) -> String {
        self.path.replace("SIDE", side)
    }

    /// The tunnel, in which a request was sent.
    async fn begun(&self, mut tunnel: Tunnel, side: &str) -> Result<Tunnel> {
        let head = format!("GET {} HTTP/1.1\r\nhost: web.shop\r\nuser-agent: {side}\r\n\r\n", self.path_of(side));
        tunnel.write_all(head.as_bytes()).await?;
        Ok(tunnel)
    }

    async fn whole(&self, mut http: Http, side: &str, local: SocketAddr) -> Result<()> {
        let path = self.path_of(side);
        let mut request = match http {
            Http::One(_) => Request::builder().uri(&path).header("host", "web.shop"),
            Http::Two(_) => Request::builder().uri(format!("http://web.shop{path}")),
        };
        if !self.headers.iter().any(|(name, _)| *name == "user-agent") {
            request = request.header("user-agent", side);
        }
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let request = request.header("x-case", local.to_string()).method(self.method).body(full(self.body))?;
        // An answer may be cut.
        drop(http.send(request).await);
        Ok(())
    }
}

/// Reads until this has come.
async fn hear(tunnel: &mut Tunnel, text: &str) -> Result<()> {
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains(text) {
        ensure!(tunnel.read_buf(&mut heard).await? > 0, "it ended after {heard:?}");
    }
    Ok(())
}

/// The last one is traced.
pub(super) const CASES: &[Case] = &[
    get("plain", "/hello?a=1&b=2"),
    get("plain in HTTP/2", "/hello?a=1").ask(Ask::Two),
    get("a body", "/body").method("POST", "0123456789"),
    get("a body in HTTP/2", "/body").method("PUT", "0123456789").ask(Ask::Two),
    get("HEAD", "/hello").method("HEAD", ""),
    get("a long path", LONG_PATH),
    get("no content", "/empty"),
    get("not found", "/status/404"),
    get("failed", "/status/500"),
    get("a stream", "/stream/2"),
    get("without an agent", "/hello").with(&[("user-agent", "")]),
    get("odd headers", "/hello").with(&[
        ("x-user", "a\"b\\c"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-envoy-downstream-service-cluster", "frontend"),
    ]),
    get("redirected", "/moved?x=1"),
    get("answered by the route", "/direct"),
    get("rewritten", "/old/a?b=c"),
    get("no cluster", "/missing"),
    get("no route", "/none").to(RATINGS),
    get("no endpoint", "/nobody").to(EMPTY),
    get("refused, plain, tried again", "/refused").to(LEGACY),
    get("refused, plain, tried once", "/once").to(LEGACY),
    get("refused tunnel", "/refusing"),
    get("refused at once", "/gone"),
    get("broken connection", "/reset"),
    get("cut answer", "/cut"),
    get("route's timeout", "/delay/5000/route"),
    get("try's timeout", "/delay/5000/try"),
    get("tried again", "/fail/503/1/SIDE"),
    get("failed to the end", "/fail/503/9/SIDE"),
    get("refused by a policy", "/denied"),
    get("aborted", "/abort"),
    get("delayed", "/slow"),
    get("above its circuit breaker", "/overflow"),
    get("client leaves", "/delay/60000/SIDE").ask(Ask::Leave),
    get("client cancels", "/delay/60000/cancelled/SIDE").ask(Ask::Cancel),
    get("client leaves late", "/stream/100").ask(Ask::LeaveLater),
    grpc("gRPC", "/ratings.Ratings/Get").to(RATINGS),
    grpc("gRPC, not found", "/status/200").to(RATINGS).with(&[
        ("content-type", "application/grpc"),
        ("x-answer-with", "content-type=application/grpc"),
        ("x-answer-with", "grpc-status=5"),
        ("x-answer-with", "grpc-message=no such thing"),
    ]),
    grpc("gRPC, unavailable", "/status/200").to(RATINGS).with(&[
        ("content-type", "application/grpc+proto"),
        ("grpc-timeout", "9S"),
        ("x-answer-with", "content-type=application/grpc"),
        ("x-answer-with", "grpc-status=14"),
    ]),
    grpc("gRPC to HTTP", "/status/404"),
    grpc("gRPC refused by a policy", "/denied"),
    grpc("gRPC without a connection", "/once").to(LEGACY),
    grpc("gRPC reset", "/reset").to(RATINGS),
    raw("garbage", WEB, "\x01\x02 garbage\r\n\r\n"),
    raw("HTTP/1.0", WEB, "GET /old HTTP/1.0\r\nhost: web.shop\r\nuser-agent: SIDE\r\n\r\n"),
    raw("no host", WEB, "GET /x HTTP/1.1\r\nuser-agent: SIDE\r\nconnection: close\r\n\r\n"),
    get("WebSocket", "").ask(Ask::Talk(UPGRADE, "\r\n\r\n", "x")),
    traced("a sampled parent", &[("traceparent", trace!("a1-00f067aa0ba902b7-01")), ("tracestate", "a=b,c=d")]),
    traced("a parent that is not sampled", &[("traceparent", trace!("a2-00f067aa0ba902b7-00"))]),
    traced("a parent that is none", &[("traceparent", trace!("a4-00f067aa0ba902b7"))]),
    traced("B3 headers", &[("x-b3-traceid", "944465e02249c3cd2ea8d5505aca32a2"), ("x-b3-spanid", "00f067aa0ba902b7")]),
    traced("an id of its own", &[("x-request-id", "00000064-2222-4333-8444-555555555555")]),
    traced("an id that is none", &[("x-request-id", "abc")]),
    traced("a client that wants to be traced", &[("x-client-trace-id", "client/1")]),
    traced("a name of its own", &[("x-envoy-decorator-operation", "mine")]),
    traced("seldom: sampled", &[("x-request-id", "00000063-2222-4333-8444-555555555555")]).to(REVIEWS),
    traced("seldom: not sampled", &[("x-request-id", "00000064-2222-4333-8444-555555555555")]).to(REVIEWS),
    traced(
        "seldom: a sampled parent",
        &[("traceparent", trace!("a3-00f067aa0ba902b7-01")), ("x-request-id", "00000064-2222-4333-8444-555555555555")],
    )
    .to(REVIEWS),
    get("TCP", "").to(DB).ask(Ask::Talk("", "ready\n", "sixsix")),
    raw("TCP, refused", SECURE, "sixsix"),
    get("last", "/last"),
];

fn route(prefix: &str, action: &Value) -> Value {
    let mut route = json!({"name": prefix, "match": {"prefix": prefix, "case_sensitive": true}});
    for (name, value) in action.as_object().into_iter().flatten() {
        route[name] = value.clone();
    }
    route
}

fn forward(prefix: &str, more: &Value) -> Value {
    let mut action = json!({"cluster": WEB_CHAIN, "timeout": "0s"});
    for (name, value) in more.as_object().into_iter().flatten() {
        action[name] = value.clone();
    }
    route(prefix, &json!({"route": action, "decorator": {"operation": format!("web.shop.svc.cluster.local:80{prefix}*")}}))
}

fn fault(prefix: &str, fault: Value) -> Value {
    let mut fault = fault;
    fault["@type"] = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault".into();
    let mut route = forward(prefix, &json!({}));
    route["typed_per_filter_config"] = json!({"envoy.filters.http.fault": fault});
    route
}

fn web_routes() -> Vec<Value> {
    let always = json!({"numerator": 100});
    let retry = |on: &str, n_retries: u32| json!({"retry_on": on, "num_retries": n_retries});
    let mut tried = retry("5xx", 1);
    tried["per_try_timeout"] = "0.2s".into();
    vec![
        route("/moved", &json!({"redirect": {"path_redirect": "/to", "response_code": "FOUND"}})),
        route("/direct", &json!({"direct_response": {"status": 418, "body": {"inline_string": "short and stout"}}})),
        forward("/old/", &json!({"prefix_rewrite": "/new/"})),
        forward("/missing", &json!({"cluster": "none"})),
        forward("/refusing", &json!({"cluster": "refusing", "retry_policy": retry("connect-failure", 2)})),
        forward("/gone", &json!({"cluster": "gone", "retry_policy": retry("connect-failure", 2)})),
        forward("/overflow", &json!({"cluster": "overflow"})),
        forward("/delay/5000/route", &json!({"timeout": "0.2s"})),
        forward("/delay/5000/try", &json!({"retry_policy": tried})),
        forward("/fail", &json!({"retry_policy": retry("5xx", 2)})),
        fault("/abort", json!({"abort": {"http_status": 503, "percentage": always}})),
        fault("/slow", json!({"delay": {"fixed_delay": "0.05s", "percentage": always}})),
    ]
}

/// A cluster like that of `web`, whose endpoints are another service's.
fn cluster_like_web(scenario: &mut Scenario, name: &str, endpoints: Option<&str>) -> Result<()> {
    let mut cluster = scenario.resource(Kind::Cluster, WEB_CHAIN)?.clone();
    cluster["name"] = name.into();
    cluster["alt_stat_name"] = format!("{name};").into();
    if let Some(pod) = endpoints {
        let mut assignment = scenario.resource(Kind::Endpoints, WEB_CHAIN)?.clone();
        assignment["cluster_name"] = name.into();
        let text = assignment.to_string().replace(".1.1:8080", pod);
        scenario.insert(Kind::Endpoints, name, serde_json::from_str(&text)?);
        cluster["eds_cluster_config"]["service_name"] = name.into();
    } else {
        cluster["circuit_breakers"]["thresholds"][0]["max_requests"] = 0.into();
    }
    scenario.insert(Kind::Cluster, name, cluster);
    Ok(())
}

/// Gives every log below the provider's JSON format with [`OPERATORS`].
fn set_formats(value: &mut Value, format: &Value) {
    match value {
        Value::Object(fields) if fields.contains_key("log_format") => {
            fields.insert("log_format".to_owned(), json!({"json_format": format}));
        }
        Value::Object(fields) => fields.values_mut().for_each(|field| set_formats(field, format)),
        Value::Array(items) => items.iter_mut().for_each(|item| set_formats(item, format)),
        _ => {}
    }
}

/// Lines and spans of all chains: as those of `web`, with more in the lines.
fn report_all(scenario: &mut Scenario) -> Result<()> {
    let web = scenario.http(WEB_CHAIN)?;
    let detector = json!({"name": "environment", "typed_config": {"@type": ENVIRONMENT_DETECTOR}});
    web["tracing"]["provider"]["typed_config"]["resource_detectors"] = json!([detector]);
    let (logs, tracing) = (web["access_log"].clone(), web["tracing"].clone());
    let mut format = logs[0]["typed_config"]["log_format"]["json_format"].clone();
    OPERATORS.iter().for_each(|(key, operator)| format[*key] = (*operator).into());
    operators::OPERATORS.iter().for_each(|operator| format[format!("op {operator}")] = format!("%{operator}%").into());
    for chain in [RATINGS_CHAIN, REVIEWS_CHAIN, LEGACY_CHAIN, EMPTY_CHAIN] {
        let http = scenario.http(chain)?;
        (http["access_log"], http["tracing"]) = (logs.clone(), tracing.clone());
    }
    let listeners: Vec<String> = scenario.resources(Kind::Listener).map(|(name, _)| name.to_owned()).collect();
    for listener in listeners {
        set_formats(scenario.resource(Kind::Listener, &listener)?, &format);
    }
    Ok(())
}

pub(super) fn configuration(scenario: &mut Scenario) -> Result<()> {
    for cluster in [WEB_CHAIN, RATINGS_CHAIN, REVIEWS_CHAIN, DB_CHAIN] {
        scenario.keep_endpoints(cluster, 1)?;
    }
    report_all(scenario)?;
    scenario.add_routes(WEB_CHAIN, web_routes())?;
    cluster_like_web(scenario, "refusing", Some(".1.2:8080"))?;
    cluster_like_web(scenario, "gone", Some(".2.2:9080"))?;
    cluster_like_web(scenario, "overflow", None)?;
    let path = json!({"or_rules": {"rules": [{"url_path": {"path": {"exact": "/denied"}}}]}});
    scenario.add_http_filters(WEB_CHAIN, vec![rbac("DENY", "ns[shop]-policy[deny]-rule[0]", &path, &json!({"any": true}))])?;
    let legacy = route("/once", &json!({"route": {"cluster": LEGACY_CHAIN, "timeout": "0s"}}));
    scenario.add_routes(LEGACY_CHAIN, vec![legacy])?;
    let ratings = &mut scenario.http(RATINGS_CHAIN)?["route_config"]["virtual_hosts"][0]["routes"][0]["match"];
    *ratings = json!({"safe_regex": {"regex": "/(ratings|status|reset).*"}});
    let sampling = &mut scenario.http(REVIEWS_CHAIN)?["tracing"]["random_sampling"];
    *sampling = json!({"value": 1});
    Ok(())
}
