//! What workers read: dispatch and chains, clusters with their endpoints, workloads. Every read is one atomic load.
//!
//! Not for: changing any of it. Invariant: a reader sees whole values; load counters outlive updates of endpoints.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use model::chain::Chain;
use model::cluster::Cluster;
use model::endpoint::{Endpoint, EndpointAddress};
use model::invalid::Invalid;
use model::listener::Listeners;
use model::workload::Workload;
use telemetry::record::ChainTelemetry;

use super::breaker::{BreakerCounts, Breakers, Permit};

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

/// Requests and connections that an endpoint has at the moment, all workers together.
#[derive(Debug, Default)]
pub struct EndpointLoad {
    active: AtomicU32,
}

impl EndpointLoad {
    /// Requests in flight.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }
}

/// Counts one request in flight until it is dropped.
#[derive(Debug)]
pub struct ActiveRequest {
    load: Arc<EndpointLoad>,
    permit: Option<Permit>,
}

impl ActiveRequest {
    /// Counts one more.
    #[must_use]
    pub fn begin(load: &Arc<EndpointLoad>) -> Self {
        load.active.fetch_add(1, Ordering::Relaxed);
        Self { load: Arc::clone(load), permit: None }
    }

    /// Counts towards a circuit breaker as well, until it is dropped.
    pub fn hold(&mut self, permit: Option<Permit>) {
        self.permit = permit;
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.load.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An endpoint and its load.
#[derive(Clone, Debug)]
pub struct EndpointEntry {
    /// As EDS lists it.
    pub endpoint: Arc<Endpoint>,
    /// Kept by address across updates.
    pub load: Arc<EndpointLoad>,
}

/// The endpoints of one cluster that may be chosen: healthy ones of the best priority that has any.
#[derive(Debug, Default)]
pub struct EndpointTable {
    /// In the order of EDS.
    pub entries: Vec<EndpointEntry>,
    /// Whether all have the same weight.
    pub equal_weights: bool,
}

impl EndpointTable {
    /// From what EDS lists; loads of known addresses are kept.
    #[must_use]
    pub fn new(endpoints: &[Arc<Endpoint>], loads: &mut HashMap<EndpointAddress, Arc<EndpointLoad>>) -> Self {
        let usable = || endpoints.iter().filter(|endpoint| endpoint.healthy && endpoint.weight > 0);
        let best = usable().map(|endpoint| endpoint.priority).min();
        let entries: Vec<_> = usable()
            .filter(|endpoint| Some(endpoint.priority) == best)
            .map(|endpoint| EndpointEntry { endpoint: Arc::clone(endpoint), load: Arc::clone(loads.entry(endpoint.address).or_default()) })
            .collect();
        let known: std::collections::HashSet<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        loads.retain(|address, _| known.contains(address));
        let equal_weights = entries.windows(2).all(|pair| pair[0].endpoint.weight == pair[1].endpoint.weight);
        Self { entries, equal_weights }
    }
}

/// A cluster as workers use it.
#[derive(Debug)]
pub struct ServedCluster {
    /// As compiled.
    pub cluster: Arc<Cluster>,
    /// Its endpoints, replaced on their own.
    pub endpoints: ArcSwap<EndpointTable>,
    /// Turns for round robin, all workers together.
    pub turn: AtomicU32,
    /// What it may have at a time.
    pub breakers: Breakers,
}

/// What of a cluster outlives its updates.
#[derive(Debug, Default)]
pub(super) struct ClusterMemory {
    /// Loads of its endpoints.
    pub(super) loads: HashMap<EndpointAddress, Arc<EndpointLoad>>,
    /// What it has at the moment.
    pub(super) counts: BreakerCounts,
}

impl ServedCluster {
    /// A cluster that was not known before, with its endpoints.
    #[must_use]
    pub fn new(cluster: Arc<Cluster>, endpoints: &[Arc<Endpoint>]) -> Self {
        Self::remembering(cluster, endpoints, &mut ClusterMemory::default())
    }

    pub(super) fn remembering(cluster: Arc<Cluster>, endpoints: &[Arc<Endpoint>], memory: &mut ClusterMemory) -> Self {
        Self {
            endpoints: ArcSwap::from_pointee(EndpointTable::new(endpoints, &mut memory.loads)),
            turn: 0.into(),
            breakers: Breakers::new(&cluster, &memory.counts),
            cluster,
        }
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
}

impl Default for Published {
    fn default() -> Self {
        Self {
            generation: ArcSwapOption::empty(),
            generations: AtomicU64::new(0),
            clusters: ArcSwap::default(),
            workloads: (0..WORKLOAD_SHARDS).map(|_| ArcSwap::default()).collect(),
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
}

/// Which part of the index an address is in.
pub(super) fn shard(address: IpAddr) -> usize {
    let last = match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    };
    usize::from(last) % WORKLOAD_SHARDS
}
