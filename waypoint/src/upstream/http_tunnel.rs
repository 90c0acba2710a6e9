//! TCP in an HTTP request: to endpoints that are HTTP proxies, by CONNECT or in the bodies of a POST and its answer.
//!
//! Not for: HBONE, whose tunnels go to pods. Source: Envoy's TCP proxy with `tunneling_config`, RFC 9110 §9.3.6. Invariants: nothing of the
//! payload is sent before the proxy has answered that it connects; one connection carries one tunnel; what is cut on either side is no end on the
//! other.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use model::chain::HttpTunnel;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::task::AbortHandle;

use crate::http::body::{Body, BodyError};
use crate::http::client::{ClientOptions, ClientSession};
use crate::http::session::Protocol;

/// Bytes on their way between a connection and the bodies that carry it, each way.
const CARRIED_BYTES_MAX: usize = 16 * 1024;

/// How long the connection to a proxy may take to say that a tunnel was cut: one that does not read would keep it for ever.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

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
    Carried(Carried),
}

/// A tunnel in the bodies of a request and its answer. Dropped before both sides have ended it cuts the request, as Envoy resets its stream.
#[derive(Debug)]
pub struct Carried {
    /// Our end.
    near: DuplexStream,
    ends: Arc<Ends>,
    has_read_all: bool,
    /// Who passes the answer on, and who drives the connection.
    tasks: [AbortHandle; 2],
}

/// How both sides ended.
#[derive(Debug, Default)]
struct Ends {
    /// The answer was cut.
    is_cut: AtomicBool,
    /// We send no more, in order.
    is_shut: AtomicBool,
}

impl Drop for Carried {
    fn drop(&mut self) {
        if self.has_read_all && self.ends.is_shut.load(Ordering::Acquire) {
            return;
        }
        let [answer, connection] = self.tasks.clone();
        // With it the answer's body goes, and with that the stream; the request's body finds that it was cut.
        answer.abort();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::time::sleep(CUT_TIMEOUT).await;
                connection.abort();
            })),
            Err(_) => connection.abort(),
        }
    }
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
    let connection = tokio::spawn(driver).abort_handle();
    let (near, far) = tokio::io::duplex(CARRIED_BYTES_MAX);
    let (upload, download) = tokio::io::split(far);
    let ends = Arc::<Ends>::default();
    let upload = Upload { payload: upload, ends: Arc::clone(&ends) };
    let response = session.send(request(tunnel, Body::wrap(upload)), None).await.map_err(|error| failed(&error))?;
    let is_accepted = match protocol {
        Protocol::Http1 => response.status().is_success(),
        Protocol::Http2 => response.status() == StatusCode::OK,
    };
    if !is_accepted {
        return Err(TunnelFailure::Status(response.status()));
    }
    let answer = tokio::spawn(pass_down(response.into_body(), download, Arc::clone(&ends))).abort_handle();
    Ok(Tunnelled::Carried(Carried { near, ends, has_read_all: false, tasks: [answer, connection] }))
}

/// Passes the answer's bytes on, and its end.
async fn pass_down(mut body: Body, mut download: WriteHalf<DuplexStream>, ends: Arc<Ends>) {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            ends.is_cut.store(true, Ordering::Release);
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
struct Upload {
    payload: ReadHalf<DuplexStream>,
    ends: Arc<Ends>,
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut space = [std::mem::MaybeUninit::uninit(); CARRIED_BYTES_MAX];
        let mut buffer = ReadBuf::uninit(&mut space);
        let read = ready!(Pin::new(&mut this.payload).poll_read(context, &mut buffer));
        Poll::Ready(match read {
            Err(error) => Some(Err(BodyError::Io(error.kind()))),
            Ok(()) if buffer.filled().is_empty() => (!this.ends.is_shut.load(Ordering::Acquire)).then_some(Err(BodyError::Abandoned)),
            Ok(()) => Some(Ok(Frame::data(Bytes::copy_from_slice(buffer.filled())))),
        })
    }
}

impl AsyncRead for Tunnelled {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Joined(joined) => Pin::new(joined).poll_read(context, buffer),
            Self::Carried(carried) => {
                let before = buffer.filled().len();
                ready!(Pin::new(&mut carried.near).poll_read(context, buffer))?;
                if buffer.filled().len() == before && buffer.remaining() > 0 {
                    if carried.ends.is_cut.load(Ordering::Acquire) {
                        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                    }
                    carried.has_read_all = true;
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
            Self::Carried(carried) => Pin::new(&mut carried.near).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Joined(joined) => Pin::new(joined).poll_flush(context),
            Self::Carried(carried) => Pin::new(&mut carried.near).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Joined(joined) => Pin::new(joined).poll_shutdown(context),
            Self::Carried(carried) => {
                // Before the end shows.
                carried.ends.is_shut.store(true, Ordering::Release);
                Pin::new(&mut carried.near).poll_shutdown(context)
            }
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

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_cut_is_no_end_of_the_request_and_leaves_no_connection() {
        let (near, far) = tokio::io::duplex(4096);
        let seen = tokio::spawn(async move {
            let mut connection = ::h2::server::handshake(far).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let driver = tokio::spawn(async move { while connection.accept().await.is_some() {} });
            let _send = respond.send_response(http::Response::new(()), false).unwrap();
            let mut body = request.into_body();
            let first = body.data().await.unwrap().unwrap();
            let end = body.data().await.map(|end| end.unwrap_err().reason());
            driver.await.unwrap();
            (first, end)
        });
        let mut tunnelled = open(near, &tunnel(None), Protocol::Http2).await.unwrap();
        tunnelled.write_all(b"half").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(tunnelled);
        assert_eq!(seen.await.unwrap(), (Bytes::from("half"), Some(Some(::h2::Reason::CANCEL))));

        let (near, mut far) = tokio::io::duplex(4096);
        let seen = tokio::spawn(async move {
            let mut seen = Vec::new();
            while !seen.ends_with(b"half\r\n") {
                far.read_buf(&mut seen).await.unwrap();
                if seen.ends_with(b"\r\n\r\n") {
                    far.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
                }
            }
            let mut rest = Vec::new();
            // The connection ends, whether in order or not.
            drop(far.read_to_end(&mut rest).await);
            rest
        });
        let mut tunnelled = open(near, &tunnel(Some("/")), Protocol::Http1).await.unwrap();
        tunnelled.write_all(b"half").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(tunnelled);
        assert_eq!(seen.await.unwrap(), b"", "no last chunk");
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_reads_no_more_does_not_keep_a_tunnel_that_is_cut() {
        let (near, far) = tokio::io::duplex(512);
        let (gone, is_gone) = tokio::sync::oneshot::channel::<()>();
        let proxy = tokio::spawn(async move {
            let mut connection = ::h2::server::handshake(far).await.unwrap();
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            let _send = respond.send_response(http::Response::new(()), false).unwrap();
            // Driven until the answer has left, and never again.
            drop(tokio::time::timeout(Duration::from_millis(100), connection.accept()).await);
            drop(is_gone.await);
        });
        struct Told<I>(I, #[expect(dead_code, reason = "dropped with the connection")] tokio::sync::oneshot::Sender<()>);
        impl<I: AsyncRead + Unpin> AsyncRead for Told<I> {
            fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_read(context, buffer)
            }
        }
        impl<I: AsyncWrite + Unpin> AsyncWrite for Told<I> {
            fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(context, bytes)
            }
            fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(context)
            }
            fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(context)
            }
        }
        let mut tunnelled = open(Told(near, gone), &tunnel(None), Protocol::Http2).await.unwrap();
        tunnelled.write_all(&[7; 4096]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(tunnelled);
        tokio::time::timeout(2 * CUT_TIMEOUT, proxy).await.expect("the connection is let go").unwrap();
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
