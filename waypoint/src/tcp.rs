//! A TCP chain: policy, endpoint, and bytes both ways until both sides have ended.
//!
//! Not for: choosing the chain. Invariants: the CONNECT is answered 200 only once there is a connection to the endpoint, so
//! that a refusal is visible; half-close passes in both directions; every connection is recorded once.

mod copying;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use filters::ext_authz::{Answer, Facts, Peer, Progress, Step};
use filters::rbac::{Decisions, Denial, RbacInput, RbacVerdict, decide_chain};
use http::{HeaderMap, StatusCode};
use model::chain::{Chain, EarlyFilter, HttpTunnel, TcpChain};
use model::cluster::UpstreamProtocol;
use model::endpoint::EndpointAddress;
use model::ext_authz::ExtAuthz;
use model::flags::ResponseFlag;
use model::refusal::{PolicyRule, Refusal, RefusedBy};
use model::route::Priority;
use telemetry::record::{ConnectionRecord, UpstreamLocal};
use tokio::io::{AsyncRead, AsyncWrite};

use self::copying::{Moves, Side, Way, copy};
use crate::external;
use crate::http::session::Protocol;
use crate::policies;
use crate::request::{Inspection, TunnelContext};
use crate::sniff::{Hello, HelloReader, Replay};
use crate::state::breaker::Resource;
use crate::state::by_host::KnownHost;
use crate::state::health::{ActiveRequest, Verdict};
use crate::state::published::{ClusterEntry, ServedCluster};
use crate::tls::originate::Inside;
use crate::upstream::balance::{self, Wish};
use crate::upstream::connect::{ConnectFailure, Destination, UpstreamIo, dial};
use crate::upstream::failure::UpstreamFailure;
use crate::upstream::http_tunnel;
use crate::upstream::proxy_protocol::Proxied;
use crate::worker::Worker;

/// How long authorization services may take about a connection, together: its client is answered within 30 seconds.
const CHECKS_TCP_TIME_MAX: Duration = Duration::from_secs(20);

/// Why a connection was not made; the status is the CONNECT's.
#[derive(Debug)]
pub struct TcpRefusal {
    /// The answer to the CONNECT.
    pub status: StatusCode,
}

/// A connection to an endpoint, made before the CONNECT is answered.
pub struct TcpReady {
    record: Recorded,
    upstream: Replay<UpstreamIo>,
    active: ActiveRequest,
    /// Looks for a ClientHello.
    watch: Option<Box<HelloReader>>,
    /// It was let in as a connection without a name: with one it ends.
    must_be_nameless: bool,
    idle_timeout: Option<Duration>,
    duration_max: Option<Duration>,
    reporting_interval: Duration,
}

impl std::fmt::Debug for TcpReady {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TcpReady").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// A connection's record, handed over once: at its end, or when what serves it is dropped.
struct Recorded {
    record: ConnectionRecord,
    worker: Arc<Worker>,
    need: Need,
}

/// Whether a connection is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is: whatever becomes of it is recorded.
    Certain,
    /// It may turn out that it is not: it is recorded only once [`TcpReady::run`] is called.
    Possible,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.need == Need::Possible {
            return;
        }
        let record = &mut self.record;
        self.worker.with_telemetry(|telemetry| telemetry.record_connection(record));
    }
}

/// Judges a connection and dials for it.
///
/// # Errors
/// The CONNECT's answer; the connection has been recorded, if there was need for it.
///
/// # Cancel safety
/// Safe: it is recorded as if it had ended, if there was need for it.
pub async fn prepare(tunnel: &TunnelContext, chain: &TcpChain, worker: &Arc<Worker>, need: Need) -> Result<TcpReady, TcpRefusal> {
    let mut record = ConnectionRecord::new(Arc::clone(&tunnel.served.last().telemetry));
    record.stream.source.clone_from(&tunnel.source);
    record.stream.source_identity = Some(tunnel.connection.peer.clone());
    record.stream.local_identity = Some(tunnel.connection.local.clone());
    record.stream.downstream_local = tunnel.target.address();
    record.stream.downstream_remote = Some(tunnel.connection.peer_address);
    if let Inspection::Done(Hello::Name(name)) = &tunnel.inspection {
        record.server_name = Some(name.clone());
    }
    let mut record = Recorded { record, worker: Arc::clone(worker), need };
    let (upstream, active) = connect(tunnel, chain, worker, &mut record.record).await.map_err(|status| TcpRefusal { status })?;
    let upstream = Replay::new(upstream);
    let reporting_interval =
        record.record.stream.chain.stats.as_ref().map_or(model::metrics::REPORTING_INTERVAL_DEFAULT, |stats| stats.reporting_interval);
    let watch = matches!(tunnel.inspection, Inspection::InPassing | Inspection::Silent).then(Box::default);
    let must_be_nameless = tunnel.inspection == Inspection::Silent;
    Ok(TcpReady {
        record,
        upstream,
        active,
        watch,
        must_be_nameless,
        idle_timeout: chain.idle_timeout,
        duration_max: chain.duration_max,
        reporting_interval,
    })
}

async fn connect(
    tunnel: &TunnelContext,
    chain: &TcpChain,
    worker: &Worker,
    record: &mut ConnectionRecord,
) -> Result<(UpstreamIo, ActiveRequest), StatusCode> {
    let name = &chain.clusters[chain.turns.take(worker.draw())];
    let mut entry = worker.published.cluster(name);
    if let Some(ClusterEntry::Served(served)) = &entry {
        record.stream.cluster = Some(Arc::clone(name));
        record.stream.cluster_stat_name = Some(Arc::clone(&served.cluster.stat_name));
        record.stream.service.clone_from(&served.cluster.service);
    }
    let input = RbacInput {
        head: None,
        peer_principal: Some(tunnel.connection.peer.as_str()),
        peer_address: tunnel.connection.peer_address.ip(),
        forwarded_for: None,
        destination: tunnel.target.address(),
        destination_port: tunnel.target.port(),
        server_name: if let Inspection::Done(Hello::Name(name)) = &tunnel.inspection { name } else { "" },
        claims: None,
    };
    // To take it for none would pass over policies on names.
    if chain.reads_server_name && tunnel.inspection == Inspection::Done(Hello::Unreadable) {
        let refusal = Refusal { detail: Some("the ClientHello cannot be read".into()), ..Refusal::new(RefusedBy::DenyPolicy) };
        record.stream.refusal = Some(Box::new(refusal));
        record.stream.termination_details = Some("client_hello_unreadable".into());
        return Err(StatusCode::FORBIDDEN);
    }
    if !chain.early.is_empty() {
        Box::pin(judge_early(tunnel, &chain.early, &input, (worker, record))).await?;
        // Meanwhile its endpoints may be others.
        entry = worker.published.cluster(name);
    }
    judge(&tunnel.served.last().chain, &input, worker, record)?;
    match entry {
        Some(ClusterEntry::Served(served)) => {
            let hash = chain.hashes_source.then(|| filters::hash::of_address(tunnel.connection.peer_address.ip()));
            let host = named_host(tunnel, chain, &served, record).await?;
            let (attempts_max, destination) = (chain.connect_attempts_max, tunnel.target.address());
            let wish = Wish { attempts_max, hash, destination, host: host.as_deref(), ..Wish::default() };
            dial_any(&served, (&wish, tunnel.proxied(), chain.tunnel.as_deref()), worker, record).await
        }
        Some(ClusterEntry::Refused(_)) => {
            record.stream.details = Some("config_rejected".into());
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
        None => {
            record.stream.flags.insert(ResponseFlag::NoClusterFound);
            Err(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

/// The host that the client's TLS names, where that is where it is to go.
async fn named_host(
    tunnel: &TunnelContext,
    chain: &TcpChain,
    cluster: &ServedCluster,
    record: &mut ConnectionRecord,
) -> Result<Option<Arc<KnownHost>>, StatusCode> {
    let (Some(port), Inspection::Done(Hello::Name(name))) = (chain.server_name_port, &tunnel.inspection) else { return Ok(None) };
    if name.is_empty() {
        return Ok(None);
    }
    // Otherwise it would lead anywhere.
    let is_of_service = cluster.cluster.service.as_ref().is_some_and(|service| match service.host.strip_prefix('*') {
        Some(suffix) => name.ends_with(suffix),
        None => *service.host == **name,
    });
    if !is_of_service {
        record.stream.flags.insert(ResponseFlag::NoRouteFound);
        record.stream.termination_details = Some("server_name_not_of_service".into());
        return Err(StatusCode::NOT_FOUND);
    }
    // Boxed: connections to other clusters carry no room for it.
    let found = Box::pin(balance::host_of(cluster, Some(&format!("{name}:{port}")))).await;
    found.map_err(|none| {
        let failure = UpstreamFailure::from(none);
        failure.flag().into_iter().for_each(|flag| record.stream.flags.insert(flag));
        record.stream.details = Some(failure.details());
        StatusCode::SERVICE_UNAVAILABLE
    })
}

fn denied(by: &Denial<'_>, record: &mut ConnectionRecord) -> StatusCode {
    record.stream.termination_details = Some(format!("rbac_access_denied_matched_policy[{}]", by.policy().unwrap_or("none")).into());
    StatusCode::FORBIDDEN
}

async fn asked(worker: &Worker, filter: &ExtAuthz, facts: &Facts<'_>, time_max: Duration) -> Answer {
    let answer = external::ask(worker, filter, facts, (HeaderMap::new(), time_max)).await;
    external::count(worker, filter, &answer);
    answer
}

/// The part of a chain that may have to ask an authorization service; nothing is dialled before its answer.
async fn judge_early(
    tunnel: &TunnelContext,
    early: &[EarlyFilter],
    input: &RbacInput<'_>,
    (worker, record): (&Worker, &mut ConnectionRecord),
) -> Result<(), StatusCode> {
    let connection = &tunnel.connection;
    let facts = Facts {
        source: Peer { address: Some(connection.peer_address), principal: connection.peer.as_str() },
        destination: Peer { address: tunnel.target.address(), principal: connection.local.as_str() },
        http: None,
    };
    let (mut progress, began) = (Progress::new(early), tokio::time::Instant::now());
    loop {
        let step = progress.next(input, || worker.draw());
        policies::note(&std::mem::take(&mut progress.decisions), input, &mut record.stream, worker);
        let left = CHECKS_TCP_TIME_MAX.saturating_sub(began.elapsed());
        let mut status = StatusCode::FORBIDDEN;
        let (details, policy) = match step {
            Step::Passed => return Ok(()),
            Step::Denied(by) => return Err(denied(&by, record)),
            Step::Unasked(_) => ("ext_authz_error", None),
            Step::Ask(filter, policy) => match asked(worker, filter, &facts, left).await {
                Answer::Allowed(_) => {
                    policies::note_external(policy.as_ref(), false, worker);
                    continue;
                }
                Answer::Failed(_) if filter.on_failure.allows => {
                    policies::note_external(policy.as_ref(), false, worker);
                    continue;
                }
                Answer::Denied(_) => ("ext_authz_denied", policy),
                Answer::Failed(_) => ("ext_authz_error", policy),
                Answer::Unusable => ("ext_authz_invalid", policy),
                Answer::Overloaded => {
                    status = StatusCode::SERVICE_UNAVAILABLE;
                    ("ext_authz_overloaded", policy)
                }
            },
        };
        policies::note_external(policy.as_ref(), true, worker);
        let rule = policy.as_deref().map(PolicyRule::of);
        let refusal = Refusal { rule, detail: Some(details.into()), ..Refusal::new(RefusedBy::External) };
        record.stream.refusal = Some(Box::new(refusal));
        record.stream.flags.insert(ResponseFlag::UnauthorizedExternalService);
        record.stream.details = Some(details.into());
        return Err(status);
    }
}

/// Whether policies let a connection be.
fn judge(chain: &Chain, input: &RbacInput<'_>, worker: &Worker, record: &mut ConnectionRecord) -> Result<(), StatusCode> {
    let mut decisions = Decisions::new();
    let verdict = decide_chain(chain, input, &mut decisions);
    policies::note(&decisions, input, &mut record.stream, worker);
    match verdict {
        RbacVerdict::Pass => Ok(()),
        RbacVerdict::Deny(by) => Err(denied(&by, record)),
    }
}

async fn dial_any(
    cluster: &Arc<ServedCluster>,
    (wish, proxied, tunnel): (&Wish<'_>, Proxied, Option<&HttpTunnel>),
    worker: &Worker,
    record: &mut ConnectionRecord,
) -> Result<(UpstreamIo, ActiveRequest), StatusCode> {
    let Ok(permit) = cluster.breakers.take(Resource::Connection, Priority::Default) else {
        record.stream.flags.insert(ResponseFlag::UpstreamOverflow);
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    };
    let mut avoid: Vec<EndpointAddress> = Vec::new();
    for _ in 0..wish.attempts_max.max(1) {
        let Some(entry) = balance::choose(cluster, &Wish { avoid: &avoid, ..*wish }, || worker.draw()) else {
            record.stream.flags.insert(ResponseFlag::NoHealthyUpstream);
            return Err(StatusCode::SERVICE_UNAVAILABLE);
        };
        let address = entry.endpoint.address;
        avoid.push(address);
        record.stream.attempts += 1;
        record.stream.upstream_host = Some(Arc::clone(&entry.endpoint.host));
        record.stream.destination = worker.published.workload_at(&address);
        let mut active = ActiveRequest::begin(&entry.state);
        let transport = cluster.cluster.sockets.of(&entry.endpoint.socket_labels);
        let keepalive = cluster.cluster.connections.tcp_keepalive.as_ref();
        let to = Destination {
            address: &address,
            others: &entry.endpoint.others,
            remote: entry.endpoint.remote.as_ref(),
            transport,
            inside: inside(tunnel, cluster),
            host: None,
            proxied: Some(proxied),
            keepalive,
        };
        let dialled = match tunnel {
            None => dial(&to, &worker.dialer, cluster.cluster.connect_timeout).await,
            Some(tunnel) => Box::pin(dial_proxy(&to, worker, tunnel, cluster)).await,
        };
        match dialled {
            Ok(upstream) => {
                cluster.note(&entry, Verdict::Reached);
                active.hold(permit);
                record.stream.destination = record.stream.destination.take().or_else(|| worker.dialer.peer_of(&upstream));
                record.stream.upstream_remote = upstream.remote_address().filter(|_| !entry.endpoint.others.is_empty());
                record.stream.upstream_local = Some(upstream.local_address().map_or(UpstreamLocal::Tunnel, UpstreamLocal::Socket));
                return Ok((upstream, active));
            }
            Err(failure) => {
                cluster.note(&entry, Verdict::NoAnswer);
                record.stream.failure_reason = Some(failure.reason);
            }
        }
    }
    record.stream.flags.insert(ResponseFlag::UpstreamConnectionFailure);
    record.stream.flags.insert(ResponseFlag::UpstreamRetryLimitExceeded);
    Err(StatusCode::SERVICE_UNAVAILABLE)
}

/// What is spoken to the endpoint first.
fn inside(tunnel: Option<&HttpTunnel>, cluster: &ServedCluster) -> Inside {
    match (tunnel, protocol_of(cluster)) {
        (None, _) => Inside::Tcp,
        (Some(_), Protocol::Http1) => Inside::Http1,
        (Some(_), Protocol::Http2) => Inside::Http2,
    }
}

/// A connection has no protocol of its own that its proxy could be spoken to in (Envoy).
fn protocol_of(cluster: &ServedCluster) -> Protocol {
    match cluster.cluster.protocol {
        UpstreamProtocol::Http2 => Protocol::Http2,
        UpstreamProtocol::Http1 | UpstreamProtocol::Downstream => Protocol::Http1,
    }
}

/// A connection that an HTTP proxy makes; it has as long to answer as a connect may take.
async fn dial_proxy(
    to: &Destination<'_>,
    worker: &Worker,
    tunnel: &HttpTunnel,
    cluster: &ServedCluster,
) -> Result<UpstreamIo, ConnectFailure> {
    let limit = cluster.cluster.connect_timeout;
    let io = dial(to, &worker.dialer, limit).await?;
    match tokio::time::timeout(limit, http_tunnel::open(io, tunnel, protocol_of(cluster))).await {
        Ok(Ok(tunnelled)) => Ok(UpstreamIo::Tunnelled(Box::new(tunnelled))),
        Ok(Err(failure)) => Err(ConnectFailure { reason: failure.to_string().into() }),
        Err(_elapsed) => Err(ConnectFailure { reason: "tunnel_response_timeout".into() }),
    }
}

#[derive(Default)]
struct Passed {
    /// Bytes of the client.
    up: AtomicU64,
    /// Bytes of the endpoint.
    down: AtomicU64,
    /// How the client began, where that is looked at.
    hello: OnceLock<Hello>,
}

impl TcpReady {
    /// Waits for the endpoint's first bytes, which are kept. False: it has ended without a word.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn endpoint_speaks(&mut self) -> bool {
        self.upstream.look_ahead().await.is_ok() && !self.upstream.ahead().is_empty()
    }

    /// Copies both ways until both sides have ended, one fails, or nothing moves for the idle timeout.
    ///
    /// # Cancel safety
    /// Dropping the future cuts both connections.
    pub async fn run<I>(mut self, downstream: I)
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        self.record.need = Need::Certain;
        let (passed, moves) = (Passed::default(), Moves::begin());
        let mut watch = self.watch.take();
        let (from_client, to_client) = tokio::io::split(downstream);
        let (from_endpoint, to_endpoint) = tokio::io::split(self.upstream);
        let copying = async {
            let look = |bytes: &[u8]| {
                if let Some(hello) = watch.as_mut().and_then(|reader| reader.look(bytes)) {
                    watch = None;
                    return passed.hello.get_or_init(|| hello) == &Hello::NotTls || !self.must_be_nameless;
                }
                true
            };
            let moves = &moves;
            let up = copy(from_client, to_endpoint, Way { count: &passed.up, moves, sides: (Side::Client, Side::Endpoint) }, look);
            let down = copy(from_endpoint, to_client, Way { count: &passed.down, moves, sides: (Side::Endpoint, Side::Client) }, |_| true);
            tokio::try_join!(up, down)
        };
        tokio::pin!(copying);
        let too_long = past(self.duration_max);
        tokio::pin!(too_long);
        let silence = moves.silence(self.idle_timeout);
        tokio::pin!(silence);
        let mut report = tokio::time::interval(self.reporting_interval);
        report.tick().await;
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut copying => break Some(ended),
                () = &mut too_long => {
                    self.record.record.stream.flags.insert(ResponseFlag::DurationTimeout);
                    break None;
                }
                () = &mut silence => {
                    self.record.record.stream.termination_details = Some("idle_timeout_on_connection".into());
                    break None;
                }
                _ = report.tick() => {}
            }
            let Recorded { record, worker, .. } = &mut self.record;
            note(record, &passed);
            worker.with_telemetry(|telemetry| telemetry.report_connection(record));
        };
        if let Some(Err(side)) = ended {
            self.record.record.stream.flags.insert(match side {
                Side::Client => ResponseFlag::DownstreamConnectionTermination,
                Side::Endpoint => ResponseFlag::UpstreamConnectionTermination,
            });
        }
        note(&mut self.record.record, &passed);
        if let Some(Hello::Name(name)) = passed.hello.get() {
            self.record.record.server_name = Some(name.clone());
        }
        drop(self.record);
        drop(self.active);
    }
}

/// Ends after a limit; never if there is none.
async fn past(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn note(record: &mut ConnectionRecord, passed: &Passed) {
    record.stream.bytes_received = passed.up.load(Ordering::Relaxed);
    record.stream.bytes_sent = passed.down.load(Ordering::Relaxed);
}
