//! Filter chains of `main_internal`: an HTTP connection manager or a TCP proxy, and what stands before it.

use std::borrow::Cow;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::config::core::v3::http_protocol_options::HeadersWithUnderscoresAction;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::extensions::filters::http::ext_authz::v3::ExtAuthz as HttpExtAuthz;
use envoy_types::pb::envoy::extensions::filters::http::grpc_stats::v3::FilterConfig as GrpcStats;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::ext_authz::v3::ExtAuthz as NetworkExtAuthz;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::InternalAddressConfig;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use envoy_types::pb::google::protobuf::Any;
use http::HeaderValue;
use ipnet::IpNet;
use model::chain::{
    Chain, ChainKind, EarlyFilter, EscapedSlashes, HttpChain, HttpFilter, HttpOptions, HttpTunnel, ServerHeader, TcpChain, UnderscoreNames,
};
use model::format::HeaderUse;
use model::headers::{HeaderChange, HeaderEdits};
use model::jwt::JwtAuthn;
use model::metrics::Stats;
use model::rbac::Rbac;
use model::route::{ClusterChoice, RouteAction, RouteFilter};
use model::route_table::RouteTable;
use model::upgrade::Upgrades;
use xds_proto::istio::stats::PluginConfig;

use super::extension::{self, HTTP_WASM, Lookup, NETWORK_WASM};
use super::judges::{self, Judges};
use super::mutation::HEADER_MUTATION;
use super::route_filters::{CORS, FAULT, RATE_LIMIT, Slots};
use super::{
    PLUMBING, Problem, Translated, access_log, ext_authz, extension_type, is_on, jwt, keeps_header_case, open, positive_duration, required,
    route, stats, timeout, tracing, turns, type_name,
};

const HCM: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const SNI_DYNAMIC_FORWARD_PROXY: &str = "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const NETWORK_RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";
const HTTP_RBAC: &str = "envoy.extensions.filters.http.rbac.v3.RBAC";
const JWT_AUTHN: &str = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
const STATS: &str = "stats.PluginConfig";
const GRPC_STATS: &str = "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig";
/// What it does follows from the cluster of a request.
const DYNAMIC_FORWARD_PROXY: &str = "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";
const GRPC_WEB: &str = "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb";
const HTTP_EXT_AUTHZ: &str = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const NETWORK_EXT_AUTHZ: &str = "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";
/// Envoy's default of `max_request_headers_kb`.
const HEADER_KIBIBYTES_DEFAULT: u32 = 60;

/// What of a chain was read before something in it could not be.
#[derive(Debug)]
pub struct Refusal {
    /// Whether it serves HTTP.
    pub is_http: bool,
    /// Why it is not obeyed.
    pub problem: Problem,
}

/// Translates one chain, whose extensions are found in `lookup`.
///
/// # Errors
/// The first thing that cannot be obeyed, or has not come.
pub fn chain(value: &listener::FilterChain, name: &Arc<str>, lookup: &Lookup<'_>) -> Result<Chain, Refusal> {
    let configs: Vec<_> = value.filters.iter().map(config_of).collect();
    let is_http = configs.iter().flatten().any(|config| type_name(config) == HCM);
    let translated = translate(value, name, lookup).and_then(|chain| lookup.missing().map_or(Ok(chain), Err));
    translated.map_err(|problem| Refusal { is_http, problem })
}

fn config_of(filter: &listener::Filter) -> Option<&Any> {
    match filter.config_type.as_ref()? {
        listener::filter::ConfigType::TypedConfig(config) => Some(config),
        listener::filter::ConfigType::ConfigDiscovery(_) => None,
    }
}

fn translate(value: &listener::FilterChain, name: &Arc<str>, lookup: &Lookup<'_>) -> Translated<Chain> {
    let mut network = Network::default();
    for (at, filter) in value.filters.iter().enumerate() {
        let path = format!("filters[{at}]");
        let config = match required(filter.config_type.as_ref(), &path)? {
            listener::filter::ConfigType::TypedConfig(config) => Some(Cow::Borrowed(config)),
            listener::filter::ConfigType::ConfigDiscovery(source) => lookup.find(&filter.name, source, &path)?,
        };
        if let Some(config) = config {
            network.add(&config, (filter, lookup), &path)?;
        }
    }
    let (kind, access_logs, tracing, http_stats) = match network.last {
        Some(Last::Http(http)) if network.judges.is_empty() => {
            (ChainKind::Http(Box::new(http.chain)), http.access_logs, http.tracing, http.stats)
        }
        Some(Last::Http(_)) => return Err(Problem::new("filters", "policies before the HTTP connection manager are not supported")),
        Some(Last::Tcp(mut chain, logs)) => {
            (chain.early, chain.rbac) = network.judges.finish();
            chain.server_name_port = network.server_name_port;
            chain.reads_server_name =
                chain.early.iter().any(EarlyFilter::reads_server_name) || chain.rbac.iter().any(Rbac::reads_server_name);
            (ChainKind::Tcp(chain), logs, None, None)
        }
        None => return Err(Problem::new("filters", "neither an HTTP connection manager nor a TCP proxy")),
    };
    Ok(Chain { name: Arc::clone(name), kind, stats: http_stats.or(network.stats), access_logs, tracing })
}

struct HttpParts {
    chain: HttpChain,
    access_logs: Vec<model::access_log::AccessLog>,
    tracing: Option<model::tracing::Tracing>,
    stats: Option<Stats>,
}

enum Last {
    Http(Box<HttpParts>),
    Tcp(TcpChain, Vec<model::access_log::AccessLog>),
}

#[derive(Default)]
struct Network {
    judges: Judges,
    stats: Option<Stats>,
    server_name_port: Option<u16>,
    last: Option<Last>,
}

impl Network {
    fn add(&mut self, config: &Any, (filter, lookup): (&listener::Filter, &Lookup<'_>), path: &str) -> Translated<()> {
        if self.last.is_some() {
            return Err(Problem::new(path, format!("the filter {:?} stands behind the last one", filter.name)));
        }
        match extension_type(config)?.as_str() {
            HCM => self.last = Some(Last::Http(Box::new(http(&open(config, path)?, lookup, path)?))),
            TCP_PROXY => {
                let (chain, logs) = tcp_proxy(&open(config, path)?, path)?;
                self.last = Some(Last::Tcp(chain, logs));
            }
            NETWORK_RBAC => {
                let value: NetworkRbac = open(config, path)?;
                let shadow = (value.shadow_rules.as_ref(), value.shadow_rules_stat_prefix.as_str());
                self.judges.add_network_rbac(value.rules.as_ref(), shadow, path)?;
            }
            NETWORK_EXT_AUTHZ => {
                self.judges.add_external(ext_authz::network(&open::<NetworkExtAuthz>(config, path)?, &filter.name, path)?);
            }
            STATS => self.stats = Some(stats::stats(&open::<PluginConfig>(config, path)?, path)?),
            NETWORK_WASM if extension::network_passes(config, path)? => {}
            NETWORK_WASM => self.judges.add(Rbac::denying(&filter.name)),
            SNI_DYNAMIC_FORWARD_PROXY => self.server_name_port = Some(server_name_port(&open(config, path)?, path)?),
            known if PLUMBING.contains(&known) => {}
            other => return Err(Problem::new(path, format!("the filter {:?} ({other}) is not known", filter.name))),
        }
        Ok(())
    }
}

/// Where the server that a ClientHello names is reached; 443 where it is not said (Envoy).
fn server_name_port(value: &sni::FilterConfig, path: &str) -> Translated<u16> {
    let sni::filter_config::PortSpecifier::PortValue(port) =
        value.port_specifier.unwrap_or(sni::filter_config::PortSpecifier::PortValue(443));
    u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| Problem::new(format!("{path}.port_value"), "is no port"))
}

fn http_tunnel(value: &tcp::tcp_proxy::TunnelingConfig, path: &str) -> Translated<HttpTunnel> {
    let no_authority = || Problem::new(format!("{path}.hostname"), format!("{:?} is no host and port", value.hostname));
    // What Envoy would fill in of the connection begins with a percent sign.
    let text = Some(value.hostname.as_str()).filter(|text| !text.contains(['%', '@']));
    let authority: http::uri::Authority = text.and_then(|text| text.parse().ok()).ok_or_else(no_authority)?;
    authority.port_u16().filter(|port| *port > 0).ok_or_else(no_authority)?;
    if !value.use_post && !value.post_path.is_empty() {
        return Err(Problem::new(format!("{path}.post_path"), "is only for use_post"));
    }
    let post_path = value.use_post.then(|| if value.post_path.is_empty() { "/" } else { &value.post_path });
    let post_path = post_path.map(|post_path| Some(post_path).filter(|post_path| post_path.starts_with('/'))?.parse().ok());
    let no_path = || Problem::new(format!("{path}.post_path"), "is no path");
    Ok(HttpTunnel { authority, post_path: post_path.map(|post_path| post_path.ok_or_else(no_path)).transpose()? })
}

fn tcp_proxy(value: &tcp::TcpProxy, path: &str) -> Translated<(TcpChain, Vec<model::access_log::AccessLog>)> {
    use tcp::tcp_proxy::ClusterSpecifier;
    let (clusters, weights) = match required(value.cluster_specifier.as_ref(), path)? {
        ClusterSpecifier::Cluster(name) => (vec![name.as_str().into()], vec![1]),
        ClusterSpecifier::WeightedClusters(all) => all.clusters.iter().map(|one| (one.name.as_str().into(), one.weight)).unzip(),
    };
    let turns = turns(weights, path)?;
    let tunnel = value.tunneling_config.as_ref().map(|tunnel| http_tunnel(tunnel, &format!("{path}.tunneling_config"))).transpose()?;
    let idle_timeout = timeout::connection_idle(value.idle_timeout.as_ref(), &format!("{path}.idle_timeout"))?;
    let hashes_source = value
        .hash_policy
        .iter()
        .any(|one| matches!(one.policy_specifier, Some(envoy_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier::SourceIp(_))));
    let attempts = value.max_connect_attempts.as_ref().map_or(1, |attempts| attempts.value);
    let duration_max =
        positive_duration(value.max_downstream_connection_duration.as_ref(), &format!("{path}.max_downstream_connection_duration"))?;
    let chain = TcpChain {
        early: Box::default(),
        rbac: Vec::new(),
        clusters,
        turns,
        idle_timeout,
        duration_max,
        connect_attempts_max: attempts,
        hashes_source,
        reads_server_name: false,
        server_name_port: None,
        tunnel: tunnel.map(Arc::new),
    };
    Ok((chain, access_log::all(&value.access_log, path)?))
}

/// The HTTP filters of a chain that were read so far.
#[derive(Default)]
struct HttpFilters {
    judges: Judges,
    slots: Slots,
    jwt: Option<Box<JwtAuthn>>,
    stats: Option<Stats>,
    count_grpc_messages: bool,
    suppresses_envoy_headers: bool,
    /// Each try has a span, whatever the manager says.
    starts_child_spans: bool,
    /// An extension was met that does not run and lets nothing pass: what stands behind it is reached by nothing.
    is_closed: bool,
}

impl HttpFilters {
    fn add(&mut self, filter: &hcm::HttpFilter, lookup: &Lookup<'_>, path: &str) -> Translated<()> {
        let config = match required(filter.config_type.as_ref(), path)? {
            hcm::http_filter::ConfigType::TypedConfig(config) => Some(Cow::Borrowed(config)),
            hcm::http_filter::ConfigType::ConfigDiscovery(source) => lookup.find(&filter.name, source, path)?,
        };
        config.map_or(Ok(()), |config| self.add_configured(filter, &config, path))
    }

    fn add_configured(&mut self, filter: &hcm::HttpFilter, config: &Any, path: &str) -> Translated<()> {
        match extension_type(config)?.as_str() {
            HTTP_RBAC => self.add_rbac(&filter.name, &open(config, path)?, path)?,
            HTTP_EXT_AUTHZ | JWT_AUTHN if self.is_closed => {}
            HTTP_EXT_AUTHZ | JWT_AUTHN if !self.slots.judge() => {
                return Err(Problem::new(path, "tokens or a service between which and policies another filter stands are not supported"));
            }
            HTTP_EXT_AUTHZ if self.jwt.is_some() => {
                return Err(Problem::new(path, "external authorization behind the verification of tokens is not supported"));
            }
            HTTP_EXT_AUTHZ => {
                self.judges.add_external(ext_authz::http(&open::<HttpExtAuthz>(config, path)?, &filter.name, path)?);
                self.slots.add_external(&filter.name);
            }
            JWT_AUTHN if self.jwt.is_some() => return Err(Problem::new(path, "tokens can only be verified once")),
            JWT_AUTHN => {
                self.judges.settle();
                self.jwt = Some(Box::new(jwt::jwt_authn(&open(config, path)?, path)?));
            }
            STATS => self.stats = Some(stats::stats(&open::<PluginConfig>(config, path)?, path)?),
            GRPC_STATS => self.count_grpc_messages = open::<GrpcStats>(config, path)?.emit_filter_state,
            known if PLUMBING.contains(&known) => {}
            FAULT => self.slots.add_fault(&filter.name, config, path)?,
            CORS => self.slots.add_cors(&filter.name),
            RATE_LIMIT => self.slots.add_rate_limit(&filter.name, config, path)?,
            HEADER_MUTATION => self.slots.add_mutation(&filter.name, config, path)?,
            ROUTER => self.add_router(&open(config, path)?),
            GRPC_WEB => self.slots.add_grpc_web(&filter.name),
            HTTP_WASM if extension::http_passes(config, path)? => {}
            HTTP_WASM => {
                self.slots.add_closed(&filter.name);
                self.is_closed = true;
            }
            DYNAMIC_FORWARD_PROXY => {}
            other => return Err(Problem::new(path, format!("the filter {:?} ({other}) is not known", filter.name))),
        }
        Ok(())
    }

    #[expect(deprecated, reason = "the older way to ask for spans of tries, which Envoy obeys as well")]
    fn add_router(&mut self, value: &Router) {
        (self.suppresses_envoy_headers, self.starts_child_spans) = (value.suppress_envoy_headers, value.start_child_span);
    }

    fn add_rbac(&mut self, name: &str, value: &HttpRbac, path: &str) -> Translated<()> {
        let shadow = (value.shadow_rules.as_ref(), value.shadow_rules_stat_prefix.as_str());
        if self.slots.judge() {
            return self.judges.add_rbac(value.rules.as_ref(), shadow, path);
        }
        let late = judges::last_rbac(value.rules.as_ref(), shadow, path)?;
        late.into_iter().for_each(|rbac| self.slots.add_rbac(name, rbac));
        Ok(())
    }
}

fn http(value: &hcm::HttpConnectionManager, lookup: &Lookup<'_>, path: &str) -> Translated<HttpParts> {
    use hcm::http_connection_manager::RouteSpecifier;
    let mut met = HttpFilters::default();
    for (at, filter) in value.http_filters.iter().enumerate() {
        met.add(filter, lookup, &format!("{path}.http_filters[{at}]"))?;
    }
    let HttpFilters { judges, slots, jwt, stats, count_grpc_messages, suppresses_envoy_headers, starts_child_spans, is_closed: _ } = met;
    let routes = match required(value.route_specifier.as_ref(), path)? {
        RouteSpecifier::RouteConfig(table) => route::table(table, &slots, &format!("{path}.route_config"))?,
        _ => return Err(Problem::new(path, "routes have to be inline")),
    };
    let routeless = slots.routeless(path)?;
    let (early, policies) = judges.finish();
    let filters = policies.into_iter().map(HttpFilter::Rbac).collect();
    let request_id = tracing::request_id(value.request_id_extension.as_ref(), &format!("{path}.request_id_extension"))?;
    let mut tracing = value.tracing.as_ref().map(|value| tracing::tracing(value, request_id, &format!("{path}.tracing"))).transpose()?;
    if let Some(tracing) = &mut tracing {
        tracing.spans_of_tries |= starts_child_spans;
    }
    Ok(HttpParts {
        chain: HttpChain {
            options: options(value, suppresses_envoy_headers, path)?,
            has_first_filters: slots.has_first(),
            changes_answers: slots.changes_answers(),
            read_by_answers: read_by_answers(&routes, &routeless),
            routeless,
            early,
            jwt,
            filters,
            count_grpc_messages,
            routes,
        },
        access_logs: access_log::all(&value.access_log, path)?,
        tracing,
        stats,
    })
}

/// Headers of requests that changes to answers read, so that they are kept until then.
fn read_by_answers(routes: &RouteTable, routeless: &[Box<[RouteFilter]>; 2]) -> HeaderUse {
    let mut used = HeaderUse::default();
    let edits = |edits: &HeaderEdits, used: &mut HeaderUse| edits.add.iter().for_each(|add| add.value.uses(used));
    let of_filters = |filters: &[RouteFilter], used: &mut HeaderUse| {
        for filter in filters {
            match filter {
                RouteFilter::Mutate(mutations) => {
                    for change in &mutations.response {
                        if let HeaderChange::Add(add) = change {
                            add.value.uses(used);
                        }
                    }
                }
                RouteFilter::RateLimit(limit, _) => edits(&limit.refusal_headers, used),
                RouteFilter::Fault(_) | RouteFilter::Cors(_) | RouteFilter::Rbac(_) | RouteFilter::GrpcWeb | RouteFilter::Closed(_) => {}
            }
        }
    };
    routeless.iter().for_each(|filters| of_filters(filters, &mut used));
    for route in routes.virtual_hosts.iter().flat_map(|host| host.routes.iter()) {
        route.response_headers.iter().for_each(|one| edits(one, &mut used));
        if let RouteAction::Forward(forward) = &route.action
            && let ClusterChoice::Weighted(shares, _) = &forward.clusters
        {
            shares.iter().flat_map(|share| share.response_headers.iter()).for_each(|one| edits(one, &mut used));
        }
        [&route.first_filters, &route.filters].into_iter().for_each(|filters| of_filters(filters, &mut used));
    }
    used
}

fn options(value: &hcm::HttpConnectionManager, suppresses_envoy_headers: bool, path: &str) -> Translated<HttpOptions> {
    use hcm::http_connection_manager::{ForwardClientCertDetails, PathWithEscapedSlashesAction, ServerHeaderTransformation};
    let escaped_slashes = match PathWithEscapedSlashesAction::try_from(value.path_with_escaped_slashes_action) {
        Ok(PathWithEscapedSlashesAction::ImplementationSpecificDefault | PathWithEscapedSlashesAction::KeepUnchanged) => {
            EscapedSlashes::Kept
        }
        Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => EscapedSlashes::Unescaped,
        Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => EscapedSlashes::Redirected,
        Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Refused,
        Err(_) => return Err(Problem::new(format!("{path}.path_with_escaped_slashes_action"), "is not known")),
    };
    let server_header = match ServerHeaderTransformation::try_from(value.server_header_transformation) {
        Ok(ServerHeaderTransformation::AppendIfAbsent) => ServerHeader::AppendIfAbsent,
        Ok(ServerHeaderTransformation::PassThrough) => ServerHeader::PassThrough,
        _ => ServerHeader::Overwrite,
    };
    let common = value.common_http_protocol_options.as_ref();
    let keep_forwarded_client_cert = matches!(
        ForwardClientCertDetails::try_from(value.forward_client_cert_details),
        // FORWARD_ONLY keeps it only on connections with client certificates, which those inside a tunnel are not.
        Ok(ForwardClientCertDetails::AlwaysForwardOnly)
    );
    let kibibytes = value.max_request_headers_kb.as_ref().map_or(HEADER_KIBIBYTES_DEFAULT, |limit| limit.value);
    Ok(HttpOptions {
        server_name: server_name(&value.server_name, path)?,
        server_header,
        normalize_path: value.normalize_path.as_ref().is_some_and(|normalize| normalize.value),
        merge_slashes: value.merge_slashes,
        escaped_slashes,
        underscores: underscores(common, path)?,
        upgrades: Upgrades::new(value.upgrade_configs.iter().map(|one| (one.upgrade_type.as_str().into(), is_on(one.enabled.as_ref())))),
        extended_connect: value.http2_protocol_options.as_ref().is_some_and(|options| options.allow_connect),
        generate_request_id: value.generate_request_id.as_ref().is_none_or(|generate| generate.value),
        http1_0: value.http_protocol_options.as_ref().is_some_and(|options| options.accept_http_10),
        keeps_header_case: value.http_protocol_options.as_ref().is_some_and(keeps_header_case),
        suppresses_envoy_headers,
        tells_port: value.append_x_forwarded_port,
        idle_timeout: timeout::connection_idle(common.and_then(|common| common.idle_timeout.as_ref()), &format!("{path}.idle_timeout"))?,
        headers_timeout: positive_duration(value.request_headers_timeout.as_ref(), &format!("{path}.request_headers_timeout"))?,
        connection_duration_max: positive_duration(
            common.and_then(|common| common.max_connection_duration.as_ref()),
            &format!("{path}.common_http_protocol_options.max_connection_duration"),
        )?,
        timeouts: timeout::chain(value, path)?,
        header_bytes_max: usize::try_from(kibibytes).unwrap_or(usize::MAX).saturating_mul(1024),
        keep_forwarded_client_cert,
        internal_addresses: internal_addresses(value.internal_address_config.as_ref(), path)?,
    })
}

/// Envoy's ranges where the configuration is there and names none.
const INTERNAL_DEFAULT: [&str; 6] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.1/32", "fd00::/8", "::1/128"];

/// Whose clients are internal. No caller has a Unix socket for an address.
fn internal_addresses(value: Option<&InternalAddressConfig>, path: &str) -> Translated<Box<[IpNet]>> {
    let Some(value) = value else { return Ok(Box::default()) };
    if value.cidr_ranges.is_empty() {
        return Ok(INTERNAL_DEFAULT.iter().map(|range| range.parse().expect("a range by its text")).collect());
    }
    let ranges = value.cidr_ranges.iter().enumerate();
    ranges.map(|(at, range)| super::cidr(range, &format!("{path}.internal_address_config.cidr_ranges[{at}]"))).collect()
}

fn underscores(common: Option<&HttpProtocolOptions>, path: &str) -> Translated<UnderscoreNames> {
    let action = common.map_or(0, |common| common.headers_with_underscores_action);
    Ok(match HeadersWithUnderscoresAction::try_from(action) {
        Ok(HeadersWithUnderscoresAction::Allow) => UnderscoreNames::Allowed,
        Ok(HeadersWithUnderscoresAction::DropHeader) => UnderscoreNames::Dropped,
        Ok(HeadersWithUnderscoresAction::RejectRequest) => UnderscoreNames::Refused,
        Err(_) => {
            let path = format!("{path}.common_http_protocol_options.headers_with_underscores_action");
            return Err(Problem::new(path, "is not known"));
        }
    })
}

/// What `server` says; Envoy's default is its own name.
fn server_name(text: &str, path: &str) -> Result<HeaderValue, Problem> {
    let text = if text.is_empty() { "envoy" } else { text };
    HeaderValue::from_str(text).map_err(|_| Problem::new(format!("{path}.server_name"), format!("{text:?} cannot be a header's value")))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_proxy_is_asked_for_a_host_and_a_port() {
        let read = |hostname: &str, use_post, post_path: &str| {
            let (hostname, post_path) = (hostname.to_owned(), post_path.to_owned());
            http_tunnel(&tcp::tcp_proxy::TunnelingConfig { hostname, use_post, post_path, ..Default::default() }, "t")
        };
        let tunnel = read("api.example.com:443", false, "").unwrap();
        assert_eq!((tunnel.authority.as_str(), tunnel.post_path), ("api.example.com:443", None));
        assert_eq!(read("[2001:db8::1]:443", true, "").unwrap().post_path.unwrap(), "/");
        assert_eq!(read("a:1", true, "/tcp").unwrap().post_path.unwrap(), "/tcp");
        for hostname in ["", "api.example.com", "a:0", "%DOWNSTREAM_LOCAL_ADDRESS%", "%REQ(x)%:80", "me@a:1", "a b:1"] {
            assert_eq!(read(hostname, false, "").unwrap_err().path, "t.hostname", "{hostname}");
        }
        assert_eq!(read("a:1", false, "/tcp").unwrap_err().path, "t.post_path");
        assert_eq!(read("a:1", true, "tcp").unwrap_err().path, "t.post_path");
    }
}
