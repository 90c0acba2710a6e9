//! `ext_authz` of HTTP and TCP chains, as istiod generates it for CUSTOM policies, and beyond.
//!
//! Invariant: what would make a service see or decide otherwise than Envoy's is refused here; nothing passes unasked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::core::v3::grpc_service::TargetSpecifier;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3 as http;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3 as network;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher_proto;
use model::ext_authz::{AuthzService, BodyShown, ExtAuthz, Gate, GrpcAuthz, HeaderNames, HttpAuthz, OnFailure, RouteExternal, Told};
use model::fraction::Fraction;

use super::{Problem, Translated, duration, matcher, required, route_filters};

/// What shadow rules that choose whether to ask are called in metadata.
pub(super) const SHADOW_PREFIX: &str = "istio_ext_authz_";
/// Where an RBAC filter with them leaves the name of the policy that matched.
const POLICY_KEY: &str = "istio_ext_authz_shadow_effective_policy_id";
const HTTP_RBAC_NAME: &str = "envoy.filters.http.rbac";
const NETWORK_RBAC_NAME: &str = "envoy.filters.network.rbac";
/// How long a call may take when nothing is said, as in Envoy.
const CHECK_TIMEOUT_DEFAULT: Duration = Duration::from_millis(200);
/// Bytes of a body that a service may be shown; more is refused.
const BODY_SHOWN_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Without `status_on_error`.
const STATUS_ON_ERROR_DEFAULT: u16 = 403;

/// The filter of an HTTP chain.
pub(super) fn http(value: &http::ExtAuthz, name: &str, path: &str) -> Translated<ExtAuthz> {
    use http::ext_authz::Services;
    refuse_unsupported(value, path)?;
    let (service, is_http) = match required(value.services.as_ref(), &format!("{path}.services"))? {
        Services::GrpcService(grpc) => (AuthzService::Grpc(grpc_service(grpc, &format!("{path}.grpc_service"))?), false),
        Services::HttpService(http) => (AuthzService::Http(Box::new(http_service(http, &format!("{path}.http_service"))?)), true),
    };
    Ok(ExtAuthz {
        name: name.into(),
        service,
        gate: gate(value.filter_enabled_metadata.as_ref(), HTTP_RBAC_NAME, &format!("{path}.filter_enabled_metadata"))?,
        share: value.filter_enabled.as_ref().map_or(Fraction::ALL, route_filters::runtime_fraction),
        denies_unasked: value.deny_at_disable.as_ref().is_some_and(|flag| flag.default_value.as_ref().is_some_and(|flag| flag.value)),
        told: told(value, is_http, path)?,
        on_failure: OnFailure {
            allows: value.failure_mode_allow,
            adds_header: value.failure_mode_allow_header_add,
            status: status_on_error(value, path)?,
        },
        chooses_route_anew: value.clear_route_cache,
        denied_body_bytes_max: usize::try_from(value.max_denied_response_body_bytes).ok().filter(|max| *max > 0),
    })
}

/// The filter of a TCP chain.
pub(super) fn network(value: &network::ExtAuthz, name: &str, path: &str) -> Translated<ExtAuthz> {
    transport_version(value.transport_api_version, path)?;
    let unsupported = [
        ("metadata_context_namespaces", !value.metadata_context_namespaces.is_empty()),
        ("typed_metadata_context_namespaces", !value.typed_metadata_context_namespaces.is_empty()),
        ("bootstrap_metadata_labels_key", !value.bootstrap_metadata_labels_key.is_empty()),
        ("shadow_mode", value.shadow_mode),
    ];
    refuse_any(&unsupported, path)?;
    let grpc = required(value.grpc_service.as_ref(), &format!("{path}.grpc_service"))?;
    Ok(ExtAuthz {
        name: name.into(),
        service: AuthzService::Grpc(grpc_service(grpc, &format!("{path}.grpc_service"))?),
        gate: gate(value.filter_enabled_metadata.as_ref(), NETWORK_RBAC_NAME, &format!("{path}.filter_enabled_metadata"))?,
        share: Fraction::ALL,
        denies_unasked: false,
        told: Told::default(),
        on_failure: OnFailure { allows: value.failure_mode_allow, adds_header: false, status: STATUS_ON_ERROR_DEFAULT },
        chooses_route_anew: false,
        denied_body_bytes_max: None,
    })
}

/// What a route says of the filter of this name; its levels come most specific first.
pub(super) fn of_route(levels: &[http::ExtAuthzPerRoute], name: &Arc<str>, path: &str) -> Translated<RouteExternal> {
    use http::ext_authz_per_route::Override;
    let mut said = RouteExternal { filter: Arc::clone(name), ..RouteExternal::default() };
    let mut context = BTreeMap::new();
    for (at, level) in levels.iter().enumerate() {
        let settings = match required(level.r#override.as_ref(), path)? {
            Override::Disabled(is_off) => {
                // Only the most specific level turns it off.
                said.is_off |= *is_off && at == 0;
                continue;
            }
            Override::CheckSettings(settings) => settings,
        };
        if settings.service_override.is_some() {
            return Err(Problem::new(format!("{path}.check_settings"), "another service for a route is not supported"));
        }
        if at == 0 {
            said.hides_body = settings.disable_request_body_buffering;
            said.body =
                settings.with_request_body.as_ref().map(|body| body_shown(body, &format!("{path}.with_request_body"))).transpose()?;
        }
        for (key, value) in &settings.context_extensions {
            context.entry(key.as_str()).or_insert(value.as_str());
        }
    }
    said.context = context.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    Ok(said)
}

fn refuse_any(set: &[(&str, bool)], path: &str) -> Translated<()> {
    match set.iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => Err(Problem::new(format!("{path}.{field}"), "is not supported")),
        None => Ok(()),
    }
}

fn refuse_unsupported(value: &http::ExtAuthz, path: &str) -> Translated<()> {
    transport_version(value.transport_api_version, path)?;
    let unsupported = [
        ("metadata_context_namespaces", !value.metadata_context_namespaces.is_empty()),
        ("typed_metadata_context_namespaces", !value.typed_metadata_context_namespaces.is_empty()),
        ("route_metadata_context_namespaces", !value.route_metadata_context_namespaces.is_empty()),
        ("route_typed_metadata_context_namespaces", !value.route_typed_metadata_context_namespaces.is_empty()),
        ("bootstrap_metadata_labels_key", !value.bootstrap_metadata_labels_key.is_empty()),
        ("decoder_header_mutation_rules", value.decoder_header_mutation_rules.is_some()),
        ("shadow_mode", value.shadow_mode),
    ];
    refuse_any(&unsupported, path)
}

fn transport_version(value: i32, path: &str) -> Translated<()> {
    match core::ApiVersion::try_from(value) {
        // AUTO has meant V3 since Envoy speaks no other.
        Ok(core::ApiVersion::Auto | core::ApiVersion::V3) => Ok(()),
        _ => Err(Problem::new(format!("{path}.transport_api_version"), "only V3 is spoken")),
    }
}

/// By which policy of the shadow rules before it a filter is on. Others' metadata is not kept.
fn gate(value: Option<&matcher_proto::MetadataMatcher>, filter: &str, path: &str) -> Translated<Option<Gate>> {
    use matcher_proto::metadata_matcher::path_segment::Segment;
    use matcher_proto::value_matcher::MatchPattern;
    let Some(value) = value else { return Ok(None) };
    let is_policy = matches!(&value.path[..], [one] if matches!(&one.segment, Some(Segment::Key(key)) if key == POLICY_KEY));
    if value.filter != filter || !is_policy {
        return Err(Problem::new(path, format!("only {POLICY_KEY:?} of {filter:?} is supported")));
    }
    match required(value.value.as_ref(), path)?.match_pattern.as_ref() {
        Some(MatchPattern::StringMatch(text)) => Ok(Some(Gate { test: matcher::string(text, path)?, invert: value.invert })),
        _ => Err(Problem::new(path, "only a string_match is supported")),
    }
}

fn told(value: &http::ExtAuthz, is_http: bool, path: &str) -> Translated<Told> {
    let body = value.with_request_body.as_ref().map(|body| body_shown(body, &format!("{path}.with_request_body"))).transpose()?;
    let allowed = value.allowed_headers.as_ref().or_else(|| deprecated_allowed(value));
    let mut headers = allowed.map(|list| names(list, &format!("{path}.allowed_headers"))).transpose()?;
    if is_http {
        // An HTTP service is told little unless more is asked for.
        let always = ["authorization", ":method", ":path", ":authority"];
        let always = always.map(|name| model::matcher::StringMatcher::Exact(name.as_bytes().into()));
        headers.get_or_insert_default().0.extend(always);
    }
    Ok(Told {
        headers,
        hidden_headers: optional_names(value.disallowed_headers.as_ref(), &format!("{path}.disallowed_headers"))?,
        raw_headers: value.encode_raw_headers,
        body,
        body_is_bytes: is_http || value.with_request_body.as_ref().is_some_and(|body| body.pack_as_bytes),
    })
}

#[expect(deprecated, reason = "older releases of istiod use it")]
fn deprecated_allowed(value: &http::ExtAuthz) -> Option<&matcher_proto::ListStringMatcher> {
    match &value.services {
        Some(http::ext_authz::Services::HttpService(service)) => service.authorization_request.as_ref()?.allowed_headers.as_ref(),
        _ => None,
    }
}

fn body_shown(value: &http::BufferSettings, path: &str) -> Translated<BodyShown> {
    let within = Some(value.max_request_bytes).filter(|max| (1..=BODY_SHOWN_BYTES_MAX).contains(max));
    let bytes_max = within.and_then(|max| usize::try_from(max).ok());
    let bytes_max = bytes_max
        .ok_or_else(|| Problem::new(format!("{path}.max_request_bytes"), format!("has to be between 1 and {BODY_SHOWN_BYTES_MAX}")))?;
    Ok(BodyShown { bytes_max, allows_partial: value.allow_partial_message })
}

fn status_on_error(value: &http::ExtAuthz, path: &str) -> Translated<u16> {
    let Some(status) = &value.status_on_error else { return Ok(STATUS_ON_ERROR_DEFAULT) };
    match u16::try_from(status.code) {
        Ok(0) => Ok(STATUS_ON_ERROR_DEFAULT),
        Ok(code @ 200..=599) => Ok(code),
        _ => Err(Problem::new(format!("{path}.status_on_error"), format!("{} is no status", status.code))),
    }
}

fn names(value: &matcher_proto::ListStringMatcher, path: &str) -> Translated<HeaderNames> {
    let patterns = value.patterns.iter().enumerate().map(|(at, one)| matcher::string(one, &format!("{path}.patterns[{at}]")));
    Ok(HeaderNames(patterns.collect::<Translated<_>>()?))
}

fn optional_names(value: Option<&matcher_proto::ListStringMatcher>, path: &str) -> Translated<HeaderNames> {
    value.map_or_else(|| Ok(HeaderNames::default()), |list| names(list, path))
}

fn timeout(value: Option<&envoy_types::pb::google::protobuf::Duration>, path: &str) -> Translated<Option<Duration>> {
    let limit = value.map(|value| duration(value, &format!("{path}.timeout"))).transpose()?.unwrap_or(CHECK_TIMEOUT_DEFAULT);
    Ok(Some(limit).filter(|limit| !limit.is_zero()))
}

fn grpc_service(value: &core::GrpcService, path: &str) -> Translated<GrpcAuthz> {
    let Some(TargetSpecifier::EnvoyGrpc(target)) = &value.target_specifier else {
        return Err(Problem::new(path, "only envoy_grpc, through a cluster, is supported"));
    };
    if !value.initial_metadata.is_empty() {
        return Err(Problem::new(format!("{path}.initial_metadata"), "is not supported"));
    }
    let authority = if target.authority.is_empty() { &target.cluster_name } else { &target.authority };
    Ok(GrpcAuthz {
        cluster: cluster(&target.cluster_name, path)?,
        authority: header_value(authority, &format!("{path}.envoy_grpc.authority"))?,
        timeout: timeout(value.timeout.as_ref(), path)?,
    })
}

fn http_service(value: &http::HttpService, path: &str) -> Translated<HttpAuthz> {
    let server = required(value.server_uri.as_ref(), &format!("{path}.server_uri"))?;
    let Some(core::http_uri::HttpUpstreamType::Cluster(name)) = &server.http_upstream_type else {
        return Err(Problem::new(format!("{path}.server_uri"), "has no cluster"));
    };
    if !value.path_override.is_empty() {
        return Err(Problem::new(format!("{path}.path_override"), "is not supported"));
    }
    if !value.path_prefix.is_empty() && !value.path_prefix.starts_with('/') {
        return Err(Problem::new(format!("{path}.path_prefix"), "has to begin with a slash"));
    }
    let response = value.authorization_response.clone().unwrap_or_default();
    let list = |list: &Option<matcher_proto::ListStringMatcher>, field| optional_names(list.as_ref(), &format!("{path}.{field}"));
    let client = list(&response.allowed_client_headers, "allowed_client_headers")?;
    let request = value.authorization_request.as_ref();
    let added = request.map(|request| &request.headers_to_add[..]).unwrap_or_default();
    Ok(HttpAuthz {
        cluster: cluster(name, path)?,
        timeout: timeout(server.timeout.as_ref(), &format!("{path}.server_uri"))?,
        path_prefix: value.path_prefix.as_str().into(),
        headers_to_add: added.iter().map(|one| header(one, &format!("{path}.headers_to_add"))).collect::<Translated<_>>()?,
        upstream_headers: list(&response.allowed_upstream_headers, "allowed_upstream_headers")?,
        upstream_headers_to_append: list(&response.allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append")?,
        // An empty list allows everything, as none does.
        client_headers: Some(client).filter(|list| !list.0.is_empty()),
        client_headers_on_success: list(&response.allowed_client_headers_on_success, "allowed_client_headers_on_success")?,
    })
}

fn cluster(name: &str, path: &str) -> Translated<Arc<str>> {
    if name.is_empty() { Err(Problem::new(path, "names no cluster")) } else { Ok(name.into()) }
}

fn header_value(text: &str, path: &str) -> Translated<::http::HeaderValue> {
    ::http::HeaderValue::from_str(text).map_err(|_| Problem::new(path, format!("{text:?} cannot be a header's value")))
}

/// A header of a text; operators in it would have to be answered for each call.
fn header(value: &core::HeaderValue, path: &str) -> Translated<(::http::HeaderName, ::http::HeaderValue)> {
    if value.value.contains('%') || !value.raw_value.is_empty() {
        return Err(Problem::new(path, "only plain texts are supported"));
    }
    let name = matcher::header_name(&value.key, path)?;
    if model::ext_authz::is_reserved(&name) || name == ::http::header::HOST {
        return Err(Problem::new(path, format!("{name:?} cannot be set")));
    }
    Ok((name, header_value(&value.value, path)?))
}

#[cfg(test)]
mod tests;
