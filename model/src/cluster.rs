//! Clusters: named groups of endpoints and how they are spoken to.
//!
//! Not for: the endpoints themselves, which change on their own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::dns::{ByHost, Named};
use crate::endpoint::{Endpoint, EndpointAddress, EndpointSet, HBONE_PORT};
use crate::outlier::OutlierDetection;
use crate::service::ServiceRef;
use crate::subset::SubsetRules;
use crate::transport::Sockets;

/// Envoy's connect timeout when istiod names none.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Envoy's panic threshold where istiod names none.
pub const PANIC_THRESHOLD_PERCENT_DEFAULT: f64 = 50.0;
/// How many endpoints least request compares where istiod does not say.
pub const LEAST_REQUEST_CHOICES_DEFAULT: u32 = 2;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The least busy one of so many drawn at random.
    LeastRequest {
        /// How many.
        choices: u32,
    },
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// By the request's hash, on a ring of points.
    RingHash {
        /// Points at least.
        size_min: u32,
        /// Points at most.
        size_max: u32,
    },
    /// By the request's hash, in a table.
    Maglev {
        /// Its size, a prime.
        size: u32,
    },
}

impl Balance {
    /// Whether it is the request's hash that chooses.
    #[must_use]
    pub fn is_hashing(self) -> bool {
        matches!(self, Self::RingHash { .. } | Self::Maglev { .. })
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self::LeastRequest { choices: LEAST_REQUEST_CHOICES_DEFAULT }
    }
}

/// An endpoint that is new gets less at first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// How long.
    pub window: Duration,
    /// Above one it gets more sooner, below later.
    pub aggression: f64,
    /// What it gets at least, in percent of its weight.
    pub weight_min_percent: f64,
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
    /// Given with the cluster, by names that are looked up.
    Named(Arc<Named>),
    /// Named by requests, and looked up then.
    ByHost(Arc<ByHost>),
    /// There are none: requests and connections go where their clients wanted to go.
    Passthrough(Passthrough),
}

/// How the destination of a client's CONNECT is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passthrough {
    /// By HBONE to the pod itself, else in plain.
    pub over_hbone: bool,
    /// This port instead of the one that was asked for.
    pub port: Option<u16>,
}

impl Passthrough {
    /// The endpoint for a destination.
    #[must_use]
    pub fn endpoint(self, destination: SocketAddr) -> Endpoint {
        let target = SocketAddr::new(destination.ip(), self.port.unwrap_or(destination.port()));
        if !self.over_hbone {
            return Endpoint::at(EndpointAddress::Plain(target));
        }
        let address = EndpointAddress::Hbone { tunnel: SocketAddr::new(target.ip(), HBONE_PORT), target };
        Endpoint { host: format!("envoy://connect_originate/{target}").into(), ..Endpoint::at(address) }
    }
}

/// Retries in proportion to the requests at the moment, or of an interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Retries, in percent of the requests that wait or are in flight, or began in the interval.
    pub percent: f64,
    /// Requests count for so long from their begin, whether they have ended or not; none means while they last.
    pub interval: Option<Duration>,
    /// Retries at a time that are allowed however few requests there are.
    pub retries_min: u32,
}

/// Circuit breakers for requests of one priority; [`u32::MAX`] is no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: u32,
    /// Requests waiting for a connection.
    pub pending_requests_max: u32,
    /// Requests at a time.
    pub requests_max: u32,
    /// Retries at a time.
    pub retries_max: u32,
    /// Counts instead of `retries_max`.
    pub retry_budget: Option<RetryBudget>,
}

impl Limits {
    /// What istiod sends unless a DestinationRule says otherwise.
    pub const NONE: Self = Self {
        connections_max: u32::MAX,
        pending_requests_max: u32::MAX,
        requests_max: u32::MAX,
        retries_max: u32::MAX,
        retry_budget: None,
    };

    /// Envoy's, where nothing is said.
    pub const DEFAULT: Self =
        Self { connections_max: 1024, pending_requests_max: 1024, requests_max: 1024, retries_max: 3, retry_budget: None };

    /// Whether nothing is limited, so that nothing has to be counted.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// When a peer that speaks HTTP/2 is asked whether it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingRules {
    /// From the start, or from an answer, to the next question.
    pub interval: Duration,
    /// How long an answer may take; the connection is closed then.
    pub timeout: Duration,
}

/// TCP's own probes of a silent connection; what is not said is the system's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    /// Silence before the first.
    pub time: Option<Duration>,
    /// Between probes.
    pub interval: Option<Duration>,
    /// How many without an answer end the connection.
    pub probes: Option<u32>,
}

/// How a connection to an endpoint is used, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionUse {
    /// How long an idle one is kept; none is as long as both sides like.
    pub idle_timeout: Option<Duration>,
    /// How old it may grow; it then takes no more requests.
    pub duration_max: Option<Duration>,
    /// Requests that it may carry, one after the other or at once.
    pub requests_max: Option<u32>,
    /// Requests that it may carry at once, beside the peer's own limit; HTTP/2.
    pub streams_max: Option<u32>,
    /// Whether the peer is asked if it is still there; HTTP/2.
    pub ping: Option<PingRules>,
    /// Names of headers keep the case in which they were sent, both ways; HTTP/1.1.
    pub keeps_header_case: bool,
    /// TCP's probes; none: ours. Of plain connections: a tunnel has its own.
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq)]
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
    /// Whether new endpoints get less at first.
    pub slow_start: Option<SlowStart>,
    /// Below this share of usable endpoints a priority uses all it has.
    pub panic_threshold_percent: f64,
    /// Localities get shares by their weights.
    pub weighs_localities: bool,
    /// How it is divided, if it is.
    pub subsets: Option<Arc<SubsetRules>>,
    /// Which endpoints are left out because of how they answer.
    pub outlier: Option<OutlierDetection>,
    /// What is spoken to it.
    pub protocol: UpstreamProtocol,
    /// What its streams wear.
    pub sockets: Sockets,
    /// Covers TCP, and TLS and CONNECT if there are any.
    pub connect_timeout: Duration,
    /// Circuit breakers for requests of default priority.
    pub limits: Limits,
    /// Circuit breakers for requests of high priority.
    pub limits_high: Limits,
    /// How long its connections are used.
    pub connections: ConnectionUse,
}

impl Cluster {
    /// A cluster of this name of which nothing else was said, and without limits.
    #[must_use]
    pub fn named(name: &str, discovery: Discovery) -> Self {
        Self {
            name: name.into(),
            stat_name: name.into(),
            service: None,
            discovery,
            balance: Balance::default(),
            slow_start: None,
            panic_threshold_percent: PANIC_THRESHOLD_PERCENT_DEFAULT,
            weighs_localities: false,
            subsets: None,
            outlier: None,
            protocol: UpstreamProtocol::default(),
            sockets: Sockets::default(),
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            limits: Limits::NONE,
            limits_high: Limits::NONE,
            connections: ConnectionUse::default(),
        }
    }
}
