//! One tunnel with an HTTP connection inside: sends a request, takes the whole answer, says what was wrong with it.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};

use super::{Plan, Protocol};
use crate::hbone::client::HboneError;
use crate::hbone::pool::Pool;
use crate::hyper_io::{HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_STREAM_WINDOW_BYTES, HyperIo, Spawn};
use crate::mesh::app::grpc_message;
use crate::stats::Failure;

/// The request that a run sends over and over.
#[derive(Debug)]
pub struct Template {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    body: Bytes,
    is_grpc: bool,
}

impl Template {
    pub fn new(plan: &Plan) -> anyhow::Result<Self> {
        let host = plan.load.host.as_deref().unwrap_or(&plan.target);
        let is_grpc = plan.load.protocol == Protocol::Grpc;
        let mut headers: HeaderMap = plan.load.headers.iter().cloned().collect();
        let (uri, version) = match plan.load.protocol {
            Protocol::Http1 => {
                headers.insert(HOST, HeaderValue::from_str(host)?);
                (plan.load.path.parse()?, Version::HTTP_11)
            }
            Protocol::Http2 | Protocol::Grpc => (format!("http://{host}{}", plan.load.path).parse()?, Version::HTTP_2),
        };
        let body = if is_grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
            grpc_message(plan.load.body_bytes)
        } else {
            Bytes::from(vec![b'y'; plan.load.body_bytes])
        };
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        Ok(Self { method, uri, version, headers, body, is_grpc })
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// A place for one request at a time: an HTTP/1.1 connection, or one of several that share an HTTP/2 connection.
#[derive(Debug)]
pub enum Lane {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Opens a tunnel on HBONE connection `index`, and HTTP inside it with as many lanes as the plan has per stream.
pub async fn open(pool: &Pool, index: usize, plan: &Plan) -> Result<Vec<Lane>, Failure> {
    let stream = pool.open_on(index, &plan.target, HeaderMap::new()).await.map_err(|error| match error {
        HboneError::Refused(status) => Failure::ConnectRefused(status.as_u16()),
        HboneError::Http2(_) => Failure::Broken,
        HboneError::Timeout(_) => Failure::Timeout,
        HboneError::Dial { .. } | HboneError::Tls { .. } | HboneError::Identity { .. } | HboneError::Target(_) => Failure::Connection,
    })?;
    let io = HyperIo(stream);
    match plan.load.protocol {
        Protocol::Http1 => {
            let (sender, connection) = http1::handshake(io).await.map_err(|_broken| Failure::Broken)?;
            // The requests say how the connection ended.
            tokio::spawn(connection);
            Ok(vec![Lane::Http1(sender)])
        }
        Protocol::Http2 | Protocol::Grpc => {
            let mut builder = http2::Builder::new(Spawn);
            builder.initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES).initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES);
            let (sender, connection) = builder.handshake(io).await.map_err(|_broken| Failure::Broken)?;
            tokio::spawn(connection);
            Ok((0..plan.load.requests_per_stream).map(|_| Lane::Http2(sender.clone())).collect())
        }
    }
}

impl Lane {
    /// Waits until a request can be sent; false when the connection is over.
    pub async fn ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    /// Sends the request and takes the whole answer. Cancelled in between, the lane must be dropped.
    pub async fn exchange(&mut self, template: &Template) -> Result<(), Failure> {
        let request = template.request();
        let sent = match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        };
        let (head, body) = sent.map_err(|_broken| Failure::Broken)?.into_parts();
        let trailers = read_to_end(body).await?;
        if head.status != StatusCode::OK {
            return Err(Failure::Status(head.status.as_u16()));
        }
        if template.is_grpc {
            return grpc_result(trailers.as_ref().unwrap_or(&head.headers));
        }
        Ok(())
    }
}

/// hyper checks the body against its framing; a cut one is an error.
async fn read_to_end(mut body: Incoming) -> Result<Option<HeaderMap>, Failure> {
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_broken| Failure::Broken)?;
        if let Ok(map) = frame.into_trailers() {
            trailers = Some(map);
        }
    }
    Ok(trailers)
}

fn grpc_result(headers: &HeaderMap) -> Result<(), Failure> {
    let status = headers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
    if status == Some(0) { Ok(()) } else { Err(Failure::GrpcStatus(status)) }
}
