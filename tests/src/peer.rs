//! The calling side of a mesh: an HBONE client with its own certificate and source address, and HTTP or raw bytes inside its tunnels.
//!
//! Independent of the waypoint's code, so that a mistake there cannot cancel out here. Not for load: see the crate `loadtest`.
//! Invariant: each step ends within [`STEP_DEADLINE`] or fails by name.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::{Identity, Pki, spiffe_of};
pub use crate::tunnel::Tunnel;

/// Longest that one step (dial, handshake, CONNECT, answer) may take; tests that wait longer say so themselves.
pub const STEP_DEADLINE: Duration = Duration::from_secs(20);

/// The body of a request.
pub type RequestBody = BoxBody<Bytes, Infallible>;

/// No body.
#[must_use]
pub fn empty() -> RequestBody {
    Empty::new().boxed()
}

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).boxed()
}

/// Ends a step at its deadline.
async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(STEP_DEADLINE, work).await {
        Ok(result) => result.with_context(|| what.to_owned()),
        Err(_) => bail!("{what}: nothing within {STEP_DEADLINE:?}"),
    }
}

/// A member of the mesh that calls others.
#[derive(Debug, Clone)]
pub struct Peer {
    tls: Arc<ClientConfig>,
    source: Option<IpAddr>,
}

impl Peer {
    /// A caller that shows `identity` (or no certificate) and dials from `source`, by which its workload is found.
    pub fn new(pki: &Pki, identity: Option<&Identity>, source: Option<IpAddr>) -> Result<Self> {
        Ok(Self::with_config(pki.client_config(identity)?, source))
    }

    /// A caller with TLS settings of another mesh's authority.
    #[must_use]
    pub fn with_config(tls: Arc<ClientConfig>, source: Option<IpAddr>) -> Self {
        Self { tls, source }
    }

    /// TCP, TLS and HTTP/2's preface. A server that refuses the certificate lets this succeed: TLS 1.3 tells afterwards.
    pub async fn connect(&self, address: SocketAddr) -> Result<Connection> {
        step(&format!("an HBONE connection to {address}"), async {
            let stream = self.dial_tls(address).await?;
            let server = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no server certificate")?;
            let server_identity = spiffe_of(server)?;
            let local = stream.get_ref().0.local_addr()?;
            let (requests, connection) = h2::client::Builder::new()
                .enable_push(false)
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 22)
                .handshake::<_, Bytes>(stream)
                .await?;
            let (sender, ended) = watch::channel(None);
            tokio::spawn(async move {
                let outcome = match connection.await {
                    Ok(()) => "closed in good order".to_owned(),
                    Err(error) => error.to_string(),
                };
                sender.send_replace(Some(outcome));
            });
            Ok(Connection { requests, ended, server_identity, local })
        })
        .await
    }

    /// TCP and TLS only, for those who then send something else than HBONE.
    pub async fn dial_tls(&self, address: SocketAddr) -> Result<TlsStream<TcpStream>> {
        let tcp = self.dial(address).await?;
        let name = ServerName::IpAddress(address.ip().into());
        TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await.context("TLS")
    }

    async fn dial(&self, address: SocketAddr) -> Result<TcpStream> {
        let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
        if let Some(source) = self.source {
            socket.bind(SocketAddr::new(source, 0)).with_context(|| format!("binding {source}"))?;
        }
        let stream = socket.connect(address).await.with_context(|| format!("dialling {address}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// An HBONE connection; streams are opened on it one after another or at once.
#[derive(Debug, Clone)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    ended: watch::Receiver<Option<String>>,
    /// The SPIFFE identity that the server showed.
    pub server_identity: String,
    /// Where it was dialled from.
    pub local: SocketAddr,
}

impl Connection {
    /// A CONNECT: its tunnel, or the status that refuses it.
    pub async fn connect(&self, authority: &str) -> Result<std::result::Result<Tunnel, StatusCode>> {
        self.connect_with(authority, HeaderMap::new()).await
    }

    /// As [`Self::connect`], with more headers, as ztunnel sends `forwarded`, `baggage` and `traceparent`.
    pub async fn connect_with(&self, authority: &str, headers: HeaderMap) -> Result<std::result::Result<Tunnel, StatusCode>> {
        Ok(self.answered(authority, headers).await?.map(|(tunnel, _)| tunnel))
    }

    /// As [`Self::connect_with`], with the headers of the answer.
    pub async fn answered(&self, authority: &str, headers: HeaderMap) -> Result<std::result::Result<(Tunnel, HeaderMap), StatusCode>> {
        step(&format!("CONNECT {authority}"), async {
            let mut request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
            *request.headers_mut() = headers;
            let mut requests = self.requests.clone().ready().await?;
            let (answer, send) = requests.send_request(request, false)?;
            let answer = answer.await?;
            if answer.status() != StatusCode::OK {
                return Ok(Err(answer.status()));
            }
            let (head, body) = answer.into_parts();
            Ok(Ok((Tunnel::new(send, body), head.headers)))
        })
        .await
    }

    /// The tunnel of a CONNECT that has to succeed.
    pub async fn tunnel(&self, authority: &str) -> Result<Tunnel> {
        self.connect(authority).await?.map_err(|status| anyhow!("CONNECT {authority} was answered {status}"))
    }

    /// Any request outside a tunnel, for servers that take CONNECT only.
    pub async fn request(&self, request: Request<()>) -> Result<StatusCode> {
        step("a request outside a tunnel", async {
            let mut requests = self.requests.clone().ready().await?;
            let (answer, _) = requests.send_request(request, true)?;
            Ok(answer.await?.status())
        })
        .await
    }

    /// A new tunnel to `authority` with HTTP/1.1 inside.
    pub async fn http1(&self, authority: &str) -> Result<Http> {
        Http::one(self.tunnel(authority).await?).await
    }

    /// A new tunnel to `authority` with HTTP/2 inside.
    pub async fn http2(&self, authority: &str) -> Result<Http> {
        Http::two(self.tunnel(authority).await?).await
    }

    /// A GET in a tunnel of its own.
    pub async fn get(&self, authority: &str, path: &str) -> Result<Answer> {
        self.http1(authority).await?.get(path).await
    }

    /// How the connection ended; waits for it.
    pub async fn ended(&self) -> Result<String> {
        let mut ended = self.ended.clone();
        step("the end of the connection", async {
            let outcome = ended.wait_for(Option::is_some).await?;
            Ok(outcome.clone().unwrap_or_default())
        })
        .await
    }

    /// Whether the peer still takes new streams: false once it said GOAWAY or is gone.
    pub async fn takes_streams(&self) -> bool {
        let mut requests = self.requests.clone();
        self.ended.borrow().is_none() && poll_fn(|context| requests.poll_ready(context)).await.is_ok()
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    /// Reads a response to its end.
    ///
    /// # Errors
    /// A body that is cut off.
    pub async fn read(response: Response<Incoming>) -> Result<Self> {
        let (head, body) = response.into_parts();
        let body = body.collect().await.with_context(|| format!("the body of a {}", head.status))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Self { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A header as text, empty if missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// An HTTP client on one stream.
#[derive(Debug)]
pub enum Http {
    One(http1::SendRequest<RequestBody>),
    Two(http2::SendRequest<RequestBody>),
}

impl Http {
    /// HTTP/1.1 on a stream.
    pub async fn one(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // The request that is under way reports what went wrong.
            drop(connection.with_upgrades().await);
        });
        Ok(Self::One(sender))
    }

    /// HTTP/2 with prior knowledge on a stream.
    pub async fn two(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Self> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Two(sender))
    }

    /// Sends a request; the answer's head is back, its body may still be coming.
    pub async fn start(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>> {
        let what = format!("{} {}", request.method(), request.uri());
        step(&what, async {
            match self {
                Self::One(sender) => {
                    sender.ready().await?;
                    Ok(sender.send_request(request).await?)
                }
                Self::Two(sender) => {
                    sender.ready().await?;
                    Ok(sender.send_request(request).await?)
                }
            }
        })
        .await
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Answer> {
        let response = self.start(request).await?;
        step("an answer's body", Answer::read(response)).await
    }

    /// A request to host `web.shop` in the form of this protocol.
    pub fn request(&self, method: Method, path: &str) -> http::request::Builder {
        match self {
            Self::One(_) => Request::builder().method(method).uri(path).header("host", "web.shop"),
            Self::Two(_) => Request::builder().method(method).uri(format!("http://web.shop{path}")),
        }
    }

    /// GET without more headers.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        let request = self.request(Method::GET, path).body(empty())?;
        self.send(request).await
    }
}

/// The first bytes of a TLS client that asks for a name; for an address by none.
pub fn client_hello(name: &str) -> Result<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), name.to_owned().try_into()?)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// Writes raw bytes, ends this direction if `half_close`, and reads what comes until the other side ends.
pub async fn exchange_raw(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8], half_close: bool) -> Result<Vec<u8>> {
    step("an exchange of raw bytes", async {
        stream.write_all(bytes).await?;
        stream.flush().await?;
        if half_close {
            stream.shutdown().await?;
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    })
    .await
}

/// GET from a plain port, such as the waypoint's readiness and metrics.
pub async fn plain_get(address: SocketAddr, path: &str) -> Result<Answer> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("dialling {address}"))?;
    Http::one(stream).await?.get(path).await
}
