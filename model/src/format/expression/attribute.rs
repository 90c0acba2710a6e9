//! Envoy's attributes: which of them there are here, and where they are read.
//!
//! Source: Envoy's documentation of attributes. A name that is not known here has no value, as in Envoy; what does not exist on a
//! waypoint's main chain (TLS of the connection, say) neither.

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderName;

use super::super::HeaderUse;
use super::super::operator::{HeaderRef, PeerField};
use super::datum::Datum;
use crate::flags::ResponseFlags;
use crate::stream_view::{Field, Side, StreamView, Value};
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
    Bool(bool),
    Unknown,
}

impl Attribute {
    /// Reads a name, `["request", "headers", "x-user"]`.
    pub(super) fn resolve(path: &[&str]) -> Self {
        match path {
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
            ["connection", "requested_server_name"] => Self::Field(Field::RequestedServerName),
            ["connection", "termination_details"] => Self::Field(Field::ConnectionTerminationDetails),
            ["upstream", name] => upstream(name),
            ["xds", "cluster_name"] => Self::Field(Field::UpstreamClusterRaw),
            ["xds", "route_name"] => Self::Field(Field::RouteName),
            ["xds", "filter_chain_name"] => Self::Field(Field::FilterChainName),
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
                Value::Number(milliseconds) => Some(Datum::Duration(Duration::from_millis(milliseconds))),
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
            Self::Bool(yes) => Some(Datum::Bool(*yes)),
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
        "code_details" => Attribute::Field(Field::ResponseCodeDetails),
        "flags" => Attribute::Flags,
        "grpc_status" => Attribute::Field(Field::GrpcStatusNumber),
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
        "transport_failure_reason" => Attribute::Field(Field::UpstreamTransportFailureReason),
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
