//! Single operators: `%NAME%`, `%NAME(argument)%`, `%NAME(argument):length%`.

use std::borrow::Cow;
use std::fmt::Write as _;

use http::HeaderName;

use super::HeaderUse;
use super::expression::Expression;
use super::time::{TimeFormat, write_default};
use crate::refusal::RefusalField;
use crate::stream_view::{Field, RequestHead, Side, StreamView, Value};
use crate::workload::Workload;

/// Longest operator read from a format; anything longer is literal text.
const OPERATOR_BYTES_MAX: usize = 1024;

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
#[derive(Clone, Debug)]
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
    /// `FILTER_STATE(downstream_peer_obj:FIELD:workload)` and its like.
    Peer(Side, PeerField),
    /// `DYNAMIC_METADATA(waypoint.refusal:KEY)`; without a key all of it. Envoy reads the operator, and finds nothing there.
    Refusal(Option<RefusalField>),
    /// `ENVIRONMENT(X)` and other values that never change, read when the format was compiled.
    Fixed(Box<str>),
    /// `CEL(expression):N`.
    Expression(Expression, Option<usize>),
    /// Not known here: always missing.
    Unknown,
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
            ("CEL", Some(argument)) => Some(Self::Expression(Expression::parse(argument).ok()?, bytes_max)),
            ("FILTER_STATE", Some(argument)) => filter_state(argument),
            ("DYNAMIC_METADATA", Some(argument)) => refusal(argument),
            (_, None) => plain(name),
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
            Self::StartTime(TimeFormat::Default) => view.field(Field::StartTime),
            Self::StartTime(format) => match view.field(Field::StartTime) {
                Value::Time(time) => Value::Owned(format.render(time)),
                other => other,
            },
            Self::Field(field) => view.field(*field),
            Self::AddressOnly(field) => match view.field(*field) {
                Value::Address(address) => Value::Owned(address.ip().to_string()),
                other => other,
            },
            Self::Peer(side, field) => match view.peer(*side).map(|peer| field.of(peer)) {
                Some(text) if !text.is_empty() => Value::Text(text),
                _ => Value::Missing,
            },
            Self::Refusal(field) => refusal_value(view, *field),
            Self::Fixed(text) => Value::Text(text),
            Self::Expression(expression, bytes_max) => {
                let text = expression.with_text(view, |text| text.map(str::to_owned));
                text.map_or(Value::Missing, |text| Value::Owned(shortened(text, *bytes_max)))
            }
            Self::Unknown => Value::Missing,
        }
    }

    /// Notes the headers that the operator reads.
    pub fn uses(&self, headers: &mut HeaderUse) {
        match self {
            Self::Request { names, .. } => {
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
        Value::Owned(text) => out.extend_from_slice(text.as_bytes()),
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

fn filter_state(argument: &str) -> Option<Operator> {
    let mut parts = argument.split(':');
    let (key, form, field) = (parts.next()?, parts.next(), parts.next());
    match (key, form, field) {
        ("downstream_peer_obj", Some("FIELD"), Some(field)) => Some(Operator::Peer(Side::Downstream, PeerField::parse(field)?)),
        ("upstream_peer_obj", Some("FIELD"), Some(field)) => Some(Operator::Peer(Side::Upstream, PeerField::parse(field)?)),
        ("io.istio.peer_principal", _, None) => Some(Operator::Field(Field::DownstreamPeerUriSan)),
        ("io.istio.local_principal", _, None) => Some(Operator::Field(Field::DownstreamLocalUriSan)),
        _ => None,
    }
}

fn refusal(argument: &str) -> Option<Operator> {
    let rest = argument.strip_prefix("waypoint.refusal")?;
    let field = if rest.is_empty() { None } else { Some(RefusalField::parse(rest.strip_prefix(':')?)?) };
    Some(Operator::Refusal(field))
}

fn refusal_value(view: &dyn StreamView, field: Option<RefusalField>) -> Value<'_> {
    let Some(refusal) = view.refusal() else { return Value::Missing };
    match field.map(|field| refusal.field(field)) {
        Some(Some(Cow::Borrowed(text))) => Value::Text(text),
        Some(Some(Cow::Owned(text))) => Value::Owned(text),
        Some(None) => Value::Missing,
        None => Value::Object(refusal.fields().map(|(field, text)| (field.key(), text)).collect()),
    }
}

fn plain(name: &str) -> Option<Operator> {
    if let Some(address) = name.strip_suffix("_WITHOUT_PORT") {
        return match plain(address)? {
            Operator::Field(field) => Some(Operator::AddressOnly(field)),
            _ => None,
        };
    }
    Some(Operator::Field(match name {
        "PROTOCOL" => Field::Protocol,
        "RESPONSE_CODE" => Field::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Field::ResponseCodeDetails,
        "RESPONSE_FLAGS" => Field::ResponseFlags,
        "CONNECTION_TERMINATION_DETAILS" => Field::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Field::UpstreamTransportFailureReason,
        "BYTES_RECEIVED" => Field::BytesReceived,
        "BYTES_SENT" => Field::BytesSent,
        "DURATION" => Field::Duration,
        "REQUEST_DURATION" => Field::RequestDuration,
        "RESPONSE_DURATION" => Field::ResponseDuration,
        "RESPONSE_TX_DURATION" => Field::ResponseTxDuration,
        "UPSTREAM_HOST" => Field::UpstreamHost,
        "UPSTREAM_CLUSTER" => Field::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => Field::UpstreamClusterRaw,
        "UPSTREAM_LOCAL_ADDRESS" => Field::UpstreamLocalAddress,
        "UPSTREAM_REMOTE_ADDRESS" => Field::UpstreamRemoteAddress,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Field::UpstreamRequestAttemptCount,
        "UPSTREAM_PROTOCOL" => Field::UpstreamProtocol,
        "DOWNSTREAM_LOCAL_ADDRESS" => Field::DownstreamLocalAddress,
        "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Field::DownstreamRemoteAddress,
        "DOWNSTREAM_PEER_URI_SAN" => Field::DownstreamPeerUriSan,
        "DOWNSTREAM_LOCAL_URI_SAN" => Field::DownstreamLocalUriSan,
        "REQUESTED_SERVER_NAME" => Field::RequestedServerName,
        "ROUTE_NAME" => Field::RouteName,
        "TRACE_ID" => Field::TraceId,
        "SPAN_ID" => Field::SpanId,
        "STREAM_ID" => Field::StreamId,
        "GRPC_STATUS" => Field::GrpcStatus,
        "GRPC_STATUS_NUMBER" => Field::GrpcStatusNumber,
        "FILTER_CHAIN_NAME" => Field::FilterChainName,
        "HOSTNAME" => Field::Hostname,
        _ => return None,
    }))
}
