//! A mesh of 5,000 services: what both proxies hold, and what one changed route costs them; and how long a start takes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests::envoy::Envoy;
use tests::pki::Pki;
use tests::scale::{add_services, change_route, three_policies};
use tests::scenario::{Mesh, MeshBuilder, Scenario, WEB_CHAIN};

use super::load::Loadtest;
use super::summary::Summary;

const SERVICES: u32 = 5_000;
/// The service whose route changes.
const CHANGED: u32 = 2_500;
/// Changes before those that count, and those that do.
const WARMUP_CHANGES: u32 = 1;
const CHANGES: u32 = 3;
/// How long a change may be worked on: until no more CPU is used for this long.
const QUIET: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a process may take to come to rest.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`.
pub const TICKS_PER_SECOND: f64 = 100.0;
const BYTES_PER_KIB: f64 = 1024.0;

/// From spawning the process to ready, with a CA at hand and the recorded mesh.
pub async fn start_to_ready() -> Result<Duration> {
    let builder = Mesh::builder("07-telemetry")?.quiet();
    let begin = Instant::now();
    let mut mesh = builder.start_unready().await?;
    mesh.waypoint.ready().await?;
    Ok(begin.elapsed())
}

/// Resident memory and CPU per changed route, by round with new processes.
pub async fn measure(summary: &mut Summary, rounds: usize, core: Option<usize>) -> Result<()> {
    let (mut resident, mut changes) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let builder = pinned(Mesh::builder("07-telemetry")?, core).edit(|scenario| with_policies(scenario, SERVICES))?;
        let mut mesh = builder.start().await?;
        let mut oracle = Envoy::beside(&mesh).listeners_by_file();
        if let Some(core) = core {
            oracle = oracle.runner(taskset(core));
        }
        let mut envoy = oracle.start().await?;
        let (ours, theirs) = (mesh.waypoint.pid(), envoy.pid());
        settle(ours).await?;
        settle(theirs).await?;
        tokio::time::sleep(super::REST).await;
        resident.push(resident_bytes(ours)? / resident_bytes(theirs)?);
        for change in 0..WARMUP_CHANGES + CHANGES {
            let edit = |scenario: &mut _| change_route(scenario, CHANGED, change + 1);
            let before = (cpu_seconds(ours)?, cpu_seconds(theirs)?);
            mesh.push_accepted(edit).await?;
            settle(ours).await?;
            envoy.replace_listeners(mesh.scenario())?;
            settle(theirs).await?;
            let used = (cpu_seconds(ours)? - before.0, cpu_seconds(theirs)? - before.1);
            if change >= WARMUP_CHANGES {
                changes.push(used.0 / used.1);
            }
        }
    }
    summary.add("rss_5000_services_ratio", &resident)?;
    summary.add("one_route_of_5000_cpu_ratio", &changes)
}

/// Adds so many services, each with three policies; encoded anew, their maps come in another order.
pub fn with_policies(scenario: &mut Scenario, services: u32) -> Result<()> {
    scenario.add_http_filters(WEB_CHAIN, vec![three_policies()])?;
    add_services(scenario, services)
}

/// The authority of a mesh whose peers have the certificates of `loadtest`.
pub fn mesh_pki(loadtest: &Loadtest) -> Result<Pki> {
    let file = |name: &str| std::fs::read_to_string(loadtest.certificates.join(name));
    Pki::from_pem(&file("root-cert.pem")?, &file("root-key.pem")?)
}

pub fn pinned(builder: MeshBuilder, core: Option<usize>) -> MeshBuilder {
    let builder = builder.proxy_config("concurrency", json!(1)).quiet();
    match core {
        Some(core) => builder.runner(taskset(core)),
        None => builder,
    }
}

fn taskset(core: usize) -> Vec<String> {
    vec!["taskset".to_owned(), "--cpu-list".to_owned(), core.to_string()]
}

/// Waits until a process has used no CPU for a while.
pub async fn settle(pid: u32) -> Result<()> {
    let begin = Instant::now();
    let (mut last, mut since) = (cpu_seconds(pid)?, begin);
    while since.elapsed() < QUIET {
        tokio::time::sleep(LOOK_INTERVAL).await;
        ensure!(begin.elapsed() < SETTLE_TIMEOUT, "process {pid} does not come to rest");
        let now = cpu_seconds(pid)?;
        if now - last > 1.5 / TICKS_PER_SECOND {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// User and system time so far: fields 14 and 15 of proc_pid_stat(5).
fn cpu_seconds(pid: u32) -> Result<f64> {
    Ok(stat_ticks(Path::new(&format!("/proc/{pid}/stat")))? / TICKS_PER_SECOND)
}

/// The same of a process or thread whose file this is, in ticks.
pub fn stat_ticks(stat: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(stat).context("the process is gone")?;
    let (_, after_command) = text.rsplit_once(')').context("no command in parentheses")?;
    let mut fields = after_command.split_ascii_whitespace().skip(11);
    let mut ticks = || -> Result<f64> { Ok(fields.next().context("a short stat")?.parse()?) };
    Ok(ticks()? + ticks()?)
}

/// Resident memory now.
pub fn resident_bytes(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the process is gone")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).context("no line Rss")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * BYTES_PER_KIB)
}
