//! Runs one plan: opens the streams, keeps the clock, counts what comes back inside the measured window.
//!
//! Closed loop: each lane sends its next request when the last is answered; a request counts if it ends in the window.
//! Open loop: each request has its due time; it counts if that lies in the window, however late it ends. Invariant:
//! requests in flight never exceed streams × requests per stream; there is no queue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::session::{self, Lane, Template};
use super::{Outcome, Plan, ProcessUse, WatchedProcess};
use crate::hbone::pool::Pool;
use crate::process;
use crate::schedule::{Schedule, pace};
use crate::stats::{Failure, Tally, float};

/// Pause of a stream whose tunnel could not be opened, so that it does not spin.
const REOPEN_DELAY: Duration = Duration::from_millis(20);
/// How long the answers to an open loop's last requests are waited for.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the progress bar moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

struct Shared {
    plan: Plan,
    pool: Pool,
    template: Template,
    start: Instant,
    open_loop: Option<OpenLoop>,
    tally: Mutex<Tally>,
    /// Whether the measured window is open.
    measuring: AtomicBool,
    /// Requests well answered inside the window, whenever they were due: what CPU time is divided by.
    completed: AtomicU64,
    stopped: AtomicBool,
    /// Told when all that was scheduled is recorded.
    finished: Notify,
}

struct OpenLoop {
    schedule: Schedule,
    tickets: Arc<Semaphore>,
    next: AtomicU64,
    first_measured: u64,
}

impl OpenLoop {
    fn scheduled(&self) -> u64 {
        self.schedule.total() - self.first_measured
    }
}

/// One request that is to be sent.
struct Ticket {
    due: Instant,
    /// Whether an open loop's request is due in the window; a closed loop asks when the answer is there.
    counts: Option<bool>,
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request to send; `None` when the run is over. Waits for it to be due.
    async fn next_ticket(&self) -> Option<Ticket> {
        let Some(open_loop) = &self.open_loop else {
            return (!self.stopped.load(Ordering::Relaxed)).then(|| Ticket { due: Instant::now(), counts: None });
        };
        open_loop.tickets.acquire().await.ok()?.forget();
        let index = open_loop.next.fetch_add(1, Ordering::Relaxed);
        Some(Ticket { due: self.start + open_loop.schedule.due(index), counts: Some(index >= open_loop.first_measured) })
    }

    fn record(&self, ticket: &Ticket, result: Result<(), Failure>) {
        let in_window = self.measuring.load(Ordering::Relaxed);
        if in_window && result.is_ok() {
            self.completed.fetch_add(1, Ordering::Relaxed);
        }
        if !ticket.counts.unwrap_or(in_window) {
            return;
        }
        let mut tally = self.tally();
        match result {
            Ok(()) => tally.record(ticket.due.elapsed()),
            Err(failure) => tally.fail(failure, 1),
        }
        if self.open_loop.as_ref().is_some_and(|open_loop| tally.requests() == open_loop.scheduled()) {
            self.finished.notify_one();
        }
    }

    /// One stream: opens its tunnel and sends on it until the run is over, opening it again when it breaks.
    async fn stream(&self, index: usize) {
        loop {
            match session::open(&self.pool, index, &self.plan).await {
                Ok(lanes) => {
                    if join_all(lanes.into_iter().map(|lane| self.lane(lane))).await.into_iter().any(|is_over| is_over) {
                        return;
                    }
                }
                Err(failure) => {
                    let Some(ticket) = self.next_ticket().await else { return };
                    self.record(&ticket, Err(failure));
                    tokio::time::sleep(REOPEN_DELAY).await;
                }
            }
        }
    }

    /// Sends one request after the other. True when the run is over, false when the connection is.
    async fn lane(&self, mut lane: Lane) -> bool {
        while lane.ready().await {
            let Some(ticket) = self.next_ticket().await else { return true };
            let exchanged = tokio::time::timeout(self.plan.load.timeout, lane.exchange(&self.template)).await;
            let result = exchanged.unwrap_or(Err(Failure::Timeout));
            self.record(&ticket, result);
            if matches!(result, Err(Failure::Broken | Failure::Timeout)) {
                return false;
            }
        }
        false
    }
}

/// Runs the plan and reports. Fails when no connection can be made, or a watched process cannot be read.
pub async fn drive(plan: &Plan, pool: Pool, progress: &ProgressBar) -> anyhow::Result<Outcome> {
    pool.connect_all().await.context("no HBONE connection")?;
    let shared = Arc::new(prepare(plan, pool)?);
    let pacer = shared.open_loop.as_ref().map(|open_loop| {
        let (schedule, start, tickets) = (open_loop.schedule, shared.start, Arc::clone(&open_loop.tickets));
        std::thread::spawn(move || pace(schedule, start, &tickets))
    });
    let mut streams = JoinSet::new();
    for index in 0..plan.load.streams {
        let shared = Arc::clone(&shared);
        streams.spawn(async move { shared.stream(index).await });
    }
    wait_until(shared.start + plan.load.warmup, progress).await;
    let watched: Vec<WatchedProcess> = plan.processes.iter().cloned().chain([WatchedProcess::driver()]).collect();
    let before = watched.iter().map(|process| process::cpu(process.pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let opened_at = Instant::now();
    shared.measuring.store(true, Ordering::Relaxed);
    wait_until(shared.start + plan.load.warmup + plan.load.duration, progress).await;
    shared.measuring.store(false, Ordering::Relaxed);
    let seconds = opened_at.elapsed().as_secs_f64();
    let after = watched.iter().map(|process| process::cpu(process.pid)).collect::<anyhow::Result<Vec<_>>>()?;
    let completed = shared.completed.load(Ordering::Relaxed);
    let processes = watched
        .iter()
        .zip(before.iter().zip(&after))
        .map(|(process, (before, after))| Ok(ProcessUse::new(process, &after.since(before), completed, process::memory(process.pid)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    finish(&shared, streams).await;
    if let Some(pacer) = pacer {
        pacer.join().expect("the pacer does not panic");
    }
    let summary = shared.tally().summary();
    let scheduled = shared.open_loop.as_ref().map(OpenLoop::scheduled);
    Ok(Outcome { seconds, completed, requests_per_second: float(completed) / seconds, scheduled, summary, processes })
}

fn prepare(plan: &Plan, pool: Pool) -> anyhow::Result<Shared> {
    let open_loop = plan.load.rate.map(|rate| {
        let schedule = Schedule::new(rate, plan.load.warmup + plan.load.duration);
        let first_measured = schedule.first_due_at(plan.load.warmup);
        OpenLoop { schedule, tickets: Arc::new(Semaphore::new(0)), next: AtomicU64::new(0), first_measured }
    });
    Ok(Shared {
        template: Template::new(plan).context("the request cannot be built from --path, --host and --header")?,
        plan: plan.clone(),
        pool,
        start: Instant::now(),
        open_loop,
        tally: Mutex::new(Tally::new()),
        measuring: AtomicBool::new(false),
        completed: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        finished: Notify::new(),
    })
}

/// Ends the streams. What an open loop scheduled and nobody answered is counted as such.
async fn finish(shared: &Shared, mut streams: JoinSet<()>) {
    shared.stopped.store(true, Ordering::Relaxed);
    if let Some(open_loop) = &shared.open_loop {
        if shared.tally().requests() < open_loop.scheduled() {
            // Late is late: the answer to a wait that ran out is the count below.
            let _in_time = tokio::time::timeout(FINISH_TIMEOUT, shared.finished.notified()).await;
        }
        open_loop.tickets.close();
    }
    streams.shutdown().await;
    if let Some(open_loop) = &shared.open_loop {
        let mut tally = shared.tally();
        let unfinished = open_loop.scheduled() - tally.requests();
        tally.fail(Failure::Unfinished, unfinished);
    }
}

async fn wait_until(end: Instant, progress: &ProgressBar) {
    while Instant::now() < end {
        let step = PROGRESS_INTERVAL.min(end.saturating_duration_since(Instant::now()));
        tokio::time::sleep(step).await;
        progress.inc(u64::try_from(step.as_millis()).unwrap_or(0));
    }
}
