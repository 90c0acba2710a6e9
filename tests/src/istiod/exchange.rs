//! One HTTP/1.1 request over a connection of its own, for probes and the API server. Not a client for measurements.
//!
//! Invariant: an exchange ends within [`EXCHANGE_TIMEOUT`], and its answer is at most [`ANSWER_BYTES_MAX`] long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;

/// From the first SYN to the last byte of the answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// A list of every CRD is some 10 MB.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Status and body of an answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Asks over plain TCP. Cancel safe: the connection is dropped.
pub async fn get(url: &str) -> Result<Answer> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
    let authority = uri.authority().ok_or_else(|| anyhow!("{url} names no host"))?;
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let port = authority.port_u16().unwrap_or(80);
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .body(Full::default())?;
    within_time(async {
        let stream = connect((host, port)).await?;
        exchange(stream, request).await
    })
    .await
}

/// Asks over TLS, as `localhost`.
pub async fn send_over_tls(address: SocketAddr, tls: Arc<rustls::ClientConfig>, request: Request<Full<Bytes>>) -> Result<Answer> {
    within_time(async {
        let stream = connect(address).await?;
        let name = ServerName::try_from("localhost").expect("localhost is a name");
        let stream = TlsConnector::from(tls).connect(name, stream).await?;
        exchange(stream, request).await
    })
    .await
}

async fn connect(address: impl ToSocketAddrs) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // Head and body are two writes: the second would wait for a delayed acknowledgement.
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn within_time(exchange: impl Future<Output = Result<Answer>>) -> Result<Answer> {
    tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await.map_err(|_| anyhow!("no whole answer within {EXCHANGE_TIMEOUT:?}"))?
}

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, request: Request<Full<Bytes>>) -> Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow!("reading the answer: {error}"))?
            .to_bytes();
        Ok(Answer { status, body })
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}
