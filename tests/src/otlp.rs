//! A collector: takes spans by OTLP/gRPC and keeps them for a test to look at.
//!
//! Not for measuring: see [`SpanCounter`]. Invariant: nothing of it outlives the [`SpanSink`].

mod counter;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

pub use counter::SpanCounter;

use crate::wait::{Look, until};

/// Spans kept, the latest ones.
pub const SPANS_MAX: usize = 50_000;

/// `SPAN_KIND_SERVER`.
pub const KIND_SERVER: i32 = 2;

/// A span as it was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits, or empty for a root.
    pub parent_span_id: String,
    pub name: String,
    pub kind: i32,
    /// Attributes; those that are no text are shown as Rust would debug them, so that a test sees the wrong type.
    pub attributes: BTreeMap<String, String>,
    /// The resource's attributes.
    pub resource: BTreeMap<String, String>,
    /// 0 unset, 1 ok, 2 error.
    pub status: i32,
    /// Those of the W3C, and whether the parent is another process's.
    pub flags: u32,
    pub trace_state: String,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Mutex<VecDeque<Span>>,
}

/// A running collector.
#[derive(Debug)]
pub struct SpanSink {
    kept: Arc<Kept>,
    serving: JoinHandle<()>,
}

impl Drop for SpanSink {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(pairs: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |pair: &KeyValue| match pair.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(AnyValue::StringValue(text)) => text.clone(),
        other => format!("{other:?}"),
    };
    pairs.iter().map(|pair| (pair.key.clone(), text(pair))).collect()
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let resource = texts(of_resource.resource.as_ref().map_or(&[][..], |resource| &resource.attributes));
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Span {
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_span_id: hex(&span.parent_span_id),
                name: span.name,
                kind: span.kind,
                attributes: texts(&span.attributes),
                resource: resource.clone(),
                status: span.status.map_or(0, |status| status.code),
                flags: span.flags,
                trace_state: span.trace_state,
            });
            let mut kept = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(spans);
            let n_excess = kept.len().saturating_sub(SPANS_MAX);
            kept.drain(..n_excess);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl SpanSink {
    /// Listens on `address`.
    pub async fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("the trace sink on {address}"))?;
        let kept = Arc::new(Kept::default());
        let service = TraceServiceServer::from_arc(Arc::clone(&kept));
        let serving = tokio::spawn(async move {
            let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
            if let Err(error) = served.await {
                eprintln!("the trace sink ended: {error}");
            }
        });
        Ok(Self { kept, serving })
    }

    /// The last [`SPANS_MAX`] spans.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.kept.spans.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits for a span that `is_it`.
    pub async fn wait_for(&self, what: &str, deadline: Duration, is_it: impl Fn(&Span) -> bool) -> Result<Span> {
        until(what, deadline, async || {
            let spans = self.spans();
            let found = spans.iter().find(|span| is_it(span));
            Ok(found.map_or_else(|| Look::NotYet(format!("{} other spans came", spans.len())), |span| Look::Done(span.clone())))
        })
        .await
    }
}
