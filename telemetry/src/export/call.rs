//! Calls of a collector over gRPC.
//!
//! Not for: what is sent, which is encoded already. Source: the OTLP specification 1.x, §OTLP/gRPC, also for what is tried again.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BufMut, Bytes};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use model::collector::Collector;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::payload::Payload;
use super::{BuildError, CONNECT_TIMEOUT, CollectorConnector, EXPORT_TIMEOUT, ExportError};

/// How long a call may see no frame of the collector before it is asked for one, and how long it may then take: a connection
/// that is only half there must not swallow call after call.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// The same of a stream, on which a collector says nothing for hours: gRPC servers close connections that ask more often than every five minutes.
const STREAM_KEEPALIVE: Duration = Duration::from_secs(360);

/// A collector that is called.
pub(super) struct Caller {
    client: Grpc<Channel>,
    path: PathAndQuery,
    metadata: MetadataMap,
}

impl Caller {
    /// Calls `path` of the collector.
    pub(super) fn new(collector: &Collector, path: &'static str, connector: Arc<dyn CollectorConnector>) -> Result<Self, BuildError> {
        let metadata = collector.headers.iter().cloned().collect();
        let client = Grpc::new(channel(collector, Some(EXPORT_TIMEOUT), connector)?);
        Ok(Self { client, path: PathAndQuery::from_static(path), metadata: MetadataMap::from_headers(metadata) })
    }

    /// Sends a payload, and waits for the answer's message.
    ///
    /// # Errors
    /// Whatever says that the collector did not take it.
    pub(super) async fn call(&self, payload: Payload) -> Result<Bytes, ExportError> {
        let mut client = self.client.clone();
        client.ready().await.map_err(|error| failed(&Status::unavailable(error.to_string())))?;
        let mut request = Request::new(payload);
        request.metadata_mut().clone_from(&self.metadata);
        let answer = client.unary(request, self.path.clone(), Encoded).await;
        answer.map(tonic::Response::into_inner).map_err(|status| failed(&status))
    }
}

/// Whether a call with this outcome is to be repeated.
fn failed(status: &Status) -> ExportError {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let retry = match status.code() {
        Code::Cancelled | Code::DeadlineExceeded | Code::Aborted | Code::OutOfRange | Code::Unavailable | Code::DataLoss => {
            Some(asked.unwrap_or_default())
        }
        // Only if the collector says when.
        Code::ResourceExhausted => asked,
        _ => None,
    };
    ExportError { retry, ..ExportError::last(status.to_string()) }
}

/// Sends what is encoded already, and leaves answers encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoded;

impl Codec for Encoded {
    type Encode = Payload;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Payload;
    type Error = Status;

    fn encode(&mut self, payload: Payload, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(payload.head);
        out.put(payload.items);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A channel whose calls take so long at most, that dials through the connector and names the collector's authority, whatever the endpoint's address.
pub(super) fn channel(
    collector: &Collector,
    timeout: Option<Duration>,
    connector: Arc<dyn CollectorConnector>,
) -> Result<Channel, BuildError> {
    let endpoint = Endpoint::from_shared(format!("http://{}", collector.authority))
        .ok()
        .filter(|endpoint| endpoint.uri().authority().is_some())
        .ok_or_else(|| BuildError::Authority(Arc::clone(&collector.authority)))?;
    let to = collector.clone();
    let dial = tower::service_fn(move |_: http::Uri| {
        let connecting = connector.connect(&to);
        async move { connecting.await.map(TokioIo::new) }
    });
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).keep_alive_timeout(KEEPALIVE);
    let endpoint = match timeout {
        Some(timeout) => endpoint.timeout(timeout).http2_keep_alive_interval(KEEPALIVE),
        None => endpoint.http2_keep_alive_interval(STREAM_KEEPALIVE),
    };
    Ok(endpoint.connect_with_connector_lazy(dial))
}
