//! What a comparison measures: a proxy process with an HBONE address, started by us or by someone else.
//!
//! Not here: how Envoy is set up (`target/envoy.rs`). Invariant: a process that we started ends with its [`Running`].

pub mod envoy;

use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

use crate::run::outcome::WatchedProcess;

/// How long a started process may take until it accepts connections.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two tries to connect.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long a process may take to end after SIGTERM before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A target as the command line names it: `name=…,address=IP:15008,destination=VIP:port[,pid=…][,host=…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpec {
    pub name: Option<String>,
    pub address: SocketAddr,
    pub destination: String,
    /// `None` when we start it.
    pub pid: Option<u32>,
    /// Host of the requests to it, when it is not the load's.
    pub host: Option<String>,
}

/// Reads a [`TargetSpec`]; every key at most once, unknown keys refused.
pub fn parse_target(text: &str) -> Result<TargetSpec, String> {
    let (mut name, mut address, mut destination, mut pid, mut host) = (None, None, None, None, None);
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not key=value"))?;
        let slot = match key {
            "name" => &mut name,
            "address" => &mut address,
            "destination" => &mut destination,
            "pid" => &mut pid,
            "host" => &mut host,
            _ => return Err(format!("unknown key {key:?}: expected name, address, destination, pid or host")),
        };
        if slot.replace(value.to_owned()).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    let address = address.ok_or("address=IP:15008 is missing")?;
    Ok(TargetSpec {
        name,
        address: address.parse().map_err(|error| format!("address {address:?}: {error}"))?,
        destination: destination.ok_or("destination=VIP:port is missing")?,
        pid: pid.map(|pid| pid.parse().map_err(|error| format!("pid {pid:?}: {error}"))).transpose()?,
        host,
    })
}

/// A target that runs.
#[derive(Debug)]
pub struct Target {
    pub process: WatchedProcess,
    pub address: SocketAddr,
    pub destination: String,
    pub host: Option<String>,
    /// Kept for its end; `None` for a process of someone else.
    _running: Option<Running>,
}

impl Target {
    /// A process that someone else runs. It must be named and have a pid.
    pub fn external(spec: TargetSpec, default_name: Option<&str>) -> anyhow::Result<Self> {
        let name = spec.name.or_else(|| default_name.map(str::to_owned)).context("a target needs name=…")?;
        let pid = spec.pid.with_context(|| format!("target {name} needs pid=… when no command starts it"))?;
        let process = WatchedProcess { name, pid };
        Ok(Self { process, address: spec.address, destination: spec.destination, host: spec.host, _running: None })
    }

    /// A process that we started; waits until it accepts connections.
    pub async fn started(mut running: Running, spec: TargetSpec, default_name: &str) -> anyhow::Result<Self> {
        running.wait_until_accepting(spec.address).await?;
        let name = spec.name.unwrap_or_else(|| default_name.to_owned());
        let process = WatchedProcess { name, pid: running.pid() };
        Ok(Self { process, address: spec.address, destination: spec.destination, host: spec.host, _running: Some(running) })
    }
}

/// A child process: asked to end when dropped, and killed if it does not.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
}

impl Running {
    pub fn start(what: &str, command: &mut Command) -> anyhow::Result<Self> {
        let child = command.spawn().with_context(|| format!("starting {what}"))?;
        Ok(Self { what: what.to_owned(), child })
    }

    /// Starts a shell command line; the process is the command's own, not the shell's. Its stdout is discarded: ours is the
    /// report.
    pub fn start_command_line(what: &str, line: &str) -> anyhow::Result<Self> {
        Self::start(what, Command::new("sh").arg("-c").arg(format!("exec {line}")).stdin(Stdio::null()).stdout(Stdio::null()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `address` accepts TCP. Fails if the process ends first or takes too long.
    pub async fn wait_until_accepting(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before it accepted on {address}", self.what);
            }
            if TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} does not accept on {address} after {READY_TIMEOUT:?}", self.what);
            }
            tokio::time::sleep(READY_POLL_INTERVAL).await;
        }
    }

    fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(READY_POLL_INTERVAL);
        }
        self.child.kill()?;
        Ok(self.child.wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("ending {}: {error:#}", self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_target_is_read_with_its_parts_in_any_order() {
        let spec = parse_target("pid=7,host=web,destination=10.0.0.1:80,address=127.0.0.1:15008,name=a").unwrap();
        assert_eq!(
            spec,
            TargetSpec {
                name: Some("a".to_owned()),
                address: "127.0.0.1:15008".parse().unwrap(),
                destination: "10.0.0.1:80".to_owned(),
                pid: Some(7),
                host: Some("web".to_owned()),
            }
        );
    }

    #[test]
    fn missing_unknown_and_double_parts_are_refused() {
        for bad in ["", "address=1.1.1.1:1", "destination=a:1", "address=x,destination=a:1", "address=1.1.1.1:1,destination=a:1,pid=x"] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
        assert!(parse_target("address=1.1.1.1:1,destination=a:1,colour=red").is_err());
        assert!(parse_target("address=1.1.1.1:1,destination=a:1,destination=b:1").is_err());
    }

    #[tokio::test]
    async fn a_process_that_ends_before_it_accepts_is_an_error_and_a_running_one_is_stopped() {
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut ended = Running::start_command_line("false", "false").unwrap();
        assert!(ended.wait_until_accepting(unused).await.unwrap_err().to_string().contains("ended with"));
        let mut sleeping = Running::start_command_line("sleep", "sleep 600").unwrap();
        assert!(!sleeping.stop().unwrap().success());
    }
}
