//! What routes do with requests: the waypoint and a stock Envoy, given the same routes, are asked the same and compared.

mod dry_runs;
mod filters;
mod matches;
mod mirrors;
mod mutations;
mod rate_limits;
mod redirects;
mod remote_keys;
mod retries;
mod rewrites;
mod tokens;
mod web;

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::peer::{Answer, Http, RequestBody, empty};
use tests::process::Lines;
use tests::scenario::{Mesh, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

const DEADLINE: Duration = Duration::from_secs(20);
/// Fields of lines that two proxies cannot have in common.
const OWN_FIELDS: [&str; 7] = ["request_id", "span_id", "trace_id", "timestamp", "duration_ms", "upstream_host", "waypoint_refusal"];
/// Headers of requests and answers that they cannot have in common.
const OWN_HEADERS: [&str; 6] = ["x-request-id", "traceparent", "tracestate", "date", "x-envoy-upstream-service-time", "x-pod"];

/// The waypoint and the oracle beside it, with the same routes before those of `web`.
struct Both {
    mesh: Mesh,
    envoy: Envoy,
    web: Workload,
    n_asked: u32,
}

/// One request.
#[derive(Debug, Clone)]
struct Ask<'a> {
    method: Method,
    host: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
    is_http2: bool,
    /// What an HTTP/2 request says; an HTTP/1.1 request says none but in its path.
    scheme: &'a str,
}

impl<'a> Ask<'a> {
    fn get(path: &'a str) -> Self {
        Self { method: Method::GET, host: "web.shop", path, headers: &[], is_http2: false, scheme: "http" }
    }

    fn request(&self, agent: &str) -> Result<Request<RequestBody>> {
        let target = if self.is_http2 { format!("{}://{}{}", self.scheme, self.host, self.path) } else { self.path.to_owned() };
        let mut request = Request::builder().method(self.method.clone()).uri(target).header("user-agent", agent);
        if !self.is_http2 {
            request = request.header("host", self.host);
        }
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        Ok(request.body(empty())?)
    }

    fn with(self, headers: &'a [(&'a str, &'a str)]) -> Self {
        Self { headers, ..self }
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    status: StatusCode,
    /// As `name: value`, sorted.
    headers: Vec<String>,
    /// What the pod told of the request, or the text of another answer.
    body: Value,
    line: Value,
}

impl Seen {
    fn of(answer: &Answer, mut line: Value) -> Self {
        let own = |name: &str| OWN_HEADERS.contains(&name);
        let mut headers: Vec<_> = answer.headers.iter().filter(|(name, _)| !own(name.as_str())).map(text_of).collect();
        headers.sort();
        let mut body = answer.json();
        if let Some(told) = body["headers"].as_array_mut() {
            // Envoy tells an HTTP/1.1 pod the length of no body, of some methods; its answer is longer then.
            told.retain(|pair| !own(pair[0].as_str().unwrap_or_default()) && pair[0] != "content-length");
            headers.retain(|header| !header.starts_with("content-length:"));
            line["bytes_sent"] = Value::Null;
            told.sort_by_key(ToString::to_string);
        } else {
            body = answer.text().into();
        }
        if let Some(fields) = line.as_object_mut() {
            fields.retain(|name, _| !OWN_FIELDS.contains(&name.as_str()));
        }
        Self { status: answer.status, headers, body, line }
    }

    /// A header of the answer; empty if there is none.
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find_map(|header| header.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_default()
    }

    /// A header that the pod got; empty if it got none.
    fn told(&self, name: &str) -> String {
        let pairs = self.body["headers"].as_array().into_iter().flatten();
        let values: Vec<_> = pairs.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect();
        values.join("|")
    }
}

fn text_of((name, value): (&http::HeaderName, &http::HeaderValue)) -> String {
    format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
}

/// Puts routes before those of `web`, and what is compared into its lines.
fn with_routes(scenario: &mut Scenario, routes: Vec<Value>) -> Result<()> {
    scenario.keep_endpoints(WEB_CHAIN, 1)?;
    scenario.keep_endpoints(REVIEWS_CHAIN, 1)?;
    scenario.add_routes(WEB_CHAIN, routes)?;
    let format = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
    format["raw_path"] = "%REQ(:PATH)%".into();
    format["details"] = "%RESPONSE_CODE_DETAILS%".into();
    format["route"] = "%ROUTE_NAME%".into();
    Ok(())
}

impl Both {
    async fn start(routes: Vec<Value>) -> Result<Self> {
        Self::edited(|scenario| with_routes(scenario, routes)).await
    }

    async fn edited(edit: impl FnOnce(&mut Scenario) -> Result<()>) -> Result<Self> {
        let mesh = Mesh::builder("07-telemetry")?.edit(edit)?.start().await?;
        let envoy = Envoy::beside(&mesh).start().await?;
        let web = mesh.pod("web-v1-1", App::Http).await?;
        Ok(Self { mesh, envoy, web, n_asked: 0 })
    }

    /// What the waypoint makes of a request; Envoy makes the same of it.
    async fn same(&mut self, ask: Ask<'_>) -> Result<Seen> {
        Ok(self.all_same(&[ask]).await?.remove(0))
    }

    /// What the waypoint makes of some requests; Envoy makes the same of them.
    async fn all_same(&mut self, asks: &[Ask<'_>]) -> Result<Vec<Seen>> {
        let (ours, theirs) = self.ask(asks).await?;
        for ((ask, ours), theirs) in asks.iter().zip(&ours).zip(&theirs) {
            assert_eq!(ours, theirs, "{ask:?}: ours is on the left, Envoy's on the right");
        }
        Ok(ours)
    }

    /// What both make of some requests, the waypoint first. Lines are waited for at the end, since they come once a second.
    async fn ask(&mut self, asks: &[Ask<'_>]) -> Result<(Vec<Seen>, Vec<Seen>)> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for ask in asks {
            for (proxy, answers) in [(self.mesh.hbone(), &mut ours), (self.envoy.hbone(), &mut theirs)] {
                self.n_asked += 1;
                let agent = format!("ask/{:05}", self.n_asked);
                let connection = self.mesh.peer("frontend-0")?.connect(proxy).await?;
                let mut http: Http = if ask.is_http2 { connection.http2(WEB).await? } else { connection.http1(WEB).await? };
                let mut answer = http.send(ask.request(&agent)?).await?;
                // The number of the request is the only difference between the two.
                answer.body = answer.text().replace(&agent, "ask").into();
                answers.push((answer, agent));
            }
        }
        Ok((seen(ours, self.mesh.waypoint.output_lines()).await?, seen(theirs, self.envoy.output()).await?))
    }
}

async fn seen(answers: Vec<(Answer, String)>, output: &Lines) -> Result<Vec<Seen>> {
    let mut all = Vec::new();
    for (answer, agent) in answers {
        let mut line = access_line(output, &agent).await?;
        line["user_agent"] = "ask".into();
        all.push(Seen::of(&answer, line));
    }
    Ok(all)
}

async fn access_line(output: &Lines, agent: &str) -> Result<Value> {
    until(&format!("the line of {agent}"), DEADLINE, async || {
        let lines = output.all();
        let found = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|line| line["user_agent"] == agent);
        Ok(found.map_or_else(|| Look::NotYet(lines.join("\n")), Look::Done))
    })
    .await
}

/// A route of `web` that forwards.
fn forward(name: &str, matched: Value, action: Value) -> Value {
    let mut action = action;
    action["timeout"] = "0s".into();
    if action.get("weighted_clusters").is_none() {
        action["cluster"] = WEB_CHAIN.into();
    }
    json!({"name": name, "match": matched, "route": action})
}
