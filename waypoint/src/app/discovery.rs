//! What istiod says, on its way from the stream to the workers.
//!
//! Not for: translating it (`xds_client`) or holding it (`state`).

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use model::chain::{ChainKind, OnRefusedPolicy, SkippedFilters};
use model::dns::Named;
use model::endpoint::{EndpointSet, Health};
use model::jwt::{JwtAuthn, RemoteKeys};
use model::listener::Listeners;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};
use telemetry::Telemetry;
use tokio::sync::{Notify, broadcast, watch};
use xds_client::ads::node::{MetadataInputs, NodeSettings, metadata};
use xds_client::ads::{AdsObserver, AdsStatus, Applied, ResourceType, Update, Verdict};
use xds_client::apply::{Applier, Outcome};
use xds_client::observer::{Change, Report};

use super::explain;
use super::jwks::JwksKeeper;
use super::vitals::Vitals;
use crate::admin;
use crate::admin::ready::Readiness;
use crate::config;
use crate::identity::Identities;
use crate::state::published::{ClusterEntry, Published};
use crate::state::store::Store;
use crate::state::table::EndpointEntry;
use crate::tls::secrets::{Keeper, Secrets};
use crate::tls::verify::PeerMatcher;
use crate::upstream::dns::{DnsKeeper, Resolver};
use crate::upstream::introduction::Introduction;

/// What discovery needs of the process.
pub(super) struct DiscoveryStart {
    pub(super) published: Arc<Published>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) identities: Arc<Identities>,
    pub(super) accepted: Arc<ArcSwap<PeerMatcher>>,
    pub(super) introduction: Arc<Introduction>,
    pub(super) addresses: watch::Sender<Vec<SocketAddr>>,
    pub(super) flush: broadcast::Sender<IpAddr>,
    pub(super) secrets: Arc<Secrets>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) on_refused_policy: OnRefusedPolicy,
    pub(super) skipped_filters: SkippedFilters,
    pub(super) key_sets: JwksKeeper,
}

/// What is not obeyed, as metrics.
pub(super) struct Gauges {
    unsupported: IntGaugeVec,
    stale: GaugeVec,
    stale_since: Mutex<HashMap<String, Instant>>,
    vitals: Vitals,
}

impl Gauges {
    fn new(registry: &Registry, vitals: Vitals) -> Self {
        let unsupported = Opts::new("waypoint_unsupported_fields", "Places where a field is set that is accepted without effect.");
        let unsupported = IntGaugeVec::new(unsupported, &["type", "field"]).expect("a well-formed name");
        let stale =
            Opts::new("waypoint_chain_stale_seconds", "How long a chain has served an older version because newer ones were refused.");
        let stale = GaugeVec::new(stale, &["chain"]).expect("a well-formed name");
        for collector in [Box::new(unsupported.clone()) as Box<dyn Collector>, Box::new(stale.clone())] {
            registry.register(collector).expect("each name is registered once");
        }
        Self { unsupported, stale, stale_since: Mutex::default(), vitals }
    }

    fn note(&self, report: &Report) {
        self.unsupported.reset();
        for ((of, field), count) in &report.listed {
            self.unsupported.with_label_values(&[of, field]).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        let mut since = self.stale_since.lock();
        since.retain(|chain, _| report.stale_chains.contains(chain));
        for chain in &report.stale_chains {
            since.entry(chain.clone()).or_insert_with(Instant::now);
        }
    }

    /// Brings ages up to now.
    pub(super) fn refresh(&self) {
        self.stale.reset();
        for (chain, since) in self.stale_since.lock().iter() {
            self.stale.with_label_values(&[chain]).set(since.elapsed().as_secs_f64());
        }
        self.vitals.refresh();
    }
}

/// Applies what istiod sends.
pub(super) struct Discovery {
    start: DiscoveryStart,
    applier: Applier,
    store: Arc<Mutex<Store>>,
    names: DnsKeeper,
    keeper: Arc<Mutex<Keeper>>,
    report: Arc<Mutex<Report>>,
    applied: Arc<Notify>,
    gauges: Arc<Gauges>,
}

impl Discovery {
    pub(super) fn new(start: DiscoveryStart) -> Self {
        let store = Arc::new(Mutex::new(Store::new(Arc::clone(&start.published), Arc::clone(&start.telemetry))));
        let (found, on_found) = (Arc::clone(&store), start.key_sets.on_applied());
        let on_resolved = move |cluster: &Arc<str>, named: &Arc<Named>, set: EndpointSet| {
            found.lock().set_resolved(cluster, named, set);
            on_found();
        };
        let names = DnsKeeper::new(Arc::clone(&start.resolver), Arc::new(on_resolved));
        let registry = start.telemetry.registry();
        let vitals = Vitals::new(registry, Arc::clone(&start.published), Arc::clone(&start.identities));
        let gauges = Arc::new(Gauges::new(registry, vitals));
        let keeper = Arc::new(Mutex::new(Keeper::new(Arc::clone(&start.secrets))));
        let applier = Applier::new(start.on_refused_policy).skipping(start.skipped_filters.clone());
        Self { start, applier, store, names, keeper, report: Arc::default(), applied: Arc::default(), gauges }
    }

    /// What is not obeyed, as metrics; to be refreshed before they are read.
    pub(super) fn gauges(&self) -> Arc<Gauges> {
        Arc::clone(&self.gauges)
    }

    /// Told after each response that was applied.
    pub(super) fn applied(&self) -> Arc<Notify> {
        Arc::clone(&self.applied)
    }

    /// What reads certificates for applications.
    pub(super) fn keeper(&self) -> Arc<Mutex<Keeper>> {
        Arc::clone(&self.keeper)
    }

    /// What is not obeyed, as JSON.
    pub(super) fn unsupported(&self) -> Box<dyn Fn() -> String + Send + Sync> {
        let report = Arc::clone(&self.report);
        Box::new(move || {
            let report = report.lock();
            let refused = report.refused.iter().map(|(name, reasons)| {
                let reasons: Vec<_> = reasons.iter().map(|one| serde_json::json!({"path": one.path, "reason": one.reason})).collect();
                serde_json::json!({"object": name, "reasons": reasons})
            });
            let listed = report.listed.iter().map(|((of, field), count)| serde_json::json!({"type": of, "field": field, "count": count}));
            let all = serde_json::json!({"refused": refused.collect::<Vec<_>>(), "stale_chains": report.stale_chains, "listed": listed.collect::<Vec<_>>()});
            format!("{all:#}\n")
        })
    }

    /// Clusters and endpoints, as text.
    pub(super) fn clusters(&self) -> Box<dyn Fn() -> String + Send + Sync> {
        let published = Arc::clone(&self.start.published);
        Box::new(move || {
            let clusters = published.clusters();
            let mut names: Vec<_> = clusters.keys().collect();
            names.sort();
            let mut text = String::new();
            for name in names {
                let line = match &clusters[name] {
                    ClusterEntry::Refused(reasons) => {
                        writeln!(text, "{name}::refused::{}", reasons.first().map_or(String::new(), ToString::to_string))
                    }
                    ClusterEntry::Served(served) => served.hosts().iter().try_for_each(|entry| {
                        let (endpoint, active) = (&entry.endpoint, entry.state.active());
                        let (host, weight, health) = (&endpoint.host, endpoint.weight, health(entry));
                        writeln!(text, "{name}::{host}::weight::{weight}::active::{active}::{health}")
                    }),
                };
                line.expect("writing to a text cannot fail");
            }
            text
        })
    }

    /// What would become of a request.
    pub(super) fn explain(&self) -> admin::Ask {
        let published = Arc::clone(&self.start.published);
        Box::new(move |query| explain::page(&published, query))
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Listeners(listeners) => {
                if let Some(prefixes) = &listeners.terminate.client_id_prefixes {
                    self.start.identities.accept(prefixes);
                    let accepted = if prefixes.is_empty() { PeerMatcher::any() } else { PeerMatcher::new(prefixes.clone(), Vec::new()) };
                    self.start.accepted.store(Arc::new(accepted));
                }
                self.start.introduction.obey(&listeners);
                let addresses = listeners.terminate.addresses.clone();
                let remote = remote_keys(&listeners);
                // No chain is ever without the sets that it names.
                self.start.published.key_sets.add(&remote);
                self.store.lock().set_listeners(listeners);
                self.start.published.key_sets.retain(&remote);
                self.start.key_sets.want(&remote);
                self.listen(addresses);
            }
            Change::ClusterUpserted(cluster) => self.store.lock().upsert_cluster(cluster),
            Change::ClusterRefused(name, reasons) => self.store.lock().refuse_cluster(&name, &reasons),
            Change::ClusterRemoved(name) => self.store.lock().remove_cluster(&name),
            Change::EndpointsUpserted(name, set) => self.store.lock().set_endpoints(&name, set),
            Change::EndpointsRemoved(name) => self.store.lock().remove_endpoints(&name),
            Change::SecretUpserted(name, secret) => self.keeper.lock().hold(&name, secret),
            Change::SecretRemoved(name) => self.keeper.lock().forget(&name),
            Change::WorkloadUpserted(workload) => self.store.lock().upsert_workload(workload),
            Change::WorkloadRemoved(uid) => {
                for address in self.store.lock().remove_workload(&uid) {
                    // Nobody listens while there are no workers.
                    let _ = self.start.flush.send(address);
                }
            }
        }
    }

    /// Addresses are bound once: istiod does not change them while a pod lives.
    fn listen(&self, addresses: Vec<SocketAddr>) {
        self.start.addresses.send_if_modified(|current| {
            if current.is_empty() {
                *current = addresses;
                return true;
            }
            if *current != addresses {
                tracing::warn!(?addresses, "listening on other addresses needs a restart");
            }
            false
        });
    }
}

/// The key sets that chains name, each once.
fn remote_keys(listeners: &Listeners) -> Vec<Arc<RemoteKeys>> {
    let authn = listeners.chains.values().filter_map(|chain| match &chain.kind {
        ChainKind::Http(http) => http.jwt.as_deref(),
        _ => None,
    });
    let mut seen = HashSet::new();
    authn.flat_map(JwtAuthn::remote_keys).filter(|remote| seen.insert(Arc::clone(remote))).cloned().collect()
}

/// Why an endpoint is chosen or not.
pub(super) fn health(entry: &EndpointEntry) -> &'static str {
    match entry.endpoint.health {
        _ if entry.state.is_ejected() => "ejected",
        Health::Healthy => "healthy",
        Health::Degraded => "degraded",
        Health::Unhealthy => "unhealthy",
    }
}

impl AdsObserver for Discovery {
    fn apply(&mut self, update: Update) -> Applied {
        let (of, count, removed) = (update.of, update.resources.len(), update.removed.len());
        let applier = &mut self.applier;
        let Outcome { applied, changes } = on_a_thread_of_its_own(|| applier.apply(update));
        let changed = changes.len();
        if of == ResourceType::Cluster {
            self.store.lock().note_clusters();
        }
        for change in changes {
            self.change(change);
        }
        if of == ResourceType::Cluster {
            // Before anybody dials by them.
            let store = self.store.lock();
            self.keeper.lock().want(store.clusters().flat_map(|served| served.cluster.sockets.tls()));
            self.names.want(store.clusters());
        }
        self.store.lock().publish();
        self.start.key_sets.on_applied()();
        self.store.lock().free_retired();
        self.start.readiness.config(self.store.lock().status());
        let report = self.applier.report();
        self.gauges.note(&report);
        self.gauges.vitals.applied(of, &applied.verdict);
        *self.report.lock() = report;
        self.applied.notify_one();
        match &applied.verdict {
            Verdict::Ack => tracing::debug!(?of, count, removed, changed, "applied"),
            Verdict::Nack(reason) => tracing::warn!(?of, count, removed, changed, reason, "refused in part"),
        }
        applied
    }

    fn status(&mut self, status: AdsStatus) {
        self.gauges.vitals.connected(matches!(status, AdsStatus::Connected));
        match status {
            AdsStatus::Connecting => tracing::debug!("calling istiod"),
            AdsStatus::Connected => {
                tracing::info!("istiod answers");
                self.start.readiness.discovery(None);
            }
            AdsStatus::Disconnected { reason, retry_in } => {
                tracing::warn!(%reason, ?retry_in, "no stream from istiod; what was applied stays");
                self.start.readiness.discovery(Some(reason.to_string()));
            }
        }
    }
}

/// Work that needs much memory for a moment: what the allocator keeps for a thread goes back when the thread ends.
fn on_a_thread_of_its_own<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let mut work = Some(work);
    let done = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("apply".to_owned()).spawn_scoped(scope, || work.take().map(|work| work()));
        thread.ok().and_then(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    done.unwrap_or_else(|| {
        // No thread to be had: here, then.
        let work = work.take().expect("the thread that would have taken it was not made");
        work()
    })
}

/// Who we are to istiod.
pub(super) fn node_settings(node: &config::NodeSettings) -> NodeSettings {
    let inputs = MetadataInputs {
        pairs: node.meta.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        objects: vec![node.meta_json.clone()],
        labels: node.labels.clone(),
        annotations: node.annotations.clone(),
        proxy_config: Some(node.proxy_config.clone()).filter(|config| !config.is_null()),
        instance_ips: node.instance_ips.clone(),
        namespace: node.namespace.clone(),
        service_account: node.service_account.clone(),
        istio_version: node.istio_version.clone(),
    };
    NodeSettings {
        ip: node.instance_ip,
        pod_name: node.pod_name.clone(),
        namespace: node.namespace.clone(),
        dns_domain: node.dns_domain.clone(),
        service_cluster: node.service_cluster.clone(),
        metadata: metadata(inputs),
    }
}
