//! Callers that keep asking while something happens behind the waypoint, and what became of each request.
//!
//! Not for measuring. Invariants: every request has a path of its own, made of the load's name and a number; at most [`REQUESTS_MAX`] are sent, within
//! [`LOAD_DEADLINE`]; nothing of a load outlives it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use http::{Method, StatusCode};
use tests::peer::{Answer, Connection, Http, Peer, empty, full};
use tests::wait::{Look, until};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::stage::WEB;

/// Callers at a time, each on a connection of its own and with one request at a time.
const CALLERS: usize = 8;
/// Requests of one load.
const REQUESTS_MAX: usize = 20_000;
/// A load's whole time.
const LOAD_DEADLINE: Duration = Duration::from_secs(90);
/// How long some number of requests may take to be answered.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(30);

/// What became of a request.
#[derive(Debug, Clone)]
pub struct Sent {
    pub method: Method,
    pub path: String,
    /// From the load's start, when it was sent.
    pub from: Duration,
    /// Status, and the answering pod or else the body; or why there is none.
    pub outcome: Result<(StatusCode, String), String>,
}

/// What a caller remembers of an answer.
pub fn outcome_of(answer: Result<Answer>) -> Result<(StatusCode, String), String> {
    let answer = answer.map_err(|error| format!("{error:#}"))?;
    let pod = answer.header("x-pod");
    Ok((answer.status, if pod.is_empty() { answer.text() } else { pod.to_owned() }))
}

impl Sent {
    pub fn is_ok(&self) -> bool {
        self.outcome.as_ref().is_ok_and(|(status, _)| *status == StatusCode::OK)
    }
}

#[derive(Debug)]
struct Shared {
    name: &'static str,
    peer: Peer,
    address: SocketAddr,
    begin: Instant,
    next: AtomicUsize,
    stop: AtomicBool,
    sent: Mutex<Vec<Sent>>,
}

/// A running load on the service `web`.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    callers: JoinSet<()>,
}

/// Method and path by number: half are POSTs, half take a while in the pod.
fn request_of(name: &str, number: usize) -> (Method, String) {
    match number % 4 {
        0 => (Method::POST, format!("/{name}/{number}")),
        1 => (Method::GET, format!("/delay/200/{name}/{number}")),
        2 => (Method::GET, format!("/{name}/{number}")),
        _ => (Method::POST, format!("/delay/50/{name}/{number}")),
    }
}

/// One caller's connection and the tunnel that is kept on it.
struct Caller {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    http: Option<Http>,
}

impl Caller {
    async fn send(&mut self, method: &Method, path: &str) -> Result<Answer> {
        let connection = match self.connection.take() {
            Some(connection) if connection.takes_streams().await => connection,
            _ => {
                self.http = None;
                self.shared.peer.connect(self.shared.address).await?
            }
        };
        let mut http = match self.http.take() {
            Some(Http::One(sender)) if !sender.is_closed() => Http::One(sender),
            _ => connection.http1(WEB).await?,
        };
        self.connection = Some(connection);
        let body = if *method == Method::POST { full("a hundred bytes or so, to be counted once") } else { empty() };
        let request = http.request(method.clone(), path).body(body)?;
        let answer = http.send(request).await?;
        // The answer said what becomes of the session; hyper notices when it ends.
        if answer.header("connection") != "close" {
            self.http = Some(http);
        }
        Ok(answer)
    }

    async fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) && self.shared.begin.elapsed() < LOAD_DEADLINE {
            let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
            if number >= REQUESTS_MAX {
                return;
            }
            let (method, path) = request_of(self.shared.name, number);
            let from = self.shared.begin.elapsed();
            let answer = self.send(&method, &path).await;
            let sent = Sent { method, path, from, outcome: outcome_of(answer) };
            self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
        }
    }
}

impl Load {
    /// Starts asking as `peer`. The name is a part of every path.
    pub fn start(name: &'static str, peer: &Peer, address: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            name,
            peer: peer.clone(),
            address,
            begin: Instant::now(),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            sent: Mutex::default(),
        });
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(Caller { shared: Arc::clone(&shared), connection: None, http: None }.run());
        }
        Self { shared, callers }
    }

    /// Time since its start, on the clock of [`Sent`].
    pub fn elapsed(&self) -> Duration {
        self.shared.begin.elapsed()
    }

    /// Everything that is over by now.
    pub fn sent(&self) -> Vec<Sent> {
        self.shared.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until so many more requests are over.
    pub async fn more(&self, n_requests: usize) -> Result<()> {
        let wanted = self.sent().len() + n_requests;
        until(&format!("{n_requests} more requests"), PROGRESS_DEADLINE, async || {
            let n_sent = self.sent().len();
            Ok(if n_sent >= wanted { Look::Done(()) } else { Look::NotYet(format!("{n_sent} of {wanted}")) })
        })
        .await
    }

    /// Lets every caller finish its request; what became of all.
    pub async fn stop(mut self) -> Result<Vec<Sent>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended?;
        }
        ensure!(self.elapsed() < LOAD_DEADLINE, "the load ended by its own deadline");
        Ok(self.sent())
    }
}

/// Those that got no 200.
pub fn lost(sent: &[Sent]) -> Vec<&Sent> {
    sent.iter().filter(|one| !one.is_ok()).collect()
}

/// An error that shows the first of the lost requests.
pub fn expect_none_lost(sent: &[Sent]) -> Result<()> {
    let lost = lost(sent);
    ensure!(lost.is_empty(), "{} of {} requests were lost: {:#?}", lost.len(), sent.len(), &lost[..lost.len().min(5)]);
    Ok(())
}
