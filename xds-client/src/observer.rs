//! How changes of configuration leave this crate: compiled, one by one, with what was not obeyed beside them.
//!
//! Not for: protobuf.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::cluster::Cluster;
use model::endpoint::EndpointSet;
use model::invalid::Invalid;
use model::listener::Listeners;
use model::transport::Secret;
use model::workload::Workload;

/// One thing that is different now.
#[derive(Clone, Debug)]
pub enum Change {
    /// Listeners, dispatch and chains, all of them; chains that did not change are the same `Arc`.
    Listeners(Arc<Listeners>),
    /// A new or changed cluster.
    ClusterUpserted(Arc<Cluster>),
    /// A cluster that is not obeyed.
    ClusterRefused(Arc<str>, Vec<Invalid>),
    /// A cluster is gone.
    ClusterRemoved(String),
    /// The endpoints under an EDS name.
    EndpointsUpserted(Arc<str>, Arc<EndpointSet>),
    /// Nobody needs this EDS name any more.
    EndpointsRemoved(String),
    /// A secret that clusters name.
    SecretUpserted(Arc<str>, Arc<Secret>),
    /// No cluster names this secret any more.
    SecretRemoved(String),
    /// A new or changed workload.
    WorkloadUpserted(Arc<Workload>),
    /// A workload is gone, by uid.
    WorkloadRemoved(String),
}

/// What is not obeyed of everything that is held at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Why objects are refused, by object.
    pub refused: BTreeMap<String, Vec<Invalid>>,
    /// Chains that serve an older version because the newest was refused.
    pub stale_chains: Vec<String>,
    /// Fields that are accepted without effect: message type and field, and in how many places they are set.
    pub listed: BTreeMap<(String, String), usize>,
}
