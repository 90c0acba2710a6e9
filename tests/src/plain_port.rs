//! A plain local port into the mesh, for curl and oha: each connection to it becomes a tunnel of one caller to one service.
//!
//! Invariant: at most [`TUNNELS_PER_CONNECTION`] tunnels share an HBONE connection, below what a waypoint has to allow.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::peer::{Connection, Peer, Tunnel};

/// Waypoints advertise 100.
const TUNNELS_PER_CONNECTION: usize = 80;
/// HBONE connections that one port keeps.
const CONNECTIONS_MAX: usize = 64;

struct Shared {
    connection: Connection,
    n_tunnels: Arc<AtomicUsize>,
}

struct Caller {
    peer: Peer,
    waypoint: SocketAddr,
    authority: String,
    connections: Mutex<Vec<Shared>>,
}

/// Counts a tunnel as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn one_more(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Caller {
    fn at_hand(&self) -> Option<(Connection, Counted)> {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let free = connections.iter().find(|shared| shared.n_tunnels.load(Ordering::Relaxed) < TUNNELS_PER_CONNECTION)?;
        Some((free.connection.clone(), Counted::one_more(&free.n_tunnels)))
    }

    async fn connection(&self) -> Result<(Connection, Counted)> {
        while let Some((connection, counted)) = self.at_hand() {
            if connection.takes_streams().await {
                return Ok((connection, counted));
            }
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.retain(|shared| !Arc::ptr_eq(&shared.n_tunnels, &counted.0));
        }
        let connection = self.peer.connect(self.waypoint).await?;
        let n_tunnels = Arc::new(AtomicUsize::new(0));
        let counted = Counted::one_more(&n_tunnels);
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.len() < CONNECTIONS_MAX {
            connections.push(Shared { connection: connection.clone(), n_tunnels });
        }
        Ok((connection, counted))
    }

    async fn tunnel(&self) -> Result<(Tunnel, Counted)> {
        let (connection, counted) = self.connection().await?;
        Ok((connection.tunnel(&self.authority).await?, counted))
    }

    async fn carry(&self, mut plain: TcpStream) -> Result<()> {
        plain.set_nodelay(true)?;
        let (mut tunnel, _counted) = self.tunnel().await?;
        tokio::io::copy_bidirectional(&mut plain, &mut tunnel).await?;
        Ok(())
    }
}

/// A port that is open as long as this lives.
#[derive(Debug)]
pub struct PlainPort {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for PlainPort {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl PlainPort {
    /// Listens on 127.0.0.1: on `port` if it is free, else on any. Whoever connects speaks to `authority` as `peer`, through `waypoint`.
    pub async fn open(port: u16, peer: Peer, waypoint: SocketAddr, authority: &str) -> Result<Self> {
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?,
        };
        let address = listener.local_addr()?;
        let caller = Arc::new(Caller { peer, waypoint, authority: authority.to_owned(), connections: Mutex::default() });
        let accepting = tokio::spawn(async move {
            while let Ok((plain, _)) = listener.accept().await {
                let caller = Arc::clone(&caller);
                tokio::spawn(async move {
                    // A connection that fails is closed, which is all that its client can be told.
                    drop(caller.carry(plain).await);
                });
            }
        });
        Ok(Self { address, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
