//! Runs rows under valgrind, prints what they cost beside the baseline, and says whether that may stand.
//!
//! Invariants: a row that grew by more than [`GROWTH_MAX`] fails; one that shrank by more than [`GAIN_MAX`] fails too, so that the
//! baseline is lowered and the gain is kept. Only machines of the baseline's architecture are judged.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;

use crate::rows::{self, Row};
use crate::{valgrind, window};

/// The share by which a row may grow.
const GROWTH_MAX: f64 = 0.05;
/// The share by which a row may shrink without a lower baseline.
const GAIN_MAX: f64 = 0.10;
/// Where instructions and allocations are as in the baseline.
const ARCHITECTURE: &str = "x86_64";
/// The binary's allocator without its clock: what it tidies and gives back, and when, would depend on how fast the machine is.
const ALLOCATOR_SETTINGS: (&str, &str) =
    ("_RJEM_MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:-1,background_thread:false,narenas:1,tcache_gc_incr_bytes:1073741824");
/// Set to write the baseline anew.
const UPDATE: &str = "UPDATE_COSTS";

const HEADER: &str = "# What each row of `make costs` costs, per operation: instructions on the thread that does it, allocations, allocated bytes.\n\
    # Written by UPDATE_COSTS=1 make costs; the commit that changes it says why. See docs/performance.md, \"The guard\".\n";

/// What one operation costs.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Cost {
    instructions: f64,
    allocations: f64,
    bytes: f64,
}

/// What the measured process writes.
#[derive(Debug, Deserialize)]
struct Report {
    operations: u32,
    allocations: u64,
    bytes: u64,
    held_each: u64,
}

/// What a row was measured to cost.
struct Measured<'a> {
    row: &'a Row,
    cost: Cost,
    /// See [`window::Windows::held_each`].
    held_each: u64,
}

type Baseline = BTreeMap<String, Cost>;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Measures the named rows, or all.
pub fn run(names: &[String]) -> Result<ExitCode> {
    if let Some(unknown) = names.iter().find(|name| !rows::ALL.iter().any(|row| row.name == **name)) {
        let known: Vec<_> = rows::ALL.iter().map(|row| row.name).collect();
        bail!("there is no row {unknown}; there are {}", known.join(", "));
    }
    let chosen: Vec<&Row> = rows::ALL.iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.name)).collect();
    let folder = std::env::current_exe()?.parent().context("a folder")?.join("../costs");
    fs::create_dir_all(&folder)?;
    let measured = measure_all(&chosen, &folder)?;
    let path = repository().join("tests/costs.toml");
    let known: Baseline = match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| path.display().to_string())?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Baseline::new(),
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    let findings = table(&measured, &known);
    for Measured { row, held_each, .. } in measured.iter().filter(|measured| measured.held_each > 0) {
        println!("{}: each of what it counts in holds {held_each} bytes", row.name);
    }
    println!("profiles: callgrind_annotate {}/<row>.out", folder.canonicalize()?.display());
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, baseline(&measured, known)?)?;
        println!("costs: {} row(s) written to tests/costs.toml", measured.len());
        return Ok(ExitCode::SUCCESS);
    }
    if std::env::consts::ARCH != ARCHITECTURE {
        println!("costs: the baseline is of {ARCHITECTURE}, and nothing is judged here");
        return Ok(ExitCode::SUCCESS);
    }
    findings.iter().for_each(|finding| println!("costs: {finding}"));
    println!("costs: {}", if findings.is_empty() { "no row outside its bounds".to_owned() } else { format!("{} FAILED", findings.len()) });
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As many rows at a time as there are cores: a row's instructions do not depend on what else runs.
fn measure_all<'a>(chosen: &[&'a Row], folder: &Path) -> Result<Vec<Measured<'a>>> {
    let waiting = Mutex::new(chosen.iter().copied().enumerate().collect::<VecDeque<_>>());
    let measured = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    // The last rows take longest.
                    let Some((at, row)) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_back() else { return };
                    let cost = measure(row, folder).with_context(|| format!("the row {}", row.name));
                    measured.lock().unwrap_or_else(PoisonError::into_inner).push((at, cost));
                }
            });
        }
    });
    let mut measured = measured.into_inner().unwrap_or_else(PoisonError::into_inner);
    measured.sort_by_key(|(at, ..)| *at);
    measured.into_iter().map(|(_, measured)| measured).collect()
}

fn measure<'a>(row: &'a Row, folder: &Path) -> Result<Measured<'a>> {
    let profile = folder.join(format!("{}.out", row.name));
    let report = folder.join(format!("{}.toml", row.name));
    let output = Command::new("valgrind")
        .args(["-q", "--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--instr-atstart={}", if valgrind::IS_HEARD { "no" } else { "yes" }))
        .arg(format!("--toggle-collect={}", window::PATTERN))
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["--measure", row.name])
        .arg(&report)
        .env(ALLOCATOR_SETTINGS.0, ALLOCATOR_SETTINGS.1)
        // Lines of the access log.
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context("valgrind cannot be run; tests/setup.sh installs it")?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    let text = fs::read_to_string(&profile).with_context(|| profile.display().to_string())?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or_else(|| anyhow!("no totals in {}", profile.display()))?;
    let total: f64 = total.trim().parse()?;
    let Report { operations, allocations, bytes, held_each } = toml::from_str(&fs::read_to_string(&report)?)?;
    ensure!(operations > 0 && total > 0.0, "nothing was counted: is the counted function inlined?");
    let each = |count: u64| -> Result<f64> { Ok(count.to_string().parse::<f64>()? / f64::from(operations)) };
    let cost = Cost { instructions: total / f64::from(operations), allocations: each(allocations)?, bytes: each(bytes)? };
    Ok(Measured { row, cost, held_each })
}

/// Prints the rows; says what is outside its bounds.
fn table(measured: &[Measured<'_>], known: &Baseline) -> Vec<String> {
    println!("{:<18} {:>14} {:>14} {:>8} {:>10} {:>10} {:>12}", "row", "instructions", "baseline", "change", "allocs", "baseline", "bytes");
    let mut findings = Vec::new();
    for Measured { row, cost: now, .. } in measured {
        let Some(before) = known.get(row.name) else {
            println!(
                "{:<18} {:>14.0} {:>14} {:>8} {:>10.2} {:>10} {:>12.0}",
                row.name, now.instructions, "-", "-", now.allocations, "-", now.bytes
            );
            findings.push(format!("{} has no baseline; {UPDATE}=1 make costs writes one", row.name));
            continue;
        };
        let change = now.instructions / before.instructions - 1.0;
        println!(
            "{:<18} {:>14.0} {:>14.0} {:>+7.2}% {:>10.2} {:>10.2} {:>12.0}",
            row.name,
            now.instructions,
            before.instructions,
            change * 100.0,
            now.allocations,
            before.allocations,
            now.bytes
        );
        findings.extend(judge(row.name, now, before));
    }
    let forgotten = known.keys().filter(|name| !rows::ALL.iter().any(|row| row.name == **name));
    findings.extend(forgotten.map(|name| format!("the baseline has a row {name} that nothing measures")));
    findings
}

/// What of a row is outside its bounds. A tenth of an allocation is one that not every operation makes.
fn judge(name: &str, now: &Cost, before: &Cost) -> Option<String> {
    let change = now.instructions / before.instructions - 1.0;
    if change > GROWTH_MAX {
        return Some(format!(
            "{name} GREW by {:.1} %, more than {:.0} %: make it cheaper, or say in the commit what is worth it and run {UPDATE}=1 make costs",
            change * 100.0,
            GROWTH_MAX * 100.0
        ));
    }
    if now.allocations > before.allocations * (1.0 + GROWTH_MAX) + 0.1 {
        return Some(format!(
            "{name} ALLOCATES {:.2} times instead of {:.2}: make it fewer, or say in the commit what is worth it and run {UPDATE}=1 make costs",
            now.allocations, before.allocations
        ));
    }
    (change < -GAIN_MAX)
        .then(|| format!("{name} shrank by {:.1} %: well done; run {UPDATE}=1 make costs, so that the gain is kept", -change * 100.0))
}

/// The baseline with what was measured in place of what was known; rows that are gone are left out.
fn baseline(measured: &[Measured<'_>], mut known: Baseline) -> Result<String> {
    known.retain(|name, _| rows::ALL.iter().any(|row| row.name == *name));
    known.extend(measured.iter().map(|measured| (measured.row.name.to_owned(), measured.cost)));
    let mut text = HEADER.to_owned();
    for row in rows::ALL {
        if let Some(Cost { instructions, allocations, bytes }) = known.get(row.name) {
            writeln!(text, "\n[{}]\ninstructions = {instructions:.0}.0\nallocations = {allocations:.2}\nbytes = {bytes:.0}.0", row.name)?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Cost = Cost { instructions: 1000.0, allocations: 20.0, bytes: 0.0 };

    #[test]
    fn a_row_may_grow_and_shrink_within_bounds_only() {
        let of = |instructions, allocations| judge("row", &Cost { instructions, allocations, bytes: 0.0 }, &BEFORE).unwrap_or_default();
        assert_eq!((of(1049.0, 20.0), of(901.0, 21.0)), (String::new(), String::new()));
        assert!(of(1051.0, 20.0).contains("GREW by 5.1 %"));
        assert!(of(1000.0, 22.0).contains("ALLOCATES 22.00 times instead of 20.00"));
        assert!(of(899.0, 20.0).contains("shrank by 10.1 %"));
    }

    #[test]
    fn a_row_that_allocated_nothing_may_not_begin_to() {
        let before = Cost { allocations: 0.0, ..BEFORE };
        assert!(judge("row", &before, &before).is_none());
        assert!(judge("row", &Cost { allocations: 1.0, ..before }, &before).is_some());
    }

    #[test]
    fn the_baseline_is_read_as_it_is_written() -> Result<()> {
        let row = &rows::ALL[0];
        let text = baseline(&[Measured { row, cost: BEFORE, held_each: 0 }], Baseline::from([("gone".to_owned(), BEFORE)]))?;
        assert_eq!(toml::from_str::<Baseline>(&text)?, Baseline::from([(row.name.to_owned(), BEFORE)]));
        Ok(())
    }
}
