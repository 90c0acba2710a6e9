//! An endpoint that never answers: how long it is waited for, and what becomes of the request; and one with several addresses.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::envoy::Envoy;
use tests::fake_istiod::Kind;
use tests::scenario::{LEGACY, Mesh, PRIVILEGED_PORT_SHIFT, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tests::workload::{App, Workload};

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

/// Where `legacy` is, and where it is said to be as well.
async fn with_two_addresses() -> Result<(Mesh, SocketAddr, SocketAddr)> {
    let builder = Mesh::builder("07-telemetry")?;
    let other = SocketAddr::new(builder.net().pod(60, 1).into(), PRIVILEGED_PORT_SHIFT + 80);
    let mut first = None;
    let builder = builder.edit(|scenario| {
        let endpoint = &mut scenario.resource(Kind::Endpoints, LEGACY_CHAIN)?["endpoints"][0]["lb_endpoints"][0]["endpoint"];
        let address = endpoint["address"]["socket_address"]["address"].as_str().context("no address")?.parse()?;
        first = Some(SocketAddr::new(address, PRIVILEGED_PORT_SHIFT + 80));
        let socket = json!({"address": other.ip().to_string(), "port_value": other.port()});
        endpoint["additional_addresses"] = json!([{"address": {"socket_address": socket}}]);
        for log in scenario.http(LEGACY_CHAIN)?["access_log"].as_array_mut().context("no log")? {
            log["typed_config"]["log_format"]["json_format"]["remote"] = json!("%UPSTREAM_REMOTE_ADDRESS%");
        }
        Ok(())
    })?;
    Ok((builder.start().await?, first.context("no endpoint")?, other))
}

/// Asks for `path` here and of Envoy: which pod answered, how long it took, and which addresses the logs have.
async fn asked_of_both(mesh: &Mesh, path: &str) -> Result<Vec<(String, Duration, [String; 2])>> {
    let envoy = Envoy::beside(mesh).start().await?;
    let peer = mesh.peer("frontend-0")?;
    let mut seen = Vec::new();
    for (proxy, output) in [(mesh.hbone(), mesh.waypoint.output_lines()), (envoy.hbone(), envoy.output())] {
        let connection = peer.connect(proxy).await?;
        let began = Instant::now();
        let answer = connection.get(LEGACY, path).await?;
        let lasted = began.elapsed();
        let line = until("its line", DEADLINE, async || {
            let line = output.all().iter().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["path"] == path));
            Ok(line.map_or_else(|| Look::NotYet(output.all().join("\n")), Look::Done))
        })
        .await?;
        let told = ["upstream_host", "remote"].map(|key| line[key].as_str().unwrap_or_default().to_owned());
        seen.push((answer.json()["pod"].as_str().unwrap_or_default().to_owned(), lasted, told));
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_first_address_refuses_is_reached_at_its_second_as_in_envoy() -> Result<()> {
    let (mesh, first, other) = with_two_addresses().await?;
    let second = Workload::plain("second", other, App::Http).await?;
    let seen = asked_of_both(&mesh, "/refused").await?;
    for (pod, _, told) in &seen {
        assert_eq!((pod.as_str(), told), ("second", &[first.to_string(), other.to_string()]), "{seen:?}");
    }
    assert_eq!(second.record().requests_total(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_first_address_is_silent_is_reached_at_its_second_as_in_envoy() -> Result<()> {
    let (mesh, first, other) = with_two_addresses().await?;
    let _second = Workload::plain("second", other, App::Http).await?;
    let _stuck = Stuck::at(first)?;
    let seen = asked_of_both(&mesh, "/silent").await?;
    for (pod, lasted, told) in &seen {
        assert_eq!((pod.as_str(), told), ("second", &[first.to_string(), other.to_string()]), "{seen:?}");
        assert!(*lasted >= Duration::from_millis(300) && *lasted < Duration::from_secs(2), "{seen:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_whose_addresses_all_answer_is_reached_at_its_first_as_in_envoy() -> Result<()> {
    let (mesh, first, other) = with_two_addresses().await?;
    let _first = Workload::plain("first", first, App::Http).await?;
    let second = Workload::plain("second", other, App::Http).await?;
    let seen = asked_of_both(&mesh, "/both").await?;
    for (pod, _, told) in &seen {
        assert_eq!((pod.as_str(), told), ("first", &[first.to_string(), first.to_string()]), "{seen:?}");
    }
    assert_eq!(second.record().connections(), 0);
    Ok(())
}
