//! An entry of an access log, as the bytes of `HTTPAccessLogEntry` or `TCPAccessLogEntry` of Envoy's access log service.
//!
//! Not for: sending it. Source: Envoy's gRPC access loggers; where the message has a field that is not known here, it is left out. The
//! ids of the request's span are among the custom tags, which Envoy's are not.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use model::access_log::{EntryFields, EntryKind};
use model::flags::{ResponseFlag, ResponseFlags};
use model::format::HeaderRef;
use model::stream_view::{Field, Moment, RequestHead, StreamView, Value};
use model::text::readable;
use model::workload::Workload;

use crate::wire;

/// Numbers of the fields of `HTTPAccessLogEntry` and `TCPAccessLogEntry`.
mod whole {
    pub(super) const COMMON: u32 = 1;
    pub(super) const PROTOCOL: u32 = 2;
    pub(super) const CONNECTION: u32 = 2;
    pub(super) const REQUEST: u32 = 3;
    pub(super) const RESPONSE: u32 = 4;
}

/// Of `AccessLogCommon`.
mod common {
    pub(super) const REMOTE_ADDRESS: u32 = 2;
    pub(super) const LOCAL_ADDRESS: u32 = 3;
    pub(super) const START_TIME: u32 = 5;
    pub(super) const REQUEST_END: u32 = 6;
    pub(super) const UPSTREAM_RESPONSE_START: u32 = 9;
    pub(super) const UPSTREAM_RESPONSE_END: u32 = 10;
    pub(super) const RESPONSE_START: u32 = 11;
    pub(super) const RESPONSE_END: u32 = 12;
    pub(super) const UPSTREAM_REMOTE_ADDRESS: u32 = 13;
    pub(super) const UPSTREAM_LOCAL_ADDRESS: u32 = 14;
    pub(super) const UPSTREAM_CLUSTER: u32 = 15;
    pub(super) const FLAGS: u32 = 16;
    pub(super) const FAILURE_REASON: u32 = 18;
    pub(super) const ROUTE_NAME: u32 = 19;
    pub(super) const DIRECT_REMOTE_ADDRESS: u32 = 20;
    pub(super) const FILTER_STATE: u32 = 21;
    pub(super) const CUSTOM_TAGS: u32 = 22;
    pub(super) const DURATION: u32 = 23;
    pub(super) const ATTEMPTS: u32 = 24;
    pub(super) const TERMINATION_DETAILS: u32 = 25;
    pub(super) const STREAM_ID: u32 = 26;
    pub(super) const WIRE_SENT: u32 = 29;
    pub(super) const WIRE_RECEIVED: u32 = 30;
    pub(super) const LOG_TYPE: u32 = 33;
}

/// Of `ConnectionProperties`.
mod connection {
    pub(super) const RECEIVED: u32 = 1;
    pub(super) const SENT: u32 = 2;
}

/// Of `HTTPRequestProperties`.
mod request {
    pub(super) const METHOD: u32 = 1;
    pub(super) const SCHEME: u32 = 2;
    pub(super) const AUTHORITY: u32 = 3;
    pub(super) const PATH: u32 = 5;
    /// `user_agent`, `referer`, `forwarded_for`, `request_id` and `original_path`.
    pub(super) const STANDARD: [u32; 5] = [6, 7, 8, 9, 10];
    pub(super) const HEADERS_SIZE: u32 = 11;
    pub(super) const BODY_SIZE: u32 = 12;
    pub(super) const HEADERS: u32 = 13;
    pub(super) const WIRE_HEADERS_SIZE: u32 = 15;
}

/// Of `HTTPResponseProperties`.
mod response {
    pub(super) const CODE: u32 = 1;
    pub(super) const HEADERS_SIZE: u32 = 2;
    pub(super) const BODY_SIZE: u32 = 3;
    pub(super) const HEADERS: u32 = 4;
    pub(super) const TRAILERS: u32 = 5;
    pub(super) const DETAILS: u32 = 6;
    pub(super) const WIRE_HEADERS_SIZE: u32 = 8;
}

/// Of small messages that others hold.
mod part {
    /// `Timestamp` and `Duration`.
    pub(super) const SECONDS: u32 = 1;
    pub(super) const NANOS: u32 = 2;
    /// `Address`, `SocketAddress` and `EnvoyInternalAddress`.
    pub(super) const SOCKET: u32 = 1;
    pub(super) const INTERNAL: u32 = 3;
    pub(super) const SOCKET_ADDRESS: u32 = 2;
    pub(super) const SOCKET_PORT: u32 = 3;
    pub(super) const INTERNAL_LISTENER: u32 = 1;
    pub(super) const INTERNAL_ENDPOINT: u32 = 2;
    /// Members of maps, `Any`, `Struct` and its `Value`.
    pub(super) const KEY: u32 = 1;
    pub(super) const VALUE: u32 = 2;
    pub(super) const TYPE_URL: u32 = 1;
    pub(super) const STRUCT_FIELDS: u32 = 1;
    pub(super) const STRING: u32 = 3;
    /// `UInt32Value`, and `ResponseFlags.Unauthorized` with its reason.
    pub(super) const NUMBER: u32 = 1;
    pub(super) const EXTERNAL_SERVICE: u64 = 1;
    /// `ResponseFlags.downstream_remote_reset`.
    pub(super) const REMOTE_RESET: u32 = 28;
}

/// How an internal address of Envoy begins.
const INTERNAL_SCHEME: &str = "envoy://";
const STRUCT_TYPE: &str = "type.googleapis.com/google.protobuf.Struct";

/// Writes entries into a buffer that it keeps.
#[derive(Debug, Default)]
pub(super) struct EntryWriter {
    entry: Vec<u8>,
}

impl EntryWriter {
    /// The entry of a request or connection.
    pub(super) fn write(&mut self, fields: &EntryFields, view: &dyn StreamView) -> &[u8] {
        let out = &mut self.entry;
        out.clear();
        wire::nested(out, whole::COMMON, |out| write_common(out, fields, view));
        match fields.kind {
            EntryKind::Http => {
                let protocol = match view.field(Field::Protocol) {
                    Value::Text("HTTP/1.0") => 1,
                    Value::Text("HTTP/1.1") => 2,
                    Value::Text("HTTP/2") => 3,
                    _ => 0,
                };
                number(out, whole::PROTOCOL, protocol);
                wire::nested(out, whole::REQUEST, |out| write_request(out, fields, view));
                wire::nested(out, whole::RESPONSE, |out| write_response(out, fields, view));
            }
            EntryKind::Tcp => wire::nested(out, whole::CONNECTION, |out| {
                number(out, connection::RECEIVED, counted(view, Field::BytesReceived));
                number(out, connection::SENT, counted(view, Field::BytesSent));
            }),
        }
        out
    }
}

fn write_common(out: &mut Vec<u8>, fields: &EntryFields, view: &dyn StreamView) {
    for (field, number) in [
        (Field::DownstreamRemoteAddress, common::REMOTE_ADDRESS),
        (Field::DownstreamDirectRemoteAddress, common::DIRECT_REMOTE_ADDRESS),
        (Field::DownstreamLocalAddress, common::LOCAL_ADDRESS),
        (Field::UpstreamHost, common::UPSTREAM_REMOTE_ADDRESS),
        (Field::UpstreamLocalAddress, common::UPSTREAM_LOCAL_ADDRESS),
    ] {
        write_address(out, number, &view.field(field));
    }
    write_times(out, view);
    if !matches!(view.field(Field::UpstreamHost), Value::Missing) {
        text(out, common::UPSTREAM_CLUSTER, &view.field(Field::UpstreamClusterRaw));
    }
    if let Value::Flags(flags) = view.field(Field::ResponseFlags) {
        write_flags(out, flags);
    }
    for (field, number) in [
        (Field::UpstreamTransportFailureReasonSpaced, common::FAILURE_REASON),
        (Field::RouteName, common::ROUTE_NAME),
        (Field::ConnectionTerminationDetails, common::TERMINATION_DETAILS),
        (Field::StreamId, common::STREAM_ID),
    ] {
        text(out, number, &view.field(field));
    }
    for (name, side) in &fields.peers {
        if let Some(peer) = view.peer(*side) {
            wire::nested(out, common::FILTER_STATE, |out| write_peer(out, name, peer));
        }
    }
    write_ids(out, view);
    let refusal = view.refusal().filter(|_| fields.adds_refusal);
    for (field, text) in refusal.iter().flat_map(|refusal| refusal.fields()) {
        pair(out, common::CUSTOM_TAGS, field.attribute(), text.as_bytes());
    }
    number(out, common::ATTEMPTS, counted(view, Field::UpstreamRequestAttemptCount));
    number(out, common::WIRE_SENT, counted(view, Field::DownstreamWireBytesSent));
    number(out, common::WIRE_RECEIVED, counted(view, Field::DownstreamWireBytesReceived));
    let log_type = match view.field(Field::AccessLogType) {
        Value::Text("TcpConnectionEnd") => 3,
        Value::Text("DownstreamEnd") => 6,
        _ => 0,
    };
    number(out, common::LOG_TYPE, log_type);
}

fn write_times(out: &mut Vec<u8>, view: &dyn StreamView) {
    if let Value::Time(start) = view.field(Field::StartTime) {
        write_time(out, common::START_TIME, start.duration_since(UNIX_EPOCH).unwrap_or_default());
    }
    let is_answered = view.moment(Moment::ResponseStart).is_some();
    for (moment, field, is_known) in [
        (Moment::RequestEnd, common::REQUEST_END, true),
        (Moment::ResponseStart, common::UPSTREAM_RESPONSE_START, true),
        (Moment::End, common::UPSTREAM_RESPONSE_END, is_answered),
        (Moment::ResponseStart, common::RESPONSE_START, true),
        (Moment::End, common::RESPONSE_END, is_answered),
        (Moment::End, common::DURATION, true),
    ] {
        if let Some(at) = view.moment(moment).filter(|_| is_known) {
            write_time(out, field, at);
        }
    }
}

/// `trace_id` and `span_id`, as custom tags.
fn write_ids(out: &mut Vec<u8>, view: &dyn StreamView) {
    match view.field(Field::TraceId) {
        Value::Hex128(id) => pair(out, common::CUSTOM_TAGS, "trace_id", format!("{id:032x}").as_bytes()),
        Value::Hex64(low) => pair(out, common::CUSTOM_TAGS, "trace_id", format!("{low:016x}").as_bytes()),
        _ => {}
    }
    if let Value::Hex64(id) = view.field(Field::SpanId) {
        pair(out, common::CUSTOM_TAGS, "span_id", format!("{id:016x}").as_bytes());
    }
}

fn write_request(out: &mut Vec<u8>, fields: &EntryFields, view: &dyn StreamView) {
    if let Some(head) = view.request() {
        let RequestHead { method, path, authority, scheme, headers } = head;
        number(out, request::METHOD, method_number(method));
        wire::bytes(out, request::SCHEME, scheme.as_bytes());
        wire::bytes(out, request::AUTHORITY, authority.unwrap_or_default().as_bytes());
        wire::bytes(out, request::PATH, path.as_bytes());
        for (name, number) in EntryFields::STANDARD.iter().zip(request::STANDARD) {
            if let Some(value) = joined(headers, name) {
                wire::bytes(out, number, value.as_bytes());
            }
        }
        for (name, header) in &fields.request_headers {
            match header {
                HeaderRef::Name(header) => write_header(out, request::HEADERS, headers, header),
                pseudo => {
                    if let Some(value) = pseudo.of(&head) {
                        pair(out, request::HEADERS, name, readable(value).as_bytes());
                    }
                }
            }
        }
    }
    number(out, request::HEADERS_SIZE, counted(view, Field::DownstreamHeaderBytesReceived));
    number(out, request::BODY_SIZE, counted(view, Field::BytesReceived));
    number(out, request::WIRE_HEADERS_SIZE, counted(view, Field::DownstreamHeaderBytesReceived));
}

fn write_response(out: &mut Vec<u8>, fields: &EntryFields, view: &dyn StreamView) {
    let code = counted(view, Field::ResponseCode);
    if code != 0 {
        wire::nested(out, response::CODE, |out| number(out, part::NUMBER, code));
    }
    number(out, response::HEADERS_SIZE, counted(view, Field::DownstreamHeaderBytesSent));
    number(out, response::BODY_SIZE, counted(view, Field::BytesSent));
    if let Some(headers) = view.response_headers() {
        if fields.response_status && code != 0 {
            pair(out, response::HEADERS, ":status", itoa::Buffer::new().format(code).as_bytes());
        }
        write_headers(out, response::HEADERS, headers, &fields.response_headers);
    }
    if let Some(trailers) = view.response_trailers() {
        write_headers(out, response::TRAILERS, trailers, &fields.response_trailers);
    }
    text(out, response::DETAILS, &view.field(Field::ResponseCodeDetailsSpaced));
    number(out, response::WIRE_HEADERS_SIZE, counted(view, Field::DownstreamHeaderBytesSent));
}

/// Of `RequestMethod`; other methods have none.
fn method_number(method: &str) -> u64 {
    const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    (1..).zip(METHODS).find_map(|(number, name)| (name == method).then_some(number)).unwrap_or(0)
}

fn write_headers(out: &mut Vec<u8>, field: u32, headers: &HeaderMap, names: &[HeaderName]) {
    for name in names {
        write_header(out, field, headers, name);
    }
}

fn write_header(out: &mut Vec<u8>, field: u32, headers: &HeaderMap, name: &HeaderName) {
    if let Some(value) = joined(headers, name) {
        pair(out, field, name.as_str(), value.as_bytes());
    }
}

/// All lines of a header as one text.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = readable(lines.next()?);
    Some(lines.fold(first, |text, line| Cow::Owned(format!("{text},{}", readable(line)))))
}

/// A member of a map whose values are texts.
fn pair(out: &mut Vec<u8>, field: u32, key: &str, value: &[u8]) {
    wire::nested(out, field, |out| {
        wire::bytes(out, part::KEY, key.as_bytes());
        wire::bytes(out, part::VALUE, value);
    });
}

fn write_flags(out: &mut Vec<u8>, flags: ResponseFlags) {
    if flags.is_empty() {
        return;
    }
    wire::nested(out, common::FLAGS, |out| {
        for flag in flags.iter() {
            // The fields are in the order of Envoy's bits, from 1 on, but that the one before this has none.
            let field = match flag {
                ResponseFlag::DownstreamRemoteReset => part::REMOTE_RESET,
                flag => u32::from(flag.envoy_bit()) + 1,
            };
            if flag == ResponseFlag::UnauthorizedExternalService {
                wire::nested(out, field, |out| number(out, part::NUMBER, part::EXTERNAL_SERVICE));
            } else {
                number(out, field, 1);
            }
        }
    });
}

/// What Istio's filters leave of a peer: a `Struct` of texts.
fn write_peer(out: &mut Vec<u8>, name: &str, peer: &Workload) {
    let members = [
        ("type", peer.workload_type.as_str()),
        ("workload", &peer.workload_name),
        ("name", &peer.name),
        ("cluster", &peer.cluster_id),
        ("namespace", &peer.namespace),
        ("service", &peer.canonical_name),
        ("revision", &peer.canonical_revision),
        ("app", &peer.canonical_name),
        ("version", &peer.canonical_revision),
        ("identity", peer.identity.as_str()),
        ("region", &peer.region),
        ("availability_zone", &peer.zone),
    ];
    wire::bytes(out, part::KEY, name.as_bytes());
    wire::nested(out, part::VALUE, |out| {
        wire::bytes(out, part::TYPE_URL, STRUCT_TYPE.as_bytes());
        wire::nested(out, part::VALUE, |out| {
            for (key, text) in members.into_iter().filter(|(_, text)| !text.is_empty()) {
                wire::nested(out, part::STRUCT_FIELDS, |out| {
                    wire::bytes(out, part::KEY, key.as_bytes());
                    wire::nested(out, part::VALUE, |out| wire::bytes(out, part::STRING, text.as_bytes()));
                });
            }
        });
    });
}

/// An `Address`; nothing of what is none.
fn write_address(out: &mut Vec<u8>, field: u32, value: &Value<'_>) {
    let socket = match value {
        Value::Address(address) => Some(*address),
        Value::Text(text) => text.parse::<SocketAddr>().ok(),
        _ => None,
    };
    if let Some(address) = socket {
        wire::nested(out, field, |out| {
            wire::nested(out, part::SOCKET, |out| {
                wire::bytes(out, part::SOCKET_ADDRESS, address.ip().to_string().as_bytes());
                // One of several: written although it may be 0.
                wire::number(out, part::SOCKET_PORT, address.port());
            });
        });
    } else if let Value::Text(text) = value
        && let Some(internal) = text.strip_prefix(INTERNAL_SCHEME)
    {
        let (listener, endpoint) = internal.split_once('/').unwrap_or((internal, ""));
        wire::nested(out, field, |out| {
            wire::nested(out, part::INTERNAL, |out| {
                wire::bytes(out, part::INTERNAL_LISTENER, listener.as_bytes());
                wire::bytes(out, part::INTERNAL_ENDPOINT, endpoint.as_bytes());
            });
        });
    }
}

/// A `Timestamp` or a `Duration`.
fn write_time(out: &mut Vec<u8>, field: u32, since: Duration) {
    wire::nested(out, field, |out| {
        number(out, part::SECONDS, since.as_secs());
        number(out, part::NANOS, since.subsec_nanos().into());
    });
}

fn counted(view: &dyn StreamView, field: Field) -> u64 {
    match view.field(field) {
        Value::Number(number) => number,
        _ => 0,
    }
}

/// Like every proto3 field, left out when it is 0.
fn number(out: &mut Vec<u8>, field: u32, number: u64) {
    if number != 0 {
        wire::number(out, field, number);
    }
}

fn text(out: &mut Vec<u8>, field: u32, value: &Value<'_>) {
    match value {
        Value::Text(text) => wire::bytes(out, field, text.as_bytes()),
        Value::Owned(text) => wire::bytes(out, field, text.as_bytes()),
        Value::Bytes(bytes) => wire::bytes(out, field, readable(bytes).as_bytes()),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
