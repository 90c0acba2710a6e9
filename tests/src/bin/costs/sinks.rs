//! Where lines and spans go while a row runs, and the wait until they are gone, so that no window pays for another's.
//!
//! The control runtime lives on this thread and is driven between windows only: nothing that it does is in a row but where a row says so.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use model::collector::Collector;
use telemetry::Telemetry;
use telemetry::export::{CollectorConnector, CollectorIo, Connecting};
use tests::wait::{Look, until};
use tokio::io::DuplexStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::mesh;

/// Bytes between an exporter and its collector.
const PIPE_BYTES: usize = 64 * 1024;

/// How long lines and spans may take to leave; far more than they need.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// A gRPC message of no bytes: `ExportTraceServiceResponse` with nothing rejected.
const TAKEN_ALL: &[u8] = &[0, 0, 0, 0, 0];

/// The process's telemetry with a collector that takes everything.
pub struct Sinks {
    pub telemetry: Arc<Telemetry>,
    pub control: Runtime,
    /// Told of each export that the collector has answered.
    pub answered: Arc<Notify>,
}

impl Sinks {
    pub fn new() -> Result<Self> {
        let control = Builder::new_current_thread().enable_all().build()?;
        let answered = Arc::new(Notify::new());
        let telemetry = mesh::telemetry(control.handle(), connector(&answered));
        Ok(Self { telemetry, control, answered })
    }

    /// Waits until as many lines and spans as were recorded have left.
    pub fn settle(&self, lines: u64, spans: u64) -> Result<()> {
        self.control.block_on(until("lines and spans that have left", SETTLE_DEADLINE, || async {
            let page = self.page()?;
            for (name, wanted) in [("waypoint_access_log_lines_total", lines), ("waypoint_spans_exported_total", spans)] {
                let seen = value(&page, name)?;
                if seen != wanted {
                    return Ok(Look::NotYet(format!("{name} is {seen}, not {wanted}")));
                }
            }
            Ok(Look::Done(()))
        }))
    }

    /// How many series of Istio's metrics there are.
    pub fn series(&self) -> Result<u64> {
        // The gauge is set while the page is written, for the next one.
        self.page()?;
        value(&self.page()?, "waypoint_metric_series")
    }

    fn page(&self) -> Result<String> {
        let mut page = Vec::new();
        self.telemetry.write_exposition(telemetry::Exposition::Text, &mut page)?;
        Ok(String::from_utf8(page)?)
    }
}

fn value(page: &str, name: &str) -> Result<u64> {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("{name} is not exposed"))?.parse().context("a count")
}

fn connector(answered: &Arc<Notify>) -> Arc<dyn CollectorConnector> {
    let answered = Arc::clone(answered);
    Arc::new(move |_: &Collector| -> Connecting {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let answered = Arc::clone(&answered);
        Box::pin(async move {
            tokio::spawn(async move {
                if let Err(error) = collect(far, &answered).await {
                    eprintln!("costs: the collector failed: {error:#}");
                }
            });
            Ok::<_, io::Error>(Box::new(near) as Box<dyn CollectorIo>)
        })
    })
}

/// Takes exports and reads none of them: what a collector does with spans is not ours to measure.
async fn collect(io: DuplexStream, answered: &Notify) -> Result<()> {
    let mut connection =
        h2::server::Builder::new().initial_window_size(1 << 20).initial_connection_window_size(1 << 24).handshake(io).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        // The connection moves only while it is polled, so the body is read beside it.
        let mut taken = std::pin::pin!(take(request, respond));
        tokio::select! {
            done = &mut taken => done?,
            closed = std::future::poll_fn(|cx| connection.poll_closed(cx)) => bail!("closed in an export: {closed:?}"),
        }
        answered.notify_one();
    }
    Ok(())
}

async fn take(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(response, false)?;
    stream.send_data(Bytes::from_static(TAKEN_ALL), false)?;
    let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    stream.send_trailers(trailers)?;
    Ok(())
}
