//! A collector of any kind: keeps what it is sent over HTTP/1.1 or gRPC, message by message, and takes everything.
//!
//! Not for: spans by OTLP/gRPC, which [`crate::otlp`] reads, or measuring. Invariant: it ends with its [`TelemetrySink`].

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::wait::{Look, until};

/// What comes before a message of gRPC: whether it is compressed, and its length.
const GRPC_PREFIX: usize = 5;

/// One message: a body, or one of gRPC.
#[derive(Debug, Clone)]
pub struct Message {
    /// Where it was sent.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Debug, Default)]
struct Kept {
    messages: Mutex<Vec<Message>>,
    /// What is answered by HTTP/1.1.
    status: Mutex<StatusCode>,
}

impl Kept {
    fn keep(&self, path: &str, headers: &HeaderMap, body: Bytes) {
        let message = Message { path: path.to_owned(), headers: headers.clone(), body };
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }
}

/// How it is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    Http1,
    Grpc,
}

/// A running one.
#[derive(Debug)]
pub struct TelemetrySink {
    address: SocketAddr,
    speaks: Speaks,
    kept: Arc<Kept>,
    _serving: JoinSet<()>,
}

impl TelemetrySink {
    /// One on a free port.
    pub async fn start(speaks: Speaks) -> Result<Self> {
        Self::start_on(speaks, (Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// One there.
    pub async fn start_on(speaks: Speaks, address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let kept = Arc::new(Kept::default());
        let mut serving = JoinSet::new();
        let served = Arc::clone(&kept);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let kept = Arc::clone(&served);
                let io = TokioIo::new(tcp);
                // Who sends may go away.
                connections.spawn(async move {
                    match speaks {
                        Speaks::Http1 => {
                            let service = service_fn(move |request| posted(Arc::clone(&kept), request));
                            drop(http1::Builder::new().serve_connection(io, service).await);
                        }
                        Speaks::Grpc => {
                            let service = service_fn(move |request| called(Arc::clone(&kept), request));
                            drop(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await);
                        }
                    }
                });
            }
        });
        Ok(Self { address, speaks, kept, _serving: serving })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on posts are answered so.
    pub fn answer(&self, status: StatusCode) {
        *self.kept.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }

    /// All messages so far.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        self.kept.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for what `find` finds in a message.
    pub async fn wait_for<T>(&self, what: &str, deadline: Duration, find: impl Fn(&Message) -> Option<T>) -> Result<T> {
        until(what, deadline, async || {
            let messages = self.messages();
            Ok(messages.iter().find_map(&find).map_or_else(|| Look::NotYet(format!("{} other messages came", messages.len())), Look::Done))
        })
        .await
    }

    /// A cluster of this name that leads here.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Value {
        let address = json!({"socket_address": {"address": self.address.ip().to_string(), "port_value": self.address.port()}});
        let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address}}]}]);
        let mut cluster = json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        });
        if self.speaks == Speaks::Grpc {
            cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }});
        }
        cluster
    }
}

type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

fn body(frames: Vec<Frame<Bytes>>) -> Body {
    StreamBody::new(stream::iter(frames.into_iter().map(Ok).collect::<Vec<_>>()))
}

async fn posted(kept: Arc<Kept>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (head, incoming) = request.into_parts();
    let received = incoming.collect().await?.to_bytes();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    kept.keep(path, &head.headers, received);
    let mut response = Response::new(body(Vec::new()));
    *response.status_mut() = *kept.status.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(response)
}

/// Keeps each message of a call as it comes, and answers with an empty one when there are no more.
async fn called(kept: Arc<Kept>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (head, mut incoming) = request.into_parts();
    let mut pending = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        if let Ok(data) = frame?.into_data() {
            pending.extend_from_slice(&data);
        }
        while let Some(length) = pending.get(1..GRPC_PREFIX).and_then(|length| length.try_into().ok()).map(u32::from_be_bytes) {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if pending.len() < GRPC_PREFIX.saturating_add(length) {
                break;
            }
            pending.advance(GRPC_PREFIX);
            kept.keep(head.uri.path(), &head.headers, pending.split_to(length).freeze());
        }
    }
    let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let mut response = Response::new(body(vec![Frame::data(Bytes::from_static(&[0; GRPC_PREFIX])), Frame::trailers(trailers)]));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}
