//! The waypoint's main job on one screen: a scripted istiod with recorded configuration, the real binary, workloads, a collector, and a
//! plain port into the mesh. Walks through what a waypoint does, says what each step shows, and stays up for curl and oha; with
//! `--once` it checks every step and exits, non-zero if one of them failed.
//!
//! Not a test of the waypoint: see `tests/tests/it`. Everything it prints was observed in this run.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tests::peer::{Answer, Http, empty, full};
use tests::plain_port::PlainPort;
use tests::process::{STATS_PORT, STATUS_PORT, binary, exit_code};
use tests::scenario::{Mesh, REVIEWS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tests::workload::{App, Workload};
use tokio::net::TcpStream;

const POLICY: &str = "ns[shop]-policy[admin-for-batch-only]-rule[0]";
/// Where the plain port of `clients/frontend` should be; the next one is for `clients/batch`.
const PORT: u16 = 8080;
const BATCH_PORT: u16 = 8081;
/// Requests of the step that shows retries.
const N_RETRY_REQUESTS: u64 = 10;
/// How long a span may take to arrive: the waypoint exports five at a time or every five seconds.
const SPAN_DEADLINE: Duration = Duration::from_secs(15);
/// Log lines shown each second while the demo stays up; of more only the number is told.
const LINES_SHOWN_MAX: usize = 10;

/// What istiod sends for an HTTPRoute that matches a header, and for an AuthorizationPolicy; and one more field for the log's format.
fn configure(scenario: &mut Scenario) -> Result<()> {
    scenario.keep_endpoints(REVIEWS_CHAIN, 1)?;
    scenario.add_routes(
        WEB_CHAIN,
        vec![json!({
            "name": "beta", "match": {"prefix": "/", "case_sensitive": true, "headers": [{"name": "x-group", "string_match": {"exact": "beta"}}]},
            "route": {"cluster": REVIEWS_CHAIN, "timeout": "0s"},
        })],
    )?;
    let batch = "spiffe://cluster.local/ns/clients/sa/batch";
    scenario.add_http_filters(
        WEB_CHAIN,
        vec![json!({
            "name": "envoy.filters.http.rbac",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": {"action": "DENY", "policies": {POLICY: {
                    "permissions": [{"and_rules": {"rules": [{"or_rules": {"rules": [{"url_path": {"path": {"exact": "/admin"}}}]}}]}}],
                    "principals": [{"and_ids": {"ids": [{"not_id": {"or_ids": {"ids": [
                        {"filter_state": {"key": "io.istio.peer_principal", "string_match": {"exact": batch}}},
                    ]}}}]}}],
                }}},
                "shadow_rules_stat_prefix": "istio_dry_run_allow_",
            },
        })],
    )?;
    let log = &mut scenario.http(WEB_CHAIN)?["access_log"][0]["typed_config"]["log_format"]["json_format"];
    log["response_code_details"] = "%RESPONSE_CODE_DETAILS%".into();
    Ok(())
}

struct Demo {
    mesh: Mesh,
    web: Vec<Workload>,
    reviews: Workload,
    frontend: PlainPort,
    batch: PlainPort,
    ready_after: Duration,
}

/// A request through a plain port, as curl sends it.
async fn send(port: SocketAddr, method: Method, path: &str, header: Option<(&str, &str)>) -> Result<Answer> {
    let mut http = Http::one(TcpStream::connect(port).await?).await?;
    let mut request = http.request(method.clone(), path).header("user-agent", "demo");
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let body = if method == Method::POST { full("an order") } else { empty() };
    http.send(request.body(body)?).await
}

impl Demo {
    async fn start() -> Result<Self> {
        println!("building the waypoint …");
        tokio::task::spawn_blocking(binary).await??;
        println!("starting istiod (scripted, with what a real one sent), two pods of web, one of reviews, a collector, the waypoint …");
        let begin = Instant::now();
        let mut mesh = Mesh::builder("07-telemetry")?.quiet().edit(configure)?.start_unready().await?;
        mesh.waypoint.ready().await?;
        let ready_after = begin.elapsed();
        let web = vec![mesh.pod("web-v1-1", App::Http).await?, mesh.pod("web-v1-2", App::Http).await?];
        let reviews = mesh.pod("reviews-v1-1", App::Http).await?;
        let frontend = PlainPort::open(PORT, mesh.peer("frontend-0")?, mesh.hbone(), WEB).await?;
        let batch = PlainPort::open(BATCH_PORT, mesh.peer("batch-0")?, mesh.hbone(), WEB).await?;
        Ok(Self { mesh, web, reviews, frontend, batch, ready_after })
    }

    async fn identity(&self) -> Result<()> {
        println!("  The waypoint was started as the pod that istiod renders: same arguments, environment and files.");
        println!("  It had its key signed by istiod's CA, got its configuration over delta ADS, and reports ready.");
        let connection = self.mesh.connect("frontend-0").await?;
        println!("  → ready after {:.0?}; certificate: {}", self.ready_after, connection.server_identity);
        println!("  → http://{}/healthz/ready", self.mesh.waypoint.port(STATUS_PORT));
        ensure!(connection.server_identity == "spiffe://cluster.local/ns/shop/sa/waypoint", "another identity");
        ensure!(self.mesh.istiod.replies().iter().all(|reply| reply.refusal.is_none()), "istiod's configuration was refused");
        Ok(())
    }

    async fn routing(&self) -> Result<()> {
        println!("  curl opens a plain connection; the demo makes it a tunnel of clients/frontend (mTLS, HTTP/2 CONNECT to {WEB}).");
        println!("  The waypoint picks a pod of web and goes on by a tunnel of its own; with x-group: beta a route sends it to reviews.");
        let answer = send(self.frontend.address(), Method::GET, "/hello", None).await?;
        let pod = answer.json()["pod"].as_str().unwrap_or_default().to_owned();
        println!("  → curl http://{}/hello                    {} from pod {pod}", self.frontend.address(), answer.status);
        ensure!(answer.status == StatusCode::OK && pod.starts_with("web-v1-"), "not from web: {}", answer.text());
        let answer = send(self.frontend.address(), Method::GET, "/hello", Some(("x-group", "beta"))).await?;
        let pod = answer.json()["pod"].as_str().unwrap_or_default().to_owned();
        println!("  → curl -H 'x-group: beta' http://{}/hello {} from pod {pod}", self.frontend.address(), answer.status);
        ensure!(pod == "reviews-v1-1" && self.reviews.record().requests("GET /hello") == 1, "not from reviews: {}", answer.text());
        Ok(())
    }

    async fn retry(&mut self) -> Result<()> {
        println!(
            "  Pod web-v1-1 restarts, and its ztunnel answers new tunnels with 503 since the app is not up. The waypoint tries the other"
        );
        println!("  pod: nothing of the request had been sent, so even a POST is safe to send again.");
        self.web.remove(0).kill().await;
        self.web.insert(0, self.mesh.pod("web-v1-1", App::Http).await?);
        let [refusing, serving] = [self.web[0].record(), self.web[1].record()];
        refusing.refuse_connects(Some(StatusCode::SERVICE_UNAVAILABLE));
        let sent = self.send_orders(N_RETRY_REQUESTS).await;
        refusing.refuse_connects(None);
        let (n_ok, n_refused) = (sent?, refusing.connects().len());
        let n_served: u64 = (0..N_RETRY_REQUESTS).map(|number| serving.requests(&format!("POST /order/{number}"))).sum();
        println!("  → {N_RETRY_REQUESTS} POSTs: {n_ok} answered 200; {n_refused} tunnels refused; pod web-v1-2 saw {n_served} orders");
        ensure!(n_ok == N_RETRY_REQUESTS && n_served == N_RETRY_REQUESTS, "an order was lost or sent twice");
        ensure!(n_refused > 0, "the refusing pod was never asked, so nothing was retried");
        Ok(())
    }

    async fn send_orders(&self, n_orders: u64) -> Result<u64> {
        let mut n_ok = 0;
        for number in 0..n_orders {
            let answer = send(self.frontend.address(), Method::POST, &format!("/order/{number}"), None).await?;
            n_ok += u64::from(answer.status == StatusCode::OK);
        }
        Ok(n_ok)
    }

    async fn denial(&self) -> Result<()> {
        println!("  An AuthorizationPolicy keeps /admin for clients/batch. Who asks is known from the certificate, not from a header.");
        let refused = send(self.frontend.address(), Method::GET, "/admin", None).await?;
        println!("  → curl http://{}/admin   {} {}", self.frontend.address(), refused.status, refused.text());
        let allowed = send(self.batch.address(), Method::GET, "/admin", None).await?;
        println!("  → curl http://{}/admin   {} (this port is clients/batch)", self.batch.address(), allowed.status);
        ensure!((refused.status, refused.text().as_str()) == (StatusCode::FORBIDDEN, "RBAC: access denied"), "the wrong answer");
        ensure!(allowed.status == StatusCode::OK, "the right identity was refused: {}", allowed.text());
        let (_, line) = self.mesh.waypoint.access_line("the line of the refusal", |line| line["response_code"] == 403).await?;
        let details = line["response_code_details"].as_str().unwrap_or_default();
        println!("  → the log names the policy: {details}");
        ensure!(details == format!("rbac_access_denied_matched_policy[{POLICY}]"), "another policy: {line}");
        Ok(())
    }

    async fn metric(&self) -> Result<()> {
        println!(
            "  Every request is counted with Istio's 25 labels: both peers, the service, the outcome. Dashboards and Kiali read these."
        );
        println!("  → curl http://{}/stats/prometheus", self.mesh.waypoint.port(STATS_PORT));
        let is_refusal = |line: &str| line.starts_with("istio_requests_total{") && line.contains("response_code=\"403\"");
        let line = self.mesh.waypoint.metric("the refusal's series", is_refusal).await?;
        println!("  {line}");
        let expected = [
            "reporter=\"waypoint\"",
            "source_workload=\"frontend-0\"",
            "source_principal=\"spiffe://cluster.local/ns/clients/sa/frontend\"",
            "destination_service=\"web.shop.svc.cluster.local\"",
            "connection_security_policy=\"mutual_tls\"} 1",
        ];
        for label in expected {
            ensure!(line.contains(label), "no {label}");
        }
        Ok(())
    }

    async fn log_and_span(&self) -> Result<()> {
        println!("  Telemetry turns on a JSON line and a span per request; the ids in the line are the span's, so one leads to the other.");
        let answer = send(self.frontend.address(), Method::GET, "/traced", None).await?;
        ensure!(answer.status == StatusCode::OK, "{}", answer.text());
        let (text, line) = self.mesh.waypoint.access_line("the line of /traced", |line| line["path"] == "/traced").await?;
        println!("  → log   {text}");
        let trace_id = line["trace_id"].as_str().context("no trace_id in the line")?;
        println!("    (waiting for the export, at most five seconds)");
        let span = self.mesh.spans.wait_for("the span of /traced", SPAN_DEADLINE, |span| span.trace_id == trace_id).await?;
        let shown = json!({
            "trace_id": span.trace_id, "span_id": span.span_id, "name": span.name, "service.name": span.resource.get("service.name"),
            "istio.source_workload": span.attributes.get("istio.source_workload"),
            "istio.destination_workload": span.attributes.get("istio.destination_workload"),
        });
        println!("  → span  {shown}");
        ensure!(line["span_id"] == span.span_id.as_str(), "the line names another span: {}", line["span_id"]);
        let told = answer.json();
        let seen = told["headers"].as_array().into_iter().flatten().find(|pair| pair[0] == "traceparent");
        let seen = seen.map_or(Value::Null, |pair| pair[1].clone());
        println!("  → the pod was given traceparent {seen}");
        ensure!(seen == format!("00-{trace_id}-{}-01", span.span_id), "the pod was told another trace");
        Ok(())
    }

    async fn drain(&mut self) -> Result<()> {
        println!("  SIGTERM: the waypoint tells its callers (GOAWAY), lets requests finish, and ends within terminationDrainDuration.");
        self.mesh.waypoint.terminate()?;
        let begin = Instant::now();
        let status = self.mesh.waypoint.exited(Duration::from_secs(30)).await?;
        println!("  → ended after {:.1?}, exit code {:?}", begin.elapsed(), exit_code(status));
        ensure!(exit_code(status) == Some(0), "it ended with {status}");
        Ok(())
    }

    /// Runs every step; returns how many there were and how many failed.
    async fn walk(&mut self, ends_with_drain: bool) -> (usize, usize) {
        let mut outcome = Outcome::default();
        outcome.heading("identity and configuration");
        outcome.note(self.identity().await);
        outcome.heading("routing");
        outcome.note(self.routing().await);
        outcome.heading("a retry");
        outcome.note(self.retry().await);
        outcome.heading("a denied request");
        outcome.note(self.denial().await);
        outcome.heading("the metric");
        outcome.note(self.metric().await);
        outcome.heading("the log line and its span");
        outcome.note(self.log_and_span().await);
        if ends_with_drain {
            outcome.heading("the end");
            outcome.note(self.drain().await);
        }
        (outcome.n_steps, outcome.n_failed)
    }

    fn suggest(&self) {
        let (frontend, batch) = (self.frontend.address(), self.batch.address());
        println!("\nIt stays up; Ctrl-C ends it. Try:");
        println!("  curl -s http://{frontend}/hello                        what the pod saw, as JSON");
        println!("  curl -s -H 'x-group: beta' http://{frontend}/hello     the header route to reviews");
        println!("  curl -si http://{frontend}/admin                       denied; http://{batch}/admin is not");
        println!("  curl -si http://{frontend}/status/503                  a pod that answers 503; /delay/2000 /cut /reset /stream/10 too");
        println!("  curl -s http://{}/stats/prometheus | grep istio_", self.mesh.waypoint.port(STATS_PORT));
        println!("  curl -s http://{}/healthz/ready", self.mesh.waypoint.port(STATUS_PORT));
        println!("  oha -z 10s -c 50 http://{frontend}/hello               load; the tunnel and the pods take CPU too");
        println!("Access log (as the waypoint writes it):");
    }

    /// Shows the access log until Ctrl-C.
    async fn stay(&mut self) -> Result<()> {
        self.suggest();
        let mut n_seen = 0;
        self.mesh.waypoint.output_lines().after(&mut n_seen);
        let mut every_second = tokio::time::interval(Duration::from_secs(1));
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            tokio::select! {
                asked = &mut interrupted => {
                    asked?;
                    println!();
                    return self.drain().await;
                }
                _ = every_second.tick() => {
                    let lines = self.mesh.waypoint.output_lines().after(&mut n_seen);
                    lines.iter().take(LINES_SHOWN_MAX).for_each(|line| println!("{line}"));
                    if lines.len() > LINES_SHOWN_MAX {
                        println!("… and {} more lines this second", lines.len() - LINES_SHOWN_MAX);
                    }
                }
            }
        }
    }
}

#[derive(Default)]
struct Outcome {
    n_steps: usize,
    n_failed: usize,
}

impl Outcome {
    fn heading(&mut self, title: &str) {
        self.n_steps += 1;
        println!("\n{}. {title}", self.n_steps);
    }

    fn note(&mut self, result: Result<()>) {
        match result {
            Ok(()) => println!("  ok"),
            Err(error) => {
                self.n_failed += 1;
                println!("  FAILED: {error:#}");
            }
        }
    }
}

async fn run(once: bool) -> Result<ExitCode> {
    let mut demo = Demo::start().await?;
    let (n_steps, n_failed) = demo.walk(once).await;
    if n_failed > 0 {
        println!("\nThe waypoint's log:\n{}", demo.mesh.waypoint.log().join("\n"));
    }
    if !once {
        demo.stay().await?;
    }
    println!("\ndemo: {} of {n_steps} steps as expected", n_steps - n_failed);
    Ok(if n_failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn arguments() -> Result<bool> {
    let mut once = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--once" => once = true,
            other => bail!("unknown argument {other:?}; usage: demo [--once]"),
        }
    }
    Ok(once)
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match arguments() {
        Ok(once) => run(once).await,
        Err(error) => Err(error),
    };
    outcome.unwrap_or_else(|error| {
        println!("\ndemo: failed: {error:#}");
        ExitCode::FAILURE
    })
}
