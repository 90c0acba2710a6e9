//! A comparison as a table: plain for a terminal, Markdown for a document. The columns are those of its kind of load.

use std::fmt::Write as _;
use std::path::Path;

use super::result::{Comparison, TargetResult};
use crate::load::Kind;
use crate::process::Memory;
use crate::report;
use crate::run::outcome::Outcome;
use crate::stats::Spread;

/// A `String` takes every write.
const TO_STRING: &str = "writing to a String does not fail";
const MIB: f64 = 1024.0 * 1024.0;

/// For a terminal.
pub fn text(comparison: &Comparison) -> String {
    let mut text = heading(comparison);
    let (head, rows) = cells(comparison);
    text.push_str(&report::table(&head.iter().map(String::as_str).collect::<Vec<_>>(), rows));
    if let Some(ceiling) = ceiling(comparison) {
        writeln!(text, "{ceiling}").expect(TO_STRING);
    }
    if comparison.targets.iter().any(|target| target.driver_bound) {
        text.push_str(&report::driver_bound_note());
    }
    text
}

/// For a document; `raw` is where the JSON of the same comparison was written.
pub fn markdown(comparison: &Comparison, raw: Option<&Path>) -> String {
    let mut text = String::new();
    let scenario = &comparison.scenario;
    writeln!(text, "## {}\n", scenario.name.as_deref().unwrap_or("comparison")).expect(TO_STRING);
    if let Some(question) = &scenario.question {
        writeln!(text, "{question}\n").expect(TO_STRING);
    }
    let (head, rows) = cells(comparison);
    writeln!(text, "| {} |", head.join(" | ")).expect(TO_STRING);
    writeln!(text, "|{}", " --- |".repeat(head.len())).expect(TO_STRING);
    for row in rows {
        // An asterisk would begin emphasis.
        writeln!(text, "| {} |", row.join(" | ").replace('*', "\\*")).expect(TO_STRING);
    }
    writeln!(text).expect(TO_STRING);
    if let Some(ceiling) = ceiling(comparison) {
        writeln!(text, "- {ceiling}").expect(TO_STRING);
    }
    if comparison.targets.iter().any(|target| target.driver_bound) {
        write!(text, "- \\{}", report::driver_bound_note()).expect(TO_STRING);
    }
    writeln!(text, "- {}", heading(comparison).trim_end()).expect(TO_STRING);
    let machine = &comparison.origin.machine;
    let model = machine.cpu_model.as_deref().unwrap_or("unknown CPU");
    let memory = report::gibibytes(machine.memory_bytes);
    writeln!(text, "- {model}, {} cores, {memory} GiB, Linux {}", machine.cores, machine.kernel).expect(TO_STRING);
    let commit = comparison.origin.commit.as_deref().unwrap_or("unknown");
    writeln!(text, "- commit {commit}, {}", comparison.origin.date).expect(TO_STRING);
    if let Some(raw) = raw {
        writeln!(text, "- raw data: `{}`", raw.display()).expect(TO_STRING);
    }
    text
}

fn heading(comparison: &Comparison) -> String {
    format!("{} rounds, shuffled with seed {}; median (min..max)\n", comparison.rounds, comparison.seed)
}

fn ceiling(comparison: &Comparison) -> Option<String> {
    let ceiling = comparison.ceiling_requests_per_second?;
    Some(format!("driver's ceiling: {} requests/s straight to the workload", range(Some(ceiling), 0)))
}

/// The head, and a row for each target.
fn cells(comparison: &Comparison) -> (Vec<String>, Vec<Vec<String>>) {
    let columns = columns(comparison);
    let rows = comparison.targets.iter().map(|target| columns.iter().map(|(_, cell)| cell(target)).collect()).collect();
    (columns.into_iter().map(|(title, _)| title).collect(), rows)
}

type Column = (String, fn(&TargetResult) -> String);

fn columns(comparison: &Comparison) -> Vec<Column> {
    let load = &comparison.scenario.parameters;
    let ratio = format!("× {}", comparison.baseline);
    let mut columns: Vec<Column> = vec![("target".to_owned(), |target| target.name.clone())];
    let mut add = |title: &str, cell: fn(&TargetResult) -> String| columns.push((title.to_owned(), cell));
    match load.kind {
        Kind::Requests => {
            add("CPU s/100k requests", |target| range(target.cpu_seconds_per_100k, 3));
            add(&ratio, |target| range(target.cpu_ratio, 3));
            add("CPU s/GiB", |target| range(target.cpu_seconds_per_gib, 3));
            add("requests/s", |target| range(target.requests_per_second, 0) + if target.driver_bound { "*" } else { "" });
            add("GiB/s", |target| range(target.gib_per_second, 2));
            add("p50 µs", |target| range(target.p50_us, 0));
            add("p99 µs", |target| range(target.p99_us, 0));
            if !load.is_closed_loop() {
                add(&format!("p99 {ratio}"), |target| range(target.p99_ratio, 2));
            }
            add("RSS MiB idle", |target| memory(target.idle));
        }
        Kind::Idle => {
            add("RSS B/tunnel", |target| range(target.rss_bytes_per_stream, 0));
            add(&ratio, |target| range(target.rss_per_stream_ratio, 3));
            add("CPU % while idle", |target| range(target.idle_cores.map(|spread| scaled(spread, 100.0)), 1));
            add("opened", |target| sum(target, Outcome::answered));
            add("asked again", |target| sum(target, |outcome| again(outcome).0));
            add("answered", |target| sum(target, |outcome| again(outcome).1));
            add("RSS MiB before", |target| memory(target.idle));
        }
        Kind::Stalled => {
            add(&format!("RSS {ratio}"), |target| range(target.rss_ratio, 3));
            add("workload sent MiB", |target| range(workload_sent(target), 1));
            add("heads", |target| sum(target, Outcome::answered));
            add("RSS MiB before", |target| memory(target.idle));
        }
    }
    add("RSS MiB loaded", |target| range(target.rss_bytes.map(|spread| scaled(spread, 1.0 / MIB)), 1));
    add("failed", |target| target.failures.values().sum::<u64>().to_string());
    columns
}

/// Idle tunnels that were asked again, and that answered.
fn again(outcome: &Outcome) -> (u64, u64) {
    let count = |count: usize| u64::try_from(count).expect("a count fits in 64 bits");
    match outcome {
        Outcome::Idle(outcome) => (count(outcome.sampled), count(outcome.usable)),
        Outcome::Requests(_) | Outcome::Stalled(_) => (0, 0),
    }
}

fn workload_sent(target: &TargetResult) -> Option<Spread> {
    let sent = target.rounds.iter().filter_map(|outcome| match outcome {
        Outcome::Stalled(outcome) => Some(crate::stats::float(outcome.workload_body_bytes_sent?) / MIB),
        Outcome::Requests(_) | Outcome::Idle(_) => None,
    });
    crate::stats::median(&sent.collect::<Vec<_>>())
}

fn sum(target: &TargetResult, count: fn(&Outcome) -> u64) -> String {
    target.rounds.iter().map(count).sum::<u64>().to_string()
}

fn scaled(spread: Spread, factor: f64) -> Spread {
    Spread { median: spread.median * factor, min: spread.min * factor, max: spread.max * factor }
}

fn range(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.digits$} ({:.digits$}..{:.digits$})", spread.median, spread.min, spread.max))
}

fn memory(memory: Option<Memory>) -> String {
    memory.map_or_else(|| "-".to_owned(), |memory| report::mebibytes(memory.rss_bytes))
}

#[cfg(test)]
mod tests {
    use super::super::result::tests::comparison;
    use super::*;

    #[test]
    fn a_table_shows_median_range_and_what_is_driver_bound() {
        let text = text(&comparison(""));
        assert!(text.contains("0.500 (0.250..1.000)") && text.contains("50 (50..50)*") && text.contains("driver-bound"), "{text}");
    }

    #[test]
    fn markdown_names_question_machine_commit_and_raw_data() {
        let text = markdown(&comparison(""), Some(Path::new("cpu.json")));
        for part in ["## cpu\n", "How much?", "A CPU, 2 cores, 1.0 GiB, Linux 6.1", "commit abc1234, 2026-01-01", "raw data: `cpu.json`"] {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(rows.len(), 4, "head, rule and two targets");
        assert!(rows.iter().all(|row| row.matches('|').count() == rows[0].matches('|').count()), "{text}");
        assert!(text.contains("50 (50..50)\\*"), "{text}");
    }
}
