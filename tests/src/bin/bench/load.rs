//! Runs `loadtest` and reads what it found.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::pair::Pair;

const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;
/// Where the workload listens, and the CONNECT authority that leads to it.
pub const WORKLOAD: &str = "127.0.0.33:15008";
pub const DESTINATION: &str = "127.0.0.33:8080";
/// Identities of the peers.
const PEERS: [&str; 3] = ["client", "waypoint", "workload"];

/// The load generator, its certificates, and the workload that all rounds share.
#[derive(Debug)]
pub struct Loadtest {
    binary: PathBuf,
    pub certificates: PathBuf,
    out: PathBuf,
    workload: Child,
}

impl Drop for Loadtest {
    fn drop(&mut self) {
        // Nothing is left to do about a child that cannot be killed.
        drop(self.workload.kill());
        drop(self.workload.wait());
    }
}

impl Loadtest {
    /// Finds `loadtest` beside this program, makes certificates if there are none, and starts the workload.
    ///
    /// # Errors
    /// It is not built, or does not start.
    pub fn new(out: &Path) -> Result<Self> {
        let binary = std::env::current_exe()?.with_file_name("loadtest");
        ensure!(binary.exists(), "{} is not built", binary.display());
        let certificates = PathBuf::from(".build/loadtest/certs");
        if !certificates.join("root-key.pem").exists() {
            let peers = PEERS.map(|peer| format!("{peer}=spiffe://cluster.local/ns/load/sa/{peer}"));
            let made = Command::new(&binary).args(["certs", "--out"]).arg(&certificates).args(peers).status()?;
            ensure!(made.success(), "making certificates failed");
        }
        let file = |name: &str| certificates.join(name);
        let workload = Command::new(&binary)
            .args(["workload", "--listen", WORKLOAD, "--cert"])
            .arg(file("workload.pem"))
            .arg("--key")
            .arg(file("workload.key"))
            .arg("--root")
            .arg(file("root-cert.pem"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the workload")?;
        Ok(Self { binary, certificates, out: out.to_owned(), workload })
    }

    /// The machine, the commit and the date, as the results of `loadtest` carry them.
    ///
    /// # Errors
    /// `loadtest` cannot tell.
    pub fn origin(&self) -> Result<Value> {
        let output = Command::new(&self.binary).arg("origin").output().context("running loadtest")?;
        ensure!(output.status.success(), "loadtest origin failed, {}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// A load of its own, on a proxy at this address.
    pub fn run_command(&self, waypoint: SocketAddr, destination: &str) -> Command {
        let file = |name: &str| self.certificates.join(name);
        let mut command = Command::new(&self.binary);
        command.args(["run", "--target", destination, "--waypoint"]).arg(waypoint.to_string());
        command.arg("--cert").arg(file("client.pem")).arg("--key").arg(file("client.key")).arg("--root").arg(file("root-cert.pem"));
        command
    }

    /// Compares both proxies under a scenario.
    ///
    /// # Errors
    /// The comparison failed.
    pub fn compare(&self, scenario: &str, pair: &Pair, options: &[&str]) -> Result<Comparison> {
        self.run(scenario, pair.targets.to_vec(), options)
    }

    /// As [`Self::compare`], with the workload itself as a third.
    ///
    /// # Errors
    /// The comparison failed.
    pub fn compare_with_direct(&self, scenario: &str, pair: &Pair, options: &[&str]) -> Result<Comparison> {
        let direct = format!("name=workload,address={WORKLOAD},destination={DESTINATION},pid={}", self.workload.id());
        self.run(scenario, pair.targets.iter().cloned().chain([direct]).collect(), options)
    }

    fn run(&self, scenario: &str, targets: Vec<String>, options: &[&str]) -> Result<Comparison> {
        let json = self.out.join(format!("{scenario}.json"));
        let mut command = Command::new(&self.binary);
        command.arg("compare").arg("--scenario").arg(format!("loadtest/scenarios/{scenario}.toml"));
        command.args(targets.iter().flat_map(|target| ["--target", target]));
        command.args(["--baseline", "envoy", "--workload-running", "--workload", WORKLOAD, "--destination", DESTINATION]);
        command.arg("--workload-pid").arg(self.workload.id().to_string()).arg("--certs").arg(&self.certificates);
        command.args(options).arg("--json").arg(&json).arg("--markdown").arg(json.with_extension("md"));
        let status = command.status().context("running loadtest")?;
        ensure!(status.success(), "loadtest compare --scenario {scenario} failed, {status}");
        let text = std::fs::read_to_string(&json).with_context(|| json.display().to_string())?;
        Ok(Comparison(serde_json::from_str(&text)?))
    }
}

/// What a comparison found.
#[derive(Debug)]
pub struct Comparison(Value);

impl Comparison {
    fn target(&self, name: &str) -> Result<&Value> {
        let targets = self.0["targets"].as_array().context("no targets")?;
        targets.iter().find(|target| target["name"] == name).with_context(|| format!("no target {name}"))
    }

    fn rounds(&self, name: &str) -> Result<&Vec<Value>> {
        self.target(name)?["rounds"].as_array().context("no rounds")
    }

    /// A number of each round: of the load, or of the process.
    ///
    /// # Errors
    /// A round has no such number.
    pub fn by_round(&self, name: &str, field: &str) -> Result<Vec<f64>> {
        let number = |round: &Value| round[field].as_f64().or_else(|| round["processes"][0][field].as_f64());
        self.rounds(name)?.iter().map(|round| number(round).with_context(|| format!("a round of {name} has no {field}"))).collect()
    }

    /// Ours over Envoy's of the same round.
    ///
    /// # Errors
    /// As [`Self::by_round`].
    pub fn ratios(&self, field: &str) -> Result<Vec<f64>> {
        let (ours, envoy) = (self.by_round("ours", field)?, self.by_round("envoy", field)?);
        Ok(ours.into_iter().zip(envoy).map(|(ours, envoy)| ours / envoy).collect())
    }

    /// The same of the resident memory at a moment.
    ///
    /// # Errors
    /// A round has no such moment.
    pub fn process_ratios(&self, moment: &str) -> Result<Vec<f64>> {
        let (ours, envoy) = (self.resident("ours", moment)?, self.resident("envoy", moment)?);
        Ok(ours.into_iter().zip(envoy).map(|(ours, envoy)| ours / envoy).collect())
    }

    fn resident(&self, name: &str, moment: &str) -> Result<Vec<f64>> {
        let bytes = |round: &Value| round["processes"][0][moment]["rss_bytes"].as_f64();
        self.rounds(name)?.iter().map(|round| bytes(round).with_context(|| format!("a round of {name} has no memory {moment}"))).collect()
    }

    /// From before to the highest, MiB, by round.
    ///
    /// # Errors
    /// A round does not say.
    pub fn growth_mib(&self, name: &str) -> Result<Vec<f64>> {
        let (before, highest) = (self.resident(name, "before")?, self.resident(name, "highest")?);
        Ok(before.into_iter().zip(highest).map(|(before, highest)| (highest - before) / BYTES_PER_MIB).collect())
    }

    /// The median of a number over all rounds.
    ///
    /// # Errors
    /// There is none.
    pub fn median(&self, name: &str, field: &str) -> Result<f64> {
        self.target(name)?[field]["median"].as_f64().with_context(|| format!("{name} has no {field}"))
    }

    /// Requests that ours and Envoy were sent in all.
    ///
    /// # Errors
    /// It was not counted.
    pub fn sent(&self) -> Result<[f64; 2]> {
        let sent = |name: &str| self.target(name)?["requests_sent_total"].as_f64().with_context(|| format!("{name}: not counted"));
        Ok([sent("ours")?, sent("envoy")?])
    }

    /// Targets whose rate is near what the driver reaches alone.
    pub fn driver_bound(&self) -> Vec<String> {
        let targets = self.0["targets"].as_array().into_iter().flatten();
        targets.filter(|target| target["driver_bound"] == true).filter_map(|target| target["name"].as_str().map(str::to_owned)).collect()
    }
}
