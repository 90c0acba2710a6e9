//! One CONNECT, from its authority to the chain that serves it.
//!
//! Not for: HBONE itself, requests, bytes. Invariants: what nobody attached is refused by name and logged once; a CONNECT
//! sees one generation of listeners from beginning to end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::StatusCode;
use model::authority::Authority;
use model::baggage::Baggage;
use model::chain::{ChainKind, TcpChain};
use model::dispatch::{Lookup, SniffedProtocol};
use model::flags::ResponseFlag;
use model::workload::Workload;
use telemetry::record::RequestRecord;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::drain::DrainWatch;
use crate::hbone::Downstream;
use crate::hbone::server::Connect;
use crate::http::session::{Protocol, ServeError, ServerOptions, serve};
use crate::request::{ChainOfTunnel, Inspection, TunnelContext, TunnelExchange, head_options};
use crate::sniff::{Hello, Replay, SNIFF_BYTES_MAX, Sniffed, Wanted};
use crate::state::published::{Generation, ServedChain};
use crate::tcp::{self, Need, TcpReady};
use crate::upstream::introduction::{BAGGAGE, VIA, X_FORWARDED_NETWORK};
use crate::worker::Worker;

/// How long a tunnel to an HTTP service may be silent before its first request; Envoy's idle timeout of connections.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(3600);
/// The same from the beginning of a drain: what a client sends with its tunnel is served, and silent tunnels do not hold up the end.
const FIRST_BYTE_TIMEOUT_DRAINING: Duration = Duration::from_secs(2);
/// How long a client may be silent where the protocol is not declared before it counts as no HTTP; Envoy's inspector waits as long.
pub const SNIFF_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it is silent before the endpoint is dialled, which may be the one that speaks first (MySQL, SMTP, SSH).
const SERVER_FIRST_DELAY: Duration = Duration::from_millis(200);
/// The same for a service whose endpoint has done so before.
const SERVER_FIRST_DELAY_LEARNED: Duration = Duration::from_millis(10);

/// Serves one CONNECT to its end.
pub async fn serve_connect(mut connect: Connect, worker: Arc<Worker>, drain: DrainWatch) {
    connect.told.clone_from(&worker.dialer.introduction.told().clients);
    if is_loop(&connect) {
        let generation = worker.published.generation();
        return refuse(connect, &worker, generation.as_deref(), Refusal::Loop);
    }
    // Before the listeners themselves: newer ones with an older number are looked at once too often, never too seldom.
    let number = worker.published.generation_number();
    let Some(generation) = worker.published.generation() else {
        return refuse(connect, &worker, None, Refusal::NotConfigured);
    };
    let found = match generation.listeners.dispatch.lookup(&connect.authority) {
        Lookup::NotFound => Found::Nothing,
        Lookup::Chain(name) => generation.chains.get(name).map_or(Found::Nothing, |served| Found::Chain(Arc::clone(served))),
        Lookup::Sniff(_) => Found::Sniff,
    };
    match found {
        Found::Nothing => refuse(connect, &worker, Some(&generation), Refusal::UnknownDestination),
        Found::Chain(served) => {
            let inspects_tls = generation.listeners.dispatch.server_names.is_on(connect.authority.port());
            // A long tunnel keeps its chain and not the whole mesh.
            drop(generation);
            serve_chain(connect, Led { served, number, inspects_tls }, &worker, drain).await;
        }
        Found::Sniff => serve_sniffed(connect, (generation, number), &worker, drain).await,
    }
}

/// The chain that a CONNECT leads to.
struct Led {
    served: Arc<ServedChain>,
    /// Of its generation.
    number: u64,
    inspects_tls: bool,
}

impl Led {
    /// Whether the server name is read, and when. None: first of all, since a policy wants to know it, or it says where to go.
    fn inspection(&self) -> Option<Inspection> {
        match &self.served.chain.kind {
            ChainKind::Tcp(chain) if self.inspects_tls => {
                (!chain.reads_server_name && chain.server_name_port.is_none()).then_some(Inspection::InPassing)
            }
            _ => Some(Inspection::Off),
        }
    }
}

/// Where a CONNECT leads.
enum Found {
    Nothing,
    Chain(Arc<ServedChain>),
    Sniff,
}

/// Why a CONNECT gets no tunnel.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// istiod has not been heard yet.
    NotConfigured,
    /// No chain for this destination.
    UnknownDestination,
    /// A waypoint of this gateway sent it.
    Loop,
}

/// Whether this proxy, or another of its gateway, sent it: an endpoint of a service is the waypoint that serves it. The mark alone would
/// let anybody make loops up, and the identity alone another program of the same account.
fn is_loop(connect: &Connect) -> bool {
    connect.connection.peer == connect.connection.local && connect.headers.contains_key(VIA)
}

fn refuse(connect: Connect, worker: &Worker, generation: Option<&Generation>, refusal: Refusal) {
    let status = match refusal {
        Refusal::NotConfigured => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::UnknownDestination => StatusCode::NOT_FOUND,
        Refusal::Loop => StatusCode::LOOP_DETECTED,
    };
    if let Some(generation) = generation {
        let mut record = RequestRecord::new(Arc::clone(&generation.terminate), "HTTP/2");
        record.response_code = status.as_u16();
        if matches!(refusal, Refusal::Loop) {
            record.stream.details = Some("loop_detected".into());
        } else {
            record.stream.flags.insert(ResponseFlag::NoRouteFound);
            record.stream.details = Some("filter_chain_not_found".into());
        }
        record.stream.source = worker.published.workload(connect.connection.peer_address.ip());
        record.stream.source_identity = Some(connect.connection.peer.clone());
        record.stream.local_identity = Some(connect.connection.local.clone());
        record.stream.downstream_remote = Some(connect.connection.peer_address);
        record.stream.downstream_local = Some(connect.connection.local_address);
        record.head = Some(telemetry::record::Head {
            method: http::Method::CONNECT,
            path: None,
            authority: connect.authority.to_string().parse().ok(),
            scheme: http::uri::Scheme::HTTP,
        });
        worker.with_telemetry(|telemetry| telemetry.record_request(&mut record));
    }
    tracing::debug!(authority = %connect.authority, peer = %connect.connection.peer, ?refusal, "CONNECT refused");
    connect.reject(status);
}

/// Who asks for what: what stays the same of a CONNECT whatever chain serves it.
struct Asked {
    connection: Arc<Downstream>,
    target: Authority,
    source: Option<Arc<Workload>>,
    began: Instant,
}

/// The client's workload, if discovery knows it, or what it says of itself. An address that discovery gives to another identity than TLS
/// has proven is not this client's; nor is that of a client in another network, which is its gateway's.
fn source(connect: &Connect, worker: &Worker) -> Option<Arc<Workload>> {
    let connection = &connect.connection;
    let network = connect.headers.get(X_FORWARDED_NETWORK).filter(|network| !worker.dialer.introduction.is_ours(network));
    let known = || worker.published.workload(connection.peer_address.ip()).filter(|found| found.identity == connection.peer);
    let said = || {
        let baggage = connect.headers.get(BAGGAGE)?.to_str().ok()?;
        let network = network.and_then(|network| network.to_str().ok()).unwrap_or_default();
        worker.dialer.introduction.told().reads_clients.then(|| Baggage::read(baggage).workload(&connection.peer, network))?
    };
    if network.is_some() { said() } else { known().or_else(said) }
}

impl Asked {
    fn of(connect: &Connect, worker: &Worker) -> Self {
        Self {
            connection: Arc::clone(&connect.connection),
            target: connect.authority.clone(),
            source: source(connect, worker),
            began: Instant::now(),
        }
    }

    fn context(&self, led: &Led, inspection: Inspection) -> Arc<TunnelContext> {
        Arc::new(TunnelContext {
            served: ChainOfTunnel::new(Arc::clone(&led.served), led.number),
            connection: Arc::clone(&self.connection),
            target: self.target.clone(),
            source: self.source.clone(),
            inspection,
            began: self.began,
        })
    }
}

/// How the client begins. None: it has gone.
async fn hello_of<I: AsyncRead + Unpin>(stream: &mut Replay<I>) -> Option<Inspection> {
    match tokio::time::timeout(SNIFF_TIMEOUT, stream.hello()).await {
        Ok(hello) => Some(Inspection::Done(hello.ok()?)),
        // As Envoy goes on without a name; of what began like one it is not known.
        Err(_) if stream.ahead().is_empty() => Some(Inspection::Silent),
        Err(_) => Some(Inspection::Done(Hello::Unreadable)),
    }
}

async fn serve_chain(connect: Connect, led: Led, worker: &Arc<Worker>, drain: DrainWatch) {
    let asked = Asked::of(&connect, worker);
    let Some(inspection) = led.inspection() else {
        let Ok(stream) = connect.accept() else { return };
        return Box::pin(serve_open(Replay::new(stream), (&asked, &led), None, worker)).await;
    };
    let tunnel = asked.context(&led, inspection);
    match &led.served.chain.kind {
        ChainKind::Http(_) | ChainKind::Refused { http: true, .. } => {
            let Ok(stream) = connect.accept() else { return };
            let mut stream = Replay::new(stream);
            let mut draining = drain.clone();
            let first = tokio::select! {
                biased;
                first = first_bytes(&mut stream, &led.served) => first,
                // Nothing was asked: the client's next tunnel goes to another waypoint.
                () = async {
                    draining.draining().await;
                    tokio::time::sleep(FIRST_BYTE_TIMEOUT_DRAINING).await;
                } => return,
            };
            let Some((sniffed, began)) = first else { return };
            let protocol = match sniffed {
                Sniffed::Http2 => Protocol::Http2,
                // What is not HTTP is answered as a malformed request by the codec.
                Sniffed::Http1 | Sniffed::Http1_0 | Sniffed::NotHttp => Protocol::Http1,
            };
            serve_http(stream, (protocol, Some(began)), tunnel, worker, drain).await;
        }
        // In a box, as all that only TCP needs: otherwise each idle tunnel of HTTP would have room for it.
        ChainKind::Tcp(chain) => Box::pin(serve_tcp(connect, &tunnel, chain, worker)).await,
        ChainKind::Refused { http: false, .. } => connect.reject(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Serves a TCP connection, whose CONNECT is answered after dialling.
async fn serve_tcp(connect: Connect, tunnel: &TunnelContext, chain: &TcpChain, worker: &Arc<Worker>) {
    let prepared = tokio::select! {
        biased;
        prepared = tcp::prepare(tunnel, chain, worker, Need::Certain) => prepared,
        // Nobody waits for it any more: neither is an authorization service asked on, nor an endpoint dialled.
        () = connect.answer.gone() => return,
    };
    match prepared {
        Ok(ready) => {
            if let Ok(stream) = connect.accept() {
                ready.run(stream).await;
            }
        }
        Err(refusal) => connect.reject(refusal.status),
    }
}

/// The chain depends on the first bytes, so the tunnel has to open before it is known.
async fn serve_sniffed(connect: Connect, found: (Arc<Generation>, u64), worker: &Arc<Worker>, drain: DrainWatch) {
    let (generation, number) = found;
    let asked = Asked::of(&connect, worker);
    let Lookup::Sniff(by) = generation.listeners.dispatch.lookup(&asked.target) else { return };
    let inspects_tls = generation.listeners.dispatch.server_names.is_on(asked.target.port());
    let lookup = |protocol| match by.lookup(protocol, &asked.target) {
        Lookup::Chain(name) => generation.chains.get(name).map(|served| Led { served: Arc::clone(served), number, inspects_tls }),
        Lookup::Sniff(_) | Lookup::NotFound => None,
    };
    let Ok(stream) = connect.accept() else { return };
    let mut stream = Replay::new(stream);
    let silent = lookup(SniffedProtocol::Other).and_then(|led| Some((asked.context(&led, led.inspection()?), led.served)));
    let wanted = if by.tells_versions_apart() { Wanted::Version } else { Wanted::Protocol };
    let Some((sniffed, dialled)) = Box::pin(who_speaks(&mut stream, wanted, silent, worker)).await else { return };
    let (protocol, seen) = match sniffed {
        Sniffed::Http2 => (Protocol::Http2, SniffedProtocol::Http2),
        Sniffed::Http1 => (Protocol::Http1, SniffedProtocol::Http1),
        Sniffed::Http1_0 => (Protocol::Http1, SniffedProtocol::Http1_0),
        Sniffed::NotHttp => (Protocol::Http1, SniffedProtocol::Other),
    };
    let Some(led) = lookup(seen) else { return };
    drop(generation);
    match &led.served.chain.kind {
        ChainKind::Http(_) | ChainKind::Refused { http: true, .. } => {
            drop(dialled);
            serve_http(stream, (protocol, None), asked.context(&led, Inspection::Off), worker, drain).await;
        }
        ChainKind::Tcp(_) => Box::pin(serve_open(stream, (&asked, &led), dialled.map(|ready| *ready), worker)).await,
        ChainKind::Refused { http: false, .. } => {}
    }
}

/// Serves a TCP connection whose tunnel is open already. `dialled`: to its endpoint, if that has been done.
async fn serve_open<I>(mut stream: Replay<I>, (asked, led): (&Asked, &Led), dialled: Option<TcpReady>, worker: &Arc<Worker>)
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let ChainKind::Tcp(chain) = &led.served.chain.kind else { return };
    let ready = match dialled {
        Some(ready) => Ok(ready),
        None => {
            let inspection = match led.inspection() {
                Some(inspection) => inspection,
                None => {
                    let Some(hello) = hello_of(&mut stream).await else { return };
                    hello
                }
            };
            tcp::prepare(&asked.context(led, inspection), chain, worker, Need::Certain).await
        }
    };
    if let Ok(ready) = ready {
        ready.run(stream).await;
    }
}

/// What the first bytes say, of either side. A silent client's endpoint is dialled, by the rules of the chain for what is not HTTP
/// (`silent`), policies included; the bytes alone decide: the endpoint's mean that it is TCP, the client's are looked at. None: the client
/// has gone. The connection is the endpoint's, if there is one by then.
async fn who_speaks<I>(
    stream: &mut Replay<I>,
    wanted: Wanted,
    silent: Option<(Arc<TunnelContext>, Arc<ServedChain>)>,
    worker: &Arc<Worker>,
) -> Option<(Sniffed, Option<Box<TcpReady>>)>
where
    I: AsyncRead + Unpin,
{
    let began = Instant::now();
    let is_learned = silent.as_ref().is_some_and(|(_, served)| served.speaks_first.load(Ordering::Relaxed));
    let delay = if is_learned { SERVER_FIRST_DELAY_LEARNED } else { SERVER_FIRST_DELAY };
    if let Ok(sniffed) = tokio::time::timeout(delay, stream.sniff(wanted, SNIFF_BYTES_MAX)).await {
        return Some((sniffed.ok()?, None));
    }
    let mut dialled = None;
    let endpoint_speaks = async {
        let Some((tunnel, served)) = &silent else { return std::future::pending().await };
        let ChainKind::Tcp(chain) = &served.chain.kind else { return std::future::pending().await };
        let has_spoken = match tcp::prepare(tunnel, chain, worker, Need::Possible).await {
            Ok(ready) => dialled.insert(Box::new(ready)).endpoint_speaks().await,
            Err(_refusal) => false,
        };
        if !has_spoken {
            // Tried again, and recorded, if it is TCP after all.
            dialled = None;
            return std::future::pending().await;
        }
        served.speaks_first.store(true, Ordering::Relaxed);
    };
    let sniffed = tokio::select! {
        biased;
        sniffed = stream.sniff(wanted, SNIFF_BYTES_MAX) => sniffed.ok()?,
        () = endpoint_speaks => Sniffed::NotHttp,
        () = tokio::time::sleep_until(began + SNIFF_TIMEOUT) => Sniffed::NotHttp,
    };
    Some((sniffed, dialled))
}

/// What the first bytes to an HTTP chain are, and when they came. None: none came in time, or the client has gone.
async fn first_bytes<I: AsyncRead + Unpin>(stream: &mut Replay<I>, served: &ServedChain) -> Option<(Sniffed, Instant)> {
    let (age, head) = match &served.chain.kind {
        ChainKind::Http(http) => (http.options.connection_duration_max, http.options.headers_timeout),
        ChainKind::Tcp(_) | ChainKind::Refused { .. } => (None, None),
    };
    let limit = FIRST_BYTE_TIMEOUT.min(age.unwrap_or(FIRST_BYTE_TIMEOUT));
    tokio::time::timeout(limit, stream.look_ahead()).await.ok()?.ok()?;
    let began = Instant::now();
    let sniffed = tokio::time::timeout(limit.min(head.unwrap_or(limit)), stream.sniff(Wanted::Protocol, SNIFF_BYTES_MAX)).await;
    match sniffed {
        Ok(sniffed) => Some((sniffed.ok()?, began)),
        // The codec has a word for it.
        Err(_) if head.is_some() => Some((Sniffed::NotHttp, began)),
        Err(_) => None,
    }
}

/// Serves the requests in a tunnel that leads to an HTTP chain, until it ends.
/// `began`: when the first bytes came that are there already.
pub async fn serve_http<I>(
    stream: I,
    (protocol, began): (Protocol, Option<Instant>),
    tunnel: Arc<TunnelContext>,
    worker: &Arc<Worker>,
    mut drain: DrainWatch,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let options = match &tunnel.served.last().chain.kind {
        ChainKind::Http(http) => ServerOptions {
            head_bytes_max: http.options.header_bytes_max,
            idle_timeout: http.options.idle_timeout,
            head_timeout: http.options.headers_timeout,
            head_began: began,
            duration_max: http.options.connection_duration_max.map(|limit| limit.saturating_sub(tunnel.began.elapsed())),
            keeps_header_case: http.options.keeps_header_case,
            extended_connect: http.options.extended_connect,
            head: head_options(&http.options),
            ..ServerOptions::default()
        },
        _ => ServerOptions::default(),
    };
    let exchange = TunnelExchange::new(tunnel, Arc::clone(worker));
    match serve(stream, protocol, exchange, &options, async move { drain.draining().await }).await {
        Ok(()) | Err(ServeError::ClientGone | ServeError::IdleTimeout) => {}
        Err(error) => tracing::debug!(%error, "a connection inside a tunnel ended"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that an idle tunnel holds for its future; an allocator rounds more up to 10 KiB.
    const TUNNEL_BYTES_MAX: usize = 8 * 1024;

    fn bytes_of<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_tunnel_has_no_room_for_what_only_others_need() {
        let bytes = bytes_of(serve_connect);
        assert!(bytes <= TUNNEL_BYTES_MAX, "{bytes} bytes");
    }
}
