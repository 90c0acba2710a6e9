//! Idle tunnels: opens many, lets each answer one request, holds them, and says what they cost and whether they still work.
//!
//! Invariants: at most `OPENING_MAX` tunnels are being opened at once; a tunnel that failed is counted and not tried again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::Context;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream;
use http::HeaderMap;
use indicatif::ProgressBar;

use super::body::Traffic;
use super::outcome::{IdleOutcome, IdleUse, cpus, memories};
use super::session::{self, Lane, Template};
use super::{Plan, wait_until};
use crate::hbone::pool::Pool;
use crate::stats::Failure;

/// Tunnels that are opened at once: the burst is not what is measured.
const OPENING_MAX: usize = 64;
/// Tunnels that are asked again at the end.
const SAMPLE_MAX: usize = 200;

/// Opens, holds and asks again. Fails when no connection can be made, or a watched process cannot be read.
pub async fn hold(plan: &Plan, pool: Pool, progress: &ProgressBar) -> anyhow::Result<IdleOutcome> {
    let watched = plan.watched();
    let traffic = Arc::new(Traffic::default());
    let template = Template::new(plan, Arc::clone(&traffic)).context("the request cannot be built from --path, --host and --header")?;
    let before = memories(&watched)?;
    let begin = Instant::now();
    pool.connect_all().await.context("no HBONE connection")?;
    let (mut lanes, failures) = open(plan, &pool, &template, progress).await;
    let open_seconds = begin.elapsed().as_secs_f64();
    let opened = memories(&watched)?;
    let n_opened = u64::try_from(lanes.len())?;

    progress.set_message("idle");
    progress.reset();
    progress.set_length(plan.progress_steps());
    let cpu_before = cpus(&watched)?;
    let held_from = Instant::now();
    wait_until(held_from + plan.load.hold, progress).await;
    let hold_seconds = held_from.elapsed().as_secs_f64();
    let cpu_after = cpus(&watched)?;
    let held = memories(&watched)?;

    let (sampled, usable) = ask_again(&mut lanes, &template).await;
    let used = cpu_before.iter().zip(&cpu_after).map(|(before, after)| after.since(before));
    let memory = before.into_iter().zip(opened).zip(held).map(|((before, opened), held)| [before, opened, held]);
    let processes = watched.iter().zip(used.zip(memory));
    let processes = processes.map(|(process, (cpu, memory))| IdleUse::new(process, memory, n_opened, &cpu)).collect();
    Ok(IdleOutcome {
        streams: plan.load.streams,
        opened: n_opened,
        failures,
        open_seconds,
        hold_seconds,
        sampled,
        usable,
        requests_sent: traffic.requests_sent.load(Ordering::Relaxed),
        processes,
    })
}

async fn open(plan: &Plan, pool: &Pool, template: &Template, progress: &ProgressBar) -> (Vec<Lane>, BTreeMap<String, u64>) {
    progress.set_message("opening");
    progress.set_length(u64::try_from(plan.load.streams).unwrap_or(u64::MAX));
    let mut opening = stream::iter(0..plan.load.streams).map(|index| open_one(plan, pool, template, index)).buffer_unordered(OPENING_MAX);
    let (mut lanes, mut failures) = (Vec::new(), BTreeMap::new());
    while let Some(opened) = opening.next().await {
        match opened {
            Ok(lane) => lanes.push(lane),
            Err(failure) => *failures.entry(failure.to_string()).or_default() += 1,
        }
        progress.inc(1);
    }
    (lanes, failures)
}

/// Opens one within the time for an answer: a peer that allows no further stream on a connection keeps it waiting.
async fn open_one(plan: &Plan, pool: &Pool, template: &Template, index: usize) -> Result<Lane, Failure> {
    let opened = open_in_any_time(plan, pool, template, index);
    tokio::time::timeout(plan.load.timeout, opened).await.unwrap_or(Err(Failure::Timeout))
}

async fn open_in_any_time(plan: &Plan, pool: &Pool, template: &Template, index: usize) -> Result<Lane, Failure> {
    let stream = pool.open_on(index, &plan.target, HeaderMap::new()).await?;
    let mut lane = session::start(stream, template).await?;
    lane.exchange(template).await?;
    Ok(lane)
}

/// One more request on some tunnels, evenly chosen: how many were asked, and how many answered.
async fn ask_again(lanes: &mut [Lane], template: &Template) -> (usize, usize) {
    let every = lanes.len().div_ceil(SAMPLE_MAX).max(1);
    let asked = lanes.iter_mut().step_by(every).map(|lane| async { lane.ready().await && lane.exchange(template).await.is_ok() });
    let answers = join_all(asked).await;
    (answers.len(), answers.into_iter().filter(|is_answered| *is_answered).count())
}
