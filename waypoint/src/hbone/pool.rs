//! HBONE connections to pods, kept and shared: as many TLS connections per pod as its tunnels need, not more.
//!
//! Not for: choosing the pod, or trying another one.
//! One pool per worker. A connection is keyed by tunnel address, by whom we accept there, and by the generation of our
//! identity: a rotated certificate means new connections, and the old ones end with their last stream.
//! Invariants: one dial at a time per key; a connection is handed out until it has [`PoolOptions::streams_max`] streams
//! or a GOAWAY; a connection that turns out stale is replaced once, unseen by the caller.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::HeaderMap;
use model::authority::Authority;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::client::{ClientOptions, ConnectError, Dialled, Driver, Io, OpenFailure, Place, Tunnel, dial, open};
use super::coalesce::Failure;
use super::stream::{HboneStream, StreamCount, StreamLease};
use super::{ConnectionEnd, Open, Upstream};
use crate::tls::verify::PeerMatcher;
use crate::tls::{ClientTls, TlsFailure, rustls_cause};

/// How often a tunnel that finds all connections taken waits for the next dial. With 100 streams per connection this
/// lets 3,200 tunnels to one pod begin at once.
const DIALS_AWAITED_MAX: usize = 32;

/// How often a CONNECT is sent: once, and once more if its connection turns out stale.
const ATTEMPTS_MAX: usize = 2;

/// Limits of a pool, all with defaults.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Of each connection.
    pub client: ClientOptions,
    /// Streams per connection before another is opened; the peer's own limit counts too (ztunnel: 200).
    pub streams_max: usize,
    /// Connections of one pool.
    pub connections_max: usize,
    /// A connection without streams for this long is closed, at the latest after twice as long (Envoy: 1 h).
    pub idle_timeout: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { client: ClientOptions::default(), streams_max: 100, connections_max: 16_384, idle_timeout: Duration::from_secs(3600) }
    }
}

/// Is told what happens to connections, for logs and metrics. It must not block.
pub trait PoolObserver: Send + Sync + 'static {
    /// A connection is established.
    fn connection_opened(&self, _connection: &Upstream) {}
    /// A TCP connection was made, to a tunnel or without one.
    fn tcp_connected(&self, _took: Duration) {}
    /// A TLS handshake succeeded, with a pod or with an application.
    fn tls_established(&self, _took: Duration) {}
    /// A dial failed.
    fn dial_failed(&self, _address: SocketAddr, _error: &ConnectError) {}
    /// A connection is over; told of each that was opened, whatever becomes of who drives it.
    fn connection_closed(&self, _connection: &Upstream, _end: &ConnectionEnd) {}
    /// A CONNECT is sent again because its connection was stale.
    fn stale_retried(&self, _address: SocketAddr) {}
}

/// Tells nobody.
impl PoolObserver for () {}

/// A pool; clones share it.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pool").field("connections", &self.connections()).finish_non_exhaustive()
    }
}

struct Shared {
    options: PoolOptions,
    observer: Arc<dyn PoolObserver>,
    by_address: Mutex<HashMap<SocketAddr, Vec<Destination>, foldhash::fast::RandomState>>,
    /// Connections ever established; each takes its number from here.
    established: AtomicU64,
    /// Connections that are dialled or open.
    connections: AtomicUsize,
}

/// All connections of one key.
struct Destination {
    accepted: Arc<PeerMatcher>,
    generation: u64,
    connections: Vec<Arc<Pooled>>,
    dialling: Option<watch::Receiver<Option<Result<(), ConnectError>>>>,
}

/// One connection. Its sender is gone once it must not be used for new streams.
struct Pooled {
    number: u64,
    send: Mutex<Option<SendRequest<Bytes>>>,
    streams: Arc<StreamCount>,
    facts: Arc<Upstream>,
    failure: Arc<Failure>,
    /// Some CONNECT was answered: the peer accepts us.
    proven: AtomicBool,
    /// A stream was opened since the idle timer last looked.
    used: AtomicBool,
}

impl Pooled {
    /// No new streams; the connection ends with its last one.
    fn retire(&self) {
        drop(self.send.lock().take());
    }

    /// A place for one more stream. An error means that the connection takes no more at all.
    fn place(&self, streams_max: usize) -> Result<Option<Place>, ()> {
        let Some(mut send) = self.send.lock().clone() else { return Err(()) };
        // This fails after a GOAWAY and on a closed connection; it waits for nothing else on a fresh clone.
        match send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Err(()),
            Poll::Pending => return Ok(None),
        }
        if self.streams.get() >= streams_max.min(send.current_max_send_streams()) {
            return Ok(None);
        }
        self.used.store(true, Ordering::Relaxed);
        let lease = StreamLease::take(&self.streams);
        Ok(Some(Place { send, lease, facts: Arc::clone(&self.facts) }))
    }

    /// What a connection that was lost says about why.
    fn loss(&self) -> ConnectError {
        match self.failure.get() {
            Some(error) if rustls_cause(error).is_some() => ConnectError::Tls(TlsFailure::from_io(error)),
            _ => ConnectError::ConnectionLost,
        }
    }
}

enum Found {
    Place(Arc<Pooled>, Place),
    Dialling(watch::Receiver<Option<Result<(), ConnectError>>>),
}

impl Pool {
    /// An empty pool. It lives on the runtime that first opens a tunnel with it.
    #[must_use]
    pub fn new(options: PoolOptions, observer: Arc<dyn PoolObserver>) -> Self {
        let by_address = Mutex::default();
        Self(Arc::new(Shared { options, observer, by_address, established: AtomicU64::new(0), connections: AtomicUsize::new(0) }))
    }

    /// Opens a tunnel to `authority` through the HBONE port at `address`, over a kept connection if there is one.
    /// Cancel safe: dropping the future resets the stream; a dial under way goes on for others.
    ///
    /// # Errors
    /// Why there is no tunnel. Nothing of its payload was sent.
    pub async fn open(
        &self,
        address: SocketAddr,
        tls: &Arc<ClientTls>,
        authority: &Authority,
        headers: &HeaderMap,
    ) -> Result<HboneStream, ConnectError> {
        let tunnel = Tunnel { authority, headers, answer_timeout: self.0.options.client.answer_timeout };
        // Connections of a lower number are not used.
        let mut number_min = 0;
        for attempt in 1..=ATTEMPTS_MAX {
            let (pooled, place) = self.place(address, tls, number_min).await?;
            let established = self.0.established.load(Ordering::Acquire);
            let failure = match open(place, &tunnel).await {
                Ok(stream) => {
                    pooled.proven.store(true, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(failure) => failure,
            };
            let stale = match failure {
                OpenFailure::Failed(error) => {
                    if matches!(error, ConnectError::TunnelStatus(_) | ConnectError::TunnelReset(_)) {
                        pooled.proven.store(true, Ordering::Relaxed);
                    }
                    return Err(error);
                }
                OpenFailure::Refused => true,
                OpenFailure::Lost => pooled.proven.load(Ordering::Relaxed),
            };
            self.0.forget(address, pooled.number);
            if !stale || attempt == ATTEMPTS_MAX {
                return Err(pooled.loss());
            }
            self.0.observer.stale_retried(address);
            // Others that were there when this attempt began may be as stale.
            number_min = established;
        }
        Err(ConnectError::ConnectionLost)
    }

    /// Who is told what happens.
    #[must_use]
    pub fn observer(&self) -> &dyn PoolObserver {
        &*self.0.observer
    }

    /// Forgets the connections to a tunnel address: the pod is gone, or is another one now. Streams finish.
    pub fn flush(&self, address: SocketAddr) {
        let removed = self.0.by_address.lock().remove(&address);
        for destination in removed.unwrap_or_default() {
            destination.retire();
        }
    }

    /// How many connections are dialled or open, retired ones included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    async fn place(&self, address: SocketAddr, tls: &Arc<ClientTls>, number_min: u64) -> Result<(Arc<Pooled>, Place), ConnectError> {
        for _ in 0..DIALS_AWAITED_MAX {
            let mut dialling = match self.find(address, tls, number_min)? {
                Found::Place(pooled, place) => return Ok((pooled, place)),
                Found::Dialling(dialling) => dialling,
            };
            match dialling.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(Err(error))) => return Err(error.clone()),
                Ok(_) => {}
                // The dial was dropped with its runtime.
                Err(_) => return Err(ConnectError::ConnectionLost),
            }
        }
        Err(ConnectError::PoolFull)
    }

    /// Finds a place, or the dial that will make one.
    fn find(&self, address: SocketAddr, tls: &Arc<ClientTls>, number_min: u64) -> Result<Found, ConnectError> {
        let streams_max = self.0.options.streams_max;
        let mut by_address = self.0.by_address.lock();
        let destinations = by_address.entry(address).or_default();
        destinations.retain(|destination| {
            let outdated = destination.accepted == *tls.accepted() && destination.generation < tls.generation();
            if outdated {
                destination.retire();
            }
            !outdated
        });
        let key = |destination: &&mut Destination| destination.accepted == *tls.accepted() && destination.generation == tls.generation();
        if let Some(destination) = destinations.iter_mut().find(key) {
            if let Some((pooled, place)) = destination.place(streams_max, number_min) {
                return Ok(Found::Place(pooled, place));
            }
            if let Some(dialling) = &destination.dialling {
                return Ok(Found::Dialling(dialling.clone()));
            }
        }
        let dialling = match self.dial(address, tls) {
            Ok(dialling) => dialling,
            Err(error) => {
                if destinations.is_empty() {
                    by_address.remove(&address);
                }
                return Err(error);
            }
        };
        match destinations.iter_mut().find(key) {
            Some(destination) => destination.dialling = Some(dialling.clone()),
            None => destinations.push(Destination {
                accepted: Arc::clone(tls.accepted()),
                generation: tls.generation(),
                connections: Vec::new(),
                dialling: Some(dialling.clone()),
            }),
        }
        Ok(Found::Dialling(dialling))
    }

    /// Starts a dial in a task of its own, which then drives the connection.
    fn dial(&self, address: SocketAddr, tls: &Arc<ClientTls>) -> Result<watch::Receiver<Option<Result<(), ConnectError>>>, ConnectError> {
        let counted = Counted::new(&self.0).ok_or(ConnectError::PoolFull)?;
        let (sender, dialling) = watch::channel(None);
        let tls = Arc::clone(tls);
        tokio::spawn(async move {
            let shared = Arc::clone(&counted.0);
            match dial(address, &tls, &shared.options.client, &*shared.observer).await {
                Err(error) => {
                    shared.observer.dial_failed(address, &error);
                    shared.dialled(address, &tls, None);
                    sender.send_replace(Some(Err(error)));
                }
                Ok(dialled) => {
                    let Dialled { send, driver, facts, failure } = dialled;
                    let pooled = Arc::new(Pooled {
                        number: shared.established.fetch_add(1, Ordering::AcqRel),
                        send: Mutex::new(Some(send)),
                        streams: Arc::default(),
                        facts,
                        failure,
                        proven: AtomicBool::new(false),
                        used: AtomicBool::new(true),
                    });
                    shared.observer.connection_opened(&pooled.facts);
                    let living = Open::new(|end| {
                        shared.forget(address, pooled.number);
                        shared.observer.connection_closed(&pooled.facts, end);
                    });
                    shared.dialled(address, &tls, Some(&pooled));
                    sender.send_replace(Some(Ok(())));
                    living.ends(shared.drive(address, &pooled, driver).await);
                }
            }
        });
        Ok(dialling)
    }
}

/// Counts one connection, dialled or open, for as long as it lives.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> Option<Self> {
        let counted = Self(Arc::clone(shared));
        (shared.connections.fetch_add(1, Ordering::Relaxed) < shared.options.connections_max).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Destination {
    fn retire(&self) {
        for pooled in &self.connections {
            pooled.retire();
        }
    }

    /// A place on the first connection that has one; connections that take no more streams are forgotten on the way.
    fn place(&mut self, streams_max: usize, number_min: u64) -> Option<(Arc<Pooled>, Place)> {
        let mut found = None;
        self.connections.retain(|pooled| {
            if found.is_some() || pooled.number < number_min {
                return true;
            }
            match pooled.place(streams_max) {
                Ok(place) => {
                    found = place.map(|place| (Arc::clone(pooled), place));
                    true
                }
                Err(()) => {
                    pooled.retire();
                    false
                }
            }
        });
        found
    }
}

impl Shared {
    /// Enters the result of a dial. If the address was flushed meanwhile, or the identity replaced, the connection serves
    /// those who wait for it (they find it by dialling anew) no more, and ends.
    fn dialled(&self, address: SocketAddr, tls: &ClientTls, pooled: Option<&Arc<Pooled>>) {
        let mut by_address = self.by_address.lock();
        let destinations = by_address.get_mut(&address);
        let key = |destination: &&mut Destination| destination.accepted == *tls.accepted() && destination.generation == tls.generation();
        let destination = destinations.and_then(|destinations| destinations.iter_mut().find(key));
        match (destination, pooled) {
            (Some(destination), Some(pooled)) => {
                destination.dialling = None;
                destination.connections.push(Arc::clone(pooled));
            }
            (Some(destination), None) => {
                destination.dialling = None;
                Self::prune(&mut by_address, address);
            }
            (None, Some(pooled)) => pooled.retire(),
            (None, None) => {}
        }
    }

    /// Removes a connection and ends it after its last stream.
    fn forget(&self, address: SocketAddr, number: u64) {
        let mut by_address = self.by_address.lock();
        let Some(destinations) = by_address.get_mut(&address) else { return };
        for destination in destinations.iter_mut() {
            destination.connections.retain(|pooled| {
                if pooled.number == number {
                    pooled.retire();
                }
                pooled.number != number
            });
        }
        Self::prune(&mut by_address, address);
    }

    /// Drops what holds nothing any more, so that the map does not grow with every pod that ever was.
    fn prune(by_address: &mut HashMap<SocketAddr, Vec<Destination>, foldhash::fast::RandomState>, address: SocketAddr) {
        if let Some(destinations) = by_address.get_mut(&address) {
            destinations.retain(|destination| !destination.connections.is_empty() || destination.dialling.is_some());
            if destinations.is_empty() {
                by_address.remove(&address);
            }
        }
    }

    /// Drives a connection to its end; retires it when it has been idle for long.
    async fn drive(&self, address: SocketAddr, pooled: &Pooled, mut driver: Driver<Io>) -> ConnectionEnd {
        let mut idle = tokio::time::interval(self.options.idle_timeout.max(Duration::from_millis(1)));
        idle.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        idle.reset();
        loop {
            tokio::select! {
                biased;
                end = std::future::poll_fn(|cx| driver.poll_end(cx)) => return end,
                _ = idle.tick() => {
                    let used = pooled.used.swap(false, Ordering::Relaxed);
                    if !used && pooled.streams.get() == 0 {
                        self.forget(address, pooled.number);
                        pooled.retire();
                    }
                }
            }
        }
    }
}
