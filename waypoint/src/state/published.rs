//! What workers read: dispatch and chains, clusters with their endpoints, workloads. Every read is one atomic load.
//!
//! Not for: changing any of it. Invariant: a reader sees whole values; load counters outlive updates of endpoints.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use model::chain::Chain;
use model::cluster::{Cluster, Discovery};
use model::endpoint::{EndpointAddress, EndpointSet};
use model::invalid::Invalid;
use model::listener::Listeners;
use model::workload::Workload;
use parking_lot::Mutex;
use telemetry::record::ChainTelemetry;
use tokio::sync::Notify;

use super::breaker::{BreakerCounts, Breakers};
use super::by_host::HostTable;
use super::health::{EndpointState, Verdict};
use super::jwks::RemoteKeySets;
use super::outlier;
use super::subsets::EndpointTables;
use super::table::EndpointEntry;

/// Parts of the workload index; an update copies one of them.
pub(super) const WORKLOAD_SHARDS: usize = 64;

/// A chain, and what it measures.
#[derive(Debug)]
pub struct ServedChain {
    /// What it does.
    pub chain: Arc<Chain>,
    /// What it counts, logs and traces.
    pub telemetry: Arc<ChainTelemetry>,
    /// Of a TCP chain: an endpoint has spoken before its client, so that the next one is dialled sooner.
    pub speaks_first: AtomicBool,
}

/// One generation of listeners.
#[derive(Debug)]
pub struct Generation {
    /// As compiled.
    pub listeners: Arc<Listeners>,
    /// By name; the same `Arc` as long as the chain did not change.
    pub chains: HashMap<Arc<str>, Arc<ServedChain>>,
    /// For connections that no chain matches.
    pub unmatched: Arc<ChainTelemetry>,
    /// For CONNECTs that are refused.
    pub terminate: Arc<ChainTelemetry>,
}

/// A cluster as workers use it.
#[derive(Debug)]
pub struct ServedCluster {
    /// As compiled.
    pub cluster: Arc<Cluster>,
    /// Its endpoints, replaced on their own.
    pub endpoints: ArcSwap<EndpointTables>,
    /// What it may have at a time.
    pub breakers: Breakers,
    /// Its hosts, where requests name them.
    pub by_host: Option<Arc<HostTable>>,
    memory: Arc<ClusterMemory>,
    suspicions: Arc<Notify>,
}

/// What of a cluster outlives its updates.
#[derive(Debug, Default)]
pub(super) struct ClusterMemory {
    counts: BreakerCounts,
    by_host: Mutex<Option<Arc<HostTable>>>,
    /// Of the control thread.
    hosts: Mutex<Hosts>,
}

#[derive(Debug, Default)]
struct Hosts {
    set: Arc<EndpointSet>,
    states: HashMap<EndpointAddress, Arc<EndpointState>>,
    /// When it is next looked who comes back.
    look_at: Option<Instant>,
}

impl ClusterMemory {
    /// The hosts that requests name; those before, unless they are looked up in another way now.
    fn hosts_of(&self, cluster: &Cluster) -> Option<Arc<HostTable>> {
        let mut kept = self.by_host.lock();
        let Discovery::ByHost(rules) = &cluster.discovery else {
            *kept = None;
            return None;
        };
        let table = kept.take().filter(|table| table.rules == **rules).unwrap_or_else(|| Arc::new(HostTable::new((**rules).clone())));
        *kept = Some(Arc::clone(&table));
        Some(table)
    }
}

impl ServedCluster {
    /// A cluster that was not known before, with its endpoints.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, set: Arc<EndpointSet>) -> Self {
        Self::remembering(cluster, set, Arc::default(), Arc::default())
    }

    pub(super) fn remembering(cluster: Arc<Cluster>, set: Arc<EndpointSet>, memory: Arc<ClusterMemory>, suspicions: Arc<Notify>) -> Self {
        let breakers = Breakers::new(&cluster, &memory.counts);
        let by_host = memory.hosts_of(&cluster);
        let served = Self { endpoints: ArcSwap::default(), breakers, by_host, memory, suspicions, cluster };
        if served.cluster.outlier.is_none() {
            served.states(&served.memory.hosts.lock()).iter().for_each(|state| state.set_ejected(false));
        }
        // It has to be looked after from now on.
        served.suspicions.notify_one();
        served.set_endpoints(set);
        served
    }

    /// New endpoints; what is known of those that were there before stays known.
    pub(super) fn set_endpoints(&self, set: Arc<EndpointSet>) {
        let mut hosts = self.memory.hosts.lock();
        let listed: HashSet<_> = set.endpoints.iter().map(|endpoint| endpoint.address).collect();
        hosts.states.retain(|address, _| listed.contains(address));
        hosts.set = set;
        self.rebuild(&mut hosts);
    }

    fn rebuild(&self, hosts: &mut Hosts) {
        let Hosts { set, states, .. } = hosts;
        let tables = EndpointTables::new(&self.cluster, set, |endpoint| Arc::clone(states.entry(endpoint.address).or_default()));
        let before = self.endpoints.load();
        tables.resume(&before);
        if tables.is_cut() && !before.is_cut() {
            tracing::warn!(cluster = %self.cluster.name, "has too many subsets: requests for some of them get no endpoint");
        }
        self.endpoints.store(Arc::new(tables));
    }

    /// Counts how a try went. Does nothing where nobody is left out for it.
    pub fn note(&self, entry: &EndpointEntry, verdict: Verdict) {
        if let Some(rules) = &self.cluster.outlier
            && entry.state.note(verdict, rules)
        {
            self.suspicions.notify_one();
        }
    }

    /// Ejects who is suspected and takes back whose time has passed; returns when it has to be looked again.
    pub(super) fn judge(&self, now: Instant, draw: &mut impl FnMut() -> u64) -> Option<Instant> {
        let rules = self.cluster.outlier.as_ref()?;
        let mut hosts = self.memory.hosts.lock();
        let states = self.states(&hosts);
        let mut is_changed = outlier::eject(rules, &states, now, draw);
        let look_at = *hosts.look_at.get_or_insert(now + rules.interval);
        if now >= look_at {
            is_changed |= outlier::take_back(rules, &states, now);
            is_changed |= outlier::compare(rules, &states, now, draw);
            hosts.look_at = Some(now + rules.interval);
        }
        if is_changed {
            let ejected: Vec<_> =
                hosts.states.iter().filter(|(_, state)| state.is_ejected()).map(|(address, _)| address.target()).collect();
            tracing::info!(cluster = %self.cluster.name, ?ejected, "endpoints are left out because of how they answer, or taken back");
            self.rebuild(&mut hosts);
        }
        hosts.look_at
    }

    fn states(&self, hosts: &Hosts) -> Vec<Arc<EndpointState>> {
        let named = self.by_host.iter().flat_map(|table| table.states());
        hosts.states.values().map(Arc::clone).chain(named).collect()
    }

    /// All endpoints, those that are not chosen too.
    #[must_use]
    pub fn hosts(&self) -> Vec<EndpointEntry> {
        let hosts = self.memory.hosts.lock();
        let known = hosts.set.endpoints.iter().map(|endpoint| {
            // One of weight 0 has none.
            let state = hosts.states.get(&endpoint.address).map(Arc::clone).unwrap_or_default();
            EndpointEntry { endpoint: Arc::clone(endpoint), state }
        });
        known.chain(self.by_host.iter().flat_map(|table| table.entries())).collect()
    }
}

/// A cluster's entry.
#[derive(Clone, Debug)]
pub enum ClusterEntry {
    /// Obeyed.
    Served(Arc<ServedCluster>),
    /// Requests for it get 503 `config_rejected`.
    Refused(Arc<[Invalid]>),
}

/// All clusters by name.
pub type Clusters = HashMap<Arc<str>, ClusterEntry>;

type WorkloadShard = HashMap<IpAddr, Arc<Workload>>;

/// What workers read.
#[derive(Debug)]
pub struct Published {
    pub(super) generation: ArcSwapOption<Generation>,
    /// Counts generations, so that a tunnel sees cheaply that there is a newer one.
    pub(super) generations: AtomicU64,
    pub(super) clusters: ArcSwap<Clusters>,
    pub(super) workloads: Vec<ArcSwap<WorkloadShard>>,
    /// Keys of tokens that are fetched.
    pub key_sets: RemoteKeySets,
    /// An endpoint is suspected, or a cluster is new.
    pub(super) suspicions: Arc<Notify>,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            generation: ArcSwapOption::empty(),
            generations: AtomicU64::new(0),
            clusters: ArcSwap::default(),
            workloads: (0..WORKLOAD_SHARDS).map(|_| ArcSwap::default()).collect(),
            key_sets: RemoteKeySets::default(),
            suspicions: Arc::default(),
        }
    }
}

impl Published {
    /// The current listeners; none before istiod has sent any.
    #[must_use]
    pub fn generation(&self) -> Option<Arc<Generation>> {
        self.generation.load_full()
    }

    /// The number of the current listeners; it changes with them.
    #[must_use]
    pub fn generation_number(&self) -> u64 {
        self.generations.load(Ordering::Acquire)
    }

    /// A cluster by name.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<ClusterEntry> {
        self.clusters.load().get(name).cloned()
    }

    /// All clusters.
    #[must_use]
    pub fn clusters(&self) -> Arc<Clusters> {
        self.clusters.load_full()
    }

    /// The workload at an address.
    #[must_use]
    pub fn workload(&self, address: IpAddr) -> Option<Arc<Workload>> {
        let address = address.to_canonical();
        self.workloads[shard(address)].load().get(&address).cloned()
    }

    /// The workload at an endpoint; none behind a gateway, whose own address it has.
    #[must_use]
    pub fn workload_at(&self, endpoint: &EndpointAddress) -> Option<Arc<Workload>> {
        match endpoint {
            EndpointAddress::Gateway(_) => None,
            address => self.workload(address.target().ip()),
        }
    }
}

/// Which part of the index an address is in.
pub(super) fn shard(address: IpAddr) -> usize {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    usize::from(last) % WORKLOAD_SHARDS
}
