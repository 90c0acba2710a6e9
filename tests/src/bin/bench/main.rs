//! `make bench`: this waypoint beside a real Envoy that was configured by the same istiod, in shuffled rounds of one run.
//!
//! Prints a table of ratios with their spread and the limits that they are held to, and writes `summary.json`. Not for: the load
//! (`loadtest`), or what Envoy is told (`tests::envoy`). Invariants: a ratio is of one round; both proxies have the same features on
//! and deliver what they log and trace, or the run fails; everything but the two proxies runs on other processors than they do.

mod balance;
mod changes;
mod load;
mod pair;
mod scale;
mod summary;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use self::load::{Comparison, Loadtest};
use self::pair::Pair;
use self::summary::Summary;

/// The processor of the proxies; everything else is on the first.
const PROXY_CORE: usize = 1;
/// Share of log lines and spans that has to arrive.
const DELIVERED_MIN: f64 = 0.999;
/// Share of the smaller capacity at which latency is measured.
const LATENCY_SHARE: f64 = 0.5;
/// How long a process rests before its memory at rest is read.
const REST: Duration = Duration::from_secs(30);
/// How often a start is timed.
const STARTS: usize = 5;

/// How long and how often things are measured.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    rounds: usize,
    memory_rounds: usize,
    window: &'static str,
    bulk_window: &'static str,
    latency_window: &'static str,
}

const QUICK: Effort = Effort { rounds: 5, memory_rounds: 1, window: "2s", bulk_window: "1s", latency_window: "3s" };
const FULL: Effort = Effort { rounds: 11, memory_rounds: 3, window: "5s", bulk_window: "5s", latency_window: "10s" };

/// What is measured by default, in less than six minutes.
const QUICK_PARTS: [&str; 6] = ["start", "request", "latency", "bulk", "memory", "scale"];
const PARTS: [&str; 9] = ["start", "request", "latency", "kinds", "bulk", "memory", "scale", "changes", "balance"];
/// Other loads, what the proxies have on, and what their cost is called.
const KINDS: [(&str, &[(&str, &str)]); 2] = [
    (
        "full",
        &[
            ("cpu-http2", "http2_cpu_ratio"),
            ("short-tunnels", "short_tunnel_cpu_ratio"),
            ("short-connections", "short_connection_cpu_ratio"),
        ],
    ),
    ("full-http2", &[("grpc", "grpc_cpu_ratio"), ("grpc-stream", "grpc_message_cpu_ratio")]),
];

#[derive(Debug)]
struct Arguments {
    effort: Effort,
    is_full: bool,
    parts: Vec<String>,
    out: PathBuf,
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments { effort: QUICK, is_full: false, parts: Vec::new(), out: PathBuf::from("target/bench") };
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--full" => (arguments.effort, arguments.is_full) = (FULL, true),
            part if PARTS.contains(&part) => arguments.parts.push(part.to_owned()),
            other => bail!("{other:?} is neither --full nor one of {}", PARTS.join(", ")),
        }
    }
    if arguments.parts.is_empty() {
        let parts: &[&str] = if arguments.is_full { &PARTS } else { &QUICK_PARTS };
        arguments.parts = parts.iter().copied().map(str::to_owned).collect();
    }
    Ok(arguments)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = arguments()?;
    std::fs::create_dir_all(&arguments.out)?;
    let pinned = pin()?;
    let loadtest = Loadtest::new(&arguments.out)?;
    let mut summary = Summary::default();
    let bar = ProgressBar::new(u64::try_from(arguments.parts.len())?);
    bar.set_style(ProgressStyle::with_template("bench: {msg:10} {wide_bar} {pos}/{len}").context("a constant")?);
    bar.enable_steady_tick(Duration::from_millis(500));
    let wants = |part: &str| arguments.parts.iter().any(|wanted| wanted == part);
    let effort = arguments.effort;
    let bench = Bench { loadtest: &loadtest, effort, core: pinned };
    let begin = Instant::now();
    for part in PARTS.into_iter().filter(|part| wants(part)) {
        bar.set_message(part);
        let part_begin = Instant::now();
        let result = match part {
            "start" => bench.start(&mut summary).await,
            "request" => bench.request(&mut summary, wants("latency")).await,
            "kinds" => bench.kinds(&mut summary).await,
            "balance" => balance::measure(&mut summary, &loadtest, &arguments.out).await,
            "bulk" => bench.bulk(&mut summary).await,
            "memory" => bench.memory(&mut summary).await,
            "changes" => changes::measure(&mut summary, &loadtest, &arguments.out, pinned).await,
            "scale" => scale::measure(&mut summary, effort.memory_rounds, pinned).await,
            // Measured with the same proxies as requests, whose capacities say at which rate.
            _ if !wants("request") => bench.request(&mut summary, true).await,
            _ => Ok(()),
        };
        result.with_context(|| format!("measuring {part}"))?;
        bar.suspend(|| println!("bench: {part} took {:.0} s", part_begin.elapsed().as_secs_f64()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    print!("{}", summary.table());
    let path = arguments.out.join("summary.json");
    summary.write(&path).with_context(|| format!("writing {}", path.display()))?;
    let rounds = arguments.out.join("rounds.json");
    summary.write_rounds(&loadtest.origin()?, &rounds).with_context(|| format!("writing {}", rounds.display()))?;
    println!("bench: {:.1} min; {}", begin.elapsed().as_secs_f64() / 60.0, path.display());
    summary.judge()
}

/// Moves this process, and with it all that it starts, off the proxies' processor. None if there is only one.
fn pin() -> Result<Option<usize>> {
    if std::thread::available_parallelism()?.get() <= PROXY_CORE {
        eprintln!("bench: one processor for all: figures are no good");
        return Ok(None);
    }
    let mut others = CpuSet::new();
    others.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &others).context("choosing processors")?;
    Ok(Some(PROXY_CORE))
}

struct Bench<'a> {
    loadtest: &'a Loadtest,
    effort: Effort,
    core: Option<usize>,
}

impl Bench<'_> {
    /// From the start of the process to ready, certificate and configuration at hand.
    async fn start(&self, summary: &mut Summary) -> Result<()> {
        let mut milliseconds = Vec::new();
        for _ in 0..STARTS {
            milliseconds.push(scale::start_to_ready().await?.as_secs_f64() * 1000.0);
        }
        summary.add("start_to_ready_ms", &milliseconds)
    }

    /// What a request costs with everything on, what one processor carries, and what it adds to latency.
    async fn request(&self, summary: &mut Summary, with_latency: bool) -> Result<()> {
        let mut pair = Pair::start("full", self.core, self.loadtest)?;
        let rounds = self.effort.rounds.to_string();
        let options = ["--rounds", &rounds, "--duration", self.effort.window, "--warmup", "500ms"];
        let capacity = self.loadtest.compare("cpu", &pair, &options)?;
        summary.add("cpu_per_request_ratio", &capacity.ratios("cpu_seconds_per_100k")?)?;
        summary.add("throughput_ratio", &capacity.ratios("requests_per_second")?)?;
        summary.note_driver_bound(&capacity);
        let mut sent = capacity.sent()?;
        if with_latency {
            let smaller = capacity.median("ours", "requests_per_second")?.min(capacity.median("envoy", "requests_per_second")?);
            let rate = format!("{:.0}", smaller * LATENCY_SHARE);
            let options = ["--rounds", &rounds, "--duration", self.effort.latency_window, "--warmup", "500ms", "--rate", &rate];
            let latency = self.loadtest.compare_with_direct("latency", &pair, &options)?;
            summary.add("p99_added_ratio", &added(&latency)?)?;
            for (all, more) in sent.iter_mut().zip(latency.sent()?) {
                *all += more;
            }
        }
        all_arrived(&mut pair, sent).await
    }

    /// The same of HTTP/2 and gRPC, and of tunnels and connections that carry one request, all with everything on.
    async fn kinds(&self, summary: &mut Summary) -> Result<()> {
        let rounds = self.effort.rounds.to_string();
        let options = ["--rounds", &rounds, "--duration", self.effort.window, "--warmup", "500ms"];
        for (features, loads) in KINDS {
            let mut pair = Pair::start(features, self.core, self.loadtest)?;
            let mut sent = [0.0; 2];
            for (scenario, name) in loads {
                let found = self.loadtest.compare(scenario, &pair, &options)?;
                summary.add(name, &found.ratios("cpu_seconds_per_100k")?)?;
                for (all, more) in sent.iter_mut().zip(found.sent()?) {
                    *all += more;
                }
            }
            all_arrived(&mut pair, sent).await?;
        }
        Ok(())
    }

    /// Bodies of 8 MiB, both ways.
    async fn bulk(&self, summary: &mut Summary) -> Result<()> {
        let pair = Pair::start("bare", self.core, self.loadtest)?;
        let rounds = self.effort.rounds.to_string();
        let options = ["--rounds", &rounds, "--duration", self.effort.bulk_window, "--warmup", "500ms"];
        for (scenario, name) in [("upload", "bulk_up_cpu_ratio"), ("download", "bulk_down_cpu_ratio")] {
            let moved = self.loadtest.compare(scenario, &pair, &options)?;
            summary.add(name, &moved.ratios("cpu_seconds_per_gib")?)?;
        }
        Ok(())
    }

    /// At rest and under 10,000 tunnels, and in new processes with readers that do not read.
    async fn memory(&self, summary: &mut Summary) -> Result<()> {
        let (mut rest, mut tunnels, mut stalled) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.effort.memory_rounds {
            let pair = Pair::start("full", self.core, self.loadtest)?;
            tokio::time::sleep(REST).await;
            let [ours, envoy] = pair.resident_bytes()?;
            rest.push(ours / envoy);
            let idle = self.loadtest.compare("idle-10k", &pair, &["--rounds", "1"])?;
            tunnels.extend(idle.process_ratios("held")?);
            // What ten thousand tunnels leave behind would be taken first, and hide what readers take.
            drop(pair);
            let pair = Pair::start("full", self.core, self.loadtest)?;
            let readers = self.loadtest.compare("stalled-readers", &pair, &["--rounds", "1", "--hold", "5s"])?;
            stalled.extend(readers.growth_mib("ours")?);
        }
        summary.add("rss_idle_ratio", &rest)?;
        summary.add("rss_10k_streams_ratio", &tunnels)?;
        summary.add("rss_stalled_readers_mib", &stalled)
    }
}

/// That of so many requests the lines and spans arrived.
async fn all_arrived(pair: &mut Pair, sent: [f64; 2]) -> Result<()> {
    for (name, share) in pair.delivered(sent).await? {
        println!("delivered: {name} {:.3} %", share * 100.0);
        ensure!(share >= DELIVERED_MIN, "only {:.3} % of {name} arrived", share * 100.0);
    }
    Ok(())
}

/// What each adds to the latency of the workload itself: ours over Envoy's, by round.
fn added(latency: &Comparison) -> Result<Vec<f64>> {
    let p99 = |name: &str| latency.by_round(name, "p99_us");
    let rounds = p99("ours")?.into_iter().zip(p99("envoy")?).zip(p99("workload")?);
    Ok(rounds.map(|((ours, envoy), direct)| added_ratio(ours, envoy, direct)).collect())
}

/// What was added, in microseconds, and at least one: less than nothing is added by the noise of the machine, and a ratio of such numbers would be
/// anything, a good one too.
fn added_ratio(ours: f64, envoy: f64, direct: f64) -> f64 {
    (ours - direct).max(1.0) / (envoy - direct).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_noise_takes_away_is_never_in_our_favour() {
        for (ours, envoy, direct, ratio) in [
            (6000.0, 9000.0, 5000.0, 0.25),
            (6000.0, 4000.0, 5000.0, 1000.0),
            (4000.0, 5500.0, 5000.0, 0.002),
            (4000.0, 4500.0, 5000.0, 1.0),
        ] {
            assert!((added_ratio(ours, envoy, direct) - ratio).abs() < 1e-9, "{ours} {envoy} {direct}");
        }
    }
}
