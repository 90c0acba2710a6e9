//! Clusters: named groups of endpoints and how they are spoken to.
//!
//! Not for: the endpoints themselves, which change on their own.

use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::EndpointSet;
use crate::service::ServiceRef;

/// Envoy's connect timeout when istiod names none.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The less busy one of two drawn at random.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

/// What is spoken to the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2.
    Http2,
    /// What the client speaks.
    Downstream,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// By EDS, under this name.
    Eds(Arc<str>),
    /// Given with the cluster.
    Static(Arc<EndpointSet>),
}

/// Circuit breakers; [`u32::MAX`] is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: u32,
    /// Requests waiting for a connection.
    pub pending_requests_max: u32,
    /// Requests at a time.
    pub requests_max: u32,
    /// Retries at a time.
    pub retries_max: u32,
}

impl Limits {
    /// What istiod sends unless a DestinationRule says otherwise.
    pub const NONE: Self =
        Self { connections_max: u32::MAX, pending_requests_max: u32::MAX, requests_max: u32::MAX, retries_max: u32::MAX };
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name.
    pub name: Arc<str>,
    /// What `%UPSTREAM_CLUSTER%` prints: `alt_stat_name`, else the name.
    pub stat_name: Arc<str>,
    /// `istio.services[0]` of its metadata.
    pub service: Option<Arc<ServiceRef>>,
    /// Where its endpoints come from.
    pub discovery: Discovery,
    /// How one is chosen.
    pub balance: Balance,
    /// What is spoken to it.
    pub protocol: UpstreamProtocol,
    /// Covers TCP, and TLS and CONNECT if there are any.
    pub connect_timeout: Duration,
    /// Circuit breakers.
    pub limits: Limits,
    /// How long an idle connection is kept; none is as long as both sides like.
    pub idle_timeout: Option<Duration>,
}
