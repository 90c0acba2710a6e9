//! What a comparison found: every round as it was, and medians and ratios over them.
//!
//! Invariant: a ratio is always of two outcomes of the same round. Not here: how it is shown.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;

use crate::load::Load;
use crate::machine::Origin;
use crate::process::Memory;
use crate::run::is_driver_bound;
use crate::run::outcome::{Metric, Outcome};
use crate::scenario::Scenario;
use crate::stats::{Spread, float, median};

/// A comparison.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub scenario: Scenario,
    #[serde(flatten)]
    pub origin: Origin,
    pub baseline: String,
    pub seed: u64,
    pub rounds: usize,
    pub targets: Vec<TargetResult>,
    /// The driver straight to the workload, requests per second; `None` when the load is no requests.
    pub ceiling_requests_per_second: Option<Spread>,
    /// The rounds of the driver straight to the workload.
    pub direct: Vec<Outcome>,
}

/// One target over all rounds. What its kind of load does not have is `None`.
#[derive(Debug, Serialize)]
pub struct TargetResult {
    pub name: String,
    pub pid: Option<u32>,
    /// Before the first round.
    pub idle: Option<Memory>,
    /// Under the load of the last round.
    pub loaded: Option<Memory>,
    pub cpu_seconds_per_100k: Option<Spread>,
    pub cpu_seconds_per_gib: Option<Spread>,
    pub requests_per_second: Option<Spread>,
    pub gib_per_second: Option<Spread>,
    pub p50_us: Option<Spread>,
    pub p99_us: Option<Spread>,
    /// Under the load, at its highest if that was looked for.
    pub rss_bytes: Option<Spread>,
    /// What an idle tunnel adds to the memory before the first round.
    pub rss_bytes_per_stream: Option<Spread>,
    /// Processors in use while nothing moved.
    pub idle_cores: Option<Spread>,
    /// Of CPU per request, as all ratios: each round's to the baseline's of that round; `None` for the baseline itself.
    pub cpu_ratio: Option<Spread>,
    /// Of requests per second; in a closed loop only, since an open one's rate is given.
    pub throughput_ratio: Option<Spread>,
    /// In an open loop only: a closed one's latency is not what a user sees.
    pub p50_ratio: Option<Spread>,
    pub p99_ratio: Option<Spread>,
    pub rss_ratio: Option<Spread>,
    pub rss_per_stream_ratio: Option<Spread>,
    /// Requests that failed, all rounds.
    pub failures: BTreeMap<String, u64>,
    /// Requests put on the wire in all rounds, those that count nowhere else included; a gRPC stream is one.
    pub requests_sent_total: u64,
    /// What the driver reached in the same run without a proxy.
    pub ceiling_requests_per_second: Option<Spread>,
    /// A closed loop too near the ceiling.
    pub driver_bound: bool,
    pub rounds: Vec<Outcome>,
}

/// The outcomes of one contestant, by round.
#[derive(Debug)]
pub struct Series {
    pub name: String,
    pub pid: Option<u32>,
    pub idle: Option<Memory>,
    pub outcomes: Vec<Outcome>,
}

impl Series {
    fn spread(&self, metric: Metric) -> Option<Spread> {
        median(&self.outcomes.iter().filter_map(|outcome| self.metric(outcome, metric)).collect::<Vec<_>>())
    }

    /// What idle tunnels hold is taken from before the first round: later rounds begin with memory that earlier ones left.
    fn metric(&self, outcome: &Outcome, metric: Metric) -> Option<f64> {
        match (metric, outcome, self.idle) {
            (Metric::RssPerStream, Outcome::Idle(outcome), Some(idle)) if outcome.opened > 0 => {
                let opened = outcome.processes.first()?.opened;
                Some((float(opened.rss_bytes) - float(idle.rss_bytes)) / float(outcome.opened))
            }
            _ => outcome.metric(metric),
        }
    }

    /// Rounds in which either has no such number, or the baseline's is zero, have no ratio.
    fn ratio(&self, baseline: Option<&Self>, metric: Metric) -> Option<Spread> {
        let baseline = baseline.filter(|baseline| baseline.name != self.name)?;
        let rounds = self.outcomes.iter().zip(&baseline.outcomes);
        let ratios = rounds.filter_map(|(ours, theirs)| Some(self.metric(ours, metric)? / baseline.metric(theirs, metric)?));
        median(&ratios.filter(|ratio| ratio.is_finite()).collect::<Vec<_>>())
    }
}

/// Medians and ratios; the last series is the driver's own, straight to the workload.
pub fn summarize(mut series: Vec<Series>, scenario: Scenario, baseline: &str, origin: Origin) -> anyhow::Result<Comparison> {
    let direct = series.pop().context("the driver's own ceiling is measured last")?;
    let ceiling = direct.spread(Metric::RequestsPerSecond);
    let base = series.iter().find(|series| series.name == baseline);
    let results = series.iter().map(|series| result(series, base, ceiling, &scenario.parameters)).collect::<Vec<_>>();
    let targets = results.into_iter().zip(series).map(|(result, series)| TargetResult { rounds: series.outcomes, ..result }).collect();
    Ok(Comparison {
        scenario,
        origin,
        baseline: baseline.to_owned(),
        seed: 0,
        rounds: direct.outcomes.len(),
        targets,
        ceiling_requests_per_second: ceiling,
        direct: direct.outcomes,
    })
}

fn result(series: &Series, baseline: Option<&Series>, ceiling: Option<Spread>, load: &Load) -> TargetResult {
    let mut failures = BTreeMap::new();
    for (failure, count) in series.outcomes.iter().flat_map(Outcome::failures) {
        *failures.entry(failure.clone()).or_default() += count;
    }
    let requests_per_second = series.spread(Metric::RequestsPerSecond);
    let is_bound = requests_per_second.zip(ceiling).is_some_and(|(rate, ceiling)| is_driver_bound(rate.median, ceiling.median));
    let is_closed_loop = load.is_closed_loop();
    let open_loop_baseline = baseline.filter(|_| !is_closed_loop);
    TargetResult {
        name: series.name.clone(),
        pid: series.pid,
        idle: series.idle,
        loaded: series.outcomes.last().and_then(Outcome::loaded),
        cpu_seconds_per_100k: series.spread(Metric::CpuPer100k),
        cpu_seconds_per_gib: series.spread(Metric::CpuPerGib),
        requests_per_second,
        gib_per_second: series.spread(Metric::GibPerSecond),
        p50_us: series.spread(Metric::P50),
        p99_us: series.spread(Metric::P99),
        rss_bytes: series.spread(Metric::Rss),
        rss_bytes_per_stream: series.spread(Metric::RssPerStream),
        idle_cores: series.spread(Metric::IdleCores),
        cpu_ratio: series.ratio(baseline, Metric::CpuPer100k),
        throughput_ratio: series.ratio(baseline.filter(|_| is_closed_loop), Metric::RequestsPerSecond),
        p50_ratio: series.ratio(open_loop_baseline, Metric::P50),
        p99_ratio: series.ratio(open_loop_baseline, Metric::P99),
        rss_ratio: series.ratio(baseline, Metric::Rss),
        rss_per_stream_ratio: series.ratio(baseline, Metric::RssPerStream),
        failures,
        requests_sent_total: series.outcomes.iter().map(Outcome::requests_sent).sum(),
        ceiling_requests_per_second: ceiling,
        driver_bound: is_closed_loop && is_bound,
        rounds: Vec::new(),
    }
}

#[cfg(test)]
pub mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::load::LoadOptions;
    use crate::machine::Machine;
    use crate::process::Cpu;
    use crate::run::outcome::{IdleOutcome, IdleUse, ProcessUse, RequestsOutcome, WatchedProcess};
    use crate::stats::Tally;

    fn outcome(cpu: f64, rate: f64) -> Outcome {
        let process = ProcessUse {
            name: "a".to_owned(),
            pid: 1,
            cpu_seconds: cpu,
            system_seconds: 0.0,
            cpu_seconds_per_100k: Some(cpu),
            cpu_seconds_per_gib: Some(cpu * 2.0),
            memory: Memory { rss_bytes: 1 << 20, pss_bytes: 1 << 20 },
        };
        Outcome::Requests(RequestsOutcome {
            seconds: 1.0,
            completed: 1,
            requests_per_second: rate,
            scheduled: None,
            requests_sent: 3,
            body_bytes: 1 << 30,
            gib_per_second: 1.0,
            summary: Tally::new().summary(),
            processes: vec![process],
        })
    }

    fn series(name: &str, outcomes: Vec<Outcome>) -> Series {
        Series { name: name.to_owned(), pid: Some(1), idle: None, outcomes }
    }

    fn compare(series: Vec<Series>, options: &str) -> Comparison {
        let parameters = toml::from_str::<LoadOptions>(options).unwrap().complete().unwrap();
        let scenario = Scenario { name: Some("cpu".to_owned()), question: Some("How much?".to_owned()), parameters };
        let machine = Machine { cpu_model: Some("A CPU".to_owned()), cores: 2, kernel: "6.1".to_owned(), memory_bytes: 1 << 30 };
        let origin = Origin { machine, commit: Some("abc1234".to_owned()), date: "2026-01-01T00:00:00Z".to_owned() };
        summarize(series, scenario, "envoy", origin).unwrap()
    }

    /// Ours against Envoy in three rounds, near the driver's ceiling.
    pub fn comparison(options: &str) -> Comparison {
        let ours = series("ours", vec![outcome(1.0, 50.0), outcome(4.0, 50.0), outcome(2.0, 50.0)]);
        let envoy = series("envoy", vec![outcome(2.0, 40.0), outcome(4.0, 40.0), outcome(8.0, 40.0)]);
        compare(vec![ours, envoy, series("direct", vec![outcome(1.0, 60.0)])], options)
    }

    #[test]
    fn the_ratio_is_the_median_of_each_rounds_own_ratio() {
        let comparison = comparison("");
        let ours = &comparison.targets[0];
        assert_eq!(ours.cpu_ratio, Some(Spread { median: 0.5, min: 0.25, max: 1.0 }));
        assert_eq!(ours.throughput_ratio, Some(Spread { median: 1.25, min: 1.25, max: 1.25 }));
        assert_eq!(ours.cpu_seconds_per_gib.map(|spread| spread.median), Some(4.0));
        assert_eq!(ours.p99_ratio, None, "a closed loop's latency is compared with nothing");
        assert_eq!(comparison.targets[1].cpu_ratio, None);
        assert!(ours.driver_bound, "50 of 60 is above 0.8");
        assert!(!comparison.targets[1].driver_bound);
        assert_eq!((ours.requests_sent_total, ours.rounds.len(), comparison.direct.len()), (9, 3, 1));
    }

    #[test]
    fn an_open_loop_is_not_driver_bound_and_its_rate_not_compared() {
        let comparison = comparison("rate = 50");
        assert!(!comparison.targets[0].driver_bound);
        assert_eq!(comparison.targets[0].throughput_ratio, None);
    }

    #[test]
    fn what_idle_tunnels_hold_counts_from_before_the_first_round() {
        let memory = |bytes| Memory { rss_bytes: bytes, pss_bytes: bytes };
        let process = WatchedProcess { name: "a".to_owned(), pid: 1 };
        let cpu = Cpu { user: Duration::ZERO, system: Duration::ZERO };
        let round = |before| {
            let processes = vec![IdleUse::new(&process, [before, 5000, 5000].map(memory), 4, &cpu)];
            Outcome::Idle(IdleOutcome {
                streams: 4,
                opened: 4,
                failures: BTreeMap::new(),
                open_seconds: 1.0,
                hold_seconds: 1.0,
                sampled: 4,
                usable: 4,
                requests_sent: 8,
                processes,
            })
        };
        let ours = Series { idle: Some(memory(1000)), ..series("ours", vec![round(1000), round(4900)]) };
        let comparison = compare(vec![ours, series("direct", Vec::new())], "kind = 'idle'");
        let expected = Spread { median: 1000.0, min: 1000.0, max: 1000.0 };
        assert_eq!(comparison.targets[0].rss_bytes_per_stream, Some(expected), "the second round began with what the first had left");
    }

    #[test]
    fn without_the_baseline_there_is_no_ratio() {
        let comparison = compare(vec![series("ours", vec![outcome(1.0, 1.0)]), series("direct", Vec::new())], "");
        assert_eq!(comparison.targets[0].cpu_ratio, None);
        assert_eq!(comparison.ceiling_requests_per_second, None);
    }
}
