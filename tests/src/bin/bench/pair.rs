//! Both proxies of one mesh, started by the program `envoy_mesh`, which also counts what they log and trace.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::{DESTINATION, Loadtest};
use super::scale::resident_bytes;

/// How long what was sent may take to arrive.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Ours and Envoy.
#[derive(Debug)]
pub struct Pair {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// As `loadtest` takes them.
    pub targets: [String; 2],
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It ends both proxies when it is asked to, not when it is killed. One that is gone already needs neither.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _is_gone = kill(Pid::from_raw(pid), Signal::SIGTERM).is_err();
        }
        drop(self.child.wait());
    }
}

impl Pair {
    /// Starts both with these features, on one processor.
    ///
    /// # Errors
    /// One of them does not start.
    pub fn start(features: &str, core: Option<usize>, loadtest: &Loadtest) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("envoy_mesh");
        ensure!(program.exists(), "{} is not built", program.display());
        let file = |name: &str| -> PathBuf { loadtest.certificates.join(name) };
        let mut command = Command::new(program);
        command.arg(file("root-cert.pem")).arg(file("root-key.pem")).arg(DESTINATION).arg(features);
        if let Some(core) = core {
            command.arg("--pin").arg(core.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting both proxies")?;
        let input = child.stdin.take().context("no standard input")?;
        let mut output = BufReader::new(child.stdout.take().context("no standard output")?);
        let targets = [line(&mut output)?, line(&mut output)?];
        ensure!(targets.iter().all(|target| target.starts_with("name=")), "the proxies did not start: {targets:?}");
        Ok(Self { child, input, output, targets })
    }

    /// Resident memory of both now.
    ///
    /// # Errors
    /// One of them is gone.
    pub fn resident_bytes(&self) -> Result<[f64; 2]> {
        let of = |target: &String| -> Result<f64> {
            let (_, pid) = target.rsplit_once("pid=").context("a target without pid")?;
            resident_bytes(pid.parse()?)
        };
        Ok([of(&self.targets[0])?, of(&self.targets[1])?])
    }

    /// Shares of log lines and spans that arrived of so many requests to ours and to Envoy.
    ///
    /// # Errors
    /// The counts cannot be had.
    pub async fn delivered(&mut self, sent: [f64; 2]) -> Result<Vec<(String, f64)>> {
        let deadline = Instant::now() + ARRIVAL_TIMEOUT;
        loop {
            let counts = self.counts()?;
            let shares: Vec<_> = NAMES.into_iter().zip(counts).zip([sent[0], sent[1], sent[0], sent[1]]).collect();
            let is_complete = shares.iter().all(|((_, count), sent)| count >= sent);
            if is_complete || Instant::now() > deadline {
                return Ok(shares.into_iter().map(|((name, count), sent)| (name.to_owned(), count / sent)).collect());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn counts(&mut self) -> Result<[f64; 4]> {
        writeln!(self.input, "counts")?;
        let text = line(&mut self.output)?;
        let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.split_once('=')?.1.parse().ok()).collect();
        numbers.try_into().map_err(|_| anyhow::anyhow!("{text:?} is not four counts"))
    }
}

/// In the order in which they are counted.
const NAMES: [&str; 4] = ["our log lines", "Envoy's log lines", "our spans", "Envoy's spans"];

fn line(output: &mut impl BufRead) -> Result<String> {
    let mut text = String::new();
    output.read_line(&mut text)?;
    Ok(text.trim_end().to_owned())
}
