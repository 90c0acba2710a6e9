//! The called side: a listener that terminates mutual TLS and HTTP/2 and hands each CONNECT to a handler.
//!
//! Not here: what answers inside the tunnel. Invariants: connections and streams are bounded; anything but CONNECT is
//! answered 405 and reaches no handler.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Response, StatusCode};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::gather::{Gathered, Outlet, gather};
use super::stream::HboneStream;
use super::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, HANDSHAKE_TIMEOUT, HEADER_LIST_BYTES_MAX, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX,
};
use crate::tls::spiffe_identity;

/// Connections one listener serves at a time; more wait in the kernel's accept queue.
const CONNECTIONS_MAX: usize = 1024;

/// What is known of the caller of a tunnel.
#[derive(Debug)]
pub struct Caller {
    pub address: SocketAddr,
    /// SPIFFE identity of its certificate, if it has one.
    pub identity: Option<String>,
    /// The `:authority` of the CONNECT.
    pub authority: String,
    /// The other headers of the CONNECT.
    pub headers: HeaderMap,
}

/// A CONNECT that waits for its answer. Dropping it resets the stream.
#[derive(Debug)]
pub struct Connect {
    pub caller: Caller,
    respond: SendResponse<Bytes>,
    receive: RecvStream,
}

impl Connect {
    /// Answers 200 and yields the tunnel.
    pub fn accept(mut self) -> Result<(HboneStream, Caller), h2::Error> {
        let send = self.respond.send_response(Response::new(()), false)?;
        Ok((HboneStream::new(send, self.receive), self.caller))
    }

    /// Answers `status` and ends the stream, as ztunnel does.
    pub fn refuse(mut self, status: StatusCode) -> Result<(), h2::Error> {
        send_status(&mut self.respond, status)
    }
}

fn send_status(respond: &mut SendResponse<Bytes>, status: StatusCode) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    respond.send_response(response, true).map(|_ended| ())
}

/// Serves for ever; each CONNECT gets a task that runs `handler`. A connection that fails says so on stderr.
pub async fn serve<H, F>(listener: TcpListener, tls: Arc<ServerConfig>, handler: H)
where
    H: Fn(Connect) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let Some((tcp, peer)) = crate::accept::next(&listener).await else { continue };
        let (acceptor, handler) = (acceptor.clone(), handler.clone());
        tokio::spawn(async move {
            let _slot = slot;
            if let Err(error) = serve_connection(tcp, peer, acceptor, handler).await {
                eprintln!("HBONE connection from {peer}: {error:#}");
            }
        });
    }
}

async fn serve_connection<H, F>(tcp: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, handler: H) -> anyhow::Result<()>
where
    H: Fn(Connect) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp))
        .await
        .with_context(|| format!("no TLS handshake within {HANDSHAKE_TIMEOUT:?}"))?
        .context("TLS")?;
    let identity = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(spiffe_identity);
    let (gathered, outlet) = gather(tls);
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .handshake::<_, Bytes>(gathered)
        .await?;
    while let Some(next) = poll_fn(|cx| poll_next(&mut connection, &outlet, cx)).await {
        let (request, mut respond) = next?;
        if request.method() != Method::CONNECT {
            send_status(&mut respond, StatusCode::METHOD_NOT_ALLOWED)?;
            continue;
        }
        let (parts, receive) = request.into_parts();
        let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
        let caller = Caller { address: peer, identity: identity.clone(), authority, headers: parts.headers };
        tokio::spawn(handler(Connect { caller, respond, receive }));
    }
    Ok(())
}

type Accepted = anyhow::Result<(http::Request<RecvStream>, SendResponse<Bytes>)>;

/// The next CONNECT, sending what the connection wrote meanwhile; `None` only when its last bytes are out.
fn poll_next(
    connection: &mut h2::server::Connection<Gathered<TlsStream<TcpStream>>, Bytes>,
    outlet: &Outlet<TlsStream<TcpStream>>,
    cx: &mut Context<'_>,
) -> Poll<Option<Accepted>> {
    let accepted = connection.poll_accept(cx);
    match outlet.poll_send(cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error.into()))),
        Poll::Pending if matches!(accepted, Poll::Ready(None)) => Poll::Pending,
        _ => accepted.map(|next| next.map(|result| result.map_err(Into::into))),
    }
}
