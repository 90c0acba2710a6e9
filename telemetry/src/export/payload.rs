//! What a call carries: the items of a batch, and around them who they are from.
//!
//! Not for: sending it. Source: OTLP's `ExportTraceServiceRequest` and `ExportLogsServiceRequest`, whose fields have the same numbers.

use std::sync::Arc;

use bytes::Bytes;
use model::access_log::EntryKind;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use super::Signal;
use crate::wire;

/// Number of the fields `resource_spans`, `ResourceSpans.resource` and `ScopeSpans.scope`, and their like of logs.
const FIRST: u32 = 1;
/// Number of the fields `ResourceSpans.scope_spans` and `ResourceLogs.scope_logs`.
const SCOPED: u32 = 2;

/// One call's bytes: what comes before the items, and the items.
#[derive(Clone, Debug)]
pub(super) struct Payload {
    pub(super) head: Bytes,
    pub(super) items: Bytes,
    /// What comes after them.
    pub(super) tail: &'static [u8],
}

impl Payload {
    /// A list of these items, in JSON.
    pub(super) fn listed(items: Vec<u8>) -> Self {
        Self { head: Bytes::from_static(b"["), items: items.into(), tail: b"]" }
    }

    /// Its bytes in one piece.
    pub(super) fn joined(&self) -> Bytes {
        [&self.head[..], &self.items[..], self.tail].concat().into()
    }
}

/// What all calls of a collector say of where items are from.
#[derive(Debug)]
pub(super) struct Envelope {
    /// The encoded fields `ResourceSpans.resource` and `ScopeSpans.scope`.
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Envelope {
    pub(super) fn new(signal: &Signal) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let (attributes, scope) = match signal {
            Signal::Spans { resource } => {
                let attributes = resource.iter().map(|(key, value)| attribute(key, value)).collect();
                let scope =
                    InstrumentationScope { name: "waypoint".to_owned(), version: version.to_owned(), ..InstrumentationScope::default() };
                (attributes, Some(scope))
            }
            Signal::Zipkin | Signal::Entries { .. } => (Vec::new(), None),
            Signal::Records { resource } => (resource.iter().map(|(key, value)| attribute(key, value)).collect(), None),
        };
        let resource = Resource { attributes, ..Resource::default() };
        Self {
            resource: field(FIRST, &resource.encode_to_vec()),
            scope: scope.map(|scope| field(FIRST, &scope.encode_to_vec())).unwrap_or_default(),
        }
    }

    /// A call with these items, which are fields of `ScopeSpans` or `ScopeLogs`.
    pub(super) fn around(&self, items: Vec<u8>) -> Payload {
        let Self { resource, scope } = self;
        let mut scoped = Vec::new();
        wire::head(&mut scoped, SCOPED, scope.len() + items.len());
        let mut head = Vec::new();
        wire::head(&mut head, FIRST, resource.len() + scoped.len() + scope.len() + items.len());
        for part in [resource, &scoped, scope] {
            head.extend_from_slice(part);
        }
        Payload { head: head.into(), items: items.into(), tail: b"" }
    }
}

/// What goes over a stream of Envoy's access log service: `StreamAccessLogsMessage`s.
#[derive(Debug)]
pub(super) struct Entries {
    /// The field `identifier`, which the first message has.
    identifier: Vec<u8>,
    /// `http_logs` or `tcp_logs`.
    field: u32,
}

impl Entries {
    /// Of a log that a node, which is encoded already, writes.
    pub(super) fn new(node: &[u8], log_name: &str, kind: EntryKind) -> Self {
        let mut identifier = Vec::new();
        wire::nested(&mut identifier, FIRST, |out| {
            wire::head(out, 1, node.len());
            out.extend_from_slice(node);
            wire::bytes(out, 2, log_name.as_bytes());
        });
        let field = match kind {
            EntryKind::Http => 2,
            EntryKind::Tcp => 3,
        };
        Self { identifier, field }
    }

    /// A message with these items, which are fields of `HTTPAccessLogEntries` or `TCPAccessLogEntries`.
    pub(super) fn around(&self, items: Vec<u8>, is_first: bool) -> Payload {
        let mut head = if is_first { self.identifier.clone() } else { Vec::new() };
        wire::head(&mut head, self.field, items.len());
        Payload { head: head.into(), items: items.into(), tail: b"" }
    }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }), ..KeyValue::default() }
}

fn field(number: u32, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    wire::head(&mut out, number, message.len());
    out.extend_from_slice(message);
    out
}

/// What every exporter knows of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origin {
    /// The node's id.
    pub(crate) node_id: Arc<str>,
    /// Its cluster, as `--serviceCluster` says.
    pub(crate) node_cluster: Arc<str>,
    /// Its zone.
    pub(crate) zone: Arc<str>,
    /// All of it: an encoded `Node`.
    pub(crate) node: Arc<[u8]>,
    /// What the environment says of the resource of spans, by key.
    pub(crate) resource: Vec<(Arc<str>, Arc<str>)>,
}

/// Reads `OTEL_RESOURCE_ATTRIBUTES`, `team=shop,zone=a`, as Envoy does: nothing in it is encoded. What is no pair is left out, and told of.
pub(crate) fn resource_of(variable: &str) -> Vec<(Arc<str>, Arc<str>)> {
    let mut resource = Vec::new();
    for pair in variable.split(',').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() && !value.contains('=') => resource.push((key.into(), value.into())),
            _ => tracing::warn!(pair, "OTEL_RESOURCE_ATTRIBUTES has what is no pair"),
        }
    }
    resource
}
