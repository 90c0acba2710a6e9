//! What happened: metrics, access logs and spans, as the consumers of an Istio waypoint expect them.
//!
//! Not for: deciding anything, or serving what is recorded. Invariant: telemetry never fails a request, and never makes one wait.
//! Read from the bottom: [`Telemetry`] is the process's, [`WorkerTelemetry`] a worker's; a [`record::RequestRecord`] is filled
//! while a request runs and handed over once.

mod access_log;
pub mod costs;
pub mod export;
pub mod grpc;
mod metrics;
mod policies;
pub mod record;
pub mod trace;
mod wire;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use model::access_log::AccessLog;
use model::metrics::Stats;
use model::rbac;
use model::tracing::{CustomTag, TagSource, Tracing};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::runtime::Handle;

use crate::access_log::{LogCounters, WorkerLogs, Writers};
use crate::costs::{Costs, WorkerCosts};
use crate::export::{CollectorConnector, Counters, ExportCounters, Exporters, Origin, resource_of};
use crate::metrics::{Gauge, Store, WorkerMetrics};
use crate::policies::{Policies, WorkerPolicies};
use crate::record::{ChainTelemetry, ConnectionRecord, Node, RequestRecord};
use crate::trace::{Decision, SpanIdentity, WorkerSpans};

pub use crate::access_log::{BUFFER_BYTES_MAX, FLUSH_BYTES, TARGETS_MAX};
pub use crate::metrics::{
    Bounds, CUSTOM_NAMES_MAX, CUSTOM_SERIES_MAX, Exposition, HISTOGRAM_BOUNDS_MAX, LABEL_BYTES_MAX, NATIVE_BUCKETS_MAX, SERIES_MAX,
};
pub use crate::policies::{POLICY_SERIES_MAX, REFUSALS_KEPT_MAX, SeenRefusal};

/// What the process knows of itself, and how often it flushes.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// The xDS node's id, `waypoint~10.42.0.20~waypoint-7d4.emojivoto~emojivoto.svc.cluster.local`; on every span.
    pub node_id: Arc<str>,
    /// The node's cluster, `waypoint.emojivoto`.
    pub node_cluster: Arc<str>,
    /// The whole node, as an encoded `envoy.config.core.v3.Node`; access log services are told of it.
    pub node: Arc<[u8]>,
    /// The node's zone; empty if unknown.
    pub zone: Arc<str>,
    /// `%HOSTNAME%`.
    pub hostname: Option<Arc<str>>,
    /// Variables of the environment, for tags of spans, lines and headers that are to say them.
    pub environment: Arc<BTreeMap<String, String>>,
    /// `istio_build{tag}`.
    pub istio_version: Arc<str>,
    /// How late an access log line may be; 1 s with Envoy as Istio starts it.
    pub log_flush_interval: Duration,
    /// Whether JSON lines say why a request was refused although their format does not.
    pub log_refusals: bool,
    /// Whether each try of a traced request has a span, whatever its chain says.
    pub spans_of_tries: bool,
    /// Whether spans have the names of OpenTelemetry's conventions beside Envoy's.
    pub semantic_names: bool,
    /// How late a span or a log record may be.
    pub span_flush_interval: Duration,
    /// Series at most; [`SERIES_MAX`] by default.
    pub series_max: usize,
    /// Buckets of histograms by what Envoy's names of them begin with (`istiocustom.istio_request_bytes`); the first that fits counts.
    pub histogram_bounds: Vec<(String, Bounds)>,
    /// How long a series may be idle before it is no longer written; none keeps all, as Envoy does unless it is told otherwise.
    pub series_idle_max: Option<Duration>,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            node_id: Arc::from(""),
            node_cluster: Arc::from(""),
            node: Arc::from([]),
            zone: Arc::from(""),
            hostname: None,
            environment: Arc::default(),
            istio_version: Arc::from("unknown"),
            log_flush_interval: Duration::from_secs(1),
            log_refusals: true,
            spans_of_tries: false,
            semantic_names: false,
            span_flush_interval: Duration::from_secs(1),
            series_max: SERIES_MAX,
            histogram_bounds: Vec::new(),
            series_idle_max: None,
        }
    }
}

/// The process's telemetry.
#[derive(Debug)]
pub struct Telemetry {
    settings: TelemetrySettings,
    node: Arc<Node>,
    started: Instant,
    draining: AtomicBool,
    counts: AtomicBool,
    workers: AtomicUsize,
    registry: Registry,
    series: IntGauge,
    store: Arc<Store>,
    policies: Arc<Policies>,
    writers: Arc<Writers>,
    exporters: Arc<Exporters>,
    costs: Costs,
    mirrors: MirrorCounters,
    external: ExternalCounters,
}

/// What came of asking authorization services, in Envoy's words.
#[derive(Clone, Debug)]
pub struct ExternalCounters {
    /// It may pass.
    pub ok: IntCounter,
    /// It may not.
    pub denied: IntCounter,
    /// There was no answer.
    pub error: IntCounter,
    /// There was none, and it passed all the same; counts as an error too.
    pub failure_mode_allowed: IntCounter,
    /// An answer that is not followed.
    pub invalid: IntCounter,
    /// Nobody was asked, since too much was asked already.
    pub overloaded: IntCounter,
}

/// Copies of requests that were not sent, or not to their end.
#[derive(Clone, Debug)]
pub struct MirrorCounters {
    /// There were too many at a time.
    pub too_many: IntCounter,
    /// The copy fell too far behind the body of its request.
    pub too_slow: IntCounter,
    /// A circuit breaker of the copy's cluster was open.
    pub overflow: IntCounter,
}

/// The variable that OpenTelemetry names for attributes of the resource.
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";

fn origin(settings: &TelemetrySettings) -> Origin {
    Origin {
        node_id: Arc::clone(&settings.node_id),
        node_cluster: Arc::clone(&settings.node_cluster),
        zone: Arc::clone(&settings.zone),
        node: Arc::clone(&settings.node),
        resource: settings.environment.get(RESOURCE_ATTRIBUTES).map_or_else(Vec::new, |variable| resource_of(variable)),
    }
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help).expect("a well-formed name"))
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

impl Telemetry {
    /// Telemetry that exports spans from the runtime `control`, dialling collectors through `connector`.
    #[must_use]
    pub fn new(settings: TelemetrySettings, control: Handle, connector: Arc<dyn CollectorConnector>) -> Arc<Self> {
        let registry = Registry::new();
        let lines = LogCounters {
            written: counter(&registry, "waypoint_access_log_lines_total", "Access log lines written."),
            dropped: counter(&registry, "waypoint_access_log_lines_dropped_total", "Access log lines lost: no room, or a write failed."),
        };
        let dropped = Opts::new("waypoint_spans_dropped_total", "Spans lost, by reason.");
        let dropped = register(&registry, IntCounterVec::new(dropped, &["reason"]).expect("a well-formed name"));
        let spans = ExportCounters {
            exported: counter(&registry, "waypoint_spans_exported_total", "Spans that a collector took."),
            dropped_queue: dropped.with_label_values(&["queue_full"]),
            dropped_export: dropped.with_label_values(&["export_failed"]),
            dropped_provider: dropped.with_label_values(&["no_exporter"]),
        };
        let counters = Counters { spans, records: lines.of_records() };
        let mirrors = Opts::new("waypoint_mirrors_dropped_total", "Copies of requests that were given up, by reason.");
        let mirrors = register(&registry, IntCounterVec::new(mirrors, &["reason"]).expect("a well-formed name"));
        let mirrors = MirrorCounters {
            too_many: mirrors.with_label_values(&["too_many"]),
            too_slow: mirrors.with_label_values(&["too_slow"]),
            overflow: mirrors.with_label_values(&["overflow"]),
        };
        let external = Opts::new("waypoint_ext_authz_total", "Checks of authorization services, by what came of them.");
        let external = register(&registry, IntCounterVec::new(external, &["result"]).expect("a well-formed name"));
        let external = ExternalCounters {
            ok: external.with_label_values(&["ok"]),
            denied: external.with_label_values(&["denied"]),
            error: external.with_label_values(&["error"]),
            failure_mode_allowed: external.with_label_values(&["failure_mode_allowed"]),
            invalid: external.with_label_values(&["invalid"]),
            overloaded: external.with_label_values(&["overloaded"]),
        };
        let folded = counter(
            &registry,
            "waypoint_metric_series_folded_total",
            "Times a series found no place and was counted in one named overflow.",
        );
        let series = IntGauge::new("waypoint_metric_series", "Series of Istio's standard metrics.").expect("a well-formed name");
        let writers = Writers::new(settings.log_flush_interval, lines);
        let exporters = Exporters::new(control, connector, settings.span_flush_interval, origin(&settings), counters);
        let store = Arc::new(Store::new(settings.series_max, folded, &settings.histogram_bounds));
        let (logs, queues, kept) = (Arc::clone(&writers), Arc::clone(&exporters), Arc::clone(&store));
        let keepers: Vec<costs::Keeper> = vec![
            ("access_logs", Box::new(move || logs.bytes())),
            ("exporters", Box::new(move || queues.bytes())),
            ("series", Box::new(move || kept.bytes())),
        ];
        Arc::new(Self {
            node: Arc::new(Node {
                id: Arc::clone(&settings.node_id),
                cluster: Arc::clone(&settings.node_cluster),
                zone: Arc::clone(&settings.zone),
            }),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            counts: AtomicBool::new(false),
            workers: AtomicUsize::new(0),
            series: register(&registry, series),
            store,
            policies: Arc::default(),
            writers,
            exporters,
            costs: register(&registry, Costs::new(keepers)),
            mirrors,
            external,
            registry,
            settings,
        })
    }

    /// Where the process registers metrics of its own, named `waypoint_*`.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What a chain measures, from its configuration. From the first chain that counts anything, `istio_build` is exposed.
    #[must_use]
    pub fn chain(
        &self,
        name: Arc<str>,
        stats: Option<Stats>,
        access_logs: Vec<AccessLog>,
        mut tracing: Option<Tracing>,
    ) -> Arc<ChainTelemetry> {
        if let Some(tracing) = &mut tracing {
            tracing.spans_of_tries |= self.settings.spans_of_tries;
            tracing.semantic_names = self.settings.semantic_names;
        }
        let is_of_environment = |tag: &CustomTag| matches!(tag.source, TagSource::Environment { .. });
        // Otherwise the tags stay those that all chains have.
        if let Some(tracing) = tracing.as_mut().filter(|tracing| tracing.custom_tags.iter().any(is_of_environment)) {
            tracing.custom_tags = tracing.custom_tags.iter().map(|tag| self.known_tag(tag)).collect();
        }
        self.counts.fetch_or(stats.is_some(), Relaxed);
        let adds_refusals = self.settings.log_refusals;
        let access_logs = access_logs.into_iter().map(|log| if adds_refusals { log.adding_refusal() } else { log }).collect();
        let mut chain = ChainTelemetry::new(name, stats, access_logs, tracing).reaching(&self.writers, &self.exporters);
        chain.hostname.clone_from(&self.settings.hostname);
        chain.node = Some(Arc::clone(&self.node));
        chain.environment = Arc::clone(&self.settings.environment);
        Arc::new(chain)
    }

    /// The tag, with a text in the place of a variable of the environment.
    fn known_tag(&self, tag: &CustomTag) -> CustomTag {
        let TagSource::Environment { name, default } = &tag.source else { return tag.clone() };
        let value = self.settings.environment.get(&**name).map_or(&**default, String::as_str);
        CustomTag { tag: Arc::clone(&tag.tag), source: TagSource::Literal(value.into()) }
    }

    /// These chains are all there are from now on. Files and collectors that only others name give way where there are too many.
    pub fn configured<'a>(&self, chains: impl Iterator<Item = &'a ChainTelemetry> + Clone) {
        self.writers.configured(chains.clone().flat_map(ChainTelemetry::files));
        self.exporters.configured(chains.flat_map(ChainTelemetry::outboxes));
    }

    /// One worker's share; each worker has its own.
    #[must_use]
    pub fn worker(&self) -> WorkerTelemetry {
        let worker = self.workers.fetch_add(1, Relaxed);
        let TelemetrySettings { node_id, node_cluster, zone, .. } = &self.settings;
        let identity = SpanIdentity::new(Arc::clone(node_id), Arc::clone(node_cluster), Arc::clone(zone));
        WorkerTelemetry {
            metrics: WorkerMetrics::new(Arc::clone(&self.store), worker),
            policies: WorkerPolicies::new(Arc::clone(&self.policies), worker),
            logs: WorkerLogs::default(),
            spans: WorkerSpans::new(identity),
            random: fastrand::Rng::new(),
            costs: self.costs.worker(),
            mirrors: self.mirrors.clone(),
            external: self.external.clone(),
            not_sync: PhantomData,
        }
    }

    /// Says whether the process is draining, for `envoy_server_live` and `envoy_server_state`.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
    }

    /// Writes all metrics: Istio's, then the process's own. Series that were idle for too long go first: what one counted last was
    /// written at least once.
    ///
    /// # Errors
    /// Those of `out` only.
    pub fn write_exposition(&self, exposition: Exposition, out: &mut dyn io::Write) -> io::Result<()> {
        if let Some(idle_max) = self.settings.series_idle_max {
            self.store.expire(Instant::now(), idle_max);
        }
        if exposition != Exposition::Text {
            self.store.want_exemplars();
        }
        if exposition == Exposition::Protobuf {
            self.store.want_native(Instant::now());
        } else {
            self.store.rest_native(Instant::now());
        }
        let draining = self.draining.load(Relaxed);
        let gauge = |name, value| Gauge { name, labels: Vec::new(), value };
        let mut gauges = vec![
            gauge("envoy_server_live", u64::from(!draining)),
            gauge("envoy_server_state", u64::from(draining)),
            gauge("envoy_server_total_connections", self.costs.accepted()),
            gauge("envoy_server_uptime", self.started.elapsed().as_secs()),
        ];
        if self.counts.load(Relaxed) {
            let labels = vec![("component", "proxy".to_owned()), ("tag", self.settings.istio_version.to_string())];
            gauges.push(Gauge { name: "istio_build", labels, value: 1 });
        }
        metrics::write(&self.store, &gauges, exposition, out)?;
        self.policies.write(exposition, out)?;
        self.series.set(i64::try_from(self.store.series_count()).unwrap_or(i64::MAX));
        metrics::own(&self.registry.gather(), exposition, out)
    }

    /// The latest kinds of refusals, dry runs too, the newest first.
    #[must_use]
    pub fn refusals(&self) -> Vec<SeenRefusal> {
        self.policies.seen()
    }

    /// Makes access logs open their files anew: after a rotation.
    pub fn reopen_logs(&self) {
        self.writers.reopen();
    }

    /// Writes and exports what is buffered, and ends threads and tasks; waits at most `within`. What is recorded later is lost.
    ///
    /// # Cancel safety
    /// Dropping it leaves threads and tasks to end by themselves.
    pub async fn shutdown(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let writers = Arc::clone(&self.writers);
        let logs = tokio::task::spawn_blocking(move || writers.shutdown(deadline));
        self.exporters.shutdown(deadline.into()).await;
        if logs.await.is_err() {
            tracing::error!("flushing the access logs was cut short");
        }
    }
}

/// One worker's telemetry. It may move to the worker's thread, and is used by one thread at a time.
#[derive(Debug)]
pub struct WorkerTelemetry {
    /// What serving costs this worker.
    pub costs: Arc<WorkerCosts>,
    /// Copies of requests that were given up.
    pub mirrors: MirrorCounters,
    /// What came of checks.
    pub external: ExternalCounters,
    metrics: WorkerMetrics,
    policies: WorkerPolicies,
    logs: WorkerLogs,
    spans: WorkerSpans,
    random: fastrand::Rng,
    not_sync: PhantomData<Cell<()>>,
}

impl WorkerTelemetry {
    /// Decides about a request's trace and id by its headers, as [`trace::begin`].
    pub fn begin(&mut self, chain: &ChainTelemetry, headers: &http::HeaderMap, generate_request_id: bool) -> Decision {
        trace::begin(chain.tracing.as_ref(), headers, generate_request_id, &mut self.random)
    }

    /// Records a request that ended: metrics, lines, and the span if it was sampled. To be called once per request.
    pub fn record_request(&mut self, record: &mut RequestRecord) {
        record.stream.ended();
        self.metrics.record_request(record);
        self.logs.record(&record.stream.chain, record);
        self.spans.record(record);
        self.policies.note(&record.stream, record.head.as_ref());
    }

    /// Counts what policies decided of a request or connection.
    pub fn count_decisions(&mut self, decisions: &[rbac::Decision<'_>]) {
        self.policies.count(decisions);
    }

    /// Counts what an authorization service decided of a request or connection, which was asked because of this policy.
    pub fn count_external_decision(&mut self, policy: &Arc<str>, refuses: bool) {
        self.policies.count_external(policy, refuses);
    }

    /// Counts the messages of a gRPC stream since the last report: to be called every [`Stats::reporting_interval`] of a long one.
    pub fn report_messages(&mut self, record: &mut RequestRecord) {
        self.metrics.report_messages(record);
    }

    /// Counts a TCP connection's bytes since the last report: to be called every [`Stats::reporting_interval`]. Labels stay what
    /// they were at the first report.
    pub fn report_connection(&mut self, record: &mut ConnectionRecord) {
        self.metrics.report_connection(record);
    }

    /// Records a TCP connection that closed: metrics and lines. To be called once per connection.
    pub fn record_connection(&mut self, record: &mut ConnectionRecord) {
        record.stream.ended();
        self.metrics.record_connection(record);
        self.logs.record(&record.stream.chain, record);
        self.policies.note(&record.stream, None);
    }
}

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tests;
