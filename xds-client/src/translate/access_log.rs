//! Access logs: formats and filters.
//!
//! What is not known here is a matter of observability: a logger of another kind is left out, a filter of another kind lets every line
//! through, and an expression that cannot be read none, as one without a value; `coverage` lists them.
//! Invariant: what all services have in common is complained of once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use envoy_types::pb::envoy::config::accesslog::v3 as proto;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::FileAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::file::v3::file_access_log::AccessLogFormat;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use envoy_types::pb::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use envoy_types::pb::google::protobuf as google;
use envoy_types::pb::opentelemetry::proto::common::v1 as otlp;
use http::HeaderName;
use model::access_log::{AccessLog, EntryFields, EntryKind, LogCollector, LogFilter, LogFormat, LogOrigin, LogTarget, RecordValue};
use model::flags::ResponseFlag;
use model::format::{Expression, HeaderRef, JsonFormat, JsonValue, TextFormat, UnknownOperator};
use model::stream_view::Side;

use super::{Translated, collector, open, type_name};

const EXPRESSION: &str = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter";
const OPEN_TELEMETRY: &str = "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig";
const HTTP_GRPC: &str = "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig";
const TCP_GRPC: &str = "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig";
const FILE: &str = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
/// Nesting of a JSON format, or of a record's values, that is followed.
const DEPTH_MAX: usize = 16;
/// Texts of formats and filters that were complained of; of more nobody is told.
const TOLD_TEXTS_MAX: usize = 256;

/// Istio's default text format.
const TEXT_DEFAULT: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% \
    %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n";

/// Reads the loggers of a chain or listener.
pub(super) fn all(loggers: &[proto::AccessLog], path: &str) -> Translated<Vec<AccessLog>> {
    let mut logs = Vec::new();
    for (at, logger) in loggers.iter().enumerate() {
        let path = format!("{path}.access_log[{at}]");
        let Some(proto::access_log::ConfigType::TypedConfig(config)) = &logger.config_type else { continue };
        let found = match type_name(config) {
            FILE => {
                let file: FileAccessLog = open(config, &path)?;
                Some((target(&file.path), format(&file)))
            }
            HTTP_GRPC => http_entries(&open(config, &path)?, &path)?,
            TCP_GRPC => tcp_entries(&open(config, &path)?, &path)?,
            OPEN_TELEMETRY => records(&open(config, &path)?, &path)?,
            _ => None,
        };
        let Some((target, format)) = found else { continue };
        let mut filters = Vec::new();
        if let Some(filter) = &logger.filter {
            add_filter(filter, &mut filters);
        }
        logs.push(AccessLog { target, format, filters });
    }
    Ok(logs)
}

/// Log records for a collector; none if it is not reached through a cluster, which `coverage` lists.
#[expect(deprecated, reason = "the form that istiod writes")]
fn records(config: &OpenTelemetryAccessLogConfig, path: &str) -> Translated<Option<(LogTarget, LogFormat)>> {
    let common = config.common_config.as_ref();
    let service = config.grpc_service.as_ref().or_else(|| common?.grpc_service.as_ref());
    let collector = match (service, &config.http_service) {
        (Some(service), _) => collector::grpc(service, &format!("{path}.grpc_service"))?,
        (None, Some(service)) => collector::http(service, &format!("{path}.http_service"))?,
        (None, None) => None,
    };
    let Some(collector) = collector else { return Ok(None) };
    let log_name = if config.log_name.is_empty() { common.map_or("", |common| &common.log_name) } else { &config.log_name };
    let resource = config.resource_attributes.iter().flat_map(|list| &list.values);
    let mut unknown = Vec::new();
    let origin = LogOrigin::Records {
        resource: resource.map(|pair| (Arc::from(pair.key.as_str()), plain(pair.value.as_ref()).into())).collect(),
        builtin_labels: (!config.disable_builtin_labels).then(|| log_name.into()),
    };
    let target = LogCollector { collector, origin };
    let format = LogFormat::Record {
        body: config.body.as_ref().filter(|body| body.value.is_some()).map(|body| record_value(Some(body), 0, &mut unknown)),
        attributes: record_pairs(config.attributes.as_ref(), 0, &mut unknown),
        adds_refusal: false,
    };
    warn(unknown);
    Ok(Some((LogTarget::Collector(Arc::new(target)), format)))
}

fn http_entries(config: &HttpGrpcAccessLogConfig, path: &str) -> Translated<Option<(LogTarget, LogFormat)>> {
    let fields = EntryFields {
        kind: EntryKind::Http,
        peers: peers(config.common_config.as_ref()),
        request_headers: config.additional_request_headers_to_log.iter().filter_map(|name| request_header(name)).collect(),
        response_headers: header_names(&config.additional_response_headers_to_log),
        response_status: config.additional_response_headers_to_log.iter().any(|name| name.eq_ignore_ascii_case(":status")),
        response_trailers: header_names(&config.additional_response_trailers_to_log),
        adds_refusal: false,
    };
    entries(config.common_config.as_ref(), fields, path)
}

fn tcp_entries(config: &TcpGrpcAccessLogConfig, path: &str) -> Translated<Option<(LogTarget, LogFormat)>> {
    let fields = EntryFields {
        kind: EntryKind::Tcp,
        peers: peers(config.common_config.as_ref()),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        response_status: false,
        response_trailers: Vec::new(),
        adds_refusal: false,
    };
    entries(config.common_config.as_ref(), fields, path)
}

/// Entries for an access log service; none if it is not reached through a cluster, which `coverage` lists.
fn entries(common: Option<&CommonGrpcAccessLogConfig>, fields: EntryFields, path: &str) -> Translated<Option<(LogTarget, LogFormat)>> {
    let Some((common, service)) = common.and_then(|common| Some((common, common.grpc_service.as_ref()?))) else { return Ok(None) };
    let Some(collector) = collector::grpc(service, &format!("{path}.common_config.grpc_service"))? else { return Ok(None) };
    let origin = LogOrigin::Entries { kind: fields.kind, log_name: common.log_name.as_str().into() };
    Ok(Some((LogTarget::Collector(Arc::new(LogCollector { collector, origin })), LogFormat::Entry(Box::new(fields)))))
}

/// Of the filter state that is to be logged, what Istio's filters leave of peers.
fn peers(common: Option<&CommonGrpcAccessLogConfig>) -> Vec<(Arc<str>, Side)> {
    let names = common.iter().flat_map(|common| &common.filter_state_objects_to_log);
    names
        .filter_map(|name| match name.as_str() {
            "downstream_peer" => Some((Arc::from(name.as_str()), Side::Downstream)),
            "upstream_peer" => Some((Arc::from(name.as_str()), Side::Upstream)),
            _ => None,
        })
        .collect()
}

/// A header, or a pseudo-header, by the name that it is logged by.
fn request_header(name: &str) -> Option<(Box<str>, HeaderRef)> {
    Some((name.to_ascii_lowercase().into(), HeaderRef::parse(name)?))
}

/// Names that cannot be a header's are in no request.
fn header_names(names: &[String]) -> Vec<HeaderName> {
    names.iter().filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect()
}

fn record_pairs(list: Option<&otlp::KeyValueList>, depth: usize, unknown: &mut Vec<UnknownOperator>) -> Vec<(Arc<str>, RecordValue)> {
    let pairs = list.iter().flat_map(|list| &list.values);
    pairs.map(|pair| (Arc::from(pair.key.as_str()), record_value(pair.value.as_ref(), depth + 1, unknown))).collect()
}

/// Texts are formats, and what holds values holds formats; Envoy takes nothing else, and here the rest are texts.
fn record_value(value: Option<&otlp::AnyValue>, depth: usize, unknown: &mut Vec<UnknownOperator>) -> RecordValue {
    use otlp::any_value::Value;
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::ArrayValue(list)) if depth < DEPTH_MAX => {
            RecordValue::List(list.values.iter().map(|value| record_value(Some(value), depth + 1, unknown)).collect())
        }
        Some(Value::KvlistValue(list)) if depth < DEPTH_MAX => RecordValue::Pairs(record_pairs(Some(list), depth, unknown)),
        _ => RecordValue::Text(TextFormat::parse(&plain(value), unknown)),
    }
}

/// A value that is no other's holder, as a text.
fn plain(value: Option<&otlp::AnyValue>) -> String {
    use otlp::any_value::Value;
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        _ => String::new(),
    }
}

fn warn(unknown: Vec<UnknownOperator>) {
    for operator in unknown {
        if is_new(&operator.0) {
            ::tracing::warn!(%operator, "access log format");
        }
    }
}

/// Whether nobody was told of this text before: a mesh has the same format in each of its chains.
fn is_new(text: &str) -> bool {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    told.len() < TOLD_TEXTS_MAX && told.insert(text.to_owned())
}

fn target(path: &str) -> LogTarget {
    match path {
        "/dev/stdout" => LogTarget::Stdout,
        "/dev/stderr" => LogTarget::Stderr,
        other => LogTarget::File(other.into()),
    }
}

#[expect(deprecated, reason = "the forms before log_format are still accepted by Envoy")]
fn format(file: &FileAccessLog) -> LogFormat {
    let mut unknown: Vec<UnknownOperator> = Vec::new();
    let text = |text: &str, omit: bool, unknown: &mut Vec<UnknownOperator>| {
        let format = TextFormat::parse(text, unknown);
        LogFormat::Text(if omit { format.omitting_missing() } else { format })
    };
    let format = match &file.access_log_format {
        None => text(TEXT_DEFAULT, false, &mut unknown),
        Some(AccessLogFormat::Format(format)) => text(format, false, &mut unknown),
        Some(AccessLogFormat::JsonFormat(object) | AccessLogFormat::TypedJsonFormat(object)) => {
            LogFormat::Json(JsonFormat::parse(&members(object, 0), false, &mut unknown))
        }
        Some(AccessLogFormat::LogFormat(format)) => {
            let omit = format.omit_empty_values;
            match &format.format {
                Some(core::substitution_format_string::Format::JsonFormat(object)) => {
                    LogFormat::Json(JsonFormat::parse(&members(object, 0), omit, &mut unknown))
                }
                Some(core::substitution_format_string::Format::TextFormat(format)) => text(format, omit, &mut unknown),
                Some(core::substitution_format_string::Format::TextFormatSource(source)) => match &source.specifier {
                    Some(core::data_source::Specifier::InlineString(format)) => text(format, omit, &mut unknown),
                    _ => text(TEXT_DEFAULT, omit, &mut unknown),
                },
                None => text(TEXT_DEFAULT, omit, &mut unknown),
            }
        }
    };
    warn(unknown);
    format
}

fn members(object: &google::Struct, depth: usize) -> BTreeMap<String, JsonValue> {
    object.fields.iter().map(|(name, value)| (name.clone(), json(value, depth + 1))).collect()
}

fn json(value: &google::Value, depth: usize) -> JsonValue {
    use google::value::Kind;
    match &value.kind {
        _ if depth > DEPTH_MAX => JsonValue::Null,
        None | Some(Kind::NullValue(_)) => JsonValue::Null,
        Some(Kind::NumberValue(number)) => JsonValue::Number(*number),
        Some(Kind::StringValue(text)) => JsonValue::Text(text.clone()),
        Some(Kind::BoolValue(yes)) => JsonValue::Bool(*yes),
        Some(Kind::StructValue(object)) => JsonValue::Object(members(object, depth)),
        Some(Kind::ListValue(list)) => JsonValue::List(list.values.iter().map(|value| json(value, depth + 1)).collect()),
    }
}

fn add_filter(filter: &proto::AccessLogFilter, filters: &mut Vec<LogFilter>) {
    use proto::access_log_filter::FilterSpecifier;
    match &filter.filter_specifier {
        Some(FilterSpecifier::AndFilter(all)) => all.filters.iter().for_each(|one| add_filter(one, filters)),
        Some(FilterSpecifier::ResponseFlagFilter(flags)) => {
            let known: Vec<_> = flags.flags.iter().filter_map(|name| ResponseFlag::parse(name)).collect();
            // Only flags that we never set were named: nothing is to be logged.
            if known.is_empty() && !flags.flags.is_empty() {
                filters.push(LogFilter::Never);
            } else {
                filters.push(LogFilter::Flags(known));
            }
        }
        Some(FilterSpecifier::StatusCodeFilter(code)) => {
            let Some(comparison) = &code.comparison else { return };
            let value = comparison.value.as_ref().map_or(0, |value| value.default_value);
            filters.extend(match proto::comparison_filter::Op::try_from(comparison.op) {
                Ok(proto::comparison_filter::Op::Eq) => Some(LogFilter::CodeIs(value)),
                Ok(proto::comparison_filter::Op::Ge) => Some(LogFilter::CodeAtLeast(value)),
                Ok(proto::comparison_filter::Op::Le) => Some(LogFilter::CodeAtMost(value)),
                _ => None,
            });
        }
        Some(FilterSpecifier::ExtensionFilter(extension)) => {
            use proto::extension_filter::ConfigType;
            let Some(ConfigType::TypedConfig(config)) = &extension.config_type else { return };
            let Some(filter) = (type_name(config) == EXPRESSION).then(|| open::<ExpressionFilter>(config, "")) else { return };
            match filter.map_err(|problem| problem.reason).and_then(|filter| Expression::parse(&filter.expression)) {
                Ok(expression) => filters.push(LogFilter::Expression(expression)),
                Err(error) => {
                    if is_new(&error) {
                        ::tracing::warn!(%error, "the expression of an access log's filter cannot be read, so that nothing is logged");
                    }
                    filters.push(LogFilter::Never);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, value: &impl prost::Message) -> google::Any {
        google::Any { type_url: format!("type.googleapis.com/{name}"), value: value.encode_to_vec() }
    }

    fn filtered_by(expression: &str) -> Vec<LogFilter> {
        let filter = any(EXPRESSION, &ExpressionFilter { expression: expression.to_owned(), ..Default::default() });
        let filter =
            proto::ExtensionFilter { name: "cel".to_owned(), config_type: Some(proto::extension_filter::ConfigType::TypedConfig(filter)) };
        let filter = proto::access_log_filter::FilterSpecifier::ExtensionFilter(filter);
        let file = any(FILE, &FileAccessLog { path: "/dev/stdout".to_owned(), ..Default::default() });
        let logger = proto::AccessLog {
            filter: Some(proto::AccessLogFilter { filter_specifier: Some(filter) }),
            config_type: Some(proto::access_log::ConfigType::TypedConfig(file)),
            ..Default::default()
        };
        let mut logs = all(&[logger], "chain").expect("a filter refuses nothing");
        logs.remove(0).filters
    }

    #[test]
    fn a_filter_that_cannot_be_read_logs_nothing() {
        assert!(matches!(filtered_by("response.code >= 400")[..], [LogFilter::Expression(_)]));
        for unread in ["{'a': 1}['a'] == 1", "type(request.time) == int", "response.code >="] {
            assert_eq!(filtered_by(unread), [LogFilter::Never], "{unread}");
        }
    }

    #[test]
    fn the_same_text_is_new_once() {
        assert!(is_new("BOGUS(once)") && is_new("BOGUS(twice)"));
        assert!(!is_new("BOGUS(once)"));
    }
}
