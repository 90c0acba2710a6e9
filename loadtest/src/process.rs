//! CPU time and memory of another process, from `/proc/PID`.
//!
//! Not here: deciding what to measure. Nothing is defaulted: a file that cannot be read or understood is an error.

use std::fs;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;

/// Ticks per second in `/proc/PID/stat`: `USER_HZ`, which Linux fixes at 100 for programs on all its architectures.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time used since the process began, all threads, those that ended included. Resolution 10 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    pub fn total(&self) -> Duration {
        self.user + self.system
    }

    /// What was used since `earlier`, of the same process.
    pub fn since(&self, earlier: &Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }
}

/// Resident memory: all of it, and with shared pages counted by their share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub rss_bytes: u64,
    pub pss_bytes: u64,
}

/// CPU time of `pid` so far.
pub fn cpu(pid: u32) -> anyhow::Result<Cpu> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_stat(&text).with_context(|| format!("in {path}"))
}

/// Memory of `pid` now. Needs the right to trace it (same user, or root).
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_smaps_rollup(&text).with_context(|| format!("in {path}"))
}

/// Fields 14 and 15 of proc_pid_stat(5). The second field, the command, may itself hold spaces and parentheses.
fn parse_stat(text: &str) -> anyhow::Result<Cpu> {
    let (_, after_command) = text.rsplit_once(')').context("no command in parentheses")?;
    let ticks = |number: usize| -> anyhow::Result<Duration> {
        // The first field after the command is number 3.
        let field = after_command.split_ascii_whitespace().nth(number - 3).ok_or_else(|| anyhow!("no field {number}"))?;
        let ticks: u64 = field.parse().with_context(|| format!("field {number}: {field:?}"))?;
        Ok(Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)))
    };
    Ok(Cpu { user: ticks(14)?, system: ticks(15)? })
}

fn parse_smaps_rollup(text: &str) -> anyhow::Result<Memory> {
    let bytes = |name: &str| -> anyhow::Result<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| anyhow!("no line {name}"))?;
        let kib = value.trim().strip_suffix(" kB").ok_or_else(|| anyhow!("{name}{value} is not in kB"))?;
        Ok(kib.parse::<u64>().with_context(|| format!("{name}{value}"))? * 1024)
    };
    Ok(Memory { rss_bytes: bytes("Rss:")?, pss_bytes: bytes("Pss:")? })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn stat_is_read_past_a_command_with_spaces_and_parentheses() {
        let text = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 9 8 7 6 250 75 3 2 20 0 5 0 12345 1000000 250 18446744073709551615\n";
        assert_eq!(parse_stat(text).unwrap(), Cpu { user: Duration::from_millis(2500), system: Duration::from_millis(750) });
    }

    #[test]
    fn a_stat_that_is_cut_short_or_no_number_is_an_error() {
        assert!(parse_stat("1 (a) S 1 2").is_err());
        assert!(parse_stat("1 a S").is_err());
        assert!(parse_stat("1 (a) S 1 4242 4242 0 -1 4194560 9 8 7 6 x 75 3").is_err());
    }

    #[test]
    fn smaps_rollup_gives_rss_and_pss_and_not_their_parts() {
        let text = "00400000-7ffe rollup [rollup]\nRss:   2048 kB\nPss:   1024 kB\nPss_Dirty:   4 kB\nPss_Anon:   8 kB\n";
        assert_eq!(parse_smaps_rollup(text).unwrap(), Memory { rss_bytes: 2_097_152, pss_bytes: 1_048_576 });
        assert!(parse_smaps_rollup("Rss: 5 kB\n").is_err());
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pid = std::process::id();
        assert!(memory(pid).unwrap().rss_bytes > 0);
        let before = cpu(pid).unwrap();
        while cpu(pid).unwrap().since(&before).total() < Duration::from_millis(20) {}
    }
}
