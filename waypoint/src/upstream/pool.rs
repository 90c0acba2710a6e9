//! HTTP sessions of one worker: idle HTTP/1.1 ones wait here, HTTP/2 ones are shared.
//!
//! Not for: HBONE connections, which have a pool of their own below. Keyed by cluster and endpoint, so that a session never
//! serves another service. Idle sessions are bounded over all keys, the least recently used goes first (`pingora-pool`).

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use model::endpoint::EndpointAddress;
use parking_lot::Mutex;
use pingora_pool::{ConnectionMeta, ConnectionPool};

use super::connect::{ConnectFailure, Dialer, UpstreamIo, dial, timed_out};
use crate::http::client::{ClientOptions, ClientSession};
use crate::http::session::Protocol;
use crate::state::published::ServedCluster;

/// Idle HTTP/1.1 sessions that one worker keeps, over all endpoints.
pub const IDLE_SESSIONS_MAX: usize = 1024;
/// Endpoints with a shared HTTP/2 session before those that have ended are swept out.
const SHARED_SWEEP_AT: usize = 256;
/// HTTP/2 sessions to one endpoint of a cluster; beyond, requests wait for the peer's stream limit.
const SHARED_PER_ENDPOINT_MAX: usize = 8;
/// How long an idle session is kept when its cluster does not say; Envoy's default.
const IDLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(3600);

/// Which sessions are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    cluster: Arc<str>,
    endpoint: EndpointAddress,
}

type Open = Vec<(ClientSession, Option<SocketAddr>)>;
type Shared = Arc<tokio::sync::Mutex<Open>>;

struct Idle {
    key: Key,
    local_address: Option<SocketAddr>,
    session: ClientSession,
    since: Instant,
}

/// A worker's sessions.
pub struct SessionPool {
    idle: ConnectionPool<Idle>,
    next_id: AtomicI32,
    hasher: foldhash::fast::RandomState,
    shared: Mutex<HashMap<Key, Shared>>,
    options: ClientOptions,
}

impl std::fmt::Debug for SessionPool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SessionPool").finish_non_exhaustive()
    }
}

/// A session in use; an HTTP/1.1 one goes back when its exchange is over.
#[derive(Debug)]
pub struct Lease {
    /// The session.
    pub session: ClientSession,
    key: Key,
    /// Whether it was idle before: what fails at once may only have been stale.
    pub is_reused: bool,
    /// Our end of its connection; none inside a tunnel.
    pub local_address: Option<SocketAddr>,
}

/// Where a session is to lead.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The cluster.
    pub cluster: &'a ServedCluster,
    /// One of its endpoints.
    pub endpoint: &'a EndpointAddress,
    /// What is to be spoken.
    pub protocol: Protocol,
}

impl Wanted<'_> {
    fn key(&self) -> Key {
        Key { cluster: Arc::clone(&self.cluster.cluster.name), endpoint: *self.endpoint }
    }
}

/// A handle of an open HTTP/2 session that takes another request; of the first, when there are as many as there may be.
fn usable(open: &mut Open, key: Key) -> Option<Lease> {
    open.retain(|(session, _)| session.is_open());
    let ready = open.iter().find(|(session, _)| session.is_ready());
    // All are at the peer's limit of streams: another one, up to a bound; then wait on the first.
    let (session, local_address) = ready.or_else(|| open.first().filter(|_| open.len() >= SHARED_PER_ENDPOINT_MAX))?;
    Some(Lease { session: session.share()?, key, is_reused: true, local_address: *local_address })
}

impl Default for SessionPool {
    fn default() -> Self {
        Self {
            idle: ConnectionPool::new(IDLE_SESSIONS_MAX),
            next_id: AtomicI32::new(0),
            hasher: foldhash::fast::RandomState::default(),
            shared: Mutex::default(),
            options: ClientOptions::default(),
        }
    }
}

impl SessionPool {
    /// An idle or shared session, if there is one: what nearly every request finds, without waiting. `fresh`: no idle HTTP/1.1 session,
    /// they may be as stale as the one before; an HTTP/2 session knows whether its connection has ended.
    #[must_use]
    pub fn at_hand(&self, wanted: Wanted<'_>, fresh: bool) -> Option<Lease> {
        let key = wanted.key();
        match wanted.protocol {
            Protocol::Http1 if fresh => None,
            Protocol::Http1 => {
                let idle = self.take_idle(&key, wanted.cluster.cluster.idle_timeout.unwrap_or(IDLE_TIMEOUT_DEFAULT))?;
                Some(Lease { session: idle.session, key, is_reused: true, local_address: idle.local_address })
            }
            Protocol::Http2 => {
                let slot = Arc::clone(self.shared.lock().get(&key)?);
                let mut held = slot.try_lock().ok()?;
                usable(&mut held, key)
            }
        }
    }

    /// A new session, or an HTTP/2 one that another request makes meanwhile.
    ///
    /// # Errors
    /// None could be made; the true cause.
    ///
    /// # Cancel safety
    /// Safe: a session that was made meanwhile is lost, nothing else.
    pub async fn make(&self, wanted: Wanted<'_>, dialer: &Dialer) -> Result<Lease, ConnectFailure> {
        let key = wanted.key();
        if wanted.protocol == Protocol::Http1 {
            let (session, local_address) = self.connect(wanted, dialer).await?;
            return Ok(Lease { session, key, is_reused: false, local_address });
        }
        let slot = Arc::clone(self.shared.lock().entry(key.clone()).or_default());
        // One connect at a time for an endpoint; whoever waited finds the session.
        // Nobody waits in a line of connects to an endpoint that is gone: as if the wait were their own connect.
        let timeout = wanted.cluster.cluster.connect_timeout;
        let mut held = pingora_timeout::timeout(timeout, slot.lock()).await.map_err(|_elapsed| timed_out())?;
        if let Some(lease) = usable(&mut held, key.clone()) {
            return Ok(lease);
        }
        let (session, local_address) = self.connect(wanted, dialer).await?;
        held.extend(session.share().map(|session| (session, local_address)));
        drop(held);
        self.sweep();
        Ok(Lease { session, key, is_reused: false, local_address })
    }

    /// Takes an HTTP/1.1 session back. Its exchange is over; one that cannot go on is dropped.
    pub fn give_back(&self, lease: Lease) {
        if lease.session.is_shared() || !lease.session.is_open() {
            return;
        }
        let group = self.hasher.hash_one(&lease.key);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let idle = Idle { key: lease.key, local_address: lease.local_address, session: lease.session, since: Instant::now() };
        // The pool's signals are for watchers of idle connections; here the session's driver sees a close.
        let _ = self.idle.put(&ConnectionMeta::new(group, id), idle);
    }

    /// Takes in an HTTP/1.1 session that was made elsewhere, as if its exchange were over: over a pipe, to measure without a network.
    pub fn put_idle(&self, cluster: &ServedCluster, endpoint: &EndpointAddress, session: ClientSession) {
        let key = Key { cluster: Arc::clone(&cluster.cluster.name), endpoint: *endpoint };
        self.give_back(Lease { session, key, is_reused: false, local_address: None });
    }

    fn take_idle(&self, key: &Key, idle_timeout: Duration) -> Option<Idle> {
        let group = self.hasher.hash_one(key);
        while let Some(idle) = self.idle.get(&group) {
            // Equal hashes are not equal keys: a session must never serve another endpoint.
            if idle.key == *key && idle.session.is_ready() && idle.since.elapsed() < idle_timeout {
                return Some(idle);
            }
        }
        None
    }

    async fn connect(&self, wanted: Wanted<'_>, dialer: &Dialer) -> Result<(ClientSession, Option<SocketAddr>), ConnectFailure> {
        let io = dial(wanted.endpoint, dialer, wanted.cluster.cluster.connect_timeout).await?;
        let local_address = io.local_address();
        Ok((self.session(io, wanted.protocol).await?, local_address))
    }

    async fn session(&self, io: UpstreamIo, protocol: Protocol) -> Result<ClientSession, ConnectFailure> {
        let made = ClientSession::handshake(io, protocol, &self.options).await;
        let (session, driver) = made.map_err(|error| ConnectFailure { reason: error.to_string().into() })?;
        tokio::spawn(driver);
        Ok(session)
    }

    /// Forgets HTTP/2 sessions that have ended.
    fn sweep(&self) {
        let mut shared = self.shared.lock();
        if shared.len() >= SHARED_SWEEP_AT {
            shared.retain(|_, slot| slot.try_lock().map_or(true, |held| held.iter().any(|(session, _)| session.is_open())));
        }
    }
}
