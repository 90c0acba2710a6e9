//! A scripted authorization service: says what a test tells it to, by gRPC and by HTTP, and keeps what it was asked.
//!
//! Independent of the waypoint's code: messages are read and written through the descriptors. Invariant: nothing of it outlives the
//! [`AuthzServer`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// Where gRPC asks.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Questions kept, the first ones.
const ASKED_MAX: usize = 10_000;

/// What it says to everything, until told otherwise.
#[derive(Debug, Clone)]
pub enum Says {
    /// A `CheckResponse` in JSON.
    Check(Value),
    /// No message, but this gRPC status.
    GrpcStatus(u32),
    /// What no `CheckResponse` is, as the body of a gRPC answer.
    Garbage(Vec<u8>),
    /// An HTTP answer.
    Http(u16, Vec<(&'static str, &'static str)>, String),
    /// Nothing at all.
    Hangs,
    /// The end of the connection.
    Breaks,
}

/// What it was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// By HTTP: method and path. By gRPC the path of the call.
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub authority: String,
    pub body: Bytes,
    /// The `CheckRequest` in JSON; null by HTTP.
    pub check: Value,
}

#[derive(Debug)]
struct State {
    says: Mutex<Says>,
    /// By HTTP, if that is something else.
    says_by_http: Mutex<Option<Says>>,
    asked: Mutex<Vec<Asked>>,
}

impl State {
    /// Keeps a question; what is to be said to it.
    fn hear(&self, asked: Asked) -> Says {
        let by_http = if asked.check.is_null() { self.says_by_http.lock().unwrap_or_else(PoisonError::into_inner).clone() } else { None };
        let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < ASKED_MAX {
            all.push(asked);
        }
        by_http.unwrap_or_else(|| self.says.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// A running service.
#[derive(Debug)]
pub struct AuthzServer {
    state: Arc<State>,
    serving: Vec<JoinHandle<()>>,
}

impl Drop for AuthzServer {
    fn drop(&mut self) {
        self.serving.iter().for_each(JoinHandle::abort);
    }
}

impl AuthzServer {
    /// Listens for gRPC on the first address and for HTTP/1.1 on the second.
    pub async fn start(grpc: SocketAddr, http: SocketAddr, says: Says) -> Result<Self> {
        let state = Arc::new(State { says: Mutex::new(says), says_by_http: Mutex::default(), asked: Mutex::default() });
        let mut serving = Vec::new();
        for (address, is_grpc) in [(grpc, true), (http, false)] {
            let listener = TcpListener::bind(address).await.with_context(|| format!("the authorization service on {address}"))?;
            serving.push(tokio::spawn(serve(listener, is_grpc, Arc::clone(&state))));
        }
        Ok(Self { state, serving })
    }

    /// From now on it says this.
    pub fn says(&self, says: Says) {
        *self.state.says.lock().unwrap_or_else(PoisonError::into_inner) = says;
    }

    /// From now on it says this by HTTP.
    pub fn says_by_http(&self, says: Says) {
        *self.state.says_by_http.lock().unwrap_or_else(PoisonError::into_inner) = Some(says);
    }

    /// What it was asked since the last call.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn serve(listener: TcpListener, is_grpc: bool, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            // How a connection ends is seen by its caller.
            if is_grpc {
                drop(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tcp), service).await);
            } else {
                drop(http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await);
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

type AnswerBody = UnsyncBoxBody<Bytes, anyhow::Error>;

fn body(data: Bytes, trailers: Option<HeaderMap>) -> AnswerBody {
    let frames = std::iter::once(Ok(Frame::data(data))).chain(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
    StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())).boxed_unsync()
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<AnswerBody>> {
    let (head, incoming) = request.into_parts();
    let content = incoming.collect().await?.to_bytes();
    let host = head.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let check = if head.uri.path() == CHECK { read(&content)? } else { Value::Null };
    let asked = Asked {
        method: head.method.to_string(),
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        authority: head.uri.authority().map_or(host, ToString::to_string),
        headers: head.headers,
        body: content,
        check,
    };
    match state.hear(asked) {
        Says::Check(message) => grpc(framed(&xds_proto::message_from_json("envoy.service.auth.v3.CheckResponse", &message)?), 0),
        Says::GrpcStatus(status) => grpc(Bytes::new(), status),
        Says::Garbage(bytes) => grpc(bytes.into(), 0),
        Says::Http(status, headers, text) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(body(text.into(), None))?)
        }
        Says::Hangs => std::future::pending().await,
        Says::Breaks => Err(anyhow!("told to break")),
    }
}

fn grpc(message: Bytes, status: u32) -> Result<Response<AnswerBody>> {
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from(status))]);
    Ok(Response::builder().header("content-type", "application/grpc").body(body(message, Some(trailers)))?)
}

/// A message as gRPC frames it.
fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

fn read(framed: &[u8]) -> Result<Value> {
    let Some((prefix, message)) = framed.split_at_checked(5) else { bail!("no gRPC message: {framed:?}") };
    if prefix[0] != 0 || usize::try_from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]))? != message.len() {
        bail!("no gRPC message: {prefix:?} of {}", message.len());
    }
    Ok(xds_proto::message_to_json("envoy.service.auth.v3.CheckRequest", message).unwrap_or_else(|error| json!(error.to_string())))
}
