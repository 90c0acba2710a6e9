//! `HttpConnectionManager.Tracing`.
//!
//! Providers and tags that are not known are a matter of observability: ids are made and propagated all the same.

use std::sync::Arc;

use envoy_types::pb::envoy::config::trace::v3::tracing::http::ConfigType;
use envoy_types::pb::envoy::config::trace::v3::zipkin_config::TraceContextOption;
use envoy_types::pb::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::RequestIdExtension as HttpRequestId;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as proto;
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::path_segment;
use envoy_types::pb::envoy::r#type::metadata::v3::metadata_kind;
use envoy_types::pb::envoy::r#type::tracing::v3 as tag;
use envoy_types::pb::envoy::r#type::v3::Percent;
use http::HeaderName;
use model::collector::{Call, Collector};
use model::format::TextFormat;
use model::refusal::DryRunField;
use model::tracing::{CustomTag, Dialect, RequestIdUse, Sampling, SpanProvider, TagSource, Tracing, Zipkin};

use super::{Translated, collector, open, type_name};

const UUID: &str = "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig";
const ZIPKIN: &str = "envoy.config.trace.v3.ZipkinConfig";
const OPEN_TELEMETRY: &str = "envoy.config.trace.v3.OpenTelemetryConfig";
const ENVIRONMENT_DETECTOR: &str = "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig";
/// Envoy's bound on the path in `http.url`.
const PATH_BYTES_MAX_DEFAULT: u32 = 256;

pub(super) fn tracing(value: &proto::Tracing, request_id: RequestIdUse, path: &str) -> Translated<Tracing> {
    let sampling = |percent: Option<&Percent>| Sampling::percent(percent.map_or(100.0, |percent| percent.value));
    let provider = match value.provider.as_ref().and_then(|provider| provider.config_type.as_ref()) {
        Some(ConfigType::TypedConfig(config)) if type_name(config) == OPEN_TELEMETRY => {
            let path = format!("{path}.provider");
            otlp(&open(config, &path)?, &path)?
        }
        Some(ConfigType::TypedConfig(config)) if type_name(config) == ZIPKIN => {
            let path = format!("{path}.provider");
            zipkin(&open(config, &path)?, &path)?
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
        spans_of_tries: value.spawn_upstream_span.is_some_and(|wanted| wanted.value),
        semantic_names: false,
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
    let mut detectors = config.resource_detectors.iter().filter_map(|detector| detector.typed_config.as_ref());
    let reads_environment = detectors.any(|config| type_name(config) == ENVIRONMENT_DETECTOR);
    let dialect = Dialect::Otlp { service_name: config.service_name.as_str().into(), reads_environment };
    Ok(collector.map(|collector| SpanProvider { collector, dialect }))
}

fn zipkin(config: &ZipkinConfig, path: &str) -> Translated<Option<SpanProvider>> {
    let collector = match &config.collector_service {
        Some(service) => collector::http(service, &format!("{path}.collector_service"))?,
        None if config.collector_cluster.is_empty() => None,
        None => {
            let cluster = &config.collector_cluster;
            let authority = if config.collector_hostname.is_empty() { cluster } else { &config.collector_hostname };
            config.collector_endpoint.parse().ok().map(|target| Collector {
                cluster: cluster.as_str().into(),
                authority: authority.as_str().into(),
                call: Call::Http(target),
                headers: Vec::new(),
                timeout: None,
            })
        }
    };
    let dialect = Dialect::Zipkin(Zipkin {
        shares_spans: config.shared_span_context.as_ref().is_none_or(|shared| shared.value),
        wide_trace_ids: config.trace_id_128bit,
        with_w3c: config.trace_context_option == i32::from(TraceContextOption::UseB3WithW3cPropagation),
    });
    Ok(collector.map(|collector| SpanProvider { collector, dialect }))
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
        Type::Environment(variable) => {
            TagSource::Environment { name: variable.name.as_str().into(), default: variable.default_value.as_str().into() }
        }
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use prost::Message as _;
    use serde_json::{Value, json};

    use super::*;

    fn read(json: &Value) -> Tracing {
        let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing";
        let bytes = xds_proto::message_from_json(name, json).unwrap();
        tracing(&proto::Tracing::decode(&bytes[..]).unwrap(), RequestIdUse::default(), "tracing").unwrap()
    }

    fn zipkin(mut config: Value) -> Arc<SpanProvider> {
        config["@type"] = format!("type.googleapis.com/{ZIPKIN}").into();
        read(&json!({"provider": {"name": "envoy.tracers.zipkin", "typed_config": config}})).provider.unwrap()
    }

    /// As istiod sends it to proxies since 1.29, and to those before.
    #[test]
    fn both_forms_of_zipkins_provider_lead_to_the_same_collector() {
        let common = json!({"collector_endpoint_version": "HTTP_JSON", "trace_id_128bit": true, "shared_span_context": false});
        let (mut new, mut old) = (common.clone(), common);
        new["collector_service"] = json!({
            "http_uri": {"uri": "http://zipkin.shop.svc.cluster.local/api/v2/spans", "cluster": "outbound|9411||zipkin", "timeout": "5s"},
            "request_headers_to_add": [{"header": {"key": "x-tenant", "value": "shop"}}],
        });
        old["collector_cluster"] = "outbound|9411||zipkin".into();
        old["collector_endpoint"] = "/api/v2/spans".into();
        old["collector_hostname"] = "zipkin.shop.svc.cluster.local".into();
        let (new, old) = (zipkin(new), zipkin(old));
        assert_eq!(new.collector.timeout, Some(std::time::Duration::from_secs(5)));
        assert_eq!(new.collector.headers.len(), 1);
        let bare = Collector { timeout: None, headers: Vec::new(), ..new.collector.clone() };
        assert_eq!((bare, new.dialect.clone()), (old.collector.clone(), old.dialect.clone()));
        assert_eq!(&*old.collector.authority, "zipkin.shop.svc.cluster.local");
        let istios = Zipkin { shares_spans: false, wide_trace_ids: true, with_w3c: false };
        assert_eq!(old.dialect, Dialect::Zipkin(istios));
    }

    #[test]
    fn zipkins_spans_are_shared_and_its_ids_short_unless_it_says_otherwise() {
        let provider = zipkin(json!({"collector_cluster": "zipkin", "collector_endpoint": "/api/v2/spans"}));
        assert_eq!(&*provider.collector.authority, "zipkin");
        assert_eq!(provider.dialect, Dialect::Zipkin(Zipkin { shares_spans: true, wide_trace_ids: false, with_w3c: false }));
        let provider = zipkin(json!({
            "collector_cluster": "zipkin", "collector_endpoint": "/", "trace_context_option": "USE_B3_WITH_W3C_PROPAGATION",
        }));
        assert!(matches!(provider.dialect, Dialect::Zipkin(Zipkin { with_w3c: true, .. })));
    }
}
