//! The workers: threads with a runtime each, which listen together on istiod's addresses.
//!
//! Not for: what a connection does. Invariants: all workers listen before the process says that it listens; a worker ends
//! when the drain has stopped, and takes its open connections with it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use model::endpoint::HBONE_PORT;
use telemetry::Telemetry;
use telemetry::costs::{Side, WorkerCosts};
use tokio::sync::{broadcast, watch};

use super::AppError;
use crate::admin::ready::Readiness;
use crate::config::Settings;
use crate::drain::DrainWatch;
use crate::hbone::pool::{Pool, PoolObserver, PoolOptions};
use crate::hbone::server::{Connect, ConnectRefusal, HandshakeRefusal, Server, ServerObserver, ServerOptions};
use crate::hbone::{ConnectionEnd, ConnectionFacts, Downstream, KeepaliveOptions};
use crate::listen::{Accepting, ConnectionLimit, ListenObserver, OnDrain, accept_loop, bind};
use crate::runtime;
use crate::state::published::Published;
use crate::tls::MeshTls;
use crate::tls::originate::Originator;
use crate::tls::verify::PeerMatcher;
use crate::tunnel::serve_connect;
use crate::upstream::connect::Dialer;
use crate::upstream::introduction::Introduction;
use crate::worker::Worker;

/// Pods whose tunnels are to be given up, waiting for a slow worker; one that misses some keeps their connections until they fail.
const FLUSHES_MAX: usize = 1024;

/// What all workers share.
#[derive(Clone)]
pub(super) struct WorkerShare {
    pub(super) published: Arc<Published>,
    pub(super) tls: Arc<MeshTls>,
    pub(super) introduction: Arc<Introduction>,
    pub(super) accepted: Arc<ArcSwap<PeerMatcher>>,
    pub(super) originator: Arc<Originator>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) drain: DrainWatch,
    /// Where to listen; empty until istiod has said.
    pub(super) addresses: watch::Receiver<Vec<SocketAddr>>,
}

/// All workers.
pub(super) struct Workers {
    threads: runtime::Workers,
    flush: broadcast::Sender<IpAddr>,
}

impl Workers {
    /// Starts them; they listen once there are addresses.
    pub(super) fn start(settings: &Settings, share: WorkerShare) -> Result<Self, AppError> {
        let count = worker_count(settings)?;
        let (flush, _) = broadcast::channel(FLUSHES_MAX);
        let unready = Arc::new(AtomicUsize::new(count.get()));
        let limit = ConnectionLimit::default();
        let threads = runtime::Workers::start(count).map_err(AppError::Runtime)?;
        threads.spawn_on_each(|_| run_worker(share.clone(), Arc::clone(&unready), limit.clone(), flush.subscribe()));
        tracing::info!(workers = count, "workers started");
        Ok(Self { threads, flush })
    }

    /// Where to say that a pod is gone.
    pub(super) fn flush(&self) -> broadcast::Sender<IpAddr> {
        self.flush.clone()
    }

    /// Waits until every worker has ended.
    pub(super) fn join(self) {
        if let Err(panicked) = self.threads.join() {
            tracing::error!(panicked, "workers ended by a panic");
        }
    }
}

/// ProxyConfig's or the flag's number, else the CPU limit, else the cgroup's quota, else the cores.
fn worker_count(settings: &Settings) -> Result<NonZeroUsize, AppError> {
    let cgroup_quota = std::fs::read_to_string("/sys/fs/cgroup/cpu.max").ok();
    let cpu_limit = settings.cpu_limit.map(|limit| limit.to_string());
    let count = runtime::WorkerCount {
        concurrency: settings.concurrency.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        cpu_limit: cpu_limit.as_deref(),
        cgroup_quota: cgroup_quota.as_deref(),
        cores: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    count.decide().map_err(|error| AppError::Setting(error.to_string()))
}

struct Logged(Arc<WorkerCosts>);
impl PoolObserver for Logged {
    fn tcp_connected(&self, took: Duration) {
        self.0.connected(took);
    }
    fn tls_established(&self, took: Duration) {
        self.0.handshake(Side::Dialled, took);
    }
    fn connection_opened(&self, _: &ConnectionFacts) {
        self.0.opened(Side::Dialled);
    }
    fn connection_closed(&self, _: &ConnectionFacts, _: &ConnectionEnd) {
        self.0.closed(Side::Dialled);
    }
    fn dial_failed(&self, address: SocketAddr, error: &crate::hbone::client::ConnectError) {
        tracing::debug!(%address, %error, "no HBONE connection");
    }
}
impl ListenObserver for Logged {
    fn over_limit(&self, peer: SocketAddr) {
        tracing::warn!(%peer, "connection limit reached; closed");
    }
    fn accept_failed(&self, error: &io::Error, pause: Option<Duration>) {
        tracing::warn!(%error, ?pause, "accepting failed");
    }
}
impl ServerObserver for Logged {
    fn tls_established(&self, took: Duration) {
        self.0.handshake(Side::Accepted, took);
    }
    fn handshake_refused(&self, peer: SocketAddr, _local: Option<SocketAddr>, reason: &HandshakeRefusal) {
        tracing::info!(%peer, reason = reason.name(), detail = %reason, "HBONE connection refused");
    }
    fn connect_refused(&self, connection: &Downstream, authority: &str, reason: &ConnectRefusal) {
        tracing::info!(peer = %connection.peer, authority, %reason, "CONNECT refused");
    }
    fn connection_opened(&self, connection: &ConnectionFacts) {
        self.0.opened(Side::Accepted);
        tracing::debug!(peer = %connection.peer, address = %connection.peer_address, "HBONE connection");
    }
    fn connection_closed(&self, _: &ConnectionFacts, _: &ConnectionEnd) {
        self.0.closed(Side::Accepted);
    }
}

async fn run_worker(mut share: WorkerShare, unready: Arc<AtomicUsize>, limit: ConnectionLimit, mut flushes: broadcast::Receiver<IpAddr>) {
    let telemetry = share.telemetry.worker();
    let observer = Arc::new(Logged(Arc::clone(&telemetry.costs)));
    let dialer = Dialer {
        pool: Pool::new(PoolOptions::default(), Arc::clone(&observer) as _),
        tls: Arc::clone(&share.tls),
        accepted: Arc::clone(&share.accepted),
        originator: Arc::clone(&share.originator),
        introduction: Arc::clone(&share.introduction),
    };
    let pool = dialer.pool.clone();
    tokio::spawn(async move {
        loop {
            match flushes.recv().await {
                Ok(address) => pool.flush(SocketAddr::new(address, HBONE_PORT)),
                // Connections to pods that were missed here fail on their keepalive.
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "pods removed faster than tunnels were given up")
                }
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    let worker = Arc::new(Worker::new(Arc::clone(&share.published), dialer, telemetry));
    let mut drain = share.drain.clone();
    let addresses = tokio::select! {
        biased;
        () = drain.stopped() => return,
        addresses = share.addresses.wait_for(|addresses| !addresses.is_empty()) => match addresses {
            Ok(addresses) => addresses.clone(),
            Err(_) => return,
        },
    };
    let server = Arc::new(server(&share, worker, Arc::clone(&observer)));
    let mut loops = Vec::new();
    for address in addresses {
        match bind(address) {
            Ok(listener) => {
                let accepting = Accepting {
                    limit: limit.clone(),
                    drain: share.drain.clone(),
                    on_drain: OnDrain::KeepAccepting,
                    observer: Arc::clone(&observer) as _,
                };
                let server = Arc::clone(&server);
                loops.push(tokio::spawn(accept_loop(listener, accepting, move |tcp, peer, permit| {
                    let server = Arc::clone(&server);
                    tokio::spawn(async move {
                        let _permit = permit;
                        server.serve_connection(tcp, peer).await;
                    });
                })));
            }
            Err(error) => {
                tracing::error!(%address, %error, "cannot listen for HBONE");
                return;
            }
        }
    }
    if unready.fetch_sub(1, Ordering::AcqRel) == 1 {
        share.readiness.listening();
        tracing::info!("listening for HBONE");
    }
    for accepting in loops {
        // A loop that panicked has said so already.
        let _ = accepting.await;
    }
    drain.stopped().await;
}

/// The HBONE server of one worker.
fn server(share: &WorkerShare, worker: Arc<Worker>, observer: Arc<Logged>) -> Server<impl crate::hbone::server::ConnectHandler + use<>> {
    let options = share.published.generation().map_or_else(ServerOptions::default, |generation| {
        let terminate = &generation.listeners.terminate;
        let mut options = ServerOptions::default();
        options.streams_max = options.streams_max.max(terminate.concurrent_streams_max);
        options.keepalive = KeepaliveOptions { interval: terminate.keepalive_interval, timeout: terminate.keepalive_timeout };
        options
    });
    let drain = share.drain.clone();
    let handler = move |connect: Connect| serve_connect(connect, Arc::clone(&worker), drain.clone());
    Server::new(Arc::clone(&share.tls), handler, observer, options, share.drain.clone())
}
