//! The parts of scheduler, kubelet and container runtime for one waypoint: runs a binary as the only container of the Deployment
//! that istiod rendered, with exactly its arguments, environment, files, user and read-only root, in the pod's network.
//!
//! Not enforced: CPU and memory limits, probes and restarts. The user is the Deployment's (1337) where that id exists: always when
//! tests run as root, else only with subordinate ids (`/etc/subuid`, package `uidmap`); otherwise the binary runs as uid 0 of the
//! test's user namespace, without capabilities, which is the caller.
//!
//! Invariant: no container outlives its [`Pod`].

mod container;

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http::StatusCode;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Gid, Pid, Uid, fchown};
use serde_json::Value;

pub use container::{Container, Mount, Placement, Volume};

use crate::istiod::{ControlPlane, exchange, tail};
use crate::wait::{Look, until};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pod.sh");

/// How long a ConfigMap may be missing: istiod writes its root certificate to a new namespace by itself.
const CONFIG_MAP_DEADLINE: Duration = Duration::from_secs(30);

/// A running container and the files it was given.
#[derive(Debug)]
pub struct Pod {
    child: Child,
    exit: Option<ExitStatus>,
    folder: PathBuf,
    container: Container,
}

/// How to run a pod.
#[derive(Debug, Clone)]
pub struct Start<'a> {
    /// The rendered Deployment.
    pub deployment: &'a Value,
    /// The network namespace, one of those given to [`crate::net::enter_or_reexec`].
    pub network: &'a str,
    /// What takes the place of the image's entry point.
    pub binary: &'a Path,
    /// Appended to the container's environment; for a test's own settings.
    pub extra_environment: &'a [(&'a str, &'a str)],
    pub placement: Placement,
}

/// Whether a user id exists in this process's user namespace.
fn is_mapped(map: &str, id: u32) -> bool {
    fs::read_to_string(map).unwrap_or_default().lines().any(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(id))
    })
}

/// The container's ids, or 0 where they do not exist.
fn ids(container: &Container) -> (u32, u32) {
    let exist = is_mapped("/proc/self/uid_map", container.user) && is_mapped("/proc/self/gid_map", container.group);
    if !exist {
        eprintln!("uid {} does not exist in this user namespace: the pod runs as its uid 0, without capabilities", container.user);
        return (0, 0);
    }
    (container.user, container.group)
}

/// A pipe whose other end is copied to `file`; owned by the container's user, so that it can open `/dev/stdout`, as
/// container runtimes arrange it.
fn captured(file: PathBuf, user: u32, group: u32) -> Result<PipeWriter> {
    let (mut reader, writer): (PipeReader, PipeWriter) = io::pipe()?;
    fchown(&writer, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
    let mut file = File::create(file)?;
    thread::spawn(move || io::copy(&mut reader, &mut file));
    Ok(writer)
}

/// Writes a volume's files to `folder`; false for a volume that is empty and writable, which has none.
async fn write_volume(plane: &ControlPlane, container: &Container, mount: &Mount, folder: &Path) -> Result<bool> {
    let files = match &mount.volume {
        Volume::Empty => return Ok(false),
        Volume::Files(files) => files.clone(),
        Volume::Token { path, audience, lifetime_seconds } => {
            let lifetime = Duration::from_secs(*lifetime_seconds);
            let token = plane.kube().token(&container.namespace, &container.service_account, audience, lifetime).await?;
            vec![(path.clone(), token)]
        }
        Volume::ConfigMap { name } => {
            let map = until(&format!("ConfigMap {}/{name}", container.namespace), CONFIG_MAP_DEADLINE, async || {
                let found = plane.get("v1", "ConfigMap", &container.namespace, name).await?;
                Ok(found.map_or_else(|| Look::NotYet("there is none".to_owned()), Look::Done))
            })
            .await?;
            let data = map["data"].as_object().cloned().unwrap_or_default();
            data.into_iter().map(|(key, value)| (key, value.as_str().unwrap_or_default().to_owned())).collect()
        }
    };
    fs::create_dir_all(folder)?;
    for (name, content) in files {
        fs::write(folder.join(name), content)?;
    }
    Ok(true)
}

impl Pod {
    /// Resolves the Deployment, writes its volumes and starts the binary. Output goes to `RUN/pod-NAME/{stdout,stderr}`.
    pub async fn start(plane: &ControlPlane, start: Start<'_>) -> Result<Self> {
        let container = Container::of(start.deployment, &start.placement)?;
        let folder = plane.run().join(format!("pod-{}", start.placement.name));
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let (user, group) = ids(&container);
        let binary = start.binary.canonicalize().with_context(|| start.binary.display().to_string())?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", start.network, "bash", SCRIPT]).arg(&root).arg(&binary);
        command.args([user.to_string(), group.to_string()]);
        command.arg(if container.read_only_root { "read-only" } else { "writable" });
        for mount in &container.mounts {
            let files = folder.join("volumes").join(&mount.name);
            let kept = write_volume(plane, &container, mount, &files).await?;
            command.arg(if kept { format!("files:{}:{}", mount.path, files.display()) } else { format!("empty:{}:", mount.path) });
        }
        command.arg("--").args(container.environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.args(start.extra_environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.arg("--").args(&container.arguments);
        let child = command
            .stdin(Stdio::null())
            .stdout(captured(folder.join("stdout"), user, group)?)
            .stderr(captured(folder.join("stderr"), user, group)?)
            .spawn()
            .context("ip netns exec")?;
        Ok(Self { child, exit: None, folder, container })
    }

    /// The binary's process id (the scripts that start it become it).
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it was started with.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Runs the binary once more in the container, with other arguments, to its end: as `kubectl exec` does, but as root.
    pub async fn run_beside(&self, arguments: &[&str]) -> Result<Output> {
        let environment = fs::read_to_string(format!("/proc/{}/environ", self.id()))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.id().to_string(), "--net", "--mount", "--root", "--wd", "--", "/usr/bin/env", "-i"]);
        command.args(environment.split('\0').filter(|pair| !pair.is_empty())).arg("/waypoint").args(arguments).stdin(Stdio::null());
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// Everything on standard output so far.
    pub fn stdout(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("stdout"))?)
    }

    /// Everything on standard error so far.
    pub fn stderr(&self) -> Result<String> {
        Ok(fs::read_to_string(self.folder.join("stderr"))?)
    }

    /// The folder behind a volume with files, for instance `istio-token` or `istiod-ca-cert`: what is written there the container sees.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("volumes").join(name);
        if folder.is_dir() { Ok(folder) } else { Err(anyhow!("there is no volume {name} with files")) }
    }

    /// Sends a signal to the binary.
    pub fn signal(&self, which: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        signal::kill(id, which).with_context(|| format!("{which} to {id}"))
    }

    /// How the binary ended, if it has.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait()?;
        }
        Ok(self.exit)
    }

    /// Waits for the binary to end.
    pub async fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        until("the pod has ended", deadline, async || {
            Ok(self.exit_status()?.map_or_else(|| Look::NotYet("it runs".to_owned()), Look::Done))
        })
        .await
    }

    /// Waits for 200 from `url`, as a probe of kubelet would ask; an error at once if the binary ends first.
    pub async fn wait_ready(&mut self, url: &str, deadline: Duration) -> Result<()> {
        let log = self.folder.join("stderr");
        until(&format!("{url} answers 200"), deadline, async || {
            if let Some(status) = self.exit_status()? {
                let signal = status.signal().map(|number| format!(" (signal {number})")).unwrap_or_default();
                bail!("the pod ended with {status}{signal}");
            }
            Ok(match exchange::get(url).await {
                Ok(answer) if answer.status == StatusCode::OK => Look::Done(()),
                Ok(answer) => Look::NotYet(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
        .await
        .with_context(|| format!("{} said:\n{}", log.display(), tail(&log)))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Both fail only if the binary is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
