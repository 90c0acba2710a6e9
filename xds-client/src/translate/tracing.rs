//! `HttpConnectionManager.Tracing`.
//!
//! Providers and tags that are not known are a matter of observability: ids are made and propagated all the same.

use std::sync::Arc;

use envoy_types::pb::envoy::config::trace::v3::OpenTelemetryConfig;
use envoy_types::pb::envoy::config::trace::v3::tracing::http::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::RequestIdExtension as HttpRequestId;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as proto;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_kind;
use envoy_types::pb::envoy::r#type::tracing::v3 as tag;
use envoy_types::pb::envoy::r#type::v3::Percent;
use http::HeaderName;
use model::format::TextFormat;
use model::refusal::DryRunField;
use model::tracing::{CustomTag, RequestIdUse, Sampling, SpanProvider, TagSource, Tracing};

use super::{Translated, collector, open, type_name};

const UUID: &str = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";
const OPEN_TELEMETRY: &str = "envoy.config.trace.v3.OpenTelemetryConfig";
/// Envoy's bound on the path in `http.url`.
const PATH_BYTES_MAX_DEFAULT: u32 = 256;

pub(super) fn tracing(value: &proto::Tracing, request_id: RequestIdUse, path: &str) -> Translated<Tracing> {
    let sampling = |percent: Option<&Percent>| Sampling::percent(percent.map_or(100.0, |percent| percent.value));
    let provider = match value.provider.as_ref().and_then(|provider| provider.config_type.as_ref()) {
        Some(ConfigType::TypedConfig(config)) if type_name(config) == OPEN_TELEMETRY => {
            let path = format!("{path}.provider");
            otlp(&open(config, &path)?, &path)?
        }
        _ => None,
    };
    let path_bytes_max = value.max_path_tag_length.as_ref().map_or(PATH_BYTES_MAX_DEFAULT, |length| length.value);
    Ok(Tracing {
        random_sampling: sampling(value.random_sampling.as_ref()),
        client_sampling: sampling(value.client_sampling.as_ref()),
        overall_sampling: sampling(value.overall_sampling.as_ref()),
        request_id,
        propagates: !value.no_context_propagation,
        custom_tags: value.custom_tags.iter().filter_map(custom_tag).collect(),
        provider: provider.map(Arc::new),
        path_bytes_max: usize::try_from(path_bytes_max).unwrap_or(usize::MAX),
    })
}

/// What the extension for request ids says of them; Envoy's default is the one that istiod names, too.
pub(super) fn request_id(value: Option<&HttpRequestId>, path: &str) -> Translated<RequestIdUse> {
    let config = value.and_then(|extension| extension.typed_config.as_ref()).filter(|config| type_name(config) == UUID);
    let Some(config) = config else { return Ok(RequestIdUse::default()) };
    let config: UuidRequestIdConfig = open(config, path)?;
    Ok(RequestIdUse {
        decides: config.use_request_id_for_trace_sampling.is_none_or(|yes| yes.value),
        tells: config.pack_trace_reason.is_none_or(|yes| yes.value),
    })
}

fn otlp(config: &OpenTelemetryConfig, path: &str) -> Translated<Option<SpanProvider>> {
    let collector = match (&config.grpc_service, &config.http_service) {
        (Some(service), _) => collector::grpc(service, &format!("{path}.grpc_service"))?,
        (None, Some(service)) => collector::http(service, &format!("{path}.http_service"))?,
        (None, None) => None,
    };
    Ok(collector.map(|collector| SpanProvider { collector, service_name: config.service_name.as_str().into() }))
}

fn custom_tag(value: &tag::CustomTag) -> Option<CustomTag> {
    use tag::custom_tag::Type;
    let source = match value.r#type.as_ref()? {
        Type::Literal(literal) => TagSource::Literal(literal.value.as_str().into()),
        Type::RequestHeader(header) => TagSource::RequestHeader {
            name: HeaderName::from_bytes(header.name.to_ascii_lowercase().as_bytes()).ok()?,
            default: header.default_value.as_str().into(),
        },
        Type::Value(format) => TagSource::Format(TextFormat::parse(format, &mut Vec::new()).omitting_missing()),
        Type::Metadata(metadata) => TagSource::Metadata { field: dry_run(metadata), default: metadata.default_value.as_str().into() },
        Type::Environment(_) => return None,
    };
    Some(CustomTag { tag: Arc::from(value.tag.as_str()), source })
}

/// What of the metadata of requests is known: what Envoy's RBAC filter says of dry runs.
fn dry_run(value: &tag::custom_tag::Metadata) -> Option<DryRunField> {
    let key = value.metadata_key.as_ref()?;
    let kind = value.kind.as_ref().and_then(|kind| kind.kind.as_ref());
    match (kind, key.path.as_slice()) {
        (Some(metadata_kind::Kind::Request(_)), [segment]) => match segment.segment.as_ref()? {
            path_segment::Segment::Key(name) => DryRunField::parse(&key.key, name),
            path_segment::Segment::Index(_) => None,
        },
        _ => None,
    }
}
