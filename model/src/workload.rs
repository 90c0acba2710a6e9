//! Workloads of the mesh as workload discovery describes them: what labels, logs and spans say of a peer.
//!
//! Not for: choosing endpoints. Source: the defaults of Istio's workload discovery (`istio.workload.Workload`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;

/// What kind of controller runs the workload; printed in lower case by baggage and as given in tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkloadType {
    /// A Deployment, the default.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    /// By the name that [`Self::as_str`] gives it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Deployment, Self::CronJob, Self::Pod, Self::Job].into_iter().find(|kind| kind.as_str() == name)
    }

    /// As Istio's peer metadata prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// One workload. Empty texts mean that istiod did not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// The key under which discovery replaces and removes it, `Kubernetes//Pod/shop/web-v1-1`.
    pub uid: Arc<str>,
    /// The pod's name.
    pub name: Box<str>,
    /// Its namespace; `default` when discovery left it out.
    pub namespace: Box<str>,
    /// The controller's name.
    pub workload_name: Box<str>,
    /// The controller's kind.
    pub workload_type: WorkloadType,
    /// `service.istio.io/canonical-name`; also the `app` label of metrics.
    pub canonical_name: Box<str>,
    /// `service.istio.io/canonical-revision`; also the `version` label of metrics.
    pub canonical_revision: Box<str>,
    /// The Kubernetes cluster it runs in.
    pub cluster_id: Box<str>,
    /// The network it is on; empty is the default one.
    pub network: Box<str>,
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, built from discovery.
    pub identity: SpiffeId,
    /// Region of its node.
    pub region: Box<str>,
    /// Zone of its node.
    pub zone: Box<str>,
    /// Its addresses, IPv4 as IPv4.
    pub addresses: Vec<IpAddr>,
}
