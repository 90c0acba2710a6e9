//! Routes: which request goes where, with which changes and how long it may take.
//!
//! Not for: choosing; `filters::route` does. Order of routes is match order (Envoy).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use crate::claims::ClaimMatcher;
use crate::cors::CorsPolicy;
use crate::ext_authz::{ExtAuthz, RouteExternal};
use crate::fraction::Fraction;
use crate::hash::HashPolicy;
use crate::headers::{HeaderEdits, Mutations};
use crate::matcher::StringMatcher;
pub use crate::matcher::{HeaderMatcher, HeaderTest, MatchedHeader, QueryMatcher};
use crate::rate_limit::RateLimit;
use crate::rate_limit::descriptors::Rule;
use crate::rbac::Rbac;
use crate::retry::RetryPolicy;
use crate::rewrite::{Redirect, Rewrites};
use crate::subset::Labels;
use crate::timeout::RouteTimeouts;
use crate::turns::Turns;
use crate::upgrade::Upgrades;

/// How a path is matched. Paths are matched without their query.
#[derive(Clone, Debug)]
pub enum PathMatcher {
    /// `prefix`.
    Prefix(Box<str>),
    /// `path_separated_prefix`: the prefix, or the prefix and then a slash.
    SeparatedPrefix(Box<str>),
    /// `path`.
    Exact(Box<str>),
    /// `safe_regex`.
    Regex(StringMatcher),
}

/// Everything a request must be for a route.
#[derive(Clone, Debug)]
pub struct RouteMatch {
    /// Its path.
    pub path: PathMatcher,
    /// False: letters of either case alike in prefix and exact paths.
    pub case_sensitive: bool,
    /// Its headers, all of them.
    pub headers: Vec<HeaderMatcher>,
    /// Its query parameters, all of them.
    pub query: Vec<QueryMatcher>,
    /// Only gRPC requests.
    pub grpc_only: bool,
    /// What verified tokens say, all of it.
    pub claims: Vec<ClaimMatcher>,
}

impl RouteMatch {
    /// Every request with such a path.
    #[must_use]
    pub fn of(path: PathMatcher) -> Self {
        Self { path, case_sensitive: true, headers: Vec::new(), query: Vec::new(), grpc_only: false, claims: Vec::new() }
    }
}

/// One of several clusters.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// Its name.
    pub name: Arc<str>,
    /// Its share of the sum of weights.
    pub weight: u32,
    /// Which subset of it, as its route and it say together.
    pub subset: Labels,
    /// `host_rewrite_literal`, before the route's own.
    pub host: Option<HeaderValue>,
    /// Changes to requests of this share: its own and its route's, in the order in which they are made.
    pub request_headers: Box<[Arc<HeaderEdits>]>,
    /// Changes to answers, as above.
    pub response_headers: Box<[Arc<HeaderEdits>]>,
}

/// Where a request is sent.
#[derive(Clone, Debug)]
pub enum ClusterChoice {
    /// One cluster.
    One(Arc<str>),
    /// A share each, in turns over all requests of the route.
    Weighted(Vec<WeightedCluster>, Arc<Turns>),
}

/// Whose circuit breakers count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Those of most requests.
    #[default]
    Default,
    /// Those of requests that come first.
    High,
}

/// A cluster that gets copies of requests.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Its name.
    pub cluster: Arc<str>,
    /// For which share of requests.
    pub share: Fraction,
    /// `host_rewrite_literal`.
    pub host: Option<HeaderValue>,
    /// The host gets `-shadow` appended.
    pub adds_suffix: bool,
    /// `trace_sampled: false`: spans of the copy are not to be sampled.
    pub is_unsampled: bool,
}

/// A route that forwards.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Where to.
    pub clusters: ClusterChoice,
    /// Which subset of its one cluster.
    pub subset: Labels,
    /// Status when the cluster does not exist: 503, or 500 for Gateway API routes.
    pub cluster_not_found_status: u16,
    /// How long it may take.
    pub timeouts: RouteTimeouts,
    /// Retries; none means none.
    pub retry: Option<RetryPolicy>,
    /// What becomes of path and host.
    pub rewrites: Rewrites,
    /// Who gets copies: the route's, or those of its virtual host, or of the table.
    pub mirrors: Box<[Mirror]>,
    /// Whose circuit breakers count.
    pub priority: Priority,
    /// What is hashed, for clusters that choose by it.
    pub hash: Vec<HashPolicy>,
    /// What it says of upgrades, before its chain.
    pub upgrades: Upgrades,
}

/// An answer made here.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub body: Box<[u8]>,
}

/// What a route does.
#[derive(Clone, Debug)]
pub enum RouteAction {
    /// Send it on.
    Forward(Box<Forward>),
    /// Send the client elsewhere.
    Redirect(Box<Redirect>),
    /// Answer it.
    Direct(DirectResponse),
}

/// How a request is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// With this status.
    Http(u16),
    /// With this gRPC status, and 200 for those who do not speak gRPC.
    Grpc(u32),
}

/// `HTTPFault`: to see how callers take it. Delays and aborts are drawn apart.
#[derive(Clone, Debug, Default)]
pub struct Fault {
    /// How long some requests wait; never zero.
    pub delay: Option<(Duration, Fraction)>,
    /// How some requests end.
    pub abort: Option<(Abort, Fraction)>,
    /// Only requests that meet all of these.
    pub headers: Vec<HeaderMatcher>,
}

/// What a route says of a filter of its chain.
#[derive(Clone, Debug)]
pub enum RouteFilter {
    /// `envoy.filters.http.fault`.
    Fault(Box<Fault>),
    /// `envoy.filters.http.cors`; of routes that forward.
    Cors(Box<CorsPolicy>),
    /// `envoy.filters.http.local_ratelimit`; one of several routes where they have it from their virtual host, table or chain. What
    /// descriptors are made by is the route's.
    RateLimit(Arc<RateLimit>, Arc<[Rule]>),
    /// `envoy.filters.http.grpc_web`.
    GrpcWeb,
    /// `envoy.filters.http.header_mutation`.
    Mutate(Arc<Mutations>),
    /// An extension of this name that does not run here, and lets nothing pass then.
    Closed(Arc<str>),
    /// `envoy.filters.http.rbac` behind one of the others; the chain's, whatever the route.
    Rbac(Arc<Rbac>),
}

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name; `%ROUTE_NAME%`.
    pub name: Option<Arc<str>>,
    /// For which requests.
    pub matches: RouteMatch,
    /// What it says of the chain's authorization services.
    pub external: Box<[RouteExternal]>,
    /// Filters that it meets before all policies and tokens of the chain.
    pub first_filters: Box<[RouteFilter]>,
    /// Filters that it meets after policies and tokens, in the chain's order, as table, virtual host and route say together.
    pub filters: Box<[RouteFilter]>,
    /// What to do.
    pub action: RouteAction,
    /// Changes to the request: those of route, virtual host and table, as far as there are any, in the order in which they are made.
    pub request_headers: Box<[Arc<HeaderEdits>]>,
    /// Changes to the answer, as above.
    pub response_headers: Box<[Arc<HeaderEdits>]>,
    /// `decorator.operation`.
    pub operation: Option<Operation>,
}

impl Route {
    /// What it says of one of the chain's authorization services.
    #[must_use]
    pub fn external_of(&self, filter: &ExtAuthz) -> Option<&RouteExternal> {
        self.external.iter().find(|said| said.filter == filter.name)
    }
}

/// What a route's requests are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The span's name.
    pub name: Arc<str>,
    /// The same as the value of `x-envoy-decorator-operation` in responses.
    pub header: HeaderValue,
}
