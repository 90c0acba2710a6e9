//! Operators that are a name alone: which of them are known, and which of those have nothing to say in a waypoint.
//!
//! Source: Envoy 1.40's operators, each of which it accepts.

use super::Operator;
use crate::stream_view::{Field, Moment};

/// Of a side's TLS, which the connection inside a tunnel has not.
const TLS: [&str; 35] = [
    "PEER_URI_SAN",
    "PEER_DNS_SAN",
    "PEER_IP_SAN",
    "PEER_EMAIL_SAN",
    "PEER_OTHERNAME_SAN",
    "PEER_SUBJECT",
    "PEER_ISSUER",
    "PEER_SERIAL",
    "PEER_FINGERPRINT_1",
    "PEER_FINGERPRINT_256",
    "PEER_CERT",
    "PEER_CERT_V_START",
    "PEER_CERT_V_END",
    "PEER_CHAIN_FINGERPRINTS_1",
    "PEER_CHAIN_FINGERPRINTS_256",
    "PEER_CHAIN_SERIALS",
    "PEER_ISSUER_FINGERPRINT_256",
    "PEER_ISSUER_SERIAL",
    "LOCAL_URI_SAN",
    "LOCAL_DNS_SAN",
    "LOCAL_IP_SAN",
    "LOCAL_EMAIL_SAN",
    "LOCAL_OTHERNAME_SAN",
    "LOCAL_SUBJECT",
    "TLS_VERSION",
    "TLS_CIPHER",
    "TLS_SESSION_ID",
    "TLS_GROUP",
    "LOCAL_CLOSE_REASON",
    "DETECTED_CLOSE_TYPE",
    "TRANSPORT_FAILURE_REASON",
    "CONNECTION_ID",
    "SERVER_NAME",
    "CX_RTT",
    "HANDSHAKE_DURATION",
];

/// Others that Envoy knows and that say nothing here, most of them nothing behind an internal listener of Envoy's either.
const ABSENT: [&str; 20] = [
    "CONNECTION_ID",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT",
    "UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED",
    "REQUEST_TX_DURATION",
    "ROUNDTRIP_DURATION",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_HOSTS_ATTEMPTED",
    "UPSTREAM_HOST_NAMES_ATTEMPTED",
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT",
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED",
    "UNIQUE_ID",
    "VIRTUAL_CLUSTER_NAME",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "STREAM_INFO_REQ",
    "RESPONSE_TRAILERS_BYTES",
];

/// Reads a name.
pub(super) fn parse(name: &str) -> Option<Operator> {
    if let Some(field) = field(name) {
        return Some(Operator::Field(field));
    }
    Some(match name {
        "RESPONSE_FLAGS_LONG" => Operator::FlagsLong,
        "REQUEST_DURATION" => Operator::Elapsed(Moment::Start, Moment::RequestEnd, super::Unit::Milliseconds),
        "RESPONSE_DURATION" => Operator::Elapsed(Moment::Start, Moment::ResponseStart, super::Unit::Milliseconds),
        "RESPONSE_TX_DURATION" => Operator::Elapsed(Moment::ResponseStart, Moment::End, super::Unit::Milliseconds),
        "BYTES_RETRANSMITTED" | "PACKETS_RETRANSMITTED" => Operator::Zero,
        // It has a value only while Envoy makes the body of an answer of its own; nothing sets flags of one's own; and an address that
        // is no internal one has no endpoint, which Envoy says of its own internal ones too.
        "LOCAL_REPLY_BODY" | "CUSTOM_FLAGS" | "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID" | "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID" => {
            Operator::Empty
        }
        "UPSTREAM_HOST_NAME_WITHOUT_PORT" => Operator::BeforePort(Field::UpstreamHost),
        _ => return address(name).or_else(|| is_absent(name).then_some(Operator::Absent)),
    })
}

/// Parts of addresses.
fn address(name: &str) -> Option<Operator> {
    if let Some(address) = name.strip_suffix("_WITHOUT_PORT") {
        return field(address).filter(|field| is_address(*field)).map(Operator::AddressOnly);
    }
    if let Some(address) = name.strip_suffix("_ADDRESS_ENDPOINT_ID") {
        return field(&format!("{address}_ADDRESS")).map(Operator::EndpointId);
    }
    let address = name.strip_suffix("_PORT")?;
    field(&format!("{address}_ADDRESS")).map(Operator::Port)
}

fn is_address(field: Field) -> bool {
    matches!(
        field,
        Field::UpstreamHost
            | Field::UpstreamLocalAddress
            | Field::UpstreamRemoteAddress
            | Field::DownstreamLocalAddress
            | Field::DownstreamRemoteAddress
            | Field::DownstreamDirectRemoteAddress
    )
}

fn is_absent(name: &str) -> bool {
    let of_side = name.strip_prefix("DOWNSTREAM_").or_else(|| name.strip_prefix("UPSTREAM_"));
    ABSENT.contains(&name) || of_side.is_some_and(|name| TLS.contains(&name))
}

fn field(name: &str) -> Option<Field> {
    Some(match name {
        "PROTOCOL" => Field::Protocol,
        "RESPONSE_CODE" => Field::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Field::ResponseCodeDetails,
        "RESPONSE_FLAGS" => Field::ResponseFlags,
        "CONNECTION_TERMINATION_DETAILS" => Field::ConnectionTerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Field::UpstreamTransportFailureReason,
        "BYTES_RECEIVED" => Field::BytesReceived,
        "BYTES_SENT" => Field::BytesSent,
        "DURATION" => Field::Duration,
        // A host without a name is called by its address.
        "UPSTREAM_HOST" | "UPSTREAM_HOST_NAME" => Field::UpstreamHost,
        "UPSTREAM_CLUSTER" => Field::UpstreamCluster,
        "UPSTREAM_CLUSTER_RAW" => Field::UpstreamClusterRaw,
        "UPSTREAM_LOCAL_ADDRESS" => Field::UpstreamLocalAddress,
        "UPSTREAM_REMOTE_ADDRESS" => Field::UpstreamRemoteAddress,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => Field::UpstreamRequestAttemptCount,
        "UPSTREAM_PROTOCOL" => Field::UpstreamProtocol,
        "DOWNSTREAM_LOCAL_ADDRESS" | "DOWNSTREAM_DIRECT_LOCAL_ADDRESS" => Field::DownstreamLocalAddress,
        "DOWNSTREAM_REMOTE_ADDRESS" => Field::DownstreamRemoteAddress,
        "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => Field::DownstreamDirectRemoteAddress,
        "DOWNSTREAM_PEER_URI_SAN" => Field::DownstreamPeerUriSan,
        "DOWNSTREAM_LOCAL_URI_SAN" => Field::DownstreamLocalUriSan,
        "REQUESTED_SERVER_NAME" => Field::RequestedServerName,
        "ROUTE_NAME" => Field::RouteName,
        "TRACE_ID" => Field::TraceId,
        "SPAN_ID" => Field::SpanId,
        "TRACE_SAMPLED" => Field::TraceSampled,
        "STREAM_ID" => Field::StreamId,
        "GRPC_STATUS" => Field::GrpcStatus,
        "GRPC_STATUS_NUMBER" => Field::GrpcStatusNumber,
        "FILTER_CHAIN_NAME" => Field::FilterChainName,
        "HOSTNAME" => Field::Hostname,
        "DOWNSTREAM_WIRE_BYTES_RECEIVED" => Field::DownstreamWireBytesReceived,
        "DOWNSTREAM_WIRE_BYTES_SENT" => Field::DownstreamWireBytesSent,
        "DOWNSTREAM_HEADER_BYTES_RECEIVED" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED" | "REQUEST_HEADERS_BYTES" => {
            Field::DownstreamHeaderBytesReceived
        }
        "DOWNSTREAM_HEADER_BYTES_SENT" | "DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT" | "RESPONSE_HEADERS_BYTES" => {
            Field::DownstreamHeaderBytesSent
        }
        "ACCESS_LOG_TYPE" => Field::AccessLogType,
        _ => return None,
    })
}
