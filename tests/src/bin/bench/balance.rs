//! How evenly few connections load several workers: each connection is one worker's, by the kernel's choice among their sockets.
//!
//! Ours alone: Envoy listens in the same way. A number is the share of what the workers could do together that is reached when the busiest of them
//! can do no more: 1 if all are as busy, 0.5 if one of two does everything. Not for: how fast a worker is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::scale::lead_to;
use tests::scenario::{Mesh, WEB};

use super::load::{DESTINATION, Loadtest};
use super::scale::{TICKS_PER_SECOND, mesh_pki, stat_ticks};
use super::summary::Summary;

const WORKERS: u32 = 2;
/// Connections of a client, and what the result is called.
const CONNECTIONS: [(&str, &str); 4] =
    [("1", "balance_1_connection"), ("2", "balance_2_connections"), ("3", "balance_3_connections"), ("8", "balance_8_connections")];
/// Loads with so many connections, each with new ones.
const TRIES: usize = 9;
/// A rate that one worker carries alone, so that no request waits for another worker's.
const LOAD: [&str; 10] =
    ["--scenario", "loadtest/scenarios/latency.toml", "--rate", "3000", "--streams", "64", "--warmup", "100ms", "--duration", "2s"];

/// Measures all numbers of connections.
pub async fn measure(summary: &mut Summary, loadtest: &Loadtest, out: &Path) -> Result<()> {
    let builder = Mesh::builder("07-telemetry")?.pki(mesh_pki(loadtest)?).proxy_config("concurrency", WORKERS.into()).quiet();
    let mesh = builder.edit(|scenario| lead_to(scenario, DESTINATION))?.start().await?;
    let workers = Workers::of(mesh.waypoint.pid())?;
    for (connections, name) in CONNECTIONS {
        let mut shares = Vec::new();
        for _ in 0..TRIES {
            let before = workers.seconds()?;
            load(loadtest, mesh.hbone(), connections, &out.join("balance.json"))?;
            shares.push(evenness(&before, &workers.seconds()?)?);
        }
        summary.add(name, &shares)?;
        summary
            .say(&format!("{connections} connections on {WORKERS} workers: of what these could do together {}", summary.spread_of(name)?));
    }
    Ok(())
}

fn load(loadtest: &Loadtest, waypoint: SocketAddr, connections: &str, json: &Path) -> Result<()> {
    let mut command = loadtest.run_command(waypoint, WEB);
    let status =
        command.args(LOAD).args(["--connections", connections, "--json"]).arg(json).stdout(std::process::Stdio::null()).status()?;
    ensure!(status.success(), "loadtest run failed, {status}");
    Ok(())
}

/// The mean of what workers used over the most that one did.
fn evenness(before: &[f64], after: &[f64]) -> Result<f64> {
    let used: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    let most = used.iter().copied().fold(0.0, f64::max);
    ensure!(most > 0.0, "no worker did anything");
    Ok(used.iter().sum::<f64>() / f64::from(WORKERS) / most)
}

/// The threads of a process that serve requests.
struct Workers(Vec<PathBuf>);

impl Workers {
    fn of(pid: u32) -> Result<Self> {
        let mut threads = Vec::new();
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
            let thread = thread?.path();
            if std::fs::read_to_string(thread.join("comm"))?.starts_with("worker-") {
                threads.push(thread.join("stat"));
            }
        }
        ensure!(threads.len() == usize::try_from(WORKERS)?, "{} threads are called workers", threads.len());
        Ok(Self(threads))
    }

    fn seconds(&self) -> Result<Vec<f64>> {
        self.0.iter().map(|stat| Ok(stat_ticks(stat)? / TICKS_PER_SECOND)).collect()
    }
}
