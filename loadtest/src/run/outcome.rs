//! What a plan brought, one shape per kind of load; and the numbers that comparisons take from it.
//!
//! Not here: measuring, and printing.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::process::{self, Cpu, Memory};
use crate::stats::{Summary, float};

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

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

/// CPU time of each so far.
pub fn cpus(processes: &[WatchedProcess]) -> anyhow::Result<Vec<Cpu>> {
    processes.iter().map(|process| process::cpu(process.pid)).collect()
}

/// Memory of each now.
pub fn memories(processes: &[WatchedProcess]) -> anyhow::Result<Vec<Memory>> {
    processes.iter().map(|process| process::memory(process.pid)).collect()
}

/// The outcome of one plan.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    Requests(RequestsOutcome),
    Idle(IdleOutcome),
    Stalled(StalledOutcome),
}

/// A number that targets are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    CpuPer100k,
    CpuPerGib,
    RequestsPerSecond,
    GibPerSecond,
    P50,
    P99,
    /// Resident memory under the load, at its highest if that was looked for.
    Rss,
    /// What an idle tunnel added to it.
    RssPerStream,
    /// Processors used while tunnels were idle or answers stalled.
    IdleCores,
}

impl Outcome {
    /// Requests answered as they should be; for stalled answers, their heads.
    pub fn answered(&self) -> u64 {
        match self {
            Self::Requests(outcome) => outcome.completed,
            Self::Idle(outcome) => outcome.opened,
            Self::Stalled(outcome) => outcome.heads,
        }
    }

    /// Requests put on the wire, those that count nowhere else included.
    pub fn requests_sent(&self) -> u64 {
        match self {
            Self::Requests(outcome) => outcome.requests_sent,
            Self::Idle(outcome) => outcome.requests_sent,
            Self::Stalled(outcome) => outcome.requests_sent,
        }
    }

    pub fn failures(&self) -> &BTreeMap<String, u64> {
        match self {
            Self::Requests(outcome) => &outcome.summary.failures,
            Self::Idle(outcome) => &outcome.failures,
            Self::Stalled(outcome) => &outcome.failures,
        }
    }

    /// Memory of the first process (the proxy) under the load.
    pub fn loaded(&self) -> Option<Memory> {
        match self {
            Self::Requests(outcome) => outcome.processes.first().map(|process| process.memory),
            Self::Idle(outcome) => outcome.processes.first().map(|process| process.opened),
            Self::Stalled(outcome) => outcome.processes.first().map(|process| process.highest),
        }
    }

    /// A number of the first process or of the load; `None` where this kind has none.
    pub fn metric(&self, metric: Metric) -> Option<f64> {
        if metric == Metric::Rss {
            return self.loaded().map(|memory| float(memory.rss_bytes));
        }
        match self {
            Self::Requests(outcome) => outcome.metric(metric),
            Self::Idle(outcome) => {
                let process = outcome.processes.first()?;
                match metric {
                    Metric::RssPerStream => process.rss_bytes_per_stream,
                    Metric::IdleCores => Some(process.cpu_seconds / outcome.hold_seconds),
                    _ => None,
                }
            }
            Self::Stalled(outcome) => {
                let process = outcome.processes.first()?;
                (metric == Metric::IdleCores).then(|| process.cpu_seconds / outcome.hold_seconds)
            }
        }
    }
}

/// What requests over and over brought.
#[derive(Debug, Clone, Serialize)]
pub struct RequestsOutcome {
    /// Length of the measured window.
    pub seconds: f64,
    /// Requests (or messages of a gRPC stream) well answered inside it.
    pub completed: u64,
    pub requests_per_second: f64,
    /// Requests due in the window (open loop).
    pub scheduled: Option<u64>,
    /// Requests put on the wire in all, outside the window as well; a gRPC stream is one.
    pub requests_sent: u64,
    /// Bytes of bodies, both directions, moved inside the window.
    pub body_bytes: u64,
    pub gib_per_second: f64,
    #[serde(flatten)]
    pub summary: Summary,
    pub processes: Vec<ProcessUse>,
}

impl RequestsOutcome {
    fn metric(&self, metric: Metric) -> Option<f64> {
        let process = self.processes.first();
        match metric {
            Metric::CpuPer100k => process?.cpu_seconds_per_100k,
            Metric::CpuPerGib => process?.cpu_seconds_per_gib,
            Metric::RequestsPerSecond => Some(self.requests_per_second),
            Metric::GibPerSecond => Some(self.gib_per_second),
            Metric::P50 => Some(self.summary.p50_us),
            Metric::P99 => Some(self.summary.p99_us),
            Metric::Rss | Metric::RssPerStream | Metric::IdleCores => None,
        }
    }
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
    /// `None` when no body was moved.
    pub cpu_seconds_per_gib: Option<f64>,
    #[serde(flatten)]
    pub memory: Memory,
}

/// What was done in a window.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub completed: u64,
    pub body_bytes: u64,
}

impl ProcessUse {
    pub fn new(process: &WatchedProcess, cpu: &Cpu, work: Work, memory: Memory) -> Self {
        let cpu_seconds = cpu.total().as_secs_f64();
        Self {
            name: process.name.clone(),
            pid: process.pid,
            cpu_seconds,
            system_seconds: cpu.system.as_secs_f64(),
            cpu_seconds_per_100k: (work.completed > 0).then(|| cpu_seconds * 100_000.0 / float(work.completed)),
            cpu_seconds_per_gib: (work.body_bytes > 0).then(|| cpu_seconds / gib(work.body_bytes)),
            memory,
        }
    }
}

/// Bytes as GiB.
pub fn gib(bytes: u64) -> f64 {
    float(bytes) / GIB
}

/// What idle tunnels cost.
#[derive(Debug, Clone, Serialize)]
pub struct IdleOutcome {
    /// Tunnels that were to be opened.
    pub streams: usize,
    /// Tunnels that were opened and answered their request.
    pub opened: u64,
    pub failures: BTreeMap<String, u64>,
    pub open_seconds: f64,
    pub hold_seconds: f64,
    /// Tunnels that were asked again at the end, and those that answered.
    pub sampled: usize,
    pub usable: usize,
    pub requests_sent: u64,
    pub processes: Vec<IdleUse>,
}

/// What a process held.
#[derive(Debug, Clone, Serialize)]
pub struct IdleUse {
    pub name: String,
    pub pid: u32,
    pub before: Memory,
    /// When all tunnels had answered.
    pub opened: Memory,
    /// At the end of the hold.
    pub held: Memory,
    /// From before to opened; `None` when none was opened.
    pub rss_bytes_per_stream: Option<f64>,
    pub pss_bytes_per_stream: Option<f64>,
    /// During the hold.
    pub cpu_seconds: f64,
}

impl IdleUse {
    pub fn new(process: &WatchedProcess, [before, opened, held]: [Memory; 3], n_opened: u64, cpu: &Cpu) -> Self {
        let per_stream = |before, after| (n_opened > 0).then(|| (float(after) - float(before)) / float(n_opened));
        Self {
            name: process.name.clone(),
            pid: process.pid,
            before,
            opened,
            held,
            rss_bytes_per_stream: per_stream(before.rss_bytes, opened.rss_bytes),
            pss_bytes_per_stream: per_stream(before.pss_bytes, opened.pss_bytes),
            cpu_seconds: cpu.total().as_secs_f64(),
        }
    }
}

/// What answers cost that nobody reads.
#[derive(Debug, Clone, Serialize)]
pub struct StalledOutcome {
    /// Answers that were asked for.
    pub streams: usize,
    /// Those whose head came.
    pub heads: u64,
    pub failures: BTreeMap<String, u64>,
    pub hold_seconds: f64,
    /// Bytes of bodies that the workload's app had handed over by the end of the hold; `None` when it could not be asked.
    pub workload_body_bytes_sent: Option<u64>,
    pub requests_sent: u64,
    pub processes: Vec<StalledUse>,
}

/// What a process held.
#[derive(Debug, Clone, Serialize)]
pub struct StalledUse {
    pub name: String,
    pub pid: u32,
    pub before: Memory,
    /// The largest seen during the hold, by resident memory.
    pub highest: Memory,
    /// Some time after all was closed.
    pub closed: Memory,
    /// From the first request to the end of the hold.
    pub cpu_seconds: f64,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn cpu_is_divided_by_what_was_done_and_by_nothing_else() {
        let process = WatchedProcess { name: "a".to_owned(), pid: 1 };
        let cpu = Cpu { user: Duration::from_secs(3), system: Duration::from_secs(1) };
        let memory = Memory { rss_bytes: 1, pss_bytes: 1 };
        let used = ProcessUse::new(&process, &cpu, Work { completed: 200_000, body_bytes: 2 << 30 }, memory);
        assert_eq!((used.cpu_seconds_per_100k, used.cpu_seconds_per_gib), (Some(2.0), Some(2.0)));
        let used = ProcessUse::new(&process, &cpu, Work { completed: 0, body_bytes: 0 }, memory);
        assert_eq!((used.cpu_seconds_per_100k, used.cpu_seconds_per_gib), (None, None));
    }

    #[test]
    fn what_a_stream_holds_is_the_difference_and_may_be_negative() {
        let process = WatchedProcess { name: "a".to_owned(), pid: 1 };
        let cpu = Cpu { user: Duration::ZERO, system: Duration::ZERO };
        let [small, large] = [1000, 5000].map(|bytes| Memory { rss_bytes: bytes, pss_bytes: bytes });
        assert_eq!(IdleUse::new(&process, [small, large, large], 4, &cpu).rss_bytes_per_stream, Some(1000.0));
        assert_eq!(IdleUse::new(&process, [large, small, small], 4, &cpu).rss_bytes_per_stream, Some(-1000.0));
        assert_eq!(IdleUse::new(&process, [small, large, large], 0, &cpu).rss_bytes_per_stream, None);
    }
}
