//! What a request leaves behind, part by part: the series it is counted in, its line, its span, and the spans' way out.
//!
//! Each row has a chain that measures this part only, taken from the recorded one.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method};
use model::chain::Chain;
use model::identity::SpiffeId;
use model::workload::Workload;
use telemetry::WorkerTelemetry;
use telemetry::record::{ChainTelemetry, Head, RequestRecord, UpstreamLocal};
use tests::scenario::{WEB, WEB_CHAIN};
use waypoint::state::published::{ClusterEntry, Published};

use crate::allocations::held;
use crate::mesh;
use crate::sinks::Sinks;
use crate::window::{WINDOWS, Windows};

/// Records in a window of lines or spans: fewer than make a buffer or a batch leave by itself.
const RECORDS: u64 = 100;
/// Clients whose requests are counted in series of their own. Four series each: more than a mesh of ten thousand has at one worker.
const CLIENTS: usize = 2500;
/// Series of one client and one outcome: requests, durations, sizes of requests and of responses.
const SERIES_EACH: u64 = 4;
/// Spans that make a batch, which then leaves at once.
const BATCH: u64 = 512;

struct Recorded {
    sinks: Sinks,
    published: Arc<Published>,
    worker: WorkerTelemetry,
    chain: Arc<Chain>,
}

impl Recorded {
    fn new() -> Result<Self> {
        let sinks = Sinks::new()?;
        let published = mesh::publish(&mesh::recorded()?, &sinks.telemetry)?;
        let chain = Arc::clone(&mesh::web(&published)?.chain);
        let worker = sinks.telemetry.worker();
        Ok(Self { sinks, published, worker, chain })
    }

    /// `GET /ok?a=1` of `clients/frontend-0`, answered 200 with 1 KiB.
    fn request(&mut self, chain: &Arc<ChainTelemetry>) -> Result<RequestRecord> {
        let Some(ClusterEntry::Served(served)) = self.published.cluster(WEB_CHAIN) else { bail!("no cluster of web") };
        let endpoint = Arc::clone(&served.endpoints.load().all.entries().next().context("no endpoint")?.endpoint);
        let mut headers: HeaderMap = [("user-agent", "costs/1"), ("x-user", "alice"), ("x-forwarded-proto", "http")]
            .into_iter()
            .map(|(name, value)| Ok((http::HeaderName::from_static(name), value.parse()?)))
            .collect::<Result<_>>()?;
        let mut record = RequestRecord::new(Arc::clone(chain), "HTTP/1.1");
        let decision = self.worker.begin(chain, &headers, true);
        decision.inject(&mut headers);
        record.trace = decision.trace;
        record.request_id = decision.request_id;
        record.operation = Some("web.shop.svc.cluster.local:80/*".into());
        record.head = Some(Head {
            method: Method::GET,
            path: Some(PathAndQuery::from_static("/ok?a=1")),
            authority: Some("web.shop".parse()?),
            scheme: Scheme::HTTP,
        });
        record.capture_request(&headers);
        record.capture_response(&HeaderMap::new());
        (record.response_code, record.wire_bytes_received, record.wire_bytes_sent) = (200, 130, 1200);
        let stream = &mut record.stream;
        stream.source = self.published.workload([10, 244, 9, 1].into());
        stream.source_identity = Some(SpiffeId::new("cluster.local", "clients", "frontend")?);
        stream.local_identity = Some(SpiffeId::new("cluster.local", "shop", "waypoint")?);
        stream.destination = self.published.workload(endpoint.address.target().ip());
        ensure!(stream.source.is_some() && stream.destination.is_some(), "peers that the recording does not know");
        stream.service.clone_from(&served.cluster.service);
        stream.cluster = Some(Arc::clone(&served.cluster.name));
        stream.cluster_stat_name = Some(Arc::clone(&served.cluster.stat_name));
        stream.upstream_host = Some(Arc::clone(&endpoint.host));
        stream.upstream_local = Some(UpstreamLocal::Tunnel);
        (stream.downstream_local, stream.downstream_remote) = (WEB.parse().ok(), "10.244.9.1:33952".parse().ok());
        stream.route_name = Some("default".into());
        (stream.attempts, stream.bytes_sent, stream.details) = (1, 1024, Some("via_upstream".into()));
        Ok(record)
    }
}

/// A request of each of many clients, whose series the worker knows.
pub fn metrics(windows: &mut Windows) -> Result<()> {
    let mut recorded = Recorded::new()?;
    let chain = recorded.sinks.telemetry.chain(WEB_CHAIN.into(), recorded.chain.stats.clone(), Vec::new(), None);
    let mut records = (0..CLIENTS).map(|_| recorded.request(&chain)).collect::<Result<Vec<_>>>()?;
    for (at, record) in records.iter_mut().enumerate() {
        let known = record.stream.source.as_deref().context("a client")?;
        let named =
            Workload { workload_name: format!("client-{at}").into(), uid: format!("Kubernetes//Pod/clients/{at}").into(), ..known.clone() };
        record.stream.source = Some(Arc::new(named));
    }
    let mut record_all = || records.iter_mut().for_each(|record| recorded.worker.record_request(record));
    let before = held();
    record_all();
    let count = u64::try_from(CLIENTS)?;
    windows.held_each = (held() - before) / (SERIES_EACH * count);
    windows.count(count, record_all);
    let series = recorded.sinks.series()?;
    ensure!(series == SERIES_EACH * count, "{series} series");
    Ok(())
}

/// The line of the recorded provider: JSON with 16 fields.
pub fn line(windows: &mut Windows) -> Result<()> {
    let mut recorded = Recorded::new()?;
    let chain = recorded.sinks.telemetry.chain(WEB_CHAIN.into(), None, recorded.chain.access_logs.clone(), None);
    // A line names the ids of a span that another part of the chain decided on.
    let traced = recorded.sinks.telemetry.chain(WEB_CHAIN.into(), None, Vec::new(), recorded.chain.tracing.clone());
    let mut record = recorded.request(&chain)?;
    record.trace = recorded.request(&traced)?.trace;
    for window in 0..WINDOWS {
        windows.number(window, RECORDS, || (0..RECORDS).for_each(|_| recorded.worker.record_request(&mut record)));
        recorded.sinks.settle((window + 1) * RECORDS, 0)?;
    }
    Ok(())
}

fn span_of(recorded: &mut Recorded) -> Result<RequestRecord> {
    let chain = recorded.sinks.telemetry.chain(WEB_CHAIN.into(), None, Vec::new(), recorded.chain.tracing.clone());
    let record = recorded.request(&chain)?;
    ensure!(record.trace.as_ref().is_some_and(|trace| trace.sampled), "the request is not sampled");
    Ok(record)
}

/// A span made and handed over, as a worker does.
pub fn span(windows: &mut Windows) -> Result<()> {
    let mut recorded = Recorded::new()?;
    let mut record = span_of(&mut recorded)?;
    for window in 0..WINDOWS {
        windows.number(window, RECORDS, || (0..RECORDS).for_each(|_| recorded.worker.record_request(&mut record)));
        recorded.sinks.settle(0, (window + 1) * RECORDS)?;
    }
    Ok(())
}

/// A batch of spans encoded and sent, as the control thread does; the collector, which does not read them, is in the count.
pub fn span_export(windows: &mut Windows) -> Result<()> {
    let mut recorded = Recorded::new()?;
    let mut record = span_of(&mut recorded)?;
    for window in 0..WINDOWS {
        (0..BATCH).for_each(|_| recorded.worker.record_request(&mut record));
        windows.number(window, BATCH, || recorded.sinks.control.block_on(recorded.sinks.answered.notified()));
        recorded.sinks.settle(0, (window + 1) * BATCH)?;
    }
    Ok(())
}
