//! What is noted about one request or TCP connection while it runs, and handed over once at its end.
//!
//! Not for: deciding anything, or writing it out. Whoever serves the request fills the public fields along the way; what nobody
//! filled reads as missing. Invariant: a record holds of all headers only those that its chain's formats and tags name.

mod chain;
mod seeing;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::HeaderName;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method};
use model::flags::ResponseFlags;
use model::identity::SpiffeId;
use model::refusal::{DryRun, Refusal};
use model::service::ServiceRef;
use model::stream_view::{Field, Moment, RequestHead, Side, StreamView, Value};
use model::workload::Workload;

use crate::grpc::{self, GrpcStatus};
use crate::metrics::{ConnectionCells, MessageCells};
use crate::trace::{Told, TraceContext, TrySpan};

pub use self::chain::{ChainTelemetry, Node};
pub use self::seeing::Seeing;

/// `x-request-id`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `x-forwarded-proto`: the scheme in a span's `http.url`.
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `x-envoy-original-path`: the path before a rewrite.
pub(crate) const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// `x-envoy-downstream-service-cluster`: who a caller says it is.
pub(crate) const X_DOWNSTREAM_SERVICE_CLUSTER: HeaderName = HeaderName::from_static("x-envoy-downstream-service-cluster");
/// `x-client-trace-id`: a caller's wish to be traced.
pub(crate) const X_CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
/// `grpc-timeout`.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// `grpc-message`.
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Our side of the connection to the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamLocal {
    /// Inside an HBONE tunnel; prints as Envoy's user-space sockets do.
    Tunnel,
    /// A socket of our own.
    Socket(SocketAddr),
}

/// What a request and a TCP connection have in common.
#[derive(Debug)]
pub struct StreamRecord {
    /// What is measured.
    pub chain: Arc<ChainTelemetry>,
    /// When it began: the first byte of the request, or the accepted connection.
    pub start_time: SystemTime,
    /// The same, for durations.
    pub start: Instant,
    /// When the request was received to its last byte.
    pub request_end: Option<Instant>,
    /// When the endpoint of the last try began to be sent it.
    pub upstream_start: Option<Instant>,
    /// When the first byte of the endpoint's response arrived.
    pub response_start: Option<Instant>,
    /// When the last byte was sent to the client; recording sets it if nobody did.
    pub end: Option<Instant>,
    /// `%RESPONSE_CODE_DETAILS%`, `via_upstream`; spaces print as underscores.
    pub details: Option<Cow<'static, str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: Option<Cow<'static, str>>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`; spaces print as underscores.
    pub failure_reason: Option<Cow<'static, str>>,
    /// Why it was refused, if it was.
    pub refusal: Option<Box<Refusal>>,
    /// What policies came to that are only tried.
    pub dry_runs: Vec<DryRun>,
    /// What went wrong, in the order in which it did.
    pub flags: ResponseFlags,
    /// Body bytes (TCP: bytes) received from the client.
    pub bytes_received: u64,
    /// Body bytes (TCP: bytes) sent to the client.
    pub bytes_sent: u64,
    /// The client's workload.
    pub source: Option<Arc<Workload>>,
    /// The client, as its certificate says.
    pub source_identity: Option<SpiffeId>,
    /// Ourselves, as our certificate says; none when the connection had no TLS.
    pub local_identity: Option<SpiffeId>,
    /// The chosen endpoint's workload.
    pub destination: Option<Arc<Workload>>,
    /// The service of the cluster.
    pub service: Option<Arc<ServiceRef>>,
    /// The cluster's name, `%UPSTREAM_CLUSTER_RAW%`.
    pub cluster: Option<Arc<str>>,
    /// Its `alt_stat_name`, `%UPSTREAM_CLUSTER%`.
    pub cluster_stat_name: Option<Arc<str>>,
    /// `%UPSTREAM_HOST%`: `envoy://connect_originate/10.42.0.74:8080`, or `IP:port`.
    pub upstream_host: Option<Arc<str>>,
    /// Our side of the connection to it; none if there never was one.
    pub upstream_local: Option<UpstreamLocal>,
    /// The other end, where the endpoint has several addresses.
    pub upstream_remote: Option<SocketAddr>,
    /// `%ROUTE_NAME%`.
    pub route_name: Option<Arc<str>>,
    /// How often it was sent to an endpoint.
    pub attempts: u32,
    /// What the client asked its tunnel for.
    pub downstream_local: Option<SocketAddr>,
    /// The client.
    pub downstream_remote: Option<SocketAddr>,
}

impl StreamRecord {
    /// A record that begins now.
    #[must_use]
    pub fn new(chain: Arc<ChainTelemetry>) -> Self {
        Self {
            chain,
            start_time: SystemTime::now(),
            start: Instant::now(),
            request_end: None,
            upstream_start: None,
            response_start: None,
            end: None,
            details: None,
            termination_details: None,
            failure_reason: None,
            refusal: None,
            dry_runs: Vec::new(),
            flags: ResponseFlags::default(),
            bytes_received: 0,
            bytes_sent: 0,
            source: None,
            source_identity: None,
            local_identity: None,
            destination: None,
            service: None,
            cluster: None,
            cluster_stat_name: None,
            upstream_host: None,
            upstream_local: None,
            upstream_remote: None,
            route_name: None,
            attempts: 0,
            downstream_local: None,
            downstream_remote: None,
        }
    }

    /// From the start to the end, or to now while there is no end.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.end.unwrap_or_else(Instant::now).saturating_duration_since(self.start)
    }

    pub(crate) fn ended(&mut self) {
        self.end.get_or_insert_with(Instant::now);
    }

    fn moment(&self, moment: Moment) -> Option<Duration> {
        let at = match moment {
            Moment::Start => Some(self.start),
            Moment::RequestEnd => self.request_end,
            Moment::UpstreamStart => self.upstream_start.filter(|_| self.response_start.is_some()),
            Moment::ResponseStart => self.response_start,
            Moment::End => self.end,
        };
        at.map(|at| at.saturating_duration_since(self.start))
    }

    fn field(&self, field: Field) -> Value<'_> {
        match field {
            Field::StartTime => Value::Time(self.start_time),
            Field::ResponseCodeDetailsSpaced => text(self.details.as_deref()),
            Field::ResponseCodeDetails => underscored(self.details.as_deref()),
            Field::ConnectionTerminationDetails => underscored(self.termination_details.as_deref()),
            Field::UpstreamTransportFailureReasonSpaced => text(self.failure_reason.as_deref()),
            Field::UpstreamTransportFailureReason => underscored(self.failure_reason.as_deref()),
            Field::ResponseFlags => Value::Flags(self.flags),
            Field::BytesReceived => Value::Number(self.bytes_received),
            Field::BytesSent => Value::Number(self.bytes_sent),
            Field::Duration => milliseconds(self.duration()),
            Field::UpstreamHost => text(self.upstream_host.as_deref()),
            Field::UpstreamCluster => text(self.cluster_stat_name.as_deref().or(self.cluster.as_deref())),
            Field::UpstreamClusterRaw => text(self.cluster.as_deref()),
            Field::UpstreamLocalAddress => match self.upstream_local {
                Some(UpstreamLocal::Tunnel) => Value::Text("envoy://internal_client_address/"),
                Some(UpstreamLocal::Socket(address)) => Value::Address(address),
                None => Value::Missing,
            },
            Field::UpstreamRemoteAddress => match self.upstream_remote {
                Some(address) => Value::Address(address),
                None => text(self.upstream_local.and(self.upstream_host.as_deref())),
            },
            Field::UpstreamRequestAttemptCount => Value::Number(u64::from(self.attempts)),
            Field::DownstreamLocalAddress => self.downstream_local.map_or(Value::Missing, Value::Address),
            Field::DownstreamRemoteAddress | Field::DownstreamDirectRemoteAddress => {
                self.downstream_remote.map_or(Value::Missing, Value::Address)
            }
            Field::DownstreamPeerUriSan | Field::DownstreamLocalUriSan if !self.chain.terminates_tls => Value::Missing,
            Field::PeerPrincipal | Field::DownstreamPeerUriSan => text(self.source_identity.as_ref().map(SpiffeId::as_str)),
            Field::LocalPrincipal | Field::DownstreamLocalUriSan => text(self.local_identity.as_ref().map(SpiffeId::as_str)),
            Field::RouteName => text(self.route_name.as_deref()),
            Field::FilterChainName => Value::Text(&self.chain.name),
            Field::Hostname => text(self.chain.hostname.as_deref()),
            Field::NodeId => text(self.chain.node.as_ref().map(|node| &*node.id)),
            Field::NodeCluster => text(self.chain.node.as_ref().map(|node| &*node.cluster)),
            Field::NodeZone => text(self.chain.node.as_ref().map(|node| &*node.zone)),
            Field::ResponseCode => Value::Number(0),
            Field::Protocol
            | Field::UpstreamProtocol
            | Field::RequestedServerName
            | Field::TraceId
            | Field::SpanId
            | Field::StreamId
            | Field::GrpcStatus
            | Field::GrpcStatusNumber
            | Field::GrpcStatusDerived
            | Field::DownstreamWireBytesReceived
            | Field::DownstreamWireBytesSent
            | Field::DownstreamHeaderBytesReceived
            | Field::DownstreamHeaderBytesSent
            | Field::AccessLogType
            | Field::TraceSampled => Value::Missing,
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.chain.environment.get(name).map(String::as_str)
    }

    fn peer(&self, side: Side) -> Option<&Workload> {
        match side {
            Side::Downstream => self.source.as_deref(),
            Side::Upstream => self.destination.as_deref(),
        }
    }
}

/// The request line, as it is forwarded. The path before a rewrite is the header `x-envoy-original-path`, as in Envoy.
#[derive(Clone, Debug)]
pub struct Head {
    /// `:method`.
    pub method: Method,
    /// `:path`; a CONNECT has none.
    pub path: Option<PathAndQuery>,
    /// `:authority`, or `Host` of HTTP/1.1: as it came, not parsed.
    pub authority: Option<HeaderValue>,
    /// `:scheme`.
    pub scheme: Scheme,
}

impl Head {
    /// The authority as text; none if it is none.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_ref().and_then(|authority| authority.to_str().ok())
    }
}

/// Messages of a gRPC request so far, both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcMessages {
    /// Sent by the client.
    pub request: u64,
    /// Sent to the client.
    pub response: u64,
}

/// One request.
#[derive(Debug)]
pub struct RequestRecord {
    /// What it has in common with a connection.
    pub stream: StreamRecord,
    /// Its head; none if what came was no request.
    pub head: Option<Head>,
    /// `HTTP/1.1`, `HTTP/2`: inside the tunnel.
    pub protocol: &'static str,
    /// What the endpoint was spoken to in.
    pub upstream_protocol: Option<&'static str>,
    /// The status sent to the client; 0 if none was.
    pub response_code: u16,
    /// Bytes received from the client on the wire, head included.
    pub wire_bytes_received: u64,
    /// Bytes sent to the client on the wire, head included.
    pub wire_bytes_sent: u64,
    /// Whether a gRPC request got past all deciding filters: only then do metrics call it one.
    pub is_grpc: bool,
    /// `grpc-status`, of the trailers or else of the headers. [`Self::capture_response`] and [`Self::capture_trailers`] set it.
    pub grpc_status: Option<GrpcStatus>,
    /// Messages so far, if they are counted.
    pub grpc_messages: Option<GrpcMessages>,
    /// Its span, sampled or not.
    pub trace: Option<TraceContext>,
    /// `x-request-id` as it is forwarded.
    pub request_id: Option<HeaderValue>,
    /// The client that `x-forwarded-for` named last when it came.
    pub forwarded_for: Option<IpAddr>,
    /// The route's decorator: the span's name.
    pub operation: Option<Arc<str>>,
    /// Its tries, where they have spans.
    pub(crate) tries: Vec<TrySpan>,
    /// How long others were waited for: endpoints, services, delays.
    pub waited: Duration,
    request_headers: HeaderMap,
    response_headers: Option<HeaderMap>,
    response_trailers: Option<HeaderMap>,
    pub(crate) grpc_messages_reported: GrpcMessages,
    /// Resolved at the first report of messages; labels stay as they were then.
    pub(crate) message_cells: Option<MessageCells>,
}

impl RequestRecord {
    /// A record of a request that begins now.
    #[must_use]
    pub fn new(chain: Arc<ChainTelemetry>, protocol: &'static str) -> Self {
        Self {
            stream: StreamRecord::new(chain),
            head: None,
            protocol,
            upstream_protocol: None,
            response_code: 0,
            wire_bytes_received: 0,
            wire_bytes_sent: 0,
            is_grpc: false,
            grpc_status: None,
            grpc_messages: None,
            trace: None,
            request_id: None,
            forwarded_for: None,
            operation: None,
            tries: Vec::new(),
            waited: Duration::ZERO,
            request_headers: HeaderMap::new(),
            response_headers: None,
            response_trailers: None,
            grpc_messages_reported: GrpcMessages::default(),
            message_cells: None,
        }
    }

    /// Keeps those request headers that lines and spans read. Call it with the headers as they are forwarded; a later call replaces.
    pub fn capture_request(&mut self, headers: &HeaderMap) {
        self.request_headers = kept(headers, &self.stream.chain.headers.request);
    }

    /// Keeps those response headers that lines and spans read, and the gRPC status. Call it with the headers as they are sent.
    pub fn capture_response(&mut self, headers: &HeaderMap) {
        self.grpc_status = grpc::status_of(headers);
        self.response_headers = Some(kept(headers, &self.stream.chain.headers.response));
    }

    /// Keeps those trailers that lines and spans read, and the gRPC status.
    pub fn capture_trailers(&mut self, trailers: &HeaderMap) {
        self.grpc_status = grpc::status_of(trailers).or(self.grpc_status);
        self.response_trailers = Some(kept(trailers, &self.stream.chain.headers.trailers));
    }

    /// Bytes that passed after the request had become a stream of bytes each way.
    pub fn carried(&mut self, received: u64, sent: u64) {
        self.stream.bytes_received += received;
        self.stream.bytes_sent += sent;
        self.wire_bytes_received += received;
        self.wire_bytes_sent += sent;
    }

    /// A captured request header.
    #[must_use]
    pub fn request_header(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.request_headers.get(name)
    }

    /// Whether the request called itself gRPC, whatever became of it.
    pub(crate) fn came_as_grpc(&self) -> bool {
        self.is_grpc || grpc::is_grpc(&self.request_headers)
    }

    /// The gRPC status that labels print: received, else derived from the HTTP status; none without any response.
    pub(crate) fn grpc_status_or_derived(&self) -> Option<GrpcStatus> {
        self.grpc_status.or_else(|| GrpcStatus::from_http(self.response_code))
    }
}

impl StreamView for RequestRecord {
    fn request(&self) -> Option<RequestHead<'_>> {
        self.head.as_ref().map(|head| RequestHead {
            method: head.method.as_str(),
            path: head.path.as_ref().map_or("", PathAndQuery::as_str),
            authority: head.authority(),
            scheme: head.scheme.as_str(),
            headers: &self.request_headers,
        })
    }

    fn response_headers(&self) -> Option<&HeaderMap> {
        self.response_headers.as_ref()
    }

    fn response_trailers(&self) -> Option<&HeaderMap> {
        self.response_trailers.as_ref()
    }

    fn field(&self, field: Field) -> Value<'_> {
        match field {
            Field::Protocol => Value::Text(self.protocol),
            Field::UpstreamProtocol => text(self.upstream_protocol),
            Field::ResponseCode => Value::Number(u64::from(self.response_code)),
            Field::TraceId => match &self.trace {
                // Of Zipkin's, ids may have half the digits.
                Some(trace) => match u64::try_from(trace.trace_id) {
                    Ok(low) if trace.told != Told::W3c => Value::Hex64(low),
                    _ => Value::Hex128(trace.trace_id),
                },
                None => Value::Missing,
            },
            Field::SpanId => self.trace.as_ref().map_or(Value::Missing, |trace| Value::Hex64(trace.span_id)),
            Field::StreamId => self.request_id.as_ref().map_or(Value::Missing, |id| Value::Bytes(id.as_bytes())),
            Field::GrpcStatus if self.came_as_grpc() => text(self.grpc_status_or_derived().map(GrpcStatus::name)),
            Field::GrpcStatusNumber if self.came_as_grpc() => {
                self.grpc_status_or_derived().map_or(Value::Missing, |status| Value::Number(u64::from(status.number())))
            }
            Field::GrpcStatusDerived => {
                self.grpc_status_or_derived().map_or(Value::Missing, |status| Value::Number(u64::from(status.number())))
            }
            Field::DownstreamRemoteAddress => match self.forwarded_for {
                Some(client) => Value::Address(SocketAddr::new(client, 0)),
                None => self.stream.field(field),
            },
            Field::DownstreamWireBytesReceived => Value::Number(self.wire_bytes_received),
            Field::DownstreamWireBytesSent => Value::Number(self.wire_bytes_sent),
            Field::DownstreamHeaderBytesReceived => Value::Number(self.wire_bytes_received.saturating_sub(self.stream.bytes_received)),
            Field::DownstreamHeaderBytesSent => Value::Number(self.wire_bytes_sent.saturating_sub(self.stream.bytes_sent)),
            Field::AccessLogType => Value::Text("DownstreamEnd"),
            Field::TraceSampled => self.trace.as_ref().map_or(Value::Missing, |trace| Value::Bool(trace.sampled)),
            _ => self.stream.field(field),
        }
    }

    fn moment(&self, moment: Moment) -> Option<Duration> {
        self.stream.moment(moment)
    }

    fn service(&self) -> Option<&ServiceRef> {
        self.stream.service.as_deref()
    }

    fn peer(&self, side: Side) -> Option<&Workload> {
        self.stream.peer(side)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.stream.variable(name)
    }

    fn refusal(&self) -> Option<&Refusal> {
        self.stream.refusal.as_deref()
    }

    fn dry_runs(&self) -> &[DryRun] {
        &self.stream.dry_runs
    }
}

/// One TCP connection.
#[derive(Debug)]
pub struct ConnectionRecord {
    /// What it has in common with a request.
    pub stream: StreamRecord,
    /// The name in the client's ClientHello, where it was looked for.
    pub server_name: Option<Box<str>>,
    /// Resolved at the first report; labels stay as they were then.
    pub(crate) cells: Option<ConnectionCells>,
    pub(crate) bytes_received_reported: u64,
    pub(crate) bytes_sent_reported: u64,
}

impl ConnectionRecord {
    /// A record of a connection that begins now.
    #[must_use]
    pub fn new(chain: Arc<ChainTelemetry>) -> Self {
        Self { stream: StreamRecord::new(chain), server_name: None, cells: None, bytes_received_reported: 0, bytes_sent_reported: 0 }
    }
}

impl StreamView for ConnectionRecord {
    fn request(&self) -> Option<RequestHead<'_>> {
        None
    }

    fn response_headers(&self) -> Option<&HeaderMap> {
        None
    }

    fn response_trailers(&self) -> Option<&HeaderMap> {
        None
    }

    fn field(&self, field: Field) -> Value<'_> {
        match field {
            Field::AccessLogType => Value::Text("TcpConnectionEnd"),
            Field::RequestedServerName => text(self.server_name.as_deref().filter(|name| !name.is_empty())),
            Field::DownstreamWireBytesReceived => Value::Number(self.stream.bytes_received),
            Field::DownstreamWireBytesSent => Value::Number(self.stream.bytes_sent),
            _ => self.stream.field(field),
        }
    }

    fn moment(&self, moment: Moment) -> Option<Duration> {
        self.stream.moment(moment)
    }

    fn service(&self) -> Option<&ServiceRef> {
        self.stream.service.as_deref()
    }

    fn peer(&self, side: Side) -> Option<&Workload> {
        self.stream.peer(side)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.stream.variable(name)
    }

    fn refusal(&self) -> Option<&Refusal> {
        self.stream.refusal.as_deref()
    }

    fn dry_runs(&self) -> &[DryRun] {
        &self.stream.dry_runs
    }
}

/// Whole milliseconds, floored.
pub(crate) fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn milliseconds(duration: Duration) -> Value<'static> {
    Value::Number(whole_milliseconds(duration))
}

fn text(value: Option<&str>) -> Value<'_> {
    value.map_or(Value::Missing, Value::Text)
}

/// Lines are split at spaces by those who read them, so Envoy prints none inside these.
fn underscored(value: Option<&str>) -> Value<'_> {
    match value {
        Some(value) if value.contains(' ') => Value::Owned(value.replace(' ', "_")),
        other => text(other),
    }
}

fn kept(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(names.len());
    for name in names {
        for value in headers.get_all(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}
