//! Dials an endpoint: plain TCP, or a CONNECT over pooled HBONE. What comes back is a byte stream to the application.
//!
//! Not for: choosing the endpoint, or HTTP. Invariant: the connect timeout covers everything up to a usable stream.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::HeaderMap;
use model::authority::Authority;
use model::endpoint::EndpointAddress;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::hbone::pool::Pool;
use crate::hbone::stream::HboneStream;
use crate::tls::MeshTls;
use crate::tls::verify::PeerMatcher;

/// The time before the first keepalive probe of a plain upstream connection, and between probes; ztunnel's.
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(180);

/// Ports of this process that answer loopback more than others; no service leads there.
const OWN_PORTS: [u16; 2] = [15000, 15020];

/// A byte stream to an application.
#[derive(Debug)]
pub enum UpstreamIo {
    /// Plain TCP.
    Tcp(TcpStream),
    /// Inside a tunnel.
    Hbone(HboneStream),
}

/// No stream could be had; the reason in Envoy's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectFailure {
    /// `delayed connect error: Connection refused`, `tunnel_response:503`, `TLS error: …`.
    pub reason: Cow<'static, str>,
}

impl UpstreamIo {
    /// Our end of a plain connection; none inside a tunnel.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Hbone(_) => None,
        }
    }
}

/// What a worker dials with.
#[derive(Clone, Debug)]
pub struct Dialer {
    /// Tunnels to pods, kept and shared.
    pub pool: Pool,
    /// Who we are.
    pub tls: Arc<MeshTls>,
    /// Whom we accept at the other end of a tunnel.
    pub accepted: Arc<ArcSwap<PeerMatcher>>,
}

/// Dials.
///
/// # Errors
/// The true cause of the last try; a stale pooled tunnel was tried again on a fresh connection already.
///
/// # Cancel safety
/// Safe: nothing was sent to the application.
pub async fn dial(address: &EndpointAddress, dialer: &Dialer, timeout: Duration) -> Result<UpstreamIo, ConnectFailure> {
    match address {
        EndpointAddress::Plain(address) if address.ip().is_loopback() && OWN_PORTS.contains(&address.port()) => {
            Err(ConnectFailure { reason: "the endpoint is a port of the proxy itself".into() })
        }
        EndpointAddress::Plain(address) => {
            let connected = pingora_timeout::timeout(timeout, TcpStream::connect(address)).await.map_err(|_| timed_out())?;
            let stream = connected.map_err(|error| ConnectFailure { reason: describe(&error) })?;
            // Options that a socket may lack without harm.
            let _ = stream.set_nodelay(true);
            let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE_INTERVAL).with_interval(TCP_KEEPALIVE_INTERVAL);
            let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
            Ok(UpstreamIo::Tcp(stream))
        }
        EndpointAddress::Hbone { tunnel, target } => {
            let tls =
                dialer.tls.client(&dialer.accepted.load_full()).map_err(|error| ConnectFailure { reason: error.to_string().into() })?;
            let tls = tls.ok_or(ConnectFailure { reason: "no workload certificate yet".into() })?;
            let (target, no_headers) = (Authority::Address(*target), HeaderMap::new());
            let opened = pingora_timeout::timeout(timeout, dialer.pool.open(*tunnel, &tls, &target, &no_headers));
            let stream = opened.await.map_err(|_| timed_out())?;
            Ok(UpstreamIo::Hbone(stream.map_err(|error| ConnectFailure { reason: error.transport_failure_reason() })?))
        }
    }
}

/// As Envoy names a connect that took longer than it may.
pub(super) fn timed_out() -> ConnectFailure {
    ConnectFailure { reason: "delayed connect error: Connection timed out".into() }
}

fn describe(error: &io::Error) -> Cow<'static, str> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "delayed connect error: Connection refused".into(),
        io::ErrorKind::TimedOut => "delayed connect error: Connection timed out".into(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "delayed connect error: No route to host".into(),
        kind => format!("delayed connect error: {kind}").into(),
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Hbone(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Hbone(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Hbone(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Hbone(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Hbone(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Hbone(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
