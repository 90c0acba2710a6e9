//! A server that a test starts and that does not outlive it. Its output goes to a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::StatusCode;

use super::exchange;
use crate::wait::{Look, until};

/// How much of a log an error shows.
const LOG_TAIL_BYTES_MAX: usize = 4096;

/// A child process, killed on drop.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

/// The last part of a file, for messages.
pub(crate) fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let start = text.len().saturating_sub(LOG_TAIL_BYTES_MAX);
    String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned()
}

impl Server {
    /// Starts `command` with standard output and error appended to `run/NAME.log`.
    pub fn start(name: &'static str, run: &Path, command: &mut Command) -> Result<Self> {
        let log = run.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).with_context(|| format!("{}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        Ok(Self { name, child, log })
    }

    /// An error with the end of the log if the server has exited.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} exited with {status}:\n{}", self.name, tail(&self.log)),
            None => Ok(()),
        }
    }

    /// Waits for 200 from a plain HTTP address.
    pub async fn ready(&mut self, url: &str, deadline: Duration) -> Result<()> {
        let what = format!("{} answers at {url}", self.name);
        until(&what, deadline, async || {
            self.check()?;
            Ok(match exchange::get(url).await {
                Ok(answer) if answer.status == StatusCode::OK => Look::Done(()),
                Ok(answer) => Look::NotYet(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))),
                Err(error) => Look::NotYet(format!("{error:#}")),
            })
        })
        .await
        .with_context(|| format!("{} said:\n{}", self.log.display(), tail(&self.log)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if the child is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
