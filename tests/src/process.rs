//! The real binary as a child: started as the rendered Deployment starts it, with its files below a folder of its own and its ports on a
//! loopback address of its own. No root, no namespace; see [`crate::pod`] for the pod with everything.
//!
//! Invariants: no child outlives its [`Waypoint`]; the last [`LINES_MAX`] lines it writes are kept.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::peer::{Answer, plain_get};
use crate::pod::{Container, Placement, Volume};
use crate::wait::{Look, until};

/// The Deployment that a real istiod rendered.
const DEPLOYMENT: &str = include_str!("../fixtures/istiod-1.31/waypoint-deployment.yaml");
/// Its namespace there, and the one of the recorded mesh.
const NAMESPACES: (&str, &str) = ("fresh", "shop");
/// Names a binary to use instead of building one.
const BINARY_VARIABLE: &str = "WAYPOINT_BINARY";

/// The waypoint's port for HBONE.
pub const HBONE_PORT: u16 = 15008;
/// Readiness.
pub const STATUS_PORT: u16 = 15021;
/// Metrics, and the control handlers.
pub const AGENT_PORT: u16 = 15020;
/// Metrics.
pub const STATS_PORT: u16 = 15090;

/// How long starting may take in a test: with a CA at hand it is a fraction of a second.
pub const READY_DEADLINE: Duration = Duration::from_secs(20);

/// Lines kept of each stream: more than any test looks at, and a bound for a demo that runs for days.
const LINES_MAX: usize = 50_000;

/// Bytes at a time of what is only counted: more than a pipe holds by default.
const COUNTED_BYTES: usize = 256 * 1024;

/// The last lines that a child wrote.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// Lines that were dropped before the first one here.
    n_dropped: usize,
    lines: VecDeque<String>,
}

impl Lines {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of them.
    #[must_use]
    pub fn all(&self) -> Vec<String> {
        self.kept().lines.iter().cloned().collect()
    }

    /// What came after the first `n_seen` lines ever, as far as it is kept; moves `n_seen` to the end.
    pub fn after(&self, n_seen: &mut usize) -> Vec<String> {
        let kept = self.kept();
        let new = kept.lines.iter().skip(n_seen.saturating_sub(kept.n_dropped)).cloned().collect();
        *n_seen = kept.n_dropped + kept.lines.len();
        new
    }

    /// Lines ever written, kept or not.
    #[must_use]
    pub fn n_ever(&self) -> usize {
        let kept = self.kept();
        kept.n_dropped + kept.lines.len()
    }

    /// Counts lines and keeps none, for as little as reading costs.
    pub(crate) fn count(&self, mut source: impl Read + Send + 'static) {
        let lines = self.clone();
        thread::spawn(move || {
            let mut chunk = vec![0; COUNTED_BYTES];
            while let Ok(n_read @ 1..) = source.read(&mut chunk) {
                let n_lines = chunk[..n_read].iter().filter(|byte| **byte == b'\n').count();
                lines.kept().n_dropped += n_lines;
            }
        });
    }

    pub(crate) fn follow(&self, source: impl Read + Send + 'static) {
        let lines = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(std::result::Result::ok) {
                let mut kept = lines.kept();
                if kept.lines.len() == LINES_MAX {
                    kept.lines.pop_front();
                    kept.n_dropped += 1;
                }
                kept.lines.push_back(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }
}

/// How to start one.
#[derive(Debug)]
pub struct Launch {
    /// `INSTANCE_IP`, and where all its ports are.
    pub address: Ipv4Addr,
    /// istiod, which is the CA too.
    pub discovery: SocketAddr,
    /// Content of `root-cert.pem`.
    pub root_pem: String,
    /// More environment; what is `None` is taken away.
    pub environment: BTreeMap<String, Option<String>>,
    /// More annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Extra of PROXY_CONFIG, such as `terminationDrainDuration`.
    pub proxy_config: serde_json::Map<String, Value>,
    /// Standard output is counted, not kept.
    pub counts_output: bool,
    /// A command that runs the binary, such as `taskset -c 1`; it has to become it.
    pub runner: Vec<String>,
    /// At the end, writes what it wrote to standard error, which a test runner shows for tests that fail.
    pub tells_at_end: bool,
}

/// A running waypoint.
#[derive(Debug)]
pub struct Waypoint {
    child: Child,
    exit: Option<ExitStatus>,
    address: Ipv4Addr,
    root: TempDir,
    output: Lines,
    log: Lines,
    tells_at_end: bool,
    environment: BTreeMap<String, String>,
}

/// The waypoint's binary, built in the profile and target folder of whoever asks.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!("{error}"))
}

fn build() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(path.into());
    }
    let executable = std::env::current_exe()?;
    // target/PROFILE/demo, or target/PROFILE/deps/it-HASH.
    let mut folder = executable.parent().context("an executable in no folder")?;
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().context("no folder of the profile")?;
    }
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let target = folder.parent().context("no target folder")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "waypoint", "--bin", "waypoint", "--profile", profile, "--target-dir"]).arg(target);
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("running cargo")?;
    let built = folder.join("waypoint");
    if !status.success() || !built.exists() {
        bail!("building the waypoint failed ({status}); {BINARY_VARIABLE} names another binary");
    }
    Ok(built)
}

impl Launch {
    fn container(&self) -> Result<Container> {
        let deployment: Value = serde_yaml_ng::from_str(&DEPLOYMENT.replace(NAMESPACES.0, NAMESPACES.1))?;
        let placement = Placement {
            name: "waypoint-0".to_owned(),
            address: IpAddr::V4(self.address),
            node_name: "node-a".to_owned(),
            node_address: IpAddr::V4(self.address),
        };
        Container::of(&deployment, &placement)
    }

    fn environment(&self, container: &Container, root: &Path) -> BTreeMap<String, String> {
        let mut environment: BTreeMap<_, _> = container.environment.iter().cloned().collect();
        let mut proxy_config = self.proxy_config.clone();
        proxy_config.insert("discoveryAddress".to_owned(), self.discovery.to_string().into());
        proxy_config.entry("tracing").or_insert_with(|| serde_json::json!({ "sampling": 100 }));
        environment.insert("PROXY_CONFIG".to_owned(), Value::Object(proxy_config).to_string());
        environment.insert("CA_ADDR".to_owned(), self.discovery.to_string());
        environment.insert("WAYPOINT_ROOT".to_owned(), root.display().to_string());
        environment.insert("WAYPOINT_BIND_ADDRESS".to_owned(), self.address.to_string());
        for (name, value) in &self.environment {
            match value {
                Some(value) => environment.insert(name.clone(), value.clone()),
                None => environment.remove(name),
            };
        }
        environment
    }

    fn write_files(&self, container: &Container, root: &Path) -> Result<()> {
        for mount in &container.mounts {
            let folder = root.join(mount.path.trim_start_matches('/'));
            fs::create_dir_all(&folder)?;
            let files = match &mount.volume {
                Volume::Empty => continue,
                Volume::Files(files) => files.clone(),
                Volume::Token { path, .. } => {
                    vec![(path.clone(), format!("{}/{}", container.namespace, container.service_account))]
                }
                Volume::ConfigMap { .. } => vec![("root-cert.pem".to_owned(), self.root_pem.clone())],
            };
            for (name, mut content) in files {
                if mount.path == "/etc/istio/pod" && name == "annotations" {
                    // One a line, quoted.
                    content.extend(self.annotations.iter().map(|(name, value)| format!("\n{name}={value:?}")));
                }
                fs::write(folder.join(name), content)?;
            }
        }
        Ok(())
    }
}

impl Waypoint {
    /// Starts it; it may not be ready for a while.
    pub async fn start(launch: &Launch) -> Result<Self> {
        let binary = tokio::task::spawn_blocking(binary).await??;
        let root = tempfile::tempdir()?;
        let container = launch.container()?;
        launch.write_files(&container, root.path())?;
        let environment = launch.environment(&container, root.path());
        let mut words = launch.runner.iter().map(PathBuf::from).chain([binary.clone()]);
        let mut child = Command::new(words.next().unwrap_or_default())
            .args(words)
            .args(&container.arguments)
            .env_clear()
            .envs(&environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        let (output, log) = (Lines::default(), Lines::default());
        let standard_output = child.stdout.take().context("no standard output")?;
        if launch.counts_output {
            output.count(standard_output)
        } else {
            output.follow(standard_output)
        }
        log.follow(child.stderr.take().context("no standard error")?);
        Ok(Self { child, exit: None, address: launch.address, root, output, log, tells_at_end: launch.tells_at_end, environment })
    }

    /// Runs the binary once more in this pod, with other arguments, to its end.
    pub async fn run_beside(&self, arguments: &[&str]) -> Result<Output> {
        let binary = tokio::task::spawn_blocking(binary).await??;
        let mut command = Command::new(binary);
        command.args(arguments).env_clear().envs(&self.environment).stdin(Stdio::null());
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// A port of it.
    #[must_use]
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }

    /// Where HBONE is spoken.
    #[must_use]
    pub fn hbone(&self) -> SocketAddr {
        self.port(HBONE_PORT)
    }

    /// The folder that stands for the pod's root.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output: the access log.
    #[must_use]
    pub fn output(&self) -> Vec<String> {
        self.output.all()
    }

    /// The lines of [`Self::output`], for those who follow them.
    #[must_use]
    pub fn output_lines(&self) -> &Lines {
        &self.output
    }

    /// What it wrote to standard error: its own log.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }

    /// What `/healthz/ready` says.
    pub async fn readiness(&self) -> Result<Answer> {
        plain_get(self.port(STATUS_PORT), "/healthz/ready").await
    }

    /// Waits until it is ready; fails at once if it exits.
    pub async fn ready(&mut self) -> Result<()> {
        let (address, log) = (self.port(STATUS_PORT), self.log.clone());
        until("a ready waypoint", READY_DEADLINE, async || {
            if let Some(status) = self.child.try_wait()? {
                self.exit = Some(status);
                bail!("the waypoint ended, {status}:\n{}", log.all().join("\n"));
            }
            Ok(match plain_get(address, "/healthz/ready").await {
                Ok(answer) if answer.status.is_success() => Look::Done(()),
                Ok(answer) => Look::NotYet(format!("{} {}\n{}", answer.status, answer.text(), log.all().join("\n"))),
                Err(error) => Look::NotYet(format!("{error:#}\n{}", log.all().join("\n"))),
            })
        })
        .await
    }

    /// The page of metrics on port 15020.
    pub async fn metrics(&self) -> Result<String> {
        let answer = plain_get(self.port(AGENT_PORT), "/stats/prometheus").await?;
        if !answer.status.is_success() {
            bail!("/stats/prometheus was answered {}", answer.status);
        }
        Ok(answer.text())
    }

    /// Waits for a line of metrics that `is_it`.
    pub async fn metric(&self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        until(what, Duration::from_secs(10), async || {
            let page = self.metrics().await?;
            let found = page.lines().find(|line| is_it(line)).map(str::to_owned);
            Ok(found.map_or_else(
                || Look::NotYet(page.lines().filter(|line| line.starts_with("istio_")).collect::<Vec<_>>().join("\n")),
                Look::Done,
            ))
        })
        .await
    }

    /// Waits for a line of the access log that is JSON and `is_it`; the line as it was written comes with it.
    pub async fn access_line(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<(String, Value)> {
        until(what, Duration::from_secs(10), async || {
            let lines = self.output();
            let parsed = lines.iter().filter_map(|line| Some((line.clone(), serde_json::from_str(line).ok()?)));
            let found = parsed.into_iter().find(|(_, value)| is_it(value));
            Ok(found.map_or_else(|| Look::NotYet(lines.join("\n")), Look::Done))
        })
        .await
    }

    /// Waits for a line of its own log that contains `text`.
    pub async fn log_line(&self, text: &str) -> Result<String> {
        until(&format!("a log line with {text:?}"), Duration::from_secs(10), async || {
            let lines = self.log();
            let found = lines.iter().find(|line| line.contains(text)).cloned();
            Ok(found.map_or_else(|| Look::NotYet(lines.join("\n")), Look::Done))
        })
        .await
    }

    /// Memory it holds, in bytes (`VmRSS`).
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kibibytes * 1024)
    }

    /// Asks it to drain and end.
    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a process id out of range")?;
        Ok(signal::kill(Pid::from_raw(pid), Signal::SIGTERM)?)
    }

    /// Waits for its end.
    pub async fn exited(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let log = self.log.clone();
        until("the waypoint's end", deadline, async || {
            Ok(match self.child.try_wait()? {
                Some(status) => {
                    self.exit = Some(status);
                    Look::Done(status)
                }
                None => Look::NotYet(format!("it runs\n{}", log.all().join("\n"))),
            })
        })
        .await
    }
}

/// A code and no signal: how a process ends that ended itself.
#[must_use]
pub fn exit_code(status: ExitStatus) -> Option<i32> {
    if status.signal().is_some() { None } else { status.code() }
}

impl Drop for Waypoint {
    fn drop(&mut self) {
        if self.exit.is_none() {
            // Nothing is left to do about a child that cannot be killed.
            drop(self.child.kill());
            drop(self.child.wait());
        }
        if self.tells_at_end {
            eprintln!("--- the waypoint's log\n{}\n--- its access log\n{}", self.log().join("\n"), self.output().join("\n"));
        }
    }
}
