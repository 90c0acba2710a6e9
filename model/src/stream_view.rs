//! What can be asked of a request, a connection and their peers, by formats, tags and labels.
//!
//! Not for: keeping the answers; whoever records a request implements [`StreamView`].

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use crate::refusal::{DryRun, Refusal};
use crate::service::ServiceRef;
use crate::workload::Workload;

/// Where proxies say whom they forward for.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Everything besides headers that a format can ask for. Named as Envoy's operators are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the Envoy operator of the same name; docs/contracts.md explains those that need it")]
pub enum Field {
    StartTime,
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseCodeDetailsSpaced,
    ResponseFlags,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    UpstreamTransportFailureReasonSpaced,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamHost,
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamLocalAddress,
    UpstreamRemoteAddress,
    UpstreamRequestAttemptCount,
    UpstreamProtocol,
    DownstreamLocalAddress,
    /// Of the last proxy that `x-forwarded-for` names, else of who opened the connection.
    DownstreamRemoteAddress,
    DownstreamDirectRemoteAddress,
    /// Of the connection's own certificates: inside a tunnel there are none.
    DownstreamPeerUriSan,
    DownstreamLocalUriSan,
    /// The client, as its certificate says: `io.istio.peer_principal`.
    PeerPrincipal,
    /// Ourselves, as ours says: `io.istio.local_principal`.
    LocalPrincipal,
    RequestedServerName,
    RouteName,
    TraceId,
    SpanId,
    StreamId,
    GrpcStatus,
    GrpcStatusNumber,
    /// The same of any request: where it was not gRPC, what its status would be there.
    GrpcStatusDerived,
    FilterChainName,
    Hostname,
    /// Of the waypoint, as istiod knows it.
    NodeId,
    NodeCluster,
    NodeZone,
    DownstreamWireBytesReceived,
    DownstreamWireBytesSent,
    DownstreamHeaderBytesReceived,
    DownstreamHeaderBytesSent,
    AccessLogType,
    /// Our own: whether the request's span is exported.
    TraceSampled,
}

/// Which end a peer is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The client: `downstream_peer`.
    Downstream,
    /// The chosen endpoint: `upstream_peer`.
    Upstream,
}

/// A moment of a request, as `COMMON_DURATION` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// `DS_RX_BEG`: it begins.
    Start,
    /// `DS_RX_END`: it has come to its last byte.
    RequestEnd,
    /// `US_TX_BEG`: the endpoint of the last try begins to be sent it.
    UpstreamStart,
    /// `US_RX_BEG` and `DS_TX_BEG`: the answer begins.
    ResponseStart,
    /// `US_RX_END` and `DS_TX_END`: the answer has ended.
    End,
}

/// An answer. [`Value::Missing`] is `null` in JSON and `-` in text.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Not known, or not applicable.
    Missing,
    /// A text.
    Text(&'a str),
    /// Bytes of a header, most often text.
    Bytes(&'a [u8]),
    /// A text made for this answer.
    Owned(String),
    /// A number; stays one in JSON.
    Number(u64),
    /// A truth; stays one in JSON.
    Bool(bool),
    /// JSON, as it is.
    Json(String),
    /// A point in time.
    Time(SystemTime),
    /// `IP:port`, IPv6 in brackets.
    Address(SocketAddr),
    /// 16 bytes as 32 hexadecimal digits.
    Hex128(u128),
    /// 8 bytes as 16 hexadecimal digits.
    Hex64(u64),
    /// Response flags, `-` for none.
    Flags(crate::flags::ResponseFlags),
    /// Members of an object with their texts; an object in JSON, and its JSON in text.
    Object(Vec<(&'static str, std::borrow::Cow<'a, str>)>),
}

/// The request line and headers, pseudo-headers apart.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// `:method`.
    pub method: &'a str,
    /// `:path`, the query included.
    pub path: &'a str,
    /// `:authority`, or `Host` of HTTP/1.1.
    pub authority: Option<&'a str>,
    /// `:scheme`.
    pub scheme: &'a str,
    /// All other headers.
    pub headers: &'a HeaderMap,
}

/// The client that `x-forwarded-for` names last: Envoy's rule without trusted hops, `use_remote_address` being off in waypoints.
#[must_use]
pub fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all(X_FORWARDED_FOR).iter().next_back()?.to_str().ok()?;
    last.rsplit(',').next()?.trim().parse().ok()
}

/// A request (or a TCP connection, which has no head) as formats see it.
pub trait StreamView {
    /// The request's head; none for TCP.
    fn request(&self) -> Option<RequestHead<'_>>;
    /// The response's headers as they were sent.
    fn response_headers(&self) -> Option<&HeaderMap>;
    /// The response's trailers as they were sent.
    fn response_trailers(&self) -> Option<&HeaderMap>;
    /// Everything else.
    fn field(&self, field: Field) -> Value<'_>;
    /// When it was, counted from the start; none if it was not, or is not known.
    fn moment(&self, _: Moment) -> Option<Duration> {
        None
    }
    /// The service that it was for.
    fn service(&self) -> Option<&ServiceRef> {
        None
    }
    /// Who is at that end, if discovery knows.
    fn peer(&self, side: Side) -> Option<&Workload>;
    /// A variable of the process's environment.
    fn variable(&self, _: &str) -> Option<&str> {
        None
    }
    /// Why it was refused, if it was.
    fn refusal(&self) -> Option<&Refusal>;
    /// What policies came to that are only tried.
    fn dry_runs(&self) -> &[DryRun] {
        &[]
    }
}
