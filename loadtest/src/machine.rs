//! Where and of what a result is: the machine, the commit, the date. And the process's own file limit.
//!
//! Not for measuring processes (`process.rs`).

use std::fs;
use std::process::Command;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

/// Allows this process, and those it starts, as many files as the system lets it.
pub fn raise_file_limit() -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    }
    Ok(())
}

/// What a number means something beside.
#[derive(Debug, Clone, Serialize)]
pub struct Origin {
    pub machine: Machine,
    /// Of the repository that the command ran in, with `-dirty` when tracked files differ; `None` outside of one.
    pub commit: Option<String>,
    /// UTC, RFC 3339.
    pub date: String,
}

/// A machine, as Linux shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// `None` where `/proc/cpuinfo` names no model, as on ARM.
    pub cpu_model: Option<String>,
    pub cores: usize,
    pub kernel: String,
    pub memory_bytes: u64,
}

impl Origin {
    pub fn now() -> anyhow::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
        let meminfo = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's version")?;
        let date = jiff::Timestamp::now().round(jiff::Unit::Second)?.to_string();
        Ok(Self { machine: parse(&cpuinfo, &meminfo, kernel.trim())?, commit: commit(), date })
    }
}

fn parse(cpuinfo: &str, meminfo: &str, kernel: &str) -> anyhow::Result<Machine> {
    let values = |name: &'static str| {
        cpuinfo.lines().filter_map(move |line| line.split_once(':').filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()))
    };
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("/proc/meminfo has no MemTotal")?;
    let kib: u64 = total.trim().strip_suffix(" kB").context("MemTotal is not in kB")?.trim().parse()?;
    Ok(Machine {
        cpu_model: values("model name").next().map(str::to_owned),
        cores: values("processor").count(),
        kernel: kernel.to_owned(),
        memory_bytes: kib * 1024,
    })
}

fn commit() -> Option<String> {
    let head = git(&["rev-parse", "--short", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { head } else { format!("{head}-dirty") })
}

/// What git prints; `None` without git or outside a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_machine_is_told_by_its_model_cores_kernel_and_memory() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU @ 2.0GHz\n\nprocessor\t: 1\nmodel name\t: A CPU @ 2.0GHz\n";
        let machine = parse(cpuinfo, "MemTotal:       2048 kB\nMemFree: 1 kB\n", "6.1.0").unwrap();
        assert_eq!((machine.cpu_model.as_deref(), machine.cores), (Some("A CPU @ 2.0GHz"), 2));
        assert_eq!((machine.kernel.as_str(), machine.memory_bytes), ("6.1.0", 2_097_152));
        assert_eq!(parse("processor : 0\n", "MemTotal: 1 kB", "6").unwrap().cpu_model, None);
        assert!(parse("", "", "").is_err());
    }

    #[test]
    fn this_machine_is_read() {
        let origin = Origin::now().unwrap();
        assert!(origin.machine.cores > 0 && origin.machine.memory_bytes > 0);
        assert!(origin.date.ends_with('Z') && origin.date.len() == "2026-01-01T00:00:00Z".len(), "{}", origin.date);
    }
}
