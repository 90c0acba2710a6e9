//! Sending one request of a case through a tunnel of its own, in the protocol it names.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tests::peer::{Answer, Connection, Http, RequestBody, STEP_DEADLINE, empty, exchange_raw, full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::case::{Protocol, Send};
use super::mesh::Mesh;

/// What is sent over WebSocket and TCP.
const PAYLOAD: &[u8] = b"payload";
/// A message of three bytes in gRPC's frame.
const MESSAGE: &[u8] = b"\0\0\0\0\x03abc";

/// What came back.
#[derive(Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub trailers: HeaderMap,
    /// The back end's account of the request; `null` if none answered.
    pub echo: Value,
    pub took: Duration,
}

impl Answered {
    fn of(answer: &Answer, since: Instant) -> Self {
        Self {
            status: answer.status,
            headers: answer.headers.clone(),
            trailers: answer.trailers.clone(),
            echo: answer.json(),
            took: since.elapsed(),
        }
    }

    /// The pod that answered; empty if none did.
    pub fn pod(&self) -> &str {
        self.headers.get("x-pod").and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A request header as the back end saw it, its values joined; `None` if it was not there.
    pub fn seen(&self, name: &str) -> Option<String> {
        let pairs = self.echo["headers"].as_array()?;
        let values: Vec<&str> = pairs.iter().filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect();
        (!values.is_empty()).then(|| values.join(","))
    }
}

/// The request of a case.
fn request(send: &Send, path: &str) -> Result<Request<RequestBody>> {
    let builder = Request::builder().method(send.method());
    let mut builder = match send.protocol {
        Protocol::Http1 | Protocol::Websocket => builder.uri(path).header("host", send.host()),
        _ => builder.uri(format!("http://{}{path}", send.host())),
    };
    for (name, value) in &send.headers {
        builder = builder.header(name, value);
    }
    for header in &send.answer {
        builder = builder.header("x-answer-with", header);
    }
    Ok(match send.protocol {
        Protocol::Grpc => {
            builder.header("content-type", "application/grpc").header("te", "trailers").body(full(Bytes::from_static(MESSAGE)))?
        }
        Protocol::Websocket => {
            let builder = builder.header("connection", "Upgrade").header("upgrade", "websocket");
            builder.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").body(empty())?
        }
        _ => builder.body(empty())?,
    })
}

/// Whether what is sent after 101 comes back.
async fn echoes(response: http::Response<hyper::body::Incoming>) -> Result<()> {
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.context("no upgrade")?);
    stream.write_all(PAYLOAD).await?;
    stream.flush().await?;
    let mut back = vec![0; PAYLOAD.len()];
    stream.read_exact(&mut back).await?;
    ensure!(back == PAYLOAD, "{back:?} came back");
    Ok(())
}

/// An HTTP client in a new tunnel.
pub async fn http(mesh: &Mesh, send: &Send, connection: &Connection, authority: &str) -> Result<Http> {
    let tunnel = connection.tunnel(authority).await?;
    match send.protocol {
        Protocol::Http1 | Protocol::Websocket | Protocol::Tcp => Http::one(tunnel).await,
        Protocol::Http2 | Protocol::Grpc => Http::two(tunnel).await,
        Protocol::Tls => {
            let name = ServerName::try_from(send.host())?;
            Http::two(TlsConnector::from(mesh.vault_client.clone()).connect(name, tunnel).await.context("TLS inside")?).await
        }
    }
}

/// Sends it on a client.
pub async fn exchange(http: &mut Http, send: &Send, path: &str) -> Result<Answered> {
    let since = Instant::now();
    let response = http.start(request(send, path)?).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (status, headers) = (response.status(), response.headers().clone());
        timeout(STEP_DEADLINE, echoes(response)).await.context("no echo in time")??;
        return Ok(Answered { status, headers, trailers: HeaderMap::new(), echo: Value::Null, took: since.elapsed() });
    }
    let answer = timeout(STEP_DEADLINE, Answer::read(response)).await.context("no whole answer in time")??;
    Ok(Answered::of(&answer, since))
}

/// Sends it once.
pub async fn call(mesh: &Mesh, send: &Send, path: &str) -> Result<Answered> {
    let (connection, authority) = mesh.connect(send).await?;
    let mut http = http(mesh, send, &connection, &authority).await?;
    exchange(&mut http, send, path).await
}

/// Sends bytes over TCP once, and has them back.
pub async fn call_tcp(connection: &Connection, authority: &str) -> Result<()> {
    let back = exchange_raw(connection.tunnel(authority).await?, PAYLOAD, true).await?;
    ensure!(back.ends_with(PAYLOAD), "{} came back", String::from_utf8_lossy(&back));
    Ok(())
}
