//! Access logs, tracing, metrics, and the workloads that peers are described by.
use super::super::check;
use super::super::rule::Kind::{Observability, Part};
use super::super::rule::Rule::{Extension, Honoured, Listed, Unused, Whole};
use super::super::rule::{Entry, entry, listed, walked, when, whole, whole_when};

pub(super) const ENTRIES: &[Entry] = &[
    entry(Observability, "envoy.config.accesslog.v3.AccessLog", &[("name", Whole), ("filter", Honoured)]),
    entry(
        Observability,
        "envoy.config.accesslog.v3.AccessLogFilter",
        &[
            ("status_code_filter", Honoured),
            ("response_flag_filter", Honoured),
            ("and_filter", Honoured),
            ("extension_filter", Extension(LOG_FILTERS)),
            ("or_filter", Listed("not evaluated: what it would leave out is logged")),
            ("duration_filter", Listed("not evaluated: what it would leave out is logged")),
            ("header_filter", Listed("not evaluated: what it would leave out is logged")),
            ("runtime_filter", Listed("not evaluated: what it would leave out is logged")),
            ("traceable_filter", Listed("not evaluated: what it would leave out is logged")),
            ("not_health_check_filter", Listed("not evaluated: what it would leave out is logged")),
            ("grpc_status_filter", Listed("not evaluated: what it would leave out is logged")),
            ("metadata_filter", Listed("not evaluated: what it would leave out is logged")),
            ("log_type_filter", Listed("not evaluated: what it would leave out is logged")),
        ],
    ),
    entry(Observability, "envoy.config.accesslog.v3.ExtensionFilter", &[("name", Whole)]),
    entry(
        Observability,
        "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        &[("expression", when("expressions without macros, maps and functions of extensions", check::is_expression, "nothing is logged"))],
    ),
    entry(Observability, "envoy.config.accesslog.v3.AndFilter", &[("filters", Honoured)]),
    entry(Observability, "envoy.config.accesslog.v3.ResponseFlagFilter", &[("flags", Honoured)]),
    entry(Observability, "envoy.config.accesslog.v3.StatusCodeFilter", &[("comparison", Honoured)]),
    entry(Observability, "envoy.config.accesslog.v3.ComparisonFilter", &[("op", Honoured), ("value", Honoured)]),
    entry(Part, "envoy.config.core.v3.RuntimeUInt32", &[("default_value", Honoured), ("runtime_key", Unused("there is no runtime"))]),
    entry(
        Observability,
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        &[
            ("path", Honoured),
            ("log_format", Honoured),
            ("format", Listed("deprecated; log_format is its successor")),
            ("json_format", Listed("deprecated; log_format is its successor")),
            ("typed_json_format", Listed("deprecated; log_format is its successor")),
        ],
    ),
    entry(
        Observability,
        "envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
        &[
            ("common_config", Honoured),
            ("grpc_service", Honoured),
            ("http_service", Honoured),
            ("log_name", Whole),
            ("disable_builtin_labels", Whole),
            ("resource_attributes", Whole),
            ("body", Whole),
            ("attributes", Whole),
            ("formatters", Unused("operators of extensions are known without")),
            ("stat_prefix", Unused("Envoy's own statistics")),
            ("resource_detectors", Listed("the resource has what is configured only")),
            ("buffer_flush_interval", Listed("records leave within a second")),
            ("buffer_size_bytes", Listed("batches have our own bound")),
            ("filter_state_objects_to_log", Listed("not logged")),
            ("custom_tags", Listed("not logged")),
        ],
    ),
    entry(
        Observability,
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        &[
            ("common_config", Honoured),
            ("additional_request_headers_to_log", Whole),
            ("additional_response_headers_to_log", Whole),
            ("additional_response_trailers_to_log", Whole),
        ],
    ),
    entry(Observability, "envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig", &[("common_config", Honoured)]),
    entry(
        Observability,
        "envoy.extensions.access_loggers.grpc.v3.CommonGrpcAccessLogConfig",
        &[
            ("log_name", Whole),
            ("grpc_service", Honoured),
            ("transport_api_version", Unused("there is one")),
            (
                "filter_state_objects_to_log",
                whole_when(
                    "the peers, in entries of the access log service",
                    check::are_logged_peers,
                    "what is not one of them is not logged",
                ),
            ),
            ("buffer_flush_interval", Listed("what is logged leaves within a second")),
            ("buffer_size_bytes", Listed("batches have our own bound")),
            ("grpc_stream_retry_policy", Listed("a stream that ended is opened again after pauses of our own")),
            ("custom_tags", Listed("not logged")),
        ],
    ),
    entry(
        Observability,
        "envoy.config.core.v3.HttpService",
        &[("http_uri", Whole), ("request_headers_to_add", Whole), ("formatters", Unused("values of headers are sent as they are"))],
    ),
    entry(
        Observability,
        "envoy.config.core.v3.SubstitutionFormatString",
        &[
            ("text_format_source", Honoured),
            ("json_format", Whole),
            ("text_format", Listed("deprecated; text_format_source is its successor")),
            ("omit_empty_values", Honoured),
            ("json_format_options", Unused("the order of properties is our own")),
            ("formatters", Unused("operators of extensions are known without")),
            ("content_type", Unused("belongs to replies")),
        ],
    ),
    entry(
        Observability,
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.Tracing",
        &[
            ("provider", Extension(TRACERS)),
            ("random_sampling", Honoured),
            ("overall_sampling", Honoured),
            ("client_sampling", Honoured),
            ("custom_tags", Honoured),
            ("max_path_tag_length", Honoured),
            ("verbose", Listed("no events of the stream in spans")),
            ("spawn_upstream_span", Whole),
            ("no_context_propagation", Honoured),
            ("operation", Listed("spans are named after the route's decorator")),
            ("upstream_operation", Listed("one span per request")),
        ],
    ),
    entry(Observability, "envoy.config.trace.v3.Tracing.Http", &[("name", Whole)]),
    entry(Observability, "envoy.type.v3.Percent", &[("value", Honoured)]),
    entry(
        Observability,
        "envoy.type.tracing.v3.CustomTag",
        &[
            ("tag", Honoured),
            ("literal", Honoured),
            ("request_header", Honoured),
            ("value", Honoured),
            (
                "metadata",
                whole_when("of dry runs", check::is_of_dry_run, "nothing writes other metadata of requests, so the tag has its default"),
            ),
            ("environment", Whole),
        ],
    ),
    entry(Observability, "envoy.type.tracing.v3.CustomTag.Literal", &[("value", Honoured)]),
    entry(Observability, "envoy.type.tracing.v3.CustomTag.Header", &[("name", Honoured), ("default_value", Honoured)]),
    entry(
        Observability,
        "envoy.config.trace.v3.OpenTelemetryConfig",
        &[
            ("grpc_service", Honoured),
            ("service_name", Honoured),
            ("http_service", Honoured),
            ("resource_detectors", Extension(DETECTORS)),
            ("sampler", Listed("sampling is the chain's")),
            ("max_cache_size", Listed("the queue's bound is our own")),
        ],
    ),
    entry(
        Observability,
        "envoy.config.trace.v3.ZipkinConfig",
        &[
            ("collector_cluster", Whole),
            ("collector_endpoint", Whole),
            ("collector_hostname", Whole),
            ("collector_service", Honoured),
            ("collector_endpoint_version", when("HTTP_JSON", check::is_http_json, "spans are sent as JSON all the same")),
            ("trace_id_128bit", Whole),
            ("shared_span_context", Whole),
            ("trace_context_option", Whole),
            ("split_spans_for_request", Listed("one span per request")),
        ],
    ),
    entry(
        Part,
        "envoy.config.core.v3.GrpcService",
        &[
            ("envoy_grpc", Honoured),
            ("google_grpc", Listed("telemetry is exported through a cluster only, so this is not; external authorization is refused")),
            ("timeout", Honoured),
            ("initial_metadata", whole_when("with telemetry", check::is_not_of_authorization, "external authorization is refused")),
            ("retry_policy", Listed("calls are not repeated as it says")),
        ],
    ),
    entry(
        Part,
        "envoy.config.core.v3.GrpcService.EnvoyGrpc",
        &[
            ("cluster_name", Honoured),
            ("authority", Honoured),
            ("retry_policy", Listed("calls are not repeated as it says")),
            ("skip_envoy_headers", Unused("calls have no such headers")),
            ("max_receive_message_length", Listed("answers have our own bound")),
        ],
    ),
    // Metrics, and who the peers are.
    entry(
        Observability,
        "stats.PluginConfig",
        &[
            ("reporter", Honoured),
            ("disable_host_header_fallback", Honoured),
            ("metrics", Honoured),
            ("tcp_reporting_duration", Honoured),
            ("definitions", Honoured),
            ("rotation_interval", Unused("deprecated: Istio does not obey it")),
            ("graceful_deletion_interval", Unused("deprecated: Istio does not obey it")),
            ("debug", Unused("deprecated")),
            ("max_peer_cache_size", Unused("deprecated")),
            ("stat_prefix", Unused("deprecated")),
            ("field_separator", Unused("deprecated")),
            ("value_separator", Unused("deprecated")),
        ],
    ),
    entry(
        Observability,
        "stats.MetricConfig",
        &[
            ("name", Honoured),
            ("drop", Honoured),
            ("tags_to_remove", Honoured),
            (
                "dimensions",
                whole_when(
                    "expressions without macros, maps and functions of extensions",
                    check::are_expressions,
                    "a standard label is left out, an own one not added",
                ),
            ),
            ("match", Unused("Istio does not obey it either")),
        ],
    ),
    entry(
        Observability,
        "stats.MetricDefinition",
        &[
            ("name", Honoured),
            ("value", when("expressions without macros, maps and functions of extensions", check::is_expression, "the metric is left out")),
            ("type", Honoured),
        ],
    ),
    entry(
        Observability,
        "io.istio.http.peer_metadata.Config",
        &[
            ("downstream_discovery", Honoured),
            ("upstream_discovery", Honoured),
            ("shared_with_upstream", Whole),
            ("downstream_propagation", Honoured),
            ("upstream_propagation", Listed("what we know of a peer is told to nobody")),
            ("additional_labels", Listed("not read")),
        ],
    ),
    entry(
        Observability,
        "io.istio.http.peer_metadata.Config.PropagationMethod",
        &[("baggage", Whole), ("istio_headers", Listed("Istio's headers are not written"))],
    ),
    entry(
        Observability,
        "io.istio.http.peer_metadata.Config.DiscoveryMethod",
        &[
            ("workload_discovery", Whole),
            ("baggage", Whole),
            ("istio_headers", Listed("Istio's headers are not read")),
            ("upstream_filter_state", Whole),
        ],
    ),
    entry(
        Observability,
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        &[
            ("protocol", Unused("metadata is exchanged only where ALPN says so, and a waypoint's connections do not")),
            ("enable_discovery", Honoured),
            ("additional_labels", Listed("not read")),
        ],
    ),
    entry(
        Observability,
        "istio.workload.Workload",
        &[
            ("uid", Honoured),
            ("name", Honoured),
            ("namespace", Honoured),
            ("addresses", Honoured),
            ("trust_domain", Honoured),
            ("service_account", Honoured),
            ("canonical_name", Honoured),
            ("canonical_revision", Honoured),
            ("workload_name", Honoured),
            ("workload_type", Honoured),
            ("cluster_id", Honoured),
            ("locality", Whole),
            ("network", Unused(NOT_READ)),
            ("tunnel_protocol", Unused(NOT_READ)),
            ("waypoint", Unused(NOT_READ)),
            ("network_gateway", Unused(NOT_READ)),
            ("node", Unused(NOT_READ)),
            ("native_tunnel", Unused(NOT_READ)),
            ("application_tunnel", Unused(NOT_READ)),
            ("authorization_policies", Unused(NOT_READ)),
            ("status", Unused(NOT_READ)),
            ("hostname", Unused(NOT_READ)),
            ("services", Unused(NOT_READ)),
            ("network_mode", Unused(NOT_READ)),
            ("extensions", Unused(NOT_READ)),
            ("capacity", Unused(NOT_READ)),
        ],
    ),
];

const NOT_READ: &str = "a waypoint reads who a workload is, not how it is reached";

/// Loggers, wherever a message has them.
pub(super) const ACCESS_LOGS: &[super::super::rule::Extension] = &[
    walked("envoy.extensions.access_loggers.file.v3.FileAccessLog"),
    listed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", "nothing is logged by it"),
    walked("envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"),
    walked("envoy.extensions.access_loggers.grpc.v3.TcpGrpcAccessLogConfig"),
    walked("envoy.extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig"),
];

/// Filters of loggers.
const LOG_FILTERS: &[super::super::rule::Extension] = &[walked("envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter")];

const DETECTORS: &[super::super::rule::Extension] = &[
    whole("envoy.extensions.tracers.opentelemetry.resource_detectors.v3.EnvironmentResourceDetectorConfig"),
    listed(
        "envoy.extensions.tracers.opentelemetry.resource_detectors.v3.DynatraceResourceDetectorConfig",
        "the resource has nothing of Dynatrace's files",
    ),
];

const TRACERS: &[super::super::rule::Extension] = &[
    walked("envoy.config.trace.v3.OpenTelemetryConfig"),
    walked("envoy.config.trace.v3.ZipkinConfig"),
    listed("envoy.config.trace.v3.DatadogConfig", "spans are not exported"),
    listed("envoy.config.trace.v3.SkyWalkingConfig", "spans are not exported"),
];
