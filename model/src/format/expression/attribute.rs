//! Envoy's attributes: which of them there are here, and where they are read.
//!
//! Source: Envoy's documentation of attributes; a stock Envoy, asked. A name that is not known here has no value, as in Envoy; what does
//! not exist on a waypoint's main chain (TLS of the connection, say) neither.

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderName;

use super::super::HeaderUse;
use super::super::operator::{HeaderRef, PeerField};
use super::datum::Datum;
use crate::flags::ResponseFlags;
use crate::refusal::DryRunField;
use crate::service::ServiceRef;
use crate::stream_view::{Field, Moment, Side, StreamView, Value};

/// The name of the first item of a list: none that a member could have.
pub(super) const FIRST: &str = "[0]";
/// That of another, which nothing has here.
pub(super) const OTHER: &str = "[]";
/// Envoy's `INBOUND`: what listeners of a waypoint are.
const INBOUND: i64 = 1;
use crate::text::readable;

/// What a name reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Request(HeaderRef),
    Response(HeaderName),
    Trailer(HeaderName),
    /// The path without its query, and the query.
    UrlPath,
    Query,
    /// Any text, number or time that formats know as well.
    Field(Field),
    /// A number of milliseconds that is a duration.
    Milliseconds(Field),
    /// The status; none while there is no answer.
    Code,
    /// Flags as Envoy's bits.
    Flags,
    Port(Field),
    Peer(Side, PeerField),
    /// The text of the first, an empty one while there is none; without the second, if it is told, there is nothing.
    TextOf(Field, Option<Field>),
    /// From one moment to another.
    Elapsed(Moment, Moment),
    /// Of the service of the cluster.
    Service(ServiceField),
    /// Of a policy that is only tried.
    DryRun(DryRunField),
    /// Something with members.
    Object(Present),
    Bool(bool),
    Int(i64),
    Unknown,
}

/// What is known of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServiceField {
    Host,
    Name,
    Namespace,
}

/// When something with members is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Present {
    Always,
    /// If that is there.
    With(Field),
    /// If that peer is known.
    Peer(Side),
}

impl Attribute {
    /// Reads a name, `["request", "headers", "x-user"]`.
    pub(super) fn resolve(path: &[&str]) -> Self {
        match path {
            ["request" | "response", "headers"] | ["response", "trailers"] | ["xds", "node"] => Self::Object(Present::Always),
            ["request", name] => request(name),
            ["request", "headers", name] => HeaderRef::parse(name).map_or(Self::Unknown, Self::Request),
            ["response", name] => response(name),
            ["response", "headers", name] => header(name).map_or(Self::Unknown, Self::Response),
            ["response", "trailers", name] => header(name).map_or(Self::Unknown, Self::Trailer),
            ["source", "address"] => Self::Field(Field::DownstreamRemoteAddress),
            ["source", "port"] => Self::Port(Field::DownstreamRemoteAddress),
            ["destination", "address"] => Self::Field(Field::DownstreamLocalAddress),
            ["destination", "port"] => Self::Port(Field::DownstreamLocalAddress),
            // The inner connection of a waypoint has no TLS.
            ["connection", "mtls"] => Self::Bool(false),
            ["connection", "requested_server_name"] => Self::TextOf(Field::RequestedServerName, None),
            ["connection", "termination_details"] => Self::Field(Field::ConnectionTerminationDetails),
            ["upstream", name] => upstream(name),
            ["xds", "cluster_name"] => Self::Field(Field::UpstreamClusterRaw),
            ["xds", "route_name"] => Self::Field(Field::RouteName),
            ["xds", "filter_chain_name"] => Self::Field(Field::FilterChainName),
            ["xds", "listener_direction"] => Self::Int(INBOUND),
            ["xds", "node", "id"] => Self::TextOf(Field::NodeId, None),
            ["xds", "node", "cluster"] => Self::TextOf(Field::NodeCluster, None),
            ["xds", "node", "locality", "zone"] => Self::TextOf(Field::NodeZone, None),
            ["xds", "cluster_metadata", "filter_metadata", "istio", "services", FIRST, field] => service(field),
            ["metadata", "filter_metadata", filter, key] => DryRunField::parse(filter, key).map_or(Self::Unknown, Self::DryRun),
            ["filter_state", "downstream_peer" | "downstream_peer_obj"] => Self::Object(Present::Peer(Side::Downstream)),
            ["filter_state", "upstream_peer" | "upstream_peer_obj"] => Self::Object(Present::Peer(Side::Upstream)),
            ["xds", "cluster_metadata"] => Self::Object(Present::With(Field::UpstreamClusterRaw)),
            ["xds", "route_metadata"] => Self::Object(Present::With(Field::RouteName)),
            ["xds", "upstream_host_metadata"] => Self::Object(Present::With(Field::UpstreamHost)),
            ["filter_state", "downstream_peer" | "downstream_peer_obj", field] => peer(Side::Downstream, field),
            ["filter_state", "upstream_peer" | "upstream_peer_obj", field] => peer(Side::Upstream, field),
            ["filter_state", "io.istio.peer_principal"] => Self::Field(Field::PeerPrincipal),
            ["filter_state", "io.istio.local_principal"] => Self::Field(Field::LocalPrincipal),
            _ => Self::Unknown,
        }
    }

    pub(super) fn value<'a>(&'a self, view: &'a dyn StreamView) -> Option<Datum<'a>> {
        match self {
            Self::Request(header) => Some(text(header.of(&view.request()?)?)),
            Self::Response(name) => Some(text(view.response_headers()?.get(name)?.as_bytes())),
            Self::Trailer(name) => Some(text(view.response_trailers()?.get(name)?.as_bytes())),
            Self::UrlPath => Some(Datum::Text(split(view.request()?.path).0.into())),
            Self::Query => Some(Datum::Text(split(view.request()?.path).1.into())),
            Self::Field(field) => datum(view.field(*field)),
            Self::Milliseconds(field) => match view.field(*field) {
                Value::Number(milliseconds) => Datum::lasting(Duration::from_millis(milliseconds)),
                _ => None,
            },
            Self::Code => datum(view.field(Field::ResponseCode)).filter(|code| *code != Datum::Int(0)),
            Self::Flags => match view.field(Field::ResponseFlags) {
                Value::Flags(flags) => Some(Datum::Int(bits(flags))),
                _ => None,
            },
            Self::Port(field) => match view.field(*field) {
                Value::Address(address) => Some(Datum::Int(address.port().into())),
                Value::Text(text) => text.parse::<std::net::SocketAddr>().ok().map(|address| Datum::Int(address.port().into())),
                _ => None,
            },
            Self::Peer(side, field) => {
                let text = field.of(view.peer(*side)?);
                (!text.is_empty()).then_some(Datum::Text(text.into()))
            }
            Self::TextOf(_, Some(with)) if view.field(*with) == Value::Missing => None,
            Self::TextOf(field, _) => Some(datum(view.field(*field)).unwrap_or(Datum::Text("".into()))),
            Self::Elapsed(from, to) => view.moment(*to)?.checked_sub(view.moment(*from)?).and_then(Datum::lasting),
            Self::Service(field) => Some(Datum::Text(Cow::Borrowed(field.of(view.service()?)))),
            Self::DryRun(field) => field.of(view.dry_runs()).map(|text| Datum::Text(text.into())),
            Self::Object(present) => present.is_there(view).then_some(Datum::Object),
            Self::Bool(yes) => Some(Datum::Bool(*yes)),
            Self::Int(number) => Some(Datum::Int(*number)),
            Self::Unknown => None,
        }
    }

    pub(super) fn uses(&self, headers: &mut HeaderUse) {
        match self {
            Self::Request(HeaderRef::Name(name)) => headers.add_request(name),
            Self::Response(name) => super::super::add(&mut headers.response, name),
            Self::Trailer(name) => super::super::add(&mut headers.trailers, name),
            _ => {}
        }
    }
}

impl ServiceField {
    fn of(self, service: &ServiceRef) -> &str {
        match self {
            Self::Host => &service.host,
            Self::Name => &service.name,
            Self::Namespace => &service.namespace,
        }
    }
}

impl Present {
    fn is_there(self, view: &dyn StreamView) -> bool {
        match self {
            Self::Always => true,
            Self::With(field) => view.field(field) != Value::Missing,
            Self::Peer(side) => view.peer(side).is_some(),
        }
    }
}

fn service(field: &str) -> Attribute {
    match field {
        "host" => Attribute::Service(ServiceField::Host),
        "name" => Attribute::Service(ServiceField::Name),
        "namespace" => Attribute::Service(ServiceField::Namespace),
        _ => Attribute::Unknown,
    }
}

fn request(name: &str) -> Attribute {
    let header = |name| Attribute::Request(HeaderRef::Name(HeaderName::from_static(name)));
    match name {
        "path" => Attribute::Request(HeaderRef::Path),
        "url_path" => Attribute::UrlPath,
        "query" => Attribute::Query,
        "host" => Attribute::Request(HeaderRef::Authority),
        "scheme" => Attribute::Request(HeaderRef::Scheme),
        "method" => Attribute::Request(HeaderRef::Method),
        "referer" => header("referer"),
        "useragent" => header("user-agent"),
        "id" => Attribute::Field(Field::StreamId),
        "time" => Attribute::Field(Field::StartTime),
        "protocol" => Attribute::Field(Field::Protocol),
        "duration" => Attribute::Milliseconds(Field::Duration),
        "size" => Attribute::Field(Field::BytesReceived),
        "total_size" => Attribute::Field(Field::DownstreamWireBytesReceived),
        _ => Attribute::Unknown,
    }
}

fn response(name: &str) -> Attribute {
    match name {
        "code" => Attribute::Code,
        "code_details" => Attribute::Field(Field::ResponseCodeDetailsSpaced),
        "flags" => Attribute::Flags,
        "grpc_status" => Attribute::Field(Field::GrpcStatusDerived),
        "backend_latency" => Attribute::Elapsed(Moment::UpstreamStart, Moment::End),
        "size" => Attribute::Field(Field::BytesSent),
        "total_size" => Attribute::Field(Field::DownstreamWireBytesSent),
        _ => Attribute::Unknown,
    }
}

fn upstream(name: &str) -> Attribute {
    match name {
        "address" => Attribute::Field(Field::UpstreamHost),
        "port" => Attribute::Port(Field::UpstreamHost),
        "local_address" => Attribute::Field(Field::UpstreamLocalAddress),
        "transport_failure_reason" => Attribute::TextOf(Field::UpstreamTransportFailureReasonSpaced, Some(Field::UpstreamClusterRaw)),
        "request_attempt_count" => Attribute::Field(Field::UpstreamRequestAttemptCount),
        _ => Attribute::Unknown,
    }
}

fn peer(side: Side, field: &str) -> Attribute {
    PeerField::parse(field).map_or(Attribute::Unknown, |field| Attribute::Peer(side, field))
}

fn header(name: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok()
}

fn split(path: &str) -> (&str, &str) {
    path.split_once('?').unwrap_or((path, ""))
}

/// What is no UTF-8 reads as replacement characters.
fn text(bytes: &[u8]) -> Datum<'_> {
    Datum::Text(readable(bytes))
}

fn datum(value: Value<'_>) -> Option<Datum<'_>> {
    Some(match value {
        // An object has no value of its own here.
        Value::Missing | Value::Object(_) => return None,
        Value::Text(text) => Datum::Text(text.into()),
        Value::Bytes(bytes) => text(bytes),
        Value::Owned(text) | Value::Json(text) => Datum::Text(text.into()),
        Value::Bool(yes) => Datum::Bool(yes),
        Value::Number(number) => Datum::Int(i64::try_from(number).unwrap_or(i64::MAX)),
        Value::Time(time) => Datum::Time(time),
        Value::Address(address) => Datum::Text(address.to_string().into()),
        Value::Hex128(id) => Datum::Text(format!("{id:032x}").into()),
        Value::Hex64(id) => Datum::Text(format!("{id:016x}").into()),
        Value::Flags(flags) => Datum::Text(Cow::Owned(flags.to_string())),
    })
}

/// Flags as the number that Envoy has for them.
fn bits(flags: ResponseFlags) -> i64 {
    flags.iter().fold(0, |bits, flag| bits | 1 << flag.envoy_bit())
}
