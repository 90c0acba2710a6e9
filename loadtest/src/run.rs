//! `loadtest run`: HBONE load on one waypoint, and what it cost.
//!
//! Not here: comparing several (`compare.rs`), printing (`report.rs`).

mod drive;
mod session;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use http::{HeaderName, HeaderValue};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

pub use drive::drive;

use crate::hbone::client::Connector;
use crate::hbone::pool::Pool;
use crate::process::{Cpu, Memory};
use crate::report;
use crate::stats::{Summary, float};
use crate::tls::TlsFiles;
use crate::units::{parse_duration, parse_header};

/// A closed loop faster than this share of what the driver reaches without a proxy says little about the proxy.
pub const DRIVER_BOUND_SHARE: f64 = 0.8;
/// How long the ceiling is measured.
const CEILING_DURATION: Duration = Duration::from_secs(2);

/// What is spoken inside a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http1,
    /// HTTP/2 with prior knowledge
    Http2,
    /// gRPC unary calls
    Grpc,
}

/// The load; shared by `run` and `compare`.
#[derive(Debug, Clone, clap::Args)]
pub struct Load {
    /// CONNECT streams
    #[arg(long, default_value_t = 64)]
    pub streams: usize,
    /// HBONE connections that carry them
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// Requests in flight on each stream (http2 and grpc)
    #[arg(long, default_value_t = 1)]
    pub requests_per_stream: usize,
    /// Measured time
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Time before it that does not count
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Requests per second, kept whatever the server does; without it each stream waits for its answer
    #[arg(long)]
    pub rate: Option<NonZeroU32>,
    #[arg(long, value_enum, default_value = "http1")]
    pub protocol: Protocol,
    /// Bytes of request body; 0 sends a GET (gRPC: an empty message)
    #[arg(long, default_value_t = 0)]
    pub body_bytes: usize,
    #[arg(long, default_value = "/bytes/1024")]
    pub path: String,
    /// Host of the requests [default: the target]
    #[arg(long)]
    pub host: Option<String>,
    /// Further request header, NAME:VALUE (repeatable)
    #[arg(long = "header", value_parser = parse_header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Time for one answer
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Local address to dial from
    #[arg(long)]
    pub source: Option<IpAddr>,
}

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
    pub load: Load,
    /// SPIFFE identity that the waypoint must show [default: any under the root]
    #[arg(long)]
    pub peer_identity: Option<String>,
    /// Process to measure, PID or NAME=PID (repeatable)
    #[arg(long = "pid", value_parser = parse_process)]
    pub processes: Vec<WatchedProcess>,
    /// HBONE address of the workload: first measure the driver's own ceiling against it
    #[arg(long)]
    pub ceiling: Option<SocketAddr>,
    /// Write the result here as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// A process whose CPU and memory are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedProcess {
    pub name: String,
    pub pid: u32,
}

impl WatchedProcess {
    /// This process.
    pub fn driver() -> Self {
        Self { name: "driver".to_owned(), pid: std::process::id() }
    }
}

fn parse_process(text: &str) -> Result<WatchedProcess, String> {
    let (name, pid) = text.split_once('=').unwrap_or((text, text));
    let pid = pid.parse().map_err(|error| format!("{pid:?}: {error}"))?;
    Ok(WatchedProcess { name: name.to_owned(), pid })
}

/// One load on one address.
#[derive(Debug, Clone)]
pub struct Plan {
    pub load: Load,
    pub target: String,
    pub processes: Vec<WatchedProcess>,
}

impl Plan {
    /// Checks what the flags cannot say alone.
    pub fn new(load: Load, target: &str, processes: Vec<WatchedProcess>) -> anyhow::Result<Self> {
        if load.streams == 0 || load.connections == 0 || load.requests_per_stream == 0 || load.duration.is_zero() {
            bail!("--streams, --connections, --requests-per-stream and --duration must be above 0");
        }
        if load.protocol == Protocol::Http1 && load.requests_per_stream != 1 {
            bail!("--requests-per-stream above 1 needs --protocol http2 or grpc: HTTP/1.1 answers one request at a time");
        }
        Ok(Self { load, target: target.to_owned(), processes })
    }
}

/// What a plan brought.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Length of the measured window.
    pub seconds: f64,
    /// Requests well answered inside it.
    pub completed: u64,
    pub requests_per_second: f64,
    /// Requests due in the window (open loop).
    pub scheduled: Option<u64>,
    #[serde(flatten)]
    pub summary: Summary,
    pub processes: Vec<ProcessUse>,
}

/// What a process used in the window, and its memory at the end of it.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessUse {
    pub name: String,
    pub pid: u32,
    pub cpu_seconds: f64,
    pub system_seconds: f64,
    /// `None` when no request was answered.
    pub cpu_seconds_per_100k: Option<f64>,
    #[serde(flatten)]
    pub memory: Memory,
}

impl ProcessUse {
    fn new(process: &WatchedProcess, cpu: &Cpu, completed: u64, memory: Memory) -> Self {
        let cpu_seconds = cpu.total().as_secs_f64();
        Self {
            name: process.name.clone(),
            pid: process.pid,
            cpu_seconds,
            system_seconds: cpu.system.as_secs_f64(),
            cpu_seconds_per_100k: (completed > 0).then(|| cpu_seconds * 100_000.0 / float(completed)),
            memory,
        }
    }
}

/// The result of `loadtest run`.
#[derive(Debug, Serialize)]
pub struct RunReport {
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
    let mut connector = Connector::new(args.tls.client_config()?);
    connector.source = args.load.source;
    let ceiling = match args.ceiling {
        Some(workload) => Some(ceiling(&args, connector.clone(), workload).await?),
        None => None,
    };
    connector.peer_identity = args.peer_identity;
    let plan = Plan::new(args.load, &args.target, args.processes)?;
    let progress = progress(&plan, "load");
    let pool = Pool::new(connector, args.waypoint, plan.load.connections);
    let outcome = drive(&plan, pool, &progress).await?;
    progress.finish_and_clear();
    let driver_bound =
        ceiling.filter(|_| plan.load.rate.is_none()).map(|ceiling| outcome.requests_per_second > DRIVER_BOUND_SHARE * ceiling);
    let report = RunReport { waypoint: args.waypoint, target: plan.target, outcome, ceiling_requests_per_second: ceiling, driver_bound };
    print!("{}", report::run_text(&report));
    if let Some(path) = &args.json {
        report::write_json(path, &report)?;
    }
    if report.outcome.summary.ok == 0 {
        bail!("no request was answered as it should be: {:?}", report.outcome.summary.failures);
    }
    Ok(())
}

async fn ceiling(args: &RunArgs, connector: Connector, workload: SocketAddr) -> anyhow::Result<f64> {
    let load = Load { rate: None, duration: CEILING_DURATION, ..args.load.clone() };
    let plan = Plan::new(load, &args.target, Vec::new())?;
    let progress = progress(&plan, "ceiling");
    let pool = Pool::new(connector, workload, plan.load.connections);
    let outcome = drive(&plan, pool, &progress).await.context("measuring the ceiling")?;
    progress.finish_and_clear();
    Ok(outcome.requests_per_second)
}

/// A bar over the time that a plan takes; shown only on a terminal.
fn progress(plan: &Plan, message: &'static str) -> ProgressBar {
    let length = u64::try_from((plan.load.warmup + plan.load.duration).as_millis()).unwrap_or(u64::MAX);
    let style = ProgressStyle::with_template("{msg:10} {wide_bar} {percent:>3} %").expect("the template is a constant");
    ProgressBar::new(length).with_style(style).with_message(message)
}
