//! The swap of the image is the whole migration: what the rendered Deployment gives is enough, and what Kubernetes expects of a pod holds.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use nix::sys::signal::Signal;
use tests::peer::{Answer, empty, plain_get};
use tests::process::exit_code;
use tests::wait::{Look, until};

use crate::stage::{Stage, WEB, waypoint_port};

/// `terminationDrainDuration` of Istio's ProxyConfig where nobody sets it.
const DRAIN_DURATION: Duration = Duration::from_secs(5);
/// From the end of the drain to the end of the process: telemetry is flushed.
const EXIT_ALLOWANCE: Duration = Duration::from_secs(2);

/// A file of `/proc` of the waypoint.
fn process_file(stage: &Stage, name: &str) -> Result<String> {
    let path = format!("/proc/{}/{name}", stage.waypoint.id());
    fs::read_to_string(&path).context(path)
}

/// Exactly the arguments, environment, user and root of the Deployment; ready; silent on standard output; no panic.
pub async fn runs_as_rendered(stage: &mut Stage) -> Result<()> {
    let container = stage.waypoint.container();
    let arguments: Vec<String> = process_file(stage, "cmdline")?.trim_end_matches('\0').split('\0').skip(1).map(str::to_owned).collect();
    ensure!(arguments == container.arguments, "arguments: {arguments:?}");
    let environment = process_file(stage, "environ")?;
    let mut environment: Vec<&str> = environment.trim_end_matches('\0').split('\0').collect();
    let mut rendered: Vec<String> = container.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    environment.sort_unstable();
    rendered.sort_unstable();
    ensure!(environment == rendered, "environment: {environment:?}");
    ensure!(container.user == 1337 && container.read_only_root, "the Deployment changed: {container:?}");
    let status = process_file(stage, "status")?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let user = field("Uid:").split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(user == "1337" || user == "0", "it runs as uid {user}");
    ensure!(field("CapEff:").trim_start_matches('0').is_empty() && field("NoNewPrivs:") == "1", "it has privileges: {status}");
    let mounts = process_file(stage, "mountinfo")?;
    let root = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some("/")).context("no root among the mounts")?;
    ensure!(root.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro")), "the root is writable: {root}");
    let ready = plain_get(waypoint_port(15021), "/healthz/ready").await?;
    ensure!(ready.status == StatusCode::OK, "{}: {}", ready.status, ready.text());
    let identity = stage.frontend.connect(stage.hbone_address()).await?.server_identity;
    ensure!(identity == "spiffe://cluster.local/ns/shop/sa/waypoint", "it shows {identity}");
    let image = stage.deployment.pointer("/spec/template/spec/containers/0/image");
    println!("        runs as uid {user} in place of {}", image.unwrap_or_default());
    Ok(())
}

/// A request that is under way is finished; the process ends by itself, with success, in time.
pub async fn terminates_in_time(stage: &mut Stage) -> Result<()> {
    let connection = stage.frontend.connect(stage.hbone_address()).await?;
    let mut http = connection.http1(WEB).await?;
    let request = http.request(Method::GET, "/stream/20").body(empty())?;
    let response = http.start(request).await?;
    let since = Instant::now();
    stage.waypoint.signal(Signal::SIGTERM)?;
    until("GOAWAY", DRAIN_DURATION, async || {
        Ok(if connection.takes_streams().await { Look::NotYet("streams are taken".to_owned()) } else { Look::Done(()) })
    })
    .await?;
    // Callers hear of it late: for as long as the drain lasts, they are served.
    let late = stage.get(&stage.frontend, WEB, "/during-the-drain").await.context("a new connection during the drain")?;
    ensure!(late.status == StatusCode::OK, "{}: {}", late.status, late.text());
    let ready = plain_get(waypoint_port(15021), "/healthz/ready").await?;
    ensure!(ready.status == StatusCode::SERVICE_UNAVAILABLE, "ready during the drain: {}", ready.text());
    let answer = Answer::read(response).await.context("the answer that was under way")?;
    ensure!(answer.text().lines().count() == 20, "the answer was cut: {}", answer.text());
    let status = stage.waypoint.wait_exit(DRAIN_DURATION + EXIT_ALLOWANCE).await?;
    let took = since.elapsed();
    ensure!(exit_code(status) == Some(0), "it ended with {status}");
    ensure!(took < DRAIN_DURATION + EXIT_ALLOWANCE, "it took {took:?}");
    let log = stage.waypoint.stderr()?;
    ensure!(!log.contains("panicked"), "it panicked");
    println!("        ended {:.1} s after SIGTERM", took.as_secs_f64());
    Ok(())
}
