//! The finished span of a request: Envoy's names, all values texts, since Kiali compares them as such.
//!
//! Not for: exporting it. Source: Envoy's `HttpTracerUtility` and Istio's custom tags, in the order in which Envoy adds them.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderName, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use model::stream_view::StreamView;
use model::tracing::{CustomTag, TagSource, Tracing};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, Key, KeyValue, StringValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::TraceContext;
use crate::record::{
    GRPC_MESSAGE, GRPC_TIMEOUT, RequestRecord, X_CLIENT_TRACE_ID, X_DOWNSTREAM_SERVICE_CLUSTER, X_ENVOY_ORIGINAL_PATH, X_FORWARDED_PROTO,
    X_REQUEST_ID,
};

/// The name of a span whose route has no decorator.
const OPERATION_DEFAULT: &str = "ingress";
/// How absent texts print.
const ABSENT: &str = "-";

/// What every span says of this waypoint.
#[derive(Clone, Debug)]
pub(crate) struct SpanIdentity {
    /// `node_id`.
    pub(crate) node_id: Arc<str>,
    /// `zone`.
    pub(crate) zone: Arc<str>,
    /// Who made the span.
    pub(crate) scope: InstrumentationScope,
}

struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, key: impl Into<Key>, value: impl Into<StringValue>) {
        self.0.push(KeyValue::new(key, value.into()));
    }

    fn add_header(&mut self, key: &'static str, record: &RequestRecord, name: &HeaderName) {
        if let Some(value) = record.request_header(name) {
            self.add(key, readable(value.as_bytes()));
        }
    }

    fn add_header_or_absent(&mut self, key: &'static str, record: &RequestRecord, name: &HeaderName) {
        match record.request_header(name) {
            Some(value) => self.add(key, readable(value.as_bytes())),
            None => self.add(key, ABSENT),
        }
    }
}

/// Header bytes as the text that OTLP wants; what is no UTF-8 prints as replacement characters.
fn readable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The span of a request that ended.
pub(crate) fn finished(record: &RequestRecord, trace: &TraceContext, tracing: &Tracing, identity: &SpanIdentity) -> SpanData {
    let stream = &record.stream;
    let name = match &record.operation {
        Some(operation) => operation.to_string().into(),
        None => OPERATION_DEFAULT.into(),
    };
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(trace.trace_id),
            SpanId::from(trace.span_id),
            TraceFlags::SAMPLED,
            false,
            trace_state(trace),
        ),
        parent_span_id: trace.parent.map_or(SpanId::INVALID, SpanId::from),
        parent_span_is_remote: trace.parent.is_some(),
        span_kind: SpanKind::Server,
        name,
        start_time: stream.start_time,
        end_time: stream.start_time + stream.duration(),
        attributes: attributes(record, tracing, identity),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: status(record),
        instrumentation_scope: identity.scope.clone(),
    }
}

/// `tracestate` in the span; one that is not well-formed went on to the endpoint as it came, and is left out here.
fn trace_state(trace: &TraceContext) -> TraceState {
    trace.tracestate.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// A gRPC status overrides what the HTTP status says; nothing ever makes a span `OK`.
fn status(record: &RequestRecord) -> Status {
    let failed = match record.grpc_status.filter(|_| record.came_as_grpc()) {
        Some(status) => status.fails_span(),
        None => record.response_code >= 500,
    };
    if failed { Status::error("") } else { Status::Unset }
}

fn attributes(record: &RequestRecord, tracing: &Tracing, identity: &SpanIdentity) -> Vec<KeyValue> {
    let stream = &record.stream;
    let grpc = record.came_as_grpc();
    let mut out = Attributes(Vec::with_capacity(24 + tracing.custom_tags.len()));
    out.add("node_id", Arc::clone(&identity.node_id));
    out.add("zone", Arc::clone(&identity.zone));
    if let Some(id) = record.request_id.as_ref().or_else(|| record.request_header(&X_REQUEST_ID)) {
        out.add("guid:x-request-id", readable(id.as_bytes()));
    }
    out.add("http.url", url(record, tracing.path_bytes_max));
    if let Some(head) = &record.head {
        out.add("http.method", head.method.as_str().to_owned());
    }
    out.add("http.protocol", record.protocol);
    out.add_header_or_absent("downstream_cluster", record, &X_DOWNSTREAM_SERVICE_CLUSTER);
    out.add_header_or_absent("user_agent", record, &USER_AGENT);
    if let Some(client) = stream.downstream_remote {
        out.add("peer.address", client.ip().to_string());
    }
    out.add_header("guid:x-client-trace-id", record, &X_CLIENT_TRACE_ID);
    if grpc {
        if let Some(head) = &record.head {
            out.add("grpc.path", head.path.as_ref().map_or_else(String::new, |path| path.as_str().to_owned()));
            out.add("grpc.authority", head.authority.as_ref().map_or_else(String::new, |authority| authority.as_str().to_owned()));
        }
        out.add_header("grpc.content_type", record, &CONTENT_TYPE);
        out.add_header("grpc.timeout", record, &GRPC_TIMEOUT);
    }
    out.add("request_size", stream.bytes_received.to_string());
    out.add("response_size", stream.bytes_sent.to_string());
    out.add("component", "proxy");
    add_outcome(&mut out, record, grpc);
    for tag in &tracing.custom_tags {
        add_custom(&mut out, record, tag);
    }
    if let Some(status) = record.grpc_status.filter(|_| grpc) {
        out.add("grpc.status_code", status.number().to_string());
        let maps = [record.response_trailers(), record.response_headers()];
        if let Some(message) = maps.into_iter().flatten().find_map(|headers| headers.get(GRPC_MESSAGE)) {
            out.add("grpc.message", readable(message.as_bytes()));
        }
    }
    out.0
}

fn add_outcome(out: &mut Attributes, record: &RequestRecord, grpc: bool) {
    let stream = &record.stream;
    if let Some(cluster) = &stream.cluster {
        out.add("upstream_cluster", Arc::clone(cluster));
        out.add("upstream_cluster.name", Arc::clone(stream.cluster_stat_name.as_ref().unwrap_or(cluster)));
    }
    out.add("http.status_code", record.response_code.to_string());
    out.add("response_flags", stream.flags.to_string());
    let failed = record.grpc_status.is_some_and(|status| grpc && status.is_error());
    if failed || record.response_code == 0 || record.response_code >= 500 {
        out.add("error", "true");
    }
}

/// Adds a custom tag, unless it has nothing to say.
fn add_custom(out: &mut Attributes, record: &RequestRecord, tag: &CustomTag) {
    let value = match &tag.source {
        TagSource::Literal(text) => text.to_string(),
        TagSource::RequestHeader { name, default } => {
            record.request_header(name).map_or_else(|| default.to_string(), |value| readable(value.as_bytes()))
        }
        TagSource::Format(format) => {
            let mut text = Vec::new();
            format.render(record, &mut text);
            // The only thing a missing value prints as; a mixed text keeps it, as in Envoy.
            if text == ABSENT.as_bytes() { String::new() } else { readable(&text) }
        }
        TagSource::Metadata => return,
    };
    if !value.is_empty() {
        out.add(Arc::clone(&tag.tag), value);
    }
}

/// `http://web.shop/path?query`; the path is the one that came, cut to `path_bytes_max`.
fn url(record: &RequestRecord, path_bytes_max: usize) -> String {
    let Some(head) = &record.head else { return String::new() };
    let header = |name: HeaderName| record.request_header(&name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let scheme = header(X_FORWARDED_PROTO).unwrap_or_else(|| head.scheme.as_str().into());
    let authority = head.authority.as_ref().map_or("", Authority::as_str);
    let path = header(X_ENVOY_ORIGINAL_PATH).unwrap_or_else(|| head.path.as_ref().map_or("", PathAndQuery::as_str).into());
    let mut cut = path.len().min(path_bytes_max);
    while !path.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{scheme}://{authority}{}", &path[..cut])
}
