//! Collectors of telemetry: `GrpcService` and `HttpService`.
//!
//! Not for: services that decide about requests. What cannot be used of one is a matter of observability: a collector that is not
//! reached through a cluster is none, and a header that cannot be sent is left out and named in the own log.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::config::core::v3::http_uri::HttpUpstreamType;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderName, HeaderValue};
use model::collector::{Call, Collector};

use super::jwt::host_and_path;
use super::{Translated, positive_duration};

/// A collector that is called by gRPC; none if it is not reached through a cluster.
pub(super) fn grpc(service: &core::GrpcService, path: &str) -> Translated<Option<Collector>> {
    let Some(TargetSpecifier::EnvoyGrpc(target)) = service.target_specifier.as_ref() else { return Ok(None) };
    let authority = if target.authority.is_empty() { &target.cluster_name } else { &target.authority };
    Ok(Some(Collector {
        cluster: target.cluster_name.as_str().into(),
        authority: authority.as_str().into(),
        call: Call::Grpc,
        headers: service.initial_metadata.iter().filter_map(header).collect(),
        timeout: positive_duration(service.timeout.as_ref(), &format!("{path}.timeout"))?,
    }))
}

/// A collector that is called by HTTP; none if it is not reached through a cluster, or its URI is none. A URI that is only a path is
/// that of a host named as the cluster.
pub(super) fn http(service: &core::HttpService, path: &str) -> Translated<Option<Collector>> {
    let Some(uri) = service.http_uri.as_ref() else { return Ok(None) };
    let Some(HttpUpstreamType::Cluster(cluster)) = &uri.http_upstream_type else { return Ok(None) };
    let read =
        if uri.uri.starts_with('/') { HeaderValue::from_str(cluster).ok().zip(uri.uri.parse().ok()) } else { host_and_path(&uri.uri) };
    let Some((host, target)) = read else { return Ok(None) };
    let headers = service.request_headers_to_add.iter().filter_map(|option| option.header.as_ref());
    Ok(Some(Collector {
        cluster: cluster.as_str().into(),
        authority: Arc::from(host.to_str().unwrap_or(cluster)),
        call: Call::Http(target),
        headers: headers.filter_map(header).collect(),
        timeout: positive_duration(uri.timeout.as_ref(), &format!("{path}.http_uri.timeout"))?,
    }))
}

/// A header of all calls. Those that frame a message are our own.
fn header(value: &core::HeaderValue) -> Option<(HeaderName, HeaderValue)> {
    const OWN: [HeaderName; 8] = [CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    let bytes = if value.raw_value.is_empty() { value.value.as_bytes() } else { &value.raw_value };
    let name = HeaderName::from_bytes(value.key.as_bytes()).ok().filter(|name| !OWN.contains(name));
    let read = name.zip(HeaderValue::from_bytes(bytes).ok());
    if read.is_none() {
        ::tracing::warn!(header = %value.key, "is not sent to a collector: it is no header, or one of our own");
    }
    read.map(|(name, mut value)| {
        // It may be a key.
        value.set_sensitive(true);
        (name, value)
    })
}
