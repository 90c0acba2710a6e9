//! An endpoint that never answers: how long it is waited for, and what becomes of the request.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::scenario::{LEGACY, Mesh, PRIVILEGED_PORT_SHIFT, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::App;

use crate::golden_metrics::LEGACY_CHAIN;

const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// A connect that takes longer is not going to be answered.
const UNANSWERED: Duration = Duration::from_millis(200);
/// Of istiod's retry policy.
const TRIES: u32 = 3;

/// An address where the system answers no more connects: what was accepted fills the queue, and nobody takes it.
struct Stuck {
    _listener: Socket,
    _queue: Vec<TcpStream>,
}

impl Stuck {
    fn at(address: SocketAddr) -> Result<Self> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.set_reuse_address(true)?;
        listener.bind(&address.into())?;
        listener.listen(0)?;
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, UNANSWERED) {
            queue.push(stream);
            if queue.len() > 100 {
                bail!("the queue has no end");
            }
        }
        Ok(Self { _listener: listener, _queue: queue })
    }
}

fn with_limit(scenario: &mut Scenario, chain: &str) -> Result<()> {
    scenario.resource(Kind::Cluster, chain)?["connect_timeout"] = json!("0.5s");
    for log in scenario.http(chain)?["access_log"].as_array_mut().context("no log")? {
        log["typed_config"]["log_format"]["json_format"]["tries"] = json!("%UPSTREAM_REQUEST_ATTEMPT_COUNT%");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_never_answers_is_given_up_and_tried_again_within_its_clusters_limit_alike() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| with_limit(scenario, LEGACY_CHAIN))?.start().await?;
    let envoy = Envoy::beside(&mesh).start().await?;
    let legacy = mesh.scenario().clone().resource(Kind::Endpoints, LEGACY_CHAIN)?["endpoints"][0]["lb_endpoints"][0].clone();
    let address = legacy["endpoint"]["address"]["socket_address"]["address"].as_str().context("no address")?.parse()?;
    let _stuck = Stuck::at(SocketAddr::new(address, PRIVILEGED_PORT_SHIFT + 80))?;
    let peer = mesh.peer("frontend-0")?;
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        let began = Instant::now();
        let answer = peer.connect(proxy).await?.get(LEGACY, "/stuck").await?;
        let (lasted, least) = (began.elapsed(), CONNECT_LIMIT * TRIES);
        assert_eq!(answer.status, 503);
        assert!(lasted >= least && lasted < least * 3, "{proxy}: {lasted:?}");
        let line = until("its line", DEADLINE, async || {
            let line =
                output.all().iter().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["path"] == "/stuck"));
            Ok(line.map_or_else(|| Look::NotYet(output.all().join("\n")), Look::Done))
        })
        .await?;
        assert_eq!((&line["response_flags"], &line["tries"]), (&json!("URX,UF"), &json!(TRIES)), "{proxy}: {line}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_pod_never_answers_reaches_another_one() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(|scenario| with_limit(scenario, WEB_CHAIN))?.start().await?;
    let web = mesh.scenario().clone().resource(Kind::Endpoints, WEB_CHAIN)?["endpoints"][0]["lb_endpoints"][0].clone();
    let pod = web["endpoint"]["address"]["envoy_internal_address"]["endpoint_id"].as_str().context("no pod")?.parse::<SocketAddr>()?;
    let _stuck = Stuck::at(SocketAddr::new(pod.ip(), tests::process::HBONE_PORT))?;
    let other = mesh.pod(if pod.ip() == mesh.net.pod(1, 1) { "web-v1-2" } else { "web-v1-1" }, App::Http).await?;
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let (mut n_requests, mut has_waited) = (0, false);
    while !has_waited && n_requests < 20 {
        let began = Instant::now();
        let answer = http.get("/x").await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        n_requests += 1;
        has_waited = began.elapsed() >= CONNECT_LIMIT;
        assert!(began.elapsed() < CONNECT_LIMIT * TRIES * 2, "{:?}", began.elapsed());
    }
    assert!(has_waited, "none of {n_requests} requests met the pod that never answers");
    assert_eq!(other.record().requests("GET /x"), n_requests);
    Ok(())
}
