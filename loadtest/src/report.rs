//! Results as text for people and as JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::run::{DRIVER_BOUND_SHARE, Outcome, RunReport};

/// A `String` takes every write.
const TO_STRING: &str = "writing to a String does not fail";

/// Writes `value` as indented JSON with a last newline.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// One run.
pub fn run_text(report: &RunReport) -> String {
    let mut text = outcome_text(&report.outcome);
    if let Some(ceiling) = report.ceiling_requests_per_second {
        let share = report.outcome.requests_per_second / ceiling;
        write!(text, "driver's ceiling  {ceiling:.0}/s without the waypoint; this run reached {share:.2} of it").expect(TO_STRING);
        text.push_str(if report.driver_bound == Some(true) { "  DRIVER-BOUND\n" } else { "\n" });
    }
    text
}

fn outcome_text(outcome: &Outcome) -> String {
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
    for (failure, count) in &summary.failures {
        writeln!(text, "failed            {count} × {failure}").expect(TO_STRING);
    }
    let rows = outcome.processes.iter().map(|process| {
        vec![
            process.name.clone(),
            process.pid.to_string(),
            format!("{:.2}", process.cpu_seconds),
            format!("{:.2}", process.system_seconds),
            process.cpu_seconds_per_100k.map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.3}")),
            mebibytes(process.memory.rss_bytes),
            mebibytes(process.memory.pss_bytes),
        ]
    });
    let head = ["process", "pid", "CPU s", "of it system", "CPU s/100k requests", "RSS MiB", "PSS MiB"];
    text.push_str(&table(&head, rows.collect()));
    text
}

/// Bytes as MiB with one decimal.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", crate::stats::float(bytes) / (1024.0 * 1024.0))
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
