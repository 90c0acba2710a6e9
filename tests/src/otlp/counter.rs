//! A collector that counts: takes spans by OTLP/gRPC for as little as taking them costs, beside a proxy that is measured.
//!
//! Of an export only the nesting down to the spans is decoded; a span stays a slice of what was received. Invariants: an export is
//! answered after it is counted; what is compressed or no export is answered with an error and not counted.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// Largest export accepted.
const EXPORT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// gRPC's frame around a message: one byte of flags, four of length.
const FRAME_HEAD_BYTES: usize = 5;

#[derive(Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<OfResource>,
}

#[derive(Message)]
struct OfResource {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<OfScope>,
}

#[derive(Message)]
struct OfScope {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    spans: Vec<Bytes>,
}

/// A running collector.
#[derive(Debug)]
pub struct SpanCounter {
    n_spans: Arc<AtomicU64>,
    serving: JoinHandle<()>,
}

impl Drop for SpanCounter {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl SpanCounter {
    /// Listens on `address`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("the span counter on {address}"))?;
        let n_spans = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&n_spans);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let counts = Arc::clone(&counts);
                let service = service_fn(move |request| answer(Arc::clone(&counts), request));
                // A connection that fails is the exporter's business.
                connections.spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tcp), service));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { n_spans, serving })
    }

    /// Spans so far.
    #[must_use]
    pub fn n_spans(&self) -> u64 {
        self.n_spans.load(Ordering::Relaxed)
    }
}

type AnswerBody = StreamBody<futures_util::stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(counts: Arc<AtomicU64>, request: Request<Incoming>) -> Result<Response<AnswerBody>> {
    let body = Limited::new(request.into_body(), EXPORT_BYTES_MAX).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?;
    let counted = count(body.to_bytes());
    let mut trailers = HeaderMap::new();
    // OK, or INVALID_ARGUMENT.
    trailers.insert("grpc-status", HeaderValue::from_static(if counted.is_ok() { "0" } else { "3" }));
    let mut frames = Vec::new();
    if let Ok(n_spans) = counted {
        counts.fetch_add(n_spans, Ordering::Relaxed);
        frames.push(Ok(Frame::data(Bytes::from_static(&[0; FRAME_HEAD_BYTES]))));
    }
    frames.push(Ok(Frame::trailers(trailers)));
    Ok(Response::builder().header("content-type", "application/grpc").body(StreamBody::new(futures_util::stream::iter(frames)))?)
}

/// The spans in the one message of a call.
fn count(mut body: Bytes) -> Result<u64> {
    if body.len() < FRAME_HEAD_BYTES || body.get_u8() != 0 {
        bail!("compressed, or no gRPC message");
    }
    let length = usize::try_from(body.get_u32())?;
    if length != body.len() {
        bail!("a message of {length} bytes in {}", body.len());
    }
    let export = Export::decode(body)?;
    let spans = export.resources.iter().flat_map(|resource| &resource.scopes).map(|scope| scope.spans.len());
    Ok(u64::try_from(spans.sum::<usize>())?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};

    use super::*;

    fn framed(flags: u8, message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).unwrap();
        [&[flags][..], &length.to_be_bytes(), message].concat().into()
    }

    #[test]
    fn spans_are_counted_in_all_scopes_of_all_resources() {
        let scope =
            |n_spans| ScopeSpans { spans: vec![Span { name: "x".to_owned(), ..Span::default() }; n_spans], ..ScopeSpans::default() };
        let resource = |scopes| ResourceSpans { scope_spans: scopes, ..ResourceSpans::default() };
        let export = ExportTraceServiceRequest { resource_spans: vec![resource(vec![scope(2), scope(0)]), resource(vec![scope(3)])] };
        assert_eq!(count(framed(0, &export.encode_to_vec())).unwrap(), 5);
        assert_eq!(count(framed(0, &[])).unwrap(), 0);
    }

    #[test]
    fn what_is_compressed_cut_or_no_export_is_an_error() {
        for body in [framed(1, &[]), framed(0, &[0xff]), Bytes::from_static(&[0, 0]), Bytes::from_static(&[0, 0, 0, 0, 9, 1])] {
            assert!(count(body).is_err());
        }
    }
}
