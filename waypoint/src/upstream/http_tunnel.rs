//! TCP in an HTTP request: to endpoints that are HTTP proxies, by CONNECT or in the bodies of a POST and its answer.
//!
//! Not for: HBONE, whose tunnels go to pods. Source: Envoy's TCP proxy with `tunneling_config`, RFC 9110 §9.3.6. Invariants: nothing of the
//! payload is sent before the proxy has answered that it connects; one connection carries one tunnel; an answer that is cut is no end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use model::chain::HttpTunnel;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf};

use crate::http::body::{Body, BodyError};
use crate::http::client::{ClientOptions, ClientSession};
use crate::http::session::Protocol;

/// Bytes on their way between a connection and the bodies that carry it, each way.
const CARRIED_BYTES_MAX: usize = 16 * 1024;

/// A proxy has made no connection.
#[derive(Debug, Error)]
pub enum TunnelFailure {
    /// It answered, but not that it has.
    #[error("tunnel_response:{}", .0.as_u16())]
    Status(StatusCode),
    /// It did not answer in HTTP, or not at all.
    #[error("tunnel request failed: {0}")]
    Failed(Box<str>),
}

/// A connection that a proxy has made.
#[derive(Debug)]
pub enum Tunnelled {
    /// After a CONNECT of HTTP/1.1: the proxy's connection itself.
    Joined(TokioIo<hyper::upgrade::Upgraded>),
    /// In the bodies of a request and its answer.
    Carried {
        /// Our end.
        near: DuplexStream,
        /// The answer was cut.
        is_cut: Arc<AtomicBool>,
    },
}

/// Asks the proxy at the other end of `io` for a connection.
///
/// # Errors
/// There is none; of the payload nothing was sent.
///
/// # Cancel safety
/// Safe: the connection to the proxy is closed.
pub async fn open<I>(io: I, tunnel: &HttpTunnel, protocol: Protocol) -> Result<Tunnelled, TunnelFailure>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match (&tunnel.post_path, protocol) {
        (None, Protocol::Http1) => join(io, tunnel).await,
        _ => carry(io, tunnel, protocol).await,
    }
}

fn failed(error: &dyn std::fmt::Display) -> TunnelFailure {
    TunnelFailure::Failed(error.to_string().into())
}

/// The request, whose host is where the proxy is to connect to.
fn request<B>(tunnel: &HttpTunnel, body: B) -> Request<B> {
    let host = HeaderValue::from_str(tunnel.authority.as_str()).expect("an authority is visible ASCII");
    let mut request = Request::new(body);
    match &tunnel.post_path {
        None => {
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = Uri::from(tunnel.authority.clone());
        }
        Some(path) => {
            *request.method_mut() = Method::POST;
            *request.uri_mut() = Uri::from(path.clone());
        }
    }
    request.headers_mut().insert(header::HOST, host);
    request
}

/// CONNECT in HTTP/1.1: what follows the answer is the other end's.
async fn join<I>(io: I, tunnel: &HttpTunnel) -> Result<Tunnelled, TunnelFailure>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let made = hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = made.map_err(|error| failed(&error))?;
    tokio::spawn(connection.with_upgrades());
    let response = sender.send_request(request(tunnel, Empty::<Bytes>::new())).await.map_err(|error| failed(&error))?;
    if !response.status().is_success() {
        return Err(TunnelFailure::Status(response.status()));
    }
    let joined = hyper::upgrade::on(response).await.map_err(|error| failed(&error))?;
    Ok(Tunnelled::Joined(TokioIo::new(joined)))
}

/// In bodies, as they come.
async fn carry<I>(io: I, tunnel: &HttpTunnel, protocol: Protocol) -> Result<Tunnelled, TunnelFailure>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let made = ClientSession::handshake(io, protocol, &ClientOptions::default()).await;
    let (mut session, driver) = made.map_err(|error| failed(&error))?;
    tokio::spawn(driver);
    let (near, far) = tokio::io::duplex(CARRIED_BYTES_MAX);
    let (upload, download) = tokio::io::split(far);
    let response = session.send(request(tunnel, Body::wrap(Upload(upload))), None).await.map_err(|error| failed(&error))?;
    let is_accepted = match protocol {
        Protocol::Http1 => response.status().is_success(),
        Protocol::Http2 => response.status() == StatusCode::OK,
    };
    if !is_accepted {
        return Err(TunnelFailure::Status(response.status()));
    }
    let is_cut = Arc::new(AtomicBool::new(false));
    tokio::spawn(pass_down(response.into_body(), download, Arc::clone(&is_cut)));
    Ok(Tunnelled::Carried { near, is_cut })
}

/// Passes the answer's bytes on, and its end.
async fn pass_down(mut body: Body, mut download: WriteHalf<DuplexStream>, is_cut: Arc<AtomicBool>) {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            is_cut.store(true, Ordering::Release);
            break;
        };
        // Whoever does not read any more has dropped its end.
        if let Ok(data) = frame.into_data()
            && download.write_all(&data).await.is_err()
        {
            return;
        }
    }
    // An end that is dropped ends as well.
    drop(download.shutdown().await);
}

/// What is to go up, as a body.
struct Upload(ReadHalf<DuplexStream>);

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut space = [std::mem::MaybeUninit::uninit(); CARRIED_BYTES_MAX];
        let mut buffer = ReadBuf::uninit(&mut space);
        let read = ready!(Pin::new(&mut self.get_mut().0).poll_read(context, &mut buffer));
        Poll::Ready(match read {
            Err(error) => Some(Err(BodyError::Io(error.kind()))),
            Ok(()) if buffer.filled().is_empty() => None,
            Ok(()) => Some(Ok(Frame::data(Bytes::copy_from_slice(buffer.filled())))),
        })
    }
}

impl AsyncRead for Tunnelled {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Joined(joined) => Pin::new(joined).poll_read(context, buffer),
            Self::Carried { near, is_cut } => {
                let before = buffer.filled().len();
                ready!(Pin::new(near).poll_read(context, buffer))?;
                if buffer.filled().len() == before && is_cut.load(Ordering::Acquire) {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Tunnelled {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Joined(joined) => Pin::new(joined).poll_write(context, bytes),
            Self::Carried { near, .. } => Pin::new(near).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Joined(joined) => Pin::new(joined).poll_flush(context),
            Self::Carried { near, .. } => Pin::new(near).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Joined(joined) => Pin::new(joined).poll_shutdown(context),
            Self::Carried { near, .. } => Pin::new(near).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use tokio::io::AsyncReadExt;

    use super::*;

    fn tunnel(post_path: Option<&str>) -> HttpTunnel {
        HttpTunnel { authority: "api.example.com:443".parse().unwrap(), post_path: post_path.map(|path| path.parse().unwrap()) }
    }

    /// A proxy that speaks HTTP/2, answers with this status and sends back what comes.
    async fn proxy(far: DuplexStream, status: u16) -> (Method, String) {
        let mut connection = ::h2::server::handshake(far).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let asked = (request.method().clone(), request.uri().to_string());
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
        let response = http::Response::builder().status(status).body(()).unwrap();
        let mut send = respond.send_response(response, false).unwrap();
        let mut body = request.into_body();
        while let Some(Ok(data)) = body.data().await {
            send.send_data(data, false).unwrap();
        }
        drop(send.send_data(Bytes::new(), true));
        asked
    }

    #[tokio::test]
    async fn over_http2_a_tunnel_is_a_stream_that_ends_by_halves_and_only_200_opens_it() {
        for (post_path, method, uri) in
            [(None, Method::CONNECT, "api.example.com:443"), (Some("/tcp"), Method::POST, "http://api.example.com:443/tcp")]
        {
            let (near, far) = tokio::io::duplex(4096);
            let proxy = tokio::spawn(proxy(far, 200));
            let mut tunnelled = open(near, &tunnel(post_path), Protocol::Http2).await.unwrap();
            tunnelled.write_all(b"select 1").await.unwrap();
            tunnelled.shutdown().await.unwrap();
            let mut heard = Vec::new();
            tunnelled.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"select 1");
            assert_eq!(proxy.await.unwrap(), (method, uri.to_owned()));
        }
        let (near, far) = tokio::io::duplex(4096);
        let _proxy = tokio::spawn(proxy(far, 201));
        assert_eq!(open(near, &tunnel(None), Protocol::Http2).await.unwrap_err().to_string(), "tunnel_response:201");
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_is_no_end() {
        let (near, mut far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut head = [0; 16];
            far.read_exact(&mut head).await.unwrap();
            far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhal").await.unwrap();
        });
        let mut tunnelled = open(near, &tunnel(Some("/")), Protocol::Http1).await.unwrap();
        let mut heard = Vec::new();
        assert_eq!(tunnelled.read_to_end(&mut heard).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(heard, b"hal");
    }
}
