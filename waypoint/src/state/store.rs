//! The owner of what istiod said. Lives on the control thread; publishes after each batch of changes.
//!
//! Not for: reading from workers. Invariants: a chain that did not change keeps its [`ServedChain`], and with it its
//! connections; what workers may still hold is freed here, never on a worker.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use model::chain::ChainKind;
use model::cluster::{Cluster, Discovery};
use model::dns::Named;
use model::endpoint::EndpointSet;
use model::invalid::Invalid;
use model::listener::Listeners;
use model::workload::Workload;
use telemetry::Telemetry;

use super::published::{ClusterEntry, ClusterMemory, Clusters, Generation, Published, ServedChain, ServedCluster, WORKLOAD_SHARDS, shard};

/// Retired generations that are kept until no worker uses them; more are freed wherever their last user is.
const RETIRED_MAX: usize = 64;

/// What readiness depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigStatus {
    /// CDS was applied once.
    pub has_clusters: bool,
    /// LDS was applied once.
    pub has_listeners: bool,
    /// Chains that are refused and have no last good version.
    pub refused_chains: Vec<String>,
}

/// Holds everything; workers see what [`Store::publish`] made of it.
#[derive(Debug)]
pub struct Store {
    published: Arc<Published>,
    telemetry: Arc<Telemetry>,
    clusters: Clusters,
    clusters_changed: bool,
    endpoints: HashMap<Arc<str>, Arc<EndpointSet>>,
    /// What the names of clusters stand for, and of which names that was said.
    resolved: HashMap<Arc<str>, (Arc<Named>, Arc<EndpointSet>)>,
    /// Clusters by the EDS name that they take their endpoints from.
    users: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    memories: HashMap<Arc<str>, Arc<ClusterMemory>>,
    workloads_by_uid: HashMap<Arc<str>, Arc<Workload>>,
    workloads: Vec<HashMap<IpAddr, Arc<Workload>>>,
    workloads_changed: HashSet<usize>,
    retired: Vec<Arc<Generation>>,
    status: ConfigStatus,
}

impl Store {
    /// An empty store that publishes to `published`; chains measure as `telemetry` lets them.
    #[must_use]
    pub fn new(published: Arc<Published>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            published,
            telemetry,
            clusters: Clusters::new(),
            clusters_changed: false,
            endpoints: HashMap::new(),
            resolved: HashMap::new(),
            users: HashMap::new(),
            memories: HashMap::new(),
            workloads_by_uid: HashMap::new(),
            workloads: (0..WORKLOAD_SHARDS).map(|_| HashMap::new()).collect(),
            workloads_changed: HashSet::new(),
            retired: Vec::new(),
            status: ConfigStatus::default(),
        }
    }

    /// What readiness depends on.
    #[must_use]
    pub fn status(&self) -> &ConfigStatus {
        &self.status
    }

    /// CDS was answered, even if with nothing.
    pub fn note_clusters(&mut self) {
        self.status.has_clusters = true;
    }

    /// New listeners: published at once.
    pub fn set_listeners(&mut self, listeners: Arc<Listeners>) {
        let current = self.published.generation();
        let served = |name: &Arc<str>, chain| {
            let known = current.as_ref().and_then(|generation| generation.chains.get(name));
            known.filter(|known| Arc::ptr_eq(&known.chain, chain)).map(Arc::clone).unwrap_or_else(|| {
                let measured =
                    self.telemetry.chain(Arc::clone(&chain.name), chain.stats.clone(), chain.access_logs.clone(), chain.tracing.clone());
                let measured = match &chain.kind {
                    ChainKind::Http(http) => measured.reading(&http.read_by_answers),
                    _ => measured,
                };
                Arc::new(ServedChain { chain: Arc::clone(chain), telemetry: measured, speaks_first: false.into() })
            })
        };
        let chains: HashMap<_, _> = listeners.chains.iter().map(|(name, chain)| (Arc::clone(name), served(name, chain))).collect();
        self.status.has_listeners = true;
        self.status.refused_chains = listeners
            .chains
            .values()
            .filter(|chain| matches!(chain.kind, ChainKind::Refused { .. }))
            .map(|chain| chain.name.to_string())
            .collect();
        self.status.refused_chains.sort();
        let logs_only = |name: &str, logs: &[model::access_log::AccessLog]| self.telemetry.chain(name.into(), None, logs.to_vec(), None);
        let generation = Arc::new(Generation {
            unmatched: logs_only("main_internal", &listeners.unmatched_access_logs),
            terminate: logs_only("connect_terminate", &listeners.terminate.access_logs).terminating_tls(),
            listeners,
            chains,
        });
        let chains = generation.chains.values().map(|served| &*served.telemetry);
        self.telemetry.configured(chains.chain([&*generation.unmatched, &*generation.terminate]));
        let old = self.published.generation.swap(Some(generation));
        // After the swap: whoever sees the new number finds the new listeners.
        self.published.generations.fetch_add(1, Ordering::Release);
        self.retired.extend(old);
        self.free_retired();
    }

    /// Frees generations that no worker uses any more.
    pub fn free_retired(&mut self) {
        self.retired.retain(|generation| Arc::strong_count(generation) > 1);
        if self.retired.len() > RETIRED_MAX {
            self.retired.remove(0);
        }
    }

    /// A new or changed cluster.
    pub fn upsert_cluster(&mut self, cluster: Arc<Cluster>) {
        self.forget_user(&cluster.name);
        if let Discovery::Eds(service) = &cluster.discovery {
            self.users.entry(Arc::clone(service)).or_default().insert(Arc::clone(&cluster.name));
        }
        let set = self.endpoints_of(&cluster);
        let memory = Arc::clone(self.memories.entry(Arc::clone(&cluster.name)).or_default());
        let served = ServedCluster::remembering(Arc::clone(&cluster), set, memory, Arc::clone(&self.published.suspicions));
        self.clusters.insert(Arc::clone(&cluster.name), ClusterEntry::Served(Arc::new(served)));
        self.clusters_changed = true;
    }

    /// A cluster that is not obeyed. One that was keeps its last good version.
    pub fn refuse_cluster(&mut self, name: &Arc<str>, reasons: &[Invalid]) {
        if !matches!(self.clusters.get(name), Some(ClusterEntry::Served(_))) {
            self.clusters.insert(Arc::clone(name), ClusterEntry::Refused(reasons.into()));
            self.clusters_changed = true;
        }
    }

    /// The clusters that are obeyed.
    pub fn clusters(&self) -> impl Iterator<Item = &ServedCluster> {
        self.clusters.values().filter_map(|entry| match entry {
            ClusterEntry::Served(served) => Some(&**served),
            ClusterEntry::Refused(_) => None,
        })
    }

    /// A cluster is gone.
    pub fn remove_cluster(&mut self, name: &str) {
        self.forget_user(name);
        self.clusters_changed |= self.clusters.remove(name).is_some();
        self.resolved.remove(name);
        self.memories.remove(name);
    }

    /// A cluster takes its endpoints from nowhere any more.
    fn forget_user(&mut self, name: &str) {
        let Some(ClusterEntry::Served(served)) = self.clusters.get(name) else { return };
        let Discovery::Eds(service) = &served.cluster.discovery else { return };
        if let Some(users) = self.users.get_mut(service) {
            users.remove(name);
            if users.is_empty() {
                self.users.remove(service);
            }
        }
    }

    fn endpoints_of(&self, cluster: &Cluster) -> Arc<EndpointSet> {
        match &cluster.discovery {
            Discovery::Eds(service) => self.endpoints.get(service).cloned().unwrap_or_default(),
            Discovery::Static(set) => Arc::clone(set),
            Discovery::ByHost(_) | Discovery::Passthrough(_) => Arc::default(),
            // By value: a cluster that is sent again keeps what was found.
            Discovery::Named(named) => match self.resolved.get(&cluster.name) {
                Some((of, set)) if of == named => Arc::clone(set),
                _ => Arc::new(named.resolved(&[])),
            },
        }
    }

    /// The endpoints of all clusters that take them from this EDS name: published at once.
    pub fn set_endpoints(&mut self, service: &Arc<str>, set: Arc<EndpointSet>) {
        self.endpoints.insert(Arc::clone(service), set);
        self.refresh_endpoints(service);
    }

    /// What the names of a cluster stand for: published at once, unless the cluster has other names meanwhile.
    pub fn set_resolved(&mut self, cluster: &Arc<str>, named: &Arc<Named>, set: EndpointSet) {
        let Some(ClusterEntry::Served(served)) = self.clusters.get(cluster) else { return };
        if !matches!(&served.cluster.discovery, Discovery::Named(current) if current == named) {
            return;
        }
        let served = Arc::clone(served);
        self.resolved.insert(Arc::clone(cluster), (Arc::clone(named), Arc::new(set)));
        self.refresh(&served);
    }

    /// Nobody asks for this EDS name any more.
    pub fn remove_endpoints(&mut self, service: &str) {
        if let Some((name, _)) = self.endpoints.remove_entry(service) {
            self.refresh_endpoints(&name);
        }
    }

    fn refresh_endpoints(&mut self, service: &Arc<str>) {
        let users = self.users.get(service).into_iter().flatten();
        let users: Vec<_> = users
            .filter_map(|name| match self.clusters.get(name) {
                Some(ClusterEntry::Served(served)) => Some(Arc::clone(served)),
                _ => None,
            })
            .collect();
        for served in users {
            self.refresh(&served);
        }
    }

    /// Publishes what a cluster's endpoints are now.
    fn refresh(&mut self, served: &ServedCluster) {
        served.set_endpoints(self.endpoints_of(&served.cluster));
    }

    /// A new or changed workload.
    pub fn upsert_workload(&mut self, workload: Arc<Workload>) {
        if let Some(old) = self.workloads_by_uid.insert(Arc::clone(&workload.uid), Arc::clone(&workload)) {
            self.forget_addresses(&old);
        }
        for address in &workload.addresses {
            let part = shard(*address);
            self.workloads[part].insert(*address, Arc::clone(&workload));
            self.workloads_changed.insert(part);
        }
    }

    /// A workload is gone; its addresses that another has taken over stay. Returns those that nobody has now.
    pub fn remove_workload(&mut self, uid: &str) -> Vec<IpAddr> {
        let Some(old) = self.workloads_by_uid.remove(uid) else { return Vec::new() };
        self.forget_addresses(&old);
        old.addresses.iter().copied().filter(|address| !self.workloads[shard(*address)].contains_key(address)).collect()
    }

    fn forget_addresses(&mut self, old: &Workload) {
        for address in &old.addresses {
            let part = shard(*address);
            if self.workloads[part].get(address).is_some_and(|holder| holder.uid == old.uid) {
                self.workloads[part].remove(address);
                self.workloads_changed.insert(part);
            }
        }
    }

    /// Makes clusters and workloads changed since the last time visible to workers.
    pub fn publish(&mut self) {
        if std::mem::take(&mut self.clusters_changed) {
            self.published.clusters.store(Arc::new(self.clusters.clone()));
        }
        for part in self.workloads_changed.drain() {
            self.published.workloads[part].store(Arc::new(self.workloads[part].clone()));
        }
    }
}

#[cfg(test)]
mod tests;
