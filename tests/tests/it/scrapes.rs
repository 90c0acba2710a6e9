//! The page of metrics over the wire: compressed, while another scraper does not read, and what cannot make it grow or break it.
//!
//! Not for: which series there are.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use futures_util::future::try_join_all;
use http::{HeaderValue, Method, Request, StatusCode};
use serde_json::json;
use tests::peer::{Answer, Http, empty};
use tests::process::{AGENT_PORT, STATS_PORT};
use tests::scenario::{Mesh, Scenario, WEB, WEB_CHAIN};
use tests::wait::{Look, until};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::golden_metrics::http_stats;

const DEADLINE: Duration = Duration::from_secs(20);
/// Requests that are all different.
const N_DIFFERENT: usize = 10_000;
/// How many of them are under way at a time.
const N_AT_ONCE: usize = 50;
/// Scrapers that do not read; a port serves 64 at a time.
const N_STALLED: usize = 20;
/// What a stalled scraper's kernel takes for it.
const RECEIVE_BYTES: u32 = 4096;
/// Labels that a request may choose, so that the page is larger than what kernels take of it.
const N_LABELS: usize = 2000;
const PAGE_BYTES_MIN: usize = 1024 * 1024;

/// The chain answers by itself, and one metric has a header of the request in a label.
fn configuration(scenario: &mut Scenario) -> Result<()> {
    let answer = json!({"direct_response": {"status": 200}, "match": {"prefix": "/"}, "name": "answered"});
    scenario.add_routes(WEB_CHAIN, vec![answer])?;
    scenario.http(WEB_CHAIN)?["access_log"] = json!([]);
    http_stats(scenario, WEB_CHAIN)?["metrics"] = json!([{"name": "requests_total", "dimensions": {"odd": "request.headers['x-odd']"}}]);
    Ok(())
}

async fn scrape(mesh: &Mesh, port: u16, encoding: Option<&str>) -> Result<Answer> {
    let mut http = Http::one(TcpStream::connect(mesh.waypoint.port(port)).await?).await?;
    let mut request = Request::get("/stats/prometheus").header("host", "waypoint");
    if let Some(encoding) = encoding {
        request = request.header("accept-encoding", encoding);
    }
    let answer = tokio::time::timeout(DEADLINE, http.send(request.body(empty())?)).await.context("no page")??;
    assert_eq!(answer.status, StatusCode::OK);
    Ok(answer)
}

async fn n_series(mesh: &Mesh) -> Result<u64> {
    let line = mesh.waypoint.metric("the number of series", |line| line.starts_with("waypoint_metric_series ")).await?;
    Ok(line.rsplit_once(' ').context("no value")?.1.parse()?)
}

async fn a_page_is_compressed_where_that_is_accepted(mesh: &Mesh) -> Result<()> {
    for port in [STATS_PORT, AGENT_PORT] {
        let plain = scrape(mesh, port, None).await?;
        assert_eq!((plain.header("content-encoding"), plain.header("vary")), ("", "accept, accept-encoding"), "{port}");
        let packed = scrape(mesh, port, Some("gzip")).await?;
        assert_eq!((packed.header("content-encoding"), packed.header("content-type")), ("gzip", plain.header("content-type")), "{port}");
        let mut text = String::new();
        GzDecoder::new(&packed.body[..]).read_to_string(&mut text)?;
        let names = |text: &str| text.lines().filter(|line| line.starts_with("# TYPE ")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(&text), names(&plain.text()), "{port}");
        assert!(packed.body.len() < text.len() / 2, "{port}: {} of {}", packed.body.len(), text.len());
        let other = scrape(mesh, port, Some("br")).await?;
        assert_eq!(other.header("content-encoding"), "", "{port}");
    }
    Ok(())
}

/// More than what a kernel takes for a reader that does not read.
async fn make_the_page_large(mesh: &Mesh) -> Result<()> {
    let mut http = mesh.connect("frontend-0").await?.http2(WEB).await?;
    for number in 0..N_LABELS {
        let request = http.request(Method::GET, "/labels").header("x-odd", format!("label-{number}")).body(empty())?;
        assert_eq!(http.send(request).await?.status, StatusCode::OK);
    }
    let page = scrape(mesh, AGENT_PORT, None).await?;
    assert!(page.body.len() > PAGE_BYTES_MIN, "{} bytes", page.body.len());
    Ok(())
}

async fn a_label_of_bytes_that_are_no_text_is_readable(mesh: &Mesh) -> Result<()> {
    let mut http = mesh.connect("frontend-0").await?.http1(WEB).await?;
    let odd = HeaderValue::from_bytes(b"a\xff\"\\\xc3\xa9\xed\xa0\x80b")?;
    let request = http.request(Method::GET, "/odd").header("x-odd", odd).body(empty())?;
    assert_eq!(http.send(request).await?.status, StatusCode::OK);
    let is_it = |line: &str| line.starts_with("istio_requests_total{") && line.contains("odd=\"a");
    let line = mesh.waypoint.metric("the label", is_it).await?;
    // Quotes and backslashes are escaped, what is UTF-8 stays, what is none is replaced.
    assert!(line.contains("odd=\"a\u{fffd}\\\"\\\\\u{e9}\u{fffd}"), "{line}");
    let page = scrape(mesh, AGENT_PORT, None).await?;
    assert!(std::str::from_utf8(&page.body).is_ok(), "the page is no UTF-8");
    Ok(())
}

async fn different_paths_and_agents_make_no_series(mesh: &Mesh) -> Result<()> {
    let mut http = mesh.connect("frontend-0").await?.http2(WEB).await?;
    let ask = |http: &mut Http, number: usize| {
        let request = http.request(Method::GET, &format!("/path/{number}?q={number}")).header("user-agent", format!("agent/{number}"));
        request.body(empty())
    };
    let first = ask(&mut http, N_DIFFERENT)?;
    http.send(first).await?;
    mesh.waypoint.metric("the first request", |line| line.starts_with("istio_requests_total{")).await?;
    let before = n_series(mesh).await?;
    let Http::Two(sender) = http else { anyhow::bail!("not HTTP/2") };
    for start in (0..N_DIFFERENT).step_by(N_AT_ONCE) {
        let asked = (start..start + N_AT_ONCE).map(|number| {
            let mut http = Http::Two(sender.clone());
            async move {
                let request = ask(&mut http, number)?;
                http.send(request).await
            }
        });
        let answers = try_join_all(asked).await?;
        assert!(answers.iter().all(|answer| answer.status == StatusCode::OK));
    }
    let total = format!("}} {}", N_DIFFERENT + 1);
    let is_all = |line: &str| line.starts_with("istio_requests_total{") && line.contains("odd=\"unknown\"") && line.ends_with(&total);
    mesh.waypoint.metric("all requests in one series", is_all).await?;
    assert_eq!(n_series(mesh).await?, before);
    Ok(())
}

async fn scrapers_that_do_not_read_hurt_nobody(mesh: &Mesh) -> Result<()> {
    let mut stalled = Vec::new();
    for _ in 0..N_STALLED {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE_BYTES)?;
        let mut stream = socket.connect(mesh.waypoint.port(AGENT_PORT)).await?;
        stream.write_all(b"GET /stats/prometheus HTTP/1.1\r\nhost: waypoint\r\n\r\n").await?;
        stalled.push(stream);
    }
    until("a page to be on its way to each", DEADLINE, async || {
        let mut n_begun = 0;
        for stream in &stalled {
            n_begun += usize::from(stream.peek(&mut [0]).await? > 0);
        }
        Ok(if n_begun == N_STALLED { Look::Done(()) } else { Look::NotYet(format!("{n_begun} of {N_STALLED}")) })
    })
    .await?;
    for port in [AGENT_PORT, STATS_PORT] {
        assert!(scrape(mesh, port, None).await?.text().contains("istio_requests_total"), "{port}");
    }
    assert_eq!(mesh.connect("frontend-0").await?.get(WEB, "/still").await?.status, StatusCode::OK);
    assert_eq!(mesh.waypoint.readiness().await?.status, StatusCode::OK);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_metrics_is_compressed_readable_bounded_and_there_for_whoever_reads() -> Result<()> {
    let mesh = Mesh::builder("07-telemetry")?.edit(configuration)?.quiet().start().await?;
    different_paths_and_agents_make_no_series(&mesh).await?;
    a_label_of_bytes_that_are_no_text_is_readable(&mesh).await?;
    make_the_page_large(&mesh).await?;
    a_page_is_compressed_where_that_is_accepted(&mesh).await?;
    scrapers_that_do_not_read_hurt_nobody(&mesh).await
}
