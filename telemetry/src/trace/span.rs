//! The finished span of a request: Envoy's names, all values texts, since Kiali compares them as such.
//!
//! Not for: exporting it. Source: Envoy's `HttpTracerUtility` and Istio's custom tags, in the order in which Envoy adds them; fields
//! and flags of OTLP's `Span`. A span is written once, as the bytes that leave: no structure is made of it.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{CONTENT_TYPE, HeaderName, USER_AGENT};
use http::uri::PathAndQuery;
use model::refusal::Refusal;
use model::stream_view::StreamView;
use model::text::readable;
use model::tracing::{CustomTag, Dialect, TagSource, Tracing};
use opentelemetry::trace::TraceState;

use super::{TraceContext, TrySpan, semantic, zipkin};
use crate::record::{
    GRPC_MESSAGE, GRPC_TIMEOUT, Head, RequestRecord, X_CLIENT_TRACE_ID, X_DOWNSTREAM_SERVICE_CLUSTER, X_ENVOY_ORIGINAL_PATH,
    X_FORWARDED_PROTO, X_REQUEST_ID,
};
use crate::wire;

/// The name of a span whose route has no decorator.
const OPERATION_DEFAULT: &str = "ingress";
/// How absent texts print.
const ABSENT: &str = "-";

/// Numbers of the fields of OTLP's `Span`.
mod field {
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const TRACE_STATE: u32 = 3;
    pub(super) const PARENT_SPAN_ID: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const START_TIME: u32 = 7;
    pub(super) const END_TIME: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const STATUS: u32 = 15;
    pub(super) const FLAGS: u32 = 16;
    /// Of `Status`.
    pub(super) const STATUS_CODE: u32 = 3;
}

/// `SPAN_KIND_SERVER`.
const KIND_SERVER: u32 = 2;
/// `SPAN_KIND_CLIENT`.
const KIND_CLIENT: u32 = 3;
/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: u32 = 2;
/// A `Status` that holds nothing but an error code: a tag and a number.
const STATUS_ERROR_SIZE: usize = 2;
/// W3C's flag `sampled`; only sampled spans are made.
const FLAG_SAMPLED: u32 = 0x1;
/// Whether the parent is remote is known, and it is: OTLP's `SpanFlags`.
const FLAG_HAS_IS_REMOTE: u32 = 0x100;
const FLAG_IS_REMOTE: u32 = 0x200;

/// What every span says of this waypoint.
#[derive(Clone, Debug)]
pub(crate) struct SpanIdentity {
    /// `node_id`.
    pub(crate) node_id: Arc<str>,
    /// `zone`.
    pub(crate) zone: Arc<str>,
    /// Zipkin's name of the service.
    pub(crate) node_cluster: Arc<str>,
    /// The node's address.
    pub(crate) address: Option<IpAddr>,
}

impl SpanIdentity {
    /// The second part of a node's id is its address.
    pub(crate) fn new(node_id: Arc<str>, node_cluster: Arc<str>, zone: Arc<str>) -> Self {
        let address = node_id.split('~').nth(1).and_then(|address| address.parse().ok());
        Self { node_id, zone, node_cluster, address }
    }
}

/// Writes spans into a buffer that it keeps.
#[derive(Debug)]
pub(crate) struct SpanWriter {
    identity: SpanIdentity,
    span: Vec<u8>,
    /// Of a custom tag that is a format.
    rendered: Vec<u8>,
}

impl SpanWriter {
    pub(crate) fn new(identity: SpanIdentity) -> Self {
        Self { identity, span: Vec::new(), rendered: Vec::new() }
    }

    /// The span of one of its tries.
    pub(crate) fn write_try(&mut self, record: &RequestRecord, one: &TrySpan, tracing: &Tracing) -> &[u8] {
        let Self { identity, span, rendered } = self;
        let name = TrySpan::name(record);
        let shape = one.shape(record, &name);
        span.clear();
        match tracing.provider.as_ref().map(|provider| &provider.dialect) {
            Some(Dialect::Zipkin(_)) => {
                zipkin::write_head(&shape, identity, span);
                one.write_attributes(&mut Attributes { out: zipkin::Tags::new(span), rendered }, record, tracing);
                zipkin::write_end(span);
            }
            Some(Dialect::Otlp { .. }) | None => {
                shape.write_head(span);
                one.write_attributes(&mut Attributes { out: OtlpSink(span), rendered }, record, tracing);
                shape.write_end(span);
            }
        }
        span
    }

    /// The span of a request that ended, as its provider takes it: an OTLP `Span`, or an object of Zipkin's.
    pub(crate) fn write(&mut self, record: &RequestRecord, trace: &TraceContext, tracing: &Tracing) -> &[u8] {
        let Self { identity, span, rendered } = self;
        let shape = Shape::of_request(record, trace);
        span.clear();
        match tracing.provider.as_ref().map(|provider| &provider.dialect) {
            Some(Dialect::Zipkin(_)) => {
                zipkin::write_head(&shape, identity, span);
                write_attributes(&mut Attributes { out: zipkin::Tags::new(span), rendered }, record, tracing, identity);
                zipkin::write_end(span);
            }
            Some(Dialect::Otlp { .. }) | None => {
                shape.write_head(span);
                write_attributes(&mut Attributes { out: OtlpSink(span), rendered }, record, tracing, identity);
                shape.write_end(span);
            }
        }
        span
    }
}

/// What of a span is not an attribute.
pub(super) struct Shape<'a> {
    pub(super) trace: &'a TraceContext,
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    pub(super) start: SystemTime,
    pub(super) end: SystemTime,
    pub(super) is_failed: bool,
}

/// Whose side of a call a span shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// That of who answers.
    Server,
    /// That of who asks.
    Client,
}

impl Kind {
    /// OTLP's number.
    fn number(self) -> u32 {
        match self {
            Self::Server => KIND_SERVER,
            Self::Client => KIND_CLIENT,
        }
    }

    /// What Zipkin calls its end.
    pub(super) fn last_word(self) -> &'static str {
        match self {
            Self::Server => "ss",
            Self::Client => "cr",
        }
    }

    /// Zipkin's word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Server => "SERVER",
            Self::Client => "CLIENT",
        }
    }
}

impl<'a> Shape<'a> {
    fn of_request(record: &'a RequestRecord, trace: &'a TraceContext) -> Self {
        let start = record.stream.start_time;
        let name = record.operation.as_deref().unwrap_or(OPERATION_DEFAULT);
        Self { trace, name, kind: Kind::Server, start, end: start + record.stream.duration(), is_failed: is_failed(record) }
    }

    /// What comes before the attributes of OTLP.
    fn write_head(&self, out: &mut Vec<u8>) {
        let Self { trace, .. } = self;
        wire::bytes(out, field::TRACE_ID, &trace.trace_id.to_be_bytes());
        wire::bytes(out, field::SPAN_ID, &trace.span_id.to_be_bytes());
        if !trace.tracestate.is_empty() {
            wire::bytes(out, field::TRACE_STATE, trace_state(trace).as_bytes());
        }
        if let Some(parent) = trace.parent {
            wire::bytes(out, field::PARENT_SPAN_ID, &parent.to_be_bytes());
        }
        wire::bytes(out, field::NAME, self.name.as_bytes());
        wire::number(out, field::KIND, self.kind.number());
        wire::fixed64(out, field::START_TIME, nanoseconds(self.start));
        wire::fixed64(out, field::END_TIME, nanoseconds(self.end));
    }

    /// What comes after them.
    fn write_end(&self, out: &mut Vec<u8>) {
        if self.is_failed {
            wire::head(out, field::STATUS, STATUS_ERROR_SIZE);
            wire::number(out, field::STATUS_CODE, STATUS_ERROR);
        } else {
            wire::head(out, field::STATUS, 0);
        }
        let remote = if self.trace.parent.is_some() && self.kind == Kind::Server { FLAG_IS_REMOTE } else { 0 };
        wire::fixed32(out, field::FLAGS, FLAG_SAMPLED | FLAG_HAS_IS_REMOTE | remote);
    }
}

/// Since the epoch; a clock before it reads as the epoch, one beyond the year 2554 as that.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// `tracestate` in the span; one that is not well-formed went on to the endpoint as it came, and is left out here.
fn trace_state(trace: &TraceContext) -> String {
    let state: TraceState = trace.tracestate.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    state.header()
}

/// A gRPC status overrides what the HTTP status says; nothing ever makes a span `OK`.
fn is_failed(record: &RequestRecord) -> bool {
    match record.grpc_status.filter(|_| record.came_as_grpc()) {
        Some(status) => status.fails_span(),
        None => record.response_code >= 500,
    }
}

/// What attributes are written to.
pub(super) trait Sink {
    /// Adds one whose value is the text that the parts make together.
    fn add_parts(&mut self, key: &str, parts: &[&str]);

    /// Adds one that is a number, or its text where there are only texts.
    fn add_whole(&mut self, key: &str, value: u64) {
        self.add_parts(key, &[itoa::Buffer::new().format(value)]);
    }
}

struct OtlpSink<'a>(&'a mut Vec<u8>);

impl Sink for OtlpSink<'_> {
    fn add_parts(&mut self, key: &str, parts: &[&str]) {
        wire::attribute(self.0, field::ATTRIBUTES, key, parts);
    }

    fn add_whole(&mut self, key: &str, value: u64) {
        wire::number_attribute(self.0, field::ATTRIBUTES, key, value);
    }
}

pub(super) struct Attributes<'a, S> {
    out: S,
    rendered: &'a mut Vec<u8>,
}

impl<S: Sink> Attributes<'_, S> {
    pub(super) fn add(&mut self, key: &str, value: &str) {
        self.add_parts(key, &[value]);
    }

    fn add_parts(&mut self, key: &str, parts: &[&str]) {
        self.out.add_parts(key, parts);
    }

    pub(super) fn add_whole(&mut self, key: &str, value: u64) {
        self.out.add_whole(key, value);
    }

    pub(super) fn add_number(&mut self, key: &str, value: u64) {
        self.add(key, itoa::Buffer::new().format(value));
    }

    pub(super) fn add_cluster(&mut self, record: &RequestRecord) {
        if let Some(cluster) = &record.stream.cluster {
            self.add("upstream_cluster", cluster);
            self.add("upstream_cluster.name", record.stream.cluster_stat_name.as_ref().unwrap_or(cluster));
        }
    }

    fn add_header(&mut self, key: &str, record: &RequestRecord, name: &HeaderName) {
        if let Some(value) = record.request_header(name) {
            self.add(key, &readable(value.as_bytes()));
        }
    }

    fn add_header_or_absent(&mut self, key: &str, record: &RequestRecord, name: &HeaderName) {
        match record.request_header(name) {
            Some(value) => self.add(key, &readable(value.as_bytes())),
            None => self.add(key, ABSENT),
        }
    }
}

fn write_attributes<S: Sink>(out: &mut Attributes<'_, S>, record: &RequestRecord, tracing: &Tracing, identity: &SpanIdentity) {
    let stream = &record.stream;
    let grpc = record.came_as_grpc();
    out.add("node_id", &identity.node_id);
    out.add("zone", &identity.zone);
    if let Some(id) = record.request_id.as_ref().or_else(|| record.request_header(&X_REQUEST_ID)) {
        out.add("guid:x-request-id", &readable(id.as_bytes()));
    }
    add_url(out, record, tracing.path_bytes_max);
    if let Some(head) = &record.head {
        out.add("http.method", head.method.as_str());
    }
    out.add("http.protocol", record.protocol);
    out.add_header_or_absent("downstream_cluster", record, &X_DOWNSTREAM_SERVICE_CLUSTER);
    out.add_header_or_absent("user_agent", record, &USER_AGENT);
    if let Some(client) = stream.downstream_remote {
        out.add("peer.address", IpText::new(client.ip()).as_str());
    }
    out.add_header("guid:x-client-trace-id", record, &X_CLIENT_TRACE_ID);
    if grpc {
        if let Some(head) = &record.head {
            out.add("grpc.path", head.path.as_ref().map_or("", PathAndQuery::as_str));
            out.add("grpc.authority", head.authority().unwrap_or_default());
        }
        out.add_header("grpc.content_type", record, &CONTENT_TYPE);
        out.add_header("grpc.timeout", record, &GRPC_TIMEOUT);
    }
    out.add_number("request_size", stream.bytes_received);
    out.add_number("response_size", stream.bytes_sent);
    out.add("component", "proxy");
    add_outcome(out, record, grpc);
    if tracing.semantic_names {
        semantic::write(out, record, tracing.path_bytes_max);
    }
    if let Some(refusal) = &stream.refusal {
        add_refusal(out, refusal);
    }
    for tag in &*tracing.custom_tags {
        add_custom(out, record, tag);
    }
    if let Some(status) = record.grpc_status.filter(|_| grpc) {
        out.add_number("grpc.status_code", status.number().into());
        let maps = [record.response_trailers(), record.response_headers()];
        if let Some(message) = maps.into_iter().flatten().find_map(|headers| headers.get(GRPC_MESSAGE)) {
            out.add("grpc.message", &readable(message.as_bytes()));
        }
    }
}

/// An IP address as text, without allocating.
struct IpText {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl IpText {
    /// Of `ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255`.
    const LONGEST: usize = 45;

    fn new(address: IpAddr) -> Self {
        let mut text = Self { bytes: [0; Self::LONGEST], length: 0 };
        write!(text, "{address}").expect("an IP address is shorter than its buffer");
        text
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("addresses print in ASCII")
    }
}

impl std::io::Write for IpText {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        let written = (&mut self.bytes[self.length..]).write(text)?;
        self.length += written;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn add_outcome<S: Sink>(out: &mut Attributes<'_, S>, record: &RequestRecord, grpc: bool) {
    let stream = &record.stream;
    out.add_cluster(record);
    out.add_number("http.status_code", record.response_code.into());
    if stream.flags.is_empty() {
        out.add("response_flags", ABSENT);
    } else {
        out.add("response_flags", &stream.flags.to_string());
    }
    let failed = record.grpc_status.is_some_and(|status| grpc && status.is_error());
    if failed || record.response_code == 0 || record.response_code >= 500 {
        out.add("error", "true");
    }
}

/// Why it was refused, `waypoint.refusal.by` and so on.
fn add_refusal<S: Sink>(out: &mut Attributes<'_, S>, refusal: &Refusal) {
    for (field, text) in refusal.fields() {
        out.add(field.attribute(), &text);
    }
}

/// Adds a custom tag, unless it has nothing to say.
pub(super) fn add_custom<S: Sink>(attributes: &mut Attributes<'_, S>, record: &RequestRecord, tag: &CustomTag) {
    let Attributes { out, rendered } = attributes;
    let value = match &tag.source {
        TagSource::Literal(text) => Cow::Borrowed(&**text),
        TagSource::RequestHeader { name, default } => match record.request_header(name) {
            Some(value) => readable(value.as_bytes()),
            None => Cow::Borrowed(&**default),
        },
        TagSource::Format(format) => {
            rendered.clear();
            format.render(record, rendered);
            // The only thing a missing value prints as; a mixed text keeps it, as in Envoy.
            if *rendered == ABSENT.as_bytes() { Cow::Borrowed("") } else { readable(rendered) }
        }
        TagSource::Environment { default, .. } => Cow::Borrowed(&**default),
        TagSource::Metadata { field, default } => {
            Cow::Borrowed(field.and_then(|field| field.of(&record.stream.dry_runs)).unwrap_or(default))
        }
    };
    if !value.is_empty() {
        out.add_parts(&tag.tag, &[&value]);
    }
}

/// `http.url`: `http://web.shop/path?query`; the path is the one that came, cut to `path_bytes_max`.
fn add_url<S: Sink>(out: &mut Attributes<'_, S>, record: &RequestRecord, path_bytes_max: usize) {
    let Some(head) = &record.head else { return out.add("http.url", "") };
    let header = |name: &HeaderName| record.request_header(name).map(|value| readable(value.as_bytes()));
    let scheme = header(&X_FORWARDED_PROTO).unwrap_or_else(|| head.scheme.as_str().into());
    let authority = head.authority().unwrap_or_default();
    out.add_parts("http.url", &[&scheme, "://", authority, &path_of(record, head, path_bytes_max)]);
}

/// The path that came, cut to `bytes_max`.
pub(super) fn path_of<'a>(record: &'a RequestRecord, head: &'a Head, bytes_max: usize) -> Cow<'a, str> {
    let rewritten = record.request_header(&X_ENVOY_ORIGINAL_PATH).map(|value| readable(value.as_bytes()));
    match rewritten.unwrap_or_else(|| head.path.as_ref().map_or("", PathAndQuery::as_str).into()) {
        Cow::Borrowed(path) => Cow::Borrowed(&path[..path.floor_char_boundary(bytes_max)]),
        Cow::Owned(mut path) => {
            path.truncate(path.floor_char_boundary(bytes_max));
            Cow::Owned(path)
        }
    }
}
