//! The called side of a mesh: pods with an HBONE server in front (as ztunnel is) or plain, and an app that tells what it was asked.
//!
//! The app obeys the path: `/status/N` answers N, `/delay/MILLISECONDS[/…]` waits, `/held[/…]` waits until [`Record::let_go`], `/cut` ends in the middle of a body, `/reset` before the
//! answer, `/fail/N/COUNT[/DELAYms][/…]` answers N to the first COUNT requests of that path, after the delay (where N is `connection`, it
//! resets them, `refused`, it resets HTTP/2 streams as not looked at), `/stream/N` sends N chunks, one every 100 ms, `/messages/N` sends N gRPC messages, one every 100 ms, `/bytes/KIB` as many as the reader takes, `/upgrade` answers 101, or 200 to an extended CONNECT, and echoes what follows; everything
//! else is echoed as JSON (pod, method, path, headers in order, body length). Requests whose content type is gRPC's get `grpc-status: 0`
//! in trailers. A request body is read to its end before the answer; `x-answer-with: NAME=VALUE` adds a header to that,
//! `x-answer-after: MILLISECONDS` delays an echo, and `x-obey: PATH` is obeyed instead of the path. A request with `x-remember` is remembered.
//!
//! Invariants: every request (of [`RECORDS_MAX`] paths) is counted when its head arrives; nothing of a workload outlives it.

mod bodies;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use self::bodies::{AnswerBody, chunks, cut_body, grpc_body, kibibytes, messages, whole};
use crate::pki::spiffe_of;
use crate::tunnel::Tunnel;

/// ztunnel's port for HBONE.
const HBONE_PORT: u16 = 15008;
/// The first bytes of HTTP/2.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// CONNECTs and paths kept, the first ones; later ones are not recorded.
const RECORDS_MAX: usize = 100_000;
/// Bytes at a time that the TCP app reads.
const CHUNK_BYTES: usize = 16 * 1024;

/// What answers inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// Says `ready\n` if `greets`; reads to the end, and then answers `echo:` and what it read.
    Tcp { greets: bool },
    /// A program of its own that listens here; behind HBONE, on the port that was asked for inside.
    Program(SocketAddr),
}

impl App {
    fn at_port(self, port: u16) -> Self {
        match self {
            Self::Program(program) => Self::Program(SocketAddr::new(program.ip(), port)),
            other => other,
        }
    }
}

/// What one CONNECT was.
#[derive(Debug, Clone)]
pub struct SeenConnect {
    pub authority: String,
    pub headers: HeaderMap,
    /// SPIFFE identity of the caller.
    pub identity: String,
}

/// What one TLS handshake of an application was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenHandshake {
    pub server_name: Option<String>,
    pub alpn: Option<String>,
    pub shows_certificate: bool,
}

/// What a workload has seen, and how it is told to behave.
#[derive(Debug)]
pub struct Record {
    name: String,
    requests: Mutex<BTreeMap<String, u64>>,
    remembered: Mutex<BTreeMap<String, Value>>,
    connects: Mutex<Vec<SeenConnect>>,
    handshakes: Mutex<Vec<SeenHandshake>>,
    connections: AtomicU64,
    refuse_connects: AtomicU16,
    answer_headers: Mutex<HeaderMap>,
    let_go: watch::Sender<bool>,
    draining: watch::Sender<bool>,
}

impl Record {
    /// Requests by `METHOD path`, the query left out.
    #[must_use]
    pub fn requests(&self, method_and_path: &str) -> u64 {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).get(method_and_path).copied().unwrap_or(0)
    }

    /// What a request by `METHOD path` was that said `x-remember`, as it is echoed; the last one.
    #[must_use]
    pub fn remembered(&self, method_and_path: &str) -> Option<Value> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner).get(method_and_path).cloned()
    }

    /// All requests.
    #[must_use]
    pub fn requests_total(&self) -> u64 {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// All CONNECTs so far, refused ones too.
    #[must_use]
    pub fn connects(&self) -> Vec<SeenConnect> {
        self.connects.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// TLS handshakes of the application so far, without those that failed.
    #[must_use]
    pub fn handshakes(&self) -> Vec<SeenHandshake> {
        self.handshakes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// TCP connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// From now on CONNECTs are answered with this status; `None` accepts them again.
    pub fn refuse_connects(&self, status: Option<StatusCode>) {
        self.refuse_connects.store(status.map_or(0, |status| status.as_u16()), Ordering::Relaxed);
    }

    /// From now on CONNECTs are answered with these headers, as ztunnel answers with its `baggage`.
    pub fn answer_connects_with(&self, headers: HeaderMap) {
        *self.answer_headers.lock().unwrap_or_else(PoisonError::into_inner) = headers;
    }

    /// Answers requests for `/held`, those that wait and those to come.
    pub fn let_go(&self) {
        self.let_go.send_replace(true);
    }

    /// Returns when the pod is told to drain.
    async fn drain_begins(&self) {
        // The sender is in this record, so that waiting cannot fail.
        drop(self.draining.subscribe().wait_for(|draining| *draining).await);
    }

    fn count(&self, method: &Method, path: &str) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let key = format!("{method} {path}");
        if requests.len() < RECORDS_MAX || requests.contains_key(&key) {
            *requests.entry(key).or_default() += 1;
        }
    }
}

/// A running pod.
#[derive(Debug)]
pub struct Workload {
    record: Arc<Record>,
    address: SocketAddr,
    accepting: JoinHandle<()>,
    /// Ends when the last task of this pod has.
    all_ended: mpsc::Receiver<Infallible>,
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Workload {
    /// A pod of the mesh: HBONE on port 15008 of `ip`, whatever port is asked for inside.
    pub async fn hbone(name: &str, ip: IpAddr, tls: Arc<ServerConfig>, app: App) -> Result<Self> {
        Self::start_hbone(name, ip, Layers { outer: tls.into(), inner: None, app }).await
    }

    /// As [`Self::hbone`], with an application that speaks TLS: the settings of the tunnel, and those inside.
    pub async fn hbone_with_tls(name: &str, ip: IpAddr, (outer, inner): (Arc<ServerConfig>, Arc<ServerConfig>), app: App) -> Result<Self> {
        Self::start_hbone(name, ip, Layers { outer: outer.into(), inner: Some(inner.into()), app }).await
    }

    async fn start_hbone(name: &str, ip: IpAddr, layers: Layers) -> Result<Self> {
        Self::start(name, SocketAddr::new(ip, HBONE_PORT), move |record, tcp| serve_hbone(record, tcp, layers.clone())).await
    }

    /// A pod outside the mesh that speaks TLS.
    pub async fn tls(name: &str, address: SocketAddr, tls: Arc<ServerConfig>, app: App) -> Result<Self> {
        let acceptor = TlsAcceptor::from(tls);
        Self::start(name, address, move |record, tcp| {
            let acceptor = acceptor.clone();
            async move { serve_tls(record, tcp, acceptor, app).await }
        })
        .await
    }

    /// A pod outside the mesh.
    pub async fn plain(name: &str, address: SocketAddr, app: App) -> Result<Self> {
        Self::start(name, address, move |record, tcp| async move {
            serve_app(record, tcp, app).await;
            Ok(())
        })
        .await
    }

    async fn start<F>(name: &str, address: SocketAddr, serve: impl Fn(Arc<Record>, TcpStream) -> F + Send + 'static) -> Result<Self>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.with_context(|| format!("{name} on {address}"))?;
        let address = listener.local_addr()?;
        let record = Arc::new(Record {
            name: name.to_owned(),
            requests: Mutex::default(),
            remembered: Mutex::default(),
            connects: Mutex::default(),
            handshakes: Mutex::default(),
            connections: AtomicU64::new(0),
            refuse_connects: AtomicU16::new(0),
            answer_headers: Mutex::default(),
            let_go: watch::Sender::new(false),
            draining: watch::Sender::new(false),
        });
        let shared = Arc::clone(&record);
        let (alive, all_ended) = mpsc::channel(1);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let tcp = tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((tcp, _)) => tcp,
                        Err(_) => break,
                    },
                    () = shared.drain_begins() => break,
                };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                // A connection that fails is the test's business, not this server's.
                let (served, alive) = (serve(Arc::clone(&shared), tcp), alive.clone());
                connections.spawn(async move {
                    drop(served.await);
                    drop(alive);
                });
                while connections.try_join_next().is_some() {}
            }
            drop(listener);
            while connections.join_next().await.is_some() {}
        });
        Ok(Self { record, address, accepting, all_ended })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it saw, and its switches.
    #[must_use]
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Ends in good order, as a pod that gets SIGTERM: listens no more, GOAWAY on its HBONE connections, idle HTTP sessions are closed, what
    /// was begun is finished. What is left at the deadline is cut, and an error.
    pub async fn drain(mut self, deadline: Duration) -> Result<()> {
        self.record.draining.send_replace(true);
        let drained = tokio::time::timeout(deadline, &mut self.accepting).await;
        drained.map_err(|_| anyhow!("{} still has connections after {deadline:?}", self.record.name))??;
        Ok(())
    }

    /// Cuts all connections and listens no more; returns when they are closed and the port is free.
    pub async fn kill(mut self) {
        self.accepting.abort();
        // Cancelled, which is what was asked for.
        drop((&mut self.accepting).await);
        while self.all_ended.recv().await.is_some() {}
    }
}

/// What a pod of the mesh speaks, from outside in.
#[derive(Clone)]
struct Layers {
    outer: TlsAcceptor,
    inner: Option<TlsAcceptor>,
    app: App,
}

async fn serve_tls<S>(record: Arc<Record>, stream: S, acceptor: TlsAcceptor, app: App) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let tls = acceptor.accept(stream).await?;
    let (_, connection) = tls.get_ref();
    let seen = SeenHandshake {
        server_name: connection.server_name().map(str::to_owned),
        alpn: connection.alpn_protocol().map(|alpn| String::from_utf8_lossy(alpn).into_owned()),
        shows_certificate: connection.peer_certificates().is_some(),
    };
    record.handshakes.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    serve_app(record, tls, app).await;
    Ok(())
}

async fn serve_hbone(record: Arc<Record>, tcp: TcpStream, layers: Layers) -> Result<()> {
    tcp.set_nodelay(true)?;
    let tls = layers.outer.accept(tcp).await?;
    let caller = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no client certificate")?;
    let identity = spiffe_of(caller)?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 22)
        .max_concurrent_streams(200)
        .handshake::<_, Bytes>(tls)
        .await?;
    let mut streams = JoinSet::new();
    let mut draining = false;
    loop {
        let next = tokio::select! {
            next = connection.accept() => next,
            () = record.drain_begins(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(next) = next else { break };
        let (request, respond) = next?;
        let port = request.uri().port_u16().unwrap_or_default();
        if let Some(tunnel) = answer_connect(&record, request, respond, &identity)? {
            let (record, inner, app) = (Arc::clone(&record), layers.inner.clone(), layers.app.at_port(port));
            streams.spawn(async move {
                match inner {
                    // A handshake that fails is the test's business.
                    Some(inner) => drop(serve_tls(record, tunnel, inner, app).await),
                    None => serve_app(record, tunnel, app).await,
                }
            });
        }
        while streams.try_join_next().is_some() {}
    }
    Ok(())
}

fn answer_connect(
    record: &Record,
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    identity: &str,
) -> Result<Option<Tunnel>> {
    let (head, receive) = request.into_parts();
    let authority = head.uri.authority().map(ToString::to_string).unwrap_or_default();
    let seen = SeenConnect { authority, headers: head.headers, identity: identity.to_owned() };
    let mut connects = record.connects.lock().unwrap_or_else(PoisonError::into_inner);
    if connects.len() < RECORDS_MAX {
        connects.push(seen);
    }
    drop(connects);
    let refusal = match StatusCode::from_u16(record.refuse_connects.load(Ordering::Relaxed)) {
        _ if head.method != Method::CONNECT => Some(StatusCode::BAD_REQUEST),
        Ok(status) => Some(status),
        Err(_) => None,
    };
    let mut response = Response::new(());
    *response.status_mut() = refusal.unwrap_or(StatusCode::OK);
    response.headers_mut().clone_from(&record.answer_headers.lock().unwrap_or_else(PoisonError::into_inner));
    let send = respond.send_response(response, refusal.is_some())?;
    Ok(refusal.is_none().then(|| Tunnel::new(send, receive)))
}

async fn serve_app(record: Arc<Record>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: App) {
    // How a stream ends is seen by its caller.
    drop(match app {
        App::Http => serve_http(record, stream).await,
        App::Tcp { greets } => serve_tcp(stream, greets).await,
        App::Program(program) => carry(stream, program).await,
    });
}

async fn carry(mut stream: impl AsyncRead + AsyncWrite + Unpin, program: SocketAddr) -> Result<()> {
    let mut tcp = TcpStream::connect(program).await?;
    tcp.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut stream, &mut tcp).await?;
    Ok(())
}

async fn serve_tcp(mut stream: impl AsyncRead + AsyncWrite + Unpin, greets: bool) -> Result<()> {
    if greets {
        stream.write_all(b"ready\n").await?;
    }
    let mut heard = b"echo:".to_vec();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let n_read = stream.read(&mut chunk).await?;
        if n_read == 0 {
            break;
        }
        heard.extend_from_slice(&chunk[..n_read]);
    }
    stream.write_all(&heard).await?;
    Ok(stream.shutdown().await?)
}

async fn serve_http(record: Arc<Record>, mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<()> {
    let mut first = vec![0; PREFACE.len()];
    let mut n_read = 0;
    while n_read < first.len() && PREFACE.starts_with(&first[..n_read]) {
        match stream.read(&mut first[n_read..]).await? {
            0 => break,
            more => n_read += more,
        }
    }
    first.truncate(n_read);
    let is_http2 = first == PREFACE;
    let (reader, writer) = tokio::io::split(stream);
    let stream = TokioIo::new(tokio::io::join(std::io::Cursor::new(first).chain(reader), writer));
    let shared = Arc::clone(&record);
    let service = service_fn(move |request| answer(Arc::clone(&shared), request));
    if is_http2 {
        http2::Builder::new(TokioExecutor::new()).enable_connect_protocol().serve_connection(stream, service).await?;
        return Ok(());
    }
    let mut serving = pin!(http1::Builder::new().half_close(true).serve_connection(stream, service).with_upgrades());
    tokio::select! {
        served = serving.as_mut() => served?,
        () = record.drain_begins() => {
            serving.as_mut().graceful_shutdown();
            serving.await?;
        }
    }
    Ok(())
}

async fn answer(record: Arc<Record>, mut request: Request<Incoming>) -> Result<Response<AnswerBody>> {
    let path = request.uri().path().to_owned();
    record.count(request.method(), &path);
    if path == "/upgrade" {
        return switch_protocols(&mut request);
    }
    let (head, body) = request.into_parts();
    if path == "/reset" {
        return Err(anyhow!("told to reset"));
    }
    let body = body.collect().await.context("the request's body")?;
    let trailers = body.trailers().cloned();
    let n_body_bytes = body.to_bytes().len();
    if head.headers.contains_key("x-remember") {
        let told = echo(&record.name, &head, n_body_bytes, trailers.as_ref());
        record.remembered.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{} {path}", head.method), told);
    }
    let obeyed = head.headers.get("x-obey").map_or(Ok(&*path), |path| path.to_str())?;
    let mut parts = obeyed.trim_start_matches('/').splitn(2, '/');
    let (verb, argument) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let number = argument.split('/').next().unwrap_or_default().parse::<u64>().unwrap_or(0);
    let response = asked_headers(&head, Response::builder())?.header("server", record.name.as_str()).header("x-pod", record.name.as_str());
    Ok(match verb {
        "fail" if fails(&record, &head, argument) => {
            let delay = argument.split('/').nth(2).and_then(|delay| delay.strip_suffix("ms")).and_then(|delay| delay.parse().ok());
            tokio::time::sleep(Duration::from_millis(delay.unwrap_or(0))).await;
            let status = argument.split('/').next().unwrap_or_default();
            ensure!(status != "connection", "told to break the connection");
            if status == "refused" {
                return Err(anyhow::Error::new(h2::Error::from(h2::Reason::REFUSED_STREAM)).context("told to refuse the stream"));
            }
            response.status(status).body(whole(format!("status {status}\n")))?
        }
        "status" => response.status(argument).body(whole(format!("status {argument}\n")))?,
        "cut" => response.header("content-length", "1000").body(cut_body())?,
        "stream" => response.body(chunks(number))?,
        "bytes" => response.body(kibibytes(number))?,
        "messages" => response.header("content-type", "application/grpc").body(messages(number))?,
        "empty" => response.status(StatusCode::NO_CONTENT).body(Empty::new().map_err(|never| match never {}).boxed_unsync())?,
        _ => {
            let after = head.headers.get("x-answer-after").map(|after| anyhow::Ok(after.to_str()?.parse()?)).transpose()?;
            let after = after.unwrap_or(if verb == "delay" { number } else { 0 });
            tokio::time::sleep(Duration::from_millis(after)).await;
            if verb == "held" {
                // The sender is in the record, so that waiting cannot fail.
                drop(record.let_go.subscribe().wait_for(|let_go| *let_go).await);
            }
            let echo = Bytes::from(echo(&record.name, &head, n_body_bytes, trailers.as_ref()).to_string() + "\n");
            match head.headers.get("content-type").filter(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                Some(kind) => response.header("content-type", kind).body(grpc_body(echo))?,
                None => response.header("content-type", "application/json").body(whole(echo))?,
            }
        }
    })
}

/// Whether this is one of the first requests of its path, which `/fail/N/COUNT` makes fail.
fn fails(record: &Record, head: &http::request::Parts, argument: &str) -> bool {
    let count = argument.split('/').nth(1).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    record.requests(&format!("{} {}", head.method, head.uri.path())) <= count
}

/// Adds the headers that the request names by `x-answer-with: NAME=VALUE`.
fn asked_headers(head: &http::request::Parts, mut response: http::response::Builder) -> Result<http::response::Builder> {
    for asked in head.headers.get_all("x-answer-with") {
        let (name, value) = asked.to_str()?.split_once('=').context("x-answer-with without a value")?;
        response = response.header(name, value);
    }
    Ok(response)
}

/// 101 in the protocol that was asked for, or 200 to an extended CONNECT, and an echo of what comes then.
fn switch_protocols(request: &mut Request<Incoming>) -> Result<Response<AnswerBody>> {
    let asked = request.headers().get("upgrade").cloned();
    let is_connect = request.extensions().get::<hyper::ext::Protocol>().is_some();
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        if let Ok(stream) = upgraded.await {
            let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
            // How it ends is seen by the caller.
            drop(tokio::io::copy(&mut reader, &mut writer).await);
            drop(writer.shutdown().await);
        }
    });
    let response = match asked {
        _ if is_connect => Response::builder(),
        Some(asked) => Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("connection", "upgrade").header("upgrade", asked),
        None => return Err(anyhow!("neither an Upgrade header nor a protocol")),
    };
    Ok(response.body(whole(Bytes::new()))?)
}

fn echo(pod: &str, head: &http::request::Parts, n_body_bytes: usize, trailers: Option<&HeaderMap>) -> Value {
    let pairs = |map: &HeaderMap| -> Value {
        map.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])).collect()
    };
    let authority = head.uri.authority().map(ToString::to_string);
    let host = head.headers.get("host").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    json!({
        "pod": pod,
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map(ToString::to_string),
        "version": format!("{:?}", head.version),
        "authority": authority.or(host),
        "headers": pairs(&head.headers),
        "n_body_bytes": n_body_bytes,
        "trailers": trailers.map(pairs),
    })
}
