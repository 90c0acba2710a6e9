//! The service a request was meant for, as the cluster's metadata names it (`istio.services[0]`).

use std::sync::Arc;

/// A service. Empty texts mean that istiod did not say.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRef {
    /// Its host name, `web.shop.svc.cluster.local`.
    pub host: Arc<str>,
    /// Its name, `web`.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
}
