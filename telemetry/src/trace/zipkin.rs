//! The finished span of a request as an object of Zipkin's JSON, version 2.
//!
//! Not for: what its tags say, which is what an OTLP span says ([`super::span`]). Source: Zipkin's API `/api/v2/spans`; a stock Envoy,
//! asked. A span is written once, as the text that leaves.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use model::format::write_json_string;

use super::b3;
use super::span::{Shape, Sink, SpanIdentity};

/// What is meant by an error of writing to a vector.
const CANNOT_FAIL: &str = "writing to a vector cannot fail";

/// Appends everything before the tags.
pub(super) fn write_head(shape: &Shape<'_>, identity: &SpanIdentity, out: &mut Vec<u8>) {
    let Shape { trace, .. } = shape;
    write!(out, "{{\"traceId\":\"{}\",\"id\":\"{:016x}\"", b3::trace_id_text(trace.trace_id), trace.span_id).expect(CANNOT_FAIL);
    if let Some(parent) = trace.parent {
        write!(out, ",\"parentId\":\"{parent:016x}\"").expect(CANNOT_FAIL);
    }
    write!(out, ",\"kind\":\"{}\",\"name\":", shape.kind.word()).expect(CANNOT_FAIL);
    write_json_string(shape.name.as_bytes(), out);
    let [start, end] = [shape.start, shape.end].map(|time| time.duration_since(UNIX_EPOCH).unwrap_or_default());
    // A duration of zero would mean that it is not known.
    let duration = end.saturating_sub(start).as_micros().max(1);
    write!(out, ",\"timestamp\":{},\"duration\":{duration}", start.as_micros()).expect(CANNOT_FAIL);
    if trace.is_shared {
        out.extend_from_slice(b",\"shared\":true");
    }
    out.extend_from_slice(b",\"localEndpoint\":{\"serviceName\":");
    write_json_string(identity.node_cluster.as_bytes(), out);
    match identity.address {
        Some(IpAddr::V4(address)) => write!(out, ",\"ipv4\":\"{address}\",\"port\":0").expect(CANNOT_FAIL),
        Some(IpAddr::V6(address)) => write!(out, ",\"ipv6\":\"{address}\",\"port\":0").expect(CANNOT_FAIL),
        None => {}
    }
    write!(out, "}},\"annotations\":[{{\"timestamp\":{},\"value\":\"{}\"}}],\"tags\":{{", end.as_micros(), shape.kind.last_word())
        .expect(CANNOT_FAIL);
}

/// Appends what comes after them.
pub(super) fn write_end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"}}");
}

/// Tags, as members of an object.
pub(super) struct Tags<'a> {
    out: &'a mut Vec<u8>,
    has_any: bool,
}

impl<'a> Tags<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, has_any: false }
    }
}

impl Sink for Tags<'_> {
    /// An empty value is no tag, as in Envoy.
    fn add_parts(&mut self, key: &str, parts: &[&str]) {
        if parts.iter().all(|part| part.is_empty()) {
            return;
        }
        if std::mem::replace(&mut self.has_any, true) {
            self.out.push(b',');
        }
        write_json_string(key.as_bytes(), self.out);
        self.out.push(b':');
        match parts {
            [text] => write_json_string(text.as_bytes(), self.out),
            parts => write_json_string(parts.concat().as_bytes(), self.out),
        }
    }
}

#[cfg(test)]
mod tests;
