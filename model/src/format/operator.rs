//! Single operators: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):length%`.

mod parts;
mod plain;

use std::borrow::Cow;
use std::fmt::Write as _;

use http::HeaderName;

pub use self::parts::{ClusterMetadata, GrpcForm};
use super::expression::Expression;
use super::json::members_of;
use super::time::{TimeFormat, write_default};
use super::{HeaderUse, MISSING};
use crate::flags::ResponseFlag;
use crate::refusal::{DryRunField, RefusalField};
use crate::stream_view::{Field, Moment, RequestHead, Side, StreamView, Value};
use crate::workload::Workload;

/// Longest operator read from a format; anything longer is literal text.
const OPERATOR_BYTES_MAX: usize = 1024;

/// What `…_LOCAL` prints unless it says something else. The zone of a waypoint's container is UTC.
const LOCAL_TIME: Option<&str> = Some("%Y-%m-%dT%H:%M:%S.%3f%z");

/// A header, or one of the pseudo-headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderRef {
    /// `:method`.
    Method,
    /// `:path`.
    Path,
    /// `:authority`.
    Authority,
    /// `:scheme`.
    Scheme,
    /// Any other.
    Name(HeaderName),
}

impl HeaderRef {
    /// Reads a header's name, letters of either case alike.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" | "host" => Self::Authority,
            ":scheme" => Self::Scheme,
            name => Self::Name(HeaderName::from_bytes(name.as_bytes()).ok()?),
        })
    }

    /// The value in a request, the first line of several.
    #[must_use]
    pub fn of<'a>(&self, head: &RequestHead<'a>) -> Option<&'a [u8]> {
        match self {
            Self::Method => Some(head.method.as_bytes()),
            Self::Path => Some(head.path.as_bytes()),
            Self::Authority => head.authority.map(str::as_bytes),
            Self::Scheme => Some(head.scheme.as_bytes()),
            Self::Name(name) => head.headers.get(name).map(http::HeaderValue::as_bytes),
        }
    }
}

/// A field of a peer, as `FILTER_STATE(downstream_peer_obj:FIELD:…)` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the field of Istio's peer metadata of the same name")]
pub enum PeerField {
    Workload,
    Namespace,
    Cluster,
    Service,
    Revision,
    App,
    Version,
    Type,
    Name,
    Identity,
    Region,
    AvailabilityZone,
}

impl PeerField {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "workload" => Self::Workload,
            "namespace" => Self::Namespace,
            "cluster" => Self::Cluster,
            "service" => Self::Service,
            "revision" => Self::Revision,
            "app" => Self::App,
            "version" => Self::Version,
            "type" => Self::Type,
            "name" => Self::Name,
            "identity" => Self::Identity,
            "region" => Self::Region,
            "availability_zone" => Self::AvailabilityZone,
            _ => return None,
        })
    }

    pub(super) fn of(self, peer: &Workload) -> &str {
        match self {
            Self::Workload => &peer.workload_name,
            Self::Namespace => &peer.namespace,
            Self::Cluster => &peer.cluster_id,
            Self::Service | Self::App => &peer.canonical_name,
            Self::Revision | Self::Version => &peer.canonical_revision,
            Self::Type => peer.workload_type.as_str(),
            Self::Name => &peer.name,
            Self::Identity => peer.identity.as_str(),
            Self::Region => &peer.region,
            Self::AvailabilityZone => &peer.zone,
        }
    }
}

/// One compiled operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `REQ(A?B):N`: the first that is there; then `fallback`.
    Request {
        /// The headers, in order of preference.
        names: Vec<HeaderRef>,
        /// Bytes printed at most.
        bytes_max: Option<usize>,
        /// Asked when no header is there: `b3-log-fallback` of the B3 headers in log formats.
        fallback: Option<Field>,
    },
    /// `RESP(A?B):N`.
    Response(Vec<HeaderName>, Option<usize>),
    /// `TRAILER(A?B):N`.
    Trailer(Vec<HeaderName>, Option<usize>),
    /// `START_TIME(format)`.
    StartTime(TimeFormat),
    /// Any operator that is a [`Field`].
    Field(Field),
    /// `DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT` and its like.
    AddressOnly(Field),
    /// `FILTER_STATE(downstream_peer_obj:FIELD:workload):N` and its like.
    Peer(Side, PeerField, Option<usize>),
    /// `FILTER_STATE(io.istio.peer_principal:PLAIN):N` and its like.
    Principal(Field, Option<usize>),
    /// `DYNAMIC_METADATA(waypoint.refusal:KEY)`; without a key all of it. Envoy reads the operator, and finds nothing there.
    Refusal(Option<RefusalField>),
    /// `DYNAMIC_METADATA(envoy.filters.http.rbac:istio_dry_run_…)`: what a dry run came to.
    DryRun(DryRunField),
    /// `REQ_WITHOUT_QUERY(A?B):N` and `PATH(NQ:…):N`: the first that is there, up to its query.
    WithoutQuery(Vec<HeaderRef>, Option<usize>),
    /// `ENVIRONMENT(name):N`.
    Environment(Box<str>, Option<usize>),
    /// `QUERY_PARAM(name):N`.
    QueryParam(Box<str>, Option<usize>),
    /// `COMMON_DURATION` and its like.
    Elapsed(Moment, Moment, Unit),
    /// `EMIT_TIME(format)`.
    EmitTime(TimeFormat),
    /// `RESPONSE_FLAGS_LONG`.
    FlagsLong,
    /// `GRPC_STATUS(form)`.
    GrpcStatus(GrpcForm),
    /// `UPSTREAM_HOST_NAME_WITHOUT_PORT`.
    BeforePort(Field),
    /// `DOWNSTREAM_REMOTE_PORT` and its like.
    Port(Field),
    /// `UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID` and its like.
    EndpointId(Field),
    /// `CLUSTER_METADATA(istio:services)`.
    ClusterMetadata(ClusterMetadata),
    /// What counts nothing in a waypoint.
    Zero,
    /// A text that is always empty here.
    Empty,
    /// Envoy knows it, and it has nothing to say in a waypoint.
    Absent,
    /// `CEL(expression):N`.
    Expression(Expression, Option<usize>),
    /// Not known here: always missing.
    Unknown,
}

/// The unit of a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `ms`.
    Milliseconds,
    /// `us`.
    Microseconds,
    /// `ns`.
    Nanoseconds,
}

/// Takes one operator, without its percent signs, from the front of `text`, which begins after a `%`.
pub(super) fn take(text: &str) -> Option<(&str, &str)> {
    let name = text.bytes().take_while(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_').count();
    if name == 0 {
        return None;
    }
    if !text[name..].starts_with('(') {
        return ended(text, name);
    }
    // An argument may have brackets of its own: it ends with the first that ends the operator, too.
    let brackets = text.bytes().take(OPERATOR_BYTES_MAX).enumerate().skip(name).filter(|(_, byte)| *byte == b')');
    brackets.map(|(at, _)| at).find_map(|at| ended(text, at + 1))
}

/// Splits after `:length`, if there is one, and a percent sign.
fn ended(text: &str, at: usize) -> Option<(&str, &str)> {
    let mut end = at;
    if text[end..].starts_with(':') {
        end += 1 + text[end + 1..].bytes().take_while(u8::is_ascii_digit).count();
    }
    (text[end..].starts_with('%') && end <= OPERATOR_BYTES_MAX).then(|| (&text[..end], &text[end + 1..]))
}

impl Operator {
    /// Reads an operator without its percent signs; none if it is not known.
    #[must_use]
    pub fn parse(command: &str) -> Option<Self> {
        let (command, bytes_max) = match command.rsplit_once(':') {
            Some((head, digits)) if !digits.contains(')') => (head, digits.parse().ok()),
            _ => (command, None),
        };
        let (name, argument) = match command.split_once('(') {
            Some((name, rest)) => (name, Some(rest.strip_suffix(')')?)),
            None => (command, None),
        };
        match (name, argument) {
            ("REQ" | "REQUEST_HEADER", Some(argument)) => request(argument, bytes_max),
            ("RESP" | "RESPONSE_HEADER", Some(argument)) => Some(Self::Response(names(argument)?, bytes_max)),
            ("TRAILER" | "RESPONSE_TRAILER", Some(argument)) => Some(Self::Trailer(names(argument)?, bytes_max)),
            ("START_TIME", argument) => Some(Self::StartTime(TimeFormat::parse(argument)?)),
            ("START_TIME_LOCAL", argument) => Some(Self::StartTime(TimeFormat::parse(argument.or(LOCAL_TIME))?)),
            ("EMIT_TIME", argument) => Some(Self::EmitTime(TimeFormat::parse(argument)?)),
            ("EMIT_TIME_LOCAL", argument) => Some(Self::EmitTime(TimeFormat::parse(argument.or(LOCAL_TIME))?)),
            ("REQ_WITHOUT_QUERY", Some(argument)) => {
                Some(Self::WithoutQuery(argument.split('?').map(HeaderRef::parse).collect::<Option<_>>()?, bytes_max))
            }
            ("PATH", argument) => parts::path(argument, bytes_max),
            ("ENVIRONMENT", Some(name)) => Some(Self::Environment(name.into(), bytes_max)),
            ("QUERY_PARAM", Some(argument)) => Some(Self::QueryParam(argument.into(), bytes_max)),
            ("COMMON_DURATION", Some(argument)) => parts::common_duration(argument),
            ("GRPC_STATUS", Some(argument)) => parts::grpc_form(argument),
            ("CLUSTER_METADATA", Some(argument)) => Some(parts::cluster_metadata(argument)),
            ("METADATA", Some(argument)) => match argument.strip_prefix("CLUSTER:") {
                Some(argument) => Some(parts::cluster_metadata(argument)),
                None => Some(Self::Absent),
            },
            ("DYNAMIC_METADATA", Some(argument)) if argument.starts_with(REFUSAL) => refusal(argument),
            ("DYNAMIC_METADATA", Some(argument)) if let Some(field) = dry_run(argument) => Some(Self::DryRun(field)),
            ("DYNAMIC_METADATA" | "UPSTREAM_METADATA" | "UPSTREAM_FILTER_STATE", Some(_)) => Some(Self::Absent),
            ("RESPONSE_CODE_DETAILS", Some("ALLOW_WHITESPACES")) => Some(Self::Field(Field::ResponseCodeDetailsSpaced)),
            ("CEL", Some(argument)) => Some(Self::Expression(Expression::parse(argument).ok()?, bytes_max)),
            ("FILTER_STATE", Some(argument)) => filter_state(argument, bytes_max),
            (_, None) => plain::parse(name),
            _ => None,
        }
    }

    /// The value, as JSON keeps it.
    #[must_use]
    pub fn value<'a>(&'a self, view: &'a dyn StreamView) -> Value<'a> {
        match self {
            Self::Request { names, bytes_max, fallback } => {
                let found = view.request().and_then(|head| names.iter().find_map(|name| name.of(&head)));
                match (found, fallback) {
                    (Some(found), _) => Value::Bytes(cut(found, *bytes_max)),
                    (None, Some(field)) => view.field(*field),
                    (None, None) => Value::Missing,
                }
            }
            Self::Response(names, bytes_max) => header(view.response_headers(), names, *bytes_max),
            Self::Trailer(names, bytes_max) => header(view.response_trailers(), names, *bytes_max),
            Self::StartTime(format) => match view.field(Field::StartTime) {
                Value::Time(time) => parts::time(format, time),
                other => other,
            },
            Self::EmitTime(format) => parts::emit_time(view).map_or(Value::Missing, |time| parts::time(format, time)),
            Self::WithoutQuery(names, bytes_max) => {
                let found = view.request().and_then(|head| names.iter().find_map(|name| name.of(&head)));
                found.map_or(Value::Missing, |path| Value::Bytes(parts::without_query(path, *bytes_max)))
            }
            // Of one that is not set Envoy has a text that says so.
            Self::Environment(name, bytes_max) => {
                Value::Bytes(view.variable(name).map_or(MISSING, |value| cut(value.as_bytes(), *bytes_max)))
            }
            Self::QueryParam(name, bytes_max) => parts::query_param(view, name, *bytes_max),
            Self::Elapsed(from, to, unit) => parts::elapsed(view, *from, *to, *unit),
            Self::FlagsLong => long_flags(&view.field(Field::ResponseFlags)),
            Self::GrpcStatus(form) => parts::grpc_status(view, *form),
            Self::Field(field) => view.field(*field),
            Self::AddressOnly(field) => parts::address_only(view.field(*field)),
            Self::BeforePort(field) => parts::before_port(view.field(*field)),
            Self::Port(field) => parts::port(&view.field(*field)),
            Self::EndpointId(field) => parts::endpoint_id(view.field(*field)),
            Self::ClusterMetadata(which) => parts::metadata(view.service(), *which),
            Self::Zero => Value::Number(0),
            Self::Empty => Value::Text(""),
            Self::Peer(side, field, bytes_max) => match view.peer(*side).map(|peer| field.of(peer)) {
                Some(text) if !text.is_empty() => Value::Bytes(cut(text.as_bytes(), *bytes_max)),
                _ => Value::Missing,
            },
            Self::Principal(field, bytes_max) => match view.field(*field) {
                Value::Text(text) => Value::Bytes(cut(text.as_bytes(), *bytes_max)),
                other => other,
            },
            Self::Refusal(field) => refusal_value(view, *field),
            Self::DryRun(field) => field.of(view.dry_runs()).map_or(Value::Missing, Value::Text),
            Self::Expression(expression, bytes_max) => {
                let text = expression.with_text(view, |text| text.map(str::to_owned));
                text.map_or(Value::Missing, |text| Value::Owned(shortened(text, *bytes_max)))
            }
            Self::Absent | Self::Unknown => Value::Missing,
        }
    }

    /// Notes the headers that the operator reads.
    pub fn uses(&self, headers: &mut HeaderUse) {
        match self {
            Self::Request { names, .. } | Self::WithoutQuery(names, _) => {
                for name in names {
                    if let HeaderRef::Name(name) = name {
                        headers.add_request(name);
                    }
                }
            }
            Self::Response(names, _) => names.iter().for_each(|name| super::add(&mut headers.response, name)),
            Self::Expression(expression, _) => expression.uses(headers),
            Self::Trailer(names, _) => names.iter().for_each(|name| super::add(&mut headers.trailers, name)),
            _ => {}
        }
    }

    /// Appends the value as text; false if there is none.
    pub fn render_text(&self, view: &dyn StreamView, out: &mut Vec<u8>) -> bool {
        write_text(&self.value(view), out)
    }
}

/// Appends a value as text; false if it is missing.
pub(super) fn write_text(value: &Value<'_>, out: &mut Vec<u8>) -> bool {
    match value {
        Value::Missing => return false,
        Value::Text(text) => out.extend_from_slice(text.as_bytes()),
        Value::Bool(yes) => out.extend_from_slice(if *yes { b"true" } else { b"false" }),
        Value::Owned(text) | Value::Json(text) => out.extend_from_slice(text.as_bytes()),
        Value::Bytes(bytes) => out.extend_from_slice(bytes),
        Value::Number(number) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
        Value::Time(time) => write_default(*time, out),
        Value::Flags(flags) => flags.with_text(|text| out.extend_from_slice(text.as_bytes())),
        Value::Address(address) => write_display(out, address),
        Value::Hex128(id) => write_hex(out, &id.to_be_bytes()),
        Value::Hex64(id) => write_hex(out, &id.to_be_bytes()),
        Value::Object(members) => super::json::write_object(members, out),
    }
    true
}

fn long_flags(flags: &Value<'_>) -> Value<'static> {
    match flags {
        Value::Flags(flags) if !flags.is_empty() => Value::Owned(flags.iter().map(ResponseFlag::long).collect::<Vec<_>>().join(",")),
        Value::Flags(_) => Value::Text("-"),
        _ => Value::Missing,
    }
}

fn write_display(out: &mut Vec<u8>, value: &dyn std::fmt::Display) {
    struct Sink<'a>(&'a mut Vec<u8>);
    impl std::fmt::Write for Sink<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    write!(Sink(out), "{value}").expect("writing to a vector cannot fail");
}

fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 0xf)]);
    }
}

fn cut(bytes: &[u8], bytes_max: Option<usize>) -> &[u8] {
    &bytes[..bytes.len().min(bytes_max.unwrap_or(usize::MAX))]
}

/// The beginning of a text, whole characters only.
fn shortened(mut text: String, bytes_max: Option<usize>) -> String {
    let mut end = text.len().min(bytes_max.unwrap_or(usize::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn header<'a>(headers: Option<&'a http::HeaderMap>, names: &[HeaderName], bytes_max: Option<usize>) -> Value<'a> {
    let found = headers.and_then(|headers| names.iter().find_map(|name| headers.get(name)));
    found.map_or(Value::Missing, |value| Value::Bytes(cut(value.as_bytes(), bytes_max)))
}

fn names(argument: &str) -> Option<Vec<HeaderName>> {
    argument.split('?').map(|name| HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).ok()).collect()
}

fn request(argument: &str, bytes_max: Option<usize>) -> Option<Operator> {
    let names: Vec<_> = argument.split('?').map(HeaderRef::parse).collect::<Option<_>>()?;
    Some(Operator::Request { names, bytes_max, fallback: None })
}

impl Operator {
    /// `b3-log-fallback`: in a log format, the B3 headers fall back to the ids of the active span.
    #[must_use]
    pub fn with_b3_fallback(self) -> Self {
        let Self::Request { names, bytes_max, fallback: None } = self else { return self };
        let is = |wanted: &str| matches!(names.as_slice(), [HeaderRef::Name(name)] if name.as_str() == wanted);
        let fallback = if is("x-b3-spanid") {
            Some(Field::SpanId)
        } else if is("x-b3-traceid") {
            Some(Field::TraceId)
        } else {
            None
        };
        Self::Request { names, bytes_max, fallback }
    }
}

fn filter_state(argument: &str, bytes_max: Option<usize>) -> Option<Operator> {
    let mut parts = argument.split(':');
    let (key, form, field) = (parts.next()?, parts.next(), parts.next());
    let peer = |side, field| PeerField::parse(field).map_or(Operator::Absent, |field| Operator::Peer(side, field, bytes_max));
    match (key, form, field) {
        ("downstream_peer_obj", Some("FIELD"), Some(field)) => Some(peer(Side::Downstream, field)),
        ("upstream_peer_obj", Some("FIELD"), Some(field)) => Some(peer(Side::Upstream, field)),
        ("io.istio.peer_principal", _, None) => Some(Operator::Principal(Field::PeerPrincipal, bytes_max)),
        ("io.istio.local_principal", _, None) => Some(Operator::Principal(Field::LocalPrincipal, bytes_max)),
        // Any key is a key; nobody has set it.
        _ => Some(Operator::Absent),
    }
}

/// The name of what is said of a refusal, among dynamic metadata.
const REFUSAL: &str = "waypoint.refusal";

fn refusal(argument: &str) -> Option<Operator> {
    let rest = argument.strip_prefix(REFUSAL)?;
    let field = if rest.is_empty() { None } else { Some(RefusalField::parse(rest.strip_prefix(':')?)?) };
    Some(Operator::Refusal(field))
}

fn dry_run(argument: &str) -> Option<DryRunField> {
    let (filter, key) = argument.split_once(':')?;
    DryRunField::parse(filter, key)
}

fn refusal_value(view: &dyn StreamView, field: Option<RefusalField>) -> Value<'_> {
    let Some(refusal) = view.refusal() else { return Value::Missing };
    match field.map(|field| refusal.field(field)) {
        Some(Some(Cow::Borrowed(text))) => Value::Text(text),
        Some(Some(Cow::Owned(text))) => Value::Owned(text),
        Some(None) => Value::Missing,
        None => Value::Object(members_of(refusal)),
    }
}
