//! What a run found: a table on standard output, and `target/conformance/report.json`.
//!
//! Invariant: a test that did not pass is failed or skipped by name and with its reason; none is left out.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// The tests of a suite, in the order in which they ran.
#[derive(Debug)]
pub struct Suite {
    pub name: &'static str,
    pub tests: Vec<(String, Outcome)>,
}

impl Suite {
    /// Adds a test and prints its line.
    pub fn add(&mut self, test: impl Into<String>, outcome: Outcome) {
        let test = test.into();
        match &outcome {
            Outcome::Passed => println!("ok       {} {test}", self.name),
            Outcome::Failed(why) => println!("FAILED   {} {test}\n         {}", self.name, why.replace('\n', "\n         ")),
            Outcome::Skipped(why) => println!("skipped  {} {test}: {why}", self.name),
        }
        self.tests.push((test, outcome));
    }

    fn n_passed(&self) -> usize {
        self.tests.iter().filter(|(_, outcome)| *outcome == Outcome::Passed).count()
    }

    fn failures(&self) -> Vec<String> {
        let failures = self.tests.iter().filter_map(|(test, outcome)| match outcome {
            Outcome::Failed(why) => Some(format!("{test}: {why}")),
            _ => None,
        });
        failures.collect()
    }

    fn skipped(&self) -> Vec<String> {
        let skipped = self.tests.iter().filter_map(|(test, outcome)| match outcome {
            Outcome::Skipped(why) => Some(format!("{test}: {why}")),
            _ => None,
        });
        skipped.collect()
    }

    fn json(&self) -> Value {
        let failures = self.failures();
        json!({"passed": self.n_passed(), "failed": failures.len(), "skipped": self.skipped(), "failures": failures})
    }
}

/// Prints the table and its summary line, and writes the file; whether nothing failed and something passed.
pub fn conclude(suites: &[Suite], file: &Path) -> Result<bool> {
    let report: Map<String, Value> = suites.iter().map(|suite| (suite.name.to_owned(), suite.json())).collect();
    std::fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\n{:<28} {:>6} {:>6} {:>7}", "suite", "passed", "failed", "skipped");
    let (mut n_passed, mut n_failed, mut n_skipped) = (0, 0, 0);
    for suite in suites {
        let (passed, failed, skipped) = (suite.n_passed(), suite.failures().len(), suite.skipped().len());
        println!("{:<28} {passed:>6} {failed:>6} {skipped:>7}", suite.name);
        n_passed += passed;
        n_failed += failed;
        n_skipped += skipped;
    }
    println!("conformance: {n_passed} passed, {n_failed} failed, {n_skipped} skipped");
    Ok(n_failed == 0 && n_passed > 0)
}
