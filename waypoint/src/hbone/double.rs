//! HBONE to another network, through its gateway: a tunnel inside a tunnel.
//!
//! The outer one is any tunnel to the gateway, which passes on what is in it by its authority; in it whoever serves the service there
//! speaks HBONE again. Not for: the outer one, which is the pool's. Invariant: an inner connection carries one tunnel and ends with it,
//! so that the gateway chooses again for the next.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use model::authority::Authority;

use super::client::{ClientOptions, ConnectError, Established, OpenFailure, Place, Tunnel, establish, open};
use super::pool::PoolObserver;
use super::stream::{HboneStream, StreamLease};
use super::{ConnectionFacts, client};
use crate::tls::{ClientTls, TlsFailure};

/// Opens a tunnel to `authority` inside a tunnel to the gateway.
///
/// # Errors
/// Why there is none. Nothing of its payload was sent.
///
/// # Cancel safety
/// Safe: both tunnels end.
pub async fn open_inside(
    outer: HboneStream,
    gateway: SocketAddr,
    tls: &ClientTls,
    (authority, headers): (&Authority, &HeaderMap),
    observer: &dyn PoolObserver,
) -> Result<HboneStream, ConnectError> {
    let options = ClientOptions::default();
    let local_address = outer.connection().local_address;
    let began = Instant::now();
    let (stream, handshake) = tls.connect(outer, gateway.ip()).await.map_err(ConnectError::Tls)?;
    observer.tls_established(began.elapsed());
    let facts = Arc::new(ConnectionFacts::new(gateway, local_address, handshake));
    let Established { send, mut driver, failure } = establish(stream, &options).await?;
    tokio::spawn(async move {
        // Whatever ends it, its one tunnel is told.
        let _end = poll_fn(|cx| driver.poll_end(cx)).await;
    });
    let place = Place { send, lease: StreamLease::take(&Arc::default()), facts };
    let tunnel = Tunnel { authority, headers, answer_timeout: options.answer_timeout };
    open(place, &tunnel).await.map_err(|failed| match (failed, failure.get()) {
        (OpenFailure::Failed(error), _) => error,
        // A peer that refuses our certificate says so after the handshake.
        (_, Some(error)) if client::is_of_tls(error) => ConnectError::Tls(TlsFailure::from_io(error)),
        _ => ConnectError::ConnectionLost,
    })
}
