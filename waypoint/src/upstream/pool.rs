//! HTTP sessions of one worker: idle HTTP/1.1 ones wait here, HTTP/2 ones are shared.
//!
//! Not for: HBONE connections, which have a pool of their own below. Keyed by cluster, endpoint and what its stream wears, so that
//! a session never serves another service, nor one that is verified otherwise, nor another client where the application is told who it is. Idle sessions are bounded over all keys, the least
//! recently used goes first (`pingora-pool`).
//! Where a cluster's connections are limited, requests wait in line for one; each worker may have one to each endpoint whatever
//! the others have, so that nobody waits for what never comes (Envoy).

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Instant;

use model::authority::Authority;
use model::cluster::ConnectionUse;
use model::endpoint::{Endpoint, EndpointAddress};
use model::route::Priority;
use model::transport::Transport;
use model::workload::Workload;
use parking_lot::Mutex;
use pingora_pool::{ConnectionMeta, ConnectionPool};
use tokio::sync::Notify;

use super::connect::{ConnectFailure, Destination, Dialer, UpstreamIo, dial, timed_out};
use super::proxy_protocol::Proxied;
use crate::hbone::KeepaliveOptions;
use crate::http::client::{ClientOptions, ClientSession};
use crate::http::session::Protocol;
use crate::state::breaker::{Overflow, Permit, Resource};
use crate::state::published::ServedCluster;
use crate::tls::originate::Inside;

/// Idle HTTP/1.1 sessions that one worker keeps, over all endpoints.
pub const IDLE_SESSIONS_MAX: usize = 1024;
/// Endpoints with a shared HTTP/2 session before those that have ended are swept out.
const SHARED_SWEEP_AT: usize = 256;
/// Clients with HTTP/2 sessions of their own, where applications are told who the client is; beyond, the one that asked longest ago loses its.
const CLIENTS_SHARED_MAX: usize = 1024;
/// HTTP/2 sessions to one endpoint of a cluster; beyond, requests wait for the peer's stream limit.
const SHARED_PER_ENDPOINT_MAX: usize = 8;
/// The same where a cluster limits the streams of a connection; beyond, the first carries more.
const LIMITED_PER_ENDPOINT_MAX: usize = 1024;

/// Which sessions are alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    cluster: Arc<str>,
    endpoint: EndpointAddress,
    /// Behind a gateway of another network: what is asked for there. One gateway leads to many services.
    remote: Option<Authority>,
    transport: Transport,
    /// Where the transport or the endpoint depends on it.
    host: Option<Box<str>>,
    /// Where the application is told of it: what one client says must not reach it in the name of another.
    proxied: Option<Proxied>,
}

/// What a connection has been used for.
#[derive(Clone, Copy, Debug)]
struct Used {
    since: Instant,
    requests: u32,
}

impl Used {
    fn now() -> Self {
        Self { since: Instant::now(), requests: 0 }
    }

    /// Whether it takes no more requests.
    fn is_worn_out(&self, rules: &ConnectionUse) -> bool {
        rules.requests_max.is_some_and(|max| self.requests >= max) || rules.duration_max.is_some_and(|max| self.since.elapsed() >= max)
    }
}

/// What is known of both ends of a connection.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// Ours; none inside a tunnel.
    pub local_address: Option<SocketAddr>,
    /// Theirs, where the endpoint has several.
    pub remote_address: Option<SocketAddr>,
    /// Who the other says it is, where that is asked for.
    pub peer: Option<Arc<Workload>>,
}

struct Open {
    session: ClientSession,
    ends: Ends,
    used: Used,
    /// When a request last took it.
    taken: Instant,
}

type Shared = Arc<tokio::sync::Mutex<Vec<Open>>>;

struct Idle {
    key: Key,
    ends: Ends,
    session: ClientSession,
    since: Instant,
    used: Used,
    line: Option<Arc<Line>>,
}

/// Where requests wait for one of the connections to an endpoint that its cluster may have.
#[derive(Debug, Default)]
struct Line {
    /// Connections of this worker.
    open: AtomicU32,
    /// A connection became idle, or there may be another one.
    freed: Notify,
}

/// Counts a connection as long as it lives.
#[derive(Debug)]
struct Counted {
    line: Arc<Line>,
    _permit: Option<Permit>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.line.open.fetch_sub(1, Ordering::Relaxed);
        self.line.freed.notify_one();
    }
}

impl Line {
    /// None: it has to be waited for one that is there.
    fn connection(self: &Arc<Self>, wanted: &Wanted<'_>) -> Option<Counted> {
        let breakers = &wanted.cluster.breakers;
        let permit = match breakers.take(Resource::Connection, wanted.priority) {
            Ok(permit) => permit,
            Err(Overflow) if self.open.load(Ordering::Relaxed) > 0 => return None,
            Err(Overflow) => breakers.take_anyway(Resource::Connection, wanted.priority),
        };
        self.open.fetch_add(1, Ordering::Relaxed);
        Some(Counted { line: Arc::clone(self), _permit: permit })
    }
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSession {
    /// As many requests wait for a connection as may.
    Overflow,
    /// None could be made; the true cause.
    Connect(ConnectFailure),
}

impl From<ConnectFailure> for NoSession {
    fn from(failure: ConnectFailure) -> Self {
        Self::Connect(failure)
    }
}

impl From<Overflow> for NoSession {
    fn from(_: Overflow) -> Self {
        Self::Overflow
    }
}

/// A worker's sessions.
pub struct SessionPool {
    idle: ConnectionPool<Idle>,
    next_id: AtomicI32,
    hasher: foldhash::fast::RandomState,
    shared: Mutex<HashMap<Key, Shared>>,
    lines: Mutex<HashMap<Key, Arc<Line>>>,
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
    /// Of its connection.
    pub ends: Ends,
    used: Used,
    /// Set when it is known that it takes no more requests.
    is_last: bool,
    line: Option<Arc<Line>>,
}

impl Lease {
    /// One more request on a connection that was not shared before.
    fn of_one(session: ClientSession, key: Key, ends: Ends, wanted: &Wanted<'_>) -> Self {
        let used = Used { requests: 1, ..Used::now() };
        let is_last = used.is_worn_out(&wanted.cluster.cluster.connections);
        Self { session, key, is_reused: false, ends, used, is_last, line: None }
    }
}

/// Where a session is to lead.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The cluster.
    pub cluster: &'a ServedCluster,
    /// One of its endpoints.
    pub endpoint: &'a Endpoint,
    /// What is to be spoken.
    pub protocol: Protocol,
    /// Whose circuit breakers count.
    pub priority: Priority,
    /// The host of the request.
    pub host: Option<&'a str>,
    /// On whose behalf.
    pub proxied: Option<Proxied>,
}

impl<'a> Wanted<'a> {
    fn transport(&self) -> &'a Transport {
        self.cluster.cluster.sockets.of(&self.endpoint.socket_labels)
    }

    /// The host, where the transport depends on it, or the cluster has hosts of which two may share an address.
    fn host(&self) -> Option<&'a str> {
        let depends = || self.cluster.by_host.is_some() || self.transport().tls.as_ref().is_some_and(|tls| tls.depends_on_host());
        self.host.filter(|_| depends())
    }

    /// The client, where the application is told of it.
    fn proxied(&self) -> Option<Proxied> {
        self.proxied.filter(|_| self.transport().proxy_protocol.is_some())
    }

    fn key(&self) -> Key {
        Key {
            cluster: Arc::clone(&self.cluster.cluster.name),
            endpoint: self.endpoint.address,
            remote: self.endpoint.remote.clone(),
            transport: self.transport().clone(),
            host: self.host().map(Into::into),
            proxied: self.proxied(),
        }
    }
}

/// A handle of an open HTTP/2 session that takes another request; of the first, when there are as many as there may be.
fn usable(open: &mut Vec<Open>, key: &Key, rules: &ConnectionUse) -> Option<Lease> {
    open.retain(|one| one.session.is_open() && !one.used.is_worn_out(rules));
    // All are at the peer's limit of streams: another one, up to a bound; then wait on the first.
    let ready = open.iter().position(|one| one.session.is_ready());
    let open_max = if rules.streams_max.is_some() { LIMITED_PER_ENDPOINT_MAX } else { SHARED_PER_ENDPOINT_MAX };
    let at = ready.or((open.len() >= open_max).then_some(0))?;
    share(open.get_mut(at)?, key)
}

fn share(open: &mut Open, key: &Key) -> Option<Lease> {
    open.used.requests = open.used.requests.saturating_add(1);
    open.taken = Instant::now();
    Some(Lease {
        session: open.session.share()?,
        key: key.clone(),
        is_reused: true,
        ends: open.ends.clone(),
        used: open.used,
        is_last: false,
        line: None,
    })
}

impl Default for SessionPool {
    fn default() -> Self {
        Self {
            idle: ConnectionPool::new(IDLE_SESSIONS_MAX),
            next_id: AtomicI32::new(0),
            hasher: foldhash::fast::RandomState::default(),
            shared: Mutex::default(),
            lines: Mutex::default(),
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
        let rules = &wanted.cluster.cluster.connections;
        match wanted.protocol {
            Protocol::Http1 if fresh => None,
            Protocol::Http1 => self.take_idle(key, rules),
            Protocol::Http2 => {
                let slot = Arc::clone(self.shared.lock().get(&key)?);
                let mut held = slot.try_lock().ok()?;
                usable(&mut held, &key, rules)
            }
        }
    }

    /// A new session, or one that another request makes or gives back meanwhile.
    ///
    /// # Errors
    /// None could be made, or too many wait.
    ///
    /// # Cancel safety
    /// Safe: a session that was made meanwhile is lost, nothing else.
    pub async fn make(&self, wanted: Wanted<'_>, dialer: &Dialer) -> Result<Lease, NoSession> {
        let _pending = wanted.cluster.breakers.take(Resource::PendingRequest, wanted.priority)?;
        let key = wanted.key();
        let line = wanted.cluster.breakers.limits_connections(wanted.priority).then(|| self.line(&key));
        match (wanted.protocol, line) {
            (Protocol::Http1, None) => {
                let (session, ends) = self.connect(wanted, dialer, None).await?;
                Ok(Lease::of_one(session, key, ends, &wanted))
            }
            (Protocol::Http1, Some(line)) => self.make_in_line(wanted, dialer, key, line).await,
            (Protocol::Http2, line) => self.make_shared(wanted, dialer, key, line).await,
        }
    }

    /// Waits until the endpoint may have another connection, or one becomes idle.
    async fn make_in_line(&self, wanted: Wanted<'_>, dialer: &Dialer, key: Key, line: Arc<Line>) -> Result<Lease, NoSession> {
        loop {
            if let Some(counted) = line.connection(&wanted) {
                let (session, ends) = self.connect(wanted, dialer, Some(counted)).await?;
                return Ok(Lease { line: Some(line), ..Lease::of_one(session, key, ends, &wanted) });
            }
            // What is freed before anyone waits is remembered.
            line.freed.notified().await;
            if let Some(lease) = self.at_hand(wanted, false) {
                return Ok(lease);
            }
        }
    }

    async fn make_shared(&self, wanted: Wanted<'_>, dialer: &Dialer, key: Key, line: Option<Arc<Line>>) -> Result<Lease, NoSession> {
        let slot = Arc::clone(self.shared.lock().entry(key.clone()).or_default());
        // One connect at a time for an endpoint; whoever waited finds the session.
        // Nobody waits in a line of connects to an endpoint that is gone: as if the wait were their own connect.
        let timeout = wanted.cluster.cluster.connect_timeout;
        let (mut held, counted) = loop {
            let mut held = pingora_timeout::timeout(timeout, slot.lock()).await.map_err(|_elapsed| timed_out())?;
            if let Some(lease) = usable(&mut held, &key, &wanted.cluster.cluster.connections) {
                return Ok(lease);
            }
            let Some(line) = &line else { break (held, None) };
            if let Some(counted) = line.connection(&wanted) {
                break (held, Some(counted));
            }
            // No further connection may be made: this one waits for the peer's stream limit, or until one that takes no more has ended.
            if let Some(lease) = held.first_mut().and_then(|open| share(open, &key)) {
                return Ok(lease);
            }
            drop(held);
            line.freed.notified().await;
        };
        // Before there is a session, so that places of those that never come about go as well.
        self.sweep(&slot);
        let (session, ends) = self.connect(wanted, dialer, counted).await?;
        let used = Used { requests: 1, ..Used::now() };
        held.extend(session.share().map(|session| Open { session, ends: ends.clone(), used, taken: used.since }));
        drop(held);
        if let Some(line) = line {
            // It is there for all who wait.
            line.freed.notify_waiters();
        }
        Ok(Lease { session, key, is_reused: false, ends, used, is_last: false, line: None })
    }

    /// Takes an HTTP/1.1 session back. Its exchange is over; one that cannot go on is dropped.
    pub fn give_back(&self, lease: Lease) {
        if lease.is_last || lease.session.is_shared() || !lease.session.is_open() {
            return;
        }
        let group = self.hasher.hash_one(&lease.key);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let line = lease.line.clone();
        let idle =
            Idle { key: lease.key, ends: lease.ends, session: lease.session, since: Instant::now(), used: lease.used, line: lease.line };
        // The pool's signals are for watchers of idle connections; here the session's driver sees a close.
        let _ = self.idle.put(&ConnectionMeta::new(group, id), idle);
        if let Some(line) = line {
            line.freed.notify_one();
        }
    }

    /// Takes in an HTTP/1.1 session that was made elsewhere, as if its exchange were over: over a pipe, to measure without a network.
    pub fn put_idle(&self, cluster: &ServedCluster, endpoint: &Endpoint, session: ClientSession) {
        let key = Wanted { cluster, endpoint, protocol: Protocol::Http1, priority: Priority::default(), host: None, proxied: None }.key();
        let used = Used::now();
        self.give_back(Lease { session, key, is_reused: false, ends: Ends::default(), used, is_last: false, line: None });
    }

    fn take_idle(&self, key: Key, rules: &ConnectionUse) -> Option<Lease> {
        let is_fresh = |since: Instant| rules.idle_timeout.is_none_or(|limit| since.elapsed() < limit);
        let group = self.hasher.hash_one(&key);
        while let Some(mut idle) = self.idle.get(&group) {
            // Equal hashes are not equal keys: a session must never serve another endpoint.
            if idle.key == key && idle.session.is_ready() && is_fresh(idle.since) && !idle.used.is_worn_out(rules) {
                idle.used.requests = idle.used.requests.saturating_add(1);
                return Some(Lease {
                    session: idle.session,
                    key,
                    is_reused: true,
                    ends: idle.ends,
                    is_last: idle.used.is_worn_out(rules),
                    used: idle.used,
                    line: idle.line,
                });
            }
        }
        None
    }

    fn line(&self, key: &Key) -> Arc<Line> {
        let mut lines = self.lines.lock();
        if lines.len() >= SHARED_SWEEP_AT {
            lines.retain(|_, line| Arc::strong_count(line) > 1);
        }
        Arc::clone(lines.entry(key.clone()).or_default())
    }

    async fn connect(
        &self,
        wanted: Wanted<'_>,
        dialer: &Dialer,
        counted: Option<Counted>,
    ) -> Result<(ClientSession, Ends), ConnectFailure> {
        let inside = match wanted.protocol {
            Protocol::Http1 => Inside::Http1,
            Protocol::Http2 => Inside::Http2,
        };
        let keepalive = wanted.cluster.cluster.connections.tcp_keepalive.as_ref();
        let to = Destination {
            address: &wanted.endpoint.address,
            others: &wanted.endpoint.others,
            remote: wanted.endpoint.remote.as_ref(),
            transport: wanted.transport(),
            inside,
            host: wanted.host(),
            proxied: wanted.proxied(),
            keepalive,
        };
        let io = dial(&to, dialer, wanted.cluster.cluster.connect_timeout).await?;
        let remote_address = if to.others.is_empty() { None } else { io.remote_address() };
        let ends = Ends { local_address: io.local_address(), remote_address, peer: dialer.peer_of(&io) };
        Ok((self.session(io, wanted, counted).await?, ends))
    }

    async fn session(&self, io: UpstreamIo, wanted: Wanted<'_>, counted: Option<Counted>) -> Result<ClientSession, ConnectFailure> {
        let rules = &wanted.cluster.cluster.connections;
        let options = ClientOptions {
            streams_max: rules.streams_max.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
            keepalive: rules.ping.map(|ping| KeepaliveOptions { interval: ping.interval, timeout: ping.timeout }),
            idle_timeout: rules.idle_timeout,
            keeps_header_case: rules.keeps_header_case,
            gathers_writes: io.is_socket(),
            ..self.options.clone()
        };
        let made = ClientSession::handshake(io, wanted.protocol, &options).await;
        let (session, driver) = made.map_err(|error| ConnectFailure { reason: error.to_string().into() })?;
        match counted {
            None => tokio::spawn(driver),
            Some(counted) => tokio::spawn(async move {
                driver.await;
                drop(counted);
            }),
        };
        Ok(session)
    }

    /// Forgets HTTP/2 sessions that have ended or never came about, and of those that serve one client only the ones that were not taken for longest: nobody
    /// says when a client has gone. What is forgotten ends after its last request.
    fn sweep(&self, newest: &Shared) {
        let mut shared = self.shared.lock();
        if shared.len() >= SHARED_SWEEP_AT {
            shared.retain(|_, slot| slot.try_lock().map_or(true, |held| held.iter().any(|open| open.session.is_open())));
        }
        let of_one_client = |key: &Key| key.proxied.is_some();
        while shared.keys().filter(|key| of_one_client(key)).count() > CLIENTS_SHARED_MAX {
            let taken = |slot: &Shared| slot.try_lock().ok().and_then(|held| held.iter().map(|open| open.taken).max());
            let known = shared.iter().filter(|(key, slot)| of_one_client(key) && !Arc::ptr_eq(slot, newest));
            let Some(oldest) = known.filter_map(|(key, slot)| Some((taken(slot)?, key))).min_by_key(|(taken, _)| *taken) else { return };
            let oldest = oldest.1.clone();
            shared.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use arc_swap::ArcSwap;
    use model::baggage::Baggage;
    use model::cluster::{Cluster, Discovery};
    use model::endpoint::{EndpointAddress, EndpointSet};

    use super::*;
    use crate::hbone::pool::{Pool, PoolOptions};
    use crate::tls::MeshTls;
    use crate::tls::originate::Originator;
    use crate::tls::verify::PeerMatcher;
    use crate::upstream::introduction::Introduction;

    fn dialer() -> Dialer {
        let tls = Arc::new(MeshTls::new());
        Dialer {
            pool: Pool::new(PoolOptions::default(), Arc::new(())),
            originator: Arc::new(Originator::new(Arc::clone(&tls), Arc::default())),
            tls,
            accepted: Arc::new(ArcSwap::from_pointee(PeerMatcher::any())),
            introduction: Introduction::new("", &Baggage::default()),
        }
    }

    #[tokio::test]
    async fn connects_that_fail_leave_a_bounded_number_of_places() {
        let cluster = ServedCluster::new(Arc::new(Cluster::named("c", Discovery::Eds("c".into()))), Arc::new(EndpointSet::default()));
        let (sessions, dialer) = (SessionPool::default(), dialer());
        for number in 0..3 * SHARED_SWEEP_AT {
            // Nobody listens on this port.
            let address = format!("127.9.{}.{}:1", number / 250, number % 250 + 1).parse().unwrap();
            let endpoint = Endpoint::at(EndpointAddress::Plain(address));
            let wanted = Wanted {
                cluster: &cluster,
                endpoint: &endpoint,
                protocol: Protocol::Http2,
                priority: Priority::default(),
                host: None,
                proxied: None,
            };
            assert!(sessions.make(wanted, &dialer).await.is_err());
        }
        assert!(sessions.shared.lock().len() <= SHARED_SWEEP_AT, "{} places", sessions.shared.lock().len());
    }
}
