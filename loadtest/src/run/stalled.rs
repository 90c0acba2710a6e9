//! Stalled readers: asks for much, reads the head of the answer and no more, and says what that makes the proxy hold.
//!
//! The tunnel of a stalled reader gives no receive credit back, so at most its window is ever sent. Inside HTTP/2 the inner
//! stream gives none either. Invariant: all requests are in flight at once, one on each tunnel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::join_all;
use http::header::HOST;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use indicatif::ProgressBar;

use super::body::Traffic;
use super::outcome::{StalledOutcome, StalledUse, cpus, memories};
use super::session::{self, Lane, Template};
use super::{Plan, wait_until};
use crate::hbone::pool::Pool;
use crate::process::Memory;
use crate::stats::Failure;

/// How often memory is looked at for its highest. Reading it walks the process's pages, which costs the process nothing.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Time from closing everything to the last look at memory.
const SETTLE_DURATION: Duration = Duration::from_secs(2);

/// Asks, holds, closes. Fails when no connection can be made, or a watched process cannot be read.
pub async fn hold(plan: &Plan, pool: Pool, workload: Option<&Pool>, progress: &ProgressBar) -> anyhow::Result<StalledOutcome> {
    let watched = plan.watched();
    let traffic = Arc::new(Traffic::default());
    let template = Template::new(plan, Arc::clone(&traffic)).context("the request cannot be built from --path, --host and --header")?;
    let sent_before = body_bytes_sent(workload, plan).await?;
    let before = memories(&watched)?;
    let cpu_before = cpus(&watched)?;
    pool.connect_all().await.context("no HBONE connection")?;
    let answers = join_all((0..plan.load.streams).map(|index| ask(plan, &pool, &template, index))).await;
    let (mut stalled, mut failures) = (Vec::new(), BTreeMap::<String, u64>::new());
    for answer in answers {
        match answer {
            Ok(answer) => stalled.push(answer),
            Err(failure) => *failures.entry(failure.to_string()).or_default() += 1,
        }
    }
    let held_from = Instant::now();
    let mut highest = memories(&watched)?;
    while held_from.elapsed() < plan.load.hold {
        let rest = plan.load.hold.saturating_sub(held_from.elapsed());
        wait_until(Instant::now() + LOOK_INTERVAL.min(rest), progress).await;
        raise(&mut highest, &memories(&watched)?);
    }
    let hold_seconds = held_from.elapsed().as_secs_f64();
    let cpu_after = cpus(&watched)?;
    let sent_after = body_bytes_sent(workload, plan).await?;
    let heads = u64::try_from(stalled.len())?;
    drop((stalled, pool));
    tokio::time::sleep(SETTLE_DURATION).await;
    let closed = memories(&watched)?;
    let used = cpu_before.iter().zip(&cpu_after).map(|(before, after)| after.since(before).total().as_secs_f64());
    let memory = before.into_iter().zip(highest).zip(closed);
    let processes = watched.into_iter().zip(used.zip(memory)).map(|(process, (cpu_seconds, ((before, highest), closed)))| StalledUse {
        name: process.name,
        pid: process.pid,
        before,
        highest,
        closed,
        cpu_seconds,
    });
    Ok(StalledOutcome {
        streams: plan.load.streams,
        heads,
        failures,
        hold_seconds,
        workload_body_bytes_sent: sent_before.zip(sent_after).map(|(before, after)| after.saturating_sub(before)),
        requests_sent: traffic.requests_sent.load(Ordering::Relaxed),
        processes: processes.collect(),
    })
}

/// One request, of whose answer nothing but the head is read. Both are kept, since dropping either ends it.
async fn ask(plan: &Plan, pool: &Pool, template: &Template, index: usize) -> Result<(Lane, Option<Response<Incoming>>), Failure> {
    let stream = pool.open_on(index, &plan.target, HeaderMap::new()).await?.without_credit();
    let mut lane = session::start(stream, template).await?;
    let response = lane.begin(template).await?;
    Ok((lane, response))
}

fn raise(highest: &mut [Memory], now: &[Memory]) {
    for (highest, now) in highest.iter_mut().zip(now) {
        if now.rss_bytes > highest.rss_bytes {
            *highest = *now;
        }
    }
}

async fn body_bytes_sent(workload: Option<&Pool>, plan: &Plan) -> anyhow::Result<Option<u64>> {
    let Some(pool) = workload else { return Ok(None) };
    let counts = counts(pool, plan).await.context("asking the workload what it sent")?;
    Ok(Some(counts["body_bytes_sent"].as_u64().context("the workload does not count what it sent")?))
}

/// What the workload's app has counted so far.
pub async fn counts(workload: &Pool, plan: &Plan) -> anyhow::Result<serde_json::Value> {
    let stream = workload.open(&plan.target, HeaderMap::new()).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/count").header(HOST, "workload").body(Empty::<Bytes>::new())?;
    let answer = tokio::time::timeout(plan.load.timeout, sender.send_request(request)).await.context("no answer in time")??;
    Ok(serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?)
}
