//! What the other ends of tunnels are told of us: our network, and in `baggage` who we are where the configuration says so.
//!
//! Not for: identity, which is TLS's. Invariant: what is told follows the configuration; who we are never changes.

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue};
use model::baggage::Baggage;
use model::listener::{BaggageUse, Listeners};
use model::workload::WorkloadType;

use crate::config::NodeSettings;

/// `baggage`.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// The network that a CONNECT comes from.
pub const X_FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
/// Marks the CONNECTs of waypoints such as this.
pub const VIA: HeaderName = HeaderName::from_static("x-waypoint-via");

/// What a gateway of another network is told: requests were looked at already. Not marked as ours: a waypoint there may have our name.
pub static FROM_WAYPOINT: LazyLock<HeaderMap> =
    LazyLock::new(|| HeaderMap::from_iter([(HeaderName::from_static("x-istio-source"), HeaderValue::from_static("waypoint"))]));

/// What is told now, and what is read of others.
#[derive(Debug)]
pub struct Told {
    /// Pods, in each CONNECT.
    pub pods: HeaderMap,
    /// Whom a gateway of another network leads to, in each CONNECT.
    pub networks: HeaderMap,
    /// Clients, in each answer that opens a tunnel.
    pub clients: HeaderMap,
    /// Whether clients that discovery does not know are who their baggage says, in labels.
    pub reads_clients: bool,
    /// The same of those whom we dial.
    pub reads_pods: bool,
}

/// Who we are, and what is told of it.
#[derive(Debug)]
pub struct Introduction {
    network: Option<HeaderValue>,
    baggage: Option<HeaderValue>,
    told: ArcSwap<Told>,
}

impl Introduction {
    /// Nothing but our network is told before the configuration says so.
    #[must_use]
    pub fn new(network: &str, baggage: &Baggage<'_>) -> Arc<Self> {
        let value = |text: &str| HeaderValue::from_str(text).ok().filter(|value| !value.is_empty());
        let (network, baggage) = (value(network), value(&baggage.to_string()));
        let told = ArcSwap::from_pointee(told(network.as_ref(), None, (BaggageUse::default(), BaggageUse::default())));
        Arc::new(Self { network, baggage, told })
    }

    /// Of a node, as Istio's proxy takes it from its node's metadata.
    #[must_use]
    pub fn of(node: &NodeSettings) -> Arc<Self> {
        let text = |name: &str| node.meta.get(name).map_or("", String::as_str);
        let label = |names: &[&str]| names.iter().find_map(|name| node.labels.get(*name)).map_or("", String::as_str);
        let workload_name = text("WORKLOAD_NAME");
        let baggage = Baggage {
            workload_type: controller(text("OWNER"), workload_name),
            workload_name,
            canonical_name: label(&["service.istio.io/canonical-name"]),
            canonical_revision: label(&["service.istio.io/canonical-revision"]),
            app_name: label(&["app.kubernetes.io/name", "app"]),
            app_version: label(&["app.kubernetes.io/version", "version"]),
            namespace: &node.namespace,
            cluster: &node.cluster_id,
            instance: &node.pod_name,
            region: "",
            zone: "",
        };
        Self::new(&node.network, &baggage)
    }

    /// Tells what the listeners say is to be told.
    pub fn obey(&self, listeners: &Listeners) {
        let uses = (listeners.terminate.baggage, listeners.originate.baggage);
        self.told.store(Arc::new(told(self.network.as_ref(), self.baggage.as_ref(), uses)));
    }

    /// What is told now.
    #[must_use]
    pub fn told(&self) -> Arc<Told> {
        self.told.load_full()
    }

    /// Whether this is the name of our network.
    #[must_use]
    pub fn is_ours(&self, network: &HeaderValue) -> bool {
        self.network.as_ref() == Some(network)
    }
}

fn told(network: Option<&HeaderValue>, baggage: Option<&HeaderValue>, (clients, pods): (BaggageUse, BaggageUse)) -> Told {
    let own = |told: BaggageUse| baggage.filter(|_| told.tells).map(|value| (BAGGAGE, value.clone()));
    let network = network.map(|value| (X_FORWARDED_NETWORK, value.clone()));
    Told {
        pods: own(pods).into_iter().chain([(VIA, HeaderValue::from_static("waypoint"))]).collect(),
        networks: own(pods).into_iter().chain(network).collect(),
        clients: own(clients).into_iter().collect(),
        reads_clients: clients.reads,
        reads_pods: pods.reads,
    }
}

/// The kind of controller in `kubernetes://apis/apps/v1/namespaces/shop/deployments/waypoint`.
fn controller(owner: &str, workload_name: &str) -> Option<WorkloadType> {
    let kind = owner.strip_suffix(workload_name)?.strip_suffix("s/")?;
    WorkloadType::named(kind.rsplit('/').next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_our_controller_is_in_our_owner() {
        let owner = "kubernetes://apis/apps/v1/namespaces/shop/deployments/waypoint";
        assert_eq!(controller(owner, "waypoint"), Some(WorkloadType::Deployment));
        for (owner, name) in [("", ""), (owner, "other"), ("kubernetes://apis/v1/namespaces/shop/replicasets/a", "a")] {
            assert_eq!(controller(owner, name), None, "{owner}");
        }
    }

    #[test]
    fn baggage_is_told_to_those_whom_the_configuration_names() {
        let introduction = Introduction::new("network1", &Baggage { namespace: "shop", ..Baggage::default() });
        let before = introduction.told();
        assert!(![&before.pods, &before.networks, &before.clients].iter().any(|told| told.contains_key(BAGGAGE)));
        assert_eq!(before.networks[X_FORWARDED_NETWORK], "network1");
        let tells = BaggageUse { reads: false, tells: true };
        let now = told(None, introduction.baggage.as_ref(), (BaggageUse::default(), tells));
        assert_eq!((&now.pods[BAGGAGE], &now.networks[BAGGAGE], now.clients.len()), (&now.pods[BAGGAGE], &now.pods[BAGGAGE], 0));
        assert_eq!(now.pods[BAGGAGE], "k8s.namespace.name=shop");
    }
}
