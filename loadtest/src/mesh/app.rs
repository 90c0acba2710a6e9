//! The built-in HTTP app of a workload: HTTP/1.1 and HTTP/2 with prior knowledge on one stream, told apart by the preface.
//!
//! | path | answer |
//! | --- | --- |
//! | `/bytes/N` | 200 with N bytes |
//! | `/sink` | 200 and the length of the request's body, of which nothing is kept |
//! | `/status/N` | status N |
//! | `/headers` | JSON: the request as it arrived, every header line, and the CONNECT it came through |
//! | `/delay/MS` | 200 after that time |
//! | `/echo` | the request's body and trailers, as they come |
//! | `/upgrade` with `upgrade:` | 101, then every byte comes back |
//! | `/count` | JSON: requests per method and path, and bytes of `/bytes/N` so far; itself not counted |
//! | any path with `content-type: application/grpc` | the request's messages, then `grpc-status: 0`; `/bytes/N`: one message of N bytes; `/status/N`: `grpc-status: N` |
//! | else | 200 and a line of text that names the workload |
//!
//! Bounds: `BODY_BYTES_MAX`, `DELAY_MS_MAX`, `COUNTED_PATHS_MAX`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::app_body::AppBody;
use crate::hbone::server::Caller;
use crate::hbone::{HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_STREAM_WINDOW_BYTES};
use crate::rewound::Rewound;

/// Largest body that `/bytes/N` sends.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Largest gRPC message that `/bytes/N` sends; it is built in memory.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest `/delay/MS`.
const DELAY_MS_MAX: u64 = 600_000;
/// Requests that one HTTP/2 connection may have open.
const HTTP2_STREAMS_MAX: u32 = 1000;
/// Different paths that are counted apart; further ones count as `other`.
const COUNTED_PATHS_MAX: usize = 1000;
const OTHER: &str = "other";
/// Different methods of a path that are counted apart; further ones count as the last of them.
const COUNTED_METHODS_MAX: usize = 16;
/// How an HTTP/2 connection with prior knowledge begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const X_WORKLOAD: HeaderName = HeaderName::from_static("x-workload");

/// What the app counted; shared by all listeners of a process.
#[derive(Debug, Default)]
pub struct Counts {
    /// By path, then by method: a path is found without building a key.
    requests: Mutex<BTreeMap<String, Vec<(Method, u64)>>>,
    pub connects_accepted: AtomicU64,
    pub connects_refused: AtomicU64,
    /// Bytes of `/bytes/N` handed to HTTP, of which the last may not have left.
    pub body_bytes_sent: AtomicU64,
}

impl Counts {
    fn add(&self, method: &Method, path: &str) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = requests.len() < COUNTED_PATHS_MAX;
        let methods = match requests.get_mut(path) {
            Some(methods) => methods,
            None => requests.entry(if has_room { path } else { OTHER }.to_owned()).or_default(),
        };
        if let Some((_, count)) = methods.iter_mut().find(|(counted, _)| counted == method) {
            *count += 1;
        } else if methods.len() < COUNTED_METHODS_MAX {
            methods.push((method.clone(), 1));
        } else {
            let (_, count) = methods.last_mut().expect("it is full");
            *count += 1;
        }
    }

    fn requests(&self) -> BTreeMap<String, u64> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = requests.iter().flat_map(|(path, methods)| methods.iter().map(move |(method, count)| (method, path, *count)));
        lines.map(|(method, path, count)| (format!("{method} {path}"), count)).collect()
    }

    /// What `/count` answers.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "requests": self.requests(),
            "connects_accepted": self.connects_accepted.load(Ordering::Relaxed),
            "connects_refused": self.connects_refused.load(Ordering::Relaxed),
            "body_bytes_sent": self.body_bytes_sent.load(Ordering::Relaxed),
        })
    }
}

/// The app of one workload. Clones share its counts.
#[derive(Debug, Clone)]
pub struct App {
    name: HeaderValue,
    counts: Arc<Counts>,
}

impl App {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Ok(Self { name: HeaderValue::from_str(name)?, counts: Arc::default() })
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Serves one stream to its end; `caller` is set when it came through HBONE. Errors are the peer's: they end the stream.
    pub async fn serve<T>(&self, mut stream: T, caller: Option<Caller>) -> anyhow::Result<()>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let caller = Arc::new(caller);
        let start = read_start(&mut stream).await?;
        let is_http2 = start == PREFACE;
        let io = TokioIo::new(Rewound::new(start, stream));
        let service = service_fn(|request| self.answer(request, Arc::clone(&caller)));
        if is_http2 {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
                .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
                .max_concurrent_streams(HTTP2_STREAMS_MAX)
                .serve_connection(io, service_for_http2(self.clone(), caller.clone()))
                .await?;
        } else {
            hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(io, service).with_upgrades().await?;
        }
        Ok(())
    }

    async fn answer(&self, request: Request<Incoming>, caller: Arc<Option<Caller>>) -> Result<Response<AppBody>, Infallible> {
        let path = request.uri().path();
        if path == "/count" {
            return Ok(self.json(&self.counts.to_json()));
        }
        self.counts.add(request.method(), path);
        let mut response = if is_grpc(request.headers()) {
            answer_grpc(request).await
        } else if path.starts_with("/headers") {
            self.json(&describe(&request, (*caller).as_ref()))
        } else {
            answer_http(request, self).await
        };
        response.headers_mut().insert(X_WORKLOAD, self.name.clone());
        Ok(response)
    }

    fn json(&self, value: &serde_json::Value) -> Response<AppBody> {
        let mut response = Response::new(AppBody::Text(format!("{value}\n").into()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(X_WORKLOAD, self.name.clone());
        response
    }
}

/// hyper spawns HTTP/2 streams, so their service owns what it uses.
fn service_for_http2(
    app: App,
    caller: Arc<Option<Caller>>,
) -> impl hyper::service::HttpService<Incoming, ResBody = AppBody, Error = Infallible, Future: Send> + Send {
    service_fn(move |request| {
        let (app, caller) = (app.clone(), Arc::clone(&caller));
        async move { app.answer(request, caller).await }
    })
}

/// Reads until the bytes are the HTTP/2 preface or cannot become it.
async fn read_start<T: AsyncRead + Unpin>(stream: &mut T) -> std::io::Result<Bytes> {
    let mut start = BytesMut::with_capacity(4096);
    while start.len() < PREFACE.len() && PREFACE.starts_with(&start) {
        let wanted = PREFACE.len() - start.len();
        if stream.take(u64::try_from(wanted).expect("fits")).read_buf(&mut start).await? == 0 {
            break;
        }
    }
    Ok(start.freeze())
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

async fn answer_http(mut request: Request<Incoming>, app: &App) -> Response<AppBody> {
    let uri = std::mem::take(request.uri_mut());
    let path = uri.path();
    let (verb, argument) = split_verb(path);
    match verb {
        "bytes" => match argument.parse() {
            Ok(remaining) if remaining <= BODY_BYTES_MAX => {
                drain(request.into_body()).await;
                Response::new(AppBody::Fill { remaining, counts: Arc::clone(&app.counts) })
            }
            _ => bad_request("/bytes/N: N is a number up to 16 GiB\n"),
        },
        "status" => match argument.parse::<u16>().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
            Some(status) if status.as_u16() >= 200 => {
                let mut response = Response::new(AppBody::Text(Bytes::new()));
                *response.status_mut() = status;
                response
            }
            _ => bad_request("/status/N: N is 200 to 999\n"),
        },
        "delay" => match argument.parse() {
            Ok(delay) if delay <= DELAY_MS_MAX => {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                Response::new(AppBody::Text(Bytes::new()))
            }
            _ => bad_request("/delay/MS: at most 600000 ms\n"),
        },
        "echo" => Response::new(AppBody::Echo { body: request.into_body(), trailers: None }),
        "sink" => {
            let length = drain(request.into_body()).await;
            Response::new(AppBody::Text(format!("{length}\n").into()))
        }
        "upgrade" if request.headers().contains_key(UPGRADE) => upgrade(&mut request),
        _ => {
            let text = format!("{} {} {path}\n", String::from_utf8_lossy(app.name.as_bytes()), request.method());
            drain(request.into_body()).await;
            Response::new(AppBody::Text(text.into()))
        }
    }
}

/// The first segment of a path, and what follows it.
fn split_verb(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split_once('/').unwrap_or((path, ""))
}

fn bad_request(text: &'static str) -> Response<AppBody> {
    let mut response = Response::new(AppBody::Text(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response
}

/// Takes the body to its end, so that the connection can be used again, and returns its length; a broken one shows on the connection.
async fn drain(mut body: Incoming) -> usize {
    let mut length = 0;
    while !body.is_end_stream() {
        match body.frame().await {
            Some(Ok(frame)) => length += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => break,
        }
    }
    length
}

fn upgrade(request: &mut Request<Incoming>) -> Response<AppBody> {
    let upgraded = hyper::upgrade::on(&mut *request);
    tokio::spawn(async move {
        let Ok(stream) = upgraded.await else { return };
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
        // Either side may go at any time; the other then sees the end of the stream.
        let _ended = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut response = Response::new(AppBody::Text(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = request.headers().get(UPGRADE) {
        response.headers_mut().insert(UPGRADE, protocol.clone());
    }
    response
}

async fn answer_grpc(request: Request<Incoming>) -> Response<AppBody> {
    let path = request.uri().path();
    let status = path.strip_prefix("/status/").and_then(|text| text.parse::<u16>().ok());
    let message_bytes = path.strip_prefix("/bytes/").and_then(|text| text.parse::<usize>().ok());
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status.unwrap_or(0)));
    // A body left unread would be reset by HTTP/2, and the answer with it.
    let message = message_bytes.filter(|length| *length <= MESSAGE_BYTES_MAX).map(grpc_message);
    let body = if message.is_some() || status.is_some() {
        drain(request.into_body()).await;
        AppBody::Trailed { message, trailers: Some(trailers) }
    } else {
        AppBody::Echo { body: request.into_body(), trailers: Some(trailers) }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A gRPC frame of `length` bytes of payload: not compressed, length, payload.
pub fn grpc_message(length: usize) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("callers bound the length below 4 GiB"));
    frame.put_bytes(b'x', length);
    frame.freeze()
}

fn describe(request: &Request<Incoming>, caller: Option<&Caller>) -> serde_json::Value {
    let version = match request.version() {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    serde_json::json!({
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(ToString::to_string),
        "authority": request.uri().authority().map(ToString::to_string),
        "version": version,
        "headers": header_lines(request.headers()),
        "hbone": caller.map(|caller| serde_json::json!({
            "peer_address": caller.address.to_string(),
            "peer_identity": caller.identity,
            "authority": caller.authority,
            "headers": header_lines(&caller.headers),
        })),
    })
}

/// Each header line as a pair, in order of arrival per name; bytes that are no UTF-8 are escaped.
fn header_lines(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().escape_ascii().to_string(),
    };
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}
