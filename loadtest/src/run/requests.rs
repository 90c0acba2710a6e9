//! Requests over and over: opens the streams, keeps the clock, counts what comes back inside the measured window.
//!
//! Closed loop: each lane sends its next request when the last is answered; a request counts if it ends in the window.
//! Open loop: each request has its due time; it counts if that lies in the window, however late it ends. Where tunnels or
//! connections are short, opening them is part of the request that needed it. Invariant: requests in flight never exceed
//! streams × requests per stream; there is no queue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::join_all;
use http::HeaderMap;
use indicatif::ProgressBar;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::body::Traffic;
use super::outcome::{ProcessUse, RequestsOutcome, WatchedProcess, Work, cpus, gib, memories};
use super::session::{self, Call, Lane, Template};
use super::{Plan, wait_until};
use crate::hbone::client::Connection;
use crate::hbone::pool::Pool;
use crate::schedule::{Schedule, pace};
use crate::stats::{Failure, Tally, float};

/// Pause of a stream whose tunnel could not be opened, so that it does not spin.
const REOPEN_DELAY: Duration = Duration::from_millis(20);
/// How long the answers to the last requests are waited for: first to those that count, then to all in flight.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

struct Shared {
    plan: Plan,
    pool: Pool,
    template: Template,
    traffic: Arc<Traffic>,
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
        if let Some(requests) = self.plan.load.requests_per_tunnel {
            return self.short_tunnels(index, requests.get()).await;
        }
        loop {
            match self.open(index, &mut None).await {
                Ok(lane) => {
                    let lanes = lane.multiplied(self.plan.load.requests_per_stream);
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

    /// One stream whose tunnels end after so many requests, the first of which waits for its tunnel.
    async fn short_tunnels(&self, index: usize, requests: u64) {
        let mut own = None;
        while let Some(mut ticket) = self.next_ticket().await {
            let mut lane = match self.open(index, &mut own).await {
                Ok(lane) => lane,
                Err(failure) => {
                    own = None;
                    self.record(&ticket, Err(failure));
                    tokio::time::sleep(REOPEN_DELAY).await;
                    continue;
                }
            };
            for number in 1..=requests {
                let result = if lane.ready().await { lane.exchange(&self.template).await } else { Err(Failure::Broken) };
                self.record(&ticket, result);
                if number == requests {
                    lane.close().await;
                    break;
                }
                if matches!(result, Err(Failure::Broken | Failure::Timeout)) {
                    break;
                }
                let Some(next) = self.next_ticket().await else { return };
                ticket = next;
            }
        }
    }

    /// A tunnel with HTTP inside: on the stream's own connection where such have a length, else on the pool's.
    async fn open(&self, index: usize, own: &mut Option<OwnConnection>) -> Result<Lane, Failure> {
        let stream = match self.plan.load.tunnels_per_connection {
            None => self.pool.open_on(index, &self.plan.target, HeaderMap::new()).await?,
            Some(tunnels) => {
                let mut connection = match own.take() {
                    Some(connection) => connection,
                    None => OwnConnection { connection: self.pool.connect().await?, tunnels_left: tunnels.get() },
                };
                let stream = connection.connection.open(&self.plan.target, HeaderMap::new()).await?;
                connection.tunnels_left -= 1;
                *own = (connection.tunnels_left > 0).then_some(connection);
                stream
            }
        };
        session::start(stream, &self.template).await
    }

    /// Sends one request after the other. True when the run is over, false when the connection is.
    async fn lane(&self, mut lane: Lane) -> bool {
        while lane.ready().await {
            let result = if self.plan.load.is_streaming() {
                let Some(result) = self.call(&mut lane).await else { return true };
                result
            } else {
                let Some(ticket) = self.next_ticket().await else { return true };
                let result = lane.exchange(&self.template).await;
                self.record(&ticket, result);
                result
            };
            if matches!(result, Err(Failure::Broken | Failure::Timeout)) {
                return false;
            }
        }
        false
    }

    /// One call of several messages, each with a ticket of its own; `None` when the run is over.
    async fn call(&self, lane: &mut Lane) -> Option<Result<(), Failure>> {
        let mut call = Call::new(lane, &self.template);
        let messages = self.plan.load.messages_per_call.get();
        for number in 1..=messages {
            let Some(ticket) = self.next_ticket().await else {
                // The call ends as it should; how, nobody counts any more.
                let _ended = call.end().await;
                return None;
            };
            let result = call.exchange(number == messages).await;
            self.record(&ticket, result);
            if result.is_err() {
                return Some(result);
            }
        }
        Some(Ok(()))
    }
}

/// A connection that only one stream uses, for so many tunnels.
struct OwnConnection {
    connection: Connection,
    tunnels_left: u64,
}

/// Runs the plan and reports. Fails when no connection can be made, or a watched process cannot be read.
pub async fn drive(plan: &Plan, pool: Pool, progress: &ProgressBar) -> anyhow::Result<RequestsOutcome> {
    if plan.load.tunnels_per_connection.is_some() {
        drop(pool.connect().await.context("no HBONE connection")?);
    } else {
        pool.connect_all().await.context("no HBONE connection")?;
    }
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
    let watched = plan.watched();
    let window = window(&shared, &watched, progress).await?;
    finish(&shared, streams).await;
    if let Some(pacer) = pacer {
        pacer.join().expect("the pacer does not panic");
    }
    let summary = shared.tally().summary();
    Ok(RequestsOutcome {
        seconds: window.seconds,
        completed: window.work.completed,
        requests_per_second: float(window.work.completed) / window.seconds,
        scheduled: shared.open_loop.as_ref().map(OpenLoop::scheduled),
        requests_sent: shared.traffic.requests_sent.load(Ordering::Relaxed),
        body_bytes: window.work.body_bytes,
        gib_per_second: gib(window.work.body_bytes) / window.seconds,
        summary,
        processes: window.processes,
    })
}

/// What was seen between two looks at the clock.
struct Window {
    seconds: f64,
    work: Work,
    processes: Vec<ProcessUse>,
}

async fn window(shared: &Shared, watched: &[WatchedProcess], progress: &ProgressBar) -> anyhow::Result<Window> {
    let before = cpus(watched)?;
    let body_bytes_before = shared.traffic.body_bytes.load(Ordering::Relaxed);
    let opened_at = Instant::now();
    shared.measuring.store(true, Ordering::Relaxed);
    wait_until(shared.start + shared.plan.load.warmup + shared.plan.load.duration, progress).await;
    shared.measuring.store(false, Ordering::Relaxed);
    let seconds = opened_at.elapsed().as_secs_f64();
    let after = cpus(watched)?;
    let work = Work {
        completed: shared.completed.load(Ordering::Relaxed),
        body_bytes: shared.traffic.body_bytes.load(Ordering::Relaxed) - body_bytes_before,
    };
    let used = before.iter().zip(&after).map(|(before, after)| after.since(before));
    let processes = watched.iter().zip(used).zip(memories(watched)?);
    let processes = processes.map(|((process, cpu), memory)| ProcessUse::new(process, &cpu, work, memory)).collect();
    Ok(Window { seconds, work, processes })
}

fn prepare(plan: &Plan, pool: Pool) -> anyhow::Result<Shared> {
    let open_loop = plan.load.rate.map(|rate| {
        let schedule = Schedule::new(rate, plan.load.warmup + plan.load.duration);
        let first_measured = schedule.first_due_at(plan.load.warmup);
        OpenLoop { schedule, tickets: Arc::new(Semaphore::new(0)), next: AtomicU64::new(0), first_measured }
    });
    let traffic = Arc::new(Traffic::default());
    Ok(Shared {
        template: Template::new(plan, Arc::clone(&traffic)).context("the request cannot be built from --path, --host and --header")?,
        traffic,
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
    // What is in flight may end, so that what counts as sent was seen by the other side.
    let _in_time = tokio::time::timeout(FINISH_TIMEOUT, async { while streams.join_next().await.is_some() {} }).await;
    streams.shutdown().await;
    if let Some(open_loop) = &shared.open_loop {
        let mut tally = shared.tally();
        let unfinished = open_loop.scheduled() - tally.requests();
        tally.fail(Failure::Unfinished, unfinished);
    }
}
