//! Results as text for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::process::Memory;
use crate::run::outcome::{IdleOutcome, Outcome, RequestsOutcome, StalledOutcome};
use crate::run::{DRIVER_BOUND_SHARE, RunReport};

/// A `String` takes every write.
const TO_STRING: &str = "writing to a String does not fail";

/// Below a rate that may be the driver's own.
const NO_CEILING: &str = "driver's ceiling  not measured; with --ceiling WORKLOAD it is, and the rate says whose limit it is\n";

/// Writes `value` as indented JSON with a last newline.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// One run.
pub fn run_text(report: &RunReport) -> String {
    let mut text = match &report.outcome {
        Outcome::Requests(outcome) => requests_text(outcome),
        Outcome::Idle(outcome) => idle_text(outcome),
        Outcome::Stalled(outcome) => stalled_text(outcome),
    };
    match (&report.outcome, report.ceiling_requests_per_second) {
        (Outcome::Requests(outcome), Some(ceiling)) => {
            let share = outcome.requests_per_second / ceiling;
            write!(text, "driver's ceiling  {ceiling:.0}/s without the waypoint; this run reached {share:.2} of it").expect(TO_STRING);
            text.push_str(if report.driver_bound == Some(true) { "  DRIVER-BOUND\n" } else { "\n" });
        }
        (Outcome::Requests(_), None) => text.push_str(NO_CEILING),
        _ => {}
    }
    text
}

fn requests_text(outcome: &RequestsOutcome) -> String {
    let summary = &outcome.summary;
    let mut text = String::new();
    writeln!(text, "requests          {} in {:.2} s = {:.0}/s", outcome.completed, outcome.seconds, outcome.requests_per_second)
        .expect(TO_STRING);
    if let Some(scheduled) = outcome.scheduled {
        writeln!(text, "scheduled         {scheduled}, answered {}", summary.ok).expect(TO_STRING);
    }
    writeln!(
        text,
        "latency           p50 {:.0} µs  p90 {:.0} µs  p99 {:.0} µs  p99.9 {:.0} µs  max {:.0} µs",
        summary.p50_us, summary.p90_us, summary.p99_us, summary.p999_us, summary.max_us
    )
    .expect(TO_STRING);
    writeln!(text, "bodies            {:.3} GiB/s", outcome.gib_per_second).expect(TO_STRING);
    text.push_str(&failures_text(&summary.failures));
    let rows = outcome.processes.iter().map(|process| {
        vec![
            process.name.clone(),
            process.pid.to_string(),
            format!("{:.2}", process.cpu_seconds),
            format!("{:.2}", process.system_seconds),
            optional(process.cpu_seconds_per_100k, 3),
            optional(process.cpu_seconds_per_gib, 3),
            mebibytes(process.memory.rss_bytes),
            mebibytes(process.memory.pss_bytes),
        ]
    });
    let head = ["process", "pid", "CPU s", "of it system", "CPU s/100k requests", "CPU s/GiB", "RSS MiB", "PSS MiB"];
    text.push_str(&table(&head, rows.collect()));
    text
}

fn idle_text(outcome: &IdleOutcome) -> String {
    let mut text = format!("opened            {} of {} tunnels in {:.2} s\n", outcome.opened, outcome.streams, outcome.open_seconds);
    text.push_str(&failures_text(&outcome.failures));
    writeln!(text, "still usable      {} of {} asked, after {:.1} s", outcome.usable, outcome.sampled, outcome.hold_seconds)
        .expect(TO_STRING);
    let rows = outcome.processes.iter().map(|process| {
        let mut row = vec![process.name.clone(), process.pid.to_string()];
        row.extend(pairs([process.before, process.opened, process.held]));
        row.push(optional(process.rss_bytes_per_stream, 0));
        row.push(optional(process.pss_bytes_per_stream, 0));
        row.push(format!("{:.2}", process.cpu_seconds));
        row
    });
    let memory = ["RSS/PSS MiB before", "opened", "held"];
    let head: Vec<&str> = ["process", "pid"].into_iter().chain(memory).chain(["RSS B/tunnel", "PSS B/tunnel", "CPU s idle"]).collect();
    text.push_str(&table(&head, rows.collect()));
    text
}

fn stalled_text(outcome: &StalledOutcome) -> String {
    let mut text = format!("stalled           {} of {} answers for {:.1} s\n", outcome.heads, outcome.streams, outcome.hold_seconds);
    text.push_str(&failures_text(&outcome.failures));
    if let Some(bytes) = outcome.workload_body_bytes_sent {
        writeln!(text, "workload sent     {} MiB", mebibytes(bytes)).expect(TO_STRING);
    }
    let rows = outcome.processes.iter().map(|process| {
        let mut row = vec![process.name.clone(), process.pid.to_string()];
        row.extend(pairs([process.before, process.highest, process.closed]));
        row.push(format!("{:.2}", process.cpu_seconds));
        row
    });
    text.push_str(&table(&["process", "pid", "RSS/PSS MiB before", "highest", "closed", "CPU s"], rows.collect()));
    text
}

fn pairs(memories: [Memory; 3]) -> [String; 3] {
    memories.map(|memory| format!("{}/{}", mebibytes(memory.rss_bytes), mebibytes(memory.pss_bytes)))
}

fn failures_text(failures: &BTreeMap<String, u64>) -> String {
    failures.iter().map(|(failure, count)| format!("failed            {count} × {failure}\n")).collect()
}

fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}

/// Bytes as MiB with one decimal.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", crate::stats::float(bytes) / (1024.0 * 1024.0))
}

/// Bytes as GiB with one decimal.
pub fn gibibytes(bytes: u64) -> String {
    format!("{:.1}", crate::run::outcome::gib(bytes))
}

/// Why a figure is marked.
pub fn driver_bound_note() -> String {
    format!("* driver-bound: above {DRIVER_BOUND_SHARE} of what the driver reaches without a waypoint\n")
}

/// Columns as wide as their longest cell; the first to the left, the others to the right.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(ToString::to_string).collect();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| std::iter::once(&head).chain(&rows).map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(&rows) {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                write!(text, "{cell:<width$}").expect(TO_STRING);
            } else {
                write!(text, "  {cell:>width$}").expect(TO_STRING);
            }
        }
        text.push('\n');
    }
    text
}
