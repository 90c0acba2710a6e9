//! The numbers of a run, the limits that they are held to, and both as a table and as flat JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::load::Comparison;

/// What a number should be and what it must not pass.
struct Limit {
    name: &'static str,
    aim: f64,
    never: f64,
    /// More is better.
    is_floor: bool,
}

const fn ceiling(name: &'static str, aim: f64, never: f64) -> Limit {
    Limit { name, aim, never, is_floor: false }
}

/// What a driver at its own limit leaves without meaning.
const THROUGHPUT: &str = "throughput_ratio";

/// The budgets of docs/performance.md, in the order in which they are printed.
const LIMITS: [Limit; 19] = [
    ceiling("cpu_per_request_ratio", 0.35, 0.5),
    Limit { name: THROUGHPUT, aim: 3.0, never: 2.2, is_floor: true },
    ceiling("p99_added_ratio", 0.7, 1.0),
    ceiling("http2_cpu_ratio", 0.35, 0.5),
    ceiling("grpc_cpu_ratio", 0.35, 0.5),
    ceiling("grpc_message_cpu_ratio", 0.7, 1.0),
    ceiling("short_tunnel_cpu_ratio", 0.7, 1.0),
    ceiling("short_connection_cpu_ratio", 0.7, 1.0),
    ceiling("rss_idle_ratio", 0.2, 0.5),
    ceiling("rss_10k_streams_ratio", 0.3, 0.5),
    ceiling("rss_5000_services_ratio", 0.3, 0.5),
    ceiling("rss_stalled_readers_mib", 16.0, 32.0),
    ceiling("bulk_up_cpu_ratio", 0.7, 1.0),
    ceiling("bulk_down_cpu_ratio", 0.7, 1.0),
    ceiling("one_route_of_5000_cpu_ratio", 0.05, 0.2),
    ceiling("start_to_ready_ms", 200.0, 1000.0),
    ceiling("changes_p99_ratio", 1.5, 2.0),
    ceiling("changes_lost", 0.0, 0.0),
    ceiling("changes_growth_mib", 4.0, 8.0),
];

/// A median with the smallest and the largest.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

/// What was found so far.
#[derive(Debug, Default)]
pub struct Summary {
    found: BTreeMap<&'static str, Spread>,
    /// The values of all rounds, as they came.
    rounds: BTreeMap<&'static str, Vec<f64>>,
    notes: Vec<String>,
    /// The rates say what the driver can do.
    is_driver_bound: bool,
}

impl Summary {
    /// The values of all rounds.
    ///
    /// # Errors
    /// There are none, or one is no number.
    pub fn add(&mut self, name: &'static str, values: &[f64]) -> Result<()> {
        ensure!(!values.is_empty() && values.iter().all(|value| value.is_finite()), "{name} has no value in some round: {values:?}");
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (middle, last) = (sorted.len() / 2, sorted.len() - 1);
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        self.found.insert(name, Spread { median, min: sorted[0], max: sorted[last] });
        self.rounds.insert(name, values.to_vec());
        Ok(())
    }

    /// A line for people below the table.
    pub fn say(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    /// A number that was found, for people.
    ///
    /// # Errors
    /// It was not.
    pub fn spread_of(&self, name: &str) -> Result<String> {
        let found = self.found.get(name).with_context(|| format!("{name} was not measured"))?;
        Ok(format!("{:.2} ({:.2}..{:.2})", found.median, found.min, found.max))
    }

    /// A rate near what the driver reaches alone is a floor, not a figure.
    pub fn note_driver_bound(&mut self, comparison: &Comparison) {
        for name in comparison.driver_bound() {
            self.is_driver_bound = true;
            self.notes.push(format!("{name}'s rate is driver-bound: the ratio of rates is a floor, and not to be quoted"));
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("{:<30} {:>8} {:>18} {:>8} {:>8}\n", "ours / Envoy's", "median", "(min..max)", "aim", "never");
        for limit in &LIMITS {
            let Some(found) = self.found.get(limit.name) else { continue };
            let range = format!("({:.3}..{:.3})", found.min, found.max);
            let mark = if self.is_driver_bound && limit.name == THROUGHPUT {
                "  driver-bound, not to be quoted"
            } else if limit.is_passed_by(found.median) {
                "  NOT KEPT"
            } else if limit.is_reached_by(found.median) {
                ""
            } else {
                "  aim missed"
            };
            writeln!(text, "{:<30} {:>8.3} {range:>18} {:>8} {:>8}{mark}", limit.name, found.median, limit.aim, limit.never)
                .expect("writing to a String does not fail");
        }
        for note in &self.notes {
            writeln!(text, "note: {note}").expect("writing to a String does not fail");
        }
        text
    }

    /// For programs: each median under its name, and its range.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut flat = Map::new();
        for (name, spread) in &self.found {
            flat.insert((*name).to_owned(), json!(spread.median));
            flat.insert(format!("{name}_min"), json!(spread.min));
            flat.insert(format!("{name}_max"), json!(spread.max));
        }
        std::fs::write(path, format!("{:#}\n", Value::Object(flat)))?;
        Ok(())
    }

    /// Raw: of every number the values of all rounds, with the machine, the commit and the date.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_rounds(&self, origin: &Value, path: &Path) -> Result<()> {
        let raw = json!({"origin": origin, "rounds": self.rounds});
        std::fs::write(path, format!("{raw:#}\n"))?;
        Ok(())
    }

    /// Whether all limits are kept.
    ///
    /// # Errors
    /// Those that are not.
    pub fn judge(&self) -> Result<()> {
        let is_said = |limit: &&Limit| !(self.is_driver_bound && limit.name == THROUGHPUT);
        let is_passed = |limit: &&Limit| is_said(limit) && self.found.get(limit.name).is_some_and(|found| limit.is_passed_by(found.median));
        let passed: Vec<_> = LIMITS.iter().filter(is_passed).map(|limit| limit.name).collect();
        if !passed.is_empty() {
            bail!("beyond the limit: {}", passed.join(", "));
        }
        Ok(())
    }
}

impl Limit {
    fn is_passed_by(&self, value: f64) -> bool {
        if self.is_floor { value < self.never } else { value > self.never }
    }

    fn is_reached_by(&self, value: f64) -> bool {
        if self.is_floor { value >= self.aim } else { value <= self.aim }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_flat_and_has_the_range_of_each_median() {
        let mut summary = Summary::default();
        summary.add("cpu_per_request_ratio", &[0.5, 0.3, 0.4]).expect("numbers");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("summary.json");
        summary.write(&path).expect("written");
        let text = std::fs::read_to_string(path).expect("read");
        let read: Value = serde_json::from_str(&text).expect("JSON");
        let expected = json!({"cpu_per_request_ratio": 0.4, "cpu_per_request_ratio_min": 0.3, "cpu_per_request_ratio_max": 0.5});
        assert_eq!(read, expected);
    }

    #[test]
    fn raw_values_stand_in_the_order_of_their_rounds_beside_where_they_come_from() {
        let mut summary = Summary::default();
        summary.add("start_to_ready_ms", &[70.0, 90.0, 80.0]).expect("numbers");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rounds.json");
        summary.write_rounds(&json!({"commit": "abc"}), &path).expect("written");
        let read: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("read")).expect("JSON");
        assert_eq!(read, json!({"origin": {"commit": "abc"}, "rounds": {"start_to_ready_ms": [70.0, 90.0, 80.0]}}));
    }

    #[test]
    fn a_number_beyond_its_limit_fails_the_run_and_one_beyond_its_aim_does_not() {
        let with = |name, value| {
            let mut summary = Summary::default();
            summary.add(name, &[value]).expect("a number");
            (summary.judge().is_ok(), summary.table())
        };
        assert!(with("cpu_per_request_ratio", 0.3).0);
        let (kept, table) = with("cpu_per_request_ratio", 0.45);
        assert!(kept && table.contains("aim missed"));
        let (kept, table) = with("cpu_per_request_ratio", 0.55);
        assert!(!kept && table.contains("NOT KEPT"));
        assert!(with("throughput_ratio", 3.5).0 && !with("throughput_ratio", 2.0).0, "more is better here");
    }

    #[test]
    fn a_round_without_a_number_is_an_error() {
        assert!(Summary::default().add("p99_added_ratio", &[0.5, f64::NAN]).is_err());
        assert!(Summary::default().add("p99_added_ratio", &[]).is_err());
    }
}
