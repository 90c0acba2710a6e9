//! `loadtest run`: HBONE load on one waypoint, and what it cost.
//!
//! Not here: what the load is (`load.rs`), comparing several (`compare.rs`), printing (`report.rs`).

mod body;
mod http1;
mod idle;
pub mod outcome;
mod requests;
mod session;
mod stalled;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::hbone::client::Connector;
use crate::hbone::pool::Pool;
use crate::load::{Kind, Load};
use crate::machine::Origin;
use crate::report;
use crate::scenario::{Scenario, ScenarioArgs};
use crate::tls::TlsFiles;
use outcome::{Outcome, WatchedProcess};

/// A closed loop faster than this share of what the driver reaches without a proxy says little about the proxy.
pub const DRIVER_BOUND_SHARE: f64 = 0.8;
/// How long the ceiling is measured.
const CEILING_DURATION: Duration = Duration::from_secs(2);

/// How often a progress bar moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// `loadtest run`
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// HBONE address of the waypoint, IP:15008
    #[arg(long)]
    pub waypoint: SocketAddr,
    /// What to CONNECT to, VIP:port
    #[arg(long)]
    pub target: String,
    #[command(flatten)]
    pub tls: TlsFiles,
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// SPIFFE identity that the waypoint must show [default: any under the root]
    #[arg(long)]
    pub peer_identity: Option<String>,
    /// Process to measure, PID or NAME=PID (repeatable)
    #[arg(long = "pid", value_parser = parse_process)]
    pub processes: Vec<WatchedProcess>,
    /// HBONE address of the workload: requests are first sent straight to it, as the driver's own ceiling; stalled answers are
    /// asked how much of them was sent
    #[arg(long)]
    pub ceiling: Option<SocketAddr>,
    /// Write the result here as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
}

fn parse_process(text: &str) -> Result<WatchedProcess, String> {
    let (name, pid) = text.split_once('=').unwrap_or((text, text));
    let pid = pid.parse().map_err(|error| format!("{pid:?}: {error}"))?;
    Ok(WatchedProcess { name: name.to_owned(), pid })
}

/// One load on one target.
#[derive(Debug, Clone)]
pub struct Plan {
    pub load: Load,
    pub target: String,
    pub processes: Vec<WatchedProcess>,
}

impl Plan {
    /// The processes to watch, and the driver itself at the end.
    fn watched(&self) -> Vec<WatchedProcess> {
        self.processes.iter().cloned().chain([WatchedProcess::driver()]).collect()
    }

    fn progress_steps(&self) -> u64 {
        let time = match self.load.kind {
            Kind::Requests => self.load.warmup + self.load.duration,
            Kind::Idle | Kind::Stalled => self.load.hold,
        };
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The result of `loadtest run`.
#[derive(Debug, Serialize)]
pub struct RunReport {
    pub scenario: Scenario,
    #[serde(flatten)]
    pub origin: Origin,
    pub waypoint: SocketAddr,
    pub target: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Requests per second of the same load straight to the workload.
    pub ceiling_requests_per_second: Option<f64>,
    /// A closed loop too near the ceiling; `None` without one.
    pub driver_bound: Option<bool>,
}

/// Runs the load and prints what it brought. Fails if not one request was answered as it should be.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let scenario = args.scenario.read()?;
    let load = &scenario.parameters;
    let mut connector = Connector::new(args.tls.client_config()?);
    connector.source = load.source;
    let workload = args.ceiling.map(|address| Pool::new(connector.clone(), address, load.connections));
    let plan = Plan { load: load.clone(), target: args.target, processes: args.processes };
    let ceiling = match args.ceiling {
        Some(address) if load.kind == Kind::Requests => Some(ceiling(&plan, connector.clone(), address).await?),
        _ => None,
    };
    connector.peer_identity = args.peer_identity;
    let progress = progress(&plan, "load");
    let pool = Pool::new(connector, args.waypoint, plan.load.connections);
    let outcome = measure(&plan, pool, workload.as_ref(), &progress).await?;
    progress.finish_and_clear();
    let driver_bound = match &outcome {
        Outcome::Requests(outcome) if load.is_closed_loop() => ceiling.map(|ceiling| is_driver_bound(outcome.requests_per_second, ceiling)),
        _ => None,
    };
    let report = RunReport {
        scenario,
        origin: Origin::now()?,
        waypoint: args.waypoint,
        target: plan.target,
        outcome,
        ceiling_requests_per_second: ceiling,
        driver_bound,
    };
    print!("{}", report::run_text(&report));
    if let Some(path) = &args.json {
        report::write_json(path, &report)?;
    }
    if report.outcome.answered() == 0 {
        bail!("no request was answered as it should be: {:?}", report.outcome.failures());
    }
    Ok(())
}

/// Runs one plan. `workload` is where to ask how much the app sent.
pub async fn measure(plan: &Plan, pool: Pool, workload: Option<&Pool>, progress: &ProgressBar) -> anyhow::Result<Outcome> {
    Ok(match plan.load.kind {
        Kind::Requests => Outcome::Requests(requests::drive(plan, pool, progress).await?),
        Kind::Idle => Outcome::Idle(idle::hold(plan, pool, progress).await?),
        Kind::Stalled => Outcome::Stalled(stalled::hold(plan, pool, workload, progress).await?),
    })
}

pub fn is_driver_bound(requests_per_second: f64, ceiling: f64) -> bool {
    requests_per_second > DRIVER_BOUND_SHARE * ceiling
}

async fn ceiling(plan: &Plan, connector: Connector, workload: SocketAddr) -> anyhow::Result<f64> {
    let load = Load { rate: None, duration: CEILING_DURATION, ..plan.load.clone() };
    let plan = Plan { load, processes: Vec::new(), ..plan.clone() };
    let progress = progress(&plan, "ceiling");
    let pool = Pool::new(connector, workload, plan.load.connections);
    let outcome = requests::drive(&plan, pool, &progress).await.context("measuring the ceiling")?;
    progress.finish_and_clear();
    Ok(outcome.requests_per_second)
}

/// A bar over the time that a plan takes; shown only on a terminal.
fn progress(plan: &Plan, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:24} {wide_bar} {percent:>3} %").expect("the template is a constant");
    ProgressBar::new(plan.progress_steps()).with_style(style).with_message(message)
}

async fn wait_until(end: Instant, progress: &ProgressBar) {
    while Instant::now() < end {
        let step = PROGRESS_INTERVAL.min(end.saturating_duration_since(Instant::now()));
        tokio::time::sleep(step).await;
        progress.inc(u64::try_from(step.as_millis()).unwrap_or(0));
    }
}
