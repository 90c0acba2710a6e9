//! A thousand changes of configuration, twenty a second, under load: what they cost requests, long-lived streams and memory.
//!
//! Ours alone: the steady state before is what it is compared with. Invariant: a request that is not answered with 200, and a stream that is
//! not usable afterwards, is counted as lost.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tests::fake_istiod::Kind;
use tests::scale::{change_route, lead_to};
use tests::scenario::{Mesh, WEB};
use tests::wait::{Look, until};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::load::{DESTINATION, Loadtest};
use super::scale::{mesh_pki, pinned, resident_bytes, settle, with_policies};
use super::summary::Summary;

const SERVICES: u32 = 100;
const CHANGES: usize = 1_000;
const CHANGE_INTERVAL: Duration = Duration::from_millis(50);
/// Different states of the configuration that follow each other.
const STATES: u32 = 8;
/// How long an answer to a push may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a load may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(300);
const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;

/// Requests a second, over so many streams.
const REQUESTS: [&str; 10] =
    ["--scenario", "loadtest/scenarios/latency.toml", "--rate", "1000", "--streams", "64", "--connections", "4", "--warmup", "3s"];
const STEADY: [&str; 2] = ["--duration", "20s"];
/// Longer than the changes take.
const DURING: [&str; 2] = ["--duration", "55s"];
/// Tunnels that are open all the time.
const STREAMS: [&str; 8] = ["--scenario", "loadtest/scenarios/idle-10k.toml", "--streams", "1000", "--connections", "16", "--hold", "200s"];

/// Runs it.
pub async fn measure(summary: &mut Summary, loadtest: &Loadtest, out: &Path, core: Option<usize>) -> Result<()> {
    let builder = pinned(Mesh::builder("07-telemetry")?, core).pki(mesh_pki(loadtest)?);
    let mesh = builder.edit(|scenario| lead_to(scenario, DESTINATION))?.edit(|scenario| with_policies(scenario, SERVICES))?.start().await?;
    let run = |options: &[&[&str]], name: &str| Run::start(loadtest, &mesh, &options.concat(), out.join(name));
    let mut streams = run(&[&STREAMS], "changes-streams.json")?;
    let steady = run(&[&REQUESTS, &STEADY], "changes-steady.json")?.outcome().await?;
    let before = resident_at_rest(&mesh).await?;
    let mut under_way = run(&[&REQUESTS, &DURING], "changes-during.json")?;
    let begin = Instant::now();
    let n_answers = change(&mesh).await?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(under_way.is_running()?, "the changes took {seconds:.0} s, longer than the load");
    println!("changes: {n_answers} of {CHANGES} were answered in {seconds:.1} s");
    ensure!(n_answers * 10 >= CHANGES * 9, "changes were put together: too few were answered");
    let during = under_way.outcome().await?;
    let after = resident_at_rest(&mesh).await?;
    ensure!(streams.is_running()?, "the tunnels ended before memory was read");
    let streams = streams.outcome().await?;
    let unusable = number(&streams, "sampled")? - number(&streams, "usable")?;
    summary.add("changes_p99_ratio", &[number(&during, "p99_us")? / number(&steady, "p99_us")?])?;
    summary.add("changes_lost", &[failures(&steady)? + failures(&during)? + failures(&streams)? + unusable])?;
    summary.add("changes_growth_mib", &[(after - before) / BYTES_PER_MIB])
}

/// Memory once nothing is worked on, and what was needed meanwhile has gone back.
async fn resident_at_rest(mesh: &Mesh) -> Result<f64> {
    settle(mesh.waypoint.pid()).await?;
    sleep(super::REST).await;
    resident_bytes(mesh.waypoint.pid())
}

/// One route after the other. Returns how many of the pushes were answered, each by an ACK.
async fn change(mesh: &Mesh) -> Result<usize> {
    let mut states = Vec::new();
    for state in 0..STATES {
        let mut scenario = mesh.scenario().clone();
        change_route(&mut scenario, state, state + 1)?;
        states.push(scenario.encoded(Kind::Listener, |name, _| name == "main_internal")?);
    }
    let mut ticks = interval(CHANGE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let n_before = answers(mesh)?;
    let mut last = 0;
    for state in states.iter().cycle().take(CHANGES) {
        ticks.tick().await;
        last = mesh.istiod.set(Kind::Listener, state.clone());
    }
    mesh.istiod.reply(Kind::Listener, last, ANSWER_TIMEOUT).await?;
    Ok(answers(mesh)? - n_before)
}

fn answers(mesh: &Mesh) -> Result<usize> {
    let replies: Vec<_> = mesh.istiod.replies().into_iter().filter(|reply| reply.kind == Kind::Listener).collect();
    match replies.iter().find_map(|reply| reply.refusal.as_ref()) {
        Some(refusal) => bail!("a change was refused: {refusal}"),
        None => Ok(replies.len()),
    }
}

/// A load that runs beside us.
struct Run {
    child: Child,
    json: PathBuf,
}

impl Run {
    fn start(loadtest: &Loadtest, mesh: &Mesh, options: &[&str], json: PathBuf) -> Result<Self> {
        let child = loadtest.run_command(mesh.hbone(), WEB).args(options).arg("--json").arg(&json).spawn();
        Ok(Self { child: child.context("running loadtest")?, json })
    }

    fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    async fn outcome(mut self) -> Result<Value> {
        let status = until("loadtest ends", RUN_TIMEOUT, async || {
            Ok(self.child.try_wait()?.map_or_else(|| Look::NotYet("it runs".to_owned()), Look::Done))
        })
        .await?;
        ensure!(status.success(), "loadtest run failed, {status}");
        Ok(serde_json::from_str(&std::fs::read_to_string(&self.json)?)?)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Nothing is left to do about a child that has ended, or cannot be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn number(outcome: &Value, field: &str) -> Result<f64> {
    outcome[field].as_f64().with_context(|| format!("an outcome has no {field}"))
}

fn failures(outcome: &Value) -> Result<f64> {
    let none = json!({});
    let failures = outcome.get("failures").unwrap_or(&none).as_object().context("failures are counted by kind")?;
    Ok(failures.values().filter_map(Value::as_f64).sum())
}
