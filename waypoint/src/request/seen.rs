//! The request as rules, policies and records see it.

use std::net::IpAddr;

use filters::rbac::RbacInput;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Version, header};
use model::claims::TokenMetadata;
use model::flags::ResponseFlag;
use model::stream_view::RequestHead;
use telemetry::record::Head;

use super::{TunnelContext, X_FORWARDED_PROTO};
use crate::http::normalize::{Malformed, RequestScheme};
use crate::http::session::Protocol;

/// `:scheme`: HTTP/2 says it, as an absolute target does; of another HTTP/1.1 request it is what `x-forwarded-proto` says, if that is a
/// scheme (Envoy).
fn scheme_of(parts: &http::request::Parts) -> &str {
    if let Some(RequestScheme(scheme)) = parts.extensions.get() {
        return scheme.as_str();
    }
    if parts.version == Version::HTTP_2 {
        return "http";
    }
    match parts.headers.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
        Some(b"https") => "https",
        _ => "http",
    }
}

/// What policies see. `forwarded_for`: as the request came.
pub(super) fn policy_input<'a>(
    (tunnel, forwarded_for): (&'a TunnelContext, Option<IpAddr>),
    parts: &'a http::request::Parts,
    claims: Option<&'a TokenMetadata>,
) -> RbacInput<'a> {
    RbacInput {
        head: Some(head_of(parts)),
        peer_principal: Some(tunnel.connection.peer.as_str()),
        peer_address: tunnel.connection.peer_address.ip(),
        forwarded_for,
        destination: tunnel.target.address(),
        destination_port: tunnel.target.port(),
        server_name: "",
        claims,
    }
}

/// A uniform request as rules see it.
#[must_use]
pub fn head_of(parts: &http::request::Parts) -> RequestHead<'_> {
    RequestHead {
        method: parts.method.as_str(),
        path: parts.uri.path_and_query().map_or("", PathAndQuery::as_str),
        authority: parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()),
        scheme: scheme_of(parts),
        headers: &parts.headers,
    }
}

/// What is recorded of it.
pub(super) fn recorded_head(parts: &http::request::Parts) -> Head {
    Head {
        method: parts.method.clone(),
        path: parts.uri.path_and_query().cloned(),
        authority: parts.headers.get(header::HOST).cloned(),
        scheme: Scheme::HTTP,
    }
}

/// What Envoy says of a request that is none: its codec's word with a flag, or its connection manager's without.
pub(super) fn malformed_details(protocol: Protocol, problem: Malformed) -> (Option<ResponseFlag>, &'static str) {
    match (problem, protocol) {
        (Malformed::HostMissing, _) => (None, "missing_host_header"),
        (Malformed::PathInvalid, _) => (None, "path_normalization_failed"),
        (Malformed::Underscore, Protocol::Http1) => (Some(ResponseFlag::DownstreamProtocolError), "http1.unexpected_underscore"),
        (Malformed::Underscore, Protocol::Http2) => (Some(ResponseFlag::DownstreamRemoteReset), "http2.unexpected_underscore"),
        (Malformed::HeadTimeout, _) => (None, "request_header_timeout"),
        (Malformed::VersionTooLow, _) => (Some(ResponseFlag::DownstreamProtocolError), "low_version"),
        (_, Protocol::Http1) => (Some(ResponseFlag::DownstreamProtocolError), "http1.codec_error"),
        (_, Protocol::Http2) => (Some(ResponseFlag::DownstreamProtocolError), "http2.violation.of.messaging.rule"),
    }
}
