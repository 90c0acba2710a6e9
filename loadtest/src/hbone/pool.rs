//! A fixed number of HBONE connections to one address, made when first needed and made again when broken.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderMap;
use tokio::sync::Mutex;

use super::client::{Connection, Connector, HboneError};
use super::stream::HboneStream;

/// The connections. Streams are spread over them in turn, or by an index of the caller's.
#[derive(Debug)]
pub struct Pool {
    connector: Connector,
    address: SocketAddr,
    slots: Vec<Mutex<Slot>>,
    next: AtomicUsize,
}

#[derive(Debug, Default)]
struct Slot {
    connection: Option<Connection>,
    /// Counts connections made, so that a stream that failed forgets its own connection and no newer one.
    generation: u64,
}

impl Pool {
    /// `connections` of at least 1; none is made yet.
    pub fn new(connector: Connector, address: SocketAddr, connections: usize) -> Self {
        let slots = (0..connections.max(1)).map(|_| Mutex::default()).collect();
        Self { connector, address, slots, next: AtomicUsize::new(0) }
    }

    /// Makes all connections now; the first error ends it.
    pub async fn connect_all(&self) -> Result<(), HboneError> {
        for index in 0..self.slots.len() {
            self.connection(index).await?;
        }
        Ok(())
    }

    /// A connection that is not of the pool's: the caller ends it by dropping it.
    pub async fn connect(&self) -> Result<Connection, HboneError> {
        self.connector.connect(self.address).await
    }

    /// CONNECT on the next connection in turn.
    pub async fn open(&self, target: &str, headers: HeaderMap) -> Result<HboneStream, HboneError> {
        self.open_on(self.next.fetch_add(1, Ordering::Relaxed), target, headers).await
    }

    /// CONNECT on connection `index` (modulo their number). A connection that turns out broken is made anew next time.
    pub async fn open_on(&self, index: usize, target: &str, headers: HeaderMap) -> Result<HboneStream, HboneError> {
        let (connection, generation) = self.connection(index).await?;
        let opened = connection.open(target, headers).await;
        if let Err(HboneError::Http2(_)) = opened {
            let mut slot = self.slots[index % self.slots.len()].lock().await;
            if slot.generation == generation {
                slot.connection = None;
            }
        }
        opened
    }

    /// One dial at a time per slot: those who wait for it share its result.
    async fn connection(&self, index: usize) -> Result<(Connection, u64), HboneError> {
        let mut slot = self.slots[index % self.slots.len()].lock().await;
        if let Some(connection) = &slot.connection {
            return Ok((connection.clone(), slot.generation));
        }
        let connection = self.connector.connect(self.address).await?;
        slot.generation += 1;
        slot.connection = Some(connection.clone());
        Ok((connection, slot.generation))
    }
}
