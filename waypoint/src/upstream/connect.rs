//! Dials an endpoint: plain TCP, or a CONNECT over pooled HBONE, and TLS on it if its cluster says so. What comes back is a byte
//! stream to the application.
//!
//! Not for: choosing the endpoint, or HTTP. Invariants: the connect timeout covers everything up to a usable stream; a stream that
//! should wear TLS is never handed out without.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use model::authority::Authority;
use model::baggage::Baggage;
use model::cluster::TcpKeepalive;
use model::endpoint::EndpointAddress;
use model::transport::{TlsOrigination, Transport};
use model::workload::Workload;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::eyeballs;
use super::http_tunnel::Tunnelled;
use super::introduction::{BAGGAGE, FROM_WAYPOINT, Introduction};
use super::proxy_protocol::{self, Proxied};
use crate::hbone::client::ConnectError;
use crate::hbone::double;
use crate::hbone::pool::Pool;
use crate::hbone::stream::HboneStream;
use crate::tls::originate::{Inside, Originator};
use crate::tls::verify::PeerMatcher;
use crate::tls::{ClientTls, MeshTls, TlsFailure};

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
    /// TLS on one of the others.
    Tls(Box<TlsStream<UpstreamIo>>),
    /// What an HTTP proxy at the end of one of the others has connected to.
    Tunnelled(Box<Tunnelled>),
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
            Self::Hbone(_) | Self::Tunnelled(_) => None,
            Self::Tls(stream) => stream.get_ref().0.local_address(),
        }
    }

    /// Whether what is written goes to a socket of ours, through TLS or not, and not into a tunnel.
    #[must_use]
    pub fn is_socket(&self) -> bool {
        match self {
            Self::Tcp(_) => true,
            Self::Hbone(_) | Self::Tunnelled(_) => false,
            Self::Tls(stream) => stream.get_ref().0.is_socket(),
        }
    }

    /// The other end of a plain connection; none inside a tunnel.
    #[must_use]
    pub fn remote_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Hbone(_) | Self::Tunnelled(_) => None,
            Self::Tls(stream) => stream.get_ref().0.remote_address(),
        }
    }

    /// The tunnel that carries it to the application, if one does.
    fn tunnel(&self) -> Option<&HboneStream> {
        match self {
            Self::Hbone(stream) => Some(stream),
            Self::Tls(stream) => stream.get_ref().0.tunnel(),
            Self::Tcp(_) | Self::Tunnelled(_) => None,
        }
    }
}

/// Where a stream is to lead, and what it is to wear.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The endpoint.
    pub address: &'a EndpointAddress,
    /// Where it is as well.
    pub others: &'a [SocketAddr],
    /// Behind a gateway: what is asked for there.
    pub remote: Option<&'a Authority>,
    /// What the stream wears.
    pub transport: &'a Transport,
    /// What is spoken in it.
    pub inside: Inside,
    /// The host of the request that it is made for, where the transport depends on it.
    pub host: Option<&'a str>,
    /// Whom it is made for, where the application is told.
    pub proxied: Option<Proxied>,
    /// TCP's probes, if they are not to be ours.
    pub keepalive: Option<&'a TcpKeepalive>,
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
    /// TLS to applications.
    pub originator: Arc<Originator>,
    /// What the other ends are told of us.
    pub introduction: Arc<Introduction>,
}

impl Dialer {
    /// The application at the other end as its tunnel's answer says, if the configuration lets us read it. For labels only.
    #[must_use]
    pub fn peer_of(&self, io: &UpstreamIo) -> Option<Arc<Workload>> {
        let stream = io.tunnel()?;
        let text = stream.answer_headers().get(BAGGAGE)?.to_str().ok()?;
        let told = self.introduction.told();
        told.reads_pods.then(|| Baggage::read(text).workload(&stream.connection().peer, ""))?
    }
}

/// Dials.
///
/// # Errors
/// The true cause of the last try; a stale pooled tunnel was tried again on a fresh connection already.
///
/// # Cancel safety
/// Safe: nothing was sent to the application.
pub async fn dial(to: &Destination<'_>, dialer: &Dialer, timeout: Duration) -> Result<UpstreamIo, ConnectFailure> {
    let Some(tls) = &to.transport.tls else {
        return pingora_timeout::timeout(timeout, introduced(to, dialer)).await.map_err(|_| timed_out())?;
    };
    // Before anything is dialled: without its certificates there is no stream at all.
    let config =
        dialer.originator.client(tls, to.inside).map_err(|error| ConnectFailure { reason: format!("TLS error: {error}").into() })?;
    let server_name = server_name(tls, to)?;
    let connected = async {
        let carrier = introduced(to, dialer).await?;
        let began = Instant::now();
        let stream = TlsConnector::from(config).connect(server_name, carrier).await;
        if stream.is_ok() {
            dialer.pool.observer().tls_established(began.elapsed());
        }
        stream.map(|stream| UpstreamIo::Tls(Box::new(stream))).map_err(|error| ConnectFailure { reason: describe_tls(&error).into() })
    };
    pingora_timeout::timeout(timeout, connected).await.map_err(|_| timed_out())?
}

/// The stream that carries all else, once the application has been told who its client is, if it is to be.
async fn introduced(to: &Destination<'_>, dialer: &Dialer) -> Result<UpstreamIo, ConnectFailure> {
    let mut carrier = carry(to, dialer).await?;
    if let Some(version) = to.transport.proxy_protocol {
        let reached = carrier.remote_address().unwrap_or_else(|| to.address.target());
        let header = proxy_protocol::header(version, to.proxied, reached);
        let told = async {
            carrier.write_all(&header).await?;
            carrier.flush().await
        };
        told.await.map_err(|error| ConnectFailure { reason: describe(&error) })?;
    }
    Ok(carrier)
}

/// Whether it is a port of the proxy itself, for whom loopback is trusted. An unspecified address is this host, too.
fn is_own(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    (ip.is_loopback() || ip.is_unspecified()) && OWN_PORTS.contains(&address.port())
}

/// A stream to the endpoint.
async fn carry(to: &Destination<'_>, dialer: &Dialer) -> Result<UpstreamIo, ConnectFailure> {
    match to.address {
        EndpointAddress::Plain(address) if is_own(address) || to.others.iter().any(is_own) => {
            Err(ConnectFailure { reason: "the endpoint is a port of the proxy itself".into() })
        }
        EndpointAddress::Plain(address) => {
            let began = Instant::now();
            let stream = eyeballs::connect(*address, to.others).await.map_err(|error| ConnectFailure { reason: describe(&error) })?;
            dialer.pool.observer().tcp_connected(began.elapsed());
            // Options that a socket may lack without harm.
            let _ = stream.set_nodelay(true);
            let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&probes(to.keepalive));
            Ok(UpstreamIo::Tcp(stream))
        }
        EndpointAddress::Hbone { tunnel, target } => {
            let stream =
                dialer.pool.open(*tunnel, &mesh_tls(dialer)?, &Authority::Address(*target), &dialer.introduction.told().pods).await;
            Ok(UpstreamIo::Hbone(stream.map_err(no_tunnel)?))
        }
        EndpointAddress::Gateway(gateway) => {
            let remote = to.remote.ok_or(ConnectFailure { reason: "no service behind the gateway".into() })?;
            let tls = mesh_tls(dialer)?;
            let outer = dialer.pool.open(*gateway, &tls, remote, &FROM_WAYPOINT).await.map_err(no_tunnel)?;
            let told = dialer.introduction.told();
            let inner = double::open_inside(outer, *gateway, &tls, (remote, &told.networks), dialer.pool.observer()).await;
            Ok(UpstreamIo::Hbone(inner.map_err(no_tunnel)?))
        }
    }
}

fn mesh_tls(dialer: &Dialer) -> Result<Arc<ClientTls>, ConnectFailure> {
    let tls = dialer.tls.client(&dialer.accepted.load_full()).map_err(|error| ConnectFailure { reason: error.to_string().into() })?;
    tls.ok_or(ConnectFailure { reason: "no workload certificate yet".into() })
}

fn no_tunnel(error: ConnectError) -> ConnectFailure {
    ConnectFailure { reason: error.transport_failure_reason() }
}

fn probes(rules: Option<&TcpKeepalive>) -> socket2::TcpKeepalive {
    const OURS: TcpKeepalive = TcpKeepalive { time: Some(TCP_KEEPALIVE_INTERVAL), interval: Some(TCP_KEEPALIVE_INTERVAL), probes: None };
    let rules = rules.unwrap_or(&OURS);
    let probes = socket2::TcpKeepalive::new();
    let probes = rules.time.map_or(probes.clone(), |time| probes.with_time(time));
    let probes = rules.interval.map_or(probes.clone(), |interval| probes.with_interval(interval));
    rules.probes.map_or(probes.clone(), |number| probes.with_retries(number))
}

/// What is asked for in the handshake; an address, which is never sent, where there is no name.
fn server_name(tls: &TlsOrigination, to: &Destination<'_>) -> Result<ServerName<'static>, ConnectFailure> {
    let host = to.host.filter(|_| tls.server_name_from_host).map(without_port);
    let Some(name) = host.or(tls.server_name.as_deref()) else { return Ok(ServerName::from(to.address.target().ip())) };
    let name = ServerName::try_from(name.trim_start_matches('[').trim_end_matches(']').to_owned());
    name.map_err(|_| ConnectFailure { reason: "TLS error: the host is no server name".into() })
}

/// The host of an authority.
fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) => host,
        _ => authority,
    }
}

/// As Envoy brackets what TLS says; the words are rustls's and ours.
fn describe_tls(error: &io::Error) -> String {
    match TlsFailure::from_io(error) {
        failure if failure.is_of_certificate() => format!("TLS_error:|CERTIFICATE_VERIFY_FAILED:{failure}:TLS_error_end"),
        failure => format!("TLS_error:|{failure}:TLS_error_end"),
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
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
            Self::Tunnelled(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Hbone(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            Self::Tunnelled(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Hbone(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
            Self::Tunnelled(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Hbone(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Tunnelled(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Hbone(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
            Self::Tunnelled(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Hbone(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            Self::Tunnelled(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests;
