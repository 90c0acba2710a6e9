//! An issuer's web server for its keys: answers what it is told to, and counts who asks.
//!
//! Not for: the keys ([`crate::tokens`]). Invariant: it ends with its [`KeyServer`].

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What is answered.
#[derive(Debug, Clone)]
pub struct KeyAnswer {
    pub status: StatusCode,
    pub body: String,
    /// Before the answer.
    pub delay: Duration,
}

impl KeyAnswer {
    /// A key set, at once.
    #[must_use]
    pub fn keys(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, body: body.into(), delay: Duration::ZERO }
    }

    /// Later than that.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

#[derive(Debug)]
struct Shared {
    answer: Mutex<KeyAnswer>,
    asked: AtomicU64,
    /// Host and path of the last one.
    last: Mutex<String>,
}

/// A running one.
#[derive(Debug)]
pub struct KeyServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

impl KeyServer {
    /// One on a free port.
    pub async fn start(answer: KeyAnswer) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { answer: Mutex::new(answer), asked: AtomicU64::new(0), last: Mutex::default() });
        let mut serving = JoinSet::new();
        let served = Arc::clone(&shared);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let shared = Arc::clone(&served);
                let service = service_fn(move |request| answered(Arc::clone(&shared), request));
                connections.spawn(async move {
                    // Who asks may go away.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await);
                });
            }
        });
        Ok(Self { address, shared, _serving: serving })
    }

    /// From now on.
    pub fn set(&self, answer: KeyAnswer) {
        *self.shared.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// How often it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// What it was asked last: method, host and path.
    #[must_use]
    pub fn last(&self) -> String {
        self.shared.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A cluster of this name that leads here.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Value {
        let address = json!({"socket_address": {"address": self.address.ip().to_string(), "port_value": self.address.port()}});
        let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address}}]}]);
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        })
    }
}

async fn answered(shared: Arc<Shared>, request: http::Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    shared.asked.fetch_add(1, Ordering::Relaxed);
    let host = request.headers().get("host").map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()).unwrap_or_default();
    *shared.last.lock().unwrap_or_else(PoisonError::into_inner) = format!("{} {host}{}", request.method(), request.uri());
    let KeyAnswer { status, body, delay } = shared.answer.lock().unwrap_or_else(PoisonError::into_inner).clone();
    tokio::time::sleep(delay).await;
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    Ok(response)
}
