//! This waypoint and a stock Envoy as the waypoints of one mesh, for a load generator: one configuration, one scripted control plane.
//!
//! cargo run -p tests --bin envoy_mesh -- ROOT_CERT ROOT_KEY ENDPOINT [bare|metrics|full|full-http2] [--pin CORE]
//!
//! `web` (10.96.1.1:80) is served by ENDPOINT, the address of an application whose HBONE port is 15008 of the same address. When both are
//! ready, a line for each: `name=ours,address=…,destination=…,pid=…` and `name=envoy,…`. A line `counts` on standard input is answered with
//! `lines ours=N envoy=N spans ours=N envoy=N`: what each wrote to its access log, and exported, so far. Ends, and both proxies with it, by SIGTERM, SIGINT, or after an hour.
//!
//! bare: routes only. metrics: and Istio's metrics, here only. full: and in both a JSON line and a span for every request, and an RBAC
//! filter of three ALLOW policies, the last of which holds for callers of namespace `load`. full-http2: and the application
//! is spoken to in HTTP/2. `--pin` runs both proxies on one core.

use std::io::{BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::otlp::SpanCounter;
use tests::pki::Pki;
use tests::scale::{lead_to, three_policies};
use tests::scenario::{Mesh, RATINGS_CHAIN, Scenario, WEB, WEB_CHAIN};
use tokio::signal::unix::{SignalKind, signal};

/// Where istiod says that spans go.
const COLLECTOR: &str = "outbound|4317||tempo.tempo.svc.cluster.local";
const COLLECTOR_PORT: u16 = 4317;
/// Ends by itself if nobody ends it.
const LIFETIME: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Features {
    Bare,
    Metrics,
    Full,
    FullHttp2,
}

struct Options {
    pki: Pki,
    endpoint: String,
    features: Features,
    /// What runs both binaries.
    runner: Vec<String>,
}

fn options() -> Result<Options> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut runner = Vec::new();
    if let Some(at) = args.iter().position(|arg| arg == "--pin") {
        let core: u16 = args.get(at + 1).context("--pin needs a core")?.parse().context("the core of --pin")?;
        args.drain(at..at + 2);
        runner = ["taskset".to_owned(), "--cpu-list".to_owned(), core.to_string()].to_vec();
    }
    let [root_cert, root_key, endpoint, rest @ ..] = args.as_slice() else {
        bail!("usage: envoy_mesh ROOT_CERT ROOT_KEY ENDPOINT [bare|metrics|full|full-http2] [--pin CORE]")
    };
    let features = match rest {
        [] => Features::Full,
        [word] if word == "bare" => Features::Bare,
        [word] if word == "metrics" => Features::Metrics,
        [word] if word == "full" => Features::Full,
        [word] if word == "full-http2" => Features::FullHttp2,
        other => bail!("expected one of bare, metrics, full and full-http2, not {other:?}"),
    };
    let pki = Pki::from_pem(&std::fs::read_to_string(root_cert)?, &std::fs::read_to_string(root_key)?)?;
    Ok(Options { pki, endpoint: endpoint.clone(), features, runner })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = options()?;
    let builder = Mesh::builder("07-telemetry")?.pki(options.pki).proxy_config("concurrency", json!(1)).quiet();
    let collector = |last| SocketAddr::new(IpAddr::V4(builder.net().pod(8, last)), COLLECTOR_PORT);
    let (to_ours, to_envoy) = (collector(11), collector(12));
    let spans = (SpanCounter::start(to_ours).await?, SpanCounter::start(to_envoy).await?);
    let prepared = builder.counting().runner(options.runner.clone()).edit(|scenario| {
        prepare(scenario, &options.endpoint, options.features)?;
        send_spans_to(scenario, to_ours)
    })?;
    let mesh = prepared.start().await?;
    let oracle = Envoy::beside(&mesh).edit(|scenario| send_spans_to(scenario, to_envoy))?;
    let envoy = oracle.counting().runner(options.runner).start().await?;
    say(&format!("name=ours,address={},destination={WEB},pid={}", mesh.hbone(), mesh.waypoint.pid()))?;
    say(&format!("name=envoy,address={},destination={WEB},pid={}", envoy.hbone(), envoy.pid()))?;
    // Spans are counted by this thread, so that waiting for input must not hold it.
    let (asked, mut asks) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if asked.blocking_send(line).is_err() {
                break;
            }
        }
    });
    let mut terminated = signal(SignalKind::terminate())?;
    let mut lifetime = pin!(tokio::time::sleep(LIFETIME));
    loop {
        tokio::select! {
            Some(line) = asks.recv() => if line.trim() == "counts" {
                let lines = (mesh.waypoint.output_lines().n_ever(), envoy.output().n_ever());
                say(&format!("lines ours={} envoy={} spans ours={} envoy={}", lines.0, lines.1, spans.0.n_spans(), spans.1.n_spans()))?;
            },
            _ = terminated.recv() => return Ok(()),
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            () = &mut lifetime => return Ok(()),
        }
    }
}

/// Prints a line at once, also into a pipe.
fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

fn send_spans_to(scenario: &mut Scenario, collector: SocketAddr) -> Result<()> {
    let assignment = scenario.resource(Kind::Endpoints, COLLECTOR)?;
    let address = &mut assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
    *address = json!({ "address": collector.ip().to_string(), "port_value": collector.port() });
    Ok(())
}

fn prepare(scenario: &mut Scenario, endpoint: &str, features: Features) -> Result<()> {
    lead_to(scenario, endpoint)?;
    if features == Features::FullHttp2 {
        // As istiod writes it for a port that is named `grpc` or `http2`.
        let protocol = scenario.resource(Kind::Cluster, RATINGS_CHAIN)?["typed_extension_protocol_options"].clone();
        scenario.resource(Kind::Cluster, WEB_CHAIN)?["typed_extension_protocol_options"] = protocol;
    }
    if matches!(features, Features::Full | Features::FullHttp2) {
        return scenario.add_http_filters(WEB_CHAIN, vec![three_policies()]);
    }
    let http = scenario.http(WEB_CHAIN)?;
    let fields = http.as_object_mut().context("an object")?;
    fields.remove("tracing");
    fields.remove("access_log");
    if features == Features::Bare {
        http["http_filters"].as_array_mut().context("filters")?.retain(|filter: &Value| filter["name"] != "istio.stats");
    }
    Ok(())
}
