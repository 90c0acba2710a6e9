//! `loadtest sink`: an OTLP/gRPC trace collector that prints each span as one line of JSON, or only counts.
//!
//! Nothing is kept but counts. A line is written before the export is answered, so a slow reader slows the exporter and
//! fills no queue here. Messages above `MESSAGE_BYTES_MAX` are refused.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValue;
use opentelemetry_proto::tonic::common::v1::{AnyValue as OptionalValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Largest export accepted.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// `loadtest sink`
#[derive(Debug, clap::Args)]
pub struct SinkArgs {
    #[arg(long, default_value = "127.0.0.1:4317")]
    pub listen: SocketAddr,
    /// Append the lines to this file instead of stdout
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print no spans, only their number at the end
    #[arg(long, conflicts_with = "out")]
    pub count: bool,
}

/// Receives exports.
pub struct Sink {
    lines: Option<Mutex<Box<dyn Write + Send>>>,
    spans: AtomicU64,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("spans", &self.spans).finish_non_exhaustive()
    }
}

impl Sink {
    /// Writes lines to `lines`; without it, only counts.
    pub fn new(lines: Option<Box<dyn Write + Send>>) -> Arc<Self> {
        Arc::new(Self { lines: lines.map(Mutex::new), spans: AtomicU64::new(0) })
    }

    /// Spans received.
    pub fn spans(&self) -> u64 {
        self.spans.load(Ordering::Relaxed)
    }

    fn take(&self, export: &ExportTraceServiceRequest) -> io::Result<()> {
        for resource_spans in &export.resource_spans {
            let resource = attributes(resource_spans.resource.as_ref().map_or(&[][..], |resource| &resource.attributes));
            for span in resource_spans.scope_spans.iter().flat_map(|scope| &scope.spans) {
                self.spans.fetch_add(1, Ordering::Relaxed);
                if let Some(lines) = &self.lines {
                    let line = span_json(span, &resource);
                    writeln!(lines.lock().unwrap_or_else(PoisonError::into_inner), "{line}")?;
                }
            }
        }
        match &self.lines {
            Some(lines) => lines.lock().unwrap_or_else(PoisonError::into_inner).flush(),
            None => Ok(()),
        }
    }

    /// Serves OTLP/gRPC on `listener` for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> anyhow::Result<()> {
        let service = TraceServiceServer::from_arc(self).max_decoding_message_size(MESSAGE_BYTES_MAX);
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)).await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take(request.get_ref()).map_err(|error| Status::unavailable(format!("writing spans: {error}")))?;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn span_json(span: &Span, resource: &Value) -> Value {
    let kind = SpanKind::try_from(span.kind).map_or_else(|_| span.kind.to_string(), |kind| kind.as_str_name().to_owned());
    json!({
        "trace_id": hex(&span.trace_id),
        "span_id": hex(&span.span_id),
        "parent_span_id": hex(&span.parent_span_id),
        "name": span.name,
        "kind": kind.strip_prefix("SPAN_KIND_").unwrap_or(&kind),
        "start_unix_nano": span.start_time_unix_nano,
        "end_unix_nano": span.end_time_unix_nano,
        "trace_state": span.trace_state,
        "status": span.status.as_ref().map(|status| json!({ "code": status.code, "message": status.message })),
        "attributes": attributes(&span.attributes),
        "resource": resource,
    })
}

fn attributes(pairs: &[KeyValue]) -> Value {
    Value::Object(pairs.iter().map(|pair| (pair.key.clone(), value(pair.value.as_ref()))).collect::<Map<_, _>>())
}

fn value(value_of: Option<&OptionalValue>) -> Value {
    match value_of.and_then(|any| any.value.as_ref()) {
        None => Value::Null,
        Some(AnyValue::StringValue(text)) => json!(text),
        Some(AnyValue::BoolValue(truth)) => json!(truth),
        Some(AnyValue::IntValue(number)) => json!(number),
        Some(AnyValue::DoubleValue(number)) => json!(number),
        Some(AnyValue::BytesValue(bytes)) => json!(hex(bytes)),
        Some(AnyValue::ArrayValue(list)) => list.values.iter().map(|item| value(Some(item))).collect(),
        Some(AnyValue::KvlistValue(list)) => attributes(&list.values),
        Some(other) => json!(format!("{other:?}")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Serves until SIGINT or SIGTERM, then says on stderr how many spans came. `ready …` goes to stderr: stdout is spans.
pub async fn run(args: SinkArgs) -> anyhow::Result<()> {
    let lines: Option<Box<dyn Write + Send>> = match (&args.out, args.count) {
        (_, true) => None,
        (Some(path), _) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Some(Box::new(io::BufWriter::new(file.with_context(|| format!("opening {}", path.display()))?)))
        }
        (None, _) => Some(Box::new(io::stdout())),
    };
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listening on {}", args.listen))?;
    let sink = Sink::new(lines);
    eprintln!("ready sink {}", args.listen);
    tokio::select! {
        served = Arc::clone(&sink).serve(listener) => served?,
        asked = crate::signals::terminated() => asked?,
    }
    eprintln!("{} spans", sink.spans());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn text(key: &str, text: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Some(OptionalValue { value: Some(AnyValue::StringValue(text.to_owned())) }),
            ..KeyValue::default()
        }
    }

    #[tokio::test]
    async fn an_exported_span_is_one_line_with_its_ids_and_attributes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lines = Lines::default();
        let sink = Sink::new(Some(Box::new(lines.clone())));
        tokio::spawn(Arc::clone(&sink).serve(listener));
        let span = Span {
            trace_id: vec![0xab; 16],
            span_id: vec![1; 8],
            name: "a".to_owned(),
            kind: 2,
            attributes: vec![text("http.method", "GET")],
            ..Span::default()
        };
        let resource = Resource { attributes: vec![text("service.name", "waypoint")], ..Resource::default() };
        let spans = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
        let export = ResourceSpans { resource: Some(resource), scope_spans: vec![spans], ..ResourceSpans::default() };
        let mut client = TraceServiceClient::connect(format!("http://{address}")).await.unwrap();
        client.export(ExportTraceServiceRequest { resource_spans: vec![export] }).await.unwrap();
        assert_eq!(sink.spans(), 1);
        let line: Value = serde_json::from_slice(&lines.0.lock().unwrap()).unwrap();
        assert_eq!(line["trace_id"], "abababababababababababababababab");
        assert_eq!(line["span_id"], "0101010101010101");
        assert_eq!(line["kind"], "SERVER");
        assert_eq!(line["attributes"], json!({ "http.method": "GET" }));
        assert_eq!(line["resource"], json!({ "service.name": "waypoint" }));
    }
}
