//! Endpoints of a cluster, as EDS lists them.
//!
//! Not for: their load or health as we see it, which lives beside and outlives updates.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::authority::Authority;
use crate::invalid::Invalid;
use crate::subset::Labels;
use crate::transport::SocketLabels;

/// The port on which ambient pods take HBONE.
pub const HBONE_PORT: u16 = 15008;
/// Envoy's overprovisioning where EDS does not say.
pub const OVERPROVISIONING_PERCENT_DEFAULT: u32 = 140;

/// Addresses of one endpoint that are tried.
pub const ADDRESSES_MAX: usize = 8;

/// How an endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// Over HBONE: a CONNECT for `target` to `tunnel`.
    Hbone {
        /// Who terminates the tunnel: the pod's own address at [`HBONE_PORT`].
        tunnel: SocketAddr,
        /// What is asked of it.
        target: SocketAddr,
    },
    /// Over HBONE in HBONE, for a service in another network: its gateway.
    Gateway(SocketAddr),
    /// Plain TCP.
    Plain(SocketAddr),
}

impl EndpointAddress {
    /// The application's address; of another network its gateway's.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        match self {
            Self::Hbone { target, .. } | Self::Gateway(target) | Self::Plain(target) => *target,
        }
    }
}

/// Whether an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Healthy,
    /// For what healthy ones cannot take.
    Degraded,
    /// Only where too few are well (`UNHEALTHY`, `DRAINING`).
    Unhealthy,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where.
    pub address: EndpointAddress,
    /// Of a plain one: where it is as well, for when the first does not answer; less than [`ADDRESSES_MAX`].
    pub others: Box<[SocketAddr]>,
    /// Behind a gateway: the service that is asked for there.
    pub remote: Option<Authority>,
    /// What its transport is chosen by.
    pub socket_labels: SocketLabels,
    /// What `%UPSTREAM_HOST%` prints: `envoy://connect_originate/10.244.1.1:8080`, or the address.
    pub host: Arc<str>,
    /// What it is known by where requests are hashed; none: its address.
    pub hash_key: Option<Arc<str>>,
    /// What its cluster may be divided by.
    pub labels: Labels,
    /// Its share.
    pub weight: u32,
    /// Lower is preferred.
    pub priority: u32,
    /// As EDS sees it.
    pub health: Health,
    /// Its locality's position in what EDS sent.
    pub locality: usize,
}

impl Endpoint {
    /// One of which nothing is known but where it is.
    #[must_use]
    pub fn at(address: EndpointAddress) -> Self {
        let host = address.target().to_string().into();
        Self {
            address,
            others: Box::default(),
            remote: None,
            hash_key: None,
            labels: Labels::default(),
            socket_labels: SocketLabels::default(),
            host,
            weight: 1,
            priority: 0,
            health: Health::Healthy,
            locality: 0,
        }
    }
}

/// All endpoints of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSet {
    /// In the order in which they were sent.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Weights of localities, in the order in which they were sent; zero where there is none.
    pub locality_weights: Vec<u32>,
    /// How much more than their share endpoints can take, in percent of it.
    pub overprovisioning_percent: u32,
    /// The health of a priority is that of its weights, not of its endpoints.
    pub weighted_priority_health: bool,
    /// Those that were left out, and why.
    pub refused: Vec<Invalid>,
}

impl Default for EndpointSet {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            locality_weights: Vec::new(),
            overprovisioning_percent: OVERPROVISIONING_PERCENT_DEFAULT,
            weighted_priority_health: false,
            refused: Vec::new(),
        }
    }
}
