//! What one filter chain (or hop) measures, logs and traces, and what of a request its lines and spans read.
//!
//! Not for: what is noted about one request.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, USER_AGENT};
use model::access_log::{AccessLog, LogTarget};
use model::format::HeaderUse;
use model::metrics::Stats;
use model::tracing::Tracing;

use super::{
    GRPC_MESSAGE, GRPC_TIMEOUT, X_CLIENT_TRACE_ID, X_DOWNSTREAM_SERVICE_CLUSTER, X_ENVOY_ORIGINAL_PATH, X_FORWARDED_PROTO, X_REQUEST_ID,
};
use crate::access_log::{ChainLog, LogFile, Writers};
use crate::export::{Exporters, Outbox};

/// Who the process is, as istiod knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `waypoint~IP~POD.NAMESPACE~DOMAIN`.
    pub id: Arc<str>,
    /// Its service cluster, `waypoint.NAMESPACE`.
    pub cluster: Arc<str>,
    /// Where it runs, `REGION/ZONE` or the zone; empty if that is not known.
    pub zone: Arc<str>,
}

/// What one filter chain (or hop) measures, logs and traces. Built once from its configuration, shared by all its requests.
#[derive(Debug)]
pub struct ChainTelemetry {
    /// The chain's name, `%FILTER_CHAIN_NAME%`.
    pub name: Arc<str>,
    /// What it counts; none counts nothing.
    pub stats: Option<Stats>,
    /// What it logs.
    pub(crate) logs: Vec<ChainLog>,
    /// Whether and how it traces.
    pub tracing: Option<Tracing>,
    /// Where its spans go.
    pub(crate) spans: Option<Arc<Outbox>>,
    /// The headers that its lines and spans read.
    pub headers: HeaderUse,
    /// `%HOSTNAME%`.
    pub hostname: Option<Arc<str>>,
    /// `xds.node`.
    pub(crate) node: Option<Arc<Node>>,
    /// `%ENVIRONMENT(NAME)%`.
    pub(crate) environment: Arc<BTreeMap<String, String>>,
    /// Whether its connections have certificates of their own: those that hold the tunnels, not those inside.
    pub(crate) terminates_tls: bool,
}

impl ChainTelemetry {
    /// Puts together what a chain measures. [`crate::Telemetry::chain`] also makes it known to the process: without, nothing of it
    /// reaches a collector or a file.
    #[must_use]
    pub fn new(name: Arc<str>, stats: Option<Stats>, access_logs: Vec<AccessLog>, tracing: Option<Tracing>) -> Self {
        let mut headers = HeaderUse::default();
        for log in &access_logs {
            log.uses(&mut headers);
        }
        if let Some(stats) = &stats {
            stats.uses(&mut headers);
        }
        if let Some(tracing) = &tracing {
            tracing.uses(&mut headers);
            for name in [
                USER_AGENT,
                X_REQUEST_ID,
                CONTENT_TYPE,
                X_FORWARDED_PROTO,
                X_ENVOY_ORIGINAL_PATH,
                X_DOWNSTREAM_SERVICE_CLUSTER,
                X_CLIENT_TRACE_ID,
                GRPC_TIMEOUT,
            ] {
                headers.add_request(&name);
            }
            for names in [&mut headers.response, &mut headers.trailers] {
                if !names.contains(&GRPC_MESSAGE) {
                    names.push(GRPC_MESSAGE);
                }
            }
        }
        let logs = access_logs.into_iter().map(|log| ChainLog { log, file: None, outbox: None }).collect();
        Self {
            name,
            stats,
            logs,
            tracing,
            spans: None,
            headers,
            hostname: None,
            node: None,
            environment: Arc::default(),
            terminates_tls: false,
        }
    }

    /// Finds the files and collectors of its lines, and the collector of its spans.
    pub(crate) fn reaching(mut self, writers: &Arc<Writers>, exporters: &Arc<Exporters>) -> Self {
        for log in &mut self.logs {
            match &log.log.target {
                LogTarget::Collector(collector) => log.outbox = Some(exporters.logs(collector)),
                target => log.file = Some(writers.file(target)),
            }
        }
        self.spans = self.tracing.as_ref().and_then(|tracing| Some(exporters.spans(tracing.provider.as_ref()?)));
        self
    }

    /// The files it logs to.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Arc<LogFile>> {
        self.logs.iter().filter_map(|log| log.file.as_ref())
    }

    /// What is for collectors.
    pub(crate) fn outboxes(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        self.logs.iter().filter_map(|log| log.outbox.as_ref()).chain(&self.spans)
    }

    /// As that of the connections that hold the tunnels. Of one that nobody shares yet.
    #[must_use]
    pub fn terminating_tls(mut self: Arc<Self>) -> Arc<Self> {
        Arc::get_mut(&mut self).expect("it was just made").terminates_tls = true;
        self
    }

    /// Keeps these headers of requests as well, since changes to answers read them. Of one that nobody shares yet.
    #[must_use]
    pub fn reading(mut self: Arc<Self>, more: &HeaderUse) -> Arc<Self> {
        let own = Arc::get_mut(&mut self).expect("it was just made");
        more.request.iter().for_each(|name| own.headers.add_request(name));
        self
    }
}
