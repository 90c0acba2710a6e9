//! The process's own ports: readiness on 15021, metrics on 15090 and 15020, life cycle on 15020, the admin page on 15000.
//!
//! Not for: traffic of the mesh. Invariants: nothing here changes state but `/drain` and `/quitquitquit`, which answer only
//! the pod itself; a slow reader holds one connection and nothing else.

pub mod ready;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use self::ready::Readiness;

/// Connections that one of these ports serves at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may last: scrapes and probes are short.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries to accept after the system had no resources for it.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Which port a request came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 15021.
    Status,
    /// 15090.
    Stats,
    /// 15020.
    Agent,
    /// 15000.
    Admin,
}

/// Appends to a page.
pub type Append = Box<dyn Fn(&mut Vec<u8>) + Send + Sync>;
/// Makes a page.
pub type Page = Box<dyn Fn() -> String + Send + Sync>;
/// What a question on the admin port gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A text.
    Text(String),
    /// JSON.
    Json(String),
    /// It cannot be answered: 400, and why.
    Refused(String),
}

/// Answers the query of a page.
pub type Ask = Box<dyn Fn(&str) -> Answer + Send + Sync>;
/// Does something to the process.
pub type Act = Box<dyn Fn() + Send + Sync>;

/// What the ports show and do.
pub struct Admin {
    /// Whether and why not.
    pub readiness: Arc<Readiness>,
    /// Appends all metrics in Prometheus' text format.
    pub metrics: Append,
    /// What is not obeyed, as JSON.
    pub unsupported: Page,
    /// Clusters and endpoints, as text.
    pub clusters: Page,
    /// What was refused lately, and what dry runs would have refused, as JSON.
    pub refusals: Page,
    /// What would become of a request.
    pub explain: Ask,
    /// Begins a drain.
    pub drain: Act,
    /// Ends the process, draining first.
    pub quit: Act,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// Serves one port for ever.
///
/// # Cancel safety
/// Dropping the future closes the port; connections that are being answered are finished.
pub async fn serve(listener: TcpListener, port: Port, admin: Arc<Admin>) {
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&limit).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let admin = Arc::clone(&admin);
                tokio::spawn(async move {
                    let _permit = permit;
                    // A prober that goes away early is no matter.
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, peer, port, admin)).await;
                });
            }
            Err(error) => {
                tracing::warn!(?port, %error, "accepting failed");
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, port: Port, admin: Arc<Admin>) -> hyper::Result<()> {
    // The pod's own address is not enough: what this waypoint forwards there would pass for the pod.
    let is_local = peer.ip().is_loopback();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(answer(&request, port, is_local, &admin)) }
    });
    hyper::server::conn::http1::Builder::new().keep_alive(true).serve_connection(TokioIo::new(stream), service).await
}

fn answer(request: &Request<Incoming>, port: Port, is_local: bool, admin: &Admin) -> Response<Full<Bytes>> {
    let method = request.method();
    let read = method == Method::GET || method == Method::HEAD;
    match (request.uri().path(), port) {
        ("/healthz/ready", Port::Status | Port::Agent) | ("/ready", Port::Admin) if read => readiness(admin),
        ("/stats/prometheus", _) | ("/metrics", Port::Agent | Port::Stats) if read && port != Port::Status => metrics(admin),
        ("/quitquitquit", Port::Agent | Port::Admin) => local_post(method, is_local, &admin.quit),
        ("/drain" | "/drain_listeners", Port::Agent | Port::Admin) => local_post(method, is_local, &admin.drain),
        ("/unsupported", Port::Admin) if read => content("application/json", (admin.unsupported)()),
        ("/clusters", Port::Admin) if read => content("text/plain; charset=UTF-8", (admin.clusters)()),
        ("/refusals", Port::Admin) if read => content("application/json", (admin.refusals)()),
        ("/explain", Port::Admin) if read => answered((admin.explain)(request.uri().query().unwrap_or_default())),
        ("/", Port::Admin) if read => content("text/plain; charset=UTF-8", INDEX.to_owned()),
        _ => status(StatusCode::NOT_FOUND, "not found\n"),
    }
}

const INDEX: &str = "/ready                whether this waypoint is ready, and why not
/stats/prometheus     all metrics
/clusters             clusters and their endpoints
/explain?service=…    what would become of a request, and why
/refusals             what was refused lately and why, and what dry runs would have refused
/unsupported          what istiod sent that is refused, or accepted and not obeyed
POST /drain           stop taking connections, finish what is open
POST /quitquitquit    drain and exit
";

fn readiness(admin: &Admin) -> Response<Full<Bytes>> {
    let reasons = admin.readiness.reasons();
    if reasons.is_empty() {
        return status(StatusCode::OK, "ready\n");
    }
    let mut text = String::from("not ready:\n");
    for reason in reasons {
        text.push_str("- ");
        text.push_str(&reason);
        text.push('\n');
    }
    let mut response = content("text/plain; charset=UTF-8", text);
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

fn answered(answer: Answer) -> Response<Full<Bytes>> {
    match answer {
        Answer::Text(text) => content("text/plain; charset=UTF-8", text),
        Answer::Json(text) => content("application/json", text),
        Answer::Refused(why) => {
            let mut response = content("text/plain; charset=UTF-8", why);
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    }
}

fn metrics(admin: &Admin) -> Response<Full<Bytes>> {
    let mut text = Vec::new();
    (admin.metrics)(&mut text);
    content("text/plain; charset=UTF-8", text)
}

fn local_post(method: &Method, is_local: bool, act: &(dyn Fn() + Send + Sync)) -> Response<Full<Bytes>> {
    if method != Method::POST {
        return status(StatusCode::METHOD_NOT_ALLOWED, "use POST\n");
    }
    if !is_local {
        return status(StatusCode::FORBIDDEN, "only from the pod itself\n");
    }
    act();
    status(StatusCode::OK, "OK\n")
}

fn content(content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn status(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = content("text/plain; charset=UTF-8", body);
    *response.status_mut() = code;
    response
}
