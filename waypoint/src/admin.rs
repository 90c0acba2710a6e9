//! The process's own ports: readiness on 15021, metrics on 15090 and 15020, life cycle on 15020, the admin page on 15000.
//!
//! Not for: traffic of the mesh. Invariants: nothing here changes state but `/drain` and `/quitquitquit`, which answer only
//! the pod itself; a slow reader holds one connection and nothing else.

pub(crate) mod query;
pub mod ready;

use std::convert::Infallible;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use telemetry::Exposition;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

use self::ready::Readiness;

/// Connections that one of these ports serves at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may last: scrapes and probes are short.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Pieces in which a page is compressed.
const PIECE_BYTES: usize = 64 * 1024;
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

/// Writes metrics in a format.
pub type Scrape = Box<dyn Fn(Exposition, &mut dyn Write) -> io::Result<()> + Send + Sync>;
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
    /// Writes all metrics; fails only where writing does.
    pub metrics: Scrape,
    /// Whoever makes that page, with the bytes that the last one had.
    pub scrapes: Arc<Mutex<usize>>,
    /// What is not obeyed, as JSON.
    pub unsupported: Page,
    /// Clusters and endpoints, as text.
    pub clusters: Page,
    /// What was refused lately, and what dry runs would have refused, as JSON.
    pub refusals: Page,
    /// What would become of a request.
    pub explain: Ask,
    /// Key sets that are fetched, as JSON.
    pub jwks: Page,
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
        async move { Ok::<_, Infallible>(answer(&request, port, is_local, &admin).await) }
    });
    hyper::server::conn::http1::Builder::new().keep_alive(true).serve_connection(TokioIo::new(stream), service).await
}

async fn answer(request: &Request<Incoming>, port: Port, is_local: bool, admin: &Arc<Admin>) -> Response<Full<Bytes>> {
    let method = request.method();
    let read = method == Method::GET || method == Method::HEAD;
    match (request.uri().path(), port) {
        ("/healthz/ready", Port::Status | Port::Agent) | ("/ready", Port::Admin) if read => readiness(admin),
        ("/stats/prometheus", _) | ("/metrics", Port::Agent | Port::Stats) if read && port != Port::Status => scrape(request, admin).await,
        // As Envoy's page of all statistics, asked for this format.
        ("/stats", Port::Admin) if read && request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == PROMETHEUS)) => {
            scrape(request, admin).await
        }
        ("/quitquitquit", Port::Agent | Port::Admin) => local_post(method, is_local, &admin.quit),
        ("/drain" | "/drain_listeners", Port::Agent | Port::Admin) => local_post(method, is_local, &admin.drain),
        ("/unsupported", Port::Admin) if read => content("application/json", (admin.unsupported)()),
        ("/clusters", Port::Admin) if read => content("text/plain; charset=UTF-8", (admin.clusters)()),
        ("/refusals", Port::Admin) if read => content("application/json", (admin.refusals)()),
        ("/explain", Port::Admin) if read => answered((admin.explain)(request.uri().query().unwrap_or_default())),
        ("/jwks", Port::Admin) if read => content("application/json", (admin.jwks)()),
        ("/", Port::Admin) if read => content("text/plain; charset=UTF-8", INDEX.to_owned()),
        _ => status(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// The one format of `/stats`.
const PROMETHEUS: &str = "format=prometheus";

const INDEX: &str = "/ready                whether this waypoint is ready, and why not
/stats/prometheus     all metrics; ?filter=REGEX: those whose name or labels match
/clusters             clusters and their endpoints
/explain?service=…    what would become of a request, and why
/refusals             what was refused lately and why, and what dry runs would have refused
/jwks                 keys of tokens that are fetched, and how that stands
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

/// Makes the page on a thread of its own, one at a time: those of a large mesh take a while, and so may an expression that somebody asks for.
async fn scrape(request: &Request<Incoming>, admin: &Arc<Admin>) -> Response<Full<Bytes>> {
    let headers = request.headers();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let turn = Arc::clone(&admin.scrapes).lock_owned().await;
    let (mut exposition, compresses, of) = (wanted(headers), takes_gzip(headers), Arc::clone(admin));
    let made = tokio::task::spawn_blocking(move || {
        // Kept here: a scraper that goes away does not end the thread.
        let mut turn = turn;
        let wants = match query::filter(&query) {
            Ok(wants) => wants,
            Err(why) => return answered(Answer::Refused(why)),
        };
        if wants.is_some() && exposition == Exposition::Protobuf {
            // What is filtered are lines.
            exposition = Exposition::OpenMetrics;
        }
        // A page of a part says nothing of the room for a whole one.
        let plain_bytes = if wants.is_some() { &mut 0 } else { &mut *turn };
        page(&of, (exposition, wants.as_ref()), compresses, plain_bytes)
    })
    .await;
    made.unwrap_or_else(|_| status(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n"))
}

fn page(
    admin: &Admin,
    (exposition, wants): (Exposition, Option<&query::Wants>),
    compresses: bool,
    plain_bytes: &mut usize,
) -> Response<Full<Bytes>> {
    let write = |out: &mut dyn Write| match wants {
        Some(wants) => (admin.metrics)(exposition, &mut query::Filtered::new(wants, out)),
        None => (admin.metrics)(exposition, out),
    };
    let made = if compresses { compressed(write) } else { plain(write, plain_bytes) };
    let text = match made {
        Ok(text) => text,
        Err(error) => {
            tracing::error!(%error, "writing metrics failed");
            return status(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made\n");
        }
    };
    let mut response = content(exposition.content_type(), text);
    let vary = http::HeaderValue::from_static("accept, accept-encoding");
    response.headers_mut().insert(header::VARY, vary);
    if compresses {
        response.headers_mut().insert(header::CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
    }
    response
}

/// The weight of the best range or coding of this name and with these parameters, of a list in a header; none if there is none.
fn weight(headers: &HeaderMap, name: header::HeaderName, wanted: &str, parameters: &[&str]) -> Option<f32> {
    let lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    let weights = lists.flat_map(|list| list.split(',')).filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_it = parts.next() == Some(wanted) && parameters.iter().all(|wanted| parts.clone().any(|part| part == *wanted));
        is_it.then(|| parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0))
    });
    weights.max_by(f32::total_cmp)
}

/// What the scraper prefers to text, if it says so; of what it likes alike, what says more.
fn wanted(headers: &HeaderMap) -> Exposition {
    let of = |wanted, parameters: &[&str]| weight(headers, header::ACCEPT, wanted, parameters).unwrap_or(0.0);
    let protobuf = of("application/vnd.google.protobuf", &["proto=io.prometheus.client.MetricFamily", "encoding=delimited"]);
    let (open, text) = (of("application/openmetrics-text", &[]), of("text/plain", &[]));
    if protobuf > text && protobuf >= open {
        Exposition::Protobuf
    } else if open > text {
        Exposition::OpenMetrics
    } else {
        Exposition::Text
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    weight(headers, header::ACCEPT_ENCODING, "gzip", &[]).is_some_and(|weight| weight > 0.0)
}

/// In room for what the last page had and a little more: a buffer that doubles leaves as much behind as the page of a large mesh has.
fn plain(write: impl Fn(&mut dyn Write) -> io::Result<()>, last_bytes: &mut usize) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(*last_bytes + *last_bytes / 16);
    write(&mut text)?;
    *last_bytes = text.len();
    // It may take a while to be read: what is not used goes back.
    text.shrink_to_fit();
    Ok(text)
}

/// Compressed while it is written, so that the page is never there as a whole: those of a large mesh have many megabytes. Quickly rather
/// than well: a page is much alike itself.
fn compressed(write: impl Fn(&mut dyn Write) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let mut text = BufWriter::with_capacity(PIECE_BYTES, GzEncoder::new(Vec::new(), Compression::fast()));
    write(&mut text)?;
    text.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, http::HeaderValue::from_static(value))])
    }

    #[test]
    fn a_scraper_gets_what_it_prefers() {
        for (accept, expected) in [
            ("", Exposition::Text),
            ("*/*", Exposition::Text),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Exposition::Text),
            ("application/openmetrics-text", Exposition::OpenMetrics),
            ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", Exposition::OpenMetrics),
            ("application/openmetrics-text;q=0.2,text/plain", Exposition::Text),
            ("application/openmetrics-text;q=0", Exposition::Text),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited", Exposition::Protobuf),
            // As Prometheus asks where it takes native histograms.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
                 application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Exposition::Protobuf,
            ),
            ("application/openmetrics-text;q=0.6,application/vnd.google.protobuf;q=0.9", Exposition::OpenMetrics),
            ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text", Exposition::Text),
        ] {
            assert_eq!(wanted(&headers(header::ACCEPT, accept)), expected, "{accept}");
        }
    }

    #[test]
    fn pages_are_compressed_for_those_who_take_it() {
        for (accept, expected) in [("gzip", true), ("deflate, gzip;q=0.5", true), ("gzip;q=0", false), ("br", false), ("", false)] {
            assert_eq!(takes_gzip(&headers(header::ACCEPT_ENCODING, accept)), expected, "{accept}");
        }
        let page = b"istio_requests_total{} 1\n".repeat(1000);
        let compressed = compressed(|out| out.write_all(&page)).expect("memory takes it");
        assert!(compressed.len() < page.len() / 10 && compressed.starts_with(&[0x1f, 0x8b]));
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&compressed[..]), &mut read).expect("it is gzip");
        assert_eq!(read, page);
    }
}
