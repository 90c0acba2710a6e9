//! Listening sockets and the accept loop.
//!
//! Not for: what is done with a connection.
//! Invariants: each worker has its own socket for the same address (`SO_REUSEPORT`), so the kernel spreads connections;
//! a process out of descriptors waits instead of spinning; a connection that was accepted by the kernel is served or
//! closed, never forgotten.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::drain::DrainWatch;

/// Connections that the kernel may hold for us (it applies `net.core.somaxconn` as well).
const BACKLOG: i32 = 4096;

/// First and longest pause after the system could not give us a socket.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Connections taken from the kernel's queue after a listener was told to end: they would be reset otherwise.
const LAST_ACCEPTS_MAX: usize = 4096;

/// TCP keepalive, as on ztunnel's sockets: after 180 s of silence, nine probes 180 s apart.
const KEEPALIVE_TIME: Duration = Duration::from_secs(180);
const KEEPALIVE_PROBES: u32 = 9;

/// Connections that may be open at a time unless set otherwise; each takes a descriptor.
pub const CONNECTIONS_MAX: usize = 65_536;

/// What every TCP connection of the mesh gets: no delay, and keepalive.
///
/// # Errors
/// Those of the system, as when the peer is gone already.
pub fn tune(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_TIME).with_retries(KEEPALIVE_PROBES);
    SockRef::from(tcp).set_tcp_keepalive(&keepalive)
}

/// The addresses to listen on for a port of the pod: all of its families, each with a socket of its own.
#[must_use]
pub fn wildcard(port: u16, ipv4: bool, ipv6: bool) -> Vec<SocketAddr> {
    let v4 = ipv4.then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
    let v6 = ipv6.then(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    v4.into_iter().chain(v6).collect()
}

/// Binds one listener that other workers can bind, too. Must be called within a runtime: the one that will accept.
///
/// # Errors
/// Those of the system: the port is taken, the address is not ours, no permission.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // IPv4 has its own socket; a dual one would conflict with it.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// How many connections may be open at a time; clones share the number.
#[derive(Clone, Debug)]
pub struct ConnectionLimit(Arc<Semaphore>);

impl ConnectionLimit {
    /// At most `connections_max`.
    #[must_use]
    pub fn new(connections_max: usize) -> Self {
        Self(Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))))
    }

    /// How many more may be opened now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.0.available_permits()
    }
}

impl Default for ConnectionLimit {
    fn default() -> Self {
        Self::new(CONNECTIONS_MAX)
    }
}

/// Holds one of the connections of a limit.
#[must_use = "the connection is counted for as long as this lives"]
#[derive(Debug)]
pub struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
}

/// What a listener does when the process drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrain {
    /// Goes on until the deadline: clients learn of our end later than we do, and what they open meanwhile is served
    /// (and told to leave, where the protocol can).
    KeepAccepting,
    /// Ends at once; what the kernel has accepted is still served.
    StopAccepting,
}

/// What the accept loop tells, for logs and metrics. It must not block.
pub trait ListenObserver: Send + Sync {
    /// The limit is reached; the connection was closed.
    fn over_limit(&self, _peer: SocketAddr) {}
    /// The system gave no connection; the next try comes after the pause, if there is one.
    fn accept_failed(&self, _error: &io::Error, _pause: Option<Duration>) {}
}

/// Tells nobody.
impl ListenObserver for () {}

/// What governs one accept loop.
#[derive(Clone)]
pub struct Accepting {
    /// Shared by all listeners that it bounds.
    pub limit: ConnectionLimit,
    /// When to end.
    pub drain: DrainWatch,
    /// How to end.
    pub on_drain: OnDrain,
    /// Whom to tell.
    pub observer: Arc<dyn ListenObserver>,
}

impl std::fmt::Debug for Accepting {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Accepting").field("limit", &self.limit).field("on_drain", &self.on_drain).finish_non_exhaustive()
    }
}

/// Accepts connections and gives each to `serve`, which must not block (spawn). Returns when the drain says so.
pub async fn accept_loop<F>(listener: TcpListener, accepting: Accepting, serve: F)
where
    F: Fn(TcpStream, SocketAddr, ConnectionPermit),
{
    let mut drain = accepting.drain.clone();
    let end = async {
        match accepting.on_drain {
            OnDrain::KeepAccepting => drain.stopped().await,
            OnDrain::StopAccepting => drain.draining().await,
        }
    };
    let mut end = std::pin::pin!(end);
    let mut backoff = BACKOFF_MIN;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut end => break,
            accepted = listener.accept() => accepted,
        };
        let error = match accepted {
            Ok((tcp, peer)) => {
                backoff = BACKOFF_MIN;
                accepting.admit(tcp, peer, &serve);
                continue;
            }
            Err(error) => error,
        };
        if is_peers_fault(&error) {
            accepting.observer.accept_failed(&error, None);
            continue;
        }
        accepting.observer.accept_failed(&error, Some(backoff));
        tokio::select! {
            biased;
            () = &mut end => break,
            () = tokio::time::sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
    accepting.last_accepts(&listener, &serve).await;
}

/// Whether a connection broke before we took it (accept(2)): the next one may be fine.
fn is_peers_fault(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

impl Accepting {
    fn admit<F: Fn(TcpStream, SocketAddr, ConnectionPermit)>(&self, tcp: TcpStream, peer: SocketAddr, serve: &F) {
        let Ok(permit) = Arc::clone(&self.limit.0).try_acquire_owned() else {
            self.observer.over_limit(peer);
            return;
        };
        match tune(&tcp) {
            Ok(()) => serve(tcp, peer, ConnectionPermit { _permit: permit }),
            Err(error) => self.observer.accept_failed(&error, None),
        }
    }

    /// Takes what the kernel has completed already.
    async fn last_accepts<F: Fn(TcpStream, SocketAddr, ConnectionPermit)>(&self, listener: &TcpListener, serve: &F) {
        for _ in 0..LAST_ACCEPTS_MAX {
            let accepted = std::future::poll_fn(|cx| match listener.poll_accept(cx) {
                std::task::Poll::Ready(Ok(accepted)) => std::task::Poll::Ready(Some(accepted)),
                std::task::Poll::Ready(Err(_)) | std::task::Poll::Pending => std::task::Poll::Ready(None),
            });
            match accepted.await {
                Some((tcp, peer)) => self.admit(tcp, peer, serve),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use parking_lot::Mutex;
    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::drain::drain;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[derive(Default)]
    struct Seen(Mutex<usize>);

    impl ListenObserver for Seen {
        fn over_limit(&self, _: SocketAddr) {
            *self.0.lock() += 1;
        }
    }

    type Served = (TcpStream, ConnectionPermit);

    fn start(
        limit: usize,
        on_drain: OnDrain,
    ) -> (SocketAddr, crate::drain::Drain, mpsc::UnboundedReceiver<Served>, tokio::task::JoinHandle<()>, Arc<Seen>) {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (decider, watch) = drain();
        let seen = Arc::new(Seen::default());
        let accepting = Accepting { limit: ConnectionLimit::new(limit), drain: watch, on_drain, observer: Arc::clone(&seen) as _ };
        let (sender, served) = mpsc::unbounded_channel();
        let serve = move |tcp, _, permit| sender.send((tcp, permit)).unwrap();
        let running = tokio::spawn(accept_loop(listener, accepting, serve));
        (address, decider, served, running, seen)
    }

    #[tokio::test]
    async fn what_is_above_the_limit_is_closed_and_told() {
        let (address, _drain, mut served, _running, seen) = start(1, OnDrain::KeepAccepting);
        let _first = TcpStream::connect(address).await.unwrap();
        let (first, permit) = timeout(DEADLINE, served.recv()).await.unwrap().unwrap();
        assert!(first.nodelay().unwrap());
        let mut second = TcpStream::connect(address).await.unwrap();
        assert_eq!(timeout(DEADLINE, second.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
        assert_eq!(*seen.0.lock(), 1);
        drop(permit);
        let _third = TcpStream::connect(address).await.unwrap();
        assert!(timeout(DEADLINE, served.recv()).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_drain_stops_accepting_now_or_at_its_deadline() {
        let (address, drain, mut served, running, _seen) = start(8, OnDrain::StopAccepting);
        // Completed by the kernel before the loop has run: served all the same.
        let _queued = TcpStream::connect(address).await.unwrap();
        drain.begin(Instant::now() + DEADLINE);
        timeout(DEADLINE, running).await.unwrap().unwrap();
        assert!(served.recv().await.is_some());
        assert!(TcpStream::connect(address).await.is_err());

        let (address, drain, mut served, running, _seen) = start(8, OnDrain::KeepAccepting);
        drain.begin(Instant::now() + DEADLINE);
        let _late = TcpStream::connect(address).await.unwrap();
        assert!(timeout(DEADLINE, served.recv()).await.unwrap().is_some());
        drain.stop();
        timeout(DEADLINE, running).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn workers_share_an_address_and_families_do_not_collide() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let _second = bind(address).unwrap();
        // Both wildcards at one port; a machine without IPv6 has no second socket to collide with.
        let kept: Vec<_> = wildcard(address.port(), true, true).into_iter().map(bind).collect();
        assert!(kept.iter().all(|bound| !matches!(bound, Err(error) if error.kind() == io::ErrorKind::AddrInUse)), "{kept:?}");
        assert!(kept[0].is_ok());
        assert_eq!(wildcard(15008, false, true), ["[::]:15008".parse().unwrap()]);
    }
}
