//! Calls of a collector over HTTP/1.1: one `POST` a batch.
//!
//! Not for: what is posted. Source: the OTLP specification 1.x, §OTLP/HTTP, also for what is tried again.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::collector::Collector;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tower::Service;

use super::{BuildError, CONNECT_TIMEOUT, CollectorConnector, CollectorIo, EXPORTS_IN_FLIGHT_MAX, ExportError};

/// Bytes of an answer that are read; one that is longer counts as taken, since its status was good.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How we introduce ourselves.
const AGENT: &str = concat!("waypoint/", env!("CARGO_PKG_VERSION"));

/// A connection that can say of itself that it is direct.
struct Direct(Box<dyn CollectorIo>);

impl Connection for Direct {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Direct {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Direct {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Dials a collector, whatever the address of the request.
#[derive(Clone)]
struct Dial {
    to: Arc<Collector>,
    connector: Arc<dyn CollectorConnector>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Direct>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connecting = self.connector.connect(&self.to);
        Box::pin(async move {
            let io = timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            Ok(TokioIo::new(Direct(io)))
        })
    }
}

/// A collector that is posted to.
pub(super) struct Poster {
    client: Client<Dial, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
}

impl Poster {
    /// Posts what is of `content_type` to `path` of the collector.
    pub(super) fn new(
        collector: &Collector,
        path: &PathAndQuery,
        content_type: &'static str,
        connector: Arc<dyn CollectorConnector>,
    ) -> Result<Self, BuildError> {
        let authority = || BuildError::Authority(Arc::clone(&collector.authority));
        // The pool is by authority, which has to be one; the header may say anything that a header can.
        let uri = Uri::builder().scheme("http").authority("collector").path_and_query(path.clone()).build().map_err(|_| authority())?;
        let host = HeaderValue::from_str(&collector.authority).ok().filter(|host| !host.is_empty()).ok_or_else(authority)?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(HOST, host);
        for (name, value) in &collector.headers {
            headers.insert(name, value.clone());
        }
        let dial = Dial { to: Arc::new(collector.clone()), connector };
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(EXPORTS_IN_FLIGHT_MAX).build(dial);
        Ok(Self { client, uri, headers })
    }

    /// Sends a body, and reads the answer.
    ///
    /// # Errors
    /// Whatever says that the collector did not take it.
    pub(super) async fn post(&self, body: Bytes) -> Result<Bytes, ExportError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().clone_from(&self.headers);
        let response = self.client.request(request).await.map_err(|error| ExportError::again(reason(&error)))?;
        let status = response.status();
        if !status.is_success() {
            let asked = retry_after(response.headers());
            return Err(match status {
                StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                    ExportError { retry: Some(asked), ..ExportError::last(status.to_string()) }
                }
                _ => ExportError::last(status.to_string()),
            });
        }
        let answer = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok(answer.map(http_body_util::Collected::to_bytes).unwrap_or_default())
    }
}

/// What went wrong, to its cause.
fn reason(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Seconds that a collector asks for; dates are not read.
fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    seconds.map_or(Duration::ZERO, Duration::from_secs)
}

#[cfg(test)]
mod tests;
