//! The request as rules and policies see it.

use std::net::IpAddr;

use filters::rbac::RbacInput;
use http::uri::PathAndQuery;
use http::{HeaderValue, Version, header};
use model::claims::TokenMetadata;
use model::stream_view::RequestHead;

use super::{TunnelContext, X_FORWARDED_PROTO};
use crate::http::normalize::RequestScheme;

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
