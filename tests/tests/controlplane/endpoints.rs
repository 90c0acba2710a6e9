//! Pods and the control plane go away while callers keep asking.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{Method, StatusCode};
use serde_json::Value;
use tests::peer::{Answer, empty, full};
use tests::wait::{Look, until};
use tests::workload::Record;
use tokio::task::JoinHandle;

use crate::load::{Load, Sent, expect_none_lost, lost, outcome_of};
use crate::stage::{EFFECT_DEADLINE, Stage, WEB, mesh_object};

const KEPT: &str = "web-v1-1";
const LEAVING: &str = "web-v1-2";
const LEAVING_ADDRESS: &str = "10.244.1.2";

/// Requests before something happens, and after it.
const PHASE_REQUESTS: usize = 100;
/// A pod that got none of so many requests is no longer chosen.
const UNCHOSEN_REQUESTS: usize = 60;
/// What a draining pod may take to finish what it has.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// An answer that is under way while its pod drains: chunks, one every 100 ms.
const LONG_CHUNKS: usize = 60;
/// A POST that is in its pod when that is killed: how long the pod takes, and how many are sent at most until one is there.
const VICTIM_MILLISECONDS: u64 = 3000;
const VICTIMS_MAX: usize = 32;
/// The waypoint knows of a dead pod within this time: until then it may send over connections that it takes for alive.
const NOTICE_DEADLINE: Duration = Duration::from_secs(1);
/// How a 503 begins when the connection ended before the answer.
const TERMINATION_BODY: &str = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
/// What a failure of a request that was sent may be called: the connection ended, or its protocol broke, before the answer.
const SENT_FLAGS: [&str; 2] = ["UC", "UPE"];

/// The endpoint slice of `web` without the pod that leaves.
fn slice_without_leaving() -> Result<Value> {
    let mut slice = mesh_object("EndpointSlice", "web-1")?;
    let endpoints = slice["endpoints"].as_array_mut().context("a slice without endpoints")?;
    endpoints.retain(|endpoint| endpoint["targetRef"]["name"] != LEAVING);
    Ok(slice)
}

/// What both pods have seen, to be kept when one goes.
fn records(stage: &Stage) -> Result<[Arc<Record>; 2]> {
    Ok([Arc::clone(stage.workload(KEPT)?.record()), Arc::clone(stage.workload(LEAVING)?.record())])
}

/// Both pods get requests.
async fn wait_for_both(stage: &Stage) -> Result<()> {
    let connection = stage.frontend.connect(stage.hbone_address()).await?;
    for pod in [KEPT, LEAVING] {
        until(&format!("a request reaches {pod}"), EFFECT_DEADLINE, async || {
            let answer = connection.get(WEB, "/which").await?;
            let found = answer.status == StatusCode::OK && answer.header("x-pod") == pod;
            Ok(if found { Look::Done(()) } else { Look::NotYet(format!("{} {}", answer.status, answer.text())) })
        })
        .await?;
    }
    Ok(())
}

/// An answer of the pod that leaves, which takes [`LONG_CHUNKS`] tenths of a second; its head is here.
async fn begin_long_answer(stage: &Stage) -> Result<JoinHandle<Result<Answer>>> {
    let connection = stage.frontend.connect(stage.hbone_address()).await?;
    until("a long answer of the pod that leaves", EFFECT_DEADLINE, async || {
        let mut http = connection.http1(WEB).await?;
        let request = http.request(Method::GET, &format!("/stream/{LONG_CHUNKS}")).body(empty())?;
        let response = http.start(request).await?;
        if response.headers().get("x-pod").is_none_or(|pod| pod != LEAVING) {
            return Ok(Look::NotYet("another pod answers".to_owned()));
        }
        let connection = connection.clone();
        Ok(Look::Done(tokio::spawn(async move {
            let answer = Answer::read(response).await;
            drop((http, connection));
            answer
        })))
    })
    .await
}

/// Waits until a pod is not chosen any more.
async fn wait_until_unchosen(load: &Load, record: &Arc<Record>) -> Result<()> {
    until("the pod that leaves is not chosen any more", EFFECT_DEADLINE, async || {
        let n_before = record.requests_total();
        load.more(UNCHOSEN_REQUESTS).await?;
        let n_more = record.requests_total() - n_before;
        Ok(if n_more == 0 { Look::Done(()) } else { Look::NotYet(format!("it got {n_more} of {UNCHOSEN_REQUESTS} requests")) })
    })
    .await
}

/// Applies the pod and both endpoints again and starts the workload.
async fn bring_back(stage: &mut Stage) -> Result<()> {
    stage.plane.kube().apply_object(&mesh_object("Pod", LEAVING)?).await?;
    stage.start_workload(LEAVING).await?;
    stage.plane.kube().apply_object(&mesh_object("EndpointSlice", "web-1")?).await?;
    wait_for_both(stage).await
}

/// The endpoint goes, requests under way finish, the pod drains and stops, at last its object is deleted.
pub async fn a_drained_pod_loses_nothing(stage: &mut Stage) -> Result<()> {
    wait_for_both(stage).await?;
    let records = records(stage)?;
    let load = Load::start("drained", &stage.frontend, stage.hbone_address());
    load.more(PHASE_REQUESTS).await?;
    let long = begin_long_answer(stage).await?;
    stage.plane.kube().apply_object(&slice_without_leaving()?).await?;
    let workload = stage.take_workload(LEAVING)?;
    wait_until_unchosen(&load, workload.record()).await?;
    ensure!(!long.is_finished(), "the long answer was over before the pod drained");
    workload.drain(DRAIN_DEADLINE).await?;
    let answer = long.await?.context("the answer that was under way")?;
    let n_chunks = answer.text().lines().count();
    ensure!(n_chunks == LONG_CHUNKS, "the answer that was under way has {n_chunks} of {LONG_CHUNKS} chunks");
    stage.plane.delete("v1", "Pod", "shop", LEAVING).await?;
    load.more(PHASE_REQUESTS).await?;
    let sent = load.stop().await?;
    bring_back(stage).await?;
    expect_posts_ran_once(&records, &sent)?;
    expect_none_lost(&sent)
}

/// Sends slow POSTs until one is in the pod that leaves; the paths of all, with what becomes of them, that one last.
async fn send_victims(stage: &Stage, load: &Load) -> Result<Vec<JoinHandle<Result<Sent>>>> {
    let record = stage.workload(LEAVING)?.record();
    let connection = stage.frontend.connect(stage.hbone_address()).await?;
    let mut victims = Vec::new();
    for number in 0..VICTIMS_MAX {
        let path = format!("/delay/{VICTIM_MILLISECONDS}/victim/{number}");
        let counted = format!("POST {path}");
        let (from, method) = (load.elapsed(), Method::POST);
        let mut http = connection.http1(WEB).await?;
        let request = http.request(method.clone(), &path).body(full("to be counted once"))?;
        victims.push(tokio::spawn(async move { Ok(Sent { method, path, from, outcome: outcome_of(http.send(request).await) }) }));
        let kept = stage.workload(KEPT)?.record();
        until("a slow POST is in a pod", EFFECT_DEADLINE, async || {
            let found = kept.requests(&counted) + record.requests(&counted) > 0;
            Ok(if found { Look::Done(()) } else { Look::NotYet("in none".to_owned()) })
        })
        .await?;
        if record.requests(&counted) > 0 {
            return Ok(victims);
        }
    }
    bail!("none of {VICTIMS_MAX} slow POSTs came to {LEAVING}")
}

/// Each POST reached one pod once, over all pods; one that failed may have reached none.
fn expect_posts_ran_once(records: &[Arc<Record>], sent: &[Sent]) -> Result<()> {
    for one in sent.iter().filter(|one| one.method == Method::POST) {
        let n_runs: u64 = records.iter().map(|record| record.requests(&format!("POST {}", one.path))).sum();
        ensure!(n_runs == 1 || (n_runs == 0 && !one.is_ok()), "it ran {n_runs} times: {one:?}");
    }
    Ok(())
}

/// The log lines of these requests, by path.
async fn lines_of(stage: &Stage, sent: &[&Sent]) -> Result<BTreeMap<String, Value>> {
    let mut lines = BTreeMap::new();
    for one in sent {
        lines.insert(one.path.clone(), stage.access_line(&one.path).await?.1);
    }
    Ok(lines)
}

/// A failure is allowed for a request that was under way at the killed pod, by a 503 whose log line says so.
fn judge_failure(one: &Sent, line: &Value, killed: Duration) -> Result<()> {
    let named = matches!(&one.outcome, Ok((StatusCode::SERVICE_UNAVAILABLE, body)) if body == TERMINATION_BODY);
    ensure!(named, "no 503 that names the cause: {one:?}");
    ensure!(one.from <= killed + NOTICE_DEADLINE, "sent after the kill at {killed:?} and lost: {one:?}, {line}");
    let flags = line["response_flags"].as_str().unwrap_or_default();
    ensure!(SENT_FLAGS.contains(&flags) && line["response_code"] == 503, "the cause is not named: {line}");
    let upstream = line["upstream_host"].as_str().unwrap_or_default();
    ensure!(upstream.contains(LEAVING_ADDRESS), "it was not at the killed pod: {line}");
    Ok(())
}

/// The pod dies with requests at it, and stays among the endpoints. Those requests may fail, by name; others are sent elsewhere; no POST
/// runs twice.
pub async fn a_killed_pod_fails_only_its_own(stage: &mut Stage) -> Result<()> {
    stage.turn_logging_on().await?;
    wait_for_both(stage).await?;
    let records = records(stage)?;
    let load = Load::start("killed", &stage.frontend, stage.hbone_address());
    load.more(PHASE_REQUESTS).await?;
    let victims = send_victims(stage, &load).await?;
    stage.take_workload(LEAVING)?.kill().await;
    let killed = load.elapsed();
    load.more(2 * PHASE_REQUESTS).await?;
    let mut sent = load.stop().await?;
    for victim in victims {
        sent.push(victim.await??);
    }
    ensure!(sent.last().is_some_and(|victim| !victim.is_ok()), "the POST in the killed pod was answered: {:?}", sent.last());
    stage.start_workload(LEAVING).await?;
    wait_for_both(stage).await?;
    let lost = lost(&sent);
    let lines = lines_of(stage, &lost).await?;
    for one in &lost {
        let line = lines.get(&one.path).context("a failure without a line")?;
        judge_failure(one, line, killed).with_context(|| format!("{} of {} failed", lost.len(), sent.len()))?;
    }
    expect_posts_ran_once(&records, &sent)?;
    println!("        of {} requests {} failed, all at the killed pod: {:?}", sent.len(), lost.len(), flags_of(&lines));
    Ok(())
}

/// How many failures each flag names.
fn flags_of(lines: &BTreeMap<String, Value>) -> BTreeMap<String, usize> {
    let mut flags = BTreeMap::new();
    for line in lines.values() {
        *flags.entry(line["response_flags"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    flags
}

/// istiod is killed, is away for a while, and comes back; meanwhile nothing is lost, and afterwards its changes arrive again.
pub async fn an_istiod_restart_loses_nothing(stage: &mut Stage) -> Result<()> {
    wait_for_both(stage).await?;
    let records = records(stage)?;
    let load = Load::start("restarted", &stage.frontend, stage.hbone_address());
    load.more(PHASE_REQUESTS).await?;
    stage.plane.stop_istiod();
    load.more(PHASE_REQUESTS).await?;
    stage.plane.start_istiod().await?;
    load.more(PHASE_REQUESTS).await?;
    stage.plane.kube().apply_object(&slice_without_leaving()?).await?;
    wait_until_unchosen(&load, &records[1]).await.context("a change after the restart")?;
    let sent = load.stop().await?;
    stage.plane.kube().apply_object(&mesh_object("EndpointSlice", "web-1")?).await?;
    wait_for_both(stage).await?;
    expect_posts_ran_once(&records, &sent)?;
    expect_none_lost(&sent)
}
