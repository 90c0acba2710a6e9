//! Filter chains of the inner listener: what happens to a connection once it is known what it asked for.
//!
//! Invariant: a chain that could not be compiled is a [`ChainKind::Refused`], never a chain with parts left out.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use ipnet::IpNet;

use crate::access_log::AccessLog;
use crate::ext_authz::ExtAuthz;
use crate::format::HeaderUse;
use crate::invalid::Invalid;
use crate::jwt::JwtAuthn;
use crate::metrics::Stats;
use crate::rbac::Rbac;
use crate::route::RouteFilter;
use crate::route_table::RouteTable;
use crate::timeout::ChainTimeouts;
use crate::tracing::Tracing;
use crate::turns::Turns;
use crate::upgrade::Upgrades;

/// A filter that decides about a request, in the chain's order.
#[derive(Clone, Debug)]
pub enum HttpFilter {
    /// `envoy.filters.http.rbac`.
    Rbac(Rbac),
}

/// A filter of the part of a chain that may have to wait for another server's answer, in the chain's order.
#[derive(Clone, Debug)]
pub enum EarlyFilter {
    /// `rbac` with rules.
    Rbac(Rbac),
    /// `rbac` with shadow rules: they refuse nothing, the name of the policy that matches says whether to ask.
    Shadow(Rbac),
    /// `ext_authz`.
    External(Box<ExtAuthz>),
}

impl EarlyFilter {
    /// Whether some condition is about the name in a ClientHello.
    #[must_use]
    pub fn reads_server_name(&self) -> bool {
        match self {
            Self::Rbac(rules) | Self::Shadow(rules) => rules.reads_server_name(),
            Self::External(_) => false,
        }
    }
}

/// What becomes of the response's `server` header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServerHeader {
    /// Ours, always.
    #[default]
    Overwrite,
    /// Ours, if there is none.
    AppendIfAbsent,
    /// As it came.
    PassThrough,
}

/// What becomes of a path with `%2F` or `%5C`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// It stays.
    #[default]
    Kept,
    /// They are slashes and backslashes from then on.
    Unescaped,
    /// So they are for the client, which is told to ask again.
    Redirected,
    /// The request is refused.
    Refused,
}

/// What becomes of a request's headers with underscores in their names, which some applications read as hyphens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnderscoreNames {
    /// They stay.
    #[default]
    Allowed,
    /// They are left out.
    Dropped,
    /// The request is refused.
    Refused,
}

/// Settings of the HTTP connection manager.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of Envoy's connection manager")]
pub struct HttpOptions {
    /// What `server` says.
    pub server_name: HeaderValue,
    /// What becomes of it.
    pub server_header: ServerHeader,
    /// `normalize_path`: dot segments are removed before any rule sees the path.
    pub normalize_path: bool,
    /// `merge_slashes`.
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`.
    pub escaped_slashes: EscapedSlashes,
    /// `headers_with_underscores_action`.
    pub underscores: UnderscoreNames,
    /// What it says of upgrades.
    pub upgrades: Upgrades,
    /// Whether clients may ask for them over HTTP/2, by an extended CONNECT (`allow_connect`).
    pub extended_connect: bool,
    /// Make an `x-request-id` if there is none.
    pub generate_request_id: bool,
    /// Accept HTTP/1.0.
    pub http1_0: bool,
    /// Names of headers keep the case in which clients send them, and so do those of answers; HTTP/1.1.
    pub keeps_header_case: bool,
    /// `append_x_forwarded_port`: applications are told the port that was asked for.
    pub tells_port: bool,
    /// `suppress_envoy_headers`: times, original paths and hosts, and overload are told to nobody in `x-envoy-` headers.
    pub suppresses_envoy_headers: bool,
    /// The idle time after which a client's connection is closed.
    pub idle_timeout: Option<Duration>,
    /// How long the head of a request may take over HTTP/1.1, from its first byte on.
    pub headers_timeout: Option<Duration>,
    /// The age from which a client's connection takes no more requests.
    pub connection_duration_max: Option<Duration>,
    /// How long a request may take, unless its route says otherwise.
    pub timeouts: ChainTimeouts,
    /// Header bytes of a request at most.
    pub header_bytes_max: usize,
    /// `forward_client_cert_details` other than SANITIZE: an incoming `x-forwarded-client-cert` is kept.
    pub keep_forwarded_client_cert: bool,
    /// `internal_address_config`: callers that `x-forwarded-for` puts here, and names alone, are internal. None: nobody is.
    pub internal_addresses: Box<[IpNet]>,
}

/// An HTTP chain.
#[derive(Clone, Debug)]
pub struct HttpChain {
    /// Connection manager settings.
    pub options: HttpOptions,
    /// Whether there are filters before policies and tokens, whatever routes say of them.
    pub has_first_filters: bool,
    /// Whether filters change answers, whoever makes them.
    pub changes_answers: bool,
    /// Headers of requests that changes to answers read.
    pub read_by_answers: HeaderUse,
    /// What requests without a route meet of such filters: before policies and tokens, and behind them.
    pub routeless: [Box<[RouteFilter]>; 2],
    /// Judged first, up to the last external authorization; of most chains empty.
    pub early: Box<[EarlyFilter]>,
    /// Which tokens requests must carry; judged before the filters below.
    pub jwt: Option<Box<JwtAuthn>>,
    /// Deciding filters, in order.
    pub filters: Vec<HttpFilter>,
    /// Whether gRPC messages are counted (`grpc_stats` with `emit_filter_state`).
    pub count_grpc_messages: bool,
    /// Where requests go.
    pub routes: RouteTable,
}

/// TCP is carried in an HTTP request to the endpoint, which is an HTTP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTunnel {
    /// Where the proxy is to connect to: host and port.
    pub authority: http::uri::Authority,
    /// The path of a POST that carries it in its body; none: a CONNECT.
    pub post_path: Option<http::uri::PathAndQuery>,
}

/// A TCP chain.
#[derive(Clone, Debug)]
pub struct TcpChain {
    /// Judged first, up to the last external authorization; of most chains empty.
    pub early: Box<[EarlyFilter]>,
    /// Deciding filters, in order.
    pub rbac: Vec<Rbac>,
    /// Where to; never empty.
    pub clusters: Vec<Arc<str>>,
    /// Whose turn it is.
    pub turns: Arc<Turns>,
    /// After which silence in both directions the connection is closed; none is never.
    pub idle_timeout: Option<Duration>,
    /// The longest a connection may last, whatever moves; none is for ever.
    pub duration_max: Option<Duration>,
    /// How often a failed connect is tried in all.
    pub connect_attempts_max: u32,
    /// Clients of one address go to the same endpoint, where the cluster chooses by that.
    pub hashes_source: bool,
    /// Whether some policy wants to know the name in the connection's ClientHello.
    pub reads_server_name: bool,
    /// The server that a client's TLS names is the one that it reaches, at this port, where its cluster looks hosts up.
    pub server_name_port: Option<u16>,
    /// Its endpoints are proxies.
    pub tunnel: Option<Arc<HttpTunnel>>,
}

impl TcpChain {
    /// The same, refusing every connection by a policy of this name.
    fn denying(&self, policy: &str) -> Self {
        Self { early: Box::default(), rbac: vec![Rbac::denying(policy)], reads_server_name: false, server_name_port: None, ..self.clone() }
    }
}

/// What a chain is.
#[derive(Clone, Debug)]
pub enum ChainKind {
    /// HTTP.
    Http(Box<HttpChain>),
    /// TCP.
    Tcp(TcpChain),
    /// Not obeyed: HTTP is answered 503 `config_rejected`, TCP is refused.
    Refused {
        /// Whether it would have been HTTP.
        http: bool,
        /// Why.
        reasons: Vec<Invalid>,
    },
}

impl HttpChain {
    /// The same, refusing every request by a policy of this name.
    fn denying(&self, policy: &str) -> Self {
        Self { early: Box::default(), jwt: None, filters: vec![HttpFilter::Rbac(Rbac::denying(policy))], ..self.clone() }
    }
}

/// What a chain does whose newest version has a policy that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefusedPolicy {
    /// What its last good version did.
    #[default]
    KeepLastGood,
    /// It refuses everything until its newest version can be obeyed.
    Deny,
}

/// Names of filters that are left out where they are not known, instead of what has them being refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkippedFilters(Vec<String>);

/// Parts of the names of filters, and of the types of their configurations, that decide who may do what.
const POLICY_FILTERS: [&str; 9] =
    ["rbac", "jwt_authn", "jwt_auth", "ext_authz", "authn", "istio_authn", "oauth2", "basic_auth", "api_key_auth"];

impl SkippedFilters {
    /// Reads names joined by commas. None: one of them is empty, or of a policy.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let names: Vec<_> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let is_wrong = |name: &String| name.is_empty() || Self::is_policy(name);
        (!names.iter().any(is_wrong)).then_some(Self(names))
    }

    /// Whether a filter of this name, or with a configuration of this type or with such a type in it, decides who may do what, as far as
    /// that is known.
    #[must_use]
    pub fn is_policy(name: &str) -> bool {
        name.split(|one: char| !one.is_ascii_alphanumeric() && one != '_').any(|part| POLICY_FILTERS.contains(&part))
    }

    /// Whether this one is named.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|one| one == name)
    }

    /// All names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// A chain.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name, `inbound-vip|80|http|web.shop.svc.cluster.local`.
    pub name: Arc<str>,
    /// What it does.
    pub kind: ChainKind,
    /// What it counts.
    pub stats: Option<Stats>,
    /// What it logs.
    pub access_logs: Vec<AccessLog>,
    /// Whether and how it traces.
    pub tracing: Option<Tracing>,
}

impl Chain {
    /// The same chain, refusing everything by a policy of this name.
    #[must_use]
    pub fn denying(&self, policy: &str) -> Self {
        let kind = match &self.kind {
            ChainKind::Http(http) => ChainKind::Http(Box::new(http.denying(policy))),
            ChainKind::Tcp(tcp) => ChainKind::Tcp(tcp.denying(policy)),
            ChainKind::Refused { .. } => self.kind.clone(),
        };
        Self { kind, ..self.clone() }
    }
}
